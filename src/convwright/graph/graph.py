"""A network: nodes in topological order, over named values."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError

Dimension = int | str | None
Attribute = Any
"""int, float, str, ndarray, Graph (a subgraph), or a tuple of ints, floats or strings."""

INTERNAL = "convwright"
"""Domain of the operators that `rewrites.simplify` introduces and ONNX does not have."""


def names(text: str) -> list[str]:
    """A list of names, written as one string for tables of operators."""
    return text.split()


@dataclass(slots=True)
class ValueInfo:
    """Data type and shape of a value; a dimension is a size, a symbol's name, or None where nothing is known."""

    dtype: np.dtype[Any]
    shape: tuple[Dimension, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"


@dataclass(slots=True, eq=False)
class Node:
    """One operator applied: reads `inputs`, defines `outputs`; `""` stands for an omitted optional value."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    def get(self, name: str, default: Attribute = None) -> Attribute:
        """The attribute `name`, or `default` where the node does not carry it."""
        return self.attributes.get(name, default)

    def input(self, index: int) -> str:
        """Name of input `index`, `""` where it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def copy(self) -> Node:
        return Node(self.op, list(self.inputs), list(self.outputs), dict(self.attributes), self.name, self.domain)

    def __str__(self) -> str:
        """What messages call this node: its operator and its name, or its first output where it has no name."""
        op = f"{self.domain}.{self.op}" if self.domain and self.domain != INTERNAL else self.op
        if self.name:
            return f"node {self.name!r} ({op})"
        return f"node of output {next((out for out in self.outputs if out), '')!r} ({op})"


@dataclass(slots=True, eq=False)
class Graph:
    """A network.

    - `inputs`: what a caller feeds, in order; constants are not among them.
    - `outputs`: names of the values handed back, in order.
    - `nodes`: in topological order.
    - `constants`: weights and other fixed arrays by value name. Treat the arrays as read-only: graphs share them.
    - `opset`: version of the ONNX operator set whose meaning the nodes have.
    """

    name: str
    inputs: dict[str, ValueInfo]
    outputs: list[str]
    nodes: list[Node]
    constants: dict[str, np.ndarray[Any, Any]]
    opset: int = 20
    domains: dict[str, int] = field(default_factory=dict)
    """Versions of the other operator sets, by domain."""

    def copy(self) -> Graph:
        """A graph that can be changed without changing this one; the constants' arrays are shared."""
        return Graph(
            self.name,
            {name: ValueInfo(info.dtype, info.shape) for name, info in self.inputs.items()},
            list(self.outputs),
            [node.copy() for node in self.nodes],
            dict(self.constants),
            self.opset,
            dict(self.domains),
        )

    def producers(self) -> dict[str, Node]:
        """The node that defines each value (graph inputs and constants have none)."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, one entry a node; being a graph output does not count."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name:
                    readers.setdefault(name, []).append(node)
        return readers

    def names(self) -> Iterator[str]:
        """Every value's name: inputs, constants, and what nodes define."""
        yield from self.inputs
        yield from self.constants
        for node in self.nodes:
            yield from (out for out in node.outputs if out)

    def validate(self) -> None:
        """Raise ConvwrightError unless every name is defined once and before its use."""
        defined = set(self.inputs)
        for name in self.constants:
            if name in defined:
                raise ConvwrightError(f"graph {self.name!r}: {name!r} is both an input and a constant")
            defined.add(name)
        for node in self.nodes:
            for name in node.inputs:
                if name and name not in defined:
                    raise ConvwrightError(f"{node}: input {name!r} is not defined before it")
            for name in node.outputs:
                if name in defined:
                    raise ConvwrightError(f"{node}: output {name!r} is defined twice")
                if name:
                    defined.add(name)
        if not self.outputs:
            raise ConvwrightError(f"graph {self.name!r} has no outputs")
        for name in self.outputs:
            if name not in defined:
                raise ConvwrightError(f"graph {self.name!r}: output {name!r} is not defined by any node")

    def save(self, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
        """Write an ONNX file; see `onnx_writer.save`."""
        from convwright.graph.onnx_writer import save

        save(self, path, external_data=external_data)

    def __str__(self) -> str:
        inputs = ", ".join(f"{name}: {info}" for name, info in self.inputs.items())
        return f"Graph {self.name!r} ({inputs}) -> {', '.join(self.outputs)}: {len(self.nodes)} nodes"


def sort_nodes(nodes: Iterable[Node], defined: Iterable[str]) -> list[Node]:
    """The nodes in topological order, keeping the given order where it is one already.

    Raises ConvwrightError for a value that nobody defines and for a cycle.
    """
    known = set(defined)
    known.add("")
    ordered: list[Node] = []
    waiting = list(nodes)
    missing: dict[int, int] = {}
    readers: dict[str, list[Node]] = {}
    ready: list[Node] = []

    def place(node: Node) -> None:
        ordered.append(node)
        for out in node.outputs:
            if out not in known:
                known.add(out)
                for reader in readers.pop(out, ()):
                    missing[id(reader)] -= 1
                    if missing[id(reader)] == 0:
                        ready.append(reader)

    for node in waiting:
        absent = {name for name in node.inputs if name not in known}
        if absent:
            missing[id(node)] = len(absent)
            for name in absent:
                readers.setdefault(name, []).append(node)
            continue
        ready.append(node)
        while ready:
            place(ready.pop())
    if len(ordered) < len(waiting):
        produced = {out for node in waiting for out in node.outputs}
        for node in waiting:
            for name in node.inputs:
                if name not in known and name not in produced:
                    raise ConvwrightError(f"{node}: input {name!r} is not defined")
        stuck = next(node for node in waiting if missing.get(id(node)))
        raise ConvwrightError(f"{stuck}: the nodes form a cycle through its inputs")
    return ordered
