"""Operators without a kernel: through ``onnx.reference``, with a warning that names them; and those that only move data."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.model.builder import Builder
from convwright.model.fuse import Layer


class SlowOperatorWarning(UserWarning):
    """An operator has no kernel here and runs through ``onnx.reference``, slowly."""


def lower(b: Builder, layer: Layer) -> None:
    """Run the node in Python between two parallel regions."""
    node = layer.node
    evaluate = reference_of(node, b.graph.opset)
    warnings.warn(f"{node} has no kernel: it runs through onnx.reference, slowly", SlowOperatorWarning, stacklevel=2)
    names = [name for name in node.inputs if name]
    reads = [b.plain(name) for name in names]
    outputs = [name for name in node.outputs if name]
    writes = [b.new_plain(name) for name in outputs]

    def run(*arrays: np.ndarray) -> None:
        given = dict(zip(names, arrays, strict=False))
        results = evaluate(given)
        for target, result in zip(arrays[len(names) :], results, strict=True):
            target[...] = result

    b.python_step(f"onnx.reference-{node.op}", run, reads, writes)


def reference_of(node: Any, opset: int) -> Any:
    """A function of the node's inputs by name that gives its outputs, as ``onnx.reference`` computes them."""
    from onnx.reference import ReferenceEvaluator

    from convwright.graph.wire import node_model

    try:
        session = ReferenceEvaluator(node_model(node, opset))
    except Exception as error:  # whatever the reference raises for an operator it does not know
        raise ConvwrightError(f"{node} cannot be run: {error}") from None
    names = {name for name in node.inputs if name}

    def evaluate(given: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return session.run(None, {name: given[name] for name in names})
        except Exception as error:
            raise ConvwrightError(f"{node} failed in onnx.reference: {type(error).__name__}: {error}") from error

    return evaluate
