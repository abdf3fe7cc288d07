"""Operators that reduce axes."""

from __future__ import annotations

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import Node, ValueInfo, names
from convwright.graph.shape_rules.scope import Rule, Scope, Shape, axis_of


def _drop(shape: Shape, axes: set[int], keep: bool) -> Shape:
    if keep:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _reduce(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    axes = {axis_of(node, axis, len(shape)) for axis in scope.integers(node, 1, "axes")} if node.input(1) else set()
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return [info]
        axes = set(range(len(shape)))
    return [ValueInfo(info.dtype, _drop(shape, axes, bool(node.get("keepdims", 1))))]


def _arg(scope: Scope, node: Node) -> list[ValueInfo]:
    shape = scope.shape(node, 0)
    axis = axis_of(node, node.get("axis", 0), len(shape))
    return [ValueInfo(np.dtype(np.int64), _drop(shape, {axis}, bool(node.get("keepdims", 1))))]


def _top_k(scope: Scope, node: Node) -> list[ValueInfo]:
    info, shape = scope.info(node, 0), scope.shape(node, 0)
    axis = axis_of(node, node.get("axis", -1), len(shape))
    (count,) = scope.integers(node, 1, "k") or (0,)
    if not 0 <= count <= shape[axis]:
        raise ConvwrightError(f"{node}: the {count} largest of {shape[axis]}")
    result = (*shape[:axis], count, *shape[axis + 1 :])
    return [ValueInfo(info.dtype, result), ValueInfo(np.dtype(np.int64), result)]


RULES: dict[str, Rule] = {"ArgMax": _arg, "ArgMin": _arg, "TopK": _top_k}
for _operator in names(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
):
    RULES[_operator] = _reduce
