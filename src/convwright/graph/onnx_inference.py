"""Shapes of operators that have no rule of their own, by the onnx package's inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import Node, ValueInfo
from convwright.graph.tensors import CODES, DTYPES


def infer_node(
    node: Node,
    infos: Sequence[ValueInfo | None],
    contents: Sequence[np.ndarray[Any, Any] | None],
    opset: int,
    domains: Mapping[str, int],
) -> list[ValueInfo]:
    """Types of the outputs of one node, from its inputs' types and what is known of their contents."""
    from onnx import defs, helper, numpy_helper, shape_inference

    from convwright.graph.onnx_writer import node_proto

    if node.domain or not defs.has(node.op, max_inclusive_version=min(opset, defs.onnx_opset_version())):
        raise ConvwrightError(f"{node}: the operator is not supported")
    inputs, constants = {}, {}
    for name, info, array in zip(node.inputs, infos, contents, strict=True):
        if info is not None and array is not None:
            constants[name] = numpy_helper.from_array(array, name)
        elif info is not None:
            inputs[name] = helper.make_tensor_value_info(name, CODES[info.dtype], info.shape)
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.outputs if name]
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*item) for item in domains.items())]
    try:
        graph = helper.make_graph([node_proto(node)], "one", [*inputs.values()], outputs, [*constants.values()])
        model = helper.make_model(graph, opset_imports=opsets)
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except ConvwrightError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConvwrightError(f"{node}: its output shape cannot be inferred: {reason}") from error
    found = {value.name: value.type.tensor_type for value in inferred.graph.output}
    result = []
    for name in node.outputs:
        if not name:
            result.append(ValueInfo(np.dtype(np.float32), ()))
            continue
        kind = found[name]
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
        if kind.elem_type not in DTYPES or not kind.HasField("shape") or None in shape:
            raise ConvwrightError(f"{node}: its output {name!r} has no fixed type and shape")
        result.append(ValueInfo(DTYPES[kind.elem_type], shape))
    return result
