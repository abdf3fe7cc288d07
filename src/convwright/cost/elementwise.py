"""Operators in which nothing multiplies and accumulates: operations on elements, and their kinds.

Conventions: an activation, an addition, a comparison is one operation an element, whatever it takes to compute it; a
batch norm two, scale and shift, for the rest of it is constant; a pool as many as its window has elements; moving
elements none.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from convwright.cost.products import Count, View
from convwright.graph.graph import names

VIEWS = frozenset(names("Dropout Flatten Identity Reshape Squeeze Unsqueeze"))
"""Operators whose result is their first input's memory: they cost nothing and have no row."""

READS_PART = frozenset(names("Gather GatherElements GatherND Slice"))
"""Operators that read no more of their first input than they write."""


def _of_output(operations: int) -> Callable[[View], int]:
    return lambda view: operations * prod(view.out)


def _of_input(operations: int) -> Callable[[View], int]:
    return lambda view: operations * prod(view.shape(0))


def _together(view: View) -> int:
    """Sums and the like of any number of inputs."""
    return max(len(view.node.inputs) - 1, 1) * prod(view.out)


def _mean(view: View) -> int:
    return len(view.node.inputs) * prod(view.out)


def _pool(view: View) -> int:
    return prod(view.node.attributes["kernel_shape"]) * prod(view.out)


def _lrn(view: View) -> int:
    """Square, sum over `size` channels, scale, shift, power, divide."""
    return (view.node.get("size", 1) + 5) * prod(view.out)


def _resize(view: View) -> int:
    """Interpolation from p points is p products and p additions; the nearest point is only moved."""
    if view.node.op == "GridSample":
        axes = len(view.out) - 2
    else:
        axes = sum(before != after for before, after in zip(view.shape(0), view.out, strict=True))
    points = {"linear": 2, "bilinear": 2, "cubic": 4, "bicubic": 4}.get(view.node.get("mode", _DEFAULTS[view.node.op]))
    return 2 * points**axes * prod(view.out) if points else 0


_DEFAULTS = {"Resize": "nearest", "GridSample": "linear"}

_KINDS: tuple[tuple[str, Callable[[View], int], str], ...] = (
    (
        "activation",
        _of_output(1),
        (
            "Celu Clip Elu Gelu HardSigmoid HardSwish LeakyRelu Mish PRelu Relu Selu Shrink Sigmoid Softplus Softsign "
            "Swish Tanh ThresholdedRelu"
        ),
    ),
    ("activation", _of_output(2), "Silu"),  # a sigmoid and a product, as which files have it
    (
        "arithmetic",
        _of_output(1),
        (
            "Abs Acos Acosh And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast "
            "CastLike Ceil Cos Cosh CumSum Div Equal Erf Exp Floor Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual "
            "Log Mod Neg Not Or Pow Reciprocal Round Sign Sin Sinh Sqrt Sub Tan Where Xor Mul Add"
        ),
    ),
    ("arithmetic", _together, "Max Min Sum"),
    ("arithmetic", _mean, "Mean"),
    ("normalisation", _of_output(2), "BatchNormalization"),
    # Mean, difference, square, sum of squares, division, scale, shift.
    ("normalisation", _of_output(7), "GroupNormalization InstanceNormalization LayerNormalization"),
    ("normalisation", _of_output(5), "MeanVarianceNormalization"),
    ("normalisation", _of_output(4), "LpNormalization RMSNormalization"),
    ("normalisation", _lrn, "LRN"),
    # Largest, difference, exponential, sum, division (or difference).
    ("softmax", _of_output(5), "LogSoftmax Softmax"),
    ("softmax", _of_output(2), "Hardmax"),
    ("pooling", _pool, "AveragePool MaxPool"),
    ("pooling", lambda view: 2 * _pool(view), "LpPool"),
    ("pooling", _of_input(1), "GlobalAveragePool GlobalMaxPool"),
    ("pooling", _of_input(2), "GlobalLpPool"),
    ("reduction", _of_input(1), "ArgMax ArgMin ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"),
    ("reduction", _of_input(2), "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare"),
    ("resize", _resize, "GridSample Resize"),
    # Divide, round, add the zero point; subtract it, multiply.
    ("quantisation", _of_output(3), "DynamicQuantizeLinear QuantizeLinear"),
    ("quantisation", _of_output(2), "DequantizeLinear"),
    (
        "movement",
        _of_output(0),
        (
            "ChannelShuffle Compress Concat ConstantOfShape DepthToSpace Expand EyeLike Gather GatherElements GatherND "
            "MaxUnpool OneHot Pad Range ReverseSequence ScatterElements ScatterND Slice SpaceToDepth Split "
            "Tile Transpose Trilu"
        ),
    ),
)

ELEMENTWISE: dict[str, tuple[str, Callable[[View], int]]] = {
    op: (kind, operations) for kind, operations, operators in _KINDS for op in names(operators)
}
"""By operator: the kind, and how many operations."""


def elementwise(view: View) -> Count | None:
    """The count of a node without multiply-accumulates; None for an operator that is not known."""
    found = ELEMENTWISE.get(view.node.op)
    return None if found is None else Count(found[0], elementwise=found[1](view))
