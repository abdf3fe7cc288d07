"""Pooling: the largest value or the mean of each window."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from convwright.errors import ConvwrightError
from convwright.reference.windows import Array, real, windows
from convwright.spec import AxesLike, ConvSpec, PaddingLike, Pads


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
    x = real("input", x)
    spec, size = _pool(x, kernel, stride, padding, dilation), x.shape[-len(kernel) :]
    pads, outputs = _pool_size(spec, size, ceil_mode)
    padded = _pad(x, pads, -np.inf)
    total = np.full((*x.shape[: -spec.rank], *outputs), -np.inf)
    for _, window in windows(spec, outputs):
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
    x = real("input", x)
    spec, size = _pool(x, kernel, stride, padding, dilation), x.shape[-len(kernel) :]
    pads, outputs = _pool_size(spec, size, ceil_mode)
    counted = _pad(np.ones(size), spec.pads(size), float(count_include_pad))
    counted = _pad(counted, tuple((0, high - h) for (_, high), (_, h) in zip(pads, spec.pads(size), strict=True)), 0.0)
    padded = _pad(x, pads, 0.0)
    total, count = np.zeros((*x.shape[: -spec.rank], *outputs)), np.zeros(outputs)
    for _, window in windows(spec, outputs):
        total += padded[window]
        count += counted[window]
    return np.asarray(total / count)


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
