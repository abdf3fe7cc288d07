"""Depthwise convolution on channel blocks."""

from __future__ import annotations

from convwright.kernels import depthwise
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import geometry_of
from convwright.model.lower import channels, direct
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import blocks_of


def _why_not(p: Problem) -> str | None:
    reason = direct.why_not_blocked(p)
    if reason is None and not geometry_of(p).depthwise:
        return "not depthwise with one filter a channel"
    return reason


def _cycles(p: Problem) -> float:
    g = geometry_of(p)
    vectors = blocks_of(g.out_channels, p.target.vector) * g.out_size[0] * g.out_size[1] * p.batch
    return vectors * (1.2 * g.kernel[0] * g.kernel[1] + 4.0) / p.threads


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    g, v, node = geometry_of(p), b.v, layer.node
    x = channels.with_halo(b, node.inputs[0], g.halo)
    packed = b.weights.get(node.inputs[1], "depthwise", (g.out_channels, 1, *g.kernel))
    bias = b.weights.bias(node.input(2), g.out_channels)
    residual = b.blocked(layer.residual) if layer.residual else None
    y = b.new_blocked(layer.output)
    rows, cols = g.out_size
    unrolled = depthwise.fits_registers(g.kernel[1], b.target)
    width = depthwise.choose_cols(cols, g.kernel[1], b.target)
    tile = depthwise.DepthwiseTile(
        width, g.kernel[1] if unrolled else 0, g.stride[1], g.dilation[1] if unrolled else 0, unrolled, layer.epilogue
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
    }  # fmt: skip
    why = f"depthwise: {width} pixels a tile"
    reads = [x, residual] if residual else [x]
    b.step(tile.name(b.target), depthwise, tile, arguments, x.n * blocks * chunks, reads, [y], why, g.macs * x.n)


ROW = Algorithm(
    "direct", "depthwise", True, _why_not, _cycles, direct.multiplications, direct.no_workspace,
    direct.error_of_sum, _lower,
)  # fmt: skip
