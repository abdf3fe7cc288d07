"""Winograd convolutions whose products are summed in pairs (`kernels.winograd_pairs`): where, in what pieces, with what
errors and at what cost; and their weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import winograd, winograd_pairs
from convwright.kernels.cook_toom import filtering
from convwright.model.lower.winograd_forms import ERROR, Form
from convwright.model.problem import Problem
from convwright.model.values import blocks_of
from convwright.runtime.memory import aligned_empty

# A product, by the number of vectors in a register tile, in the units of `tiles.step_cycles`: 11 / 16 of a
# multiply-add, and what is lost, more where additions and multiply-adds are further apart.
_PRODUCT = {1: 0.365, 2: 0.38}
_TALLEST = 16  # tiles by one vector: 14 are quicker than 20 to 25
_STREAM_CYCLES = 0.3
INPUTS = 1.45  # times the cycles of the transform of inputs: their largest, and the sums of a1 a2
_PIECES = (256, 128, 64)  # channels that may be summed before they are added to M
_GROWTH = 1.15  # of the bound of errors: measured 0.9 to 1.1 times, where both factors are of one size
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


def pieces_of(form: Form, p: Problem) -> list[int]:
    """How many channels may be summed before they are added to M: the most that keep errors as small as is allowed.

    None where less than two blocks of channels could be paired.
    """
    channels, v = p.spec.in_channels // p.spec.groups, p.target.vector
    if channels < 2 * v:
        return []
    named = p.algorithm.startswith("winograd-")
    able = [piece for piece in (channels, *_PIECES) if piece <= channels]
    return [piece for piece in able if named or error_bound(form, p, piece) <= ERROR][:1]


def blocks_of_piece(piece: int, channels: int, v: int) -> int:
    """Pairs of blocks of a piece of so many channels, where pieces are even; at least one."""
    pairs = channels // (2 * v)
    return -(-pairs // -(-channels // piece)) if piece and pairs else 1


def error_bound(form: Form, p: Problem, piece: int) -> float:
    """Of the largest output: a sum in pieces rounds like one of as many terms as a piece has and there are pieces."""
    channels = p.spec.in_channels // p.spec.groups
    terms = form.high[1] * form.wide[1] * (form.deep_taps * piece + channels / piece - 1)
    return _GROWTH * form.growth * 16 * 2.0**-24 * max(1.0, terms / 256) ** 0.5


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


def pack(weight: np.ndarray, form: Form, groups: int, v: int) -> np.ndarray:
    """All that the kernel reads of the weights ``[K, C, taps, r_h, r_w]`` of some groups, in one array."""
    outputs, channels = weight.shape[:2]
    vectors, padded = blocks_of(outputs, v), blocks_of(channels, v) * v
    flat = aligned_empty(vectors * form.places * v * (form.deep_taps * channels + 2) + groups * padded)
    parts = parts_of(flat, form, outputs, channels, groups, v)
    order, signs = _order(channels, v)
    gains = [np.sqrt((np.array(filtering(*axis).bt, float) ** 2).sum(1)) for axis in (form.high, form.wide)]
    wanted = _TYPICAL * np.kron(*gains)
    parts.channel_scales[:] = 0
    for group in range(groups):
        rows = weight[group * outputs // groups : (group + 1) * outputs // groups]
        of_channels = _of_channels(np.einsum("kcdhw,kcdhw->kc", rows, rows, dtype=np.float64))
        parts.channel_scales[group, :channels] = np.ldexp(signs, of_channels)
        by = np.ldexp(signs, -of_channels).astype(np.float32)[order]
        for start in range(0, len(rows), v):
            own = rows[start : start + v][:, order] * by[:, None, None, None]
            scales = _scales(own, form, wanted).T
            vector, lanes = group * vectors // groups + start // v, len(own)
            winograd.transform_weights(own, v, form.high, form.wide, parts.u[vector : vector + 1])
            u, backs = parts.u[vector], parts.backs[vector]
            u[..., :lanes] *= np.ldexp(np.float32(1), scales)[:, None, None]
            backs[:, :lanes], backs[:, lanes:] = np.ldexp(np.float32(1), -scales), 1
            parts.squares[vector] = _squares(u, v)
    return flat


def _scales(weight: np.ndarray, form: Form, wanted: np.ndarray) -> np.ndarray:
    """Exponents of the powers of two, `[K, place]`, that bring the root mean square of an output's transformed weights
    near to what is wanted. It follows from the products of each two taps, summed over the channels."""
    taps = weight.reshape(len(weight), -1, form.high[1] * form.wide[1])
    spread = np.kron(filtering(*form.high).float_g(), filtering(*form.wide).float_g())
    products = np.matmul(taps.transpose(0, 2, 1), taps).astype(np.float64)  # [K][taps][taps]
    means = np.matmul(products, spread.T) * spread.T
    own = np.sqrt(np.maximum(means.sum(1) / taps.shape[1], 0))
    own = np.where(own > 0, own, 1.0)
    exponents = np.clip(np.nan_to_num(np.rint(np.log2(wanted / own))), -60, 60)
    return exponents.astype(np.int64)  # type: ignore[no-any-return]


def _squares(u: np.ndarray, v: int) -> np.ndarray:
    """Minus the sums of b1 b2 `[place][v]`, of weights `[place][depth tap][channel][v]`."""
    places, _, channels = u.shape[:3]
    whole = channels // (2 * v) * 2 * v
    pairs = u[:, :, :whole].reshape(places, -1, v, 2, v)[:, :, winograd_pairs.is_pair(np.arange(v))]
    sums: np.ndarray = (pairs[..., 0, :] * pairs[..., 1, :]).sum((1, 2), dtype=np.float64)
    return -sums


def _of_channels(squares: np.ndarray) -> np.ndarray:
    """Exponents of the powers of two that input channels are multiplied by, of their weights' squares ``[K, C]``.

    What a channel's weights are smaller by, its inputs are assumed to be larger by: half of that is taken from each.
    """
    means = squares.mean(1, keepdims=True)
    relative = (squares / np.where(means > 0, means, 1.0)).mean(0)
    halves = np.log2(np.where(relative > 0, relative, 1.0)) / 2
    return np.clip(np.nan_to_num(np.rint(halves)), -winograd_pairs.APART, winograd_pairs.APART).astype(np.int64)


def _order(channels: int, v: int) -> tuple[np.ndarray, np.ndarray]:
    """The channels as the kernel sums them, those of a pair one after the other; and the sign of each channel."""
    paired = channels // (2 * v) * 2 * v
    order, signs = np.arange(channels), np.ones(channels)
    pairs = order[:paired].reshape(-1, 2, v).transpose(0, 2, 1)
    order[:paired] = pairs.ravel()
    one = pairs[:, winograd_pairs.is_pair(np.arange(v))].reshape(-1, 2)
    signs[one[1::2, 1]] = -1
    return order, signs
