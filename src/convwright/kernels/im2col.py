"""An input's windows as columns (K. Chellapilla, S. Puri, P. Simard, High Performance Convolutional Neural Networks for
Document Processing, 2006), in the panels that `kernels.gemm` reads.

Row ``(channel, tap)`` of the column matrix holds, for every output position, the input that this tap meets there. Along
a row of the output these are elements of one input row, a stride apart, so rows are copied in vectors; padding is
filled in on the way. Tables give the source of each padded slice, row and column, -1 for a zero.

A work item is a panel of one channel: ``[taps][width]``. Positions beyond the last of a plane are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.planar import MOST_STEPS, pull_apart

ARGUMENTS = Arguments(
    "x columns slices rows cols",
    # work: item -> (panel, channel); `first`: the panel, counted through all planes, that `columns` begins with
    "first panels channels width positions out_rows out_cols x_channel x_slice x_row "
    "taps_deep taps_high taps_wide slice_step row_step col_step slice_gap row_gap col_gap col_low",
)


@dataclass(frozen=True)
class Im2col:
    """What is baked into one kernel.

    step: the horizontal stride, 0 where it is more than `MOST_STEPS` and elements are copied one by one.
    zeros: padding holds zeros. element: "f32" or "f64".
    """

    step: int
    zeros: bool
    element: str = "f32"

    @property
    def key(self) -> str:
        return f"im2col-{self!r}"

    def name(self, target: Target) -> str:
        return f"{self.element}-im2col-s{self.step or 'n'}-{target.name}"


def step_of(stride: int) -> int:
    """What ``Im2col.step`` is for a horizontal stride."""
    return stride if stride <= MOST_STEPS else 0


def emit(tile: Im2col, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target, element=tile.element)
    a = ARGUMENTS.read(k)
    taps = a.taps_deep * a.taps_high * a.taps_wide
    with k.loop(k.begin, k.end) as item:
        here, channel = item // a.channels, item % a.channels
        panel = a.first + here
        x = k.advance(a.x, (panel // a.panels * a.channels + channel) * a.x_channel)
        to = k.advance(a.columns, item * taps * a.width)
        left = panel % a.panels * a.width
        stop = k.smaller(left + a.width, a.positions)
        with k.loop(left // a.out_cols, (stop - 1) // a.out_cols + 1) as out:
            start = k.choose(out * a.out_cols < left, left, out * a.out_cols)
            count = k.smaller(out * a.out_cols + a.out_cols, stop) - start
            piece = _Piece(start - out * a.out_cols, count, start - left)
            _taps(k, a, tile, x, to, out, piece)
    return k.finish()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Positions of one output row: the first's column, their number, and where in the panel they begin."""

    column: Int
    count: Int
    place: Int


def _taps(k: Kernel, a: Reader, tile: Im2col, x: ir.Value, to: ir.Value, out: Int, piece: _Piece) -> None:
    """What all taps meet at these positions of output row ``out``, counted through all slices."""
    first_slice, first_row = out // a.out_rows * a.slice_step, out % a.out_rows * a.row_step
    with k.loop(0, a.taps_deep) as deep, k.loop(0, a.taps_high) as high:
        source = k.load_int(a.slices, first_slice + deep * a.slice_gap)
        row = k.load_int(a.rows, first_row + high * a.row_gap)
        absent = k.b.or_(source < 0, row < 0)
        x_row = k.advance(x, k.choose(absent, 0, source * a.x_slice + row * a.x_row))
        length = k.choose(absent, 0, a.x_row)
        number = (deep * a.taps_high + high) * a.taps_wide
        with k.loop(0, a.taps_wide) as wide:
            at = k.advance(to, (number + wide) * a.width + piece.place)
            padded = piece.column * a.col_step + wide * a.col_gap
            if tile.step:
                with k.loop(0, piece.count, k.v) as offset:
                    vector = strided(k, x_row, padded - a.col_low + offset * tile.step, length, tile.step)
                    _store(k, vector, at, offset, a.width - piece.place - offset, piece.count - offset)
                if not tile.zeros:
                    _patch(k, a, tile, x_row, at, padded, piece)
            else:
                _copy_singly(k, a, x_row, at, padded, length, piece)


def strided(k: Kernel, row: ir.Value, source: Int, length: Int, step: int) -> ir.Value:
    """``v`` elements of a row, ``step`` apart from ``source`` on; zeros outside its ``length`` elements.

    What lies wholly behind the row is not even pointed to: where its page is missing, a load of no lanes takes hundreds
    of cycles.
    """
    vectors = []
    for number in range(step):
        at = source + number * k.v
        vectors.append(k.load(row, k.smaller(at, length), k.mask(0 - at, length - at)))
    return pull_apart(k, vectors)[0]


def _store(k: Kernel, vector: ir.Value, at: ir.Value, offset: Int, room: Int, count: Int) -> None:
    """Store what belongs to the piece; without masks also beyond it, where the next piece will be written."""
    if k.target.has_masks:
        k.store(vector, at, offset, k.mask(0, count))
        return
    with k.either(room < k.v) as (short, enough):
        with short:
            k.store(vector, at, offset, k.mask(0, count))
        with enough:
            k.store(vector, at, offset)


def _patch(k: Kernel, a: Reader, tile: Im2col, row: ir.Value, at: ir.Value, padded: Int, piece: _Piece) -> None:
    """Padding that comes from elsewhere in the row, element by element, over the zeros that stand there."""
    up = tile.step - 1
    source = padded - a.col_low
    before = (k.choose(source < 0, 0 - source, 0) + up) // tile.step
    behind = (k.choose(a.x_row - source < 0, 0, a.x_row - source) + up) // tile.step
    for start, stop in ((0, k.minimum(before, piece.count)), (behind, piece.count)):
        with k.loop(start, stop) as offset:
            value = k.load_scalar(row, k.load_int(a.cols, padded + offset * tile.step))
            k.store_scalar(value, at, offset)


def _copy_singly(
    k: Kernel, a: Reader, row: ir.Value, at: ir.Value, padded: Int, length: Int, piece: _Piece
) -> None:  # fmt: skip
    zero = ir.Constant(k.scalar_type, 0.0)
    with k.loop(0, piece.count) as offset:
        source = k.load_int(a.cols, padded + offset * a.col_step)
        absent = k.b.or_(source < 0, length < 1)
        k.store_scalar(zero, at, offset)
        with k.when(k.b.not_(absent)):
            k.store_scalar(k.load_scalar(row, source), at, offset)
