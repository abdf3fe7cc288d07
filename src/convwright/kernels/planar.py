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
fill vectors. A "tall" tile of several rows takes all taps of a column at once: an input vector is loaded once for all
the rows and taps that meet there, which is what depthwise convolutions, bound by loads, live on.
Weights are packed ``[phase][group][tile of outs][channel][tap][outs]``; of a tall tile the taps are those of a column,
columns one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import I64, Int, Integer, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.pieces import PIECE, Totals

MOST_STEPS = 8  # strides up to this are pulled apart, and woven together, by shuffles

ARGUMENTS = Arguments(
    # taps: offset in scratch; phases: (taps, first row of `taps`, first weight); slices, rows, cols: the source of each
    # padded slice, row and column, -1 for a zero.
    "x w bias y scratch taps phases slices rows cols",
    # work: item -> (image, chunk of groups, part of the output tiles, strip of slices, strip of rows)
    "groups chunk_groups chunks parts slice_strips strip_slices strips strip_rows "
    "grid_slices grid_rows grid_cols out_slices out_rows out_cols "
    "x_image x_channel x_slice x_row y_image y_group y_channel y_slice "
    "channels out_channels stage_slices slice_step stage_rows row_step pitch plane slice channel "
    "col_step col_low body_start body_stop k_tiles part_tiles "
    "phase_slices phase_rows phase_cols out_at out_plane scratch_thread",
)
PHASE_COLUMNS = 3


@dataclass(frozen=True)
class PlanarTile:
    """What is baked into one kernel.

    outs: output channels of the register tile; rows, cols: its vectors, ``cols`` in each of ``rows`` rows.
    flat: the strip is one long row.
    column: of a tall tile, the (plane of the row's phase, row) of each tap of a column, or of a run of them.
    partial: ``cols`` vectors cover the row, the last not wholly.
    zeros: padding holds zeros; else a table gives each padded column its source.
    pieces: vectors of a row of one phase in scratch, where they are few enough to be written out; else 0.
    in_step: the horizontal stride that is pulled apart; out_step: the one that is woven together; 0: above
    ``MOST_STEPS``, by scalars.
    single: the kernel has one tap.
    element: "f32" or "f64".
    in_pieces: sums are added up in pieces (``kernels.pieces``), of whole channels.
    epilogue: activations.
    """

    outs: int
    rows: int
    cols: int
    flat: bool
    column: tuple[tuple[int, int], ...] = ()
    partial: bool = False
    zeros: bool = True
    pieces: int = 0
    in_step: int = 1
    out_step: int = 1
    single: bool = False
    transposed: bool = False
    element: str = "f32"
    in_pieces: bool = False
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def staged_output(self) -> bool:
        """Whether sums go to scratch first."""
        return self.flat or self.transposed

    @property
    def key(self) -> str:
        return f"planar-{self!r}"

    def name(self, target: Target) -> str:
        shape = "flat" if self.flat else "tall" if self.column else "rows"
        return f"{self.element}-planar-{self.outs}x{self.rows}x{self.cols}-{shape}-{target.name}"


def emit(tile: PlanarTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target, element=tile.element)
    a = ARGUMENTS.read(k)
    scratch = k.advance(a.scratch, k.thread * a.scratch_thread)
    results = k.advance(scratch, a.out_at)
    with k.loop(k.begin, k.end) as item:
        strip, rest = item % a.strips, item // a.strips
        slice_strip, rest = rest % a.slice_strips, rest // a.slice_strips
        part, rest = rest % a.parts, rest // a.parts
        image, first_group = rest // a.chunks, rest % a.chunks * a.chunk_groups
        top = k.smaller(strip * a.strip_rows, a.grid_rows - a.strip_rows)
        front = k.smaller(slice_strip * a.strip_slices, a.grid_slices - a.strip_slices)
        with k.loop(first_group, k.minimum(first_group + a.chunk_groups, a.groups)) as group:
            stage(k, a, tile, k.advance(a.x, image * a.x_image + group * a.channels * a.x_channel), scratch, front, top)
            y = k.advance(a.y, image * a.y_image + group * a.y_group)
            start = part * a.part_tiles
            with k.loop(start, k.minimum(start + a.part_tiles, a.k_tiles)) as k_tile:
                w = (group * a.k_tiles + k_tile) * a.channels * (tile.outs * (len(tile.column) or 1))
                out = k.smaller(k_tile * tile.outs, a.out_channels - tile.outs)
                bias = k.advance(a.bias, group * a.out_channels + out)
                y_tile = k.advance(y, out * a.y_channel)
                with k.loop(0, a.strip_slices) as place, k.loop(0, a.phase_slices) as phase:
                    out_slice = (front + place) * a.phase_slices + phase
                    with k.when(out_slice < a.out_slices):
                        inputs = k.advance(scratch, place * a.slice_step * a.slice)
                        y_slice = k.advance(y_tile, out_slice * a.y_slice)
                        _sum_slice(k, a, tile, inputs, w, bias, phase, results, y_slice, top)
    return k.finish()


def _sum_slice(
    k: Kernel, a: Reader, tile: PlanarTile, inputs: ir.Value, w: Int, bias: ir.Value, slice_phase: Int,
    results: ir.Value, y: ir.Value, top: Int,
) -> None:  # fmt: skip
    """The strip's rows of one output slice, for one tile of output channels."""
    first = slice_phase * a.phase_rows * a.phase_cols
    with k.loop(0, a.phase_rows * a.phase_cols) as phase:
        row = (first + phase) * PHASE_COLUMNS
        taps, at, w_at = (k.load_int(a.phases, row + column) for column in range(PHASE_COLUMNS))
        offsets = k.b.gep(a.taps, [at.value], source_etype=I64)
        to = k.advance(results, phase * a.out_plane * tile.outs)
        sum_strip(k, a, tile, Sum(inputs, k.advance(a.w, w_at + w * taps), offsets, taps, bias), to, y, top)
    if tile.staged_output:
        leave(k, a, tile, results, y, top)


# -- rows into scratch -------------------------------------------------------------------------------------------------


def stage(k: Kernel, a: Reader, tile: PlanarTile, x: ir.Value, scratch: ir.Value, front: Int, top: Int) -> None:
    """The strip's channels, slices and rows, padded, the phases of the stride apart.

    Rows are written in whole vectors, in ascending order within a plane: what one row's last vector spills into the
    next is overwritten by that.
    """
    zero = k.splat(0.0)
    first, first_slice = top * a.row_step, front * a.slice_step
    masks = [_row_mask(k, a, number * k.v) for number in range(tile.pieces * tile.in_step)]
    with k.loop(0, a.channels) as channel, k.loop(0, a.stage_slices) as slot:
        source = k.load_int(a.slices, first_slice + slot)
        x_slice = k.advance(x, channel * a.x_channel + source * a.x_slice)
        to = k.advance(scratch, channel * a.channel + slot * a.slice)
        with k.loop(0, a.row_step) as row_phase:
            here = k.variable(k.advance(to, row_phase * a.col_step * a.plane))
            with k.loop(row_phase, a.stage_rows, a.row_step) as row:
                from_row = k.load_int(a.rows, first + row)
                at = here.get()
                with k.either(k.b.or_(source < 0, from_row < 0)) as (absent, present):
                    with absent, k.loop(0, a.col_step) as phase, k.loop(0, a.pitch, k.v) as place:
                        k.store(zero, at, phase * a.plane + place)
                    with present:
                        x_row = k.advance(x_slice, from_row * a.x_row)
                        if tile.zeros and tile.in_step:
                            _stage_row(k, a, tile, x_row, at, masks)
                        else:
                            _stage_row_by_table(k, a, tile, x_row, at)
                here.set(k.advance(at, a.pitch))


def _row_mask(k: Kernel, a: Reader, place: Integer) -> ir.Value:
    """The lanes of the vector from ``place`` in a padded row that are elements of the input."""
    return k.mask(a.col_low - place, a.col_low + a.x_row - place)


def _stage_row(k: Kernel, a: Reader, tile: PlanarTile, x: ir.Value, to: ir.Value, masks: list[ir.Value]) -> None:
    """A row between zeros: vectors wholly inside it from ``body_start`` to ``body_stop``, masked ones around.

    Of a short row every vector is masked, by ``masks`` made beforehand.
    """
    step = tile.in_step
    padded = k.advance(x, 0 - a.col_low)

    def piece(place: Integer, within: list[ir.Value | None]) -> None:
        vectors = [k.load(padded, place * step + number * k.v, within[number]) for number in range(step)]
        for phase, vector in enumerate(pull_apart(k, vectors)):
            k.store(vector, k.advance(to, a.plane * phase), place)

    def masked(place: Int) -> None:
        piece(place, [_row_mask(k, a, place * step + number * k.v) for number in range(step)])

    if tile.pieces:
        for number in range(tile.pieces):
            piece(number * k.v, list(masks[number * step : (number + 1) * step]))
        return
    with k.loop(0, a.body_start, k.v) as place:
        masked(place)
    with k.loop(a.body_start, a.body_stop, k.v) as place:
        piece(place, [None] * step)
    with k.loop(a.body_stop, a.pitch, k.v) as place:
        masked(place)


def _stage_row_by_table(k: Kernel, a: Reader, tile: PlanarTile, x: ir.Value, to: ir.Value) -> None:
    """A row whose padding comes from anywhere: its body in vectors, the rest element by element."""
    step = tile.in_step

    def singly(start: Integer, stop: Integer) -> None:
        with k.loop(start, stop) as place, k.loop(0, a.col_step) as phase:
            source = k.load_int(a.cols, place * a.col_step + phase)
            value = k.load_scalar(x, k.maximum(source, 0))
            zero = ir.Constant(k.scalar_type, 0.0)
            k.store_scalar(k.select(source < 0, zero, value), to, phase * a.plane + place)

    if not step:
        singly(0, a.pitch)
        return
    singly(0, a.body_start)
    with k.loop(a.body_start, a.body_stop, k.v) as place:
        vectors = [k.load(x, place * step + number * k.v - a.col_low) for number in range(step)]
        for phase, vector in enumerate(pull_apart(k, vectors)):
            k.store(vector, to, a.plane * phase + place)
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


@dataclass(frozen=True, slots=True)
class Sum:
    """What is summed: inputs, weights, offsets of ``taps`` taps (of a tall tile: columns of taps), and the bias."""

    scratch: ir.Value
    w: ir.Value
    offsets: ir.Value
    taps: Int
    bias: ir.Value


def sum_strip(
    k: Kernel, a: Reader, tile: PlanarTile, what: Sum, to: ir.Value, y: ir.Value, top: Int,
    sum_tile: Callable[..., list[list[ir.Value]]] | None = None,
) -> None:  # fmt: skip
    """One phase of the strip for ``outs`` output channels, into scratch at ``to`` or into the output at ``y``.

    ``sum_tile``: what sums a tile, where it is not ``_sum_tile``.
    """
    sum_tile = sum_tile or _sum_tile
    wide = tile.cols * k.v
    if tile.flat:
        with k.loop(0, (a.strip_rows - 1) * a.pitch + a.grid_cols, wide) as left:
            for out, vectors in enumerate(sum_tile(k, a, tile, what, left)):
                for number, vector in enumerate(vectors):
                    k.store(vector, to, a.out_plane * out + left + number * k.v)
        return
    rest = k.mask(0, a.grid_cols - (tile.cols - 1) * k.v) if tile.partial and not tile.staged_output else None
    with k.loop(0, a.strip_rows, tile.rows) as wanted_row, k.loop(0, a.grid_cols, wide) as wanted_col:
        row = k.smaller(wanted_row, a.strip_rows - tile.rows)
        col = wanted_col if tile.partial else k.smaller(wanted_col, a.grid_cols - wide)
        for out, vectors in enumerate(sum_tile(k, a, tile, what, row * a.pitch + col)):
            for number, vector in enumerate(vectors):
                down, right = divmod(number, tile.cols)
                if tile.staged_output:
                    k.store(vector, to, a.out_plane * out + (row + down) * a.pitch + col + right * k.v)
                else:
                    place = a.y_channel * out + (top + row + down) * a.out_cols + col + right * k.v
                    k.store(vector, y, place, rest if right == tile.cols - 1 else None)


def _sum_tile(k: Kernel, a: Reader, tile: PlanarTile, what: Sum, corner: Int) -> list[list[ir.Value]]:
    """The sums ``[out][vector]``, epilogue applied."""
    begun = Begun.of(k, tile, what.bias)
    weights = k.variable(what.w)
    start = k.advance(what.scratch, corner)
    here = k.variable(k.advance(start, k.load_int(what.offsets, 0)) if tile.single else start)
    step = _step_of_column if tile.column else add_tap

    def add_channels(count: Integer) -> None:
        with k.loop(0, count):
            x = here.get()
            if tile.single:
                step(k, a, tile, x, weights, begun.sums)
            else:
                with k.loop(0, what.taps) as tap:
                    step(k, a, tile, k.advance(x, k.load_int(what.offsets, tap)), weights, begun.sums)
            here.set(k.advance(x, a.channel))

    if begun.totals:
        # A phase of a transposed convolution may have no taps.
        taps = Int(k, k.int_value(k.maximum(what.taps * (len(tile.column) or 1), 1)))
        piece = (taps + (PIECE - 1)) // taps
        with k.loop(0, a.channels, piece) as done:
            add_channels(k.smaller(a.channels - done, piece))
            begun.totals.add()
    else:
        add_channels(a.channels)
    return begun.finished(k, tile)


@dataclass(frozen=True, slots=True)
class Begun:
    """Sums ``[out][vector]`` to add to: the bias of each output in them, or added last where there are totals."""

    sums: list[list[Variable]]
    bias: ir.Value
    totals: Totals | None

    @classmethod
    def of(cls, k: Kernel, tile: PlanarTile, bias: ir.Value) -> Begun:
        sums = []
        for out in range(tile.outs):
            initial = k.splat(0.0) if tile.in_pieces else k.broadcast(k.load_scalar(bias, out))
            sums.append([k.variable(initial) for _ in range(tile.rows * tile.cols)])
        return cls(sums, bias, Totals(k, sums) if tile.in_pieces else None)

    def finished(self, k: Kernel, tile: PlanarTile) -> list[list[ir.Value]]:
        """The vectors of sums, epilogue applied."""
        if self.totals:
            results = []
            for out, vectors in enumerate(self.totals.finished()):
                bias = k.broadcast(k.load_scalar(self.bias, out))
                results.append([k.add(vector, bias) for vector in vectors])
        else:
            results = [[accumulator.get() for accumulator in accumulators] for accumulators in self.sums]
        for operation in tile.epilogue:
            results = [[apply(k, operation, vector) for vector in vectors] for vectors in results]
        return results


def add_tap(k: Kernel, a: Reader, tile: PlanarTile, x: ir.Value, weights: Variable, sums: list[list[Variable]]) -> None:
    """Add one tap of one channel."""
    now = weights.get()
    factors = [k.broadcast(k.load_scalar(now, out)) for out in range(tile.outs)]
    for number in range(tile.rows * tile.cols):
        row, col = divmod(number, tile.cols)
        vector = k.load(k.advance(x, a.pitch * row) if row else x, col * k.v)
        for factor, accumulators in zip(factors, sums, strict=True):
            accumulators[number].set(k.fma(vector, factor, accumulators[number].get()))
    weights.set(k.advance(now, tile.outs))


def _step_of_column(
    k: Kernel, a: Reader, tile: PlanarTile, x: ir.Value, weights: Variable, sums: list[list[Variable]]
) -> None:
    """Add the taps of one column of one channel: an input row is loaded once for all the (output row, tap) it meets."""
    meets: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for tap, (plane, row) in enumerate(tile.column):
        for out_row in range(tile.rows):
            meets.setdefault((plane, row + out_row), []).append((out_row, tap))
    now = weights.get()
    factors = [[k.broadcast(k.load_scalar(now, tap * tile.outs + out)) for out in range(tile.outs)]
               for tap in range(len(tile.column))]  # fmt: skip
    for plane, row in sorted(meets):
        x_row = k.advance(x, a.pitch * row + a.plane * a.col_step * plane)
        for col in range(tile.cols):
            vector = k.load(x_row, col * k.v)
            for out_row, tap in meets[plane, row]:
                for factor, accumulators in zip(factors[tap], sums, strict=True):
                    accumulator = accumulators[out_row * tile.cols + col]
                    accumulator.set(k.fma(vector, factor, accumulator.get()))
    weights.set(k.advance(now, tile.outs * len(tile.column)))


# -- rows out of scratch -----------------------------------------------------------------------------------------------


def leave(k: Kernel, a: Reader, tile: PlanarTile, results: ir.Value, y: ir.Value, top: Int) -> None:
    """The strip's outputs from scratch ``[phase][out][row][pitch]`` to their rows, columns of phases woven together."""
    with k.loop(0, tile.outs) as out, k.loop(0, a.strip_rows) as row, k.loop(0, a.phase_rows) as phase:
        down = (top + row) * a.phase_rows + phase
        with k.when(down < a.out_rows):
            first = phase * a.phase_cols
            source = k.advance(results, (first * tile.outs + out) * a.out_plane + row * a.pitch)
            _leave_row(k, a, tile, source, k.advance(y, out * a.y_channel + down * a.out_cols))


def _leave_row(k: Kernel, a: Reader, tile: PlanarTile, source: ir.Value, y: ir.Value) -> None:
    """Element ``j`` of phase ``i`` is ``y[j * phases + i]``."""
    step = tile.out_step
    apart = a.out_plane * tile.outs  # from a phase to the next
    if not step:
        with k.loop(0, a.phase_cols) as phase:
            here = k.variable(k.advance(source, phase * apart))
            with k.loop(phase, a.out_cols, a.phase_cols) as column:
                k.store_scalar(k.load_scalar(here.get()), y, column)
                here.set(k.advance(here.get(), 1))
        return
    phases = [k.advance(source, apart * number) for number in range(step)]

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
