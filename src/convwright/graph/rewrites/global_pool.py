"""Means and maxima over all spatial axes -> GlobalAveragePool, GlobalMaxPool."""

from __future__ import annotations

from convwright.graph.graph import Node
from convwright.graph.rewrites.editor import Editor

_GLOBAL = {
    "ReduceMean": "GlobalAveragePool",
    "ReduceMax": "GlobalMaxPool",
    "AveragePool": "GlobalAveragePool",
    "MaxPool": "GlobalMaxPool",
}


def name_global_pools(editor: Editor) -> bool:
    """A reduction that drops the axes it reduces becomes a global pool and a Flatten."""
    changed = False
    for node in list(editor.graph.nodes):
        if not node.domain and node.op in _GLOBAL:
            changed |= (_reduction if node.op.startswith("Reduce") else _window)(editor, node)
    return changed


def _reduction(editor: Editor, node: Node) -> bool:
    source = node.inputs[0]
    shapes = editor.shapes(source)
    axes = editor.constant(node.input(1))
    kind = editor.facts.dtype(source)
    if shapes is None or axes is None or kind is None or kind.kind != "f":
        return False
    rank = len(shapes[0])
    reduced = {int(axis) + rank if axis < 0 else int(axis) for axis in axes.reshape(-1)}
    if rank < 3 or reduced != set(range(2, rank)):
        return False
    if node.get("keepdims", 1):
        editor.change(node, op=_GLOBAL[node.op], inputs=[source])
        return True
    pooled = editor.fresh(f"{node.outputs[0]}_pooled")
    editor.facts.note(pooled, source, tuple((*shape[:2], *(1,) * (rank - 2)) for shape in shapes))
    editor.insert_before(node, Node(_GLOBAL[node.op], [source], [pooled], {}, node.name))
    node.name = ""
    editor.change(node, op="Flatten", inputs=[pooled], attributes={"axis": 1})
    return True


def _window(editor: Editor, node: Node) -> bool:
    """A pool whose only window is the whole input."""
    shapes = editor.shapes(node.inputs[0])
    padded = any(node.get("pads", ())) or node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if shapes is None or padded or any(value != 1 for value in node.get("dilations", ())):
        return False
    if any(shape[2:] != node.get("kernel_shape") for shape in shapes) or len(node.outputs) > 1:
        return False
    if editor.shapes(node.outputs[0]) != tuple((*shape[:2], *(1,) * (len(shape) - 2)) for shape in shapes):
        return False
    editor.change(node, op=_GLOBAL[node.op])
    return True
