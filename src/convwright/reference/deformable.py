"""Deformable convolution: every tap samples where an offset moves it, between elements by bilinear interpolation."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convwright.errors import ConvwrightError
from convwright.reference.windows import Array, by_channel_group, by_tap, in_batch, real, real_bias
from convwright.spec import DeformableSpec


@np.errstate(invalid="ignore", over="ignore")
def deform_conv(
    x: ArrayLike,
    offset: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    spec: DeformableSpec,
    mask: ArrayLike | None = None,
) -> Array:
    """The deformable convolution that `spec` describes (arXiv 1703.06211, equation 2; 1811.11168, equation 1).

    - `x`: N x C x H x W, or C x H x W.
    - `offset`: `spec.offset_shape`, rows before columns for each tap; without a batch where `x` has none.
    - `weight`: `spec.weight_shape`.
    - `bias`: K values, or None where `spec.conv.bias` is False.
    - `mask`: `spec.mask_shape` where `spec.modulated`, otherwise None.

    Returns N x K x Ho x Wo, or K x Ho x Wo. An offset of NaN gives NaN; places outside the input, infinitely far ones
    too, hold zero. Raises `ConvwrightError` for shapes that do not fit the spec.

    >>> from convwright.spec import ConvSpec
    >>> spec = DeformableSpec(ConvSpec(1, 1, (1, 1), bias=False))
    >>> deform_conv([[[1, 2, 4]]], [[[0, 0, 0.5]], [[0.5, 1, 0]]], [[[[1]]]], None, spec)
    array([[[1.5, 4. , 2. ]]])
    """
    conv, x = spec.conv, real("input", x)
    shape = conv.output_shape(x.shape)
    lead, size, outputs = x.shape[:-3], x.shape[-2:], shape[-2:]
    offset = real("offset", offset, (*lead, *spec.offset_shape(size)[1:]))
    kernels = by_tap(real("weight", weight, spec.weight_shape), conv.groups)
    if (mask is not None) != spec.modulated:
        raise ConvwrightError(f"the spec says modulated={spec.modulated}, got {'no' if mask is None else 'a'} mask")
    scale = None if mask is None else real("mask", mask, (*lead, *spec.mask_shape(size)[1:]))

    batch = in_batch(x, 2)
    count, groups = len(batch), spec.offset_groups
    moved = offset.reshape(count, groups, *conv.kernel, 2, *outputs)
    scales = None if scale is None else scale.reshape(count, groups, *conv.kernel, *outputs)
    in_groups = batch.reshape(count, groups, conv.in_channels // groups, *size)
    total = np.zeros((count, conv.groups, conv.out_channels // conv.groups, int(np.prod(outputs))))
    for tap in np.ndindex(*conv.kernel):
        # Where the tap meets the input without an offset, on each axis.
        rows, columns = (
            np.arange(n) * stride + t * dilation - low
            for n, stride, t, dilation, (low, _) in zip(
                outputs, conv.stride, tap, conv.dilation, conv.pads(size), strict=True
            )
        )
        here = moved[:, :, *tap]
        samples = bilinear(in_groups, rows[:, None] + here[:, :, 0], columns + here[:, :, 1])
        if scales is not None:
            samples = samples * scales[:, :, *tap][:, :, None]
        total += kernels[tap] @ by_channel_group(samples.reshape(count, conv.in_channels, *outputs), conv.groups)
    return total.reshape(shape) + real_bias(bias, conv)


def bilinear(x: Array, row: Array, column: Array) -> Array:
    """N x G x C x H x W sampled for every channel at the places of its group, N x G x positions; zero outside.

    The four elements around a place count by their nearness, `(1 - |dy|) * (1 - |dx|)`. What lies a whole element or
    more outside is zero whatever the input holds.
    """
    height, width = x.shape[-2:]
    top, left = np.floor(row), np.floor(column)
    total = np.zeros((*x.shape[:3], *row.shape[2:]))
    for y in (top, top + 1):
        for z in (left, left + 1):
            nearness = (1 - np.abs(row - y)) * (1 - np.abs(column - z))
            inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
            corner = np.where(inside[:, :, None], _at(x, np.where(inside, y, 0), np.where(inside, z, 0)), 0)
            total += nearness[:, :, None] * corner
    outside = (row <= -1) | (row >= height) | (column <= -1) | (column >= width)
    return np.where(outside[:, :, None], 0.0, total)


def _at(x: Array, row: NDArray[np.float64], column: NDArray[np.float64]) -> Array:
    """The elements of every channel at whole places."""
    batch, group = (
        np.arange(n).reshape(shape) for n, shape in zip(x.shape[:2], ((-1, 1, 1, 1), (-1, 1, 1)), strict=True)
    )
    found = x[batch, group, :, row.astype(np.int64), column.astype(np.int64)]  # N x G x positions x C
    return np.moveaxis(found, -1, 2)
