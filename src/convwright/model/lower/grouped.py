"""Convolution in groups on channel blocks whose groups are a part of a vector, or whole vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import grouped
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import Geometry, geometry_of
from convwright.model.lower import channels, direct
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Value, blocks_of
from convwright.runtime.memory import aligned_empty

_TALLEST = 2  # rows of a tile: of more, LLVM keeps addresses in vectors
# Of a tile, by the square of its accumulators: the more there are, the less of a tile's end runs beside the products of
# the next. Measured: 5 cycles (of two products) with 16, 17 with 28.
_TILE_CYCLES = 1 / 45
_TAP_CYCLES = 0.5


def _why_not(p: Problem) -> str | None:
    reason = direct.why_not_blocked(p)
    if reason is not None:
        return reason
    spec, v = p.spec, p.target.vector
    own, own_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    if spec.groups == 1:
        return "not in groups"
    if own == own_out == 1:
        return "depthwise layers have a kernel of their own"
    if own % v == 0 and own_out % v == 0:
        return None if math.prod(spec.kernel) > 1 else f"pointwise, of vectors of {v}: its pixels are one row elsewhere"
    if own == own_out and v % own == 0:
        return None
    return f"groups of {own} to {own_out} channels are neither vectors of {v} nor equal parts of one"


@dataclass(frozen=True, slots=True)
class Shape:
    """rows x cols output pixels and `held` weights of the register tile; estimated cycles of a vector of outputs on one
    core."""

    rows: int
    cols: int
    held: int
    cycles: float


@lru_cache(maxsize=4096)
def choose_tile(out_rows: int, out_cols: int, taps: int, shared: int, target: Target) -> Shape:
    """The cheapest tile for a plane of outputs; `taps`: of the kernel, times the input blocks of a group."""
    u, s = grouped.turns(shared), grouped.sources(shared)
    repeats = shared == target.vector
    best: Shape | None = None
    for rows in range(1, min(out_rows, _TALLEST) + 1):
        for cols in range(1, min(out_cols, target.registers // u) + 1):
            for held in {u, max(1, u // 2)}:
                pixels = rows * cols
                if pixels * u + held + (1 if target.has_fma else 2) > target.registers - (target.registers < 32):
                    continue
                passes = u // held
                loads = s * (pixels * passes + u) * 0.6
                shuffled = 0 if repeats else (s - 1) * pixels * passes
                products = s * u * pixels / 2
                instructions = s * (u * pixels + pixels * passes + u) / 5
                latency = 0.0 if pixels * u >= 8 else 4.0 * s
                step = max(products + 0.25 * shuffled, loads, instructions, latency) + _TAP_CYCLES
                tiles = -(-out_rows // rows) * -(-out_cols // cols)
                cycles = tiles * (taps * step + (pixels * u) ** 2 * _TILE_CYCLES + 2.0)
                if best is None or cycles < best.cycles:
                    best = Shape(rows, cols, held, cycles)
    assert best is not None
    return best


def _layout(g: Geometry, v: int) -> tuple[int, int, int]:
    """Lanes that share their inputs, vectors of outputs of a group, blocks of inputs of a group (1, 1 for parts)."""
    if g.own_channels % v:
        return g.own_channels, 1, 1
    return v, g.out_channels // g.groups // v, g.own_channels // v


def _shape(g: Geometry, target: Target) -> Shape:
    shared, _, blocks = _layout(g, target.vector)
    return choose_tile(*g.out_size, g.kernel[0] * g.kernel[1] * blocks, shared, target)


def _cycles(p: Problem) -> float:
    g = geometry_of(p)
    vectors = blocks_of(g.out_channels, p.target.vector) * p.batch
    shares = max(1, min(vectors, p.threads))
    return vectors * _shape(g, p.target).cycles / max(shares, min(p.threads, shares * g.out_size[0]))


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    g = geometry_of(p)
    x = channels.with_halo(b, layer.node.inputs[0], g.halo)
    residual = b.blocked(layer.residual) if layer.residual else None
    add(b, layer, g, x, b.new_blocked(layer.output), residual)


def add(b: Builder, layer: Layer, g: Geometry, x: Value, y: Value, residual: Value | None) -> None:
    """Add the step that computes the layer from `x`, which lies in its halo, to `y`."""
    v, node = b.v, layer.node
    shared, group_vectors, group_blocks = _layout(g, v)
    weight_shape = (g.out_channels, g.own_channels, *g.kernel)
    places = _places(weight_shape, shared, group_blocks, v)
    packed = b.weights.derived(
        node.inputs[1],
        ("grouped", weight_shape, shared),
        lambda weight: _pack(weight.reshape(weight_shape), places),
        lambda packed: _unpack(packed, weight_shape, places),
    )
    bias = b.weights.bias(node.input(2), g.out_channels)
    rows, cols = g.out_size
    shape = _shape(g, b.target)
    tile = grouped.GroupedTile(
        shape.rows, shape.cols, shared, shape.held, g.stride[1] * v, layer.epilogue,
        direct.in_pieces(b.numerics, g.own_channels * g.kernel[0] * g.kernel[1] // grouped.turns(shared)),
    )  # fmt: skip
    vectors = blocks_of(g.out_channels, v)
    row_tiles = -(-rows // shape.rows)
    chunk_tiles, chunks = b.chunks(row_tiles, x.n * vectors)
    arguments = {
        "x": b.inside(x, g), "w": b.static(packed), "bias": b.static(bias), "y": y.ref,
        "residual": residual.ref if residual else 0,
        "vectors": vectors, "chunks": chunks, "chunk_tiles": chunk_tiles, "row_tiles": row_tiles,
        "col_tiles": -(-cols // shape.cols), "out_rows": rows, "out_cols": cols,
        "group_vectors": group_vectors, "group_blocks": group_blocks,
        "taps_high": g.kernel[0], "taps_wide": g.kernel[1],
        "x_image": x.image, "x_block": x.block, "x_row": x.row * g.stride[0], "x_tap_row": x.row * g.dilation[0],
        "x_tap_col": g.dilation[1] * v,
        "y_image": y.image, "y_block": y.block, "y_row": y.row,
        "r_image": residual.image if residual else 0, "r_block": residual.block if residual else 0,
        "r_row": residual.row if residual else 0,
    }  # fmt: skip
    why = f"in groups of {g.own_channels}: {shape.rows}x{shape.cols} pixels by {grouped.turns(shared)} turns"
    reads = [x, residual] if residual else [x]
    b.step(tile.name(b.target), grouped, tile, arguments, x.n * vectors * chunks, reads, [y], why, g.macs * x.n)


# -- weights -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Places:
    """Where packed weights come from: `out` `[vector][turn][lane]`, the output channel, and `own`
    `[block][source][lane]`, the input channel within its group."""

    out: np.ndarray
    own: np.ndarray


def _places(shape: tuple[int, ...], shared: int, group_blocks: int, v: int) -> Places:
    u = grouped.turns(shared)
    turned = np.array([[grouped.turned(lane, turn, u) for lane in range(v)] for turn in range(u)])
    out = turned + np.arange(blocks_of(shape[0], v))[:, None, None] * v
    lanes = np.array(grouped.source_lanes(shared, v)) % shared
    own = lanes + np.arange(group_blocks)[:, None, None] * shared
    return Places(out, own)


def _indices(places: Places) -> tuple[np.ndarray, np.ndarray]:
    """Output and input channel of `[vector][block][source][turn][lane]`."""
    return places.out[:, None, None], places.own[None, :, :, None]


def _pack(weight: np.ndarray, places: Places) -> np.ndarray:
    """`[vector][block][kh][kw][source][turn][lane]` of `[K, C/groups, kh, kw]`; zeros beyond the last channel."""
    out, own = _indices(places)
    found = weight[np.minimum(out, len(weight) - 1), own].astype(np.float32)
    found[np.broadcast_to(out >= len(weight), found.shape[:5])] = 0
    # [vector][block][source][turn][lane][kh][kw]
    ordered = found.transpose(0, 1, 5, 6, 2, 3, 4)
    packed = aligned_empty(math.prod(ordered.shape)).reshape(ordered.shape)
    packed[...] = ordered
    return packed


def _unpack(packed: np.ndarray, shape: tuple[int, ...], places: Places) -> np.ndarray:
    """The weights in row-major order, of what `_pack` gave."""
    out, own = np.broadcast_arrays(*_indices(places))
    weight = np.empty(shape, np.float32)
    found = packed.transpose(0, 1, 4, 5, 6, 2, 3)
    there = out < shape[0]
    weight[out[there], own[there]] = found[there]
    return weight


ROW = Algorithm(
    "direct", "grouped", True, _why_not, _cycles, direct.multiplications, direct.no_workspace, direct.error_in_pieces,
    _lower,
)  # fmt: skip
