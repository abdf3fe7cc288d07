"""`conv` and `conv_transpose`: the convolution that a `ConvSpec` describes."""

from __future__ import annotations

from typing import Any

from convwright.errors import ConvwrightError
from convwright.functional.arrays import Array, array_of, check_real, frozen, frozen_bool
from convwright.functional.prepared import Recipe, run
from convwright.graph import Node
from convwright.graph.graph import INTERNAL
from convwright.spec import AxesLike, ConvSpec, PaddingLike


def conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: AxesLike = 1,
    padding: PaddingLike = 0,
    dilation: AxesLike = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    flip: bool = False,
    algorithm: str = "auto",
    out: Array | None = None,
    threads: int | None = None,
    numerics: str = "default",
) -> Array:
    """A convolution over 1, 2 or 3 spatial axes: as many as `weight` has.

    - `x`: N x C x spatial, or C x spatial; float32 or float64, as all arrays.
    - `weight`: K x C/groups x kernel.
    - `bias`: K values, or None.
    - `stride`, `dilation`: an int for every axis, or one an axis.
    - `padding`: an int, one int an axis, one `(low, high)` pair an axis, `"same"`, `"same_lower"` or `"valid"`.
    - `groups`: channels in this many independent groups.
    - `padding_mode`: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
    - `flip`: True for the convolution of mathematics, False for the cross-correlation of deep learning.
    - `algorithm`: `"auto"`, or a name from `algorithms`, such as `"direct"`, `"paired"` or `"winograd"`.
    - `out`: an array for the result, which is then returned. It may share memory with `x`.
    - `threads`: by default all cores that this process may use.
    - `numerics`: `"strict"` keeps to direct summation, of long sums in pieces; the default allows algorithms that stay
      within 1e-5 of the largest output.

    `ConvSpec` says more of the arguments that it shares. Returns N x K x spatial, or K x spatial. An empty batch gives
    an empty result. Raises `ConvwrightError`, showing the values, for arrays and arguments that do not fit each other.

    >>> import numpy as np
    >>> x = np.arange(5, dtype=np.float32).reshape(1, 1, 5)
    >>> difference = np.array([[[1, 0, -1]]], dtype=np.float32)
    >>> conv(x, difference, padding=1)
    array([[[-1., -2., -2., -2.,  3.]]], dtype=float32)
    >>> conv(x, difference, padding=1, padding_mode="circular", flip=True)
    array([[[-3.,  2.,  2.,  2., -3.]]], dtype=float32)
    """
    options = (
        frozen(stride), frozen(padding), frozen(dilation), frozen(groups), frozen(padding_mode), frozen_bool(flip),
    )  # fmt: skip

    def spec(weight_shape: tuple[int, ...], has_bias: bool) -> ConvSpec:
        return ConvSpec.of_weight(
            weight_shape, stride=options[0], padding=options[1], dilation=options[2], groups=options[3],
            padding_mode=options[4], flip=options[5], bias=has_bias,
        )  # fmt: skip

    return _convolve(("conv", options), spec, x, weight, bias, algorithm, out, threads, numerics)


def conv_transpose(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: AxesLike = 1,
    padding: PaddingLike = 0,
    output_padding: AxesLike = 0,
    dilation: AxesLike = 1,
    groups: int = 1,
    flip: bool = False,
    algorithm: str = "auto",
    out: Array | None = None,
    threads: int | None = None,
    numerics: str = "default",
) -> Array:
    """A transposed convolution: the adjoint of the convolution with the same numbers (arXiv 1603.07285, 4).

    - `x`: N x C x spatial, or C x spatial.
    - `weight`: C x K/groups x kernel.
    - `padding`: cropped from the output; `"same"` gives `input * stride` outputs.
    - `output_padding`: elements added at the high end of each axis, less than the stride or the dilation.

    The other arguments, what is returned and what raises as in `conv`.

    >>> import numpy as np
    >>> x = np.array([[[1, 2]]], dtype=np.float32)
    >>> conv_transpose(x, np.ones((1, 1, 2), np.float32), stride=2)
    array([[[1., 1., 2., 2.]]], dtype=float32)
    """
    options = (
        frozen(stride), frozen(padding), frozen(output_padding), frozen(dilation), frozen(groups), frozen_bool(flip),
    )  # fmt: skip

    def spec(weight_shape: tuple[int, ...], has_bias: bool) -> ConvSpec:
        return ConvSpec.of_weight(
            weight_shape, stride=options[0], padding=options[1], output_padding=options[2], dilation=options[3],
            groups=options[4], flip=options[5], transposed=True, bias=has_bias,
        )  # fmt: skip

    return _convolve(("conv_transpose", options), spec, x, weight, bias, algorithm, out, threads, numerics)


def _convolve(
    key: tuple[Any, ...], spec_of: Any, x: Any, weight: Any, bias: Any, algorithm: str, out: Array | None,
    threads: int | None, numerics: str,
) -> Array:  # fmt: skip
    x, weight = array_of("input", x), array_of("weight", weight)
    bias = None if bias is None else array_of("bias", bias)
    check_real(("input", "weight", "bias"), (x, weight, bias))

    def build() -> Recipe:
        spec: ConvSpec = spec_of(weight.shape, bias is not None)
        shape = spec.output_shape(x.shape)[-spec.rank - 1 :]
        check_bias(bias, spec)
        return Recipe([convolution(spec, "x", "w", "b" * spec.bias, "y", algorithm)], shape, x.dtype)

    batched = x.ndim != weight.ndim - 1
    inputs = {"x": x if batched else x.reshape(1, *x.shape)}
    return run(
        (*key, frozen(algorithm)), inputs, {"w": weight, "b": bias}, build, out, threads, numerics, batched
    )  # fmt: skip


def check_bias(bias: Array | None, spec: ConvSpec) -> None:
    if bias is not None and bias.shape != (spec.out_channels,):
        raise ConvwrightError(f"bias must be {spec.out_channels} values, one an output channel, got shape {bias.shape}")


def convolution(spec: ConvSpec, x: str, weight: str, bias: str, y: str, algorithm: str = "auto") -> Node:
    """The operator of this convolution, over the values of these names; "" for no bias."""
    inputs = [x, weight, bias] if bias else [x, weight]
    return Node("Convolution", inputs, [y], {"spec": spec, "algorithm": algorithm}, domain=INTERNAL)
