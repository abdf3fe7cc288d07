"""Depthwise convolution (one filter a channel) on channel-blocked activations.

The lanes of a vector are channels and never mix. A tile is ``cols`` neighbouring output pixels of one row; every input
vector of a row is loaded once and used by all the taps that it meets (for 3x3 at stride 1: three), and the row's
weights stay in registers. The number of kernel rows is an argument, the kernel's width is baked in. Wide kernels, whose
row of weights does not fit the register file, loop over their taps instead (``unrolled=False``). "Clipped", they leave
out the taps that see nothing but padding: at 14 x 14, three quarters of 31 x 31. Where a whole row of outputs fits the
register file (``row_inputs``), each product is written out, and those with padding are not: inputs and weights are
loaded once for all the outputs that they meet.

Weights are packed ``[block][kh][kw][v]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Integer, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader

_POINTERS = "x w bias y residual"
_INTEGERS = (
    # work: item -> (image, chunk of output rows, block)
    "blocks chunks chunk_rows out_rows out_cols col_tiles taps_high taps_wide "
    "x_image x_block x_row x_tap_row x_tap_col y_image y_block y_row r_image r_block r_row "
    "stride_high pad_high end_high stride_wide pad_wide end_wide"  # of a clipped kernel; ends: padding and size
)
ARGUMENTS = Arguments(_POINTERS, _INTEGERS)
DEEP_ARGUMENTS = Arguments(_POINTERS, f"{_INTEGERS} taps_deep x_tap_deep")


@dataclass(frozen=True)
class DepthwiseTile:
    """What is baked into one depthwise kernel.

    cols: output pixels of the register tile; width: taps in a row; stride, dilation: along the row.
    unrolled: the row's weights are held in registers.
    clipped: taps on padding alone are left out; the dilation is 1.
    row_inputs, row_padding: of a tile that is a whole row of outputs, the inputs of the row and the zeros before them,
    which are not in memory; 0 inputs for other tiles.
    deep: taps of three axes, none clipped; the images are the slices of one volume.
    epilogue: activations, and ``("residual",)`` where the residual is added.
    """

    cols: int
    width: int
    stride: int
    dilation: int
    unrolled: bool = True
    clipped: bool = False
    deep: bool = False
    row_inputs: int = 0
    row_padding: int = 0
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def key(self) -> str:
        return f"depthwise-{self!r}"

    @property
    def arguments(self) -> Arguments:
        return DEEP_ARGUMENTS if self.deep else ARGUMENTS

    def name(self, target: Target) -> str:
        return f"f32-depthwise-{self.cols}x{self.width}s{self.stride}-{target.name}"


def fits_registers(width: int, target: Target) -> bool:
    """Whether a row of ``width`` weights leaves room for at least four accumulators."""
    return width + 1 + 4 <= target.registers


def inputs_at_once(cols: int, target: Target) -> int:
    """Inputs that are held beside the sums of a whole row of outputs."""
    # Besides a weight, what LLVM loads ahead, and without fused multiply-add a product.
    return target.registers - cols - (2 if target.has_fma else 4)


def choose_cols(out_cols: int, held: int, target: Target, useful: Callable[[int], float] = lambda cols: 1.0) -> int:
    """Output pixels of the tile: as many as registers allow, dividing the row with the least work done twice.

    `held`: weights that are held in registers. `useful`: the part of the taps that tiles of so many pixels meet, where
    kernels are clipped.
    """
    # Without fused multiply-add there is a product besides, and LLVM loads a vector ahead.
    most = min(out_cols, max(3, target.registers - held - (2 if target.has_fma else 4)), 14)
    return min(
        range(max(1, most // 2), most + 1), key=lambda cols: (-(-out_cols // cols) * (cols + 2) * useful(cols), -cols)
    )


def emit(tile: DepthwiseTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = tile.arguments.read(k)
    with k.loop(k.begin, k.end) as item:
        image, chunk, block = item.unravel(a.chunks, a.blocks)
        x = k.advance(a.x, image * a.x_image + block * a.x_block)
        y = k.advance(a.y, image * a.y_image + block * a.y_block)
        residual = k.advance(a.residual, image * a.r_image + block * a.r_block)
        slice_taps = a.taps_high * a.taps_wide
        w = k.advance(a.w, block * (slice_taps * a.taps_deep if tile.deep else slice_taps) * k.v)
        bias = k.load(a.bias, block * k.v)
        first = chunk * a.chunk_rows
        with k.loop(first, k.minimum(first + a.chunk_rows, a.out_rows)) as row, k.loop(0, a.col_tiles) as col_tile:
            left = k.minimum(col_tile * tile.cols, a.out_cols - tile.cols)
            corner = k.advance(x, row * a.x_row + left * (tile.stride * k.v))
            sums = [k.variable(bias) for _ in range(tile.cols)]
            high: tuple[Integer, Integer] = (0, a.taps_high)
            wide: tuple[Integer, Integer] = (0, a.taps_wide)
            if tile.clipped:
                top, first_col, last_col = (
                    row * a.stride_high, left * a.stride_wide, (left + (tile.cols - 1)) * a.stride_wide,
                )  # fmt: skip
                high = _clipped(k, a.pad_high - top, a.end_high - top, a.taps_high)
                wide = _clipped(k, a.pad_wide - last_col, a.end_wide - first_col, a.taps_wide)
            if tile.deep:
                with k.loop(0, a.taps_deep) as tap, k.loop(0, a.taps_high) as tap_row:
                    x_row = k.advance(corner, tap * a.x_tap_deep + tap_row * a.x_tap_row)
                    w_row = k.advance(w, (tap * slice_taps + tap_row * a.taps_wide) * k.v)
                    _sum_row(k, tile, sums, x_row, w_row, a, wide)
            else:
                with k.loop(*high) as tap_row:
                    x_row = k.advance(corner, tap_row * a.x_tap_row)
                    w_row = k.advance(w, tap_row * a.taps_wide * k.v)
                    _sum_row(k, tile, sums, x_row, w_row, a, wide)
            for col, total in enumerate(sums):
                vector = total.get()
                for operation in tile.epilogue:
                    if operation[0] == "residual":
                        place = row * a.r_row + (left + col) * k.v
                        vector = k.add(vector, k.load(residual, place))
                    else:
                        vector = apply(k, operation, vector)
                k.store(vector, y, row * a.y_row + (left + col) * k.v)
    return k.finish()


def _clipped(k: Kernel, first: Int, last: Int, taps: Int) -> tuple[Integer, Integer]:
    """The taps ``first <= tap < last`` of ``taps``."""
    return k.maximum(first, 0), k.minimum(last, taps)


def _sum_row(
    k: Kernel, tile: DepthwiseTile, sums: list[Variable], x_row: ir.Value, w_row: ir.Value, a: Reader,
    taps: tuple[Integer, Integer],
) -> None:  # fmt: skip
    """Add one row of taps to the tile's sums."""
    if tile.row_inputs:
        _sum_whole_row(k, tile, sums, x_row, w_row)
        return
    if not tile.unrolled:
        with k.loop(*taps) as at:
            weight = k.load(w_row, at * k.v)
            x_tap = k.advance(x_row, at * a.x_tap_col)
            for pixel, total in enumerate(sums):
                total.set(k.fma(k.load(x_tap, pixel * tile.stride * k.v), weight, total.get()))
        return
    weights = [k.load(w_row, tap * k.v) for tap in range(tile.width)]
    users: dict[int, list[tuple[int, int]]] = {}
    for col in range(tile.cols):
        for tap in range(tile.width):
            users.setdefault(col * tile.stride + tap * tile.dilation, []).append((col, tap))
    for place in sorted(users):
        value = k.load(x_row, place * k.v)
        for col, tap in users[place]:
            sums[col].set(k.fma(value, weights[tap], sums[col].get()))


def products_of_row(cols: int, width: int, stride: int, inputs: int, padding: int) -> int:
    """Products of a row of outputs and a row of inputs, those with padding left out."""
    return sum(0 <= col * stride + tap - padding < inputs for col in range(cols) for tap in range(width))


def _sum_whole_row(k: Kernel, tile: DepthwiseTile, sums: list[Variable], x_row: ir.Value, w_row: ir.Value) -> None:
    """Add one row of taps to the sums of a row of outputs."""
    together = inputs_at_once(tile.cols, k.target)
    for first in range(0, tile.row_inputs, together):
        inputs: dict[int, ir.Value] = {}
        for tap in range(tile.width):
            meets = [(col, col * tile.stride + tap - tile.row_padding) for col in range(tile.cols)]
            meets = [(col, at) for col, at in meets if first <= at < min(first + together, tile.row_inputs)]
            if not meets:
                continue
            weight = k.load(w_row, tap * k.v)
            for col, at in meets:
                if at not in inputs:
                    inputs[at] = k.load(x_row, (tile.row_padding + at) * k.v)
                sums[col].set(k.fma(inputs[at], weight, sums[col].get()))
            # Sums that could wait would be scheduled late, and their weights kept meanwhile.
            touched = [sums[col] for col, _ in meets]
            for total, done in zip(touched, k.done([total.get() for total in touched]), strict=True):
                total.set(done)
