"""Matrix products."""

from __future__ import annotations

from convwright.errors import ConvwrightError
from convwright.graph.graph import Node, ValueInfo
from convwright.graph.shape_rules.scope import Rule, Scope, Shape, broadcast


def _matmul(scope: Scope, node: Node) -> list[ValueInfo]:
    info, first, second = scope.info(node, 0), scope.shape(node, 0), scope.shape(node, 1)
    left: Shape = first if len(first) > 1 else (1, *first)
    right: Shape = second if len(second) > 1 else (*second, 1)
    if not first or not second or left[-1] != right[-2]:
        raise ConvwrightError(f"{node}: cannot multiply shapes {first} and {second}")
    result = broadcast(node, left[:-2], right[:-2])
    if len(first) > 1:
        result += (left[-2],)
    if len(second) > 1:
        result += (right[-1],)
    return [ValueInfo(info.dtype, result)]


def _gemm(scope: Scope, node: Node) -> list[ValueInfo]:
    info, first, second = scope.info(node, 0), scope.shape(node, 0), scope.shape(node, 1)
    if len(first) != 2 or len(second) != 2:
        raise ConvwrightError(f"{node}: shapes {first} and {second} are not two matrices")
    rows, inner = first[::-1] if node.get("transA", 0) else first
    other, columns = second[::-1] if node.get("transB", 0) else second
    if inner != other:
        raise ConvwrightError(f"{node}: shapes {first} and {second} do not match in their inner dimension")
    if node.input(2):
        bias = scope.shape(node, 2)
        if broadcast(node, (rows, columns), bias) != (rows, columns):
            raise ConvwrightError(f"{node}: bias of shape {bias} for a result of shape {(rows, columns)}")
    return [ValueInfo(info.dtype, (rows, columns))]


RULES: dict[str, Rule] = {"MatMul": _matmul, "Gemm": _gemm}
