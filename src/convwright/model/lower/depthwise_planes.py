"""Depthwise convolution on row-major planes, in place: the tables that its kernel reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from convwright.codegen.lang import lanes
from convwright.kernels import depthwise_planes
from convwright.kernels.depthwise_planes import DepthwisePlanesTile
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import direct, planar
from convwright.model.problem import Algorithm, Problem

_MOST_FORMS = 4  # of a tile of rows, by what is outside the plane
_MOST_PRODUCTS = 800  # of a step of all forms together: what is emitted
_MOST_ROWS = 16
_WIDE = 8  # vectors of an unmasked tile of a single row
_ONE_PRODUCT = 0.7  # what is counted here is cycles of a CPU that does one product of vectors a cycle, elsewhere two
_MOST_STRIDE = 3  # along the row: beyond, most of what is loaded is not used


def _why_not(p: Problem) -> str | None:
    spec = p.spec
    if spec.groups != spec.in_channels or spec.groups == 1:
        return "not depthwise"
    if spec.transposed:
        return "transposed"
    if spec.padding_mode != "zeros":
        return f"padding holds {spec.padding_mode} values, not zeros"
    if p.residual:
        return "adds no residual"
    if spec.stride[-1] > _MOST_STRIDE:
        return f"a horizontal stride of {spec.stride[-1]}, above {_MOST_STRIDE}"
    if form_of(p) is None:
        return "a kernel too large for its plane"
    return None


@dataclass(frozen=True, slots=True)
class Form:
    """A problem as the kernel sees it; tables are of int64.

    `strips` of `strip_tiles` tiles of rows a plane, all slices together. `cycles`: estimated, on each thread.
    """

    tile: DepthwisePlanesTile
    rows: np.ndarray = field(repr=False, compare=False)
    cols: np.ndarray = field(repr=False, compare=False)
    slices: np.ndarray = field(repr=False, compare=False)
    wide: tuple[int, int]
    strips: int = 1
    strip_tiles: int = 1
    cycles: float = 0.0


@dataclass(frozen=True, slots=True)
class _Axis:
    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    low: int


def _axes(p: Problem) -> list[_Axis]:
    """Depth, height and width; those that the problem lacks have one element."""
    spec = p.spec
    pads = spec.pads(p.size)
    own = [
        _Axis(p.size[axis], p.out_size[axis], spec.kernel[axis], spec.stride[axis], spec.dilation[axis], pads[axis][0])
        for axis in range(spec.rank)
    ]
    return [*[_Axis(1, 1, 1, 1, 1, 0)] * (3 - spec.rank), *own]


@lru_cache(maxsize=1024)
def form_of(p: Problem) -> Form | None:
    """The tile of least estimated time and its tables; None where no tile fits."""
    deep, high, wide = _axes(p)
    v = lanes(p.target, p.element)
    most = p.target.registers - high.kernel * wide.stride - 2 * wide.stride - (1 if p.target.has_fma else 2)
    best: Form | None = None
    for rows in range(1, min(high.out, max(1, min(most, _MOST_ROWS))) + 1):
        tile = DepthwisePlanesTile(
            rows, max(0, min(_WIDE, most)) if rows == high.out == 1 else 0, (high.kernel, wide.kernel),
            (high.stride, wide.stride), (high.dilation, wide.dilation), element=p.element,
        )  # fmt: skip
        forms, table = _rows(tile, high, wide.size)
        columns = 1 if wide.stride == 1 else wide.kernel
        if len(forms) > _MOST_FORMS or len(forms) * rows * high.kernel * columns > _MOST_PRODUCTS:
            continue
        tile = replace(tile, clips=forms)
        cols, unmasked = _cols(tile, wide, v)
        form = _divided(p, Form(tile, table, cols, _slices(deep, high.size * wide.size), unmasked), v)
        if best is None or form.cycles < best.cycles:
            best = form
    return best


def _rows(tile: DepthwisePlanesTile, high: _Axis, x_row: int) -> tuple[tuple[tuple[int, int], ...], np.ndarray]:
    """The forms of the tiles of rows, and the kernel's table of them."""
    starts = [min(start, high.out - tile.rows) for start in range(0, high.out, tile.rows)]
    forms: dict[tuple[int, int], int] = {}
    table = []
    for start in starts:
        first = start * high.stride - high.low
        beyond = first + tile.padded_rows - high.size
        clip = min(max(0, -first), tile.padded_rows), min(max(0, beyond), tile.padded_rows)
        # Rows are counted from the tile's first, though that be outside; the code uses addresses of rows inside.
        table.append((start, forms.setdefault(clip, len(forms)), first * x_row))
    return tuple(forms), np.array(table, np.int64)


def _cols(tile: DepthwisePlanesTile, wide: _Axis, v: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The table of vectors that have masks, and the output columns of those that have none."""
    start = stop = 0
    if tile.wide:
        start = -(-wide.low // wide.stride)
        start = -(-start // v) * v
        reach = tile.loads[-1] - wide.low + tile.wide * v * wide.stride  # elements up to the last that a tile loads
        if start * wide.stride + reach <= wide.size and start + tile.wide * v <= wide.out:
            by_input = ((wide.size - reach) // wide.stride - start) // (tile.wide * v) + 1
            stop = start + min(by_input, (wide.out - start) // (tile.wide * v)) * tile.wide * v
        else:
            start = 0
    table = []
    for column in (*range(0, start, v), *range(stop, wide.out, v)):
        first = column * wide.stride - wide.low
        masks = [_bits(v, 0, wide.out - column)]
        for number, load in enumerate(tile.loads):
            at = first + load + number % wide.stride * v
            masks.append(_bits(v, -at, wide.size - at))
        table.append((column, first, *masks))
    return np.array(table or [(0, -wide.low, *[0] * (1 + len(tile.loads)))], np.int64), (start, stop)


def _bits(v: int, low: int, high: int) -> int:
    """The lanes ``low <= lane < high`` as bits."""
    low, high = min(max(low, 0), v), min(max(high, 0), v)
    return (1 << high) - (1 << low) if high > low else 0


def _slices(deep: _Axis, x_slice: int) -> np.ndarray:
    table = []
    for out in range(deep.out):
        first = out * deep.stride - deep.low
        taps = [tap for tap in range(deep.kernel) if 0 <= first + tap * deep.dilation < deep.size]
        start = taps[0] if taps else 0
        table.append((start, len(taps), (first + start * deep.dilation) * x_slice if taps else 0))
    return np.array(table, np.int64)


def _divided(p: Problem, form: Form, v: int) -> Form:
    """The form with its division of the work and its estimated cycles on each thread."""
    tile = form.tile
    planes, tiles = p.batch * p.spec.out_channels, len(form.rows) * len(form.slices)
    wanted = -(-4 * p.threads // planes)
    strip_tiles = -(-tiles // min(tiles, wanted))
    strips = -(-tiles // strip_tiles)
    # Of a vector that two lines share two cycles; of one that stays a section's shuffle one.
    loads = len(tile.loads) * 2.0 + (len(tile.loads) if tile.stride[1] > 1 else 0)
    high = range(tile.kernel[0])
    used = len({row * tile.stride[0] + tap * tile.dilation[0] for row in range(tile.rows) for tap in high})
    step = max(tile.rows * math.prod(tile.kernel), used * loads)
    slices = float(form.slices[:, 1].mean())
    once = slices * 5.0 * len(tile.pulls) + 15.0
    count = (form.wide[1] - form.wide[0]) // v
    of_rows = (len(form.cols) + count) * (slices * step + 2.0 * tile.rows) + 20.0
    of_rows += once * (len(form.cols) + count / max(1, tile.wide))
    cycles = _ONE_PRODUCT * -(-planes * strips // p.threads) * (tiles / strips * of_rows + 40.0)
    if not p.target.has_masks:
        cycles *= 3.0
    return replace(form, strips=strips, strip_tiles=strip_tiles, cycles=cycles)


def _cycles(p: Problem) -> float:
    form = form_of(p)
    assert form is not None
    return form.cycles


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    form, spec, node = form_of(p), p.spec, layer.node
    assert form is not None
    weight = b.weights.derived(node.inputs[1], ("depthwise-planes", spec.flip), _packer(p), _unpacker(p))
    if not np.isfinite(weight).all():  # what is left out of the sum would be NaN
        planar.ROW.lower(b, layer, p)
        return
    deep, high, wide = _axes(p)
    x, y = b.plain(node.inputs[0]), b.new_plain(layer.output)
    tile = replace(form.tile, epilogue=layer.epilogue)
    bias = b.constant(node.input(2)) if node.input(2) else np.zeros(spec.out_channels, p.dtype)
    tiles = len(form.rows) * len(form.slices)
    x_plane, y_plane = math.prod(p.size), math.prod(p.out_size)
    masked = len(form.cols) if form.cols[0, 2] else 0
    arguments: dict[str, Any] = {
        "x": x.ref, "w": b.static(weight), "bias": b.static(np.ascontiguousarray(bias, p.dtype)), "y": y.ref,
        "rows": b.static(form.rows), "cols": b.static(form.cols), "slices": b.static(form.slices),
        "strips": form.strips, "strip_tiles": form.strip_tiles, "all_tiles": tiles, "row_tiles": len(form.rows),
        "out_channels": spec.out_channels, "multiplier": spec.out_channels // spec.in_channels,
        "x_image": x.image or spec.in_channels * x_plane, "x_channel": x_plane, "x_row": wide.size,
        "x_tap_slice": deep.dilation * high.size * wide.size,
        "y_image": y.image or spec.out_channels * y_plane, "y_channel": y_plane, "y_slice": high.out * wide.out,
        "y_row": wide.out, "filter": math.prod(spec.kernel), "masked": masked,
        "wide_start": form.wide[0], "wide_stop": form.wide[1], "col_low": wide.low,
    }  # fmt: skip
    items = p.batch * spec.out_channels * form.strips
    why = f"on planes, in place: {tile.rows} rows a tile"
    b.step(tile.name(b.target), depthwise_planes, tile, arguments, items, [x], [y], why, p.macs)


def _packer(p: Problem) -> Any:
    def pack(weight: np.ndarray) -> np.ndarray:
        """``[channel][depth][kw][kh]`` of weights in row-major order."""
        shaped = weight.reshape(p.spec.out_channels, *(1, 1, *p.spec.kernel)[-3:])
        shaped = shaped[:, ::-1, ::-1, ::-1] if p.spec.flip else shaped
        return np.ascontiguousarray(shaped.swapaxes(2, 3), p.dtype)

    return pack


def _unpacker(p: Problem) -> Any:
    def unpack(packed: np.ndarray) -> np.ndarray:
        shaped = packed.swapaxes(2, 3)
        shaped = shaped[:, ::-1, ::-1, ::-1] if p.spec.flip else shaped
        return np.ascontiguousarray(shaped).reshape(p.spec.weight_shape)

    return unpack


ROW = Algorithm(
    "direct", "in-place", False, _why_not, _cycles, direct.multiplications, direct.no_workspace,
    direct.error_of_sum, _lower,
)  # fmt: skip
