"""Operators that compute each element on its own, and normalisations, whose output has the input's shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import Node, ValueInfo, names
from convwright.graph.shape_rules.scope import Rule, Scope, broadcast
from convwright.graph.tensors import element_type

_BOOL = np.dtype(np.bool_)


def _same(scope: Scope, node: Node) -> list[ValueInfo]:
    return [scope.info(node, 0)]


def _together(scope: Scope, node: Node) -> list[ValueInfo]:
    first = scope.info(node, 0)
    shape: Any = first.shape
    for index in range(1, len(node.inputs)):
        other = scope.info(node, index)
        if other.dtype != first.dtype:
            raise ConvwrightError(f"{node}: element types {first.dtype} and {other.dtype} differ")
        if other.shape != shape:
            shape = broadcast(node, shape, other.shape)  # type: ignore[arg-type]
    return [ValueInfo(first.dtype, shape)]


def _base_type(scope: Scope, node: Node) -> list[ValueInfo]:
    """Pow and shifts: the second input may have another type."""
    return [ValueInfo(scope.info(node, 0).dtype, broadcast(node, scope.shape(node, 0), scope.shape(node, 1)))]


def _compare(scope: Scope, node: Node) -> list[ValueInfo]:
    return [ValueInfo(_BOOL, broadcast(node, scope.shape(node, 0), scope.shape(node, 1)))]


def _test(scope: Scope, node: Node) -> list[ValueInfo]:
    return [ValueInfo(_BOOL, scope.info(node, 0).shape)]


def _where(scope: Scope, node: Node) -> list[ValueInfo]:
    chosen = broadcast(node, scope.shape(node, 1), scope.shape(node, 2))
    return [ValueInfo(scope.info(node, 1).dtype, broadcast(node, scope.shape(node, 0), chosen))]


def _prelu(scope: Scope, node: Node) -> list[ValueInfo]:
    shape, slope = scope.shape(node, 0), scope.shape(node, 1)
    if broadcast(node, shape, slope) != shape:
        raise ConvwrightError(f"{node}: slope of shape {slope} does not broadcast to the input's shape {shape}")
    return [scope.info(node, 0)]


def _cast(scope: Scope, node: Node) -> list[ValueInfo]:
    return [ValueInfo(element_type(node.get("to", 0), str(node)), scope.info(node, 0).shape)]


def _cast_like(scope: Scope, node: Node) -> list[ValueInfo]:
    return [ValueInfo(scope.info(node, 1).dtype, scope.info(node, 0).shape)]


def _dropout(scope: Scope, node: Node) -> list[ValueInfo]:
    info = scope.info(node, 0)
    return [info, ValueInfo(_BOOL, info.shape)]


def _per_channel(scope: Scope, node: Node) -> list[ValueInfo]:
    """BatchNormalization, InstanceNormalization: parameters of shape [C]."""
    info = scope.info(node, 0)
    if len(info.shape) < 2 and not (node.op == "BatchNormalization" and len(info.shape) == 1):
        raise ConvwrightError(f"{node}: input of shape {info.shape} has no channel axis")
    channels = info.shape[1] if len(info.shape) > 1 else 1
    for index in range(1, len(node.inputs)):
        shape = scope.shape(node, index)
        if shape != (channels,):
            raise ConvwrightError(f"{node}: parameter of shape {shape} for {channels} channels")
    return [info]


def _softmax(scope: Scope, node: Node) -> list[ValueInfo]:
    info, axis = scope.info(node, 0), node.get("axis", -1)
    if not -info.rank <= axis < max(info.rank, 1):
        raise ConvwrightError(f"{node}: axis {axis} is out of range for shape {info.shape}")
    return [info]


RULES: dict[str, Rule] = {"Where": _where, "PRelu": _prelu, "Cast": _cast, "CastLike": _cast_like, "Dropout": _dropout}
for _rule, _operators in (
    (
        _same,
        (
            "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Clip Cos Cosh CumSum Elu Erf Exp Floor Gelu "
            "GroupNormalization HardSigmoid HardSwish Hardmax Identity LRN LeakyRelu Log LpNormalization "
            "MeanVarianceNormalization Mish Neg Not RMSNormalization Reciprocal Relu Round ScatterElements ScatterND "
            "Selu Shrink Sigmoid Sign Silu Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu"
        ),
    ),
    (_together, "Add And BitwiseAnd BitwiseOr BitwiseXor Div Max Mean Min Mod Mul Or Sub Sum Xor"),
    (_base_type, "BitShift Pow"),
    (_compare, "Equal Greater GreaterOrEqual Less LessOrEqual"),
    (_test, "IsInf IsNaN"),
    (_per_channel, "BatchNormalization InstanceNormalization"),
    (_softmax, "LogSoftmax Softmax"),
):
    RULES |= dict.fromkeys(names(_operators), _rule)
