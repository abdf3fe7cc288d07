"""Taps that meet padding alone, in every window, are left out: 3 x 3 over a single padded pixel is 1 x 1.

So are the last layers of networks on small images, or on few frames: a plan for a larger input has all taps again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph import Graph, Node
from convwright.graph.convolutions import spec_of
from convwright.graph.shapes import Inferred
from convwright.model.fuse import Layer
from convwright.model.weights import Weights
from convwright.spec import ConvSpec


def trim(graph: Graph, types: Inferred, weights: Weights, layers: list[Layer]) -> None:
    """Give layers with such taps nodes, and constants of the graph, that lack them.

    Weights that are not finite stay: padding times infinity is NaN. So do layers whose algorithm somebody asks for.
    """
    for layer in layers:
        node = layer.node
        if layer.op in ("Conv", "Convolution") and node.inputs[1] in graph.constants:
            kernel = graph.constants[node.inputs[1]].shape
            shape: tuple[int, ...] = types[node.inputs[0]].shape  # type: ignore[assignment]  # concrete in a plan
            if _may_have(node, shape[2:], kernel[2:]):
                layer.node = _trimmed(graph, weights, node, shape, kernel) or node


def _may_have(node: Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Quickly: whether any axis is so short that a window of it has little room to move."""
    if node.attributes.get("algorithm", "auto") != "auto" or 0 in size:
        return False
    spec: ConvSpec | None = node.attributes.get("spec")
    dilation, stride = (spec.dilation, spec.stride) if spec else (node.get("dilations") or (1,), node.get("strides"))
    reach, step = max(dilation), max(stride or (1,))
    return any(taps > 1 and length < reach * (taps - 1) + 1 + step for length, taps in zip(size, kernel, strict=False))


def _trimmed(
    graph: Graph, weights: Weights, node: Node, shape: tuple[int, ...], kernel: tuple[int, ...]
) -> Node | None:  # fmt: skip
    """The node without the taps that meet padding alone; None where it has none, or must keep them."""
    try:
        spec = spec_of(node, shape, kernel)
        if spec.transposed or spec.flip or spec.padding_mode != "zeros":
            return None
        kept = [_kept(spec, axis, size, out) for axis, (size, out) in enumerate(_sizes(spec, shape[2:]))]
    except ConvwrightError:  # what is wrong with it is said where it is computed
        return None
    if all(taps == (0, whole) for taps, whole in zip(kept, spec.kernel, strict=True)):
        return None
    smaller = _without(spec, shape[2:], kept)
    if smaller is None:
        return None
    name = f"{node.inputs[1]}, taps {'x'.join(f'{first}:{last}' for first, last in kept)}"
    if name not in graph.constants:
        weight = weights.array(node.inputs[1])
        if not np.isfinite(weight).all():
            return None
        inside = tuple(slice(first, last) for first, last in kept)
        graph.constants[name] = np.ascontiguousarray(weight[(slice(None), slice(None), *inside)])
    result = node.copy()
    result.inputs[1] = name
    if "spec" in node.attributes:
        result.attributes["spec"] = smaller
    else:
        lows, highs = zip(*smaller.pads(shape[2:]), strict=True)
        result.attributes |= {"kernel_shape": list(smaller.kernel), "pads": [*lows, *highs], "auto_pad": "NOTSET"}
    return result


def _sizes(spec: ConvSpec, size: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(size, spec.output_size(size), strict=True))


def _kept(spec: ConvSpec, axis: int, size: int, out: int) -> tuple[int, int]:
    """The range of an axis's taps that some window has inside the input; all of them if there is none."""
    stride, dilation, low = spec.stride[axis], spec.dilation[axis], spec.pads((size,) * spec.rank)[axis][0]

    def meets(tap: int) -> bool:
        """Of the windows, the first whose tap is not before the input has it inside."""
        window = max(0, -((tap * dilation - low) // stride))
        return window < out and window * stride + tap * dilation - low < size

    inside = [tap for tap in range(spec.kernel[axis]) if meets(tap)]
    return (inside[0], inside[-1] + 1) if inside else (0, spec.kernel[axis])


def _without(spec: ConvSpec, size: tuple[int, ...], kept: list[tuple[int, int]]) -> ConvSpec | None:
    """The convolution by these taps alone, with as large an output; None where it would take cropping."""
    pads = []
    for axis, (first, last) in enumerate(kept):
        low = spec.pads(size)[axis][0] - first * spec.dilation[axis]
        span = (last - first - 1) * spec.dilation[axis] + 1
        high = (spec.output_size(size)[axis] - 1) * spec.stride[axis] + span - low - size[axis]
        if low < 0:
            return None
        pads.append((low, max(0, high)))
    smaller = replace(spec, kernel=tuple(last - first for first, last in kept), padding=tuple(pads))
    return smaller if smaller.output_size(size) == spec.output_size(size) else None
