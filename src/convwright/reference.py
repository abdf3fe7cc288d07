"""Every convolution from its definition, in NumPy float64: the oracle of all tests.

One idea: tap t of a kernel meets the input at every `t * dilation + i * stride`. A convolution gathers there, for every
tap, what the weight multiplies; a transposed convolution, its adjoint, scatters there. Pooling reads the same windows.

Values are IEEE: NaN and infinity go where the arithmetic takes them, and padding counts as input, so that an infinite
weight on a zero of padding gives NaN.
"""

from collections.abc import Iterator
from dataclasses import replace
from types import EllipsisType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convwright.errors import ConvwrightError
from convwright.spec import AxesLike, ConvSpec, PaddingLike, Pads

Array = NDArray[np.float64]
Index = tuple[slice | EllipsisType, ...]
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
    x, weight = _array("input", x), _array("weight", weight)
    shape = spec.output_shape(x.shape)
    if weight.shape != spec.weight_shape:
        raise ConvwrightError(f"the weight must have shape {spec.weight_shape}, got {weight.shape}")
    if spec.flip:
        weight = np.flip(weight, axis=tuple(range(2, weight.ndim)))
    batch = x.reshape(-1, *x.shape[-spec.rank - 1 :]) if x.size else np.zeros((0, *x.shape[1:]))
    apply = _scatter if spec.transposed else _gather
    return apply(batch, weight, spec).reshape(shape) + _bias(bias, spec)


def _gather(x: Array, weight: Array, spec: ConvSpec) -> Array:
    """Sums over the taps: out[n, k, i] = sum of weight[k, c, t] * padded[n, c, t * dilation + i * stride]."""
    size = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), *spec.pads(size)), mode=PAD_MODES[spec.padding_mode])  # type: ignore[call-overload]
    taps = _by_tap(weight, spec.groups)  # kernel x G x K/G x C/G
    outputs = spec.output_size(size)
    total = np.zeros((len(x), spec.groups, spec.out_channels // spec.groups, int(np.prod(outputs))))
    for tap, window in _windows(spec, outputs):
        total += taps[tap] @ _grouped(padded[window], spec.groups)
    return total


def _scatter(x: Array, weight: Array, spec: ConvSpec) -> Array:
    """The adjoint: adds weight[c, k, t] * x[n, c, i] at out[n, k, t * dilation + i * stride], then crops."""
    size = x.shape[2:]
    pads, outputs = spec.pads(size), spec.output_size(size)
    full = np.zeros(
        (len(x), spec.out_channels, *(low + o + high for o, (low, high) in zip(outputs, pads, strict=True)))
    )
    taps = _by_tap(weight, spec.groups)  # kernel x G x C/G x K/G
    for tap, window in _windows(spec, size):
        products = np.swapaxes(taps[tap], 1, 2) @ _grouped(x, spec.groups)
        full[window] += products.reshape(full[window].shape)
    inside: Index = (..., *(slice(low, low + o) for o, (low, _) in zip(outputs, pads, strict=True)))
    return full[inside]


@np.errstate(invalid="ignore", over="ignore")
def max_pool(
    x: ArrayLike,
    kernel: tuple[int, ...],
    *,
    stride: AxesLike | None = None,
    padding: PaddingLike = 0,
    dilation: AxesLike = 1,
    ceil_mode: bool = False,
) -> Array:
    """The largest value of each window; padding is never the largest, and NaN always is.

    - `x`: any leading axes, then one axis for each entry of `kernel`.
    - `stride`: the kernel unless given. `padding`, `dilation`: as in `ConvSpec`.
    - `ceil_mode`: rounds the output size up; a last window that starts beyond the input and its low padding is dropped.

    >>> max_pool([1, 5, 2, 3, 4], (2,), ceil_mode=True)
    array([5., 3., 4.])
    """
    x = _array("input", x)
    spec, size = _pool(x, kernel, stride, padding, dilation), x.shape[-len(kernel) :]
    pads, outputs = _pool_size(spec, size, ceil_mode)
    padded = _pad(x, pads, -np.inf)
    total = np.full((*x.shape[: -spec.rank], *outputs), -np.inf)
    for _, window in _windows(spec, outputs):
        total = np.maximum(total, padded[window])
    return total


@np.errstate(invalid="ignore", over="ignore")
def average_pool(
    x: ArrayLike,
    kernel: tuple[int, ...],
    *,
    stride: AxesLike | None = None,
    padding: PaddingLike = 0,
    dilation: AxesLike = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """The mean of each window, otherwise as `max_pool`.

    - `count_include_pad`: whether zeros of padding count as values. What `ceil_mode` adds beyond them never counts.

    >>> average_pool([1, 5, 2, 3, 4], (2,), ceil_mode=True)
    array([3. , 2.5, 4. ])
    """
    x = _array("input", x)
    spec, size = _pool(x, kernel, stride, padding, dilation), x.shape[-len(kernel) :]
    pads, outputs = _pool_size(spec, size, ceil_mode)
    counted = _pad(np.ones(size), spec.pads(size), float(count_include_pad))
    counted = _pad(counted, tuple((0, high - h) for (_, high), (_, h) in zip(pads, spec.pads(size), strict=True)), 0.0)
    padded = _pad(x, pads, 0.0)
    total, count = np.zeros((*x.shape[: -spec.rank], *outputs)), np.zeros(outputs)
    for _, window in _windows(spec, outputs):
        total += padded[window]
        count += counted[window]
    return np.asarray(total / count)


def _windows(spec: ConvSpec, count: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Index]]:
    """Each tap, with the index of the `count` elements that it meets."""
    for tap in np.ndindex(*spec.kernel):
        starts = [t * d for t, d in zip(tap, spec.dilation, strict=True)]
        meets = zip(starts, count, spec.stride, strict=True)
        yield tap, (..., *(slice(start, start + (n - 1) * stride + 1, stride) for start, n, stride in meets))


def _grouped(x: Array, groups: int) -> Array:
    """N x C x spatial as N x G x C/G x positions."""
    return x.reshape(len(x), groups, x.shape[1] // groups, int(np.prod(x.shape[2:])))


def _by_tap(weight: Array, groups: int) -> Array:
    """A weight A x B x kernel as kernel x G x A/G x B, contiguous for each tap, which the fast product needs."""
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return np.ascontiguousarray(np.moveaxis(split, (0, 1, 2), (-3, -2, -1)))


def _array(name: str, value: ArrayLike) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ConvwrightError(f"the {name} must hold real numbers, got {array.dtype}")
    return array.astype(np.float64)


def _bias(bias: ArrayLike | None, spec: ConvSpec) -> Array | float:
    if (bias is not None) != spec.bias:
        raise ConvwrightError(f"the spec says bias={spec.bias}, got {'no' if bias is None else 'a'} bias")
    if bias is None:
        return 0.0
    values = _array("bias", bias)
    if values.shape != (spec.out_channels,):
        raise ConvwrightError(f"the bias must have shape {(spec.out_channels,)}, got {values.shape}")
    return values.reshape(-1, *(1,) * spec.rank)


def _pool(
    x: Array, kernel: tuple[int, ...], stride: AxesLike | None, padding: PaddingLike, dilation: AxesLike
) -> ConvSpec:
    spec = ConvSpec(1, 1, kernel, stride=kernel if stride is None else stride, padding=padding, dilation=dilation)
    if x.ndim < spec.rank:
        raise ConvwrightError(f"pooling with kernel {spec.kernel} needs {spec.rank} spatial axes, got shape {x.shape}")
    for span, pair in zip(spec.effective_kernel, spec.pads(x.shape[-spec.rank :]), strict=True):
        if max(pair) >= span:
            raise ConvwrightError(
                f"pooling with kernel {spec.kernel} and padding {padding} has windows of padding only"
            )
    return spec


def _pool_size(spec: ConvSpec, size: tuple[int, ...], ceil_mode: bool) -> tuple[Pads, tuple[int, ...]]:
    """The output size, and the padding with what `ceil_mode` reads beyond it."""
    pads = spec.pads(size)
    if not ceil_mode:
        return pads, spec.output_size(size)
    up = tuple((low, high + stride - 1) for (low, high), stride in zip(pads, spec.stride, strict=True))
    outputs, reach = [], []
    for axis, count in enumerate(replace(spec, padding=up).output_size(size)):
        (low, high), stride = pads[axis], spec.stride[axis]
        count -= (count - 1) * stride >= size[axis] + low
        outputs.append(count)
        reach.append((low, max(high, (count - 1) * stride + spec.effective_kernel[axis] - size[axis] - low)))
    return tuple(reach), tuple(outputs)


def _pad(x: Array, pads: Pads, value: float) -> Array:
    return np.pad(x, ((0, 0),) * (x.ndim - len(pads)) + pads, constant_values=value)
