"""Pads: two in a row become one, and zeros around a convolution's input become its own padding."""

from __future__ import annotations

import numpy as np

from convwright.graph.graph import Node
from convwright.graph.rewrites.editor import Editor

Widths = tuple[int, ...]


def fold_pads(editor: Editor) -> bool:
    """Merge consecutive constant Pads; fold those of zeros over spatial axes into Conv and AveragePool."""
    changed = False
    for node in list(editor.graph.nodes):
        if node.op == "Pad" and not node.domain:
            changed |= _merge(editor, node)
        elif node.op in ("Conv", "AveragePool") and not node.domain:
            changed |= _absorb(editor, node)
    return changed


def _constant_pad(editor: Editor, node: Node | None) -> tuple[Widths, float] | None:
    """(lows then highs over all axes, value) of a Pad with constant, non-negative widths and value."""
    if node is None or node.op != "Pad" or node.get("mode", "constant") != "constant":
        return None
    pads = editor.constant(node.input(1))
    value = editor.scalar(node.input(2)) if node.input(2) else 0.0
    if pads is None or value is None or (pads < 0).any():
        return None
    widths = pads.reshape(-1).tolist()
    if node.input(3):
        axes, rank = editor.constant(node.input(3)), editor.rank(node.inputs[0])
        if axes is None or rank is None or len(widths) != 2 * axes.size:
            return None
        whole = [0] * (2 * rank)
        for index, axis in enumerate(axes.reshape(-1).tolist()):
            place = axis + rank if axis < 0 else axis
            whole[place], whole[place + rank] = widths[index], widths[index + axes.size]
        widths = whole
    return tuple(widths), value


def _merge(editor: Editor, node: Node) -> bool:
    outer = _constant_pad(editor, node)
    first = editor.producer(node.inputs[0], "Pad")
    inner = _constant_pad(editor, first)
    if first is None or outer is None or inner is None or outer[1] != inner[1] or len(outer[0]) != len(inner[0]):
        return False
    total = np.array([a + b for a, b in zip(outer[0], inner[0], strict=True)], np.int64)
    pads = editor.add_constant(f"{node.outputs[0]}_pads", total)
    editor.change(node, inputs=[first.inputs[0], pads, node.input(2)])
    return True


def _absorb(editor: Editor, node: Node) -> bool:
    pad = editor.producer(node.inputs[0], "Pad")
    found = _constant_pad(editor, pad)
    auto = node.get("auto_pad", "NOTSET")
    if pad is None or found is None or found[1] != 0 or auto not in ("NOTSET", "VALID"):
        return False
    widths = found[0]
    rank = len(widths) // 2
    if rank < 3 or any(widths[axis] for axis in (0, 1, rank, rank + 1)):
        return False
    added = widths[2:rank] + widths[rank + 2 :]
    own = node.get("pads") if auto == "NOTSET" else None
    own = own or (0,) * len(added)
    if len(own) != len(added):
        return False
    if node.op == "AveragePool":
        # The pool has to count the zeros as the Pad made it do, and its own padding as it did itself.
        if (any(own) and not node.get("count_include_pad", 0)) or node.get("ceil_mode", 0):
            return False
        # Runtimes refuse padding as large as the window.
        if any(width >= size for width, size in zip(added, 2 * node.get("kernel_shape", ()), strict=True)):
            return False
        node.attributes["count_include_pad"] = 1
    attributes = {name: value for name, value in node.attributes.items() if name != "auto_pad"}
    attributes["pads"] = tuple(a + b for a, b in zip(own, added, strict=True))
    editor.change(node, inputs=[pad.inputs[0], *node.inputs[1:]], attributes=attributes)
    return True
