"""Integer convolution: exact sums, and their requantisation."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convwright.errors import ConvwrightError
from convwright.reference.convolution import gather, in_tap_order
from convwright.reference.windows import in_batch, real
from convwright.spec import IntegerSpec

Integers = NDArray[np.int64]


def conv_integer(x: ArrayLike, weight: ArrayLike, spec: IntegerSpec) -> NDArray[np.int32]:
    """The exact sums of `(x - input_zero_point) * (weight - weight_zero_point)`, as of ONNX's ConvInteger.

    - `x`: N x C x spatial, or C x spatial, in the range of int8 or uint8 as `spec.input_signed` says.
    - `weight`: `spec.weight_shape`, in the range that `spec.weight_signed` says.

    Returns int32, N x K x spatial, or K x spatial. Sums have no bias, whatever `spec.conv.bias` says. Raises
    `ConvwrightError` for shapes and values that do not fit the spec.

    >>> from convwright.spec import ConvSpec
    >>> conv_integer([[0, 128, 255]], [[[1, -2]]], IntegerSpec(ConvSpec(1, 1, (2,)), input_zero_point=128))
    array([[-128, -254]], dtype=int32)
    """
    return _sums(x, weight, spec).astype(np.int32)  # the spec vouches that they fit


def qlinear_conv(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    spec: IntegerSpec,
    *,
    input_scale: float,
    weight_scale: ArrayLike,
    output_scale: float,
    output_zero_point: int = 0,
    output_signed: bool = False,
) -> NDArray[np.int8] | NDArray[np.uint8]:
    """An integer convolution requantised, as of ONNX's QLinearConv (arXiv 1712.05877, equation 4).

    With S the sum of `conv_integer` plus the bias, the output is
    `saturate(round(S * input_scale * weight_scale / output_scale) + output_zero_point)`, rounded half to even.

    - `x`, `weight`: as of `conv_integer`.
    - `bias`: K values of int32, whose unit is `input_scale * weight_scale`, or None where `spec.conv.bias` is False.
    - `input_scale`, `output_scale`: positive numbers. `weight_scale`: one, or one an output channel.
    - `output_zero_point`: in the range of the output, int8 if `output_signed`, else uint8.

    The multiplier is float64; implementations that hold it in float32, as ONNX Runtime does, differ by one where the
    product lies next to a half. Raises `ConvwrightError` for what does not fit, and for a bias with which a sum might
    leave 32 bits.

    >>> from convwright.spec import ConvSpec
    >>> spec = IntegerSpec(ConvSpec(1, 1, (1,), bias=False))
    >>> qlinear_conv([[1, 3, 5, 255]], [[[1]]], None, spec, input_scale=1, weight_scale=0.5, output_scale=1)
    array([[  0,   2,   2, 128]], dtype=uint8)
    """
    channels, (low, high) = spec.conv.out_channels, _range(output_signed)
    if (bias is not None) != spec.conv.bias:
        raise ConvwrightError(f"the spec says bias={spec.conv.bias}, got {'no' if bias is None else 'a'} bias")
    if not low <= output_zero_point <= high:
        raise ConvwrightError(f"output_zero_point {output_zero_point} is outside {low}..{high}")
    scales = real("weight_scale", weight_scale)
    if scales.shape not in ((), (1,), (channels,)):
        raise ConvwrightError(
            f"weight_scale must be one number, or one for each of {channels} output channels, got {scales.shape}"
        )
    for name, scale in (("input_scale", input_scale), ("weight_scale", scales), ("output_scale", output_scale)):
        if not (np.isfinite(scale).all() and np.all(np.greater(scale, 0))):
            raise ConvwrightError(f"{name} must be positive and finite, got {scale}")
    sums = _sums(x, weight, spec)
    over_channels = (-1, *(1,) * spec.rank)
    if bias is not None:
        added = _whole("bias", bias, -(2**31), 2**31 - 1)
        if added.shape != (channels,):
            raise ConvwrightError(f"the bias must have shape {(channels,)}, got {added.shape}")
        reach = spec.accumulator_bound + int(np.abs(added).max())
        if reach > 2**31 - 1:
            raise ConvwrightError(f"sums with the bias may reach {reach}, more than 32 bits hold")
        sums = sums + added.reshape(over_channels)
    multiplier = float(input_scale) * scales / float(output_scale)
    rounded = np.rint(sums * multiplier.reshape(over_channels))  # half to even
    return np.clip(rounded + output_zero_point, low, high).astype(np.int8 if output_signed else np.uint8)


def _sums(x: ArrayLike, weight: ArrayLike, spec: IntegerSpec) -> Integers:
    conv = spec.conv
    x = _whole("input", x, *_range(spec.input_signed)) - spec.input_zero_point
    shape = conv.output_shape(x.shape)
    weight = _whole("weight", weight, *_range(spec.weight_signed))
    if weight.shape != conv.weight_shape:
        raise ConvwrightError(f"the weight must have shape {conv.weight_shape}, got {weight.shape}")
    kernels = weight - np.asarray(spec.weight_zero_point).reshape(-1, *(1,) * (spec.rank + 1))
    return gather(in_batch(x, spec.rank), in_tap_order(kernels, conv), conv).reshape(shape)


def _whole(name: str, value: ArrayLike, low: int, high: int) -> Integers:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise ConvwrightError(f"the {name} must hold integers, got {array.dtype}")
    if array.size and not low <= int(array.min()) <= int(array.max()) <= high:
        raise ConvwrightError(f"the {name} must be in {low}..{high}, got {array.min()}..{array.max()}")
    return array.astype(np.int64)


def _range(signed: bool) -> tuple[int, int]:
    return (-128, 127) if signed else (0, 255)
