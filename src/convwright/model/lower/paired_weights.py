"""Weights of convolutions by Winograd's inner product: both factors of its products brought to one size.

Each weight is multiplied by powers of two, one for its output and one for its input, which nothing is lost by; and by
the sign of its input (see ``kernels.paired``). They are held as the kernel reads them, and give the weights back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import paired
from convwright.model.builder import Builder
from convwright.model.packing import Rows
from convwright.model.values import Order, blocks_of, in_lanes
from convwright.runtime.memory import aligned_empty

_TINY = float(np.finfo(np.float32).tiny)
_CHANNELS_APART = 120  # binary orders between channels that are made up for
_LARGEST_POWER = 126  # of two, whose inverse is no denormal number

Lost = list[tuple[np.ndarray, np.ndarray]]
"""Numbers of weights that became too small to be told apart, and what they were."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The parts of packed weights: ``[output vector][channel][v]``, and the kernel's vectors."""

    weights: np.ndarray
    channel_scales: np.ndarray
    squares: np.ndarray
    out_scales: np.ndarray


def packed(
    b: Builder, name: str, shape: tuple[int, int, int, int], groups: int = 1, read: Order | None = None,
    made: Order | None = None,
) -> Packed:  # fmt: skip
    """Of the constant `[K, C/groups, kh, kw]`: of each output, the channels of one tap after another.

    `read`: the input's order, if the plan has one of its own: then each group's channels follow their places, and there
    is one tap. `made`: the output's, which gives each output its lane.
    """
    outputs, own, *kernel = shape
    flat = outputs, own * math.prod(kernel)
    order = None if read is None else np.repeat(np.argsort(read.places.reshape(groups, -1)), outputs // groups, 0)

    def rows(weight: np.ndarray) -> np.ndarray:
        matrix = weight.reshape(shape).transpose(0, 2, 3, 1).reshape(flat)
        matrix = matrix if order is None else np.take_along_axis(matrix, order, 1)
        return matrix if made is None else in_lanes(matrix, made.made, made.lanes)

    def back(packed: np.ndarray) -> np.ndarray:
        matrix = packed if made is None else packed[made.made]
        matrix = matrix if order is None else np.take_along_axis(matrix, np.argsort(order), 1)
        return matrix.reshape(outputs, *kernel, own).transpose(0, 3, 1, 2)

    orders = tuple(order.name if order is not None else "" for order in (read, made))
    lanes = outputs if made is None else made.lanes
    return packed_rows(b, name, orders, (lanes, flat[1]), rows, back, groups)


def packed_rows(
    b: Builder, name: str, key: tuple[Hashable, ...], shape: tuple[int, int],
    rows: Callable[[np.ndarray], np.ndarray], back: Callable[[np.ndarray], np.ndarray], groups: int = 1,
) -> Packed:  # fmt: skip
    """Of the matrix `[K, products of an output]` of this shape that `rows` makes of the constant; `back`: its inverse.

    `key`: what `rows` depends on. Of several `groups`, the outputs fill vectors.
    """
    lost: Lost = []
    target, threads, v = b.target, b.team, b.v  # what is kept for later must not keep the plan's state

    def make(weight: np.ndarray) -> np.ndarray:
        return pack(rows(weight), target, threads, lost, groups)

    def restore(made: np.ndarray) -> np.ndarray:
        return back(unpack(made, shape, v, lost, groups))

    return parts_of(b.weights.derived(name, ("paired", groups, *key), make, restore), shape, v, groups)


def parts_of(flat: np.ndarray, shape: tuple[int, int], v: int, groups: int = 1) -> Packed:
    """What `pack` has made of weights of a shape; channel scales are those of one group after another."""
    vectors, channels = blocks_of(shape[0], v), shape[1]
    padded = blocks_of(channels, v) * v
    sizes = (vectors * channels * v, groups * padded, vectors * v, vectors * v)
    weights, *others = np.split(flat, np.cumsum(sizes)[:-1])
    return Packed(weights.reshape(vectors, channels, v), *others)


def pack(weight: np.ndarray, target: Target, threads: int, lost: Lost, groups: int = 1) -> np.ndarray:
    """All that the kernel reads of the weights, `[K, products of an output]`, in one array."""
    (outputs, channels), v = weight.shape, target.vector
    vectors, padded = blocks_of(outputs, v), blocks_of(channels, v) * v
    flat = aligned_empty(vectors * channels * v + groups * padded + 2 * vectors * v)
    parts = parts_of(flat, (outputs, channels), v, groups)
    rows = Rows.of(weight, channels, (1, 1), groups, target, threads)
    exponents = of_channels(rows.shares())
    signs, counted = signs_of(channels, v)
    scales = parts.channel_scales.reshape(groups, -1)
    scales[:, :channels], scales[:, channels:] = np.ldexp(signs, exponents), 0
    factors = np.ldexp(signs, -exponents)
    found = scale(rows, parts, factors, counted)
    of_outputs = parts.out_scales[:outputs]
    for row in np.flatnonzero(found):
        scaled = rows.weights[row] * (factors[row * groups // outputs] / of_outputs[row])  # in float64
        gone = np.flatnonzero((np.abs(scaled) < _TINY) & (rows.weights[row] != 0))
        lost.append((gone + row * channels, rows.weights[row, gone]))
    return flat


def scale(rows: Rows, parts: Packed, factors: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Write weights times `factors`, ``[groups][products]``, brought to one size, and the vectors of outputs; of which
    rows some became too small. `counted`: the second ones of products in pairs."""
    found = rows.scale(parts.weights, parts.squares, parts.out_scales, factors, counted, _LARGEST_POWER)
    # Where all weights are zeros the output is the bias, without what the sums' rounding leaves. Of infinities the
    # kernel finds no size either.
    of_outputs = parts.out_scales[: len(rows.weights)]
    for row in np.flatnonzero(of_outputs == 0):
        of_outputs[row] = 2.0**-_LARGEST_POWER if rows.weights[row].any() else 0
    return found


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


def signs_of(channels: int, v: int) -> tuple[np.ndarray, np.ndarray]:
    """The sign of each channel, and which are the second ones of products in pairs."""
    first = paired.in_pairs(channels, v)
    signs, counted = np.ones(channels), np.zeros(channels, bool)
    signs[first[1::2] + 1], counted[first + 1] = -1, True
    return signs, counted


def of_channels(shares: np.ndarray) -> np.ndarray:
    """Exponents of the powers of two that channels' weights are divided by, of their `Rows.shares`.

    They bring the root mean square of each channel's weights to that of the others. Where a channel's inputs are larger
    by what its weights are smaller, that is best; where not, each pixel's scale makes up for the rest. No input is
    multiplied by more than 1, so that none overflows.
    """
    largest = shares.max(1, keepdims=True)
    relative = np.maximum(shares / np.where(largest > 0, largest, 1), 2.0**-1000)
    exponents = np.maximum(np.rint(np.log2(relative) / 2), -_CHANNELS_APART).astype(np.int64)
    result: np.ndarray = exponents - exponents.max(1, keepdims=True)
    return result
