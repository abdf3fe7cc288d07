"""Graph -> ONNX file, through the onnx package's classes and checker; weights go straight to the file."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convwright.errors import ConvwrightError
from convwright.files import replacing
from convwright.graph.expand import expand
from convwright.graph.facts import Facts
from convwright.graph.graph import INTERNAL, Graph, Node
from convwright.graph.onnx_functions import VERSION, Functions
from convwright.graph.tensors import CODES
from convwright.graph.wire import GRAPH, INITIALIZER, RAW_DATA, header

EXTERNAL_ABOVE = 1_900_000_000
"""Protobuf stops at 2 GB; from this many bytes of weights on they go to a file of their own."""

_FUNCTIONS_SINCE = 8
"""The version of the file format that brought functions."""

_INLINE = 1024
_PAGE = 4096


def save(graph: Graph, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Write `graph` as an ONNX file, whole or not at all.

    - `path`: the file; one that exists is replaced once the new one is complete.
    - `external_data`: put the weights into `path` + ".data" beside it. By default where they exceed 1.9 GB.

    Raises ConvwrightError where the graph is not valid ONNX, or the file cannot be written.
    """
    place = Path(path)
    graph.validate()
    plain = expand(graph)
    size = sum(array.nbytes for array in plain.constants.values())
    outside = size > EXTERNAL_ABOVE if external_data is None else external_data
    if not outside and size > EXTERNAL_ABOVE:
        raise ConvwrightError(f"{size} bytes of weights do not fit into one ONNX file; use external_data=True")
    model = _skeleton(plain)
    data_place = place.with_name(place.name + ".data")
    try:
        if place.is_dir():
            raise ConvwrightError(f"cannot write {str(place)!r}: it is a directory")
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(replacing(place))
            data = stack.enter_context(replacing(data_place)) if outside else None
            _write(file, data, data_place.name, model, plain)
    except OSError as error:
        raise ConvwrightError(f"cannot write {str(place)!r}: {error.strerror or error}") from error


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
        if isinstance(value, Graph):
            raise ConvwrightError(f"{node}: attribute {name!r} holds a graph, which cannot be written")
        if isinstance(value, np.ndarray):
            value = numpy_helper.from_array(value)
        if isinstance(value, tuple) and not value:
            proto.attribute.append(onnx.AttributeProto(name=name, type=onnx.AttributeProto.INTS))
            continue
        proto.attribute.append(helper.make_attribute(name, value))
    return proto


def _skeleton(graph: Graph) -> Any:
    """The model without its constants, checked."""
    import onnx
    from onnx import helper

    facts = Facts(graph)
    inputs = [helper.make_tensor_value_info(name, CODES[info.dtype], info.shape) for name, info in graph.inputs.items()]
    floats = next((info.dtype for info in graph.inputs.values()), np.dtype(np.float32))
    outputs = [
        helper.make_tensor_value_info(name, CODES[facts.dtype(name) or floats], facts.open_shape(name))
        for name in graph.outputs
    ]
    opsets = [helper.make_opsetid("", graph.opset), *(helper.make_opsetid(*item) for item in graph.domains.items())]
    functions = Functions(graph)
    nodes = [node_proto(functions.call(node) if node.domain == INTERNAL else node) for node in graph.nodes]
    if functions.protos:
        opsets.append(helper.make_opsetid(INTERNAL, VERSION))
    _tell_apart(nodes)
    proto = helper.make_graph(nodes, graph.name or "graph", inputs, outputs)
    model = helper.make_model(proto, opset_imports=opsets, producer_name="convwright", functions=functions.protos)
    with contextlib.suppress(ValueError):
        oldest = helper.find_min_ir_version_for(opsets, ignore_unknown=bool(functions.protos))
        model.ir_version = max(oldest, _FUNCTIONS_SINCE) if functions.protos else oldest
    # The checker wants every value defined; declared inputs stand in for the constants.
    stand_in = onnx.ModelProto()
    stand_in.CopyFrom(model)
    for name, array in graph.constants.items():
        stand_in.graph.input.append(helper.make_tensor_value_info(name, CODES[array.dtype], array.shape))
    try:
        onnx.checker.check_model(stand_in)
    except onnx.checker.ValidationError as error:
        raise ConvwrightError(f"the graph is not valid ONNX: {str(error).strip().splitlines()[0]}") from error
    return model


def _tell_apart(nodes: list[Any]) -> None:
    """Number nodes of the same name: ONNX allows them, ONNX Runtime does not."""
    taken = {node.name for node in nodes}
    seen = set()
    for node in nodes:
        stem, number = node.name, 0
        while node.name in seen:
            number += 1
            if f"{stem}_{number}" not in taken:
                node.name = f"{stem}_{number}"
                taken.add(node.name)
        if node.name:
            seen.add(node.name)


def _write(file: BinaryIO, data: BinaryIO | None, data_name: str, model: Any, graph: Graph) -> None:
    """Write the model, one tensor after another, so that no second copy of the weights comes to be."""
    from onnx import TensorProto, numpy_helper

    heads: list[tuple[bytes, np.ndarray[Any, Any] | None]] = []  # a tensor's fields, and the content that follows
    for name, array in graph.constants.items():
        if data is not None and array.nbytes >= _INLINE and array.dtype != object:
            proto = TensorProto(name=name)
            _write_outside(data, data_name, array, proto)
            heads.append((proto.SerializeToString(), None))
        elif array.dtype == object or sys.byteorder == "big":
            heads.append((numpy_helper.from_array(array, name).SerializeToString(), None))
        else:
            proto = TensorProto(name=name, data_type=CODES[array.dtype], dims=array.shape)
            heads.append((proto.SerializeToString() + header(RAW_DATA, array.nbytes), array))
    sizes = [len(head) + (0 if array is None else array.nbytes) for head, array in heads]
    before = [header(INITIALIZER, size) for size in sizes]
    network = model.graph.SerializeToString()
    model.ClearField("graph")
    file.write(model.SerializeToString())
    file.write(header(GRAPH, len(network) + sum(map(len, before)) + sum(sizes)))
    file.write(network)
    for tag, (head, content) in zip(before, heads, strict=True):
        file.write(tag + head)
        if content is not None:
            file.write(np.ascontiguousarray(content).reshape(-1).view(np.uint8).data)


def _write_outside(data: BinaryIO, data_name: str, array: np.ndarray[Any, Any], proto: Any) -> None:
    """Write an array to the next page of `data`, and into its onnx.TensorProto where it lies."""
    data.write(bytes(-data.tell() % _PAGE))
    proto.data_type = CODES[array.dtype]
    proto.dims.extend(array.shape)
    proto.data_location = proto.EXTERNAL
    for key, value in (("location", data_name), ("offset", data.tell()), ("length", array.nbytes)):
        proto.external_data.add(key=key, value=str(value))
    data.write(np.ascontiguousarray(array).data)


def model_proto(graph: Graph) -> Any:
    """The graph as an ``onnx.ModelProto`` in memory, weights included; for small graphs."""
    from onnx import numpy_helper

    plain = expand(graph)
    model = _skeleton(plain)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in plain.constants.items())
    return model
