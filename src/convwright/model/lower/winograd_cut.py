"""How the work of a Winograd convolution is cut (`kernels.winograd`): the form, strips of tiles, register tiles, and
what of the products is held at a time, by estimates of the time that each takes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

from convwright.codegen.target import Target
from convwright.kernels import winograd
from convwright.kernels.cook_toom import filtering
from convwright.kernels.transforms import in_registers, operations
from convwright.kernels.winograd import Axis
from convwright.model.choices import choice
from convwright.model.lower import winograd_pairs
from convwright.model.lower.winograd_forms import Form, forms_of, sums_of
from convwright.model.problem import Problem
from convwright.model.tiles import most_pixels, step_cycles
from convwright.model.values import blocks_of
from convwright.runtime.machine import caches, multiply_adds_a_cycle

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
# What a byte of transformed weights must save, in cycles of one core, as a model holds them beside the constants; and
# each of those that are beyond four times the constants, as many as F(4 x 4, 3 x 3) has. Inception v3 takes 32 MB less.
_PRICE, _PRICE_BEYOND = 0.022, 0.13


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


def strip_bytes() -> int:
    """Room for the transformed inputs of an item: half of the second-level cache."""
    return caches().l2 // 2


@choice
@lru_cache(maxsize=4096)
def cut(p: Problem) -> Cut:
    """The form and the division of the work with the least estimated time, the price of its weights included."""
    forms = forms_of(p)
    assert not isinstance(forms, str)
    return min((cut_of(p, form) for form in forms), key=lambda found: found.cycles + price(p, found.form))


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


def price(p: Problem, form: Form) -> float:
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


def scratch_floats(p: Problem, c: Cut) -> int:
    v = p.target.vector
    blocks = blocks_of(p.spec.in_channels // p.spec.groups, v)
    inputs, outputs = c.in_slices * c.strip, c.chunk * c.strip
    return winograd.scratch_floats(c.form.places, inputs, blocks, outputs, c.held, v, c.paired > 0)
