"""Layers to steps: for each operator, what can take it and how. The first row that can, does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import (
    channels,
    conv,
    deformable,
    dense,
    elementwise,
    fallback,
    het,
    integer,
    lrn,
    mix,
    movement,
    pool,
    reshape,
    resize,
    softmax,
)

Check = Callable[[Builder, Layer], bool]
Lower = Callable[[Builder, Layer], None]


def _always(b: Builder, layer: Layer) -> bool:
    return True


def _gemm_fits(b: Builder, layer: Layer) -> bool:
    node = layer.node
    known = all(name in b.graph.constants for name in node.inputs[1:] if name)
    return known and b.fits_blocks(layer.output) and 0 not in b.shape(node.inputs[0])


def _shuffle_fits(b: Builder, layer: Layer) -> bool:
    return b.fits_blocks(layer.output) and 0 not in b.shape(layer.output)


@dataclass(frozen=True, slots=True)
class Row:
    """One way to lower some operators."""

    ops: frozenset[str]
    fits: Check
    lower: Lower


def _row(ops: str, fits: Check, lower: Lower) -> Row:
    return Row(frozenset(ops.split()), fits, lower)


ROWS = (
    _row("Conv ConvTranspose Convolution", conv.can_lower, conv.lower),
    _row("DeformConv", deformable.can_lower, deformable.lower),
    _row("HetConvolution", het.can_lower, het.lower),
    _row("MixConvolution", mix.can_lower, mix.lower),
    _row("ConvInteger QLinearConv", integer.can_lower, integer.lower),
    _row("Gemm", _gemm_fits, dense.lower),
    _row("MaxPool AveragePool", pool.can_lower, pool.lower),
    _row("GlobalMaxPool GlobalAveragePool", pool.can_lower, pool.lower_global),
    _row("BatchNormalization", elementwise.can_lower_norm, elementwise.lower_norm),
    _row("Concat", channels.on_channels, channels.lower_concat),
    _row("Split", channels.on_channels, channels.lower_split),
    _row("Slice", channels.slices_channels, channels.lower_slice),
    _row("ChannelShuffle", _shuffle_fits, channels.lower_shuffle),
    _row("Resize", resize.can_lower, resize.lower),
    _row("Softmax LogSoftmax", softmax.can_lower, softmax.lower),
    _row("LRN", lrn.can_lower, lrn.lower),
    _row("Transpose", movement.can_lower, movement.lower_transpose),
    _row("Slice", movement.can_lower, movement.lower_slice),
    _row("Pad", movement.can_lower, movement.lower_pad),
    _row("Concat", movement.can_lower, movement.lower_concat),
    _row("Split", movement.can_lower, movement.lower_split),
    _row("Expand", movement.can_lower, movement.lower_expand),
    _row("DepthToSpace", movement.can_lower, movement.lower_depth_to_space),
    _row("SpaceToDepth", movement.can_lower, movement.lower_space_to_depth),
    _row("ChannelShuffle", movement.can_lower, movement.lower_channel_shuffle),
    _row("Reshape Flatten Squeeze Unsqueeze Identity", _always, reshape.lower),
)


def row_of(b: Builder, layer: Layer) -> Row:
    """How this layer is lowered."""
    for row in ROWS:
        if layer.op in row.ops and row.fits(b, layer):
            return row
    if elementwise.can_lower(b, layer):
        return _ELEMENTWISE
    return _FALLBACK


_ELEMENTWISE = Row(frozenset(), elementwise.can_lower, elementwise.lower)
_FALLBACK = Row(frozenset(), _always, fallback.lower)
