"""Graph -> ONNX file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConvwrightError
from .graph import Graph, Node, ValueInfo
from .tensors import CODES


def save(graph: Graph, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    raise NotImplementedError


def node_proto(node: Node) -> Any:
    """The node as an onnx.NodeProto."""
    import onnx
    from onnx import helper, numpy_helper

    proto = onnx.NodeProto(op_type=node.op, domain=node.domain, name=node.name)
    proto.input.extend(node.inputs)
    proto.output.extend(node.outputs)
    for name, value in node.attributes.items():
        if value is None:
            continue
        if isinstance(value, np.ndarray):
            value = numpy_helper.from_array(value)
        if isinstance(value, tuple) and not value:
            proto.attribute.append(onnx.AttributeProto(name=name, type=onnx.AttributeProto.INTS))
            continue
        proto.attribute.append(helper.make_attribute(name, value))
    return proto


def infer_one(
    node: Node,
    infos: Sequence[ValueInfo | None],
    contents: Sequence[np.ndarray[Any, Any] | None],
    opset: int,
    domains: Mapping[str, int],
) -> list[ValueInfo]:
    """Types of the outputs of one node, by the onnx package."""
    from onnx import defs, helper, numpy_helper, shape_inference

    if node.domain or not defs.has(node.op, max_inclusive_version=min(opset, defs.onnx_opset_version())):
        raise ConvwrightError(f"{node}: the operator is not supported")
    inputs, constants = [], []
    for name, info, array in zip(node.inputs, infos, contents, strict=True):
        if info is None:
            continue
        if array is not None:
            constants.append(numpy_helper.from_array(array, name))
        else:
            inputs.append(helper.make_tensor_value_info(name, CODES[info.dtype], info.shape))
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.outputs if name]
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*item) for item in domains.items())]
    try:
        graph = helper.make_graph([node_proto(node)], "one", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=opsets)
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:
        raise ConvwrightError(f"{node}: its output shape cannot be inferred: {str(error).splitlines()[0]}") from error
    found = {value.name: value.type.tensor_type for value in inferred.graph.output}
    result = []
    for name in node.outputs:
        kind = found.get(name)
        if kind is None:
            result.append(ValueInfo(np.dtype(np.float32), ()))
            continue
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
        if not kind.HasField("shape") or None in shape:
            raise ConvwrightError(f"{node}: its output {name!r} has no fixed shape")
        result.append(ValueInfo(helper.tensor_dtype_to_np_dtype(kind.elem_type), shape))
    return result
