"""Kinds made of convolutions: one after another, side by side, or with weights left out."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from convwright.errors import ConvwrightError
from convwright.reference.convolution import conv, in_tap_order, pad
from convwright.reference.windows import Array, in_batch, real, real_bias, windows
from convwright.spec import ConvSpec, HetSpec, MixSpec, SeparableSpec, ShuffledSpec, SpatialSpec


def separable_conv(x: ArrayLike, weights: Sequence[ArrayLike], bias: ArrayLike | None, spec: SeparableSpec) -> Array:
    """A depthwise, then a pointwise convolution (arXiv 1704.04861).

    - `x`: N x C x spatial, or C x spatial.
    - `weights`: the depthwise and the pointwise weight, the `weight_shape` of each of `spec.stages`.
    - `bias`: K values, added by the pointwise stage, or None where `spec.conv.bias` is False.

    Returns N x K x spatial, or K x spatial. Raises `ConvwrightError` for shapes that do not fit the spec.
    """
    return _one_after_another(x, weights, bias, spec.stages)


def spatial_conv(x: ArrayLike, weights: Sequence[ArrayLike], bias: ArrayLike | None, spec: SpatialSpec) -> Array:
    """A k x 1, then a 1 x k convolution; in 3-D a (1, k, k), then a (k, 1, 1) one.

    - `x`: N x C x spatial, or C x spatial.
    - `weights`: the first and the second weight, the `weight_shape` of each of `spec.stages`.
    - `bias`: K values, added by the second stage, or None where `spec.conv.bias` is False.

    Returns N x K x spatial, or K x spatial. Raises `ConvwrightError` for shapes that do not fit the spec.
    """
    return _one_after_another(x, weights, bias, spec.stages)


def mix_conv(x: ArrayLike, weights: Sequence[ArrayLike], bias: ArrayLike | None, spec: MixSpec) -> Array:
    """Depthwise convolutions of several kernel sizes, one for each part of the channels (arXiv 1907.09595).

    - `x`: N x C x spatial, or C x spatial.
    - `weights`: one a part, `Cp x 1 x kernel`.
    - `bias`: C values, or None where `spec.bias` is False.

    Returns N x C x spatial, or C x spatial. Raises `ConvwrightError` for shapes that do not fit the spec.
    """
    x = real("input", x)
    # All parts as one convolution, to check the input and the bias against.
    whole = ConvSpec.of_rank(spec.rank, spec.channels, spec.channels, 1, groups=spec.channels, bias=spec.bias)
    whole.output_shape(x.shape)
    added = real_bias(bias, whole)
    _check_number(weights, len(spec.parts))
    results, first = [], 0
    for weight, part in zip(weights, spec.parts, strict=True):
        channels = np.arange(first, first + part.in_channels)
        taken = np.take(x, channels, axis=-spec.rank - 1)
        results.append(conv(taken, weight, None, replace(part, bias=False)))
        first += part.in_channels
    return np.concatenate(results, axis=-spec.rank - 1) + added


@np.errstate(invalid="ignore", over="ignore")
def het_conv(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None, spec: HetSpec) -> Array:
    """A heterogeneous convolution: only where `(c - f) mod P == 0` has filter f a full kernel (arXiv 1903.04120).

    - `x`: N x C x spatial, or C x spatial.
    - `weight`: dense, `spec.weight_shape`. On the other channels only the tap at the centre is read.
    - `bias`: K values, or None where `spec.conv.bias` is False.

    Returns N x K x spatial, or K x spatial. Raises `ConvwrightError` for shapes that do not fit the spec.
    """
    dense, x = spec.conv, real("input", x)
    shape = dense.output_shape(x.shape)
    kernels = in_tap_order(real("weight", weight, dense.weight_shape), dense)
    padded = pad(in_batch(x, dense.rank), dense)
    total = np.zeros((len(padded), *shape[-dense.rank - 1 :]))
    centre = tuple(size // 2 for size in dense.kernel)
    for tap, window in windows(dense, shape[-dense.rank :]):
        for out_channel in range(dense.out_channels):
            for channel in range(dense.in_channels) if tap == centre else spec.full_channels(out_channel):
                total[:, out_channel] += kernels[(out_channel, channel, *tap)] * padded[window][:, channel]
    return total.reshape(shape) + real_bias(bias, dense)


def channel_shuffle(x: ArrayLike, groups: int, *, axis: int = 1) -> Array:
    """The channels, G groups of C/G, in the order of C/G groups of G (arXiv 1707.01083, 3.1).

    - `x`: any array with C elements along `axis`.
    - `groups`: G, which divides C.

    >>> channel_shuffle([[0, 1, 2, 3, 4, 5]], 3)
    array([[0., 2., 4., 1., 3., 5.]])
    """
    x = real("input", x)
    if not -x.ndim <= axis < x.ndim:
        raise ConvwrightError(f"an input of shape {x.shape} has no axis {axis}")
    channels = x.shape[axis]
    if groups < 1 or channels % groups:
        raise ConvwrightError(f"{channels} channels are not divisible by groups {groups}")
    last = np.moveaxis(x, axis, -1)
    split = last.reshape(*last.shape[:-1], groups, channels // groups)
    return np.moveaxis(np.swapaxes(split, -1, -2).reshape(last.shape), -1, axis)


def shuffled_conv(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None, spec: ShuffledSpec) -> Array:
    """A grouped pointwise convolution, then a channel shuffle; arguments as of `conv`."""
    return channel_shuffle(conv(x, weight, bias, spec.conv), spec.conv.groups, axis=-spec.rank - 1)


def _one_after_another(
    x: ArrayLike, weights: Sequence[ArrayLike], bias: ArrayLike | None, stages: tuple[ConvSpec, ...]
) -> Array:
    _check_number(weights, len(stages))
    *before, last = zip(weights, stages, strict=True)
    for weight, stage in before:
        x = conv(x, weight, None, stage)
    return conv(x, last[0], bias, last[1])


def _check_number(weights: Sequence[ArrayLike], wanted: int) -> None:
    if len(weights) != wanted:
        raise ConvwrightError(f"weights must be {wanted} arrays, one a convolution, got {len(weights)}")
