"""First layers through Winograd's algorithm along their rows, read as plain planes where they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import winograd_planes
from convwright.kernels.transforms import operations
from convwright.kernels.winograd_planes import PlanesTile, Room, room_of
from convwright.model.builder import Builder
from convwright.model.choices import choice
from convwright.model.fuse import Layer
from convwright.model.geometry import Geometry, geometry_of
from convwright.model.lower import direct
from convwright.model.lower.winograd_forms import ERROR
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Buffer, Ref, blocks_of
from convwright.runtime.machine import caches

_LARGEST = 7  # m: 8 gains 1 % on rows of 112, with errors 1.7 times as large
# Instructions of transforms a cycle: loads, stores, arithmetic, shuffles. Those of 16 registers spill; measured with
# AVX2's on Zen 4, 7 x 7 and 3 x 3 taps.
_RATE, _SPILLED_RATE = 2.4, 1.2
_STRIPS_A_THREAD = 4
WORTH = 0.85  # the estimated time, as a part of direct summation's, below which errors and larger weights are worth it


@dataclass(frozen=True, slots=True)
class Cut:
    """The algorithm and how the work is divided: `tiles` of a row in `turns`, output rows in `strips` of `strip`.

    `cycles`: estimated, on each of the threads.
    """

    tile: PlanesTile
    tiles: int
    turns: int
    strip: int
    strips: int
    room: Room
    cycles: float

    @property
    def growth(self) -> float:
        """Of rounding errors, against direct summation."""
        return max(1.0, self.tile.filtering.growth)


def why_not(p: Problem) -> str | None:
    """Why this cannot compute the problem; None where it can."""
    spec = p.spec
    reason = direct.why_not_blocked(p)
    if reason is not None:
        return reason
    if p.numerics == "strict":
        return "numerics is strict"
    if not direct.reads_planes(p):
        most = direct.PLANAR_CHANNELS
        return (
            f"for at most {most} channels that are an input of the graph, not {spec.in_channels}, groups {spec.groups}"
        )
    if p.residual:
        return "adds no residual"
    if max(spec.dilation) > 1:
        return f"dilation {spec.dilation}"
    if p.algorithm.partition("-")[2] not in ("", "planes"):
        return f"{p.algorithm}: names tiles of channel blocks"
    if not _tiles_of(p):
        return f"kernel {spec.kernel} with stride {spec.stride}: no tile saves multiplications within the error allowed"
    return None


def _tiles_of(p: Problem) -> list[tuple[int, int, int]]:
    """m, r and stride of the rows, for every m whose errors stay small."""
    g = geometry_of(p)
    r, stride = g.kernel[1], g.stride[1]
    if r <= stride:
        return []
    found = []
    for m in range(2, min(_LARGEST, g.out_size[1]) + 1):
        try:
            growth = PlanesTile(m, r, stride, 1).filtering.growth
        except ValueError:  # no points for so many inputs
            break
        if growth * direct.error_of_sum(p) <= ERROR:
            found.append((m, r, stride))
    return found


@choice
@lru_cache(maxsize=4096)
def cut(p: Problem) -> Cut:
    """The m and the division of the work with the least estimated time."""
    return min((_cut_of(p, *form) for form in _tiles_of(p)), key=lambda found: found.cycles)


def _cut_of(p: Problem, m: int, r: int, stride: int) -> Cut:
    g, v = geometry_of(p), p.target.vector
    tiles = -(-g.out_size[1] // m)
    turns = -(-tiles // _most_tiles(p.target))
    tile = PlanesTile(m, r, stride, -(-tiles // turns))

    def room(strip: int) -> Room:
        read = (strip - 1) * g.stride[0] + g.kernel[0]
        return room_of(tile, turns, g.padding[1][0], g.size[1], read, g.own_channels, v)

    wanted = max(1, -(-_STRIPS_A_THREAD * p.threads // p.batch))
    strip = -(-g.out_size[0] // wanted)
    while strip > 1 and 4 * room(strip).total > caches().l2 // 2:
        strip = -(-strip // 2)
    strips = -(-g.out_size[0] // strip)
    return Cut(tile, tiles, turns, strip, strips, room(strip), _estimate(p, g, tile, turns, strip, strips))


def _most_tiles(target: Target) -> int:
    """Sums beside a weight and an input value, and more of those that LLVM loads ahead, in registers."""
    return target.registers // 2


def _estimate(p: Problem, g: Geometry, tile: PlanesTile, turns: int, strip: int, strips: int) -> float:
    """In cycles of a core that multiplies and adds two vectors a cycle, as other algorithms count them."""
    v, vectors = p.target.vector, blocks_of(g.out_channels, p.target.vector)
    products = tile.places * g.kernel[0] * g.own_channels * max(4.0, (tile.tiles + 1) / 2)
    own, rate = tile.filtering, _RATE if p.target.registers >= 32 else _SPILLED_RATE
    back = tile.tiles * (operations(own.at) + tile.places + 2 * tile.m) / rate
    shuffles = -(-tile.inputs // v) * v * (1 + math.log2(v))
    there = (shuffles + operations(own.bt) + tile.places) / rate
    read = (strip - 1) * g.stride[0] + g.kernel[0]
    item = strip * vectors * turns * (products + back) + read * g.own_channels * -(-turns * tile.tiles // v) * there
    return -(-strips * p.batch // p.threads) * item


def _cycles(p: Problem) -> float:
    return cut(p).cycles / WORTH


def _multiplications(p: Problem) -> int:
    g, c = geometry_of(p), cut(p)
    return p.batch * g.out_size[0] * c.tiles * c.tile.places * g.kernel[0] * g.own_channels * g.out_channels


def _workspace(p: Problem) -> int:
    return 4 * p.threads * cut(p).room.total


def _error_bound(p: Problem) -> float:
    """`Filtering.growth` times the bound of a direct sum."""
    return cut(p).growth * direct.error_of_sum(p)


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    g, c, node, v = geometry_of(p), cut(p), layer.node, b.v
    x, y = b.plain(node.inputs[0]), b.new_blocked(layer.output)
    tile = PlanesTile(c.tile.m, c.tile.r, c.tile.stride, c.tile.tiles, layer.epilogue)
    shape = (g.out_channels, g.own_channels, *g.kernel)

    def transformed(weight: np.ndarray) -> np.ndarray:
        return winograd_planes.transform_weights(weight.reshape(shape), v, tile.m, tile.stride)

    packed = b.weights.derived(node.inputs[1], ("winograd planes", tile.m, tile.stride), transformed)
    scratch = Buffer(4 * c.room.total * b.threads)
    high, wide = g.size
    arguments = {
        "x": x.ref, "u": b.static(packed), "bias": b.static(b.weights.bias(node.input(2), g.out_channels)), "y": y.ref,
        "scratch": Ref(scratch), "strips": c.strips, "strip": c.strip, "out_rows": g.out_size[0],
        "out_cols": g.out_size[1], "in_rows": high, "in_cols": wide, "top": g.padding[0][0], "left": g.padding[1][0],
        "stride": g.stride[0], "channels": g.own_channels, "taps_high": g.kernel[0], "tiles": c.tiles,
        "turns": c.turns, "vectors": len(packed), "x_image": g.own_channels * high * wide, "x_plane": high * wide,
        "x_row": wide, "u_out": packed[0].size, "y_image": y.image, "y_block": y.block, "y_row": y.row,
        "row_floats": c.room.row_floats, "lanes": c.room.lanes, "scratch_thread": c.room.total,
    }  # fmt: skip
    why = f"few input channels, Winograd F({tile.m},{tile.r}) of the rows: {c.strips} strips of {c.strip} rows"
    name = tile.name(b.target)
    b.step(name, winograd_planes, tile, arguments, p.batch * c.strips, [x], [y], why, p.macs)
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))


ROW = Algorithm("winograd", "planes", True, why_not, _cycles, _multiplications, _workspace, _error_bound, _lower)
