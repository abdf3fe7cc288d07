"""ONNX file -> Graph, in one normal form whatever the file's opset (see `opset.py`)."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ConvwrightError
from . import wire
from .branches import settle_branches
from .checks import check_node
from .graph import Dimension, Graph, Node, ValueInfo, sort_nodes
from .opset import OLDEST, normalise
from .tensors import Tensor, element_type, tensor_from_bytes, tensor_from_file

_DEEPEST_SUBGRAPH = 16


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
        with open(place, "rb", buffering=0) as file:
            return _guarded(file, os.fstat(file.fileno()).st_size, place.parent, shown)
    except FileNotFoundError as error:
        raise ConvwrightError(f"no such file: {shown}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ConvwrightError):
            raise
        raise ConvwrightError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from error


def _guarded(file: BinaryIO, size: int, folder: Path | None, shown: str) -> Graph:
    try:
        if size == 0:
            raise ConvwrightError("the file is empty")
        return _Reader(file, folder).model(size)
    except ConvwrightError as error:
        raise ConvwrightError(f"{shown}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConvwrightError(f"{shown}: not an ONNX model, or a damaged one: a name is not text") from error
    except (struct.error, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ConvwrightError(f"{shown}: not an ONNX model, or a damaged one: {error}") from error
    except MemoryError as error:
        raise ConvwrightError(f"{shown}: its tensors do not fit into memory") from error


class _Reader:
    def __init__(self, file: BinaryIO, folder: Path | None) -> None:
        self.file = file
        self.folder = folder
        self.depth = 0
        self.opset = 0

    def model(self, size: int) -> Graph:
        opsets: dict[str, int] = {}
        graph_at: tuple[int, int] | None = None
        functions = 0
        for number, kind, offset, length in wire.file_fields(self.file, 0, size):
            if kind != wire.BYTES:
                continue
            if number == 7:
                graph_at = offset, length
            elif number == 8:
                domain, version = self._opset(wire.read_bytes(self.file, offset, length))
                opsets[domain] = version
            elif number == 25:
                functions += 1
        if graph_at is None:
            raise ConvwrightError("not an ONNX model, or a damaged one: it holds no graph")
        if functions:
            return self._inlined(size)
        opset = opsets.pop("", 0)
        if opset < OLDEST:
            raise ConvwrightError(f"the model uses opset {opset or 1}; {OLDEST} is the oldest that is understood")
        self.opset = opset
        graph = self._graph(graph_at)
        graph.domains = opsets
        return settle_branches(normalise(graph))

    def _inlined(self, size: int) -> Graph:
        """A model with functions of its own, which the onnx package writes out where they are called."""
        import onnx
        import onnx.inliner

        if size >= 2 << 30:
            raise ConvwrightError("the model has functions of its own and more than 2 GB, which is not supported")
        try:
            model = onnx.load_model_from_string(bytes(wire.read_bytes(self.file, 0, size)))
            model = onnx.inliner.inline_local_functions(model)
            del model.functions[:]
            whole = model.SerializeToString()
        except Exception as error:
            raise ConvwrightError(f"its functions cannot be inlined: {str(error).splitlines()[0]}") from error
        return _Reader(io.BytesIO(whole), self.folder).model(len(whole))

    @staticmethod
    def _opset(message: memoryview) -> tuple[str, int]:
        domain, version = "", 0
        for number, kind, value in wire.fields(message):
            if number == 1 and kind == wire.BYTES:
                domain = str(value, "utf-8")
            elif number == 2 and kind == wire.VARINT:
                version = wire.signed(value)
        return "" if domain == "ai.onnx" else domain, version

    def _graph(self, at: tuple[int, int]) -> Graph:
        """The main graph, whose large tensors go from the file into their arrays."""
        start, length = at
        builder = _GraphBuilder(self)
        for number, kind, offset, size in wire.file_fields(self.file, start, start + length):
            if kind != wire.BYTES:
                continue
            if number == 5:
                builder.constant(tensor_from_file(self.file, offset, size))
            elif number in (1, 2, 11, 12, 15):
                builder.field(number, wire.read_bytes(self.file, offset, size))
        return builder.graph()

    def subgraph(self, message: memoryview) -> Graph:
        self.depth += 1
        if self.depth > _DEEPEST_SUBGRAPH:
            raise ConvwrightError(f"graphs are nested more than {_DEEPEST_SUBGRAPH} deep")
        builder = _GraphBuilder(self, nested=True)
        for number, kind, value in wire.fields(message):
            if kind == wire.BYTES:
                builder.field(number, value)
        self.depth -= 1
        return builder.graph()


class _GraphBuilder:
    """Collects the fields of a GraphProto."""

    def __init__(self, reader: _Reader, *, nested: bool = False) -> None:
        self.reader = reader
        self.nested = nested
        self.name = ""
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.inputs: dict[str, memoryview] = {}
        self.outputs: list[str] = []

    def field(self, number: int, value: memoryview) -> None:
        if number == 1:
            self.node(value)
        elif number == 2:
            self.name = str(value, "utf-8")
        elif number == 5:
            self.constant(tensor_from_bytes(value))
        elif number == 11:
            name, kind = _named_type(value)
            if name in self.inputs:
                raise ConvwrightError(f"input {name!r} is declared twice")
            self.inputs[name] = kind
        elif number == 12:
            self.outputs.append(_named_type(value)[0])
        elif number == 15:
            raise ConvwrightError("sparse constants are not supported")

    def constant(self, tensor: Tensor) -> None:
        self.define(tensor.name, tensor.array(self.reader.folder))

    def define(self, name: str, array: np.ndarray[Any, Any]) -> None:
        if not name:
            raise ConvwrightError("a constant has no name")
        if name in self.constants:
            raise ConvwrightError(f"constant {name!r} is defined twice")
        self.constants[name] = array

    def node(self, message: memoryview) -> None:
        node = Node("", [], [])
        for number, kind, value in wire.fields(message):
            if kind != wire.BYTES:
                continue
            if number == 1:
                node.inputs.append(str(value, "utf-8"))
            elif number == 2:
                node.outputs.append(str(value, "utf-8"))
            elif number == 3:
                node.name = str(value, "utf-8")
            elif number == 4:
                node.op = str(value, "utf-8")
            elif number == 5:
                name, attribute = self.attribute(value)
                node.attributes[name] = attribute
            elif number == 7:
                domain = str(value, "utf-8")
                node.domain = "" if domain == "ai.onnx" else domain
        if not node.op or not (node.op + node.domain).isprintable():
            raise ConvwrightError(f"operator {node.op!r} of domain {node.domain!r} is not a name")
        if not any(node.outputs):
            raise ConvwrightError(f"{node} has no outputs")
        if not node.domain:
            check_node(node)
        if node.op == "Constant" and not node.domain:
            self.define(node.outputs[0], _constant(node))
        else:
            self.nodes.append(node)

    def attribute(self, message: memoryview) -> tuple[str, Any]:
        name, kind_code, single = "", 0, None
        floats: list[float] = []
        ints: list[int] = []
        strings: list[str] = []
        for number, kind, value in wire.fields(message):
            packed = kind == wire.BYTES
            if number == 1 and packed:
                name = str(value, "utf-8")
            elif number == 2 and kind == wire.FIXED32:
                single = struct.unpack("<f", value)[0]
            elif number == 3 and kind == wire.VARINT:
                single = wire.signed(value)
            elif number == 4 and packed:
                single = str(value, "utf-8", "replace")
            elif number == 5 and packed:
                single = tensor_from_bytes(value).array(self.reader.folder)
            elif number == 6 and packed:
                single = self.reader.subgraph(value)
            elif number == 7 and kind != wire.VARINT:
                floats += np.frombuffer(value, "<f4").tolist()
            elif number == 8 and kind in (wire.BYTES, wire.VARINT):
                ints += map(wire.signed, wire.packed_varints(value).tolist() if packed else [value])
            elif number == 9 and packed:
                strings.append(str(value, "utf-8", "replace"))
            elif number == 20 and kind == wire.VARINT:
                kind_code = value
        if floats or kind_code == 6:
            return name, tuple(floats)
        if ints or kind_code == 7:
            return name, tuple(ints)
        if strings or kind_code == 8:
            return name, tuple(strings)
        if single is None:
            # Writers may leave out a field that holds its default value.
            single = {1: 0.0, 2: 0, 3: ""}.get(kind_code)
        return name, single

    def graph(self) -> Graph:
        if self.nested:
            # Types of a subgraph's inputs and the order of its nodes matter only once it takes the place of its node.
            return Graph(self.name, {}, self.outputs, self.nodes, self.constants, self.reader.opset)
        inputs = {name: _value_info(kind, name) for name, kind in self.inputs.items() if name not in self.constants}
        graph = Graph(self.name, inputs, self.outputs, self.nodes, self.constants, self.reader.opset)
        graph.nodes = sort_nodes(self.nodes, [*inputs, *self.constants])
        graph.validate()
        return graph


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


def _named_type(message: memoryview) -> tuple[str, memoryview]:
    """Name and TypeProto of a ValueInfoProto."""
    name, kind_of = "", memoryview(b"")
    for number, kind, value in wire.fields(message):
        if number == 1 and kind == wire.BYTES:
            name = str(value, "utf-8")
        elif number == 2 and kind == wire.BYTES:
            kind_of = value
    if not name:
        raise ConvwrightError("an input or output has no name")
    return name, kind_of


def _value_info(message: memoryview, name: str) -> ValueInfo:
    """The ValueInfo of an input from its TypeProto; a missing shape is an error, as nothing could follow from it."""
    code, shape = 0, None
    for number, kind, tensor in wire.fields(message):
        if number != 1 or kind != wire.BYTES:
            raise ConvwrightError(f"input {name!r} is not a tensor, which is not supported")
        for part, part_kind, value in wire.fields(tensor):
            if part == 1 and part_kind == wire.VARINT:
                code = value
            elif part == 2 and part_kind == wire.BYTES:
                shape = tuple(
                    _dimension(dim, name) for at, kind, dim in wire.fields(value) if at == 1 and kind == wire.BYTES
                )
    dtype = element_type(code, f"input {name!r}")
    if shape is None:
        raise ConvwrightError(f"input {name!r} is declared without a shape; at least its rank must be known")
    return ValueInfo(dtype, shape)


def _dimension(message: memoryview, name: str) -> Dimension:
    for number, kind, value in wire.fields(message):
        if number == 1 and kind == wire.VARINT:
            size = wire.signed(value)
            if size < 0:
                # Some exporters write -1 for a size that may vary.
                return None
            return size
        if number == 2 and kind == wire.BYTES:
            symbol = str(value, "utf-8")
            return symbol if symbol.isprintable() and symbol else None
    return None
