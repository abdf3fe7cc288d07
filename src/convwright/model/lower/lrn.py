"""Local response normalisation of a plain array."""

from __future__ import annotations

import math

import numpy as np

from convwright.kernels import lrn
from convwright.model.builder import Builder
from convwright.model.fuse import Layer


def can_lower(b: Builder, layer: Layer) -> bool:
    shape = b.shape(layer.output)
    size = layer.node.attributes.get("size", 0)
    return b.types[layer.output].dtype == np.float32 and 0 not in shape and len(shape) > 1 and size > 0


def lower(b: Builder, layer: Layer) -> None:
    node = layer.node
    x = b.plain(node.inputs[0])
    y = b.new_plain(layer.output)
    get = node.attributes.get
    size = int(node.attributes["size"])
    tile = lrn.Lrn(float(get("alpha", 1e-4)) / size, float(get("beta", 0.75)), float(get("bias", 1.0)))
    outer, channels, inner = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    arguments = {
        "x": x.ref, "y": y.ref, "channels": channels, "inner": inner, "before": (size - 1) // 2, "after": size // 2,
    }  # fmt: skip
    b.step(tile.name(b.target), lrn, tile, arguments, outer * channels, [x], [y], "normalisation")
