"""ONNX's convolutions in PyTorch's operators: Conv, ConvTranspose, DeformConv, ConvInteger, QLinearConv.

In float64 they are an oracle, in float32 a peer whose times are read: there the fastest form that PyTorch documents.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module

import torch
from torch import Tensor
from torch.nn import functional as F

from convwright.torch.step import NotAlike, Step, padded, pads


def conv(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    low, high = pads(step, x, weight.shape[2:])
    if low != high:
        x, low = padded(x, low, high), [0] * rank
    strides, dilations, groups = step.axes("strides", rank), step.axes("dilations", rank), _groups(step)
    if rank == 1 and step.channels_last:
        image, kernel = _as_image(step, x, weight)
        y = F.conv2d(image, kernel, bias, [1, *strides], [0, *low], [1, *dilations], groups)
        return y.squeeze(2)
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return convolve(x, weight, bias, strides, low, dilations, groups)


def conv_transpose(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if "output_shape" in step.attributes or step.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotAlike
    low, high = pads(step, x, weight.shape[2:])
    if low != high:
        # What the ends have in common is left away by PyTorch, the rest here.
        common = [min(ends) for ends in zip(low, high, strict=True)]
        y = _conv_transpose(step, x, weight, bias, common)
        for axis, (first, last, both) in enumerate(zip(low, high, common, strict=True), 2):
            y = y.narrow(axis, first - both, y.shape[axis] - first - last + 2 * both)
        return y
    return _conv_transpose(step, x, weight, bias, low)


def _conv_transpose(step: Step, x: Tensor, weight: Tensor, bias: Tensor | None, low: Sequence[int]) -> Tensor:
    """With the same padding at both ends of an axis."""
    rank = x.dim() - 2
    strides, dilations, groups = step.axes("strides", rank), step.axes("dilations", rank), _groups(step)
    extra = step.axes("output_padding", rank, 0)
    if rank == 1 and step.channels_last:
        image, kernel = _as_image(step, x, weight)
        y = F.conv_transpose2d(image, kernel, bias, [1, *strides], [0, *low], [0, *extra], groups, [1, *dilations])
        return y.squeeze(2)
    convolve: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    return convolve(x, weight, bias, strides, low, extra, groups, dilations)


def _groups(step: Step) -> int:
    groups: int = step.attributes.get("group", 1)
    return groups


def _as_image(step: Step, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """N x C x W and its weight as images of one row, channels last: sequences have no such layout of their own."""
    kernel: Tensor | None = step.kept.get("kernel")
    if kernel is None:
        kernel = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        if step.fixed:
            step.kept["kernel"] = kernel
    return x.unsqueeze(2).contiguous(memory_format=torch.channels_last), kernel


# -- deformable --------------------------------------------------------------------------------------------------------


def deform_conv(
    step: Step, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """torchvision's operator in float32 where it is installed; else bilinear sampling, then a product."""
    low, high = pads(step, x, weight.shape[2:])
    strides, dilations = step.axes("strides", 2), step.axes("dilations", 2)
    operator = _torchvision() if step.dtype == torch.float32 and low == high else None
    if operator is not None:
        return operator(x, offset, weight, bias, strides, low, dilations, mask)
    batch, channels, height, width = x.shape
    filters, _, *kernel = weight.shape
    taps, (rows, cols) = kernel[0] * kernel[1], offset.shape[2:]
    parts, groups = step.attributes.get("offset_group", 1), _groups(step)
    shifts = offset.reshape(batch, parts, taps, 2, rows, cols)
    grid = torch.empty(batch, parts, taps, rows, cols, 2, dtype=x.dtype)  # (x, y), -1 and 1 the image's borders
    for axis, (size, count) in enumerate(((height, rows), (width, cols))):
        tap = torch.arange(kernel[axis], dtype=x.dtype) * dilations[axis] - low[axis]
        tap = tap.repeat_interleave(kernel[1]) if axis == 0 else tap.repeat(kernel[0])
        start = torch.arange(count, dtype=x.dtype) * strides[axis]
        start = start.reshape(-1, 1) if axis == 0 else start
        grid[..., 1 - axis] = (shifts[:, :, :, axis] + tap.reshape(-1, 1, 1) + start) * (2 / size) + (1 / size - 1)
    images = x.contiguous().reshape(batch * parts, channels // parts, height, width)
    samples = F.grid_sample(images, grid.reshape(batch * parts, taps * rows, cols, 2), align_corners=False)
    columns = samples.reshape(batch, parts, channels // parts, taps, rows, cols)
    if mask is not None:
        columns = columns * mask.reshape(batch, parts, 1, taps, rows, cols)
    columns = columns.reshape(batch, groups, channels // groups * taps, rows * cols)
    y = (weight.reshape(groups, filters // groups, -1) @ columns).reshape(batch, filters, rows, cols)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


@cache
def _torchvision() -> Callable[..., Tensor] | None:
    try:
        operator: Callable[..., Tensor] = import_module("torchvision.ops").deform_conv2d
    except (ImportError, AttributeError, RuntimeError):  # RuntimeError: compiled for another PyTorch
        return None
    return operator


# -- integers ----------------------------------------------------------------------------------------------------------


def conv_integer(
    step: Step, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """Exact in float64, whose 53 bits hold every 32-bit sum. PyTorch has no such operator, so a peer has none."""
    if step.dtype != torch.float64:
        raise NotAlike
    return _sums(step, x, weight, x_zero, w_zero).to(torch.int32)


def qlinear_conv(
    step: Step,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Sums in float64, rounded to even. As a peer, PyTorch's quantised operator has a runner of its own."""
    if step.dtype != torch.float64:
        raise NotAlike
    total = _sums(step, x, weight, x_zero, w_zero)
    across = (-1, *(1,) * (x.dim() - 2))
    if bias is not None:
        total = total + bias.double().reshape(across)
    scaled = total * (x_scale.double() * w_scale.double().reshape(-1) / y_scale.double()).reshape(across)
    limits = torch.iinfo(y_zero.dtype)
    return (torch.round(scaled) + y_zero.double()).clamp(limits.min, limits.max).to(y_zero.dtype)


def _sums(step: Step, x: Tensor, weight: Tensor, x_zero: Tensor | None, w_zero: Tensor | None) -> Tensor:
    wide, kernel = x.double(), weight.double()
    if x_zero is not None:
        wide = wide - x_zero.double()
    if w_zero is not None:
        kernel = kernel - w_zero.double().reshape(-1, *(1,) * (weight.dim() - 1))
    return conv(step, wide, kernel)
