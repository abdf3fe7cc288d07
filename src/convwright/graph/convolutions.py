"""The specification of a convolution node."""

from __future__ import annotations

from functools import lru_cache

from convwright.graph.graph import INTERNAL, Node
from convwright.graph.shape_rules.windows import axis_list, transpose_padding, window_padding
from convwright.spec import ConvSpec


def spec_of(node: Node, shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> ConvSpec:
    """The convolution that a node is, for an input of this shape; padding in pairs.

    Raises ConvwrightError where no `ConvSpec` describes it (padding that crops, for one).
    """
    size = shape[2:]
    if node.op == "Convolution" and node.domain == INTERNAL:
        spec: ConvSpec = node.attributes["spec"]
        return spec.resolve(size)
    rank, kernel = len(size), weight_shape[2:]
    stride, dilation = axis_list(node, "strides", rank, 1), axis_list(node, "dilations", rank, 1)
    transposed = node.op == "ConvTranspose"
    if transposed:
        padding = transpose_padding(node, size, kernel)
    else:
        padding = window_padding(node, size, kernel, stride, dilation)
    return _of_weight(
        weight_shape,
        stride=stride,
        padding=tuple(padding),
        dilation=dilation,
        groups=node.attributes.get("group", 1),
        transposed=transposed,
        output_padding=tuple(node.get("output_padding") or (0,) * rank) if transposed else 0,
        bias=bool(node.input(2)),
    )


_of_weight = lru_cache(maxsize=1024, typed=True)(ConvSpec.of_weight)  # a network has few different ones
