"""ONNX file -> Graph, in one normal form whatever the file's opset (see `opset.py`)."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.branches import settle_branches
from convwright.graph.checks import check_node
from convwright.graph.graph import INTERNAL, Dimension, Graph, Node, ValueInfo, sort_nodes
from convwright.graph.onnx_functions import known_again, operator
from convwright.graph.opset import OLDEST, normalise
from convwright.graph.tensors import array_of, element_type
from convwright.graph.wire import Cut, without_large_tensors

_DEEPEST_SUBGRAPH = 16
_LARGEST_FILE = 2 << 30
"""Protobuf's limit."""

_DAMAGED = "not an ONNX model, or a damaged one"


def load(path: str | os.PathLike[str] | bytes) -> Graph:
    """Read an ONNX model.

    - `path`: the file, or the model's bytes.

    Raises ConvwrightError for what cannot be read as a model, and for models that break ONNX's rules.
    """
    if isinstance(path, (bytes, bytearray, memoryview)):
        return _guarded(io.BytesIO(path), len(path), None, "model")
    place = Path(path)
    shown = repr(str(place))
    try:
        if place.is_dir():
            raise ConvwrightError(f"{shown} is a directory, not an ONNX file")
        with open(place, "rb") as file:
            return _guarded(file, os.fstat(file.fileno()).st_size, place.parent, shown)
    except FileNotFoundError as error:
        raise ConvwrightError(f"no such file: {shown}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ConvwrightError):
            raise
        raise ConvwrightError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from error


def _guarded(file: BinaryIO, size: int, folder: Path | None, shown: str) -> Graph:
    try:
        proto, cut = _parsed(file, size)
        return _Reader(folder, cut).model(proto)
    except ConvwrightError as error:
        raise ConvwrightError(f"{shown}: {error}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ConvwrightError(f"{shown}: {_DAMAGED}: {_first_line(error)}") from error
    except MemoryError as error:
        raise ConvwrightError(f"{shown}: its tensors do not fit into memory") from error


def _parsed(file: BinaryIO, size: int) -> tuple[Any, Cut]:
    """The onnx.ModelProto without the large tensors, and these."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if size == 0:
        raise ConvwrightError("the file is empty")
    if size >= _LARGEST_FILE:
        raise ConvwrightError(f"it has {size} bytes; ONNX keeps weights of 2 GB and more in files of their own")
    rest, cut = without_large_tensors(file, size)
    try:
        return onnx.load_model_from_string(rest), cut
    except DecodeError as error:
        raise ConvwrightError(f"{_DAMAGED}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _text(value: str | bytes) -> str:
    """A protobuf string, which the parser hands over as bytes where they are not UTF-8."""
    if isinstance(value, bytes):
        raise ConvwrightError(f"{_DAMAGED}: a name is not text")
    return value


def _domain(value: str | bytes) -> str:
    return "" if value == "ai.onnx" else _text(value)


class _Reader:
    def __init__(self, folder: Path | None, cut: Cut) -> None:
        self.folder, self.cut = folder, cut
        self.depth = 0
        self.opset = 0

    def model(self, proto: Any) -> Graph:
        if not proto.HasField("graph"):
            raise ConvwrightError(f"{_DAMAGED}: it holds no graph")
        own = {function.name for function in proto.functions if function.domain == INTERNAL and operator(function.name)}
        if len(own) < len(proto.functions):
            proto = _inlined(proto, own)
        opsets = {_domain(entry.domain): entry.version for entry in proto.opset_import}
        opset = opsets.pop("", 0)
        if opset < OLDEST:
            raise ConvwrightError(f"the model uses opset {opset or 1}; {OLDEST} is the oldest that is understood")
        self.opset = opset
        nodes, constants = self._content(proto.graph)
        if own:
            opsets.pop(INTERNAL, None)
            nodes = [known_again(node) if node.domain == INTERNAL and node.op in own else node for node in nodes]
        inputs: dict[str, ValueInfo] = {}
        for value in proto.graph.input:
            name = _name(value)
            if name in inputs:
                raise ConvwrightError(f"input {name!r} is declared twice")
            if name not in constants:
                inputs[name] = _value_info(value.type, name)
        nodes = sort_nodes(nodes, [*inputs, *constants])
        graph = Graph(_text(proto.graph.name), inputs, _outputs(proto.graph), nodes, constants, opset, opsets)
        graph.validate()
        return settle_branches(normalise(graph))

    def _subgraph(self, proto: Any) -> Graph:
        """Types of a subgraph's inputs and the order of its nodes matter only once it takes the place of its node."""
        self.depth += 1
        if self.depth > _DEEPEST_SUBGRAPH:
            raise ConvwrightError(f"graphs are nested more than {_DEEPEST_SUBGRAPH} deep")
        nodes, constants = self._content(proto)
        self.depth -= 1
        return Graph(_text(proto.name), {}, _outputs(proto), nodes, constants, self.opset)

    def _content(self, proto: Any) -> tuple[list[Node], dict[str, np.ndarray[Any, Any]]]:
        """Nodes and constants of an onnx.GraphProto."""
        if proto.sparse_initializer:
            raise ConvwrightError("sparse constants are not supported")
        nodes: list[Node] = []
        constants: dict[str, np.ndarray[Any, Any]] = {}

        def define(name: str, array: np.ndarray[Any, Any]) -> None:
            if not name:
                raise ConvwrightError("a constant has no name")
            if name in constants:
                raise ConvwrightError(f"constant {name!r} is defined twice")
            constants[name] = array

        for tensor in proto.initializer:
            define(_text(tensor.name), array_of(tensor, self.folder, self.cut))
        for entry in proto.node:
            node = self._node(entry)
            if node.op == "Constant" and not node.domain:
                define(node.outputs[0], _constant(node))
            else:
                nodes.append(node)
        return nodes, constants

    def _node(self, proto: Any) -> Node:
        node = Node(
            _text(proto.op_type),
            [_text(name) for name in proto.input],
            [_text(name) for name in proto.output],
            {_text(attribute.name): self._attribute(attribute) for attribute in proto.attribute},
            _text(proto.name),
            _domain(proto.domain),
        )
        if not node.op or not (node.op + node.domain).isprintable():
            raise ConvwrightError(f"operator {node.op!r} of domain {node.domain!r} is not a name")
        if not any(node.outputs):
            raise ConvwrightError(f"{node} has no outputs")
        if not node.domain:
            check_node(node)
        return node

    def _attribute(self, proto: Any) -> Any:
        """The attribute's value; None for kinds that no supported operator has."""
        import onnx
        from onnx import helper

        value = helper.get_attribute_value(proto)
        if isinstance(value, onnx.TensorProto):
            return array_of(value, self.folder, self.cut)
        if isinstance(value, onnx.GraphProto):
            return self._subgraph(value)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, list):
            return _plain_items(value)
        return value if isinstance(value, (int, float)) else None


def _plain_items(values: Iterable[Any]) -> tuple[int | float | str, ...] | None:
    items = tuple(item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in values)
    return items if all(isinstance(item, (int, float, str)) for item in items) else None


def _inlined(proto: Any, but: Collection[str]) -> Any:
    """A model with functions of its own, which the onnx package writes out where they are called.

    - `but`: functions of the domain `convwright` that stay.
    """
    import onnx.inliner

    kept = [(INTERNAL, name) for name in but]
    try:
        if not kept:
            return onnx.inliner.inline_local_functions(proto)
        return onnx.inliner.inline_selected_functions(proto, kept, exclude=True)
    except Exception as error:
        raise ConvwrightError(f"its functions cannot be inlined: {_first_line(error)}") from error


def _constant(node: Node) -> np.ndarray[Any, Any]:
    """The array of a Constant node."""
    given = node.attributes
    if isinstance(given.get("value"), np.ndarray):
        array: np.ndarray[Any, Any] = given["value"]
        return array
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64)):
        if name in given:
            return np.array(given[name], dtype)
    if "value_ints" in given:
        return np.array(given["value_ints"], np.int64)
    for name in ("value_string", "value_strings"):
        if name in given:
            return np.array(given[name], object)
    raise ConvwrightError(f"{node} has no value that is supported; it has {sorted(given) or 'no attributes'}")


def _name(value: Any) -> str:
    """The name in an onnx.ValueInfoProto."""
    if not value.name:
        raise ConvwrightError("an input or output has no name")
    return _text(value.name)


def _outputs(proto: Any) -> list[str]:
    return [_name(value) for value in proto.output]


def _value_info(proto: Any, name: str) -> ValueInfo:
    """The ValueInfo of an input of this onnx.TypeProto; without a shape it is an error, as nothing could follow."""
    if proto.WhichOneof("value") not in (None, "tensor_type"):
        raise ConvwrightError(f"input {name!r} is not a tensor, which is not supported")
    kind = proto.tensor_type
    dtype = element_type(kind.elem_type, f"input {name!r}")
    if not kind.HasField("shape"):
        raise ConvwrightError(f"input {name!r} is declared without a shape; at least its rank must be known")
    return ValueInfo(dtype, tuple(_dimension(dimension) for dimension in kind.shape.dim))


def _dimension(proto: Any) -> Dimension:
    if proto.WhichOneof("value") == "dim_value":
        # Some exporters write -1 for a size that may vary.
        size: int = proto.dim_value
        return size if size >= 0 else None
    symbol = _text(proto.dim_param)
    return symbol if symbol and symbol.isprintable() else None
