"""Operators that move elements of plain arrays: transpose, slice, pad, concatenate, split, expand, space and depth.

Both sides are described as NumPy views of arrays that are never filled; a view's strides are the copy's arguments.
"""

from __future__ import annotations

import math

import numpy as np

from convwright.graph.shape_rules.movement import pad_widths, slice_ranges, split_sizes
from convwright.graph.shape_rules.scope import axis_of
from convwright.kernels import permute
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower.channels import scope_of
from convwright.model.values import Ref, Value


def can_lower(b: Builder, layer: Layer) -> bool:
    """Whether all tensors are of a size that the copy kernels move, and none is empty."""
    node = layer.node
    data = node.inputs if node.op == "Concat" else node.inputs[:1]
    names = [name for name in (*data, *node.outputs) if name]
    fine = all(b.types[name].dtype.itemsize in (4, 8) and 0 not in b.shape(name) for name in names)
    if node.op == "Pad":
        fine = fine and node.attributes.get("mode", "constant") == "constant"
        fine = fine and (not node.input(2) or b.constant(node.input(2)) is not None)
    return fine and all(len(b.shape(name)) <= permute.RANK for name in names)


def lower_transpose(b: Builder, layer: Layer) -> None:
    x = b.plain(layer.node.inputs[0])
    order = layer.node.attributes.get("perm", tuple(reversed(range(len(x.shape)))))
    y = b.new_plain(layer.output)
    copy_view(b, x, y, _ghost(x).transpose(order), _ghost(y))


def lower_slice(b: Builder, layer: Layer) -> None:
    x = b.plain(layer.node.inputs[0])
    ranges = slice_ranges(scope_of(b), layer.node)
    y = b.new_plain(layer.output)
    # A stop of -1 from slice.indices means "before the first element", which a subscript writes as None.
    places = tuple(slice(start, None if stop < 0 else stop, step) for start, stop, step in ranges)
    copy_view(b, x, y, _ghost(x)[places], _ghost(y))


def lower_pad(b: Builder, layer: Layer) -> None:
    node = layer.node
    x = b.plain(node.inputs[0])
    widths = pad_widths(scope_of(b), node)
    y = b.new_plain(layer.output)
    given = b.constant(node.input(2)) if node.input(2) else None
    value = y.dtype.type(0) if given is None or not given.size else y.dtype.type(given.reshape(-1)[0])
    arguments, items = permute.fill_arguments(value, int(np.prod(y.shape)))
    tile = permute.Fill()
    b.step(tile.name(b.target), permute, tile, {"y": y.ref, **arguments}, items, [], [y], "padding")
    # Negative widths crop.
    kept = tuple(slice(max(0, -low), size + min(0, high)) for (low, high), size in zip(widths, x.shape, strict=True))
    inside = tuple(slice(max(0, low), size - max(0, high)) for (low, high), size in zip(widths, y.shape, strict=True))
    source = _ghost(x)[kept]
    if source.size:
        copy_view(b, x, y, source, _ghost(y)[inside])


def lower_concat(b: Builder, layer: Layer) -> None:
    node = layer.node
    sources = [b.plain(name) for name in node.inputs]
    y = b.new_plain(layer.output)
    axis = axis_of(node, node.attributes["axis"], len(y.shape))
    ghost, start = _ghost(y), 0
    for x in sources:
        part = (slice(None),) * axis + (slice(start, start + x.shape[axis]),)
        copy_view(b, x, y, _ghost(x), ghost[part])
        start += x.shape[axis]


def lower_split(b: Builder, layer: Layer) -> None:
    node = layer.node
    x = b.plain(node.inputs[0])
    axis = axis_of(node, node.attributes.get("axis", 0), len(x.shape))
    ghost, start = _ghost(x), 0
    for name, size in zip(node.outputs, split_sizes(scope_of(b), node), strict=True):
        if name:
            y = b.new_plain(name)
            copy_view(b, x, y, ghost[(slice(None),) * axis + (slice(start, start + size),)], _ghost(y))
        start += size


def lower_expand(b: Builder, layer: Layer) -> None:
    x = b.plain(layer.node.inputs[0])
    y = b.new_plain(layer.output)
    copy_view(b, x, y, np.broadcast_to(_ghost(x), y.shape), _ghost(y))


def lower_depth_to_space(b: Builder, layer: Layer) -> None:
    """Channels (block, block, C) or, in mode CRD, (C, block, block) become block x block pixels."""
    node = layer.node
    x = b.plain(node.inputs[0])
    y = b.new_plain(layer.output)
    n, channels, high, wide = x.shape
    block = node.attributes["blocksize"]
    own = channels // (block * block)
    if node.attributes.get("mode", "DCR") == "DCR":
        view = _ghost(x).reshape(n, block, block, own, high, wide).transpose(0, 3, 4, 1, 5, 2)
    else:
        view = _ghost(x).reshape(n, own, block, block, high, wide).transpose(0, 1, 4, 2, 5, 3)
    copy_view(b, x, y, view, _ghost(y).reshape(n, own, high, block, wide, block))


def lower_space_to_depth(b: Builder, layer: Layer) -> None:
    node = layer.node
    x = b.plain(node.inputs[0])
    y = b.new_plain(layer.output)
    n, channels, high, wide = x.shape
    block = node.attributes["blocksize"]
    high, wide = high // block, wide // block
    view = _ghost(x).reshape(n, channels, high, block, wide, block).transpose(0, 3, 5, 1, 2, 4)
    copy_view(b, x, y, view, _ghost(y).reshape(n, block, block, channels, high, wide))


def lower_channel_shuffle(b: Builder, layer: Layer) -> None:
    """Channels (G, C/G) to (C/G, G), of what channel blocks do not hold."""
    node = layer.node
    x = b.plain(node.inputs[0])
    y = b.new_plain(layer.output)
    n, channels, *size = x.shape
    groups = node.attributes["groups"]
    view = _ghost(x).reshape(n, groups, channels // groups, math.prod(size)).swapaxes(1, 2)
    copy_view(b, x, y, view, _ghost(y).reshape(view.shape))


def _ghost(value: Value) -> np.ndarray:
    """An array like the value whose memory is never touched."""
    return np.empty(value.shape, value.dtype)


def copy_view(b: Builder, x: Value, y: Value, x_view: np.ndarray, y_view: np.ndarray) -> None:
    """The step that copies one view to another. Views are of fresh arrays: their offsets follow from their bases."""
    size = x.dtype.itemsize
    strides = [[stride // size for stride in view.strides] for view in (x_view, y_view)]
    tile, arguments, items = permute.strided_copy(x_view.shape, strides[0], strides[1], b.target, size)
    refs = {"x": Ref(x.buffer, x.offset + _offset(x_view)), "y": Ref(y.buffer, y.offset + _offset(y_view))}
    b.step(tile.name(b.target), permute, tile, {**refs, **arguments}, items, [x], [y], "moves elements")


def _offset(view: np.ndarray) -> int:
    base = view
    while isinstance(base.base, np.ndarray):
        base = base.base
    return int(view.__array_interface__["data"][0] - base.__array_interface__["data"][0])
