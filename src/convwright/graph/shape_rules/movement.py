"""Operators that move elements: reshapes, slices, concatenations, resizes."""

from __future__ import annotations

import math

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import Node, ValueInfo
from convwright.graph.shape_rules.scope import Rule, Scope, Shape, axis_of, broadcast

_INT64 = np.dtype(np.int64)


def _reshape(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    target = scope.integers(node, 1, "target shape")
    keep_zeros = bool(node.get("allowzero", 0))
    result = []
    for axis, size in enumerate(target):
        if size == 0 and not keep_zeros:
            if axis >= len(shape):
                raise ConvwrightError(f"{node}: cannot reshape {shape} to {target}: no axis {axis} to copy")
            size = shape[axis]
        result.append(size)
    total = math.prod(shape)
    if result.count(-1) == 1:
        rest = -math.prod(result)
        if rest <= 0 or total % rest:
            raise ConvwrightError(f"{node}: cannot reshape {shape} to {target}")
        result[result.index(-1)] = total // rest
    elif math.prod(result) != total or min(result, default=0) < 0:
        raise ConvwrightError(f"{node}: cannot reshape {shape} to {target}")
    return [ValueInfo(info.dtype, tuple(result))]


def _flatten(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    axis = node.get("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        raise ConvwrightError(f"{node}: axis {axis} is out of range for shape {shape}")
    if axis < 0:
        axis += len(shape)
    return [ValueInfo(info.dtype, (math.prod(shape[:axis]), math.prod(shape[axis:])))]


def _transpose(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    order = node.get("perm") or tuple(range(len(shape)))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise ConvwrightError(f"{node}: perm {list(order)} for shape {shape}")
    return [ValueInfo(info.dtype, tuple(shape[axis] for axis in order))]


def _squeeze(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    if node.input(1):
        axes = {axis_of(node, axis, len(shape)) for axis in scope.integers(node, 1, "axes")}
    else:
        axes = {axis for axis, size in enumerate(shape) if size == 1}
    if any(shape[axis] != 1 for axis in axes):
        raise ConvwrightError(f"{node}: cannot squeeze axes {sorted(axes)} of shape {shape}")
    return [ValueInfo(info.dtype, tuple(size for axis, size in enumerate(shape) if axis not in axes))]


def _unsqueeze(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    given = scope.integers(node, 1, "axes")
    rank = len(shape) + len(given)
    axes = {axis_of(node, axis, rank) for axis in given}
    if len(axes) != len(given):
        raise ConvwrightError(f"{node}: axes {given} name an axis twice")
    rest = iter(shape)
    return [ValueInfo(info.dtype, tuple(1 if axis in axes else next(rest) for axis in range(rank)))]


def _concat(scope: Scope, node: Node) -> list[ValueInfo]:
    first = scope.info(node, 0)
    axis = axis_of(node, node.get("axis", 0), first.rank)
    rest = (*first.shape[:axis], *first.shape[axis + 1 :])
    total = 0
    for index in range(len(node.inputs)):
        info, shape = scope.info(node, index), scope.shape(node, index)
        if len(shape) != first.rank or (*shape[:axis], *shape[axis + 1 :]) != rest:
            raise ConvwrightError(f"{node}: cannot concatenate {first.shape} and {shape} along axis {axis}")
        if info.dtype != first.dtype:
            raise ConvwrightError(f"{node}: element types {first.dtype} and {info.dtype} differ")
        total += shape[axis]
    return [ValueInfo(first.dtype, (*first.shape[:axis], total, *first.shape[axis + 1 :]))]


def slice_ranges(scope: Scope, node: Node) -> list[tuple[int, int, int]]:
    """(start, stop, step) of each axis, as Python's `slice.indices` normalises them."""
    shape = scope.shape(node, 0)
    starts, ends = scope.integers(node, 1, "starts"), scope.integers(node, 2, "ends")
    axes = scope.integers(node, 3, "axes") if node.input(3) else list(range(len(starts)))
    steps = scope.integers(node, 4, "steps") if node.input(4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ConvwrightError(f"{node}: starts {starts}, ends {ends}, axes {axes}, steps {steps}")
    ranges = [(0, size, 1) for size in shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis_of(node, axis, len(shape))
        ranges[place] = slice(start, end, step).indices(shape[place])
    return ranges


def _slice(scope: Scope, node: Node) -> list[ValueInfo]:
    info = scope.info(node, 0)
    return [ValueInfo(info.dtype, tuple(len(range(*given)) for given in slice_ranges(scope, node)))]


def split_sizes(scope: Scope, node: Node) -> list[int]:
    """Sizes of the parts of a Split along its axis."""
    shape = scope.shape(node, 0)
    length = shape[axis_of(node, node.get("axis", 0), len(shape))]
    if node.input(1):
        sizes = scope.integers(node, 1, "sizes")
        if sum(sizes) != length or min(sizes, default=0) < 0 or len(sizes) != len(node.outputs):
            raise ConvwrightError(f"{node}: cannot split {length} into {sizes} for {len(node.outputs)} outputs")
        return sizes
    parts = node.get("num_outputs", len(node.outputs))
    if parts != len(node.outputs):
        raise ConvwrightError(f"{node}: num_outputs is {parts}, it has {len(node.outputs)} outputs")
    part = -(-length // parts)
    sizes = [part] * (parts - 1) + [length - part * (parts - 1)]
    if sizes[-1] < 0:
        raise ConvwrightError(f"{node}: cannot split {length} into {parts}")
    return sizes


def _split(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    axis = axis_of(node, node.get("axis", 0), len(shape))
    return [ValueInfo(info.dtype, (*shape[:axis], size, *shape[axis + 1 :])) for size in split_sizes(scope, node)]


def pad_widths(scope: Scope, node: Node) -> list[tuple[int, int]]:
    """(low, high) of each axis of a Pad."""
    shape = scope.shape(node, 0)
    pads = scope.integers(node, 1, "pads")
    axes = scope.integers(node, 3, "axes") if node.input(3) else list(range(len(shape)))
    if len(pads) != 2 * len(axes):
        raise ConvwrightError(f"{node}: {len(pads)} pads for {len(axes)} axes")
    widths = [(0, 0)] * len(shape)
    for index, axis in enumerate(axes):
        widths[axis_of(node, axis, len(shape))] = pads[index], pads[index + len(axes)]
    return widths


def _pad(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    widths = pad_widths(scope, node)
    result = tuple(size + low + high for size, (low, high) in zip(shape, widths, strict=True))
    if min(result, default=0) < 0:
        raise ConvwrightError(f"{node}: pads {widths} leave nothing of shape {shape}")
    mode = node.get("mode", "constant")
    if mode == "reflect" and any(max(pads) >= max(size, 1) for pads, size in zip(widths, shape, strict=True)):
        raise ConvwrightError(f"{node}: reflecting {widths} needs more than shape {shape} has")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise ConvwrightError(f"{node}: mode {mode!r}")
    return [ValueInfo(info.dtype, result)]


def _resize(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    axes = [axis_of(node, axis, len(shape)) for axis in node.get("axes") or range(len(shape))]
    result = list(shape)
    scales = scope.content(node, 2, "scales") if node.input(2) else None
    if scales is not None and scales.size:
        if scales.size != len(axes) or not (np.isfinite(scales) & (scales > 0)).all():
            raise ConvwrightError(f"{node}: scales {scales.tolist()} for shape {shape}")
        for axis, scale in zip(axes, scales.reshape(-1).tolist(), strict=True):
            # Scales are float32: 299 * 1.0033445 must floor as the exporter meant it.
            result[axis] = math.floor(float(np.float32(shape[axis])) * scale)
    else:
        sizes = scope.integers(node, 3, "sizes")
        if len(sizes) != len(axes) or min(sizes, default=1) < 1:
            raise ConvwrightError(f"{node}: sizes {sizes} for shape {shape}")
        policy = node.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            pick = min if policy == "not_larger" else max
            ratio = pick(size / shape[axis] for axis, size in zip(axes, sizes, strict=True))
            sizes = [math.floor(shape[axis] * ratio + 0.5) for axis in axes]
        for axis, size in zip(axes, sizes, strict=True):
            result[axis] = size
    return [ValueInfo(info.dtype, tuple(result))]


def _expand(scope: Scope, node: Node) -> list[ValueInfo]:
    target = tuple(scope.integers(node, 1, "target shape"))
    return [ValueInfo(scope.info(node, 0).dtype, broadcast(node, scope.shape(node, 0), target))]


def _tile(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    repeats = scope.integers(node, 1, "repeats")
    if len(repeats) != len(shape) or min(repeats, default=0) < 0:
        raise ConvwrightError(f"{node}: repeats {repeats} for shape {shape}")
    return [ValueInfo(info.dtype, tuple(size * times for size, times in zip(shape, repeats, strict=True)))]


def _block(scope: Scope, node: Node) -> tuple[Shape, int]:
    shape, block = scope.shape(node, 0), node.get("blocksize", 0)
    if len(shape) != 4 or block < 1:
        raise ConvwrightError(f"{node}: input of shape {shape} and blocksize {block}")
    return shape, block


def _depth_to_space(scope: Scope, node: Node) -> list[ValueInfo]:
    shape, block = _block(scope, node)
    if shape[1] % (block * block):
        raise ConvwrightError(f"{node}: {shape[1]} channels are not a multiple of blocksize {block} squared")
    result = (shape[0], shape[1] // (block * block), shape[2] * block, shape[3] * block)
    return [ValueInfo(scope.info(node, 0).dtype, result)]


def _space_to_depth(scope: Scope, node: Node) -> list[ValueInfo]:
    shape, block = _block(scope, node)
    if shape[2] % block or shape[3] % block:
        raise ConvwrightError(f"{node}: spatial size {shape[2:]} is not a multiple of blocksize {block}")
    result = (shape[0], shape[1] * block * block, shape[2] // block, shape[3] // block)
    return [ValueInfo(scope.info(node, 0).dtype, result)]


def _channel_shuffle(scope: Scope, node: Node) -> list[ValueInfo]:
    shape, groups = scope.shape(node, 0), node.get("groups", 1)
    if len(shape) < 2 or groups < 1 or shape[1] % groups:
        raise ConvwrightError(f"{node}: input of shape {shape} and {groups} groups")
    return [scope.info(node, 0)]


def _shape(scope: Scope, node: Node) -> list[ValueInfo]:
    shape = scope.shape(node, 0)
    part = shape[slice(node.get("start", 0), node.get("end"))]
    scope.constants[node.outputs[0]] = np.array(part, np.int64)
    return [ValueInfo(_INT64, (len(part),))]


def _size(scope: Scope, node: Node) -> list[ValueInfo]:
    scope.constants[node.outputs[0]] = np.array(math.prod(scope.shape(node, 0)), np.int64)
    return [ValueInfo(_INT64, ())]


def _gather(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape, indices = scope.info(node, 0), scope.shape(node, 0), scope.shape(node, 1)
    axis = axis_of(node, node.get("axis", 0), len(shape))
    return [ValueInfo(info.dtype, (*shape[:axis], *indices, *shape[axis + 1 :]))]


def _constant_of_shape(scope: Scope, node: Node) -> list[ValueInfo]:
    target = scope.integers(node, 0, "shape")
    if min(target, default=0) < 0:
        raise ConvwrightError(f"{node}: shape {target} is negative")
    value = node.get("value")
    return [ValueInfo(np.dtype(np.float32) if value is None else value.dtype, tuple(target))]


def _range(scope: Scope, node: Node) -> list[ValueInfo]:
    start, limit, delta = (scope.content(node, index, "range").item() for index in range(3))
    if not delta:
        raise ConvwrightError(f"{node}: a range from {start} to {limit} in steps of 0")
    return [ValueInfo(scope.info(node, 0).dtype, (max(math.ceil((limit - start) / delta), 0),))]


RULES: dict[str, Rule] = {
    "ChannelShuffle": _channel_shuffle,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
