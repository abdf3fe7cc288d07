"""Transposed convolutions whose kernel is their stride, by Winograd's inner product.

Each tap makes outputs of its own from the same inputs: it is a phase of the stride (arXiv 1603.07285, 4.3) of one tap.
All together they are one pointwise convolution to taps times as many channels, whose output vectors are stored at the
phase's place.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import geometry_of
from convwright.model.lower import channels, paired, paired_weights
from convwright.model.lower.transposed import why_not_phases
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import NO_HALO, Value, blocks_of
from convwright.spec import ConvSpec


def _why_not(p: Problem) -> str | None:
    spec = p.spec
    reason = why_not_phases(p)
    if reason is not None:
        return reason
    if spec.groups > 1:
        return f"{spec.groups} groups"
    if spec.kernel != spec.stride or max(spec.kernel) == 1:
        return f"kernel {spec.kernel} and stride {spec.stride} are not the same"
    if max(spec.dilation) > 1 or spec.flip:
        return f"dilation {spec.dilation}, flip {spec.flip}"
    if p.out_size != tuple(size * step for size, step in zip(p.size, spec.stride, strict=True)):
        return f"padding {spec.padding}, output_padding {spec.output_padding}: there must be none"
    return paired.why_not_here(pointwise(p))


@lru_cache(maxsize=1024)
def pointwise(p: Problem) -> Problem:
    """The convolution to the channels of all phases, those of each in whole vectors."""
    spec, v = p.spec, p.target.vector
    outputs = blocks_of(spec.out_channels, v) * v * math.prod(spec.kernel)
    own = ConvSpec(spec.in_channels, outputs, (1,) * spec.rank, groups=spec.groups, bias=spec.bias)
    return replace(p, spec=own, plain_input=False, plain_output=False)


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    x = channels.with_halo(b, layer.node.inputs[0], NO_HALO)
    y = b.new_blocked(layer.output)
    paired.add(b, layer, geometry_of(pointwise(p)), x, y, None, _outputs(b, layer, p, y))


def _outputs(b: Builder, layer: Layer, p: Problem, y: Value) -> paired.Outputs:
    """All phases of a row side by side: ``[row of the kernel][channel block][column of the kernel][v]``."""
    spec, node, v = p.spec, layer.node, b.v
    (down, right), blocks = (1, *spec.kernel)[-2:], blocks_of(spec.out_channels, v)
    form = down, right, blocks * v, spec.in_channels

    def rows(weight: np.ndarray) -> np.ndarray:
        own = np.zeros(form, np.float32)
        own[:, :, : spec.out_channels] = weight.reshape(*weight.shape[:2], down, right).transpose(2, 3, 1, 0)
        return own.reshape(down, right, blocks, v, -1).swapaxes(1, 2).reshape(-1, spec.in_channels)

    def back(packed: np.ndarray) -> np.ndarray:
        own = packed.reshape(down, blocks, right, v, -1).swapaxes(1, 2).reshape(form)[:, :, : spec.out_channels]
        return own.transpose(3, 2, 0, 1)

    shape = math.prod(form[:3]), form[3]
    packed = paired_weights.packed_rows(b, node.inputs[1], ("phases",), shape, rows, back)
    bias = b.weights.bias(node.input(2), spec.out_channels).reshape(1, blocks, 1, v)
    row, block, col = np.ogrid[:down, :blocks, :right]
    places = (row * y.row + block * y.block + col * v).astype(np.int64)
    kind = f"all {down}x{right} phases of the stride"
    return paired.Outputs(
        packed, np.tile(bias, (down, 1, right, 1)).reshape(-1), places.reshape(-1), (down, right), kind
    )  # fmt: skip


ROW = Algorithm(
    "paired", "transposed", True, _why_not, lambda p: paired.ROW.cycles(pointwise(p)),
    lambda p: paired.ROW.multiplications(pointwise(p)), lambda p: paired.ROW.workspace(pointwise(p)),
    lambda p: paired.ROW.error_bound(pointwise(p)), _lower, lambda p: NO_HALO,
)  # fmt: skip
