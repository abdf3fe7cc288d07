"""Convolutions side by side: a split, a convolution on each part, a concatenation of the results.

Where the parts are alike this is one grouped convolution (ResNeXt's equivalence, arXiv 1611.05431, figure 3), as in the
grouped pointwise layers of MixNet. Where they are not, an activation behind the concatenation goes in front of it, to
each convolution, which can then apply it to what it has in registers.
"""

from __future__ import annotations

import numpy as np

from convwright.graph.graph import Node
from convwright.graph.rewrites.editor import Editor

_ACTIVATIONS = {"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "Silu", "HardSwish", "HardSigmoid", "Gelu", "Elu"}

_POOLS = {"AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"}


def group_equal_parts(editor: Editor) -> bool:
    """Split, equal convolutions of all parts in order, concatenation: one grouped convolution."""
    changed = False
    for node in list(editor.graph.nodes):
        if node.op == "Concat" and node.attributes.get("axis") == 1 and len(node.inputs) > 1:
            changed |= _group(editor, node)
    return changed


def _group(editor: Editor, concat: Node) -> bool:
    convs = [editor.producer(name, "Conv") for name in concat.inputs]
    if any(conv is None or not editor.private(conv.outputs[0]) for conv in convs):
        return False
    parts: list[Node] = [conv for conv in convs if conv is not None]
    split = editor.producer(parts[0].inputs[0], "Split")
    if split is None or split.attributes.get("axis", 0) != 1 or split.outputs != [conv.inputs[0] for conv in parts]:
        return False
    if not all(editor.private(name) for name in split.outputs):
        return False
    weights = [array for array in (editor.constant(conv.inputs[1]) for conv in parts) if array is not None]
    biases = [array for array in (editor.constant(conv.input(2)) for conv in parts) if array is not None]
    if len({(array.shape, array.dtype) for array in weights}) != 1 or len(weights) < len(parts):
        return False
    if any(_settings(conv) != _settings(parts[0]) for conv in parts):
        return False
    if len(biases) != (len(parts) if any(conv.input(2) for conv in parts) else 0):
        return False
    groups = parts[0].attributes.get("group", 1)
    sizes = editor.constant(split.input(1))
    if sizes is None or len(set(sizes.tolist())) != 1 or int(sizes[0]) != weights[0].shape[1] * groups:
        return False
    inputs = [split.inputs[0], editor.add_constant(f"{parts[0].inputs[1]}_grouped", np.concatenate(weights))]
    if biases:
        inputs.append(editor.add_constant(f"{parts[0].inputs[2]}_grouped", np.concatenate(biases)))
    attributes = dict(parts[0].attributes) | {"group": groups * len(parts)}
    editor.change(concat, op="Conv", inputs=inputs, attributes=attributes)
    return True


def _settings(conv: Node) -> dict[str, str]:
    return {name: repr(value) for name, value in conv.attributes.items()}


def activate_parts(editor: Editor) -> bool:
    """An activation of concatenated convolutions becomes one of each; a Relu passes by parts without negative elements,
    as ShuffleNet's average pools of what has been through one."""
    changed = False
    for node in list(editor.graph.nodes):
        if node.op not in _ACTIVATIONS or len([name for name in node.inputs if name]) != 1:
            continue
        concat = editor.producer(node.inputs[0], "Concat")
        if concat is None or concat.attributes.get("axis") != 1 or not editor.private(concat.outputs[0]):
            continue
        if len(set(concat.inputs)) < len(concat.inputs):
            continue
        kept = {name for name in concat.inputs if node.op == "Relu" and _not_negative(editor, name)}
        convolved = [name for name in concat.inputs if editor.producer(name, "Conv") and editor.private(name)]
        if not convolved or not kept.issuperset(set(concat.inputs) - set(convolved)):
            continue
        activated = []
        for name in concat.inputs:
            if name in kept:
                activated.append(name)
                continue
            result = editor.fresh(f"{name}_activated")
            part = Node(
                node.op,
                [name],
                [result],
                dict(node.attributes),
                f"{node.name}/{name}" if node.name else "",
                node.domain,
            )
            editor.insert_before(concat, part)
            activated.append(result)
        editor.change(concat, inputs=activated)
        editor.take_over(concat, node)
        changed = True
    return changed


def _not_negative(editor: Editor, name: str) -> bool:
    """Whether the value is a Relu's, or pools of one: of no such element is a Relu anything else."""
    while True:
        maker = editor.producer(name)
        if maker is None or maker.domain or maker.op not in {"Relu", *_POOLS} or maker.outputs[0] != name:
            return False
        if any(step != 1 for step in maker.get("dilations", ())):  # a window may then hold padding alone
            return False
        if maker.op == "Relu":
            return True
        name = maker.inputs[0]


__all__ = ["activate_parts", "group_equal_parts"]
