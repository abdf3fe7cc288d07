"""Depthwise convolution on row-major planes, in place: nothing is copied, nothing is converted.

Vectors lie along the row. A tile is ``rows`` output rows by one vector; it walks the kernel column by column, and an
input vector, loaded where it lies, serves all the output rows that it meets. Padding is not in memory:

- columns outside a row are lanes outside a mask; the masks of every column of tiles come from a table;
- rows outside a plane are left out of the tile's code, of which there is one form for each way to stand at the upper
  and lower edge (``clips``);
- slices outside a volume are left out when the kernel runs.

Strides along the row are pulled apart in registers. Where rows are single (1-D layers), ``wide`` vectors away from the
ends are taken at once, without masks.

Weights are packed ``[channel][depth][kw][kh]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import I64, Int, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.planar import pull_apart

ARGUMENTS = Arguments(
    # rows: of a tile of rows its first output row, its form among `clips`, and where its first padded row lies in a
    # slice; cols: of a vector of columns its first output column, where its first padded column lies in a row, the mask
    # of its outputs and those of its loads; slices: of an output slice its first tap that meets a slice, their number,
    # and where the first one's slice lies.
    "x w bias y rows cols slices",
    # work: item -> (plane, strip of the slices' tiles of rows)
    "strips strip_tiles all_tiles row_tiles out_channels multiplier x_image x_channel x_row x_tap_slice "
    "y_image y_channel y_slice y_row filter masked wide_start wide_stop col_low",
)
ROW_COLUMNS, SLICE_COLUMNS = 3, 3


@dataclass(frozen=True)
class DepthwisePlanesTile:
    """What is baked into one kernel.

    rows: output rows of the register tile. wide: vectors of an unmasked tile; 0 where every vector has masks.
    kernel, stride, dilation: of rows and columns.
    clips: of each form of the tile, how many of its first and of its last padded rows are outside the plane.
    element: "f32" or "f64".
    epilogue: activations.
    """

    rows: int
    wide: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    clips: tuple[tuple[int, int], ...] = ((0, 0),)
    element: str = "f32"
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def key(self) -> str:
        return f"depthwise-planes-{self!r}"

    def name(self, target: Target) -> str:
        return f"{self.element}-depthwise-planes-{self.rows}x{max(1, self.wide)}s{self.stride[1]}-{target.name}"

    @property
    def padded_rows(self) -> int:
        """Input rows from a tile's first to its last."""
        return (self.rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1

    @property
    def pulls(self) -> tuple[tuple[int, tuple[tuple[int, int], ...]], ...]:
        """The columns of taps as they are loaded: (the first column, ((phase of the stride, tap), ...))."""
        found: dict[int, list[tuple[int, int]]] = {}
        for tap in range(self.kernel[1]):
            at, phase = divmod(tap * self.dilation[1], self.stride[1])
            found.setdefault(at * self.stride[1], []).append((phase, tap))
        return tuple((first, tuple(taps)) for first, taps in sorted(found.items()))

    @property
    def loads(self) -> tuple[int, ...]:
        """The first columns of the vectors that a row of a tile loads, without the vector's own width: the table of
        columns has a mask for each."""
        return tuple(first for first, _ in self.pulls for _ in range(self.stride[1]))


def emit(tile: DepthwisePlanesTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target, element=tile.element)
    a = ARGUMENTS.read(k)
    columns = 3 + len(tile.loads)
    with k.loop(k.begin, k.end) as item:
        image, channel, strip = item.unravel(a.out_channels, a.strips)
        x_plane = k.advance(a.x, image * a.x_image + channel // a.multiplier * a.x_channel)
        y_plane = k.advance(a.y, image * a.y_image + channel * a.y_channel)
        w = k.advance(a.w, channel * a.filter)
        bias = k.broadcast(k.load_scalar(a.bias, channel))
        first = strip * a.strip_tiles
        with k.loop(first, k.minimum(first + a.strip_tiles, a.all_tiles)) as number:
            out_slice, row_tile = number // a.row_tiles, number % a.row_tiles
            at = out_slice * SLICE_COLUMNS
            tap, taps, slice_at = (k.load_int(a.slices, at + column) for column in range(SLICE_COLUMNS))
            at = row_tile * ROW_COLUMNS
            row, form, row_at = (k.load_int(a.rows, at + column) for column in range(ROW_COLUMNS))
            x = k.advance(x_plane, slice_at + row_at)
            y = k.advance(y_plane, out_slice * a.y_slice + row * a.y_row)
            weights = k.advance(w, tap * (tile.kernel[0] * tile.kernel[1]))
            for which, clip in enumerate(tile.clips):
                with k.when(form.equals(which)):
                    part = Part(x, y, weights, taps, bias, clip)
                    with k.loop(0, a.masked) as vector:
                        entry = k.b.gep(a.cols, [(vector * columns).value], source_etype=I64)
                        _masked(k, a, tile, part, entry)
                    if tile.wide:
                        with k.loop(a.wide_start, a.wide_stop, tile.wide * k.v) as column:
                            _unmasked(k, a, tile, part, column)
    return k.finish()


@dataclass(frozen=True, slots=True)
class Part:
    """Tiles of one row: input and output at their first row, the weights and number of the slices that they meet."""

    x: ir.Value
    y: ir.Value
    w: ir.Value
    taps: Int
    bias: ir.Value
    clip: tuple[int, int]


def _masked(k: Kernel, a: Reader, tile: DepthwisePlanesTile, part: Part, entry: ir.Value) -> None:
    """One vector of columns, by its entry in the table."""
    y = k.advance(part.y, k.load_int(entry, 0))
    within = k.mask_of_bits(k.load_int(entry, 2))
    sums = _sums(k, a, tile, part, k.advance(part.x, k.load_int(entry, 1)), entry)
    for out_row, total in enumerate(sums):
        k.store(_finished(k, tile, total), k.advance(y, a.y_row * out_row), 0, within)


def _unmasked(k: Kernel, a: Reader, tile: DepthwisePlanesTile, part: Part, column: Int) -> None:
    """Vectors away from the ends of the row; ``wide`` is for tiles of one row."""
    sums = _sums(k, a, tile, part, k.advance(part.x, column * tile.stride[1] - a.col_low), None)
    for number, total in enumerate(sums):
        out_row, vector = divmod(number, tile.wide)
        k.store(_finished(k, tile, total), k.advance(part.y, a.y_row * out_row), column + vector * k.v)


def _finished(k: Kernel, tile: DepthwisePlanesTile, total: Variable) -> ir.Value:
    vector = total.get()
    if tile.stride[1] == 2:
        vector = _ordered(k, vector)
    for operation in tile.epilogue:
        vector = apply(k, operation, vector)
    return vector


def _sums(
    k: Kernel, a: Reader, tile: DepthwisePlanesTile, part: Part, x: ir.Value, entry: ir.Value | None
) -> list[Variable]:
    """The tile's sums ``[row][vector]``; of the vectors in the table at ``entry``, or unmasked."""
    sums = [k.variable(part.bias) for _ in range(tile.rows * (1 if entry is not None else tile.wide))]
    kernel_high, stride = tile.kernel[0], tile.stride[1]
    x_slice, weights = k.variable(x), k.variable(part.w)
    pulls = tile.pulls
    with k.loop(0, part.taps):
        start = x_slice.get()
        now = weights.get()
        if stride == 1 and len(pulls) > 1:
            with k.loop(0, len(pulls)) as tap:
                masks = None if entry is None else [k.mask_of_bits(k.load_int(entry, tap + 3))]
                at = k.advance(start, tap * tile.dilation[1])
                _add_columns(k, a, tile, part, at, [(0, k.advance(now, tap * kernel_high))], masks, sums)
        else:
            for number, (first, taps) in enumerate(pulls):
                places = range(3 + number * stride, 3 + (number + 1) * stride)
                masks = None if entry is None else [k.mask_of_bits(k.load_int(entry, place)) for place in places]
                columns = [(phase, k.advance(now, tap * kernel_high)) for phase, tap in taps]
                with k.loop(0, k.minimum(part.taps, 1)):  # one turn: LLVM does not mix the loads of two pulls
                    _add_columns(k, a, tile, part, k.advance(start, first), columns, masks, sums)
        weights.set(k.advance(now, kernel_high * tile.kernel[1]))
        x_slice.set(k.advance(start, a.x_tap_slice))
    return sums


def _add_columns(
    k: Kernel, a: Reader, tile: DepthwisePlanesTile, part: Part, x: ir.Value, columns: Sequence[tuple[int, ir.Value]],
    masks: Sequence[ir.Value] | None, sums: Sequence[Variable],
) -> None:  # fmt: skip
    """Add columns of taps, (phase of the stride, where its weights are), of rows that are loaded together."""
    (upper, lower), stride = part.clip, tile.stride[1]
    wide = len(sums) // tile.rows
    meets: dict[int, list[tuple[int, int]]] = {}
    for out_row in range(tile.rows):
        for tap in range(tile.kernel[0]):
            row = out_row * tile.stride[0] + tap * tile.dilation[0]
            if upper <= row < tile.padded_rows - lower:
                meets.setdefault(row, []).append((out_row, tap))
    needed = sorted({tap for users in meets.values() for _, tap in users})
    factors = {
        (phase, tap): k.broadcast(k.load_scalar(weights, tap)) for phase, weights in columns for tap in needed
    }  # fmt: skip
    here, above = x, 0
    for row in sorted(meets):
        here, above = k.advance(here, a.x_row * (row - above)), row
        for vector in range(wide):
            at = vector * stride * k.v
            loaded = [k.load(here, at + number * k.v, masks[number] if masks else None) for number in range(stride)]
            phases = pull_apart(k, loaded) if stride != 2 else pull_pairs_apart(k, loaded)
            for out_row, tap in meets[row]:
                total = sums[out_row * wide + vector]
                for phase, _ in columns:
                    total.set(k.fma(phases[phase], factors[phase, tap], total.get()))


_SECTION = 16  # bytes within which the quickest shuffles of x86 stay


def pull_pairs_apart(k: Kernel, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """Even and odd elements of two vectors that follow each other, in the order that one instruction each gives: each
    section of a result has those of the same section of both vectors."""
    section = _SECTION // k.width
    phases = []
    for phase in range(2):
        lanes = []
        for start in range(0, k.v, section):
            own = range(start + phase, start + section, 2)
            lanes += [*own, *(k.v + lane for lane in own)]
        phases.append(k.shuffle(vectors[0], vectors[1], lanes))
    return phases


def _ordered(k: Kernel, vector: ir.Value) -> ir.Value:
    """The vector of outputs in the order of the row, from the order of `pull_pairs_apart`."""
    section = _SECTION // k.width
    half = section // 2
    order = []  # the output that each lane holds
    for start in range(0, k.v, section):
        own = [(start + 2 * place) // 2 for place in range(half)]
        order += [*own, *(k.v // 2 + output for output in own)]
    return k.shuffle(vector, vector, [order.index(output) for output in range(k.v)])
