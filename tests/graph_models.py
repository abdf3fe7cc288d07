"""Small ONNX models for the graph tests, and the oracle that runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from convwright.graph import Graph, load, save

Array = np.ndarray[Any, Any]
FLOAT = onnx.TensorProto.FLOAT


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs and outputs are written in one string each; `_` stands for an omitted input."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    constants: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def read(proto: onnx.ModelProto) -> Graph:
    return load(proto.SerializeToString())


def run(source: bytes | str | Path | onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Outputs by ONNX Runtime with its own rewrites off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if isinstance(source, onnx.ModelProto):
        source = source.SerializeToString()
    given = source if isinstance(source, bytes) else str(source)
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, dict(feeds))
    return outputs


def run_graph(graph: Graph, feeds: Mapping[str, Array], folder: Path) -> list[Array]:
    """Outputs of a Graph, written to a file first."""
    save(graph, folder / "graph.onnx")
    return run(folder / "graph.onnx", feeds)


def random_feeds(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def weights(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


def norm_parameters(channels: int, prefix: str = "bn", seed: int = 2) -> dict[str, Array]:
    """Gain, offset, mean and variance of a batch normalisation, named `prefix`_0 to _3."""
    rng = np.random.default_rng(seed)
    gain, offset, mean = (rng.standard_normal(channels) for _ in range(3))
    return {
        f"{prefix}_{index}": array.astype(np.float32)
        for index, array in enumerate((gain, offset, mean, rng.uniform(0.5, 2, channels)))
    }
