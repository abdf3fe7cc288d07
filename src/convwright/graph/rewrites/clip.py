"""Clip with constant limits: the limits become Python floats in the attributes `min` and `max`."""

from __future__ import annotations

from convwright.graph.graph import Node
from convwright.graph.rewrites.editor import Editor


def constant_clips(editor: Editor) -> bool:
    """Clip(x, min, max) -> Clip(x) with attributes; Clip to [0, inf) and Max(x, 0) -> Relu; Min(Relu, 6) -> Clip."""
    changed = False
    for node in editor.graph.nodes:
        if node.domain or node.op not in ("Clip", "Max", "Min"):
            continue
        if node.op == "Clip" and len(node.inputs) > 1:
            limits = {}
            names = {"min": node.input(1), "max": node.input(2)}
            for which, name in names.items():
                if name:
                    value = editor.scalar(name)
                    if value is None:
                        break
                    limits[which] = value
            else:
                kind = editor.facts.dtype(node.inputs[0])
                if kind is not None and kind.kind != "f":
                    continue
                changed = True
                _set(editor, node, node.inputs[0], limits)
        elif node.op in ("Max", "Min") and len(node.inputs) == 2:
            changed |= _limit(editor, node)
    return changed


def _set(editor: Editor, node: Node, source: str, limits: dict[str, float]) -> None:
    if limits == {"min": 0.0}:
        editor.change(node, op="Relu", inputs=[source])
        return
    before = editor.producer(source, "Relu")
    if before is not None and limits.keys() == {"max"} and limits["max"] >= 0:
        # Relu then a ceiling, as some exporters write ReLU6.
        source, limits = before.inputs[0], {"min": 0.0, **limits}
    editor.change(node, op="Clip", inputs=[source], attributes=limits)


def _limit(editor: Editor, node: Node) -> bool:
    """Max or Min with a constant scalar of no more axes than the other operand has."""
    for source, limit in (node.inputs, node.inputs[::-1]):
        value, array = editor.scalar(limit), editor.constant(limit)
        rank, kind = editor.rank(source), editor.facts.dtype(source)
        if value is None or array is None or rank is None or kind is None:
            continue
        if array.ndim <= rank and kind.kind == "f":
            _set(editor, node, source, {"min" if node.op == "Max" else "max": value})
            return True
    return False
