"""The geometry of a convolution layer at one input size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convwright.graph import Node
from convwright.graph.shape_rules.windows import axis_list, window_padding
from convwright.model.values import Halo, spatial


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution over two spatial axes (one of them of size 1 for 1-D)."""

    out_channels: int
    own_channels: int  # input channels of a group
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]
    out_size: tuple[int, int]

    @property
    def halo(self) -> Halo:
        """Zeros that the input needs around it: what the windows reach beyond it."""
        reach = []
        for axis in (0, 1):
            last = (self.out_size[axis] - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
            reach.append(max(0, last - self.padding[axis][0] - self.size[axis]))
        return self.padding[0][0], self.padding[1][0], reach[0], reach[1]

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.own_channels == 1 and self.out_channels == self.groups

    @property
    def macs(self) -> int:
        """Of one image."""
        return math.prod(self.kernel) * self.own_channels * self.out_channels * self.out_size[0] * self.out_size[1]


def geometry(node: Node, shape: tuple[int, ...], weight_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Geometry:
    """Of a Conv node; a 1-D convolution is one row high."""
    rank = len(shape) - 2
    stride = axis_list(node, "strides", rank, 1)
    dilation = axis_list(node, "dilations", rank, 1)
    padding = [(0, 0), *window_padding(node, tuple(shape[2:]), tuple(weight_shape[2:]), stride, dilation)]
    kernel, stride, dilation = ((1, *sizes)[-2:] for sizes in (tuple(weight_shape[2:]), stride, dilation))
    return Geometry(
        weight_shape[0], weight_shape[1], (kernel[0], kernel[1]), (stride[0], stride[1]), (padding[-2], padding[-1]),
        (dilation[0], dilation[1]), node.attributes.get("group", 1), spatial(shape), spatial(out_shape),
    )  # fmt: skip
