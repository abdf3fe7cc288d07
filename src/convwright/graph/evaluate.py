"""Operators on known arrays, in NumPy: what shape arithmetic and constant folding need, and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import Node
from convwright.graph.tensors import element_type

Array = np.ndarray[Any, Any]
Evaluator = Callable[[Node, Sequence[Array]], "list[Array]"]


def evaluate(node: Node, inputs: Sequence[Array | None]) -> list[Array] | None:
    """Outputs of `node` for known inputs (None where omitted), or None where it has no evaluator here."""
    rule = None if node.domain else EVALUATORS.get(node.op)
    if rule is None:
        return None
    try:
        with np.errstate(all="ignore"):
            return rule(node, inputs)  # type: ignore[arg-type]
    except (ValueError, IndexError, TypeError, OverflowError, AttributeError) as error:
        shapes = [None if array is None else array.shape for array in inputs]
        raise ConvwrightError(f"{node}: cannot be computed for inputs of shapes {shapes}: {error}") from error


def _unary(function: Callable[[Array], Any]) -> Evaluator:
    return lambda node, inputs: [np.asarray(function(inputs[0])).astype(inputs[0].dtype, copy=False)]


def _binary(function: Callable[[Array, Array], Any]) -> Evaluator:
    def rule(node: Node, inputs: Sequence[Array]) -> list[Array]:
        result = inputs[0]
        for other in inputs[1:]:
            result = np.asarray(function(result, other)).astype(inputs[0].dtype, copy=False)
        return [result]

    return rule


def _compare(function: Callable[[Array, Array], Any]) -> Evaluator:
    return lambda node, inputs: [np.asarray(function(inputs[0], inputs[1]))]


def _divide(first: Array, second: Array) -> Any:
    if first.dtype.kind not in "iu":
        return np.divide(first, second)
    if not np.all(second):
        raise ValueError("division by zero")
    quotient = np.floor_divide(np.abs(first), np.abs(second))
    # ONNX divides integers as C does, towards zero.
    return quotient * np.sign(first) * np.sign(second)


def _mod(node: Node, inputs: Sequence[Array]) -> list[Array]:
    return [np.asarray((np.fmod if node.get("fmod", 0) else np.mod)(inputs[0], inputs[1]))]


def _cast(node: Node, inputs: Sequence[Array]) -> list[Array]:
    return [inputs[0].astype(element_type(node.get("to", 0), str(node)))]


def _gather(node: Node, inputs: Sequence[Array]) -> list[Array]:
    return [np.asarray(np.take(inputs[0], inputs[1], axis=node.get("axis", 0)))]


def _axes(inputs: Sequence[Array | None], index: int = 1) -> tuple[int, ...] | None:
    axes = inputs[index] if index < len(inputs) else None
    return None if axes is None else tuple(int(axis) for axis in axes.reshape(-1))


def _squeeze(node: Node, inputs: Sequence[Array]) -> list[Array]:
    return [np.squeeze(inputs[0], _axes(inputs))]


def _unsqueeze(node: Node, inputs: Sequence[Array]) -> list[Array]:
    return [np.expand_dims(inputs[0], _axes(inputs) or ())]


def _slice(node: Node, inputs: Sequence[Array]) -> list[Array]:
    starts, ends = inputs[1].reshape(-1).tolist(), inputs[2].reshape(-1).tolist()
    axes = _axes(inputs, 3) or range(len(starts))
    steps = _axes(inputs, 4) or (1,) * len(starts)
    picks = [slice(None)] * inputs[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = inputs[0].shape[axis]
        first, last, step = slice(start, end, step).indices(length)
        picks[axis] = slice(first, None if last < 0 else last, step)
    return [inputs[0][tuple(picks)]]


def _reshape(node: Node, inputs: Sequence[Array]) -> list[Array]:
    target = inputs[1].reshape(-1).tolist()
    if not node.get("allowzero", 0):
        target = [inputs[0].shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return [inputs[0].reshape(target)]


def _flatten(node: Node, inputs: Sequence[Array]) -> list[Array]:
    axis = node.get("axis", 1)
    axis += inputs[0].ndim if axis < 0 else 0
    return [inputs[0].reshape(int(np.prod(inputs[0].shape[:axis])), int(np.prod(inputs[0].shape[axis:])))]


def _constant_of_shape(node: Node, inputs: Sequence[Array]) -> list[Array]:
    value = node.get("value")
    value = np.zeros(1, np.float32) if value is None else value
    return [np.full(inputs[0].reshape(-1).tolist(), value.reshape(-1)[0], value.dtype)]


def _range(node: Node, inputs: Sequence[Array]) -> list[Array]:
    start, limit, delta = (array.item() for array in inputs)
    return [np.asarray(np.arange(start, limit, delta)).astype(inputs[0].dtype)]


def _expand(node: Node, inputs: Sequence[Array]) -> list[Array]:
    return [inputs[0] * np.ones(inputs[1].reshape(-1).tolist(), inputs[0].dtype)]


def _reduce(function: Callable[..., Any]) -> Evaluator:
    def rule(node: Node, inputs: Sequence[Array]) -> list[Array]:
        axes = _axes(inputs)
        if not axes and node.get("noop_with_empty_axes", 0):
            return [inputs[0]]
        result = function(inputs[0], axis=axes or None, keepdims=bool(node.get("keepdims", 1)))
        return [np.asarray(result).astype(inputs[0].dtype, copy=False)]

    return rule


def _split(node: Node, inputs: Sequence[Array]) -> list[Array]:
    axis = node.get("axis", 0)
    length, parts = inputs[0].shape[axis], len(node.outputs)
    sizes = _axes(inputs) or [-(-length // parts)] * (parts - 1)
    return list(np.split(inputs[0], np.cumsum(sizes)[: parts - 1].tolist(), axis))


def _clip(node: Node, inputs: Sequence[Array]) -> list[Array]:
    result = inputs[0]
    if len(inputs) > 1 and inputs[1] is not None:
        result = np.maximum(result, inputs[1])
    if len(inputs) > 2 and inputs[2] is not None:
        result = np.minimum(result, inputs[2])
    return [result]


EVALUATORS: dict[str, Evaluator] = {
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "Cast": _cast,
    "Ceil": _unary(np.ceil),
    "Clip": _clip,
    "Concat": lambda node, inputs: [np.concatenate(inputs, node.get("axis", 0))],
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(_divide),
    "Equal": _compare(np.equal),
    "Exp": _unary(np.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(np.floor),
    "Gather": _gather,
    "Greater": _compare(np.greater),
    "GreaterOrEqual": _compare(np.greater_equal),
    "Identity": lambda node, inputs: [inputs[0]],
    "Less": _compare(np.less),
    "LessOrEqual": _compare(np.less_equal),
    "Max": _binary(np.maximum),
    "Min": _binary(np.minimum),
    "Mod": _mod,
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Or": _binary(np.logical_or),
    "Pow": _binary(np.power),
    "Range": _range,
    "Reciprocal": _unary(np.reciprocal),
    "ReduceMax": _reduce(np.max),
    "ReduceMean": _reduce(np.mean),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Reshape": _reshape,
    "Round": _unary(np.round),
    "Shape": lambda node, inputs: [np.array(inputs[0].shape[slice(node.get("start", 0), node.get("end"))], np.int64)],
    "Size": lambda node, inputs: [np.array(inputs[0].size, np.int64)],
    "Slice": _slice,
    "Split": _split,
    "Sqrt": _unary(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Tile": lambda node, inputs: [np.tile(inputs[0], inputs[1].reshape(-1).tolist())],
    "Transpose": lambda node, inputs: [np.transpose(inputs[0], node.get("perm"))],
    "Unsqueeze": _unsqueeze,
    "Where": lambda node, inputs: [np.where(inputs[0], inputs[1], inputs[2])],
    "Xor": _binary(np.logical_xor),
}
