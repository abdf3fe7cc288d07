"""Operators that slide a window: convolutions and pools. Formulas of https://onnx.ai/onnx/operators."""

from __future__ import annotations

from math import prod

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import Node, ValueInfo
from convwright.graph.shape_rules.scope import Rule, Scope, Shape


def axis_list(node: Node, name: str, rank: int, default: int) -> tuple[int, ...]:
    """An attribute with one number a spatial axis."""
    given = node.attributes.get(name)
    if given is None:
        return (default,) * rank
    if len(given) != rank:
        raise ConvwrightError(f"{node}: {name} {list(given)} for {rank} spatial axes")
    if min(given) < 1:
        raise ConvwrightError(f"{node}: {name} {list(given)} must be positive")
    return tuple(given)


def window_padding(
    node: Node, size: Shape, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> list[tuple[int, int]]:
    """(low, high) padding of each spatial axis, from `pads` or `auto_pad`."""
    rank = len(size)
    auto = node.attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        result = []
        for length, taps, step, gap in zip(size, kernel, stride, dilation, strict=True):
            total = max((-(-length // step) - 1) * step + (taps - 1) * gap + 1 - length, 0)
            small, large = total // 2, total - total // 2
            result.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return result
    if auto not in ("NOTSET", "VALID", ""):
        raise ConvwrightError(f"{node}: auto_pad is {auto!r}")
    pads = node.attributes.get("pads")
    if pads is None or auto == "VALID":
        return [(0, 0)] * rank
    if len(pads) != 2 * rank:
        raise ConvwrightError(f"{node}: pads {list(pads)} for {rank} spatial axes")
    return [(pads[axis], pads[axis + rank]) for axis in range(rank)]


def _slide(
    node: Node, size: Shape, kernel: tuple[int, ...], dilation: tuple[int, ...], *, ceil_mode: bool = False
) -> Shape:
    """Output size of a window sliding over `size`."""
    stride = axis_list(node, "strides", len(size), 1)
    result = []
    for axis, (low, high) in enumerate(window_padding(node, size, kernel, stride, dilation)):
        length, step = size[axis], stride[axis]
        span = (kernel[axis] - 1) * dilation[axis] + 1
        free = length + low + high - span
        if free < 0:
            raise ConvwrightError(
                f"{node}: a kernel spanning {span} does not fit axis {axis} of size {length} padded by {low} and {high}"
            )
        out = free // step + 1
        # The last window of a pool that rounds up has to start inside the input or its left padding.
        if ceil_mode and free % step and out * step < length + low:
            out += 1
        result.append(out)
    return tuple(result)


def _conv(scope: Scope, node: Node) -> list[ValueInfo]:
    shape = _convolved(scope, node, 1)
    _check_bias(scope, node, shape[1], 2)
    return [ValueInfo(scope.info(node, 0).dtype, shape)]


def _conv_integer(scope: Scope, node: Node) -> list[ValueInfo]:
    shape = _convolved(scope, node, 1)
    _check_zero_points(scope, node, 2, (3, shape[1]))
    return [ValueInfo(np.dtype(np.int32), shape)]


def _qlinear_conv(scope: Scope, node: Node) -> list[ValueInfo]:
    shape = _convolved(scope, node, 3)
    _check_zero_points(scope, node, 2, (5, shape[1]))
    _check_bias(scope, node, shape[1], 8)
    return [ValueInfo(scope.info(node, 7).dtype, shape)]


def _check_zero_points(scope: Scope, node: Node, of_input: int, of_weights: tuple[int, int]) -> None:
    """One value for the input; one, or one an output channel, for the weights."""
    place, channels = of_weights
    for index, allowed in ((of_input, ((), (1,))), (place, ((), (1,), (channels,)))):
        name = node.input(index)
        if name and scope.values[name].shape not in allowed:
            raise ConvwrightError(f"{node}: zero point of shape {scope.values[name].shape}, allowed are {allowed}")


def _convolved(scope: Scope, node: Node, place: int) -> Shape:
    """Shape of a convolution's output; ``place``: which input the weights are."""
    info, weights = scope.info(node, 0), scope.shape(node, place)
    shape: Shape = info.shape  # type: ignore[assignment]
    rank = len(shape) - 2
    if rank < 1 or len(weights) != rank + 2:
        raise ConvwrightError(f"{node}: input of shape {shape} with weights of shape {weights}")
    groups = node.get("group", 1)
    if groups < 1 or shape[1] != weights[1] * groups or weights[0] % groups:
        raise ConvwrightError(
            f"{node}: input of {shape[1]} channels, weights of shape {weights}, {groups} groups: the weights need "
            f"{weights[1] * groups} input channels, and output channels that the groups divide"
        )
    kernel = _kernel(node, weights[2:])
    size = _slide(node, shape[2:], kernel, axis_list(node, "dilations", rank, 1))
    return (shape[0], weights[0], *size)


def _deform_conv(scope: Scope, node: Node) -> list[ValueInfo]:
    """Offsets have two planes, and a mask has one, for each tap of each offset group."""
    result = _convolved(scope, node, 1)
    _check_bias(scope, node, result[1], 3)
    channels, groups = scope.shape(node, 0)[1], node.get("offset_group", 1)
    if groups < 1 or channels % groups:
        raise ConvwrightError(f"{node}: {channels} input channels in {groups} offset groups")
    rank, planes = len(result) - 2, groups * prod(scope.shape(node, 1)[2:])
    for place, what, wanted in ((2, "offsets", rank * planes), (4, "mask", planes)):
        shape = (result[0], wanted, *result[2:])
        if (place == 2 or node.input(place)) and scope.shape(node, place) != shape:
            raise ConvwrightError(f"{node}: {what} of shape {scope.shape(node, place)}, it needs {shape}")
    return [ValueInfo(scope.info(node, 0).dtype, result)]


def _conv_transpose(scope: Scope, node: Node) -> list[ValueInfo]:
    info, weights = scope.info(node, 0), scope.shape(node, 1)
    shape: Shape = info.shape  # type: ignore[assignment]
    rank = len(shape) - 2
    if rank < 1 or len(weights) != rank + 2:
        raise ConvwrightError(f"{node}: input of shape {shape} with weights of shape {weights}")
    groups = node.get("group", 1)
    if groups < 1 or shape[1] != weights[0] or weights[0] % groups:
        raise ConvwrightError(
            f"{node}: input of {shape[1]} channels, weights of shape {weights}, {groups} groups: the weights need "
            f"{weights[0]} input channels, which the groups divide"
        )
    _check_bias(scope, node, weights[1] * groups, 2)
    _kernel(node, weights[2:])
    padding = transpose_padding(node, shape[2:], weights[2:])
    stride = axis_list(node, "strides", rank, 1)
    dilation = axis_list(node, "dilations", rank, 1)
    extra = node.get("output_padding") or (0,) * rank
    size = []
    for axis, (low, high) in enumerate(padding):
        span = (weights[2 + axis] - 1) * dilation[axis] + 1
        out = stride[axis] * (shape[2 + axis] - 1) + extra[axis] + span - low - high
        if out < 1:
            raise ConvwrightError(f"{node}: output size {out} in axis {axis}")
        size.append(out)
    return [ValueInfo(info.dtype, (shape[0], weights[1] * groups, *size))]


def transpose_padding(node: Node, size: Shape, kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """(low, high) padding of a ConvTranspose, from `pads`, `auto_pad` or `output_shape`."""
    rank = len(size)
    stride = axis_list(node, "strides", rank, 1)
    dilation = axis_list(node, "dilations", rank, 1)
    extra = node.get("output_padding") or (0,) * rank
    if len(extra) != rank:
        raise ConvwrightError(f"{node}: output_padding {list(extra)} for {rank} spatial axes")
    auto = node.attributes.get("auto_pad", "NOTSET")
    wanted = node.attributes.get("output_shape")
    if wanted is None and auto not in ("SAME_UPPER", "SAME_LOWER"):
        return window_padding(node, size, kernel, stride, dilation)
    if wanted is None:
        wanted = tuple(length * step for length, step in zip(size, stride, strict=True))
    if len(wanted) != rank:
        raise ConvwrightError(f"{node}: output_shape {list(wanted)} for {rank} spatial axes")
    result = []
    for axis in range(rank):
        span = (kernel[axis] - 1) * dilation[axis] + 1
        total = stride[axis] * (size[axis] - 1) + extra[axis] + span - wanted[axis]
        if total < 0:
            # More is wanted than the products reach: the rest, at the end, sees no input.
            result.append((0, total))
            continue
        small, large = total // 2, total - total // 2
        # The specification's formula puts the larger part last only for SAME_UPPER.
        result.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return result


def _kernel(node: Node, of_weights: Shape) -> Shape:
    given = node.attributes.get("kernel_shape")
    if given is not None and tuple(given) != of_weights:
        raise ConvwrightError(f"{node}: kernel_shape {list(given)} with weights whose kernel is {list(of_weights)}")
    if min(of_weights) < 1:
        raise ConvwrightError(f"{node}: kernel of size {list(of_weights)}")
    return of_weights


def _check_bias(scope: Scope, node: Node, channels: int, place: int) -> None:
    name = node.input(place)
    if name and scope.values[name].shape != (channels,):
        raise ConvwrightError(f"{node}: bias of shape {scope.values[name].shape} for {channels} output channels")


def _pool(scope: Scope, node: Node) -> list[ValueInfo]:
    info = scope.info(node, 0)
    shape: Shape = info.shape  # type: ignore[assignment]
    rank = len(shape) - 2
    if rank < 1:
        raise ConvwrightError(f"{node}: input of shape {shape} has no spatial axes")
    if "kernel_shape" not in node.attributes:
        raise ConvwrightError(f"{node} has no kernel_shape")
    kernel = axis_list(node, "kernel_shape", rank, 1)
    dilation = axis_list(node, "dilations", rank, 1)
    size = _slide(node, shape[2:], kernel, dilation, ceil_mode=bool(node.get("ceil_mode", 0)))
    result = ValueInfo(info.dtype, (*shape[:2], *size))
    return [result, ValueInfo(np.dtype(np.int64), result.shape)]


def _global_pool(scope: Scope, node: Node) -> list[ValueInfo]:
    info = scope.info(node, 0)
    if len(info.shape) < 3:
        raise ConvwrightError(f"{node}: input of shape {info.shape} has no spatial axes")
    return [ValueInfo(info.dtype, (*info.shape[:2], *(1,) * (len(info.shape) - 2)))]


def _convolution(scope: Scope, node: Node) -> list[ValueInfo]:
    """Internal: the `ConvSpec` stands in the attribute `spec`."""
    info = scope.info(node, 0)
    spec = node.attributes["spec"]
    weights = scope.shape(node, 1)
    if weights != spec.weight_shape:
        raise ConvwrightError(f"{node}: weights of shape {weights}, the convolution needs {spec.weight_shape}")
    _check_bias(scope, node, spec.out_channels, 2)
    return [ValueInfo(info.dtype, spec.output_shape(info.shape))]


def _het_convolution(scope: Scope, node: Node) -> list[ValueInfo]:
    """Internal: a `HetSpec` in the attribute `spec`; the weights are dense."""
    info = scope.info(node, 0)
    spec = node.attributes["spec"]
    if scope.shape(node, 1) != spec.weight_shape:
        raise ConvwrightError(f"{node}: weights of shape {scope.shape(node, 1)}, it needs {spec.weight_shape}")
    _check_bias(scope, node, spec.conv.out_channels, 2)
    return [ValueInfo(info.dtype, spec.conv.output_shape(info.shape))]


def _mix_convolution(scope: Scope, node: Node) -> list[ValueInfo]:
    """Internal: the `ConvSpec` of each part in the attribute `parts`; inputs are x, the weights, then the biases."""
    info, parts = scope.info(node, 0), node.attributes["parts"]
    shape: Shape = info.shape  # type: ignore[assignment]
    if sum(part.in_channels for part in parts) != shape[1]:
        raise ConvwrightError(
            f"{node}: input of shape {shape}, parts of {[part.in_channels for part in parts]} channels"
        )
    sizes = []
    for place, part in enumerate(parts):
        if scope.shape(node, 1 + place) != part.weight_shape:
            raise ConvwrightError(f"{node}: weights of shape {scope.shape(node, 1 + place)}, not {part.weight_shape}")
        _check_bias(scope, node, part.out_channels, 1 + len(parts) + place)
        sizes.append(part.output_size(shape[2:]))
    if any(size != sizes[0] for size in sizes):
        raise ConvwrightError(f"{node}: parts give outputs of sizes {sizes}")
    return [ValueInfo(info.dtype, (shape[0], sum(part.out_channels for part in parts), *sizes[0]))]


RULES: dict[str, Rule] = {
    "Conv": _conv,
    "Convolution": _convolution,
    "HetConvolution": _het_convolution,
    "MixConvolution": _mix_convolution,
    "ConvInteger": _conv_integer,
    "QLinearConv": _qlinear_conv,
    "ConvTranspose": _conv_transpose,
    "DeformConv": _deform_conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "GlobalLpPool": _global_pool,
}
