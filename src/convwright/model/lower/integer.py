"""Integer convolutions: ConvInteger (exact 32-bit sums) and QLinearConv (the same, scaled back to 8 bits).

Inputs and outputs are plain NCHW tensors; the kernels' own layout of the input lives for one step. The lanes of a
vector are output channels or pixels, or the sums are made by AMX, whichever is estimated to be fastest.
"""

from __future__ import annotations

import numpy as np

from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import integer_amx, integer_channels, integer_planes
from convwright.model.lower.integer_layer import integer_layer, operands

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


def can_lower(b: Builder, layer: Layer) -> bool:
    """Everything but the input and its zero point has to be constant."""
    names = operands(layer.node)
    shape = b.shape(names.x)
    given = (names.w, names.w_zero, names.x_scale, names.w_scale, names.y_scale, names.y_zero, names.bias)
    known = all(name in b.graph.constants for name in given if name)
    bytes_ = all(b.types[name].dtype in _BYTES for name in (names.x, names.w, names.x_zero) if name)
    pads = layer.node.attributes.get("pads") or (0,)
    return known and bytes_ and 3 <= len(shape) <= 5 and 0 not in (*shape, *b.shape(layer.output)) and min(pads) >= 0


def lower(b: Builder, layer: Layer) -> None:
    """By the family with the lower estimate."""
    one = integer_layer(b, layer)
    family = min((integer_channels, integer_planes, integer_amx), key=lambda family: family.estimate(b, one))
    family.lower(b, one)
