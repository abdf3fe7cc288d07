"""Operators without a kernel: through ``onnx.reference``, with a warning that names them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph import Graph, Node
from convwright.model.builder import Builder
from convwright.model.fuse import Layer


class SlowOperatorWarning(UserWarning):
    """An operator has no kernel here and runs through ``onnx.reference``, slowly."""


def lower(b: Builder, layer: Layer) -> None:
    """Run the node in Python between two parallel regions."""
    node = layer.node
    evaluate = reference_of(b, node)
    warnings.warn(f"{node} has no kernel: it runs through onnx.reference, slowly", SlowOperatorWarning, stacklevel=2)
    names = [name for name in dict.fromkeys(node.inputs) if name]
    reads = [b.plain(name) for name in names]
    outputs = [name for name in node.outputs if name]
    writes = [b.new_plain(name) for name in outputs]

    def run(*arrays: np.ndarray) -> None:
        given = dict(zip(names, arrays, strict=False))
        results = evaluate(given)
        for target, result in zip(arrays[len(names) :], results, strict=True):
            target[...] = result

    b.python_step(f"onnx.reference-{node.op}", run, reads, writes)


def reference_of(b: Builder, node: Node) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """A function of the node's inputs by name that gives its outputs, as ``onnx.reference`` computes them."""
    from onnx.reference import ReferenceEvaluator

    from convwright.graph.onnx_writer import model_proto

    names = [name for name in dict.fromkeys(node.inputs) if name]
    inputs = {name: b.types[name] for name in names}
    outputs = [name for name in node.outputs if name]
    alone = Graph("one", inputs, outputs, [node.copy()], {}, b.graph.opset, dict(b.graph.domains))
    try:
        session = ReferenceEvaluator(model_proto(alone))
    except Exception as error:  # whatever the reference raises for an operator that it does not know
        reason = " ".join(str(error).split())
        raise ConvwrightError(f"{node} has no kernel and no reference implementation: {reason}") from error

    def evaluate(given: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return list(session.run(None, given))
        except Exception as error:
            raise ConvwrightError(f"{node} failed in onnx.reference: {' '.join(str(error).split())}") from error

    return evaluate
