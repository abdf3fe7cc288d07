"""Dense 3 x 3 convolutions at stride 1 through Winograd's algorithm, where that is expected to be faster."""

from __future__ import annotations

from dataclasses import dataclass

from convwright.kernels import winograd
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import Geometry
from convwright.model.tiles import choose_tile, most_pixels, step_cycles
from convwright.model.values import Buffer, Ref, Value, blocks_of

_GROUP_BYTES = 1_100_000  # transformed inputs of one group of tiles: half of a second-level cache of 2 MB
_MEMORY_BYTES_A_CYCLE = 5.5  # measured read bandwidth of one core at its clock
_IN_CYCLES, _OUT_CYCLES = 90.0, 70.0  # transforms of one vector of channels of one tile
WORTH = 0.85  # the estimated time, as a part of direct summation's, below which the larger weights are worth it


@dataclass(frozen=True, slots=True)
class Cut:
    """How the work is divided: see ``kernels.winograd``. ``cycles``: estimated, on each of the threads."""

    tiles: int
    outs: int
    group: int
    groups: int
    parts: int
    cycles: float


def why_not(b: Builder, g: Geometry) -> str | None:
    """Why Winograd's algorithm cannot compute this layer; None where it can."""
    if b.numerics == "strict":
        return "numerics is strict"
    if g.kernel != (3, 3) or g.stride != (1, 1) or g.dilation != (1, 1) or g.groups != 1:
        own = f"kernel {g.kernel}, stride {g.stride}, dilation {g.dilation}, groups {g.groups}"
        return f"{own}: only dense 3x3 at stride 1"
    if min(g.out_size) < winograd.OUTPUT:
        return f"output {g.out_size} is smaller than a tile of {winograd.OUTPUT}"
    return None


def cut(b: Builder, g: Geometry, images: int) -> Cut:
    """The division of the work with the least estimated time."""
    blocks, vectors = blocks_of(g.own_channels, b.v), blocks_of(g.out_channels, b.v)
    all_tiles = -(-g.out_size[0] // winograd.OUTPUT) * -(-g.out_size[1] // winograd.OUTPUT)
    largest = max(1, _GROUP_BYTES // (4 * winograd.PLACES * b.v * blocks))
    weight_bytes = 4 * winograd.PLACES * g.own_channels * vectors * b.v
    best: Cut | None = None
    fewest = -(-all_tiles // largest)
    for groups in {fewest, -(-fewest * images // b.threads) * b.threads // images or 1}:
        group = -(-all_tiles // min(groups, all_tiles))
        groups = -(-all_tiles // group)
        for outs in (outs for outs in (1, 2, 4) if outs <= vectors):
            for tiles in range(1, min(most_pixels(outs, b.target), group) + 1):
                for parts in {1, min(b.threads, -(-vectors // outs))}:
                    found = _estimate(b, g, Cut(tiles, outs, group, groups, parts, 0.0), images, weight_bytes)
                    if best is None or found.cycles < best.cycles:
                        best = found
    assert best is not None
    return best


def _estimate(b: Builder, g: Geometry, c: Cut, images: int, weight_bytes: int) -> Cut:
    blocks, vectors = blocks_of(g.own_channels, b.v), blocks_of(g.out_channels, b.v)
    turns = -(-vectors // c.outs)
    products = winograd.PLACES * -(-c.group // c.tiles) * turns / c.parts
    products *= g.own_channels * step_cycles(c.tiles, c.outs) + 2 * c.tiles * c.outs
    item = products + c.group * (blocks * _IN_CYCLES + vectors / c.parts * _OUT_CYCLES)
    items = c.groups * images * c.parts
    share = -(-items // b.threads)
    memory = share * weight_bytes / c.parts / _MEMORY_BYTES_A_CYCLE
    compute = share * item
    cycles = max(compute, memory) + 0.3 * min(compute, memory)  # they overlap, not wholly
    return Cut(c.tiles, c.outs, c.group, c.groups, c.parts, cycles)


def direct_cycles(b: Builder, g: Geometry, images: int) -> float:
    """The estimate for direct summation of the same layer, on each of the threads."""
    vectors, reduction = blocks_of(g.out_channels, b.v), g.own_channels * 9
    compute = choose_tile(*g.out_size, vectors, 1, reduction, b.target).cycles * images
    memory = 4 * reduction * vectors * b.v / _MEMORY_BYTES_A_CYCLE
    return (max(compute, memory) + 0.3 * min(compute, memory)) / b.threads


def lower(b: Builder, layer: Layer, g: Geometry, x: Value, c: Cut) -> None:
    """Add the layer's step."""
    v = b.v
    packed = b.weights.get(layer.node.inputs[1], "winograd", (g.out_channels, g.own_channels, 3, 3))
    bias = b.weights.bias(layer.node.input(2), g.out_channels)
    residual = b.blocked(layer.residual) if layer.residual else None
    y = b.new_blocked(layer.output)
    blocks, vectors = blocks_of(g.own_channels, v), blocks_of(g.out_channels, v)
    scratch_thread = winograd.scratch_floats(c.group, blocks, c.outs, v)
    scratch = Buffer(4 * scratch_thread * b.threads)
    tile = winograd.WinogradTile(c.tiles, c.outs, layer.epilogue)
    wide = -(-g.out_size[1] // winograd.OUTPUT)
    turns = -(-vectors // c.outs)
    arguments = {
        "x": b.inside(x, g), "u": b.static(packed), "bias": b.static(bias), "y": y.ref,
        "residual": residual.ref if residual else 0, "scratch": Ref(scratch),
        "groups": c.groups, "images": x.n, "group": c.group, "tiles": -(-g.out_size[0] // winograd.OUTPUT) * wide,
        "tiles_wide": wide, "vectors": vectors, "part_tiles": -(-turns // c.parts), "blocks": blocks,
        "channels": g.own_channels, "out_rows": g.out_size[0], "out_cols": g.out_size[1],
        "x_image": x.image, "x_block": x.block, "x_row": x.row, "u_out": winograd.PLACES * g.own_channels * v,
        "y_image": y.image, "y_block": y.block, "y_row": y.row,
        "r_image": residual.image if residual else 0, "r_block": residual.block if residual else 0,
        "r_row": residual.row if residual else 0, "scratch_thread": scratch_thread,
    }  # fmt: skip
    why = f"Winograd F(4x4, 3x3): {c.groups} groups of {c.group} tiles, {c.tiles} tiles by {c.outs} vectors"
    reads = [x, residual] if residual else [x]
    items = c.groups * x.n * c.parts
    b.step(tile.name(b.target), winograd, tile, arguments, items, reads, [y], why, g.macs * x.n)
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))
