"""Heterogeneous convolutions on channel blocks: Winograd's algorithm over residues, and pointwise sums beside it.

In the order of their residues modulo the part P, channels and filters of one residue are neighbours. There HetConv is
a convolution in P groups, which Winograd's algorithm computes at a quarter of the multiplications, plus a pointwise one
in which a filter reads all channels but its group's own: a contiguous run of blocks, taken as a ring. The pointwise
sums go into the output first, and the Winograd kernel adds them to its own as a residual. A row-major input is packed
in that order, and the output unpacked from it, at no cost; between channel blocks, lanes are permuted.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from convwright.graph import Node
from convwright.graph.graph import INTERNAL
from convwright.kernels import direct
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import geometry_of
from convwright.model.lower import channels, paired_ring, winograd, winograd_cut
from convwright.model.lower import direct as direct_lowering
from convwright.model.lower.winograd_forms import ERROR, forms_of
from convwright.model.problem import Problem
from convwright.model.tiles import choose_tile, cut_work
from convwright.model.values import Buffer, Halo, Ref, Value
from convwright.model.weights import entries_of, pack_direct
from convwright.spec import HetSpec

_OTHERS = ("winograd-5",)  # tiles to consider besides those that the algorithm chooses from itself


@lru_cache(maxsize=1024)
def grouped(p: Problem, part: int) -> Problem:
    """Of the dense problem, what remains on a filter's own channels; it names a tile where another is faster.

    Errors are measured against the whole output, of which this is a part: of random terms, the root of its share.
    """
    own = replace(p, spec=replace(p.spec, groups=part))
    if max(p.spec.stride) > 1 or isinstance(forms_of(own), str):
        return own
    taps = math.prod(p.spec.kernel)
    share = (taps / (taps + part - 1)) ** 0.5
    able = [own]
    for name in _OTHERS:
        named = replace(own, algorithm=name)
        forms = forms_of(named)
        if not isinstance(forms, str) and forms[0].growth * direct_lowering.error_of_sum(named) * share <= ERROR:
            able.append(named)
    return min(able, key=lambda one: winograd_cut.cut(one).cycles)


def why_not(p: Problem, part: int) -> str | None:
    """Why a heterogeneous convolution cannot be computed so; ``p``: the dense one."""
    spec = p.spec
    if part == 1:
        return "part 1 is a standard convolution"
    if spec.rank == 3:
        return "channel blocks have at most 2 spatial axes, not 3"
    if spec.in_channels % part or spec.out_channels % part:
        return f"part {part} does not divide {spec.in_channels} and {spec.out_channels} channels"
    return winograd.why_not(replace(p, spec=replace(spec, groups=part)))


def cycles(p: Problem, part: int) -> float:
    """Estimated, on each of the threads, conversions of layout left out."""
    spec, v = p.spec, p.target.vector
    if paired_ring.pays(p, part):
        return winograd_cut.cut(grouped(p, part)).cycles + paired_ring.cut(p, part).cycles
    vectors = spec.out_channels // part // v
    reduction = spec.in_channels // part * (part - 1)
    pointwise = choose_tile(*geometry_of(p).out_size, vectors, part, reduction, p.target).cycles * p.batch / p.threads
    return winograd_cut.cut(grouped(p, part)).cycles + pointwise


def lower(b: Builder, layer: Layer, spec: HetSpec, p: Problem) -> None:
    g = grouped(p, spec.part)
    x = _by_residue(b, layer.node.inputs[0], spec.part, winograd.halo_of(g))
    y = b.blocked_room(b.shape(layer.output))
    _pointwise(b, layer, spec, p, x, y)
    c = winograd_cut.cut(g)
    floats = winograd_cut.scratch_floats(g, c)
    node = Node("Convolution", layer.node.inputs[:2], [layer.output], {"spec": g.spec}, domain=INTERNAL)
    rest = Layer(node, layer.output, (("residual",), *layer.epilogue))

    def own_kernels(weight: np.ndarray) -> np.ndarray:
        residues = [weight[residue :: spec.part, residue :: spec.part] for residue in range(spec.part)]
        return np.concatenate(residues)

    part = winograd.Part((spec.part,), own_kernels, y.ref, (1, 1), Buffer(4 * floats * b.threads), floats)
    winograd.add_step(b, rest, g, b.inside(x, geometry_of(g)), (x, 0), (y, 0), y, part, c)
    _in_order(b, layer.output, spec.part, y)


def _order(count: int, part: int) -> np.ndarray:
    """The channels in the order of their residues."""
    return np.arange(count).reshape(-1, part).T.reshape(-1)


def _by_residue(b: Builder, name: str, part: int, halo: Halo) -> Value:
    """The value in blocks, residue by residue, inside a halo of zeros."""
    places = _order(b.shape(name)[1], part)
    if (name, True) not in b.values:
        return b.pack(name, halo, places)
    source = b.blocked(name)
    value = b.blocked_room(source.shape, halo)
    channels.choose_step(b, source, value, places, "residues")
    return value


def _in_order(b: Builder, name: str, part: int, source: Value) -> None:
    """Define the value whose blocks are in the order of residues."""
    places = _order(source.channels, part)
    if name in b.graph.outputs:
        b.values[f"{name}:residues{part}", True] = source
        b.unpack(f"{name}:residues{part}", name, places)
    else:
        channels.choose_step(b, source, b.new_blocked(name), np.argsort(places), "residues")


def _pointwise(b: Builder, layer: Layer, spec: HetSpec, p: Problem, x: Value, y: Value) -> None:
    """What filters sum over the channels of other residues, at the centre of their windows."""
    g, v, part, node = geometry_of(p), b.v, spec.part, layer.node
    own_in, own_out = p.spec.in_channels // part, p.spec.out_channels // part
    reduction, vectors = own_in * (part - 1), own_out // v
    bias = b.constant(node.input(2)) if node.input(2) else None
    bias = np.zeros(p.spec.out_channels, np.float32) if bias is None else bias[_order(p.spec.out_channels, part)]
    centre = sum(
        size // 2 * dilation * step for size, dilation, step in zip(g.kernel, g.dilation, (x.row, v), strict=True)
    )
    corner = b.inside(x, g)
    at = Ref(corner.buffer, corner.nbytes + 4 * centre)
    if paired_ring.pays(p, part):
        paired_ring.add(b, p, part, node.inputs[1], bias, at, x, y)
        return

    def others(weight: np.ndarray) -> np.ndarray:
        """``[residue][vector][channel][v]``."""
        rows = paired_ring.ring_weights(weight, part).reshape(part, own_out, reduction, 1, 1)
        return np.concatenate([pack_direct(of_residue, 1, v) for of_residue in rows])

    packed = b.weights.derived(node.inputs[1], ("het pointwise", part), others)
    rows, cols = g.out_size
    shape = choose_tile(rows, cols, vectors, part, reduction, b.target)
    tile = direct.DirectTile(shape.rows, shape.cols, shape.outs, g.stride[1] * v, taps=False, ring=True)
    table = direct_lowering.output_tiles(entries_of(p.spec.out_channels, part, v), shape.outs, own_in, reduction, v)
    table[:, 0] = (table[:, 0] + own_in) % p.spec.in_channels
    col_tiles = -(-cols // shape.cols)
    pixel_tiles = col_tiles * -(-rows // shape.rows)
    cut = cut_work(len(table), pixel_tiles, x.n, 4 * x.image * x.n, packed.nbytes, b.threads)
    arguments = {
        "x": at, "w": b.static(packed), "bias": b.static(bias),
        "y": y.ref, "table": b.static(table), "residual": 0,
        "tiles_inner": cut.tiles_inner, "tiles": len(table), "chunks": cut.chunks_image * x.n,
        "chunks_image": cut.chunks_image, "chunk_tiles": cut.chunk_tiles, "pixel_tiles": pixel_tiles,
        "col_tiles": col_tiles, "out_rows": rows, "out_cols": cols,
        "x_image": x.image, "x_block": x.block, "x_row": x.row * g.stride[0], "x_tap_row": 0, "x_tap_col": 0,
        "channels": reduction, "taps_high": 1, "taps_wide": 1, "w_out": reduction * v,
        "y_image": y.image, "y_block": y.block, "y_row": y.row, "wrap_cols": cols,
        "r_image": 0, "r_block": 0, "r_row": 0, "ring": p.spec.in_channels // v,
    }  # fmt: skip
    items = cut.halves * cut.tiles_inner * cut.chunks_image * x.n
    why = f"part {part}, other channels: {shape.rows}x{shape.cols} pixels by {shape.outs} vectors"
    macs = x.n * rows * cols * reduction * p.spec.out_channels
    b.step(tile.name(b.target), direct, tile, arguments, items, [x], [y], why, macs)
