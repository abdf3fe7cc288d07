"""Depthwise convolution on channel blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import depthwise
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import Geometry, geometry_of
from convwright.model.lower import channels, direct, volumes
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Halo, Value, blocks_of

_LARGE = 9  # taps along both axes from which on kernels are clipped
_FEWEST_INPUTS = 2  # held beside a whole row of sums: with one, each product would load its weight
_MOST_PRODUCTS = 800  # of a whole row: what is emitted


def _why_not(p: Problem) -> str | None:
    reason = direct.why_not_blocked(p, deep=p.spec.rank == 3)
    if reason is None and not geometry_of(p).depthwise:
        return "not depthwise with one filter a channel"
    return reason


def is_clipped(g: Geometry) -> bool:
    """Whether leaving out taps on padding is worth its bookkeeping."""
    return min(g.kernel) >= _LARGE and g.dilation == (1, 1)


def _useful(g: Geometry, cols: int) -> float:
    """The part of a row's taps that tiles of ``cols`` pixels meet."""
    return _met(g, 1, cols)


def _met(g: Geometry, axis: int, pixels: int) -> float:
    """The part of an axis's taps that meet elements of the input, for runs of so many pixels."""
    out, taps = g.out_size[axis], g.kernel[axis]
    first = np.minimum(np.arange(0, out, pixels), max(0, out - pixels)) * g.stride[axis]
    begin = np.maximum(0, g.padding[axis][0] - first - (pixels - 1) * g.stride[axis])
    end = np.minimum(taps, g.padding[axis][0] + g.size[axis] - first)
    return float(np.maximum(end - begin, 0).mean()) / taps


def _cycles(p: Problem) -> float:
    g = geometry_of(p)
    vectors = blocks_of(g.out_channels, p.target.vector) * g.out_size[0] * g.out_size[1] * p.batch
    taps = 1.2 * g.kernel[0] * g.kernel[1]
    if p.spec.rank == 3:
        vectors, taps = vectors * p.out_size[0], taps * p.spec.kernel[0]
    elif is_clipped(g):
        taps = _met(g, 0, 1) * g.kernel[0] * _row_of(g, p.target, True).cycles / g.out_size[1]
    return vectors * (taps + 4.0) / p.threads


@dataclass(frozen=True, slots=True)
class _Row:
    """How a row of outputs is computed: pixels of the register tile, whether the row's weights are held in registers,
    whether the tile is the whole row; estimated cycles of a row of taps."""

    cols: int
    unrolled: bool
    whole: bool = False
    cycles: float = 0.0


@lru_cache(maxsize=1024)
def _row_of(g: Geometry, target: Target, clipped: bool) -> _Row:
    cols, width = g.out_size[1], g.kernel[1]
    fits = depthwise.fits_registers(width, target)
    if not clipped:
        return _Row(depthwise.choose_cols(cols, width if fits else 1, target), fits)
    rows = []
    if depthwise.inputs_at_once(cols, target) >= _FEWEST_INPUTS:
        products = depthwise.products_of_row(cols, width, g.stride[1], g.size[1], g.padding[1][0])
        if products <= _MOST_PRODUCTS:
            turns = -(-g.size[1] // depthwise.inputs_at_once(cols, target))
            rows.append(_Row(cols, False, True, 0.6 * products + 0.2 * turns * min(width, cols + g.size[1])))
    for unrolled in (False, True)[: 1 + fits]:
        tile = depthwise.choose_cols(cols, width if unrolled else 1, target, partial(_useful, g))
        met = width * (1.0 if unrolled else _useful(g, tile) * (tile + 1) / tile)
        rows.append(_Row(tile, unrolled, False, 1.2 * -(-cols // tile) * tile * met))
    return min(rows, key=lambda row: row.cycles)


def _leaves_out(b: Builder, layer: Layer, g: Geometry) -> bool:
    """Whether taps on padding are left out; of an infinite weight padding makes NaN."""
    if not is_clipped(g):
        return False
    packed = b.weights.get(layer.node.inputs[1], "depthwise", (g.out_channels, 1, *g.kernel))
    return bool(np.isfinite(packed).all())


def halo_of(p: Problem) -> Halo:
    """The padding; of a clipped kernel what a tile's first pixel sees beside the input with its last one's taps."""
    g = geometry_of(p)
    if p.spec.rank == 3:
        return volumes.halo_of(p)
    if not is_clipped(g):
        return g.halo
    row = _row_of(g, p.target, True)
    if row.whole:
        return 0, 0, 0, 0
    if row.unrolled:  # all taps of a row are taken
        return 0, g.halo[1], 0, g.halo[3]
    apart = (row.cols - 1) * g.stride[1]
    return 0, min(g.halo[1], apart), 0, min(g.halo[3], apart)


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    g = geometry_of(p)
    if p.spec.rank == 3:
        for window in volumes.windows(b, layer, p):
            add(b, layer, window.geometry, window.x, window.y, window.residual, deep=window.deep)
        return
    halo = halo_of(p) if _leaves_out(b, layer, g) else g.halo
    x = channels.with_halo(b, layer.node.inputs[0], halo)
    residual = b.blocked(layer.residual) if layer.residual else None
    add(b, layer, g, x, b.new_blocked(layer.output), residual)


def add(
    b: Builder, layer: Layer, g: Geometry, x: Value, y: Value, residual: Value | None, deep: tuple[int, int] = (1, 0)
) -> None:
    """Add the step that computes the layer from `x`, which lies in its halo, to `y`.

    The channels of both lie in the order that the plan has for them (`lower.regroup`). `deep`: as in `direct.add`.
    """
    v, node, macs = b.v, layer.node, g.macs * deep[0]
    shape = (g.out_channels, 1, deep[0] * g.kernel[0], g.kernel[1])
    if (order := b.orders.get(layer.output)) is not None:
        packed = b.weights.in_lanes(node.inputs[1], "depthwise", shape, g.groups, order)
        bias = b.weights.bias_in_lanes(node.input(2), g.out_channels, order, "depthwise")
        g = replace(g, out_channels=order.lanes, groups=order.lanes)
    else:
        packed = b.weights.get(node.inputs[1], "depthwise", shape)
        bias = b.weights.bias(node.input(2), g.out_channels)
    rows, cols = g.out_size
    clipped = len(b.shape(layer.output)) < 5 and _leaves_out(b, layer, g)
    row = _row_of(g, b.target, clipped)
    tile = depthwise.DepthwiseTile(
        row.cols,
        g.kernel[1] if row.unrolled or row.whole else 0,
        g.stride[1],
        g.dilation[1] if row.unrolled else 0,
        row.unrolled,
        clipped,
        deep[0] > 1,
        g.size[1] if row.whole else 0,
        g.padding[1][0] if row.whole else 0,
        layer.epilogue,
    )
    blocks = blocks_of(g.out_channels, v)
    chunk_rows, chunks = b.row_chunks(rows, x.n, blocks)
    arguments = {
        "x": b.inside(x, g), "w": b.static(packed), "bias": b.static(bias), "y": y.ref,
        "residual": residual.ref if residual else 0,
        "blocks": blocks, "chunks": chunks, "chunk_rows": chunk_rows, "out_rows": rows, "out_cols": cols,
        "col_tiles": -(-cols // row.cols), "taps_high": g.kernel[0], "taps_wide": g.kernel[1],
        "x_image": x.image, "x_block": x.block, "x_row": x.row * g.stride[0], "x_tap_row": x.row * g.dilation[0],
        "x_tap_col": g.dilation[1] * v,
        "y_image": y.image, "y_block": y.block, "y_row": y.row,
        "r_image": residual.image if residual else 0, "r_block": residual.block if residual else 0,
        "r_row": residual.row if residual else 0,
        "stride_high": g.stride[0], "pad_high": g.padding[0][0], "end_high": g.padding[0][0] + g.size[0],
        "stride_wide": g.stride[1], "pad_wide": g.padding[1][0], "end_wide": g.padding[1][0] + g.size[1],
    }  # fmt: skip
    if tile.deep:
        arguments |= {"taps_deep": deep[0], "x_tap_deep": deep[1]}
    why = f"depthwise: {row.cols} pixels a tile"
    reads = [x, residual] if residual else [x]
    b.step(tile.name(b.target), depthwise, tile, arguments, x.n * blocks * chunks, reads, [y], why, macs * x.n)


ROW = Algorithm(
    "direct", "depthwise", True, _why_not, _cycles, direct.multiplications, direct.no_workspace,
    direct.error_of_sum, _lower, halo_of,
)  # fmt: skip
