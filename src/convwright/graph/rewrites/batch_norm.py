"""Scales and shifts of channels (batch normalisation at inference, Mul and Add by constants) folded into weights.

y = a * x + b, one a and b a channel. After a convolution, W' = a W and bias' = a bias + b, always exact. Before one,
W' = W a over input channels and bias' = bias + sum W b, exact unless padding adds zeros that b would have to shift.
All in float64, rounded once to the weights' type.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from convwright.graph.graph import INTERNAL, Node
from convwright.graph.rewrites.editor import Editor

Array = np.ndarray[Any, Any]
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm")
_INTERNAL_PRODUCTS = ("HetConvolution", "MixConvolution")
_AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")


class Affine(NamedTuple):
    """y = scale * x + shift over channels: float64 of shape [C], or [1] for all channels alike; None for 1 or 0."""

    source: str
    scale: Array | None
    shift: Array | None

    def part(self, channels: slice) -> Affine:
        """The same for some of the channels."""
        pick = (None if array is None else array[channels] if array.size > 1 else array for array in self[1:])
        return Affine(self.source, *pick)


def fold_affine(editor: Editor) -> bool:
    """Fold into the convolution or product before, or where that is not possible and exact, into the one after."""
    changed = False
    for node in list(editor.graph.nodes):
        if node.op in _AFFINE and not node.domain:
            changed |= _into_producer(editor, node)
    for node in list(editor.graph.nodes):
        if node.op in _AFFINE and not node.domain:
            changed |= _into_reader(editor, node)
    return changed


def _into_producer(editor: Editor, node: Node) -> bool:
    for source in dict.fromkeys(node.inputs[:2]):
        target = editor.producer(source)
        if (
            target is None
            or (target.domain and not _makes(target))
            or not editor.private(source)
            or node.inputs.count(source) > 1
        ):
            continue
        parts = _makers(editor, source)
        rank = editor.rank(source) if not _makes(target) else _weights(editor, target).ndim if parts else None
        if parts is not None:
            affine = _affine(editor, node, source, sum(channels for _, channels in parts), rank)
            if affine is None:
                continue
            start = 0
            for maker, channels in parts:
                part = slice(start, start + channels)
                start += channels
                _scale_outputs(editor, maker, affine.part(part))
            editor.take_over(target, node)
            return True
        if target.op == "BatchNormalization":
            affine = _affine(editor, node, source, _channels(editor, source), rank)
            if affine is not None and _scale_norm(editor, target, affine):
                editor.take_over(target, node)
                return True
    return False


def _makers(editor: Editor, name: str) -> list[tuple[Node, int]] | None:
    """The convolutions or products that make a value and nothing else, side by side along the channels."""
    maker = editor.producer(name)
    if maker is None or not editor.private(name):
        return None
    if _makes(maker):
        return [(maker, _out_channels(maker, _weights(editor, maker)))] if _foldable(editor, maker) else None
    if maker.domain:
        return None
    rank = editor.rank(name)
    if maker.op != "Concat" or rank is None or maker.get("axis") not in (1, 1 - rank):
        return None
    if len(set(maker.inputs)) < len(maker.inputs):
        return None
    parts: list[tuple[Node, int]] = []
    for part in maker.inputs:
        found = _makers(editor, part)
        if found is None:
            return None
        parts += found
    return parts


def _makes(node: Node) -> bool:
    """Whether the node is a convolution or product whose outputs its weights can scale."""
    return node.op in (_INTERNAL_PRODUCTS if node.domain == INTERNAL else () if node.domain else _PRODUCTS)


def _into_reader(editor: Editor, node: Node) -> bool:
    result = node.outputs[0]
    if not editor.private(result):
        return False
    target = editor.readers(result)[0]
    if target.domain or target.op not in ("Conv", "Gemm") or target.inputs.count(result) > 1:
        return False
    if not _foldable(editor, target):
        return False
    weights = _weights(editor, target)
    groups = target.get("group", 1)
    channels = weights.shape[1] * groups
    for source in dict.fromkeys(node.inputs[:2]):
        # The affine must not broaden its input: the source has to have all the channels itself.
        shapes = editor.shapes(source)
        if shapes is None or any(len(shape) != weights.ndim or shape[1] != channels for shape in shapes):
            continue
        affine = _affine(editor, node, source, channels, weights.ndim)
        if affine is None or (affine.shift is not None and _pads_with_zeros(target)):
            continue
        _scale_inputs(editor, target, weights, affine, groups)
        editor.change(target, inputs=[source, *target.inputs[1:]])
        return True
    return False


def _affine(editor: Editor, node: Node, source: str, channels: int | None, rank: int | None) -> Affine | None:
    """The node as a scale and shift of `source`, whose axis 1 has `channels` elements, or None."""
    if channels is None or rank is None:
        return None
    if node.op == "BatchNormalization":
        if node.inputs[0] != source:
            return None
        found = [editor.constant(name) for name in node.inputs[1:]]
        if any(array is None or array.shape != (channels,) for array in found):
            return None
        gain, offset, mean, variance = (array.astype(np.float64) for array in found)  # type: ignore[union-attr]
        scale = gain / np.sqrt(variance + node.get("epsilon", 1e-5))
        shift = offset - mean * scale
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            return None
        return Affine(source, scale, shift if shift.any() else None)
    if len(node.inputs) != 2:
        return None
    first = node.inputs[0] == source
    other = editor.constant(node.inputs[1 if first else 0])
    if other is None or other.dtype.kind != "f" or other.ndim > rank:
        return None
    aligned = (1,) * (rank - other.ndim) + other.shape
    if any(size != 1 for axis, size in enumerate(aligned) if axis != 1) or aligned[1] not in (1, channels):
        return None
    values = other.reshape(-1).astype(np.float64)
    if node.op == "Mul":
        return Affine(source, values, None)
    if node.op == "Div":
        return Affine(source, 1 / values, None) if first and values.all() else None
    if node.op == "Add":
        return Affine(source, None, values)
    return Affine(source, None, -values) if first else Affine(source, np.array([-1.0]), values)


def _channels(editor: Editor, name: str) -> int | None:
    shapes = editor.shapes(name)
    if shapes is None or any(len(shape) < 2 or shape[1] != shapes[0][1] for shape in shapes):
        return None
    return shapes[0][1]


def _foldable(editor: Editor, node: Node) -> bool:
    """Whether weights and bias of a convolution or product are constants in their normal form."""
    if node.op == "MixConvolution":
        arrays = [editor.constant(name) for name in node.inputs[1:] if name]
        return all(array is not None and array.dtype.kind == "f" for array in arrays)
    weights = editor.constant(node.input(1))
    if weights is None or weights.dtype.kind != "f" or weights.ndim < 2:
        return False
    if node.op == "Gemm" and node.attributes != {"transB": 1}:
        return False
    return not node.input(2) or editor.constant(node.input(2)) is not None


def _weights(editor: Editor, node: Node) -> Array:
    return editor.graph.constants[node.inputs[1]]


def _out_channels(node: Node, weights: Array) -> int:
    if node.op == "MixConvolution":
        return sum(part.out_channels for part in node.attributes["parts"])
    return weights.shape[1] * node.get("group", 1) if node.op == "ConvTranspose" else weights.shape[0]


def _pads_with_zeros(node: Node) -> bool:
    return bool(any(node.get("pads") or ())) or node.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


def _multiply(weights: Array, factors: Array) -> Array:
    """The product in float64, rounded once to the weights' type."""
    result = np.empty(weights.shape, weights.dtype)
    return np.multiply(weights, factors, out=result, dtype=np.float64, casting="same_kind")


def _scale_outputs(editor: Editor, node: Node, affine: Affine) -> None:
    if node.op == "MixConvolution":
        _scale_parts(editor, node, affine)
        return
    weights = _weights(editor, node)
    channels = _out_channels(node, weights)
    bias = editor.constant(node.input(2))
    total = np.zeros(channels) if bias is None else bias.astype(np.float64)
    inputs = list(node.inputs[:2])
    if affine.scale is not None:
        scale = np.broadcast_to(affine.scale, (channels,))
        total = total * scale
        if node.op == "ConvTranspose":
            groups = node.get("group", 1)
            taps = (1,) * (weights.ndim - 2)
            apart = weights.reshape(groups, weights.shape[0] // groups, *weights.shape[1:])
            scaled = _multiply(apart, scale.reshape(groups, 1, -1, *taps)).reshape(weights.shape)
        else:
            scaled = _multiply(weights, scale.reshape(-1, *(1,) * (weights.ndim - 1)))
        inputs[1] = editor.add_constant(f"{node.inputs[1]}_scaled", scaled)
    if affine.shift is not None:
        total = total + affine.shift
    if bias is not None or affine.shift is not None:
        inputs.append(editor.add_constant(f"{node.outputs[0]}_bias", total.astype(weights.dtype)))
    attributes = None
    if node.op == "HetConvolution" and len(inputs) > 2:
        spec = node.attributes["spec"]
        attributes = {"spec": replace(spec, conv=replace(spec.conv, bias=True))}
    editor.change(node, inputs=inputs, attributes=attributes)


def _scale_parts(editor: Editor, node: Node, affine: Affine) -> None:
    """Each part of a MixConvolution has weights and, if any has one, a bias of its own."""
    parts = node.attributes["parts"]
    weights: list[str] = []
    biases: list[str] = []
    biased = affine.shift is not None or any(node.inputs[1 + len(parts) :])
    start = 0
    for place, part in enumerate(parts):
        own = affine.part(slice(start, start + part.out_channels))
        start += part.out_channels
        name = node.inputs[1 + place]
        array = editor.graph.constants[name]
        bias = editor.constant(node.input(1 + len(parts) + place))
        total = np.zeros(part.out_channels) if bias is None else bias.astype(np.float64)
        if own.scale is not None:
            scale = np.broadcast_to(own.scale, (part.out_channels,))
            total = total * scale
            scaled = _multiply(array, scale.reshape(-1, *(1,) * (array.ndim - 1)))
            name = editor.add_constant(f"{name}_scaled", scaled)
        weights.append(name)
        if biased:
            total = total if own.shift is None else total + own.shift
            biases.append(editor.add_constant(f"{node.outputs[0]}_bias_{place}", total.astype(array.dtype)))
    specs = tuple(replace(part, bias=biased) for part in parts)
    editor.change(node, inputs=[node.inputs[0], *weights, *biases], attributes={"parts": specs})


def _scale_inputs(editor: Editor, node: Node, weights: Array, affine: Affine, groups: int) -> None:
    channels = weights.shape[1] * groups
    inputs = list(node.inputs[:2])
    if affine.shift is not None:
        # Sum over taps first; then each group's outputs see its own inputs' shifts.
        summed = weights.reshape(*weights.shape[:2], -1).sum(axis=2, dtype=np.float64)
        shift = np.broadcast_to(affine.shift, (channels,)).reshape(groups, 1, -1)
        added = (summed.reshape(groups, -1, weights.shape[1]) * shift).sum(axis=2).reshape(-1)
        bias = editor.constant(node.input(2))
        total = added if bias is None else added + bias.astype(np.float64)
        inputs.append(editor.add_constant(f"{node.outputs[0]}_bias", total.astype(weights.dtype)))
    elif node.input(2):
        inputs.append(node.inputs[2])
    if affine.scale is not None:
        scale = np.broadcast_to(affine.scale, (channels,)).reshape(groups, 1, -1, *(1,) * (weights.ndim - 2))
        apart = weights.reshape(groups, -1, *weights.shape[1:])
        inputs[1] = editor.add_constant(f"{node.inputs[1]}_scaled", _multiply(apart, scale).reshape(weights.shape))
    editor.change(node, inputs=inputs)


def _scale_norm(editor: Editor, node: Node, affine: Affine) -> bool:
    """Give a BatchNormalization another scale and shift on top of its own."""
    gain, offset = (editor.constant(name) for name in node.inputs[1:3])
    if gain is None or offset is None:
        return False
    stem = node.outputs[0]
    inputs = list(node.inputs)
    total = offset.astype(np.float64)
    if affine.scale is not None:
        inputs[1] = editor.add_constant(f"{stem}_scale", (gain * affine.scale).astype(gain.dtype))
        total = total * affine.scale
    if affine.shift is not None:
        total = total + affine.shift
    inputs[2] = editor.add_constant(f"{stem}_bias", total.astype(offset.dtype))
    editor.change(node, inputs=inputs)
    return True
