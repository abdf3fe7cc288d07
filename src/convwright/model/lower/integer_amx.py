"""Integer convolutions on AMX, where the CPU has it: cut and stored as those whose lanes are output channels."""

from __future__ import annotations

import math

from convwright.kernels import integer_amx
from convwright.model.builder import Builder
from convwright.model.lower import integer_channels
from convwright.model.lower.integer_layer import IntegerLayer
from convwright.model.tiles import Shape

# Cycles: of one product of two tiles; of a step (its loop, and loads that do not overlap); of a vector of sums, stored,
# read, scaled, and through scratch to the output. From the architecture's published figures, not yet measured.
_PRODUCT_CYCLES, _STEP_CYCLES, _OUT_CYCLES, _IN_CYCLES = 16.0, 8.0, 14.0, 8.0


def _tile(b: Builder, layer: IntegerLayer) -> integer_amx.AmxTile:
    """Strips of one width that cover a row with the least left over: two of them below or beside each other."""
    _, rows, cols = layer.window.out
    words = min(-(-layer.own_in // 4), b.v)
    pieces = -(-cols // integer_amx.ROWS)
    width = -(-cols // pieces)
    below = 2 if rows > 1 else 1
    beside = 2 if below == 1 and pieces > 1 else 1
    outs = min(2, -(-layer.own_out // b.v))
    step = layer.window.stride[2] * words
    return integer_amx.AmxTile(below, beside, width, outs, words, step, layer.signed, layer.requantised)


def estimate(b: Builder, layer: IntegerLayer) -> float:
    """Cycles of the whole layer on one core; infinite where there is no AMX."""
    if not b.target.has_amx or layer.form != "bytes":
        return math.inf
    window, groups, tile = layer.window, layer.spec.groups, _tile(b, layer)
    deep, rows, cols = window.out
    vectors = -(-layer.own_out // b.v)
    tiles = deep * -(-rows // tile.rows) * -(-cols // tile.cols) * -(-vectors // tile.outs)
    steps = math.prod(window.kernel) * -(-layer.own_in // (4 * tile.words))
    products = len(tile.strips) * tile.outs
    sums = tiles * steps * (products * _PRODUCT_CYCLES + _STEP_CYCLES)
    packed = -(-layer.own_in // 4) * math.prod(window.padded) / b.v
    return layer.x.n * groups * (sums + deep * rows * cols * vectors * _OUT_CYCLES + packed * _IN_CYCLES)


def lower(b: Builder, layer: IntegerLayer) -> None:
    """Add the layer's steps."""
    words = integer_channels.pack_input(b, layer)
    tile = _tile(b, layer)
    shape = Shape(tile.rows, tile.cols, tile.outs, 0.0)
    reduction = math.prod(layer.window.kernel) * words.blocks * words.words
    packed = layer.derived(
        b,
        "whole vectors",
        lambda: integer_channels.pack_weights(layer.centred, layer.spec.groups, layer.form, b.v, whole=True),
    )
    integer_channels.convolve(b, layer, words, integer_channels.Kernel(integer_amx, tile, shape, packed, reduction))
