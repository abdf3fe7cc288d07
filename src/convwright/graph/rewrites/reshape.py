"""Reshapes that are a Flatten, and the chain that Softmax before opset 13 was read as."""

from __future__ import annotations

import math

from convwright.graph.graph import Node
from convwright.graph.rewrites.editor import Editor


def name_flattens(editor: Editor) -> bool:
    """Reshape or Squeeze from [N, ...] to [N, rest] -> Flatten; Flatten -> Softmax -> Reshape -> Softmax(axis)."""
    changed = False
    for node in editor.graph.nodes:
        if node.domain:
            continue
        if node.op == "Reshape":
            changed |= _softmax(editor, node) or _flatten(editor, node)
        elif node.op == "Squeeze":
            changed |= _flatten(editor, node)
        elif node.op == "Flatten" and node.get("axis", 1) < 0:
            rank = editor.rank(node.inputs[0])
            if rank is not None:
                editor.change(node, attributes={"axis": node.attributes["axis"] + rank})
                changed = True
    return changed


def _flatten(editor: Editor, node: Node) -> bool:
    before, after = editor.shapes(node.inputs[0]), editor.shapes(node.outputs[0])
    if before is None or after is None or before == after:
        return False
    if not all(len(a) > 2 and len(b) == 2 and a[0] == b[0] for a, b in zip(before, after, strict=True)):
        return False
    editor.change(node, op="Flatten", inputs=node.inputs[:1], attributes={"axis": 1})
    return True


def _softmax(editor: Editor, node: Node) -> bool:
    soft = editor.producer(node.inputs[0])
    if soft is None or soft.op not in ("Softmax", "LogSoftmax", "Hardmax") or soft.get("axis", -1) != -1:
        return False
    flat = editor.producer(soft.inputs[0], "Flatten")
    if flat is None:
        return False
    source, axis = flat.inputs[0], flat.get("axis", 1)
    before, after = editor.shapes(source), editor.shapes(node.outputs[0])
    if before is None or before != after or not 0 <= axis < len(before[0]):
        return False
    if any(math.prod(shape[axis + 1 :]) != 1 for shape in before):
        return False
    editor.change(node, op=soft.op, inputs=[source], attributes={"axis": axis})
    return True
