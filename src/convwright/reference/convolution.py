"""The convolution that a `ConvSpec` describes, transposed or not."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convwright.reference.windows import (
    Array,
    Index,
    by_channel_group,
    by_tap,
    in_batch,
    real,
    real_bias,
    windows,
)
from convwright.spec import ConvSpec

PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@np.errstate(invalid="ignore", over="ignore")
def conv(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None, spec: ConvSpec) -> Array:
    """The convolution that `spec` describes.

    - `x`: N x C x spatial, or C x spatial.
    - `weight`: `spec.weight_shape`.
    - `bias`: K values, or None where `spec.bias` is False.

    Returns N x K x spatial, or K x spatial, in float64. Raises `ConvwrightError` for shapes that do not fit the spec.

    >>> conv([[1, 2, 3]], [[[1, 10]]], None, ConvSpec(1, 1, (2,), bias=False))
    array([[21., 32.]])
    >>> conv([[1, 2, 3]], [[[1, 10]]], None, ConvSpec(1, 1, (2,), bias=False, transposed=True))
    array([[ 1., 12., 23., 30.]])
    """
    x = real("input", x)
    shape = spec.output_shape(x.shape)
    kernels = in_tap_order(real("weight", weight, spec.weight_shape), spec)
    apply = scatter if spec.transposed else gather
    return apply(in_batch(x, spec.rank), kernels, spec).reshape(shape) + real_bias(bias, spec)


def in_tap_order(weight: NDArray[Any], spec: ConvSpec) -> NDArray[Any]:
    """The weight as cross-correlation reads it: flipped on every spatial axis where the spec says so."""
    return np.flip(weight, axis=tuple(range(2, weight.ndim))) if spec.flip else weight


def pad(x: NDArray[Any], spec: ConvSpec) -> NDArray[Any]:
    """N x C x spatial with the spec's padding around the spatial axes."""
    around = ((0, 0), (0, 0), *spec.pads(x.shape[2:]))
    return np.pad(x, around, mode=PAD_MODES[spec.padding_mode])  # type: ignore[call-overload]


def gather(x: NDArray[Any], weight: NDArray[Any], spec: ConvSpec) -> NDArray[Any]:
    """Sums over the taps: out[n, k, i] = sum of weight[k, c, t] * padded[n, c, t * dilation + i * stride].

    Arrays of integers give integers.
    """
    padded, outputs = pad(x, spec), spec.output_size(x.shape[2:])
    taps = by_tap(weight, spec.groups)  # kernel x G x K/G x C/G
    total = np.zeros((len(x), spec.groups, spec.out_channels // spec.groups, int(np.prod(outputs))), x.dtype)
    for tap, window in windows(spec, outputs):
        total += taps[tap] @ by_channel_group(padded[window], spec.groups)
    return total.reshape(len(x), spec.out_channels, *outputs)


def scatter(x: Array, weight: Array, spec: ConvSpec) -> Array:
    """The adjoint: adds weight[c, k, t] * x[n, c, i] at out[n, k, t * dilation + i * stride], then crops."""
    size = x.shape[2:]
    pads, outputs = spec.pads(size), spec.output_size(size)
    full = np.zeros(
        (len(x), spec.out_channels, *(low + o + high for o, (low, high) in zip(outputs, pads, strict=True)))
    )
    taps = by_tap(weight, spec.groups)  # kernel x G x C/G x K/G
    for tap, window in windows(spec, size):
        products = np.swapaxes(taps[tap], 1, 2) @ by_channel_group(x, spec.groups)
        full[window] += products.reshape(full[window].shape)
    inside: Index = (..., *(slice(low, low + o) for o, (low, _) in zip(outputs, pads, strict=True)))
    return full[inside]
