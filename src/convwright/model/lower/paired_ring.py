"""Pointwise sums of groups that each read all channels but their own, by Winograd's inner product."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import paired_ring
from convwright.kernels.paired_ring import RingTile
from convwright.model.builder import Builder
from convwright.model.geometry import geometry_of
from convwright.model.lower import paired_weights
from convwright.model.lower.paired import FEWEST_PIXELS, Cut, cut_of, pixels_of, tallest
from convwright.model.lower.paired_weights import Packed
from convwright.model.packing import Rows
from convwright.model.problem import Problem
from convwright.model.values import Buffer, Ref, Value
from convwright.runtime.machine import adds_beside_multiply_adds, caches
from convwright.runtime.memory import aligned_empty

# Vectors of outputs of a register tile, all of one group. Where groups have one vector alone, HetConv of 56 x 56, 64
# channels, takes 179 us on one thread in pairs and 174 without.
_OUTS = 2


def pays(p: Problem, part: int) -> bool:
    """Whether the machine adds beside its multiply-adds, there are pixels enough to fill its pipes, and outputs enough
    for what a pixel's copy costs; ``p``: the dense problem."""
    vectors = p.spec.out_channels // part // p.target.vector
    return adds_beside_multiply_adds(p.target) and math.prod(p.out_size) >= FEWEST_PIXELS and vectors % _OUTS == 0


@lru_cache(maxsize=1024)
def cut(p: Problem, part: int) -> Cut:
    """How the work is divided; ``p``: the dense problem."""
    reduction = p.spec.in_channels // part * (part - 1)
    pixels, room = math.prod(p.out_size), caches().l2 // 2
    found = cut_of(pixels, p.batch, reduction, p.spec.out_channels, p.target, p.threads, room)
    tiles = -(-found.strip // -(-found.strip // tallest(_OUTS, reduction, p.target)))
    return replace(found, tiles=tiles, outs=_OUTS)


def add(b: Builder, p: Problem, part: int, weight: str, bias: np.ndarray, at: Ref, x: Value, y: Value) -> None:
    """Add the step; ``p``: the dense problem; ``at``: the input at the centre of the first window; x and y in the order
    of residues, and bias too."""
    g, v, c = geometry_of(p), b.v, cut(p, part)
    own, own_out = p.spec.in_channels // part // v, p.spec.out_channels // part // v
    reduction = (part - 1) * own * v
    tile = RingTile(c.tiles, c.outs)
    packed = _packed(b, weight, (p.spec.out_channels, reduction), part)
    scratch_thread = paired_ring.scratch_floats(c.strip, tile, part, own, v)
    scratch = Buffer(4 * scratch_thread * b.team)
    turns = part * own_out // c.outs
    arguments = {
        "x": at, "w": b.static(packed.weights), "bias": b.static(bias), "y": y.ref, "scratch": Ref(scratch),
        "pixels": b.static(pixels_of(g, x, y, None, v, (1, 1))), "places": b.static(np.arange(part * own) * x.block),
        "channel_scales": b.static(packed.channel_scales), "squares": b.static(packed.squares),
        "out_scales": b.static(packed.out_scales),
        "part_turns": -(-turns // c.parts), "vectors": part * own_out, "images": x.n,
        "strips": c.strips, "strip": c.strip, "all_pixels": math.prod(g.out_size),
        "blocks": part * own, "others": (part - 1) * own, "again": paired_ring.copied_twice(part, own),
        "groups": part, "group_blocks": own, "group_vectors": own_out,
        "x_image": x.image, "w_out": reduction * v, "y_image": y.image, "y_block": y.block,
        "scratch_thread": scratch_thread,
    }  # fmt: skip
    why = f"part {part}, other channels, products in pairs: "
    why += f"{c.strips} strips of {c.strip} pixels, {c.tiles} pixels by {c.outs} vectors"
    macs = x.n * math.prod(g.out_size) * reduction * p.spec.out_channels
    b.step(tile.name(b.target), paired_ring, tile, arguments, c.parts * x.n * c.strips, [x], [y], why, macs)
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))


# -- weights -----------------------------------------------------------------------------------------------------------


def _packed(b: Builder, name: str, shape: tuple[int, int], part: int) -> Packed:
    """Of each filter, residue by residue, the weights of its ring."""
    target, threads, v = b.target, b.team, b.v  # what is kept for later must not keep the plan's state
    inputs = shape[1] // (part - 1) * part

    def make(weight: np.ndarray) -> np.ndarray:
        return pack(ring_weights(weight, part), inputs, part, target, threads)

    return _parts_of(b.weights.derived(name, ("het pointwise in pairs", part), make), shape, inputs, v)


def ring_weights(weight: np.ndarray, part: int) -> np.ndarray:
    """The centres of a heterogeneous convolution's kernels, ``[K, C / part (part - 1)]``: filters residue by residue,
    and channels so too, those of the next residue first."""
    centre = tuple(size // 2 for size in weight.shape[2:])
    residues = []
    for residue in range(part):
        of_residue = weight[(slice(residue, None, part), slice(None), *centre)]
        residues.append(np.concatenate([of_residue[:, (residue + n) % part :: part] for n in range(1, part)], axis=1))
    return np.concatenate(residues)


def pack(weight: np.ndarray, inputs: int, part: int, target: Target, threads: int) -> np.ndarray:
    """All that the kernel reads of `ring_weights`, in one array; an input's scale is the same for all who read it."""
    (outputs, reduction), v = weight.shape, target.vector
    flat = aligned_empty(outputs * reduction + inputs + 2 * outputs)
    parts = _parts_of(flat, (outputs, reduction), inputs, v)
    rows = Rows.of(weight, reduction, (1, 1), part, target, threads)
    own = inputs // part
    read = (np.arange(1, part + 1)[:, None] * own + np.arange(reduction)) % inputs
    shares = np.zeros((1, inputs))
    np.add.at(shares[0], read, rows.shares())
    exponents = paired_weights.of_channels(shares)[0]
    signs, counted = paired_weights.signs_of(inputs, v)
    parts.channel_scales[:] = np.ldexp(signs, exponents)
    paired_weights.scale(rows, parts, np.ldexp(signs, -exponents)[read], counted[:reduction])
    return flat


def _parts_of(flat: np.ndarray, shape: tuple[int, int], inputs: int, v: int) -> Packed:
    outputs, reduction = shape
    weights, *others = np.split(flat, np.cumsum((outputs * reduction, inputs, outputs)))
    return Packed(weights.reshape(-1, reduction, v), *others)
