"""Elementwise operators: activations, arithmetic with broadcasting, unfolded batch normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from convwright.graph import Node
from convwright.kernels import activations, elementwise
from convwright.model.builder import Builder, LongRows
from convwright.model.fuse import Layer, activation_of
from convwright.model.values import Value, blocks_of, planes

_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "max", "Min": "min"}


def expression_of(b: Builder, node: Node) -> tuple[Any, list[str]] | None:
    """The node as an expression over the values it names, or None where no kernel has it."""
    activation = activation_of(node)
    if activation is not None:
        return ((activation[0], 0, *activation[1:]), [node.inputs[0]]) if activation[0] in activations.ROWS else None
    if node.op in _BINARY and len(node.inputs) >= 2:
        expression: Any = 0
        for place in range(1, len(node.inputs)):
            expression = (_BINARY[node.op], expression, place)
        return expression, list(node.inputs)
    if node.op == "PRelu":
        return ("prelu", 0, 1), list(node.inputs)
    if node.op == "Pow":
        power = b.constant(node.inputs[1])
        if power is not None and power.size == 1:
            expression = ("pow", 0, float(power.reshape(-1)[0]))
            return (expression, [node.inputs[0]]) if elementwise.why_not(expression) is None else None
    return None


def _operand_kind(b: Builder, name: str, shape: tuple[int, ...]) -> str | None:
    """How the value meets an output of that shape: "full", "channel", "pixel", "scalar", or None: not in blocks."""
    if b.types[name].dtype != np.float32:
        return None
    own, known = b.shape(name), b.constant(name) is not None
    if math.prod(own) == 1:
        return "full" if own == shape and not known else "scalar"
    padded = (1,) * (len(shape) - len(own)) + own
    if known and padded[0] == 1 and padded[1] == shape[1] and math.prod(padded) == shape[1]:
        return "channel"
    if len(own) != len(shape) or own[0] not in (1, shape[0]):
        return None
    if own[1:] == shape[1:]:
        return "full"
    if own[1] == shape[1] and all(size == 1 for size in own[2:]):
        return "channel"
    return "pixel" if own[1] == 1 and own[2:] == shape[2:] and len(own) > 2 else None


def can_lower(b: Builder, layer: Layer) -> bool:
    found = expression_of(b, layer.node)
    if found is None or not b.fits_blocks(layer.output) or 0 in b.shape(layer.output):
        return False
    shape = b.shape(layer.output)
    kinds = [_operand_kind(b, name, shape) for name in found[1]]
    return None not in kinds and "full" in kinds


def lower(b: Builder, layer: Layer) -> None:
    expression, names = expression_of(b, layer.node) or ((), [])
    shape = b.shape(layer.output)
    _emit(b, layer, expression, [_operand(b, name, _operand_kind(b, name, shape), shape[1]) for name in names])


def can_lower_norm(b: Builder, layer: Layer) -> bool:
    """A batch normalisation that folding left over."""
    known = all(name in b.graph.constants for name in layer.node.inputs[1:])
    return b.fits_blocks(layer.node.inputs[0]) and known and 0 not in b.shape(layer.output)


def lower_norm(b: Builder, layer: Layer) -> None:
    """y = scale (x - mean) / sqrt(variance + epsilon) + bias, as one multiplication and one addition."""
    node = layer.node
    scale, bias, mean, variance = (b.graph.constants[name].astype(np.float64) for name in node.inputs[1:5])
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    key = (node.outputs[0], "norm")
    operands = [_operand(b, node.inputs[0], "full", scale.size)]
    for name, array in (("scale", factor), ("shift", bias - mean * factor)):
        operands.append(_Operand("channel", b.static(b.weights.channels((*key, name), array)), None))
    _emit(b, layer, ("add", ("mul", 0, 1), 2), operands)


class _Operand:
    """An operand of an expression: its kind, its address, and where it lies if it is a tensor of this run."""

    def __init__(self, kind: str, ref: Any, value: Value | None):
        self.kind, self.ref, self.value = kind, ref, value

    def on(self, value: Value | None) -> _Operand:
        """The operand with its tensor seen as batches of planes."""
        return self if value is self.value or value is None else _Operand(self.kind, value.ref, value)


def _operand(b: Builder, name: str, kind: str | None, channels: int) -> _Operand:
    assert kind is not None
    constant = b.constant(name)
    if kind == "scalar" and constant is not None:
        return _Operand(kind, b.static(np.array([constant.reshape(-1)[0]], np.float32)), None)
    if kind == "scalar":
        value = b.values.get((name, True)) or b.plain(name)
        return _Operand(kind, value.ref, value)
    if kind == "channel" and constant is not None and constant.size == channels:
        return _Operand(kind, b.static(b.weights.channels((name, "operand"), constant.reshape(-1))), None)
    value = b.blocked(name)
    return _Operand(kind, value.ref, value)


def _emit(b: Builder, layer: Layer, expression: Any, operands: list[_Operand]) -> None:
    own_values = [operand.value if operand.kind != "scalar" else None for operand in operands]
    values = [b.new_blocked(layer.output), *own_values]
    for y, *own in planes(values):
        assert y is not None
        _emit_planes(b, expression, [operand.on(value) for operand, value in zip(operands, own, strict=True)], y)


def _emit_planes(b: Builder, expression: Any, operands: list[_Operand], y: Value) -> None:
    tile = elementwise.Elementwise(expression, tuple(operand.kind for operand in operands))
    blocks = blocks_of(y.channels, b.v)
    large = [operand.value for operand in operands if operand.kind in ("full", "pixel") and operand.value is not None]
    rows = y.size[0]
    # Factors of channels mostly come from a pool over the plane, for which a thread has read all rows of its blocks.
    scaled = any(operand.kind == "channel" for operand in operands)
    chunk_rows, chunks = b.chunks(rows, y.n * blocks) if scaled else b.row_chunks(rows, y.n, blocks)
    long = LongRows.of(y.size, chunk_rows, chunks, y.flat and all(value.flat for value in large))
    arguments: dict[str, Any] = {
        "y": y.ref, "blocks": blocks, "chunks": chunks, "chunk_rows": long.chunk_rows,
        "rows": long.rows, "cols": long.cols, "y_image": y.image, "y_block": y.block, "y_row": y.row * long.joined,
    }  # fmt: skip
    for place, operand in enumerate(operands):
        arguments[f"x{place}"] = operand.ref
        value = operand.value
        repeated = value is None or operand.kind == "scalar" or value.n == 1
        arguments[f"x{place}_image"] = 0 if value is None or repeated else value.image
        arguments[f"x{place}_block"] = value.block if value is not None else b.v
        arguments[f"x{place}_row"] = value.row * long.joined if value is not None else 0
    reads = [operand.value for operand in operands if operand.value is not None]
    b.step(tile.name(b.target), elementwise, tile, arguments, y.n * blocks * chunks, reads, [y], "elementwise")
