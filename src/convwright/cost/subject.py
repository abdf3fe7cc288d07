"""What costs are asked of, as a graph and the shapes of its inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import INTERNAL, Graph, Node, ValueInfo
from convwright.spec import (
    ConvSpec,
    DeformableSpec,
    HetSpec,
    IntegerSpec,
    MixSpec,
    SeparableSpec,
    ShuffledSpec,
    SpatialSpec,
    Spec,
)
from convwright.spec.checks import checked_axes, checked_int, show

Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]


def graph_of(
    subject: Any,
    shapes: Mapping[str, Iterable[int]] | Sequence[int] | None,
    input_size: Sequence[int] | None,
    batch: int | None,
    dtype: str,
) -> tuple[Graph, dict[str, Shape]]:
    """The graph, and the shape of every input. Arguments as those of `cost`."""
    if isinstance(subject, Spec):
        return _graph_of_spec(subject, shapes, input_size, batch, dtype)
    if input_size is not None:
        raise ConvwrightError(f"input_size {show(input_size)} is for a convolution; a network takes shapes")
    graph = _network(subject)
    return graph, input_shapes(graph, shapes, batch)


def _network(subject: Any) -> Graph:
    if isinstance(subject, Graph):
        return subject
    if isinstance(subject, str | os.PathLike):
        from convwright.graph.onnx_reader import load

        return load(subject)
    outline = getattr(subject, "outline", None)  # a Model, without importing the compiler to know it
    if isinstance(outline, Graph):
        return outline
    raise ConvwrightError(
        f"cost takes a Graph, a Model, an ONNX file's path or a specification, got {type(subject).__name__}"
    )


def input_shapes(
    graph: Graph, shapes: Mapping[str, Iterable[int]] | Sequence[int] | None, batch: int | None = None
) -> dict[str, Shape]:
    """The shape of every input: as given, else as declared; a free first axis is the batch, 1."""
    if shapes is None:
        given: dict[str, Shape] = {}
    elif isinstance(shapes, Mapping):
        given = {name: tuple(shape) for name, shape in shapes.items()}
    else:
        if len(graph.inputs) != 1:
            raise ConvwrightError(f"shape {show(shapes)} for one of the inputs {list(graph.inputs)}: give them by name")
        given = {next(iter(graph.inputs)): tuple(shapes)}
    if batch is not None:
        checked_int("batch", batch, 1)
    found = {}
    for name, info in graph.inputs.items():
        sizes: list[Any] = list(given.pop(name, info.shape))
        if sizes and batch is not None:
            sizes[0] = batch
        elif sizes and not isinstance(sizes[0], int | np.integer):
            sizes[0] = 1
        if not all(isinstance(size, int | np.integer) for size in sizes):
            raise ConvwrightError(f"input {name!r} is declared as {info}, which leaves sizes open: give shapes")
        found[name] = tuple(int(size) for size in sizes)
    if given:
        raise ConvwrightError(f"no input named {next(iter(given))!r}; the graph's inputs are {list(graph.inputs)}")
    return found


def _graph_of_spec(
    spec: Spec, shapes: Any, input_size: Sequence[int] | None, batch: int | None, dtype: str
) -> tuple[Graph, dict[str, Shape]]:
    parts = _Parts(_dtype(dtype))
    channels = _channels(spec)
    if shapes is not None:
        if isinstance(shapes, Mapping) or input_size is not None:
            raise ConvwrightError(f"a convolution takes input_size or one shape, got shapes {show(shapes)}")
        shape = tuple(shapes)
        if len(shape) != spec.rank + 2 or shape[1] != channels:
            sizes = ", ".join(("D", "H", "W")[-spec.rank :])
            raise ConvwrightError(f"shapes {show(shapes)} must be (N, {channels}, {sizes}) for a convolution")
        first = checked_int("batch", shape[0] if batch is None else batch, 1)
        size = checked_axes("input size", shape[2:], spec.rank, 1)
    else:
        if input_size is None:
            raise ConvwrightError(f"a convolution's cost needs its input_size, {spec.rank} ints")
        first = checked_int("batch", 1 if batch is None else batch, 1)
        size = checked_axes("input_size", input_size, spec.rank, 1)
    result = parts.add(spec, size, first)
    graph = Graph(spec.kind, parts.inputs, [result], parts.nodes, parts.constants)
    return graph, {name: info.shape for name, info in parts.inputs.items()}  # type: ignore[misc]


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found.kind != "f":
        raise ConvwrightError(f"dtype must be a floating type, got {dtype!r}")
    return found


def _channels(spec: Spec) -> int:
    if isinstance(spec, MixSpec):
        return spec.channels
    conv: ConvSpec = spec if isinstance(spec, ConvSpec) else spec.conv  # type: ignore[attr-defined]
    return conv.in_channels


class _Parts:
    """Nodes, inputs and constants of a graph that is one convolution."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.inputs: dict[str, ValueInfo] = {}
        self.constants: dict[str, Array] = {}
        self.nodes: list[Node] = []

    def add(self, spec: Spec, size: Shape, batch: int) -> str:
        """Add the convolution with its input; returns the name of its output."""
        x = self.input("x", (batch, _channels(spec), *size))
        if isinstance(spec, ConvSpec):
            return self.node("Convolution", [x, *self.weights(spec)], spec.kind, spec=spec)
        if isinstance(spec, SeparableSpec | SpatialSpec):
            names = ("depthwise", "pointwise") if isinstance(spec, SeparableSpec) else ("first", "second")
            for name, stage in zip(names, spec.stages, strict=True):
                x = self.node("Convolution", [x, *self.weights(stage, f"{name}.")], name, spec=stage)
            return x
        if isinstance(spec, ShuffledSpec):
            y = self.node("Convolution", [x, *self.weights(spec.conv)], "pointwise", spec=spec.conv)
            return self.node("ChannelShuffle", [y], "shuffle", groups=spec.conv.groups)
        if isinstance(spec, HetSpec):
            return self.node("HetConvolution", [x, *self.weights(spec.conv)], spec.kind, spec=spec)
        if isinstance(spec, MixSpec):
            weights = [self.weights(part, f"{place}.") for place, part in enumerate(spec.parts)]
            inputs = [x, *(names[0] for names in weights), *(names[1] for names in weights if len(names) > 1)]
            return self.node("MixConvolution", inputs, spec.kind, parts=spec.parts)
        if isinstance(spec, DeformableSpec):
            return self.deformable(x, spec, size, batch)
        if isinstance(spec, IntegerSpec):
            return self.integer(spec, size, batch)
        raise ConvwrightError(f"no cost is known of a {type(spec).__name__}")

    def deformable(self, x: str, spec: DeformableSpec, size: Shape, batch: int) -> str:
        weight, *bias = self.weights(spec.conv)
        offset = self.input("offset", spec.offset_shape(size, batch))
        inputs = [x, weight, offset, *(bias or [""])]
        if spec.modulated:
            inputs.append(self.input("mask", spec.mask_shape(size, batch)))
        return self.onnx("DeformConv", inputs, spec, size, offset_group=spec.offset_groups)

    def integer(self, spec: IntegerSpec, size: Shape, batch: int) -> str:
        info = ValueInfo(np.dtype(np.int8 if spec.input_signed else np.uint8), self.inputs["x"].shape)
        self.inputs["x"] = info
        kind = np.dtype(np.int8 if spec.weight_signed else np.uint8)
        weight = self.constant("weight", spec.weight_shape, kind)
        zeros = [self.constant("x_zero_point", (), info.dtype)]
        points = spec.weight_zero_point
        zeros.append(self.constant("weight_zero_point", (len(points),) if len(points) > 1 else (), kind))
        y = self.onnx("ConvInteger", ["x", weight, *zeros], spec, size)
        if not spec.conv.bias:
            return y
        shape = (spec.conv.out_channels, *(1,) * spec.rank)
        return self.node("Add", [y, self.constant("bias", shape, np.dtype(np.int32))], "bias", domain="")

    def onnx(self, op: str, inputs: list[str], spec: Any, size: Shape, **attributes: Any) -> str:
        conv: ConvSpec = spec.conv
        pads = conv.pads(size)
        return self.node(
            op, inputs, spec.kind, domain="", kernel_shape=conv.kernel, strides=conv.stride, dilations=conv.dilation,
            group=conv.groups, pads=(*(low for low, _ in pads), *(high for _, high in pads)), **attributes,
        )  # fmt: skip

    def input(self, name: str, shape: Shape) -> str:
        self.inputs[name] = ValueInfo(self.dtype, shape)
        return name

    def constant(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> str:
        self.constants[name] = np.broadcast_to(np.zeros((), dtype), shape)
        return name

    def weights(self, spec: ConvSpec, prefix: str = "") -> list[str]:
        names = [self.constant(f"{prefix}weight", spec.weight_shape, self.dtype)]
        if spec.bias:
            names.append(self.constant(f"{prefix}bias", (spec.out_channels,), self.dtype))
        return names

    def node(self, op: str, inputs: list[str], name: str, *, domain: str = INTERNAL, **attributes: Any) -> str:
        result = f"y{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, [result], attributes, name, domain))
        return result
