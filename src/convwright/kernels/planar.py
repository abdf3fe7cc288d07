"""Direct convolution on row-major tensors, vectors along the row: every kind that `ConvSpec` describes.

No channel is a lane, so no lane is wasted on groups, on few or odd channels, and nothing is converted. A work item
takes some rows of one group's channels (its strip) into scratch memory, where whatever makes convolutions differ
disappears:

- padding of every mode is filled in, from tables that give each padded row and column its source;
- a stride's phases are pulled apart, so that neighbouring outputs read neighbouring inputs;
- depth slices lie one after another, as do channels.

There a tap is nothing but an offset, and the sum runs over channels and a table of taps:

    acc[out][vector] += scratch[channel][offset of tap + vector] * w[channel][tap][out]

A transposed convolution is one such sum for each phase of its stride, over the taps that meet the phase (arXiv
1603.07285, 4.3, without the inserted zeros); the phases are woven together as rows leave the cache.

In a "flat" tile the strip's rows are one row, with a few meaningless positions between them, so that narrow images
fill vectors.
Weights are packed ``[phase][group][tile of outs][channel][tap][outs]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.spans import along, fill

MOST_STEPS = 4  # strides up to this are pulled apart, and woven together, by shuffles

ARGUMENTS = Arguments(
    # taps: offset in scratch; phases: (taps, first row of `taps`, first weight); slices: a row an output slice, its
    # phase and the sources of its taps; rows, cols: source of each padded row and column. A source of -1 is a zero.
    "x w bias y scratch taps phases slices rows cols",
    # work: item -> (image, group, part of the output tiles, output slice, strip of rows)
    "groups parts out_slices strips strip_rows grid_rows grid_cols out_rows out_cols "
    "x_image x_channel x_slice x_row y_image y_channel y_slice "
    "channels out_channels slots stage_rows row_step pitch plane slice channel col_step body_start body_stop "
    "k_tiles part_tiles phase_rows phase_cols row_shift col_shift out_at out_plane scratch_thread",
)
PHASE_COLUMNS = 3


@dataclass(frozen=True)
class PlanarTile:
    """What is baked into one kernel.

    outs: output channels of the register tile; rows, cols: its vectors, ``cols`` in each of ``rows`` rows.
    flat: the strip is one long row.
    in_step: the horizontal stride that is pulled apart; out_step: the one that is woven together; 0: above
    ``MOST_STEPS``, by scalars.
    single: the kernel has one tap.
    element: "f32" or "f64".
    epilogue: activations.
    """

    outs: int
    rows: int
    cols: int
    flat: bool
    in_step: int = 1
    out_step: int = 1
    single: bool = False
    transposed: bool = False
    element: str = "f32"
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def staged_output(self) -> bool:
        """Whether sums go to scratch first."""
        return self.flat or self.transposed

    @property
    def key(self) -> str:
        return f"planar-{self!r}"

    def name(self, target: Target) -> str:
        return f"{self.element}-planar-{self.outs}x{self.rows * self.cols}{'-flat' * self.flat}-{target.name}"


def emit(tile: PlanarTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target, element=tile.element)
    a = ARGUMENTS.read(k)
    scratch = k.advance(a.scratch, k.thread * a.scratch_thread)
    results = k.advance(scratch, a.out_at)
    with k.loop(k.begin, k.end) as item:
        strip, rest = item % a.strips, item // a.strips
        out_slice, rest = rest % a.out_slices, rest // a.out_slices
        part, rest = rest % a.parts, rest // a.parts
        group, image = rest % a.groups, rest // a.groups
        top = k.smaller(strip * a.strip_rows, a.grid_rows - a.strip_rows)
        slices = k.b.gep(a.slices, [(out_slice * (a.slots + 1)).value], source_etype=ir.IntType(64))
        x = k.advance(a.x, image * a.x_image + group * a.channels * a.x_channel)
        _stage(k, a, tile, x, scratch, slices, top)
        y = k.advance(a.y, image * a.y_image + group * a.out_channels * a.y_channel + out_slice * a.y_slice)
        start = part * a.part_tiles
        with k.loop(start, k.minimum(start + a.part_tiles, a.k_tiles)) as k_tile:
            out = k.smaller(k_tile * tile.outs, a.out_channels - tile.outs)
            bias = k.advance(a.bias, group * a.out_channels + out)
            y_out = k.advance(y, out * a.y_channel)
            first = k.load_int(slices, 0) * a.phase_rows * a.phase_cols
            with k.loop(0, a.phase_rows * a.phase_cols) as phase:
                row = (first + phase) * PHASE_COLUMNS
                taps, at, w_at = (k.load_int(a.phases, row + column) for column in range(PHASE_COLUMNS))
                w = k.advance(a.w, w_at + (group * a.k_tiles + k_tile) * a.channels * taps * tile.outs)
                offsets = k.b.gep(a.taps, [at.value], source_etype=ir.IntType(64))
                to = k.advance(results, phase * a.out_plane * tile.outs)
                _sum_strip(k, a, tile, scratch, w, offsets, taps, bias, to, y_out, top)
            if tile.staged_output:
                _leave(k, a, tile, results, y_out, top)
    return k.finish()


# -- rows into scratch -------------------------------------------------------------------------------------------------


def _stage(k: Kernel, a: Reader, tile: PlanarTile, x: ir.Value, scratch: ir.Value, slices: ir.Value, top: Int) -> None:
    """The strip's channels, slices and rows, padded, the phases of the stride apart."""
    zero = k.splat(0.0)
    first = top * a.row_step
    with k.loop(0, a.channels) as channel, k.loop(0, a.slots) as slot:
        source = k.load_int(slices, slot + 1)
        x_slice = k.advance(x, channel * a.x_channel + source * a.x_slice)
        to = k.advance(scratch, channel * a.channel + slot * a.slice)
        with k.loop(0, a.stage_rows) as row:
            from_row = k.load_int(a.rows, first + row)
            at = k.advance(to, row % a.row_step * a.col_step * a.plane + row // a.row_step * a.pitch)
            absent = k.b.or_(source < 0, from_row < 0)
            with k.either(absent) as (empty, present):
                with empty, k.loop(0, a.col_step) as phase:
                    fill(k, zero, k.advance(at, phase * a.plane), 0, a.pitch)
                with present:
                    _stage_row(k, a, tile, k.advance(x_slice, from_row * a.x_row), at)


def _stage_row(k: Kernel, a: Reader, tile: PlanarTile, x: ir.Value, to: ir.Value) -> None:
    def singly(start: Integer, stop: Integer) -> None:
        with k.loop(start, stop) as place, k.loop(0, a.col_step) as phase:
            source = k.load_int(a.cols, place * a.col_step + phase)
            value = k.load_scalar(x, k.maximum(source, 0))
            zero = ir.Constant(k.scalar_type, 0.0)
            k.store_scalar(k.select(source < 0, zero, value), to, phase * a.plane + place)

    if not tile.in_step:
        singly(0, a.pitch)
        return
    step = tile.in_step
    singly(0, a.body_start)
    body = k.advance(x, k.maximum(k.load_int(a.cols, a.body_start * step), 0))

    def piece(offset: Int, mask: ir.Value | None) -> None:
        left = a.body_stop - a.body_start - offset
        vectors = []
        for number in range(step):
            within = None if mask is None else k.mask(0, left * step - number * k.v)
            vectors.append(k.load(body, offset * step + number * k.v, within))
        for phase, vector in enumerate(pull_apart(k, vectors)):
            k.store(vector, to, a.plane * phase + a.body_start + offset, mask)

    along(k, 0, a.body_stop - a.body_start, piece)
    singly(a.body_stop, a.pitch)


def pull_apart(k: Kernel, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """Of ``n`` vectors read one after another: every n-th element from 0 on, from 1 on, ..."""
    count, results = len(vectors), []
    for phase in range(count):
        wanted = [lane * count + phase for lane in range(k.v)]
        result = vectors[0]
        lanes = [place if place < k.v else 0 for place in wanted]
        result = k.shuffle(vectors[0], vectors[0], lanes) if count > 1 else result
        for number in range(1, count):
            here = [k.v + place - number * k.v if place // k.v == number else lane for lane, place in enumerate(wanted)]
            result = k.shuffle(result, vectors[number], here)
        results.append(result)
    return results


def weave(k: Kernel, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """The opposite: elements of ``n`` vectors in turn, as ``n`` vectors to be stored one after another."""
    count, results = len(vectors), []
    for number in range(count):
        places = [(number * k.v + lane) // count for lane in range(k.v)]
        owners = [(number * k.v + lane) % count for lane in range(k.v)]
        result = vectors[0]
        if count > 1:
            result = k.shuffle(vectors[0], vectors[0], places)
        for owner in range(1, count):
            lanes = [k.v + places[lane] if owners[lane] == owner else lane for lane in range(k.v)]
            result = k.shuffle(result, vectors[owner], lanes)
        results.append(result)
    return results


# -- sums --------------------------------------------------------------------------------------------------------------


def _sum_strip(
    k: Kernel, a: Reader, tile: PlanarTile, scratch: ir.Value, w: ir.Value, offsets: ir.Value, taps: Int,
    bias: ir.Value, to: ir.Value, y: ir.Value, top: Int,
) -> None:  # fmt: skip
    """One phase of the strip for ``outs`` output channels."""
    wide = tile.cols * k.v
    if tile.flat:
        length = (a.strip_rows - 1) * a.pitch + a.grid_cols
        with k.loop(0, length, wide) as left:
            sums = _sum_tile(k, a, tile, k.advance(scratch, left), w, offsets, taps, bias)
            for out, vectors in enumerate(sums):
                for number, vector in enumerate(vectors):
                    k.store(vector, to, a.out_plane * out + left + number * k.v)
        return
    with k.loop(0, a.strip_rows, tile.rows) as wanted_row, k.loop(0, a.grid_cols, wide) as wanted_col:
        row, col = k.smaller(wanted_row, a.strip_rows - tile.rows), k.smaller(wanted_col, a.grid_cols - wide)
        sums = _sum_tile(k, a, tile, k.advance(scratch, row * a.pitch + col), w, offsets, taps, bias)
        for out, vectors in enumerate(sums):
            for number, vector in enumerate(vectors):
                down, right = number // tile.cols, number % tile.cols * k.v
                if tile.staged_output:
                    k.store(vector, to, a.out_plane * out + (row + down) * a.pitch + col + right)
                else:
                    k.store(vector, y, a.y_channel * out + (top + row + down) * a.out_cols + col + right)


def _sum_tile(
    k: Kernel, a: Reader, tile: PlanarTile, corner: ir.Value, w: ir.Value, offsets: ir.Value, taps: Int, bias: ir.Value
) -> list[list[ir.Value]]:
    """The sums ``[out][vector]``, epilogue applied."""
    count = tile.rows * tile.cols
    sums = []
    for out in range(tile.outs):
        initial = k.broadcast(k.load_scalar(bias, out))
        sums.append([k.variable(initial) for _ in range(count)])
    weights = k.variable(w)

    def step(x: ir.Value) -> None:
        now = weights.get()
        factors = [k.broadcast(k.load_scalar(now, out)) for out in range(tile.outs)]
        for number in range(count):
            row, col = divmod(number, tile.cols)
            vector = k.load(k.advance(x, a.pitch * row) if row else x, col * k.v)
            for factor, accumulators in zip(factors, sums, strict=True):
                accumulators[number].set(k.fma(vector, factor, accumulators[number].get()))
        weights.set(k.advance(now, tile.outs))

    here = k.variable(k.advance(corner, k.load_int(offsets, 0)) if tile.single else corner)
    with k.loop(0, a.channels):
        x = here.get()
        if tile.single:
            step(x)
        else:
            with k.loop(0, taps) as tap:
                step(k.advance(x, k.load_int(offsets, tap)))
        here.set(k.advance(x, a.channel))
    results = []
    for accumulators in sums:
        vectors = [accumulator.get() for accumulator in accumulators]
        for operation in tile.epilogue:
            vectors = [apply(k, operation, vector) for vector in vectors]
        results.append(vectors)
    return results


# -- rows out of scratch -----------------------------------------------------------------------------------------------


def _leave(k: Kernel, a: Reader, tile: PlanarTile, results: ir.Value, y: ir.Value, top: Int) -> None:
    """The strip's outputs from scratch ``[phase][out][row][pitch]`` to their rows, columns of phases woven together."""
    with k.loop(0, tile.outs) as out, k.loop(0, a.strip_rows) as row, k.loop(0, a.phase_rows) as phase:
        down = (top + row) * a.phase_rows + phase - a.row_shift
        with k.when(k.b.and_(down >= 0, down < a.out_rows)):
            first = phase * a.phase_cols
            source = k.advance(results, (first * tile.outs + out) * a.out_plane + row * a.pitch)
            _leave_row(k, a, tile, source, k.advance(y, out * a.y_channel + down * a.out_cols))


def _leave_row(k: Kernel, a: Reader, tile: PlanarTile, source: ir.Value, y: ir.Value) -> None:
    """``y[j * step + i]`` is element ``j + (i + shift) // step`` of phase ``(i + shift) % step``."""
    step = tile.out_step
    apart = a.out_plane * tile.outs  # from a phase to the next

    def phase_of(column: Int) -> ir.Value:
        return k.advance(source, column % a.phase_cols * apart + column // a.phase_cols)

    if not step:
        with k.loop(0, a.out_cols) as column:
            k.store_scalar(k.load_scalar(phase_of(column + a.col_shift)), y, column)
        return
    phases = [source] if step == 1 else [phase_of(a.col_shift + number) for number in range(step)]

    def piece(offset: Int, mask: ir.Value | None) -> None:
        left = a.out_cols - offset * step
        vectors = weave(k, [k.load(phase, offset) for phase in phases])
        for number, vector in enumerate(vectors):
            within = None if mask is None else k.mask(0, left - number * k.v)
            k.store(vector, y, offset * step + number * k.v, within)

    whole = a.out_cols // (step * k.v) * k.v  # a last piece may end in the middle of a phase's vector
    with k.loop(0, whole, k.v) as offset:
        piece(offset, None)
    with k.when(whole * step < a.out_cols):
        piece(whole, k.mask(0, k.v))
