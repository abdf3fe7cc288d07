"""`conv_integer` and `qlinear_conv`: convolutions of 8-bit integers, exact to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.functional.arrays import Array, array_of, frozen
from convwright.functional.convolution import check_bias
from convwright.functional.prepared import Recipe, run
from convwright.graph import Node
from convwright.spec import AxesLike, ConvSpec, IntegerSpec, PaddingLike

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


def conv_integer(
    x: Any,
    w: Any,
    *,
    input_zero_point: Any = 0,
    weight_zero_point: Any = 0,
    stride: AxesLike = 1,
    padding: PaddingLike = 0,
    dilation: AxesLike = 1,
    groups: int = 1,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """The exact 32-bit sums of `(x - input_zero_point) * (w - weight_zero_point)` (arXiv 1712.05877).

    - `x`: N x C x spatial, or C x spatial; uint8 or int8.
    - `w`: K x C/groups x kernel; uint8 or int8.
    - `input_zero_point`: an int in the input's range; padding holds it.
    - `weight_zero_point`: an int in the weight's range, or one an output channel.

    The other arguments as in `conv`. Returns N x K x spatial, or K x spatial, int32. Raises `ConvwrightError` for
    arguments that do not fit each other, and where the largest possible sum does not fit in 32 bits.

    >>> import numpy as np
    >>> x = np.array([[[1, 2, 3]]], np.uint8)
    >>> conv_integer(x, np.array([[[1, -1]]], np.int8), input_zero_point=1, padding=1)
    array([[[ 0, -1, -1,  2]]], dtype=int32)
    """
    x, w = _checked_bytes(x, w)
    zeros = (frozen(_listed(input_zero_point)), frozen(_listed(weight_zero_point)))
    options = (frozen(stride), frozen(padding), frozen(dilation), frozen(groups), *zeros)

    def build() -> Recipe:
        spec = _spec(x, w, options)
        nodes = [Node("ConvInteger", ["x", "w", "x_zero", "w_zero"], ["y"], _attributes(spec.conv, x))]
        constants = {"w": np.array(w), **_zero_points(spec, x, w)}
        return Recipe(nodes, spec.conv.output_shape(x.shape)[1 - w.ndim :], np.dtype(np.int32), constants)

    batched = x.ndim != w.ndim - 1
    inputs = {"x": x if batched else x.reshape(1, *x.shape)}
    return run(("conv_integer", options), inputs, {"w": w}, build, out, threads, "default", batched)


def qlinear_conv(
    x: Any,
    x_scale: Any,
    x_zero_point: Any,
    w: Any,
    w_scale: Any,
    w_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
    bias: Any = None,
    *,
    stride: AxesLike = 1,
    padding: PaddingLike = 0,
    dilation: AxesLike = 1,
    groups: int = 1,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """A quantised convolution as ONNX's QLinearConv: exact 32-bit sums, scaled back to 8 bits, halves to even.

    - `x`, `w`: as in `conv_integer`. They stand for `x_scale * (x - x_zero_point)` and `w_scale * (w - w_zero_point)`.
    - `x_scale`, `y_scale`: positive numbers. `w_scale`: one, or one an output channel.
    - `x_zero_point`, `w_zero_point`: as in `conv_integer`.
    - `y_zero_point`: an int; where it is a NumPy uint8 or int8 the result has that type, otherwise that of `x`.
    - `bias`: K values of int32, of the sums' scale `x_scale * w_scale`, or None.

    The other arguments as in `conv`. Returns N x K x spatial, or K x spatial. Raises as `conv_integer`.

    >>> import numpy as np
    >>> x = np.array([[[0, 100, 200]]], np.uint8)
    >>> qlinear_conv(x, 0.5, 100, np.array([[[2]]], np.int8), 0.25, 0, 0.5, 128)
    array([[[ 78, 128, 178]]], dtype=uint8)
    """
    x, w = _checked_bytes(x, w)
    zeros = (frozen(_listed(x_zero_point)), frozen(_listed(w_zero_point)))
    options = (frozen(stride), frozen(padding), frozen(dilation), frozen(groups), *zeros)
    bias = None if bias is None else array_of("bias", bias)
    if bias is not None and bias.dtype != np.int32:
        raise ConvwrightError(f"bias must be int32, got {bias.dtype}")
    scales = {
        name: _scale(name, value, many * w.shape[0] if w.ndim else 0)
        for name, value, many in (("x_scale", x_scale, 0), ("w_scale", w_scale, 1), ("y_scale", y_scale, 0))
    }
    y_zero = np.asarray(y_zero_point)
    dtype = y_zero.dtype if y_zero.dtype in _BYTES else x.dtype
    point = frozen(y_zero if y_zero.ndim == 0 else y_zero.tolist())

    def build() -> Recipe:
        spec = _spec(x, w, options, bias)
        # An 8-bit zero point, checked as an input's is.
        IntegerSpec(spec.conv, point, input_signed=dtype == np.int8)
        check_bias(bias, spec.conv)
        names = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", *["b"] * (bias is not None)]
        constants = {"w": np.array(w), **_zero_points(spec, x, w), "y_zero": np.array(point, dtype), **scales}
        if bias is not None:
            constants["b"] = np.array(bias)
        nodes = [Node("QLinearConv", names, ["y"], _attributes(spec.conv, x))]
        return Recipe(nodes, spec.conv.output_shape(x.shape)[1 - w.ndim :], dtype, constants)

    batched = x.ndim != w.ndim - 1
    inputs = {"x": x if batched else x.reshape(1, *x.shape)}
    key = ("qlinear_conv", options, point, dtype)
    return run(key, inputs, {"w": w, "b": bias, **scales}, build, out, threads, "default", batched)


def _checked_bytes(x: Any, w: Any) -> tuple[Array, Array]:
    x, w = array_of("input", x), array_of("weight", w)
    if x.dtype not in _BYTES or w.dtype not in _BYTES:
        raise ConvwrightError(f"input and weight must be uint8 or int8, got {x.dtype} and {w.dtype}")
    return x, w


def _listed(points: Any) -> Any:
    """Zero points as ints, one a channel where they are an array."""
    return points.tolist() if isinstance(points, np.ndarray | np.generic) else points


def _spec(x: Array, w: Array, options: tuple[Any, ...], bias: Array | None = None) -> IntegerSpec:
    stride, padding, dilation, groups, input_zero, weight_zero = options
    conv = ConvSpec.of_weight(
        w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias is not None
    )
    conv.output_shape(x.shape)
    return IntegerSpec(
        conv, input_zero, weight_zero, input_signed=x.dtype == np.int8, weight_signed=w.dtype == np.int8
    )  # fmt: skip


def _attributes(conv: ConvSpec, x: Array) -> dict[str, Any]:
    pads = conv.pads(x.shape[-conv.rank :])
    return {
        "kernel_shape": conv.kernel,
        "strides": conv.stride,
        "dilations": conv.dilation,
        "pads": (*(low for low, _ in pads), *(high for _, high in pads)),
        "group": conv.groups,
    }


def _zero_points(spec: IntegerSpec, x: Array, w: Array) -> dict[str, Array]:
    points = spec.weight_zero_point
    return {
        "x_zero": np.array(spec.input_zero_point, x.dtype),
        "w_zero": np.array(points[0] if len(points) == 1 else points, w.dtype),
    }


def _scale(name: str, value: Any, channels: int) -> Array:
    """A positive number as float32; where there are `channels`, one for each of them may be given."""
    scale = array_of(name, value)
    shapes = ((), (1,), (channels,)) if channels else ((), (1,))
    if scale.shape not in shapes or scale.dtype.kind not in "fiu":
        expected = f"a number, or {channels} of them" if channels else "a number"
        raise ConvwrightError(f"{name} must be {expected}, got {scale.dtype} of shape {scale.shape}")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ConvwrightError(f"{name} must be positive and finite, got {' '.join(str(scale).split())}")
    scale = scale.astype(np.float32)
    return scale.reshape(()) if scale.size == 1 else scale
