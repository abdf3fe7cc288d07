"""Convolutions by Winograd's inner product, on machines that add beside their multiply-adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import channels as channels_kernel
from convwright.kernels import paired
from convwright.model.builder import Builder
from convwright.model.choices import choice
from convwright.model.fuse import Layer
from convwright.model.geometry import Geometry, geometry_of
from convwright.model.lower import channels, direct, paired_weights
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Buffer, Order, Ref, Value, blocks_of
from convwright.runtime.machine import adds_beside_multiply_adds, caches

FEWEST_PIXELS = 8  # fewer sums would wait for each other
# Estimated in the units of `tiles.step_cycles`: cycles in which two vectors are multiplied and added, so that one here
# is two of a machine that does one a cycle. A product is 1 / 1.41 of a multiply-add, where the counts of instructions
# allow 11 / 16; of more than `_NEAR`, whose inputs and weights come from far, 1 / 1.3.
_PRODUCT, _FAR_PRODUCT, _NEAR = 0.355, 0.385, 1024
_TILE, _STORED = 8.0, 1.6  # of a register tile, and of each vector of its outputs
_RARE = 1.02  # of tiles of other than two vectors: each kernel takes 80 ms to compile
_HALVED = 1.1  # of tiles whose last vector is half of one
_FAR_BYTES_A_CYCLE = 22.0  # from the third level
_COPIED, _PIXEL = 4.1, 6.0  # of copying a vector of inputs, and of what each pixel takes besides
_GATHERED = 3.0  # of putting a vector together
_WORTH = 0.97  # the estimated time, as a part of direct summation's, below which larger rounding errors are worth it
_GROWTH = 2.0  # of the bound of errors; measured, channels and weights that differ a thousandfold included: 1.2


@dataclass(frozen=True, slots=True)
class Cut:
    """How the work is divided (see ``kernels.paired``). ``cycles``: estimated, on each of the threads."""

    tiles: int
    outs: int
    strip: int
    strips: int
    parts: int
    cycles: float
    halved: bool = False


def why_not(p: Problem) -> str | None:
    """Why pairs of products cannot become one in this problem."""
    reason = direct.why_not(p)
    if reason is not None:
        return reason
    spec = p.spec
    own, v = spec.in_channels // spec.groups, p.target.vector
    fills = p.in_lanes or spec.out_channels // spec.groups % v == 0
    if spec.groups > 1 and ((own % v and not p.in_order) or not fills):
        return f"{spec.in_channels} to {spec.out_channels} channels in {spec.groups} groups, which do not fill vectors"
    multiple = 8 if math.prod(spec.kernel) == 1 else p.target.vector
    if own % multiple or direct.reads_planes(p):
        return f"{spec.in_channels} input channels and kernel {spec.kernel}: they must be a multiple of {multiple}"
    if p.numerics == "strict":
        return "numerics is strict"
    if math.prod(p.out_size) < FEWEST_PIXELS:
        return f"output {p.out_size}: fewer than {FEWEST_PIXELS} pixels"
    return None


def why_not_here(p: Problem) -> str | None:
    """As `why_not`; and why not on this machine, unless the caller asks for it."""
    reason = why_not(p)
    if reason is None and p.algorithm == "auto" and not adds_beside_multiply_adds(p.target):
        return "additions beside multiply-adds would take this machine longer"
    return reason


# -- how the work is cut -----------------------------------------------------------------------------------------------


# Pixels by vectors that are summed in registers, by the number of registers, beside two vectors of weights for each
# (four, where pairs of both sorts are summed in turn) and what is added. With more, some lie on the stack, and 13 x 2
# takes 1.2 times as long as 11 x 2.
_MOST = {32: ((25, 1), (22, 1), (11, 2), (5, 3)), 16: ((8, 1), (3, 2))}
_MOST_HALVED = {2: 12, 3: 8}  # where there are 32 registers and the last vector is half of one


def _tiles(reduction: int, target: Target) -> list[tuple[int, int]]:
    """The most pixels, for each number of vectors. Inputs of 25 pixels that fill the second-level cache are waited for
    (ResNet-50's last layer of stride 2 takes 1.2 times as long as with 5 x 3)."""
    return [(most, outs) for most, outs in _MOST[target.registers] if most <= 22 or reduction <= _NEAR]


def _tiles_of(reduction: int, out_channels: int, target: Target) -> list[tuple[int, int, bool]]:
    """As `_tiles`, by no more vectors than a group has; then whether the last of these is half of one. A tile has that
    where it is by all of the group's vectors."""
    vectors = blocks_of(out_channels, target.vector)
    tiles = [(most, outs, False) for most, outs in _tiles(reduction, target) if outs <= vectors]
    if vectors in _MOST_HALVED and direct.ends_in_half(out_channels, target):
        tiles.append((_MOST_HALVED[vectors], vectors, True))
    return tiles


def tallest(outs: int, reduction: int, target: Target) -> int:
    """The most pixels that are summed by so many vectors."""
    return max(most for most, of in _tiles(reduction, target) if of == outs)


def _product(reduction: int) -> float:
    """Estimated cycles of a sum of so many products."""
    return reduction * (_PRODUCT if reduction <= _NEAR else _FAR_PRODUCT)


@choice
@lru_cache(maxsize=4096)
def cut_of(pixels: int, images: int, reduction: int, out_channels: int, target: Target, threads: int, room: int) -> Cut:
    """The division of the work with the least estimated time.

    - `images`: of each group of channels, all together; `out_channels`: of a group.
    - `reduction`: products of one output.
    - `room`: bytes of the second-level cache for a strip.
    """
    v = target.vector
    vectors, copied = blocks_of(out_channels, v), _COPIED * blocks_of(reduction, v) + _PIXEL
    fewest = -(-pixels // max(1, room // (4 * reduction)))
    weights = 4 * reduction * vectors * v
    best: Cut | None = None
    for most, outs, halved in _tiles_of(reduction, out_channels, target):
        for parts in {1, min(threads, -(-vectors // outs))}:
            each = images * parts
            even = -(-fewest * each // threads) * threads // each or 1
            for strips in {fewest, max(fewest, even), max(fewest, even) * 2}:
                strip = -(-pixels // min(strips, pixels))
                turns = -(-strip // most)
                tiles = -(-strip // turns)
                out_turns = -(-vectors // outs)
                part_turns = -(-out_turns // parts)
                product = (_product(reduction) + _STORED) * tiles * outs + _TILE
                product *= _HALVED * (outs - 0.5) / outs if halved else 1.0
                compute = strip * copied + part_turns * turns * product
                # Weights that do not stay in the second-level cache come from the third once for each strip.
                far = weights / parts / _FAR_BYTES_A_CYCLE if weights > caches().l2 // 4 else 0.0
                count = -(-pixels // strip)
                cycles = -(-count * each // threads) * (max(compute, far) + 0.3 * min(compute, far))
                cycles *= 1.0 if outs == 2 else _RARE
                if best is None or cycles < best.cycles:
                    best = Cut(tiles, outs, strip, count, parts, cycles, halved)
    assert best is not None
    return best


def tile_of(pixels: int, vectors: int, reduction: int, target: Target) -> tuple[int, int, float]:
    """A register tile, pixels by vectors, for a strip of so many pixels, and its estimated cycles."""
    outs = min(2, vectors)
    turns = -(-pixels // tallest(outs, reduction, target))
    tiles = -(-pixels // turns)
    product = (_product(reduction) + _STORED) * tiles * outs + _TILE
    copied = pixels * (_COPIED * blocks_of(reduction, target.vector) + _PIXEL)
    return tiles, outs, copied + -(-vectors // outs) * turns * product


def _reduction(p: Problem) -> int:
    return p.spec.in_channels // p.spec.groups * math.prod(p.spec.kernel)


def _cut(p: Problem) -> Cut:
    pixels, spec = math.prod(p.out_size), p.spec
    images, own_out = p.batch * spec.groups, spec.out_channels // spec.groups
    return cut_of(pixels, images, _reduction(p), own_out, p.target, p.threads, caches().l2 // 2)


def _cycles(p: Problem) -> float:
    """Arithmetic, and the weights' way from memory, which overlap, not wholly."""
    nbytes = 4 * _reduction(p) * blocks_of(p.spec.out_channels, p.target.vector) * p.target.vector
    memory = nbytes / direct.MEMORY_BYTES_A_CYCLE / p.threads
    compute: float = _cut(p).cycles
    if p.in_order:
        vectors = p.spec.groups * blocks_of(_reduction(p), p.target.vector)
        compute += _GATHERED * math.prod(p.out_size) * p.batch * vectors / p.threads
    return (max(compute, memory) + 0.3 * min(compute, memory)) / _WORTH


def _multiplications(p: Problem) -> int:
    reduction = _reduction(p)
    return p.macs // reduction * (reduction - len(paired.in_pairs(reduction, p.target.vector)))


def _workspace(p: Problem) -> int:
    blocks = blocks_of(_reduction(p), p.target.vector)
    return 4 * p.threads * paired.scratch_floats(_cut(p).strip, _cut(p).tiles, blocks, p.target.vector)


def _error_bound(p: Problem) -> float:
    return _GROWTH * direct.error_of_sum(p)


# -- lowering ----------------------------------------------------------------------------------------------------------


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    g = geometry_of(p)
    x = channels.with_halo(b, layer.node.inputs[0], g.halo)
    residual = b.blocked(layer.residual) if layer.residual else None
    add(b, layer, g, x, b.new_blocked(layer.output), residual)


@dataclass(frozen=True, slots=True)
class Outputs:
    """Output vectors of a layer that are not the channel blocks of one pixel (see `lower.paired_transposed`).

    - `packed`, `bias`: of all vectors.
    - `places`: floats from the first output of a pixel to each of its vectors.
    - `steps`: rows and columns of the output from a pixel's to the next one's.
    - `kind`: what reports say.
    """

    packed: paired_weights.Packed
    bias: np.ndarray
    places: np.ndarray
    steps: tuple[int, int]
    kind: str


def add(
    b: Builder, layer: Layer, g: Geometry, x: Value, y: Value, residual: Value | None, outputs: Outputs | None = None
) -> None:
    """Add the step that computes the layer from `x`, which lies in its halo, to `y`.

    `outputs`: where they do not lie as those of a convolution of this geometry; then no residual is added.
    """
    node, v = layer.node, b.v
    reduction = g.own_channels * math.prod(g.kernel)
    blocks, vectors = blocks_of(reduction, v), blocks_of(g.out_channels // g.groups, v)
    # Within a chain of layers the second-level cache holds what passes between them too.
    room = caches().l2 // (2 if b.threads == b.team else 4)
    pixels = math.prod(g.out_size)
    read, made = b.orders.get(node.inputs[0]), b.orders.get(layer.output)
    c = cut_of(pixels, x.n * g.groups, reduction, g.out_channels // g.groups, b.target, b.threads, room)
    if outputs is not None:
        packed, bias = outputs.packed, outputs.bias
    else:
        shape = g.out_channels, g.own_channels, *g.kernel
        packed = paired_weights.packed(b, node.inputs[1], shape, g.groups, read, made)
        bias = (
            b.weights.bias(node.input(2), g.out_channels)
            if made is None
            else (b.weights.bias_in_lanes(node.input(2), g.out_channels, made, "direct"))
        )
    lanes = _lanes(g, read, x, b.target) if read is not None else None
    gathered = None if lanes is None else lanes.config.sources if lanes.config.kind != "gather" else 0
    scratch_thread = paired.scratch_floats(c.strip, c.tiles, blocks, v, gathered is not None)
    scratch = Buffer(4 * scratch_thread * b.team)
    tile = paired.PairedTile(
        c.tiles, c.outs, reduction % v > 0, layer.epilogue, outputs is not None, gathered, c.halved
    )
    turns = -(-vectors // c.outs)
    arguments = {
        "x": b.inside(x, g), "w": b.static(packed.weights), "bias": b.static(bias), "y": y.ref,
        "residual": residual.ref if residual else 0, "scratch": Ref(scratch),
        "pixels": b.static(pixels_of(g, x, y, residual, v, outputs.steps if outputs else (1, 1))),
        "places": b.static(_places(g, x, v) if lanes is None else np.arange(blocks) * paired.gathered_block(tile, v)),
        "channel_scales": b.static(packed.channel_scales), "squares": b.static(packed.squares),
        "out_scales": b.static(packed.out_scales), "out_places": b.static(outputs.places) if outputs else 0,
        "groups": g.groups, "part_turns": -(-turns // c.parts), "vectors": vectors, "images": x.n,
        "strips": c.strips, "strip": c.strip, "all_pixels": pixels,
        "blocks": reduction // v, "x_image": x.image,
        "x_group": blocks_of(g.own_channels, v) * x.block if lanes is None else 0,
        "scales_group": blocks * v, "w_out": reduction * v, "y_image": y.image, "y_block": y.block,
        "r_image": residual.image if residual else 0, "r_block": residual.block if residual else 0,
        "scratch_thread": scratch_thread,
    }  # fmt: skip
    if lanes is not None:
        arguments |= {"sources": b.static(lanes.offsets), "lanes": b.static(lanes.lanes)}
    kind = outputs.kind if outputs else "1x1" if g.kernel == (1, 1) else "dense"
    kind = f"{kind} in {g.groups} groups" if g.groups > 1 else kind
    why = f"{kind}, products in pairs: {c.strips} strips of {c.strip} pixels, "
    why += f"{c.tiles} pixels by {tile.vectors} vectors"
    reads = [x, residual] if residual else [x]
    items = g.groups * c.parts * x.n * c.strips
    b.step(tile.name(b.target), paired, tile, arguments, items, reads, [y], why, g.macs * x.n)
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))


def pixels_of(g: Geometry, x: Value, y: Value, residual: Value | None, v: int, steps: tuple[int, int]) -> np.ndarray:
    """The kernel's table of pixels; `steps`: as in `Outputs`."""
    rows, cols = np.arange(g.out_size[0])[:, None], np.arange(g.out_size[1])[None]
    table = np.zeros((*g.out_size, paired.PIXEL_COLUMNS), np.int64)
    table[..., 0] = rows * (g.stride[0] * x.row) + cols * (g.stride[1] * v)
    table[..., 1] = rows * (steps[0] * y.row) + cols * (steps[1] * v)
    if residual is not None:
        table[..., 2] = rows * residual.row + cols * v
    return table.reshape(-1, paired.PIXEL_COLUMNS)


def _places(g: Geometry, x: Value, v: int) -> np.ndarray:
    """Where the blocks that a pixel reads lie: of each tap, those of the channels."""
    down, right = (np.arange(taps) * step for taps, step in zip(g.kernel, g.dilation, strict=True))
    taps = down[:, None] * x.row + right[None] * v
    return (taps[..., None] + np.arange(blocks_of(g.own_channels, v)) * x.block).reshape(-1)


def _lanes(g: Geometry, read: Order, x: Value, target: Target) -> channels_kernel.Choice:
    """How the blocks of each group are put together of the input's: its channels in the order of their places."""
    v = target.vector
    places = np.sort(read.places.reshape(g.groups, -1))
    padded = np.repeat(places[:, -1:], blocks_of(g.own_channels, v) * v, 1)
    padded[:, : g.own_channels] = places
    return channels_kernel.choose(padded.reshape(-1).tolist(), x.block, target)


ROW = Algorithm(
    "paired", "blocked", True, why_not_here, _cycles, _multiplications, _workspace, _error_bound, _lower
)  # fmt: skip
