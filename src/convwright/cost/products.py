"""Operators that multiply and accumulate: how many multiply-accumulates, and what they do beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from convwright.errors import ConvwrightError
from convwright.graph.convolutions import spec_of
from convwright.graph.graph import Node
from convwright.graph.shape_rules.windows import axis_list, window_padding
from convwright.graph.shapes import Inferred
from convwright.spec import ConvSpec

Shape = tuple[int, ...]
Attributes = tuple[tuple[str, Any], ...]

BIAS = {"Conv": 2, "ConvTranspose": 2, "Convolution": 2, "HetConvolution": 2, "DeformConv": 3, "QLinearConv": 8}
"""Which input of a convolution is its bias."""

_SHAPING = ("auto_pad", "dilations", "group", "output_padding", "output_shape", "pads", "spec", "strides")
"""The attributes that a convolution's specification is made of."""

REQUANTISED = 3
"""Elementwise operations for each element of a requantised result: scale, add the zero point, clip."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one node does.

    - `kind`: what its row is summed under.
    - `macs`: multiply-accumulates; `elementwise`: other operations on elements.
    - `reason`: why it is not counted, None where it is; `estimate`: then, of how many operations.
    """

    kind: str
    macs: int = 0
    elementwise: int = 0
    reason: str | None = None
    estimate: int = 0


class View:
    """What is known of a node: shapes of its inputs and outputs, and which inputs are constants."""

    __slots__ = ("fixed", "node", "types")

    def __init__(self, node: Node, types: Inferred, fixed: set[str]) -> None:
        self.node, self.types, self.fixed = node, types, fixed

    def shape(self, index: int) -> Shape:
        return self.types.values[self.node.inputs[index]].shape  # type: ignore[return-value]

    @property
    def out(self) -> Shape:
        """The shape of the first output that is there."""
        name = next(name for name in self.node.outputs if name)
        return self.types.values[name].shape  # type: ignore[return-value]

    def is_constant(self, index: int) -> bool:
        return self.node.inputs[index] in self.fixed


def _convolution(view: View) -> Count:
    """Every kind of convolution that a `ConvSpec` describes, by its own formula."""
    node, shape = view.node, view.shape(0)
    weights = view.shape(3 if node.op == "QLinearConv" else 1)
    extra = prod(view.out) if node.input(BIAS.get(node.op, len(node.inputs))) else 0
    try:
        attributes = tuple((name, node.attributes[name]) for name in _SHAPING if name in node.attributes)
        spec, macs = _multiplied(node.op, node.domain, attributes, shape, weights)
    except ConvwrightError as error:
        return Count("not counted", 0, extra, str(error), prod(view.out) * prod(weights[1:]))
    if node.op == "DeformConv":
        # Each sample is interpolated from two points an axis, and scaled where there is a mask.
        samples = shape[0] * shape[1] * prod(weights[2:]) * prod(view.out[2:])
        return Count("deformable", macs, extra + samples * (2 * 2**spec.rank + bool(node.input(4))))
    if node.op == "QLinearConv":
        return Count("integer", macs, extra + REQUANTISED * prod(view.out))
    return Count("integer" if node.op == "ConvInteger" else spec.kind, macs, extra)


@lru_cache(maxsize=1024)
def _multiplied(op: str, domain: str, attributes: Attributes, shape: Shape, weights: Shape) -> tuple[ConvSpec, int]:
    """The specification and its MACs; remembered, for networks repeat their layers."""
    spec, size = _described(Node(op, ["x", "weight"], ["y"], dict(attributes), domain=domain), shape, weights)
    return spec, spec.macs(size, shape[0]) if prod(shape) else 0


def _described(node: Node, shape: Shape, weights: Shape) -> tuple[ConvSpec, Shape]:
    """The node's spec and input size; negative padding, which a spec does not have, becomes a smaller input."""
    pads = node.get("pads")
    crops = bool(pads) and min(pads) < 0 and node.get("auto_pad", "NOTSET") in ("NOTSET", "")
    if not crops and (node.op != "ConvTranspose" or not node.get("output_shape")):
        return spec_of(node, shape, weights), shape[2:]
    attributes = {name: value for name, value in node.attributes.items() if name not in ("pads", "output_shape")}
    attributes["auto_pad"] = "NOTSET"
    rank, size = len(shape) - 2, shape[2:]
    if node.op != "ConvTranspose":
        # What a transposed convolution crops or adds changes nothing of its products, which its input counts.
        ones = axis_list(node, "strides", rank, 1), axis_list(node, "dilations", rank, 1)
        pairs = window_padding(node, size, weights[2:], *ones)
        size = tuple(n + min(low, 0) + min(high, 0) for n, (low, high) in zip(size, pairs, strict=True))
        attributes["pads"] = (*(max(low, 0) for low, _ in pairs), *(max(high, 0) for _, high in pairs))
    plain = Node(node.op, node.inputs, node.outputs, attributes, node.name, node.domain)
    return spec_of(plain, (*shape[:2], *size), weights), size


def _het(view: View) -> Count:
    spec, shape = view.node.attributes["spec"], view.shape(0)
    extra = prod(view.out) if view.node.input(2) else 0
    return Count(spec.kind, spec.macs(shape[2:], shape[0]) if prod(shape) else 0, extra)


def _mix(view: View) -> Count:
    parts, shape = view.node.attributes["parts"], view.shape(0)
    macs = sum(part.macs(shape[2:], shape[0]) for part in parts) if prod(shape) else 0
    biased = [part.out_channels for place, part in enumerate(parts) if view.node.input(1 + len(parts) + place)]
    return Count("mix", macs, shape[0] * sum(biased) * prod(view.out[2:]))


def _gemm(view: View) -> Count:
    rows, columns = view.out
    first = view.shape(0)
    inner = first[0] if view.node.get("transA", 0) else first[1]
    return Count(_product(view, 0, 1), rows * columns * inner, rows * columns if view.node.input(2) else 0)


def _matmul(second: int) -> Callable[[View], Count]:
    def count(view: View) -> Count:
        macs = prod(view.out) * view.shape(0)[-1]
        quantised = view.node.op == "QLinearMatMul"
        return Count(_product(view, 0, second), macs, REQUANTISED * prod(view.out) if quantised else 0)

    return count


def _product(view: View, first: int, second: int) -> str:
    """A product with a constant is a fully connected layer; of two tensors that both depend on the data, it is not."""
    return "fully connected" if view.is_constant(first) or view.is_constant(second) else "matrix product"


def _einsum(view: View) -> Count:
    """Two operands, each label once in either: every combination of labels is one product.

    Of one operand it is a transposition or a sum.
    """
    equation: str = view.node.get("equation", "")
    terms, arrow, result = equation.replace(" ", "").partition("->")
    operands = terms.split(",")
    plain = terms.replace(",", "").isalpha()
    shapes = [view.shape(index) for index in range(len(view.node.inputs))]
    labelled = zip(operands, shapes, strict=True)
    sizes = (
        {label: size for labels, shape in labelled for label, size in zip(labels, shape, strict=True)} if plain else {}
    )
    if not plain or len(operands) > 2 or any(len(set(labels)) < len(labels) for labels in operands):
        estimate = prod(sizes.values()) if plain else prod(view.out)
        return Count("not counted", reason=f"equation {equation!r} is no plain product of two", estimate=estimate)
    if not arrow:
        result = "".join(label for label in sizes if terms.count(label) == 1)
    summed = set(sizes) != set(result)
    if len(operands) == 1:
        return Count("reduction", elementwise=prod(sizes.values())) if summed else Count("movement")
    if not summed:
        return Count("arithmetic", elementwise=prod(view.out))
    return Count(_product(view, 0, 1), prod(sizes.values()))


def _recurrent(view: View) -> Count:
    """Weights W and R meet each of the steps; gates, and outputs of sequences that end early, are left open."""
    steps, batch = view.shape(0)[:2] if not view.node.get("layout", 0) else view.shape(0)[1::-1]
    estimate = steps * batch * (prod(view.shape(1)) + prod(view.shape(2)))
    return Count("not counted", reason="recurrent layers have no formula here", estimate=estimate)


def _attention(view: View) -> Count:
    """Queries times keys, and what comes of them times values; heads side by side or on an axis of their own."""
    keys = view.shape(1)[-2]
    estimate = keys * (prod(view.shape(0)) + prod(view.out))
    return Count("not counted", reason="attention has no formula here", estimate=estimate)


PRODUCTS: dict[str, Callable[[View], Count]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Convolution", "ConvInteger", "QLinearConv", "DeformConv"), _convolution),
    "HetConvolution": _het,
    "MixConvolution": _mix,
    "Gemm": _gemm,
    "MatMul": _matmul(1),
    "MatMulInteger": _matmul(1),
    "QLinearMatMul": _matmul(3),
    "Einsum": _einsum,
    "Attention": _attention,
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
}
