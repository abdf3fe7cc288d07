"""Weights of convolutions by Winograd's inner product: both factors of its products brought to one size.

Each weight is multiplied by powers of two, one for its output and one for its input, which nothing is lost by; and by
the sign of its input (see ``kernels.paired``). They are held as the kernel reads them, and give the weights back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import numpy as np

from convwright.kernels import paired
from convwright.model.values import blocks_of
from convwright.model.weights import Weights
from convwright.runtime.memory import aligned_empty

_PIECE = 1 << 16  # weights at a time: they and what they become fit the second-level cache
_TINY = float(np.finfo(np.float32).tiny)
_CHANNELS_APART = 120  # binary orders between channels that are made up for
_LARGEST_POWER = 126  # of two, whose inverse is no denormal number
_PLAIN = 60  # binary orders up to which float32 holds the factors, squares and their sums

Lost = list[tuple[np.ndarray, np.ndarray]]
"""Numbers of weights that became too small to be told apart, and what they were."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The parts of packed weights: ``[output vector][channel][v]``, and the kernel's vectors."""

    weights: np.ndarray
    channel_scales: np.ndarray
    squares: np.ndarray
    out_scales: np.ndarray


def packed(weights: Weights, name: str, shape: tuple[int, int, int, int], groups: int = 1) -> Packed:
    """Of the constant `[K, C/groups, kh, kw]`: of each output, the channels of one tap after another."""
    outputs, own, *kernel = shape
    flat = outputs, own * math.prod(kernel)

    def rows(weight: np.ndarray) -> np.ndarray:
        return weight.reshape(shape).transpose(0, 2, 3, 1).reshape(flat)

    def back(made: np.ndarray) -> np.ndarray:
        return made.reshape(outputs, *kernel, own).transpose(0, 3, 1, 2)

    return packed_rows(weights, name, (), flat, rows, back, groups)


def packed_rows(
    weights: Weights, name: str, key: tuple[Hashable, ...], shape: tuple[int, int],
    rows: Callable[[np.ndarray], np.ndarray], back: Callable[[np.ndarray], np.ndarray], groups: int = 1,
) -> Packed:  # fmt: skip
    """Of the matrix `[K, products of an output]` of this shape that `rows` makes of the constant; `back`: its inverse.

    `key`: what `rows` depends on. Of several `groups`, the outputs fill vectors.
    """
    lost: Lost = []

    def make(weight: np.ndarray) -> np.ndarray:
        return pack(rows(weight), weights.v, lost, groups)

    def restore(made: np.ndarray) -> np.ndarray:
        return back(unpack(made, shape, weights.v, lost, groups))

    return parts_of(weights.derived(name, ("paired", groups, *key), make, restore), shape, weights.v, groups)


def parts_of(flat: np.ndarray, shape: tuple[int, int], v: int, groups: int = 1) -> Packed:
    """What `pack` has made of weights of a shape; channel scales are those of one group after another."""
    vectors, channels = blocks_of(shape[0], v), shape[1]
    padded = blocks_of(channels, v) * v
    sizes = (vectors * channels * v, groups * padded, vectors * v, vectors * v)
    weights, *others = np.split(flat, np.cumsum(sizes)[:-1])
    return Packed(weights.reshape(vectors, channels, v), *others)


def _of_group(parts: Packed, group: int, groups: int) -> Packed:
    weights, *others = (
        np.split(part, groups)[group] for part in (parts.weights, parts.channel_scales, parts.squares, parts.out_scales)
    )
    return Packed(weights, *others)


def pack(weight: np.ndarray, v: int, lost: Lost, groups: int = 1) -> np.ndarray:
    """All that the kernel reads of the weights, `[K, products of an output]`, in one array."""
    outputs, channels = weight.shape
    vectors, padded = blocks_of(outputs, v), blocks_of(channels, v) * v
    flat = aligned_empty(vectors * channels * v + groups * padded + 2 * vectors * v)
    parts = parts_of(flat, (outputs, channels), v, groups)
    flat[parts.weights.size :] = 0
    for group, rows in enumerate(np.split(weight, groups)):
        _pack_group(rows, v, _of_group(parts, group, groups), lost, group * len(rows))
    return flat


def _pack_group(weight: np.ndarray, v: int, parts: Packed, lost: Lost, above: int) -> None:
    """Fill the parts of a group; `above`: the rows of the matrix before its own."""
    outputs, channels = weight.shape
    vectors = blocks_of(outputs, v)
    first = paired.in_pairs(channels, v)
    of_outputs, of_channels = _exponents(weight, v)
    signs = np.ones(channels, np.float32)
    signs[first[1::2] + 1] = -1
    parts.channel_scales[:channels] = np.ldexp(signs, of_channels)
    # Where all weights are zeros the output is the bias, without what the sums' rounding leaves.
    parts.out_scales[:outputs] = np.where(weight.any(1), np.ldexp(np.float32(1), -of_outputs), 0)
    for piece in _pieces(weight.shape, v):
        rows, own = weight[piece], of_outputs[piece]
        if max(np.abs(own).max(), -of_channels.min()) > _PLAIN or own.min() < 0:
            rows = _scaled_with_care(rows, own, of_channels, above + piece.start, lost)
            factors = signs, np.ones(len(own), np.float32)
        else:
            factors = np.ldexp(signs, -of_channels), np.ldexp(np.float32(1), own)
        whole, rest = divmod(len(rows), v)
        to = parts.weights[piece.start // v : piece.start // v + blocks_of(len(rows), v)]
        to[:whole].transpose(0, 2, 1)[...] = rows[: whole * v].reshape(whole, v, channels)
        if rest:
            to[whole] = 0
            to[whole, :, :rest] = rows[whole * v :].T
        to *= factors[0][:, None]
        to *= np.append(factors[1], np.zeros(-len(own) % v, np.float32)).reshape(-1, 1, v)
        with np.errstate(all="ignore"):  # an infinity by a zero
            squares = to[:, first] * to[:, first + 1]
            parts.squares.reshape(vectors, v)[piece.start // v :][: len(to)] = -squares.sum(1, dtype=np.float64)


def _pieces(shape: tuple[int, int], v: int) -> Iterator[slice]:
    """Rows of whole vectors, `_PIECE` weights or one vector's at a time."""
    step = v * max(1, _PIECE // (v * shape[1]))
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _scaled_with_care(
    rows: np.ndarray, of_outputs: np.ndarray, of_channels: np.ndarray, start: int, lost: Lost
) -> np.ndarray:
    """The rows times their powers of two, however large those are; what they make too small is noted in `lost`."""
    scaled = np.ldexp(rows.astype(np.float64), of_outputs[:, None] - of_channels).astype(np.float32)
    gone = np.flatnonzero((np.abs(scaled) < _TINY) & (rows != 0))
    if len(gone):
        lost.append((gone + start * rows.shape[1], rows.reshape(-1)[gone]))
    return scaled


def unpack(made: np.ndarray, shape: tuple[int, int], v: int, lost: Lost, groups: int = 1) -> np.ndarray:
    """The weights as they were, to the last bit."""
    outputs, channels = shape
    parts = parts_of(made, shape, v, groups)
    of_channels = np.repeat(parts.channel_scales.reshape(groups, -1)[:, :channels], outputs // groups, 0)
    rows = parts.weights.transpose(0, 2, 1).reshape(-1, channels)[:outputs].astype(np.float64)
    weight = (rows * parts.out_scales[:outputs, None] * of_channels).astype(np.float32)
    for gone, values in lost:
        weight.flat[gone] = values  # not reshaped: what one vector holds is transposed, and a copy would be written
    return weight


# -- the powers of two -------------------------------------------------------------------------------------------------


def _exponents(weight: np.ndarray, v: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the powers of two that outputs' weights are multiplied by and channels' are divided by.

    They bring the root mean square of each channel's weights to that of the others. Where a channel's inputs are larger
    by what its weights are smaller, that is best; where not, each pixel's scale makes up for the rest. No input is
    multiplied by more than 1, so that none overflows.
    """
    outputs, channels = weight.shape
    of_outputs = np.empty(outputs, np.float32)
    of_channels = np.zeros(channels)
    with np.errstate(all="ignore"):
        for piece in _pieces(weight.shape, v):
            squares = np.square(weight[piece])
            of_outputs[piece] = squares.mean(1)
            of_channels += (1 / of_outputs[piece]) @ squares
    if not np.isfinite(of_channels).all() or of_outputs.min() < 2.0**-_PLAIN:
        return _exponents_with_care(weight)
    exponents = _of_channels(of_channels)
    if exponents.min() < -_PLAIN // 4:
        return _exponents_with_care(weight)
    if exponents.min() < 0:
        factors = np.ldexp(np.float32(1 / channels), -2 * exponents)
        for piece in _pieces(weight.shape, v):
            of_outputs[piece] = np.square(weight[piece]) @ factors
    return -_halved_logarithms(of_outputs.astype(np.float64), _LARGEST_POWER), exponents


def _exponents_with_care(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same in float64, whose range holds the squares of all float32; what is not finite counts as zeros."""
    squares = np.square(weight, dtype=np.float64)
    squares[~np.isfinite(squares)] = 0
    of_outputs = squares.mean(1)
    exponents = _of_channels((1 / np.where(of_outputs > 0, of_outputs, np.inf)) @ squares)
    of_outputs = squares @ np.ldexp(1.0, -2 * exponents) / len(exponents)
    return -_halved_logarithms(of_outputs, _LARGEST_POWER), exponents


def _of_channels(squares: np.ndarray) -> np.ndarray:
    exponents = _halved_logarithms(squares / (squares.max() or 1), _CHANNELS_APART)
    result: np.ndarray = exponents - exponents.max()
    return result


def _halved_logarithms(squares: np.ndarray, most: int) -> np.ndarray:
    """Exponents of the powers of two next to the roots, between `-most` and `most`."""
    exponents = np.rint(np.log2(np.maximum(squares, 2.0**-1000)) / 2)
    return np.clip(exponents, -most, most).astype(np.int64)
