"""What all kinds share: where taps meet the input, and arrays that are checked once."""

from collections.abc import Iterator
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convwright.errors import ConvwrightError
from convwright.spec import ConvSpec

Array = NDArray[np.float64]
Index = tuple[slice | EllipsisType, ...]


def windows(spec: ConvSpec, count: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Index]]:
    """Each tap, with the index of the `count` elements that it meets."""
    for tap in np.ndindex(*spec.kernel):
        starts = [t * d for t, d in zip(tap, spec.dilation, strict=True)]
        meets = zip(starts, count, spec.stride, strict=True)
        yield tap, (..., *(slice(start, start + (n - 1) * stride + 1, stride) for start, n, stride in meets))


def by_channel_group(x: NDArray[Any], groups: int) -> NDArray[Any]:
    """N x C x spatial as N x G x C/G x positions."""
    return x.reshape(len(x), groups, x.shape[1] // groups, int(np.prod(x.shape[2:])))


def by_tap(weight: NDArray[Any], groups: int) -> NDArray[Any]:
    """A weight A x B x kernel as kernel x G x A/G x B, contiguous for each tap, which the fast product needs."""
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return np.ascontiguousarray(np.moveaxis(split, (0, 1, 2), (-3, -2, -1)))


def in_batch(x: NDArray[Any], rank: int) -> NDArray[Any]:
    """N x C x spatial; an input without a batch is a batch of one."""
    return x[None] if x.ndim == rank + 1 else x


def real(name: str, value: ArrayLike, shape: tuple[int, ...] | None = None) -> Array:
    """The value in float64. Raises `ConvwrightError` for other than real numbers, and for another shape."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ConvwrightError(f"the {name} must hold real numbers, got {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ConvwrightError(f"the {name} must have shape {shape}, got {array.shape}")
    return array.astype(np.float64)


def real_bias(bias: ArrayLike | None, spec: ConvSpec) -> Array | float:
    """The bias, ready to be added to the output: 0 where the spec has none."""
    if (bias is not None) != spec.bias:
        raise ConvwrightError(f"the spec says bias={spec.bias}, got {'no' if bias is None else 'a'} bias")
    if bias is None:
        return 0.0
    return real("bias", bias, (spec.out_channels,)).reshape(-1, *(1,) * spec.rank)
