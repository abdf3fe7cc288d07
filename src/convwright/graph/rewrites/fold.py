"""Constant folding: what does not depend on the data is computed once."""

from __future__ import annotations

import math

from convwright.errors import ConvwrightError
from convwright.graph.evaluate import EVALUATORS, evaluate
from convwright.graph.rewrites.editor import Editor

_LARGEST_GROWTH = 1 << 16
"""A folded result may have this many elements, or as many as its inputs have: large Expands are left to run time."""


def fold_constants(editor: Editor) -> bool:
    """Nodes that read constants alone become constants; so does shape arithmetic if the inputs' shapes are fixed."""
    graph, constants = editor.graph, editor.graph.constants
    kept = []
    for node in graph.nodes:
        if editor.facts.certain and all(editor.facts.content(name) is not None for name in node.outputs if name):
            for name in filter(None, node.outputs):
                constants[name] = editor.facts.trials[0].constants[name]
            continue
        if node.op in EVALUATORS and node.inputs and all(not name or name in constants for name in node.inputs):
            inputs = [constants[name] if name else None for name in node.inputs]
            size = sum(array.size for array in inputs if array is not None)
            shapes = [editor.shapes(name) for name in node.outputs if name]
            grown = sum(math.prod(shape[0]) for shape in shapes if shape is not None)
            if all(shape is not None for shape in shapes) and grown <= max(size, _LARGEST_GROWTH):
                try:
                    results = evaluate(node, inputs)
                except ConvwrightError:
                    results = None
                if results is not None:
                    constants.update((name, array) for name, array in zip(node.outputs, results, strict=False) if name)
                    continue
        kept.append(node)
    if len(kept) == len(graph.nodes):
        return False
    editor.keep_only(kept)
    return True
