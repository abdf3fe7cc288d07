"""Nodes that change nothing."""

from __future__ import annotations

import numpy as np

from convwright.graph.graph import Node
from convwright.graph.rewrites.editor import Editor

_ONE_INPUT = {"Concat", "Max", "Mean", "Min", "Sum"}
_SAME_SHAPE = {"Expand", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Unsqueeze"}
"""Operators that leave their input alone when they leave its shape alone (a Slice may still reverse; see below)."""


def remove_identities(editor: Editor) -> bool:
    """Remove Identity and Dropout, reshapes to the same shape, pools of one element, and the like."""
    changed = False
    for node in list(editor.graph.nodes):
        if node.op == "Transpose" and _merge_transposes(editor, node):
            changed = True
        if node.inputs and node.inputs[0] and not any(map(editor.readers, node.outputs[1:])):
            if any(name in editor.outputs for name in node.outputs[1:]):
                continue
            if not node.domain and _is_identity(editor, node):
                changed |= editor.bypass(node)
    return changed


def _is_identity(editor: Editor, node: Node) -> bool:
    op = node.op
    if op in ("Identity", "Dropout"):
        return True
    if op in _ONE_INPUT:
        return len(node.inputs) == 1
    if op == "Transpose":
        order = node.get("perm")
        return order is not None and order == tuple(range(len(order)))
    if op in ("AveragePool", "MaxPool"):
        ones = all(value == 1 for value in (*node.get("kernel_shape", (0,)), *node.get("strides", ())))
        return ones and not any(node.get("pads", ()))
    if op in _SAME_SHAPE:
        before, after = editor.shapes(node.inputs[0]), editor.shapes(node.outputs[0])
        if before is None or before != after:
            return False
        steps = editor.constant(node.input(4))
        return op != "Slice" or not node.input(4) or (steps is not None and bool((steps > 0).all()))
    if op == "Cast":
        kind = editor.facts.dtype(node.inputs[0])
        return kind is not None and kind == editor.facts.dtype(node.outputs[0])
    if op == "Pad":
        pads = editor.constant(node.input(1))
        return pads is not None and not np.any(pads)
    return False


def _merge_transposes(editor: Editor, node: Node) -> bool:
    """Transpose(Transpose(x)) becomes one."""
    first = editor.producer(node.inputs[0], "Transpose")
    if first is None or not first.get("perm") or not node.get("perm"):
        return False
    order = tuple(first.attributes["perm"][axis] for axis in node.attributes["perm"])
    editor.change(node, inputs=[first.inputs[0]], attributes={"perm": order})
    return True
