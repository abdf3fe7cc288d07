"""Operators without a kernel: through ``onnx.reference``, with a warning that names them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

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
    names = _given(b, node)
    reads = [b.plain(name) for name in names]
    outputs = [name for name in node.outputs if name]
    writes = [b.new_plain(name) for name in outputs]

    def run(*arrays: np.ndarray) -> None:
        given = dict(zip(names, arrays, strict=False))
        results = evaluate(given)
        for target, result in zip(arrays[len(names) :], results, strict=True):
            target[...] = result

    b.python_step(f"onnx.reference-{node.op}", run, reads, writes)


_SMALL = 1024  # elements: shapes, axes and limits, which the outputs' shapes may depend on


def _given(b: Builder, node: Node) -> list[str]:
    """The inputs that the reference is given at each run; small constants it has from the start."""
    return [name for name in dict.fromkeys(node.inputs) if name and name not in _known(b, node)]


def _known(b: Builder, node: Node) -> dict[str, np.ndarray]:
    arrays = {name: b.constant(name) for name in node.inputs if name and math.prod(b.shape(name)) <= _SMALL}
    return {name: array for name, array in arrays.items() if array is not None}


def reference_of(b: Builder, node: Node) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """A function of the node's inputs by name that gives its outputs, as ``onnx.reference`` computes them."""
    from onnx.reference import ReferenceEvaluator

    from convwright.graph.onnx_writer import model_proto

    inputs = {name: b.types[name] for name in _given(b, node)}
    outputs = [name for name in node.outputs if name]
    alone = Graph("one", inputs, outputs, [node.copy()], _known(b, node), b.graph.opset, dict(b.graph.domains))
    try:
        session = ReferenceEvaluator(model_proto(alone), new_ops=[_lrn()])
    except Exception as error:  # whatever the reference raises for an operator that it does not know
        reason = " ".join(str(error).split())
        raise ConvwrightError(f"{node} has no kernel and no reference implementation: {reason}") from error

    def evaluate(given: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return list(session.run(None, given))
        except Exception as error:
            raise ConvwrightError(f"{node} failed in onnx.reference: {' '.join(str(error).split())}") from error

    return evaluate


def _lrn() -> type[Any]:
    """Local response normalisation. The reference's own leaves out channels beyond the first N, N being the batch."""
    from onnx.reference.op_run import OpRun

    class LRN(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x: np.ndarray, alpha: float, beta: float, bias: float, size: int) -> tuple[np.ndarray]:
            low, high = (size - 1) // 2, size // 2
            padding = [(0, 0), (low, high), *[(0, 0)] * (x.ndim - 2)]
            squares = np.pad(x.astype(np.float64) ** 2, padding)
            total = sum(squares[:, at : at + x.shape[1]] for at in range(size))
            return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype),)

    return LRN
