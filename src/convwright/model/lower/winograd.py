"""Convolutions through Winograd's algorithm, where that is expected to be faster."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import winograd
from convwright.kernels.cook_toom import filtering
from convwright.kernels.transforms import in_registers, operations
from convwright.kernels.winograd import Axis, notation
from convwright.model.builder import Builder
from convwright.model.choices import choice
from convwright.model.fuse import Layer
from convwright.model.geometry import geometry_of
from convwright.model.lower import channels, volumes, winograd_forms, winograd_pairs
from convwright.model.lower.winograd_forms import Form, forms_of, rows_of_phases, sums_of
from convwright.model.packing import Rows
from convwright.model.problem import Algorithm, Problem
from convwright.model.tiles import most_pixels, step_cycles
from convwright.model.values import Buffer, Halo, Ref, Value, blocks_of
from convwright.runtime.machine import caches, multiply_adds_a_cycle
from convwright.runtime.memory import aligned_empty

_MEMORY_BYTES_A_CYCLE = 6.8  # weights read by one core; measured in layers of 14 x 14, as is the next
_MEMORY_BYTES_OF_ALL = 8.0  # by all cores
_CACHE_BYTES_A_CYCLE = 11.0  # read from the third level
_INSTRUCTIONS_A_CYCLE = 2.4  # of transforms: loads, stores, arithmetic
# What the estimate does not see, measured on 36 layers: strips that fill the second-level cache and leave no room for
# weights and products, for which products in pairs wait longer; strips whose inputs each of several threads transforms
# for itself.
_FULL, _SHARED, _FULL_PAIRED = 1.06, 1.06, 1.12
# And, of strips against each other alone: those whose inputs and products do not stay in the second-level cache while
# the weights of a turn over the output vectors pass through it took 7 to 18 % more on VGG16's first seven layers; a
# strip for each thread did not.
_SPILLED = 1.1
# Inputs of more tiles than the second-level cache holds, so that weights come from memory less often: in so many times
# `strip_bytes`, and products of as many output vectors as it holds, which read a place's inputs together. For layers
# with weights as many times as large: smaller ones, of 128 channels, did not gain.
_MOST_HELD = 8
# Where each weight is read once, in one turn, memory delivers at an even pace: ResNet-50 took 0.985 of its time on one
# thread (docs/notes/next.md). The estimate counts loads, which keep up where multiply-adds take twice as long.
_ONCE = 0.75
_MOST_ONCE = 1.5  # times `strip_bytes`: transformed inputs that each thread holds; with 384 channels and more no gain
# Of fewer channels than half a vector, where all the time goes into output transforms and their way to memory. Measured
# inside networks, of the estimate: 3 to 64 channels of 224 x 224 1.6 to 2.5 times on two threads, 7 x 7 at stride 2 1.4
# to 1.8 times on two and 1.0 to 1.3 on one.
_FEW_CHANNELS_ALONE, _FEW_CHANNELS = 1.15, 1.6
# What a byte of transformed weights must save, in cycles of one core, as a model holds them beside the constants; and
# each of those that are beyond four times the constants, as many as F(4 x 4, 3 x 3) has. Inception v3 takes 32 MB less.
_PRICE, _PRICE_BEYOND = 0.022, 0.13
WORTH = 0.8  # the estimated time, as a part of direct summation's, below which the larger weights are worth it


@dataclass(frozen=True, slots=True)
class Cut:
    """How the work is divided: see ``kernels.winograd``. ``cycles``: estimated, on each of the threads.

    ``paired``: channels whose products are summed in pairs before they are added to M; 0 where none are.
    ``turns``: times ``outs`` output vectors whose products M holds.
    """

    form: Form
    tiles: int
    outs: int
    strip: int
    strips: int
    chunk: int = 1
    parts: int = 1
    cycles: float = 0.0
    paired: int = 0
    turns: int = 1

    @property
    def held(self) -> int:
        """Output vectors whose products M holds."""
        return self.outs * self.turns

    @property
    def chunks(self) -> int:
        return -(-self.form.out_slices // self.chunk)

    @property
    def in_slices(self) -> int:
        return len(self.form.slices(self.chunk)[0])


# -- what can be computed, and how -------------------------------------------------------------------------------------


def why_not(p: Problem) -> str | None:
    """Why Winograd's algorithm cannot compute this problem; None where it can."""
    spec = p.spec
    if p.element != "f32":
        return f"its channel blocks hold float32, not {p.dtype}"
    if spec.transposed:
        return "transposed"
    if spec.flip or spec.padding_mode != "zeros":
        return f"flip {spec.flip}, padding_mode {spec.padding_mode!r}"
    if p.numerics == "strict":
        return "numerics is strict"
    if spec.groups > 1 and (spec.in_channels // spec.groups % p.target.vector or
                            spec.out_channels // spec.groups % p.target.vector):  # fmt: skip
        own = f"{spec.in_channels} to {spec.out_channels} channels in {spec.groups} groups"
        return f"{own}: groups must fill vectors of {p.target.vector} channels"
    forms = forms_of(p)
    return forms if isinstance(forms, str) else None


# -- how the work is cut -----------------------------------------------------------------------------------------------


def strip_bytes() -> int:
    """Room for the transformed inputs of an item: half of the second-level cache."""
    return caches().l2 // 2


@choice
@lru_cache(maxsize=4096)
def cut(p: Problem) -> Cut:
    """The form and the division of the work with the least estimated time, the price of its weights included."""
    forms = forms_of(p)
    assert not isinstance(forms, str)
    return min((cut_of(p, form) for form in forms), key=lambda found: found.cycles + _price(p, found.form))


def cut_of(p: Problem, form: Form) -> Cut:
    """The division of the work with the least estimated time, in one form."""
    v, spec = p.target.vector, p.spec
    blocks, vectors = (blocks_of(number // spec.groups, v) for number in (spec.in_channels, spec.out_channels))
    found, all_tiles, reduction = [], form.tiles, spec.in_channels // spec.groups * form.deep_taps
    sums = sums_of(form, p)
    for chunk, piece in itertools.product({-(-form.out_slices // pieces) for pieces in (1, 2, 4)}, sums):
        in_slices = len(form.slices(chunk)[0])
        tile_bytes = 4 * form.places * v * blocks * in_slices
        largest, fullest = (max(1, room // tile_bytes) for room in (strip_bytes(), 2 * strip_bytes()))
        # Inputs and products of a strip that stay beside the weights of a turn: of two output vectors.
        turn = 4 * form.places * v * min(2, vectors)
        snug = max(1, (2 * strip_bytes() - turn * reduction) // (tile_bytes + turn * chunk))
        whole = most_tiles(min(2, vectors), p.target, piece)
        others = -(-form.out_slices // chunk) * p.batch * spec.groups
        counts: set[int] = set()
        for most in (largest, fullest, min(snug, fullest), min(max(snug // whole * whole, whole), fullest)):
            fewest = -(-all_tiles // most)
            counts |= {fewest, -(-fewest * others // p.threads) * p.threads // others or 1}
        if piece:
            counts |= winograd_pairs.strips_of(all_tiles, fullest // chunk, p.target)
        many_weights = 4 * form.places * reduction * vectors * v >= _MOST_HELD * strip_bytes()
        if many_weights:
            counts |= {strips for strips in (1, p.threads) if -(-all_tiles // strips) <= largest * _MOST_HELD}
        for strips in sorted(counts):
            strip = -(-all_tiles // min(strips, all_tiles))
            tiles, outs = _register_tile(chunk * strip, vectors, p.target, piece)
            for parts in {1, min(p.threads, -(-vectors // outs))}:
                made = Cut(form, tiles, outs, strip, -(-all_tiles // strip), chunk, parts, paired=piece)
                beyond = largest < strip and (strip <= fullest or chunk * strip > tiles)
                if many_weights and beyond and (held := _held(made, vectors, v)) > 1:
                    many = replace(made, turns=held)
                    cycles = _estimate(p, many, blocks, vectors) * (_SHARED if parts > 1 else 1.0)
                    found.append((cycles, replace(many, cycles=cycles)))
                if strip > fullest:
                    continue
                cycles = _estimate(p, made, blocks, vectors)
                full = _FULL_PAIRED if piece else _FULL
                cycles *= (full if strip > largest else 1.0) * (_SHARED if parts > 1 else 1.0)
                spilled = strip > snug and (strip > largest or made.strips * others > p.threads)
                found.append((cycles * (_SPILLED if spilled else 1.0), replace(made, cycles=cycles)))
    if 0 in sums and _reads_weights_once(p, form, blocks):
        once = Cut(form, all_tiles, 1, all_tiles, 1)
        once = replace(once, turns=_held(once, vectors, v))
        cycles = _ONCE * _estimate(p, once, blocks, vectors)
        found.append((cycles, replace(once, cycles=cycles)))
    return min(found, key=lambda one: one[0])[1]


def pooled(c: Cut) -> Cut | None:
    """The cut where the largest of each 2 x 2 outputs is stored: of a last odd row or column nothing is computed. None
    where a tile does not hold whole windows, whose places m and the moving of edge tiles keep even."""
    form = c.form
    if form.high[0] % 2 or form.wide[0] % 2 or form.phases != (1, 1) or form.deep_taps > 1 or form.out_slices > 1:
        return None
    high, wide = form.out_size
    form = replace(form, out_size=(high // 2 * 2, wide // 2 * 2))
    strip = min(c.strip, form.tiles)
    return replace(c, form=form, tiles=min(c.tiles, strip), strip=strip, strips=-(-form.tiles // strip))


def _held(c: Cut, vectors: int, v: int) -> int:
    """How many times `outs` vectors' products M may hold in the second-level cache: a divisor of those of each part."""
    turns = -(-vectors // (c.outs * c.parts))
    room = 2 * strip_bytes() // (4 * c.form.places * c.outs * c.chunk * c.strip * v)
    even = turns * c.parts * c.outs == vectors
    return max((held for held in range(1, turns + 1) if turns % held == 0 and held <= room), default=1) if even else 1


def _reads_weights_once(p: Problem, form: Form, blocks: int) -> bool:
    """Whether one thread reads each weight once, in one turn over all tiles: of tiles that are too many for two vectors
    at a time, and of which one vector's sums fill the registers. Machines that multiply and add two vectors a cycle
    would wait for the loads of such tiles; two threads that divide the vectors gained in some networks, not in all."""
    fits = most_pixels(2, p.target) < form.tiles <= most_pixels(1, p.target)
    alone = p.batch * p.spec.groups * form.out_slices == 1 and p.threads == 1
    transformed = 4 * form.places * p.target.vector * blocks * form.tiles
    return fits and alone and multiply_adds_a_cycle(p.target) == 1 and transformed <= _MOST_ONCE * strip_bytes()


def most_tiles(outs: int, target: Target, paired: int) -> int:
    """How many tiles by ``outs`` vectors are summed in registers, of products in pairs or not; 0 for none."""
    return winograd_pairs.most_tiles(outs, target) if paired else most_pixels(outs, target)


def _step_cycles(tiles: int, outs: int, paired: int) -> float:
    return winograd_pairs.step_cycles(tiles, outs) if paired else step_cycles(tiles, outs)


def _register_tile(count: int, vectors: int, target: Target, paired: int = 0) -> tuple[int, int]:
    """Tiles and vectors that are summed together, the turns over ``count`` tiles even."""
    best, least = (1, 1), float("inf")
    for outs in (outs for outs in (1, 2, 4) if outs <= vectors and most_tiles(outs, target, paired)):
        turns = -(-count // most_tiles(outs, target, paired))
        tiles = -(-count // turns)
        cycles = turns * -(-vectors // outs) * _step_cycles(tiles, outs, paired)
        if cycles < least:
            best, least = (tiles, outs), cycles
    return best


@lru_cache(maxsize=256)
def _transform_cycles(high: Axis, wide: Axis, target: Target) -> tuple[float, float]:
    """Of one vector of a tile: inputs, and outputs."""
    found = []
    for name in ("bt", "at"):
        first, second = (getattr(filtering(*axis), name) for axis in (high, wide))
        rows, cols, after = len(first[0]), len(second[0]), len(first)
        instructions = cols * operations(first) + after * operations(second) + rows * cols + after * len(second)
        if not in_registers(rows, cols, target):
            instructions += 2 * after * cols
        found.append(instructions / _INSTRUCTIONS_A_CYCLE)
    return found[0], found[1]


def _weight_bytes(p: Problem, form: Form) -> int:
    """Transformed weights of all groups."""
    v, groups = p.target.vector, p.spec.groups
    return 4 * form.weights * p.spec.in_channels * blocks_of(p.spec.out_channels // groups, v) * v


def _price(p: Problem, form: Form) -> float:
    """Cycles of each thread that the memory for transformed weights is worth: as many in all, however many threads."""
    nbytes, constant = _weight_bytes(p, form), 4 * math.prod(p.spec.weight_shape)
    beyond = max(0, nbytes - 4 * constant)
    return (_PRICE * (nbytes - beyond) + _PRICE_BEYOND * beyond) / p.threads


def _estimate(p: Problem, c: Cut, blocks: int, vectors: int) -> float:
    form, spec = c.form, p.spec
    reduction = spec.in_channels // spec.groups * form.deep_taps
    outputs, turns = c.chunk * c.strip, -(-vectors // c.outs)
    products = form.places * -(-outputs // c.tiles) * turns / c.parts
    sums = -(-reduction // (c.paired * form.deep_taps)) if c.paired else 1
    products *= reduction * _step_cycles(c.tiles, c.outs, c.paired) + (1 + sums) * c.tiles * c.outs
    in_cycles, out_cycles = _transform_cycles(form.high, form.wide, p.target)
    if c.paired:
        in_cycles *= winograd_pairs.INPUTS
    item = products + c.in_slices * c.strip * blocks * in_cycles + outputs * vectors / c.parts * out_cycles
    share = -(-c.strips * c.chunks * p.batch * spec.groups * c.parts // p.threads)
    # The weights come from memory once for all threads that read them at the same time, then from the third level where
    # it holds them.
    weight_bytes = 4 * form.places * reduction * vectors * p.target.vector
    of_all = min(p.threads * _MEMORY_BYTES_A_CYCLE, _MEMORY_BYTES_OF_ALL)
    memory = max(weight_bytes * spec.groups / of_all, share * weight_bytes / c.parts / _CACHE_BYTES_A_CYCLE)
    if weight_bytes > caches().l3 // 2:
        memory = max(memory, share * weight_bytes * (p.threads / c.parts if c.parts > 1 else 1) / of_all)
    if c.turns > 1:  # inputs and products do not stay in the second-level cache
        moved = blocks * c.in_slices * c.strip * -(-vectors // (c.parts * c.held)) + 2 * outputs * vectors / c.parts
        memory += share * 4 * form.places * p.target.vector * moved / _CACHE_BYTES_A_CYCLE
    slowness = 2.0 / multiply_adds_a_cycle(p.target)  # against what `step_cycles`, and other algorithms, count on
    compute = share * item * slowness
    return (max(compute, memory) + 0.1 * min(compute, memory)) / slowness  # they overlap, not wholly


# -- the algorithm's rows ----------------------------------------------------------------------------------------------


def _cycles(p: Problem) -> float:
    found = cut(p)
    cycles = found.cycles / WORTH + _price(p, found.form)
    if 2 * p.spec.in_channels // p.spec.groups < p.target.vector:
        cycles *= _FEW_CHANNELS if p.threads > 1 else _FEW_CHANNELS_ALONE
    return cycles


def _multiplications(p: Problem) -> int:
    form, spec = cut(p).form, p.spec
    channels = spec.in_channels // spec.groups
    if cut(p).paired:
        channels = winograd_pairs.multiplications(channels, p.target.vector)
    return p.batch * form.out_slices * form.tiles * form.places * form.deep_taps * channels * spec.out_channels


def scratch_floats(p: Problem, c: Cut) -> int:
    v = p.target.vector
    blocks = blocks_of(p.spec.in_channels // p.spec.groups, v)
    inputs, outputs = c.in_slices * c.strip, c.chunk * c.strip
    return winograd.scratch_floats(c.form.places, inputs, blocks, outputs, c.held, v, c.paired > 0)


def _workspace(p: Problem) -> int:
    return 4 * p.threads * scratch_floats(p, cut(p))


def error_bound(p: Problem, c: Cut) -> float:
    return winograd_forms.error_bound(c.form, p, c.paired)


def _error_bound(p: Problem) -> float:
    return error_bound(p, cut(p))


def _tiles(form: Form, x: tuple[int, int], y: tuple[int, int], residual: tuple[int, int]) -> np.ndarray:
    """The kernel's table; x, y and residual: floats from one row to the next, and from one column to the next."""
    corners = []
    for out, phases, (m, *_) in zip(form.out_size, form.phases, (form.high, form.wide), strict=True):
        axis = []
        for phase, count in enumerate(rows_of_phases(out, phases)):
            wanted = np.arange(0, count, m)
            start = np.maximum(0, np.minimum(wanted, count - m))
            bits = (1 << np.minimum(m, count - start)) - (1 << wanted - start)
            axis.append(np.stack([phase + start * phases, bits], 1))
        corners.append(np.concatenate(axis))
    rows, cols = corners[0][:, None], corners[1][None]
    table = np.empty((len(corners[0]), len(corners[1]), winograd.TILE_COLUMNS), np.int64)
    down, right = form.stride
    for column, (row_floats, col_floats) in enumerate(((x[0] * down, x[1] * right), y, residual)):
        table[..., column] = rows[..., 0] * row_floats + cols[..., 0] * col_floats
    table[..., 3], table[..., 4] = rows[..., 1], cols[..., 1]
    return table.reshape(-1, winograd.TILE_COLUMNS)


def _strides(form: Form, value: Value | None, slice_stride: int, v: int) -> tuple[int, int, int]:
    """Floats from one slice, row and column to the next; those of an axis that joins the sum are a slice's."""
    if value is None:
        return 0, 0, 0
    match form.joined:
        case 0:
            return v, value.row, 0
        case 1:
            return value.row, 0, v
        case _:
            return slice_stride, value.row, v


def halo_of(p: Problem) -> Halo:
    """Zeros that the layer wants around its input: of the windows, and where tiles are larger than the output."""
    g, form = geometry_of(p), cut(p).form
    top, left, *ends = g.halo
    for axis in (0, 1):
        if form.joined != 1 - axis:
            ends[axis] = max(ends[axis], form.reach[axis] - g.padding[axis][0] - g.size[axis])
    return top, left, ends[0], ends[1]


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    x = channels.with_halo(b, layer.node.inputs[0], halo_of(p))
    residual = b.blocked(layer.residual) if layer.residual else None
    y = b.new_blocked(layer.output)
    add_step(b, layer, p, b.inside(x, geometry_of(p)), (x, 0), (y, 0), residual)


def _halo_of_deep(p: Problem) -> Halo:
    return volumes.halo_of(p, cut(p).form.reach)


def _lower_deep(b: Builder, layer: Layer, p: Problem) -> None:
    x = channels.with_halo(b, layer.node.inputs[0], _halo_of_deep(p))
    residual = b.blocked(layer.residual) if layer.residual else None
    y = b.new_blocked(layer.output)
    add_step(b, layer, p, volumes.first_window(b, x, p.spec), (x, x.slice), (y, y.slice), residual)


@dataclass(frozen=True, slots=True)
class Part:
    """A step that writes a part of its layer's output (see ``lower.transposed``).

    - `key`, `kernel`: what tells its weights apart, and how they are taken from the layer's.
    - `y`: its first output; `step`: rows and columns from one output to the next.
    - `scratch`: shared by all parts; `scratch_thread`: its floats for one thread.
    - `phases`: how many output channels each of the layer's has become.
    """

    key: tuple[int, ...]
    kernel: Callable[[np.ndarray], np.ndarray]
    y: Ref
    step: tuple[int, int]
    scratch: Buffer
    scratch_thread: int
    phases: int = 1


def add_step(
    b: Builder, layer: Layer, p: Problem, at: Ref, x: tuple[Value, int], y: tuple[Value, int],
    residual: Value | None = None, part: Part | None = None, c: Cut | None = None,
) -> None:  # fmt: skip
    """The kernel's step; `at`: the first input of the first window; x and y with the floats of a depth slice."""
    c, spec, v = c or cut(p), p.spec, b.v
    if layer.pooled:
        c = pooled(c)
        assert c is not None
    form = c.form
    own = spec.in_channels // spec.groups
    blocks, vectors = blocks_of(own, v), blocks_of(spec.out_channels // spec.groups, v)
    weight_shape = (spec.out_channels, own, form.deep_taps, form.high[1], form.wide[1])

    def transformed(weight: np.ndarray) -> np.ndarray:
        joined = _joined(part.kernel(weight) if part else weight, form, weight_shape)
        if c.paired:
            return winograd_pairs.pack(joined, form, spec.groups, b.target, b.team)
        return transform(joined, form, b.target, b.team)

    key = ("winograd", form.high, form.wide, form.joined, c.paired > 0, *(part.key if part else ()))
    flat = b.weights.derived(layer.node.inputs[1], key, transformed)
    packed = flat
    own_scales: dict[str, Ref | int] = {"squares": 0, "backs": 0, "channel_scales": 0}
    if c.paired:
        parts = winograd_pairs.parts_of(flat, form, spec.out_channels, own, spec.groups, v)
        packed = parts.u
        own_scales = {name: b.static(getattr(parts, name)) for name in own_scales}
    bias = b.weights.bias(layer.node.input(2), spec.out_channels, part.phases if part else 1)
    scratch_thread = part.scratch_thread if part else scratch_floats(p, c)
    scratch = part.scratch if part else Buffer(4 * scratch_thread * b.threads)
    tile = winograd.WinogradTile(form.high, form.wide, c.tiles, c.outs, layer.epilogue, layer.pooled, c.paired > 0)
    x_strides, y_strides = _strides(form, *x, v), _strides(form, *y, v)
    if part:
        y_strides = (y_strides[0], y_strides[1] * part.step[0], y_strides[2] * part.step[1])
    if layer.pooled:  # in halves: two outputs of the tile are one
        y_strides = (y_strides[0], y_strides[1] // 2, y_strides[2] // 2)
    r_strides = _strides(form, residual, residual.slice if residual else 0, v)
    slices, taps = form.slices(c.chunk)
    turns = -(-vectors // c.outs)
    arguments = {
        "x": at, "u": b.static(packed), "bias": b.static(bias), "y": part.y if part else y[0].ref,
        "residual": residual.ref if residual else 0, "scratch": Ref(scratch),
        "tiles": b.static(_tiles(form, x_strides[1:], y_strides[1:], r_strides[1:])),
        "slices": b.static(np.array(slices, np.int64) * x_strides[0]),
        "taps": b.static(np.array(taps, np.int64) * (c.strip * v)),
        "parts": c.parts, "part_vectors": -(-turns // c.parts) * c.outs, "held": c.held, "vectors": vectors,
        "images": p.batch,
        "chunks": c.chunks, "chunk_slices": c.chunk, "strips": c.strips, "strip": c.strip, "all_tiles": form.tiles,
        "out_slices": form.out_slices, "in_slices": len(slices), "deep_taps": form.deep_taps, "blocks": blocks,
        "channels": own, "pair_blocks": own // (2 * v), "pair_piece": winograd_pairs.blocks_of_piece(c.paired, own, v),
        "x_image": x[0].image, "x_block": x[0].block, "u_out": form.places * form.deep_taps * own * v,
        "y_image": y[0].image, "y_block": y[0].block,
        "r_image": residual.image if residual else 0, "r_block": residual.block if residual else 0,
        "scratch_thread": scratch_thread, **own_scales,
    }  # fmt: skip
    arguments["x_slice"], arguments["y_slice"], arguments["r_slice"] = (
        x_strides[0] * form.deep_stride, y_strides[0], r_strides[0],
    )  # fmt: skip
    for name, strides, (down, right) in (
        ("x", x_strides, form.apart), ("y", y_strides, form.phases), ("r", r_strides, form.phases)
    ):  # fmt: skip
        arguments[f"{name}_row"], arguments[f"{name}_col"] = strides[1] * down, strides[2] * right
    what = f"Winograd {notation(form.high, form.wide)}" + f" and {form.deep_taps} taps" * (form.deep_taps > 1)
    why = f"{what}: {c.strips} strips of {c.strip} tiles, {c.tiles} tiles by {c.outs} vectors"
    why += ", products in pairs" * (c.paired > 0) + ", pooled 2x2" * layer.pooled
    reads = [x[0], residual] if residual else [x[0]]
    items = spec.groups * c.parts * p.batch * c.chunks * c.strips
    b.step(tile.name(b.target), winograd, tile, arguments, items, reads, [y[0]], why, p.macs)
    tag = f"part {part.key}" if part else "inside"
    touches = [(*touch[:4], tag if touch[3] else touch[4]) for touch in b.steps[-1].touches]
    b.steps[-1].touches = [*touches, (scratch, 0, scratch.nbytes, True, tag)]


def transform(weight: np.ndarray, form: Form, target: Target, threads: int) -> np.ndarray:
    """``[K, C, taps, r_h, r_w]`` to ``[ceil(K/v)][n_h n_w][taps][C][v]``: G g G^T, rounded once."""
    outputs, channels, deep, *taps = weight.shape
    rows = Rows.of(weight.reshape(outputs, -1), channels * deep, (taps[0], taps[1]), 1, target, threads)
    packed = aligned_empty(rows.vectors * form.places * channels * deep * target.vector)
    order = np.arange(channels * deep).reshape(channels, deep).T.ravel()
    rows.transform(packed, (filtering(*form.high).float_g(), filtering(*form.wide).float_g()), order)
    return packed.reshape(rows.vectors, form.places, deep, channels, target.vector)


def _joined(weight: np.ndarray, form: Form, shape: tuple[int, ...]) -> np.ndarray:
    """The weights as ``[K, C, taps that join the sum, r_h, r_w]``."""
    if form.joined == 0:
        weight = weight.reshape(*weight.shape[:2], -1, weight.shape[-1]).swapaxes(-1, -2)
    return weight.reshape(shape)


def _why_not_flat(p: Problem) -> str | None:
    return "a row of its own has three axes" if p.spec.rank == 3 else why_not(p)


def _why_not_deep(p: Problem) -> str | None:
    return "for three axes" if p.spec.rank < 3 else why_not(p)


ROW = Algorithm(
    "winograd", "1-D and 2-D", True, _why_not_flat, _cycles, _multiplications, _workspace, _error_bound, _lower, halo_of
)
DEEP = Algorithm(
    "winograd", "3-D", True, _why_not_deep, _cycles, _multiplications, _workspace, _error_bound, _lower_deep,
    _halo_of_deep,
)  # fmt: skip
