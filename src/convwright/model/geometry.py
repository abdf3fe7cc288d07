"""The geometry of a convolution layer at one input size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from convwright.model.problem import Problem
from convwright.model.values import Halo


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


@lru_cache(maxsize=4096)
def geometry_of(p: Problem) -> Geometry:
    """Of a problem of one or two axes; a 1-D convolution is one row high."""
    spec = p.spec
    padding = ((0, 0), *spec.pads(p.size))
    return Geometry(
        spec.out_channels,
        spec.in_channels // spec.groups,
        _pair(spec.kernel),
        _pair(spec.stride),
        (padding[-2], padding[-1]),
        _pair(spec.dilation),
        spec.groups,
        _pair(p.size),
        _pair(p.out_size),
    )


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    high, wide = (1, *sizes)[-2:]
    return high, wide
