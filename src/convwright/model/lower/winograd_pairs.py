"""Winograd convolutions whose products are summed in pairs (`kernels.winograd_pairs`): how they are divided and at
what cost; and their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import winograd_pairs
from convwright.kernels.cook_toom import filtering
from convwright.model.lower.winograd_forms import Form
from convwright.model.packing import Rows
from convwright.model.values import blocks_of
from convwright.runtime.memory import aligned_empty

# A product, by the number of vectors in a register tile, in the units of `tiles.step_cycles`: 11 / 16 of a
# multiply-add, and what is lost, more where additions and multiply-adds are further apart.
_PRODUCT = {1: 0.365, 2: 0.38}
_TALLEST = 16  # tiles by one vector: 14 are quicker than 20 to 25
_STREAM_CYCLES = 0.3
INPUTS = 1.45  # times the cycles of the transform of inputs: their largest, and the sums of a1 a2
_MOST_POWER = 60  # of two that weights of an output and place are multiplied by
# The root mean square of inputs after scaling, for random positive ones.
_TYPICAL = 0.25 * winograd_pairs.LARGEST


def most_tiles(outs: int, target: Target) -> int:
    """How many tiles by ``outs`` vectors are summed in registers, beside two or four vectors of weights for each; 0 for
    none."""
    room = target.registers - 2 * outs - ((6 if outs == 1 else 12) if target.registers >= 32 else 4)
    return min(room // outs, _TALLEST) if outs in _PRODUCT else 0


def step_cycles(tiles: int, outs: int) -> float:
    """As `tiles.step_cycles`."""
    return tiles * outs * _PRODUCT[outs] + _STREAM_CYCLES * outs


def strips_of(tiles: int, most: int, target: Target) -> set[int]:
    """Numbers of strips of at most ``most`` tiles that divide well into register tiles."""
    tallest, found = most_tiles(1, target), set()
    for turns in (1, 2, 3, 4):
        counts = {-(-tiles // (turns * size)) for size in range(tallest * 2 // 3, tallest + 1) if turns * size <= most}
        if counts:
            found.add(min(counts, key=lambda count: (count * turns * -(-tiles // (count * turns)), count)))
    return found


def blocks_of_piece(piece: int, channels: int, v: int) -> int:
    """Pairs of blocks of a piece of so many channels, where pieces are even; at least one."""
    pairs = channels // (2 * v)
    return -(-pairs // -(-channels // piece)) if piece and pairs else 1


def multiplications(channels: int, v: int) -> int:
    """Of so many products, those of pairs counted once."""
    return channels - channels // (2 * v) * int(winograd_pairs.is_pair(np.arange(v)).sum())


# -- weights -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packed:
    """The parts of packed weights: ``[output vector][place][depth tap][channel][v]``, and the kernel's vectors."""

    u: np.ndarray
    squares: np.ndarray
    backs: np.ndarray
    channel_scales: np.ndarray


def parts_of(flat: np.ndarray, form: Form, out_channels: int, channels: int, groups: int, v: int) -> Packed:
    vectors, places = blocks_of(out_channels, v), form.places
    sizes = (vectors * places * form.deep_taps * channels * v, vectors * places * v, vectors * places * v)
    u, squares, backs, channel_scales = np.split(flat, np.cumsum(sizes))
    return Packed(
        u.reshape(vectors, places, form.deep_taps, channels, v), squares.reshape(vectors, places, v),
        backs.reshape(vectors, places, v), channel_scales.reshape(groups, -1),
    )  # fmt: skip


def pack(weight: np.ndarray, form: Form, groups: int, target: Target, threads: int) -> np.ndarray:
    """All that the kernel reads of the weights ``[K, C, taps, r_h, r_w]`` of some groups, in one array."""
    outputs, channels, deep, *taps = weight.shape
    v = target.vector
    vectors, padded = blocks_of(outputs, v), blocks_of(channels, v) * v
    flat = aligned_empty(vectors * form.places * v * (deep * channels + 2) + groups * padded)
    parts = parts_of(flat, form, outputs, channels, groups, v)
    order, signs, counted = _order(channels, v)
    rows = Rows.of(weight.reshape(outputs, -1), channels, (deep * taps[0], taps[1]), groups, target, threads)
    of_channels = _of_channels(rows.shares())
    parts.channel_scales[:] = 0
    parts.channel_scales[:, :channels] = np.ldexp(signs, of_channels)
    factors = np.ldexp(signs, -of_channels)[:, order]
    gains = [np.sqrt((np.array(filtering(*axis).bt, float) ** 2).sum(1)) for axis in (form.high, form.wide)]
    # One depth tap after another, all of whose channels are summed.
    own = replace(rows, channels=channels * deep, taps=(taps[0], taps[1]))
    own.transform_and_scale(
        parts.u, parts.squares, parts.backs, (filtering(*form.high).float_g(), filtering(*form.wide).float_g()),
        (order * deep + np.arange(deep)[:, None]).ravel(), np.tile(factors, deep), np.tile(counted, deep),
        _TYPICAL * np.kron(*gains), _MOST_POWER,
    )  # fmt: skip
    return flat


def _of_channels(shares: np.ndarray) -> np.ndarray:
    """Exponents of the powers of two that input channels are multiplied by, of their weights' `Rows.shares`.

    What a channel's weights are smaller by, its inputs are assumed to be larger by: half of that is taken from each.
    """
    halves = np.log2(np.where(shares > 0, shares, 1.0)) / 2
    return np.clip(np.rint(halves), -winograd_pairs.APART, winograd_pairs.APART).astype(np.int64)


def _order(channels: int, v: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The channels as the kernel sums them, those of a pair one after the other; the sign of each channel; and of the
    channels in order, which are the second ones of products in pairs."""
    paired = channels // (2 * v) * 2 * v
    order, signs, counted = np.arange(channels), np.ones(channels), np.zeros(channels, bool)
    pairs = order[:paired].reshape(-1, 2, v).transpose(0, 2, 1)
    order[:paired] = pairs.ravel()
    one = pairs[:, winograd_pairs.is_pair(np.arange(v))].reshape(-1, 2)
    signs[one[1::2, 1]] = -1
    counted[:paired].reshape(-1, v, 2)[..., 1] = winograd_pairs.is_pair(np.arange(v))
    return order, signs, counted
