"""Concrete types of every value of a graph, given the shapes of its inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.evaluate import EVALUATORS, evaluate
from convwright.graph.graph import INTERNAL, Graph, Node, ValueInfo
from convwright.graph.shape_rules import RULES, Scope

_SMALL = 1024
"""Values of at most this many elements are followed through shape arithmetic."""

_FROM_SHAPE = {"Shape", "Size"}


@dataclass(slots=True)
class Inferred:
    """What `infer` found.

    - `values`: type of every value, constants included, with a concrete shape.
    - `constants`: contents of the values that turned out not to depend on the data (shape arithmetic), by name; the
      graph's own constants are not repeated here.
    """

    values: dict[str, ValueInfo]
    constants: dict[str, np.ndarray[Any, Any]]

    def __getitem__(self, name: str) -> ValueInfo:
        return self.values[name]


def infer(graph: Graph, shapes: Mapping[str, Iterable[int]] | None = None) -> Inferred:
    """Types of all values of `graph`.

    - `shapes`: by input name; inputs whose declared shape is concrete may be left out.

    Raises ConvwrightError for shapes that the graph does not accept, naming the node that objects.
    """
    scope = Scope(graph.constants, graph.opset)
    _walk(graph, shapes or {}, scope)
    return Inferred(scope.values, scope.constants)


def infer_leniently(graph: Graph, shapes: Mapping[str, Iterable[int]]) -> Inferred:
    """Like `infer`, but stops quietly at the first node that does not accept its inputs."""
    scope = Scope(graph.constants, graph.opset)
    with suppress(ConvwrightError):
        _walk(graph, shapes, scope)
    return Inferred(scope.values, scope.constants)


def _walk(graph: Graph, shapes: Mapping[str, Iterable[int]], scope: Scope) -> None:
    values = scope.values
    for name, info in concrete_inputs(graph, shapes).items():
        values[name] = info
    for name, array in graph.constants.items():
        values[name] = ValueInfo(array.dtype, array.shape)
    for node in graph.nodes:
        infer_next(scope, node, graph)


def infer_next(scope: Scope, node: Node, graph: Graph) -> None:
    """Add to `scope` the types of what `node` defines; those of its inputs are there.

    Raises ConvwrightError, naming the node, for inputs or attributes that it cannot have.
    """
    try:
        infos = _types(scope, node, graph)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ConvwrightError):
            raise
        raise ConvwrightError(f"{node}: its inputs or attributes make no sense: {error!r}") from error
    if len(node.outputs) > len(infos) and any(node.outputs[len(infos) :]):
        raise ConvwrightError(f"{node} has {len(node.outputs)} outputs, {len(infos)} are supported")
    for name, info in zip(node.outputs, infos, strict=False):
        if name:
            scope.values[name] = info


def _types(scope: Scope, node: Node, graph: Graph) -> list[ValueInfo]:
    plain = not node.domain
    if plain and node.op in EVALUATORS and node.op not in _FROM_SHAPE:
        # Cheap test first: nearly every node's first input depends on the data.
        first = node.inputs[0] if node.inputs else ""
        if first in scope.constants or first in scope.weights:
            folded = _fold(scope, node)
            if folded is not None:
                return folded
    rule = RULES.get(node.op) if plain or node.domain == INTERNAL else None
    return rule(scope, node) if rule is not None else _by_onnx(scope, node, graph)


def concrete_inputs(graph: Graph, shapes: Mapping[str, Iterable[int]]) -> dict[str, ValueInfo]:
    """The graph's inputs with the given shapes, checked against what the graph declares."""
    for name in shapes:
        if name not in graph.inputs:
            raise ConvwrightError(f"no input named {name!r}; the graph's inputs are {list(graph.inputs)}")
    result = {}
    symbols: dict[str, tuple[int, str]] = {}
    for name, info in graph.inputs.items():
        given = shapes.get(name)
        if given is None:
            if not all(isinstance(size, int) for size in info.shape):
                raise ConvwrightError(f"input {name!r} is declared as {info}: a concrete shape is needed")
            result[name] = info
            continue
        shape = tuple(int(size) for size in given)
        if len(shape) != len(info.shape):
            raise ConvwrightError(f"input {name!r} has shape {shape}, the graph declares {info}")
        for size, declared in zip(shape, info.shape, strict=True):
            if size < 0 or (isinstance(declared, int) and size != declared):
                raise ConvwrightError(f"input {name!r} has shape {shape}, the graph declares {info}")
            if isinstance(declared, str):
                first, of = symbols.setdefault(declared, (size, name))
                if first != size:
                    raise ConvwrightError(f"dimension {declared!r} is {first} in input {of!r} and {size} in {name!r}")
        result[name] = ValueInfo(info.dtype, shape)
    return result


def _fold(scope: Scope, node: Node) -> list[ValueInfo] | None:
    """Types of the outputs after computing them, if all inputs are known and small."""
    arrays: list[np.ndarray[Any, Any] | None] = []
    for name in node.inputs:
        array = scope.known(name) if name else None
        if name and (array is None or array.size > _SMALL):
            return None
        arrays.append(array)
    if node.op in RULES:
        infos = RULES[node.op](scope, node)
        if any(math.prod(info.shape) > _SMALL for info in infos):  # type: ignore[arg-type]
            return None
    results = evaluate(node, arrays)
    if results is None:
        return None
    for name, array in zip(node.outputs, results, strict=False):
        if name:
            scope.constants[name] = array
    return [ValueInfo(array.dtype, array.shape) for array in results]


_CACHE: dict[Any, list[ValueInfo]] = {}


def _by_onnx(scope: Scope, node: Node, graph: Graph) -> list[ValueInfo]:
    """Operators without a rule here: the onnx package's inference, on a model of this one node."""
    from convwright.graph.onnx_inference import infer_node

    for name in node.inputs:
        if name and name not in scope.values:
            raise ConvwrightError(f"{node}: input {name!r} is not defined before it")
    infos = [scope.values[name] if name else None for name in node.inputs]
    contents = [scope.known(name) if name else None for name in node.inputs]
    small = [None if array is None or array.size > _SMALL or array.dtype == object else array for array in contents]
    key = (
        node.op,
        node.domain,
        tuple((name, repr(value)) for name, value in sorted(node.attributes.items())),
        tuple(None if info is None else (info.dtype.str, info.shape) for info in infos),
        tuple(None if array is None else array.tobytes() for array in small),
        len(node.outputs),
        graph.opset,
        tuple(graph.domains.items()),
    )
    found = _CACHE.get(key)
    if found is None:
        found = _CACHE[key] = infer_node(node, infos, small, graph.opset, graph.domains)
    return found
