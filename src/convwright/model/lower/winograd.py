"""Dense 3 x 3 convolutions at stride 1 through Winograd's algorithm, where that is expected to be faster."""

from __future__ import annotations

from dataclasses import dataclass

from convwright.kernels import winograd
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import Geometry, geometry_of
from convwright.model.lower import channels, direct
from convwright.model.problem import Algorithm, Problem
from convwright.model.tiles import most_pixels, step_cycles
from convwright.model.values import Buffer, Ref, blocks_of

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


def why_not(p: Problem) -> str | None:
    """Why Winograd's algorithm cannot compute this problem; None where it can."""
    reason = direct.why_not_blocked(p)
    if reason is not None:
        return reason
    if p.numerics == "strict":
        return "numerics is strict"
    g = geometry_of(p)
    if g.kernel != (3, 3) or g.stride != (1, 1) or g.dilation != (1, 1) or g.groups != 1:
        own = f"kernel {g.kernel}, stride {g.stride}, dilation {g.dilation}, groups {g.groups}"
        return f"{own}: only dense 3x3 at stride 1"
    if min(g.out_size) < winograd.OUTPUT:
        return f"output {g.out_size} is smaller than a tile of {winograd.OUTPUT}"
    return None


def cut(p: Problem) -> Cut:
    """The division of the work with the least estimated time."""
    g = geometry_of(p)
    v, images, threads = p.target.vector, p.batch, p.threads
    blocks, vectors = blocks_of(g.own_channels, v), blocks_of(g.out_channels, v)
    all_tiles = -(-g.out_size[0] // winograd.OUTPUT) * -(-g.out_size[1] // winograd.OUTPUT)
    largest = max(1, _GROUP_BYTES // (4 * winograd.PLACES * v * blocks))
    weight_bytes = 4 * winograd.PLACES * g.own_channels * vectors * v
    best: Cut | None = None
    fewest = -(-all_tiles // largest)
    for groups in {fewest, -(-fewest * images // threads) * threads // images or 1}:
        group = -(-all_tiles // min(groups, all_tiles))
        groups = -(-all_tiles // group)
        for outs in (outs for outs in (1, 2, 4) if outs <= vectors):
            for tiles in range(1, min(most_pixels(outs, p.target), group) + 1):
                for parts in {1, min(threads, -(-vectors // outs))}:
                    found = _estimate(p, g, Cut(tiles, outs, group, groups, parts, 0.0), weight_bytes)
                    if best is None or found.cycles < best.cycles:
                        best = found
    assert best is not None
    return best


def _estimate(p: Problem, g: Geometry, c: Cut, weight_bytes: int) -> Cut:
    blocks, vectors = blocks_of(g.own_channels, p.target.vector), blocks_of(g.out_channels, p.target.vector)
    turns = -(-vectors // c.outs)
    products = winograd.PLACES * -(-c.group // c.tiles) * turns / c.parts
    products *= g.own_channels * step_cycles(c.tiles, c.outs) + 2 * c.tiles * c.outs
    item = products + c.group * (blocks * _IN_CYCLES + vectors / c.parts * _OUT_CYCLES)
    items = c.groups * p.batch * c.parts
    share = -(-items // p.threads)
    memory = share * weight_bytes / c.parts / _MEMORY_BYTES_A_CYCLE
    compute = share * item
    cycles = max(compute, memory) + 0.3 * min(compute, memory)  # they overlap, not wholly
    return Cut(c.tiles, c.outs, c.group, c.groups, c.parts, cycles)


def _cycles(p: Problem) -> float:
    return cut(p).cycles / WORTH


def _multiplications(p: Problem) -> int:
    g = geometry_of(p)
    tiles = -(-g.out_size[0] // winograd.OUTPUT) * -(-g.out_size[1] // winograd.OUTPUT)
    return p.batch * tiles * winograd.PLACES * g.own_channels * g.out_channels


def _workspace(p: Problem) -> int:
    c = cut(p)
    return (
        4
        * p.threads
        * winograd.scratch_floats(
            c.group, blocks_of(geometry_of(p).own_channels, p.target.vector), c.outs, p.target.vector
        )
    )


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    g, c, v = geometry_of(p), cut(p), b.v
    x = channels.with_halo(b, layer.node.inputs[0], g.halo)
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


ROW = Algorithm(
    "winograd", "F(4x4, 3x3)", True, why_not, _cycles, _multiplications, _workspace,
    lambda p: 4 * direct.error_of_sum(p), _lower,
)  # fmt: skip
