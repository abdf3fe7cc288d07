"""What a shape rule sees: the types of the values so far, and those whose contents are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import Node, ValueInfo

Shape = tuple[int, ...]


class Scope:
    """Types of the values inferred so far (`values`) and the contents of those that are known (`constants`)."""

    __slots__ = ("constants", "opset", "values", "weights")

    def __init__(self, weights: dict[str, np.ndarray[Any, Any]], opset: int) -> None:
        self.values: dict[str, ValueInfo] = {}
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.weights = weights
        self.opset = opset

    def info(self, node: Node, index: int) -> ValueInfo:
        """Type of input `index`, which the operator requires."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if not name:
            raise ConvwrightError(f"{node}: input {index} is missing")
        return self.values[name]

    def shape(self, node: Node, index: int) -> Shape:
        return self.info(node, index).shape  # type: ignore[return-value]

    def known(self, name: str) -> np.ndarray[Any, Any] | None:
        """Contents of a value, or None where they depend on the data."""
        found = self.constants.get(name)
        return self.weights.get(name) if found is None else found

    def content(self, node: Node, index: int, what: str) -> np.ndarray[Any, Any]:
        """Contents of input `index`, which the operator's output shape depends on."""
        name = node.input(index)
        if not name:
            raise ConvwrightError(f"{node}: input {index} ({what}) is missing")
        found = self.known(name)
        if found is None:
            raise ConvwrightError(
                f"{node}: its {what} ({name!r}) depends on the data, so its output has no fixed shape"
            )
        return found

    def integers(self, node: Node, index: int, what: str) -> list[int]:
        """Contents of a one-dimensional integer input."""
        found = self.content(node, index, what)
        if found.dtype.kind not in "iu":
            raise ConvwrightError(f"{node}: its {what} is {found.dtype}, not integers")
        return [int(value) for value in found.reshape(-1)]


Rule = Callable[[Scope, Node], "list[ValueInfo]"]


def axis_of(node: Node, axis: int, rank: int) -> int:
    """A non-negative axis, or an error that names the node."""
    if not -rank <= axis < rank:
        raise ConvwrightError(f"{node}: axis {axis} is out of range for rank {rank}")
    return axis + rank if axis < 0 else axis


def broadcast(node: Node, first: Shape, second: Shape) -> Shape:
    """NumPy's broadcasting of two shapes."""
    if first == second:
        return first
    if len(first) < len(second):
        first, second = second, first
    lead = len(first) - len(second)
    result = list(first[:lead])
    for a, b in zip(first[lead:], second, strict=True):
        if a == b or b == 1:
            result.append(a)
        elif a == 1:
            result.append(b)
        else:
            raise ConvwrightError(f"{node}: shapes {first} and {second} do not broadcast")
    return tuple(result)
