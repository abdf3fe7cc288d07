"""Activations written out by exporters, given back their names: Silu, HardSigmoid, HardSwish, Mish, Gelu."""

from __future__ import annotations

import math

from convwright.graph.graph import INTERNAL, Node
from convwright.graph.rewrites.editor import Editor


def name_activations(editor: Editor) -> bool:
    """The last node of each pattern becomes the activation."""
    changed = False
    for node in editor.graph.nodes:
        if node.domain:
            continue
        if node.op in ("Mul", "Div") and len(node.inputs) == 2:
            changed |= (
                _hard_sigmoid(editor, node)
                or _scaled_hard_swish(editor, node)
                or (node.op == "Mul" and (_gated(editor, node) or _gelu(editor, node)))
            )
    return changed


def _equal(value: float | None, target: float) -> bool:
    """Equal up to the rounding of a constant to float32, and to the digits that exporters write."""
    return value is not None and abs(value - target) <= 1e-6 * abs(target)


def _is_sixth(node: Node) -> bool:
    """Whether a HardSigmoid is min(max(x + 3, 0), 6) / 6."""
    return _equal(node.get("alpha", 0.2), 1 / 6) and _equal(node.get("beta", 0.5), 0.5)


def _orders(node: Node) -> tuple[tuple[str, str], tuple[str, str]]:
    first, second = node.inputs
    return (first, second), (second, first)


def _with_scalar(editor: Editor, name: str, op: str, target: float) -> str | None:
    """x, where the value is x + target or x * target (or x / (1 / target))."""
    node = editor.producer(name)
    if node is None or len(node.inputs) != 2:
        return None
    if node.op == op:
        for value, other in _orders(node):
            if _equal(editor.scalar(other), target):
                return value
    if node.op == "Div" and op == "Mul" and _equal(editor.scalar(node.inputs[1]), 1 / target):
        return node.inputs[0]
    return None


def _scaled(editor: Editor, node: Node, target: float) -> str | None:
    """x, where the node computes x * target, or x / (1 / target)."""
    return _with_scalar(editor, node.outputs[0], "Mul", target)


def _relu6_of_plus3(editor: Editor, name: str) -> str | None:
    """x, where the value is min(max(x + 3, 0), 6)."""
    clip = editor.producer(name, "Clip")
    if clip is None or clip.attributes != {"min": 0.0, "max": 6.0} or len(clip.inputs) != 1:
        return None
    return _with_scalar(editor, clip.inputs[0], "Add", 3.0)


def _hard_sigmoid(editor: Editor, node: Node) -> bool:
    inner = _scaled(editor, node, 1 / 6)
    source = _relu6_of_plus3(editor, inner) if inner else None
    if source is None:
        return False
    editor.change(node, op="HardSigmoid", inputs=[source], attributes={"alpha": 1 / 6, "beta": 0.5})
    return True


def _scaled_hard_swish(editor: Editor, node: Node) -> bool:
    """(x * relu6(x + 3)) / 6"""
    inner = _scaled(editor, node, 1 / 6)
    product = editor.producer(inner, "Mul") if inner else None
    if product is None:
        return False
    for gate, other in _orders(product):
        if _relu6_of_plus3(editor, gate) == other:
            editor.change(node, op="HardSwish", inputs=[other])
            return True
    return False


def _gated(editor: Editor, node: Node) -> bool:
    """x * sigmoid(x), x * hardsigmoid(x), x * tanh(softplus(x))"""
    for gate, source in _orders(node):
        maker = editor.producer(gate)
        if maker is None:
            continue
        if maker.op == "Sigmoid" and maker.inputs[0] == source:
            editor.change(node, op="Silu", domain=INTERNAL, inputs=[source])
            return True
        if maker.op == "HardSigmoid" and maker.inputs[0] == source and _is_sixth(maker):
            editor.change(node, op="HardSwish", inputs=[source])
            return True
        if maker.op == "Tanh":
            soft = editor.producer(maker.inputs[0], "Softplus")
            if soft is not None and soft.inputs[0] == source:
                editor.change(node, op="Mish", inputs=[source])
                return True
    return False


def _gelu(editor: Editor, node: Node) -> bool:
    """x * (1 + erf(x / sqrt 2)) / 2, with the half wherever it stands, and its form with tanh."""
    half = _scaled(editor, node, 0.5)
    if half is not None:
        product = editor.producer(half, "Mul")
        pairs = [(gate, other) for gate, other in _orders(product)] if product is not None else []
    else:
        pairs = []
        for gate, other in _orders(node):
            whole = _with_scalar(editor, gate, "Mul", 0.5)
            if whole is not None:
                pairs.append((whole, other))
            halved = _with_scalar(editor, other, "Mul", 0.5)
            if halved is not None:
                pairs.append((gate, halved))
    for gate, source in pairs:
        inner = _with_scalar(editor, gate, "Add", 1.0)
        maker = editor.producer(inner) if inner else None
        if maker is None:
            continue
        if maker.op == "Erf" and _with_scalar(editor, maker.inputs[0], "Mul", math.sqrt(0.5)) == source:
            editor.change(node, op="Gelu", inputs=[source])
            return True
        if maker.op == "Tanh" and _is_tanh_argument(editor, maker.inputs[0], source):
            editor.change(node, op="Gelu", inputs=[source], attributes={"approximate": "tanh"})
            return True
    return False


def _is_tanh_argument(editor: Editor, name: str, source: str) -> bool:
    """sqrt(2 / pi) * (x + 0.044715 * x^3), https://arxiv.org/abs/1606.08415, section 2"""
    inner = _with_scalar(editor, name, "Mul", math.sqrt(2 / math.pi))
    add = editor.producer(inner, "Add") if inner else None
    if add is None:
        return False
    for cubic, other in _orders(add):
        cube = _with_scalar(editor, cubic, "Mul", 0.044715)
        power = editor.producer(cube, "Pow") if cube else None
        if other == source and power is not None and power.inputs[0] == source:
            return _equal(editor.scalar(power.inputs[1]), 3.0)
    return False
