"""Operators that move whole channels: concatenation, splitting, slicing and shuffling along the channel axis."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from convwright.graph.shape_rules.movement import slice_ranges, split_sizes
from convwright.graph.shape_rules.scope import Scope, axis_of
from convwright.kernels import channels as kernels
from convwright.model.builder import Builder, LongRows
from convwright.model.fuse import Layer
from convwright.model.values import NO_HALO, Halo, Ref, Value, blocks_of, planes

_IN_PLACE_SOURCES = {
    "Conv", "MaxPool", "AveragePool", "Relu", "Add", "Mul", "Clip", "Sigmoid", "Silu", "HardSwish", "LeakyRelu",
    "Resize", "BatchNormalization",
}  # fmt: skip


def scope_of(b: Builder) -> Scope:
    """What the graph room's shape rules read of this plan."""
    scope = Scope(b.graph.constants, b.graph.opset)
    scope.values, scope.constants = b.types.values, b.types.constants
    return scope


def on_channels(b: Builder, layer: Layer) -> bool:
    """Whether a Concat or Split works along the channels of blocked values."""
    node = layer.node
    names = [name for name in (*node.inputs[: None if node.op == "Concat" else 1], *node.outputs) if name]
    if not all(b.fits_blocks(name) and 0 not in b.shape(name) for name in names):
        return False
    return axis_of(node, node.attributes.get("axis", 0), len(b.shape(names[0]))) == 1


def slices_channels(b: Builder, layer: Layer) -> bool:
    """Whether a Slice takes a range of channels and everything else whole."""
    node = layer.node
    if not b.fits_blocks(node.inputs[0]) or 0 in b.shape(layer.output):
        return False
    ranges = slice_ranges(scope_of(b), node)
    whole = [(0, size, 1) for size in b.shape(node.inputs[0])]
    return all(own == full for axis, (own, full) in enumerate(zip(ranges, whole, strict=True)) if axis != 1)


def concatenations(b: Builder, layer: Layer, producers: dict[str, Layer]) -> dict[str, tuple[str, int]]:
    """The inputs of a concatenation that their producers can write in place: value -> (output, first channel)."""
    found: dict[str, tuple[str, int]] = {}
    channel = 0
    for name in layer.node.inputs:
        producer = producers.get(name)
        direct = producer is not None and producer.op in _IN_PLACE_SOURCES and name not in b.graph.outputs
        if direct and channel % b.v == 0 and name not in b.parents and name not in found:
            last = name == layer.node.inputs[-1]
            if b.shape(name)[1] % b.v == 0 or last:
                found[name] = (layer.output, channel)
        channel += b.shape(name)[1]
    return found


def lower_concat(b: Builder, layer: Layer) -> None:
    """Copy what was not written in place."""
    channel = 0
    y = b.values.get((layer.output, True)) or b.new_blocked(layer.output)
    total = b.shape(layer.output)[1]
    for name in layer.node.inputs:
        count = b.shape(name)[1]
        placed = b.values.get((name, True))
        if placed is None or placed.buffer is not y.buffer or b.parents.get(name) != (layer.output, channel):
            choice = np.full(total, -1, np.int64)
            choice[channel : channel + count] = np.arange(count)
            choose_step(b, b.blocked(name), y, choice, "concatenation")
        channel += count


def lower_split(b: Builder, layer: Layer) -> None:
    start = 0
    for name, count in zip(layer.node.outputs, split_sizes(scope_of(b), layer.node), strict=True):
        if name:
            _take(b, layer.node.inputs[0], name, np.arange(start, start + count))
        start += count


def lower_slice(b: Builder, layer: Layer) -> None:
    start, stop, step = slice_ranges(scope_of(b), layer.node)[1]
    _take(b, layer.node.inputs[0], layer.output, np.arange(start, stop, step))


def lower_shuffle(b: Builder, layer: Layer) -> None:
    """Channels (G, C/G) to (C/G, G)."""
    shuffle(b, layer.node.inputs[0], layer.output, layer.node.attributes["groups"])


def shuffle(b: Builder, source: str, name: str, groups: int) -> None:
    """Define ``name`` as the channels (G, C/G) of ``source`` in the order (C/G, G).

    Where channel blocks become an output of the graph, the conversion stores each channel where it belongs.
    """
    channels = b.shape(name)[1]
    if not b.is_plain(source) and name in b.graph.outputs and name not in b.consumers:
        b.unpack(source, name, np.arange(channels).reshape(-1, groups).T.reshape(-1))
    else:
        _take(b, source, name, np.arange(channels).reshape(groups, -1).T.reshape(-1))


def _take(b: Builder, source: str, name: str, channels: np.ndarray) -> None:
    """Define ``name`` as a choice of the input's channels: a view where they are whole blocks, else a copy."""
    x = b.blocked(source)
    first = int(channels[0])
    in_order = bool((channels == np.arange(first, first + len(channels))).all())
    if in_order and first % b.v == 0 and name not in b.parents:
        view = b.alias(name, x, b.shape(name))
        view.offset = x.offset + first // b.v * x.block * 4
        return
    choose_step(b, x, b.new_blocked(name), channels, "channels")


def choose_step(b: Builder, x: Value, y: Value, channels: np.ndarray, why: str) -> None:
    """The step that gives output channel c the input channel ``channels[c]`` (-1: leaves it as it is)."""
    choice = kernels.choose(channels.tolist(), x.block, b.target)
    for source, target in planes([x, y]):
        _choose_planes(b, choice, source, target, why)


def _choose_planes(b: Builder, choice: kernels.Choice, x: Value, y: Value, why: str) -> None:
    chunk_rows, chunks = b.row_chunks(y.size[0], x.n, choice.blocks)
    long = LongRows.of(y.size, chunk_rows, chunks, x.flat and y.flat)
    start = y.offset + 4 * choice.first_block * y.block
    arguments = {
        "x": x.ref, "y": Ref(y.buffer, start), "offsets": b.static(choice.offsets), "lanes": b.static(choice.lanes),
        "blocks": choice.blocks, "chunks": chunks, "chunk_rows": long.chunk_rows, "rows": long.rows, "cols": long.cols,
        "x_image": x.image, "x_row": x.row * long.joined,
        "y_image": y.image, "y_block": y.block, "y_row": y.row * long.joined,
    }  # fmt: skip
    b.step(choice.config.name(b.target), kernels, choice.config, arguments, x.n * choice.blocks * chunks, [x], [y], why)


def wants_halo(b: Builder, layer: Layer) -> dict[str, Halo]:
    """A view has the halo of what it is a view of: the parts' wants are the whole's."""
    wants: Halo = NO_HALO
    for name in layer.node.outputs:
        wants = merged(wants, b.halos.get(name, NO_HALO))
    return {layer.node.inputs[0]: wants}


def merged(a: Halo, b: Halo) -> Halo:
    return tuple(max(pair) for pair in zip_longest(a, b, fillvalue=0))


def with_halo(b: Builder, name: str, halo: Halo) -> Value:
    """The blocked value inside at least this halo: itself, or a copy."""
    value = b.blocked(name)
    if all(have >= need for have, need in zip_longest(value.halo, halo, fillvalue=0)):
        return value
    copy = b.blocked_room(value.shape, halo)
    choose_step(b, value, copy, np.arange(blocks_of(value.channels, b.v) * b.v), "padding")
    return copy
