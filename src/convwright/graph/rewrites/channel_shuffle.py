"""Reshape -> Transpose -> Reshape that interleaves groups of channels -> ChannelShuffle(groups).

ShuffleNet, arXiv 1707.01083, figure 1: channels seen as [groups, channels / groups] are transposed.
"""

from __future__ import annotations

import math

from convwright.graph.graph import INTERNAL
from convwright.graph.rewrites.editor import Editor


def name_channel_shuffles(editor: Editor) -> bool:
    """Find the pattern by the shapes that the reshapes have, however they are written."""
    changed = False
    for node in list(editor.graph.nodes):
        if node.op != "Reshape":
            continue
        swap = editor.producer(node.inputs[0], "Transpose")
        split = editor.producer(swap.inputs[0], "Reshape") if swap is not None else None
        if swap is None or split is None:
            continue
        source = split.inputs[0]
        outer, inner, result = (editor.shapes(name) for name in (source, split.outputs[0], node.outputs[0]))
        if outer is None or inner is None or outer != result or len(outer[0]) < 3:
            continue
        rank = len(inner[0])
        if rank < 4 or swap.get("perm") != (0, 2, 1, *range(3, rank)):
            continue
        groups = {shape[1] for shape in inner}
        same = all(
            a[0] == b[0] and a[1] == b[1] * b[2] and math.prod(a[2:]) == math.prod(b[3:])
            for a, b in zip(outer, inner, strict=True)
        )
        if same and len(groups) == 1:
            attributes = {"groups": groups.pop()}
            editor.change(node, op="ChannelShuffle", domain=INTERNAL, inputs=[source], attributes=attributes)
            changed = True
            if attributes["groups"] == 1 or all(shape[2] == 1 for shape in inner):
                editor.bypass(node)  # one group, or groups of one channel: all stay where they are
    return changed
