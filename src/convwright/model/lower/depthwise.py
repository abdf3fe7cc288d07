"""Depthwise convolution on channel blocks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

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
        taps *= _met(g, 0, 1) * _met(g, 1, min(7, g.out_size[1]))
    return vectors * (taps + 4.0) / p.threads


def _width(g: Geometry, target: Target, clipped: bool) -> int:
    """Output pixels of the register tile."""
    useful = partial(_useful, g) if clipped else lambda cols: 1.0
    return depthwise.choose_cols(g.out_size[1], g.kernel[1], target, useful)


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
    if depthwise.fits_registers(g.kernel[1], p.target):  # all taps of a row are taken
        return 0, g.halo[1], 0, g.halo[3]
    apart = (_width(g, p.target, True) - 1) * g.stride[1]
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
    unrolled = depthwise.fits_registers(g.kernel[1], b.target)
    clipped = len(b.shape(layer.output)) < 5 and _leaves_out(b, layer, g)
    width = _width(g, b.target, clipped)
    tile = depthwise.DepthwiseTile(
        width,
        g.kernel[1] if unrolled else 0,
        g.stride[1],
        g.dilation[1] if unrolled else 0,
        unrolled,
        clipped,
        deep[0] > 1,
        layer.epilogue,
    )
    blocks = blocks_of(g.out_channels, v)
    chunks = b.chunks(rows, x.n * blocks)
    chunk_rows = -(-rows // chunks)
    chunks = -(-rows // chunk_rows)
    arguments = {
        "x": b.inside(x, g), "w": b.static(packed), "bias": b.static(bias), "y": y.ref,
        "residual": residual.ref if residual else 0,
        "blocks": blocks, "chunks": chunks, "chunk_rows": chunk_rows, "out_rows": rows, "out_cols": cols,
        "col_tiles": -(-cols // width), "taps_high": g.kernel[0], "taps_wide": g.kernel[1],
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
    why = f"depthwise: {width} pixels a tile"
    reads = [x, residual] if residual else [x]
    b.step(tile.name(b.target), depthwise, tile, arguments, x.n * blocks * chunks, reads, [y], why, macs * x.n)


ROW = Algorithm(
    "direct", "depthwise", True, _why_not, _cycles, direct.multiplications, direct.no_workspace,
    direct.error_of_sum, _lower, halo_of,
)  # fmt: skip
