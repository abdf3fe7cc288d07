"""Softmax and log-softmax along one axis of a plain array."""

from __future__ import annotations

import math

import numpy as np

from convwright.graph.shape_rules.scope import axis_of
from convwright.kernels import softmax
from convwright.model.builder import Builder
from convwright.model.fuse import Layer


def can_lower(b: Builder, layer: Layer) -> bool:
    shape = b.shape(layer.output)
    return b.types[layer.output].dtype == np.float32 and 0 not in shape and len(shape) > 0


def lower(b: Builder, layer: Layer) -> None:
    node = layer.node
    x = b.plain(node.inputs[0])
    y = b.new_plain(layer.output)
    axis = axis_of(node, node.attributes.get("axis", -1), len(x.shape))
    outer, n, inner = math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])
    tile = softmax.Softmax(node.op == "LogSoftmax", inner == 1)
    vectors = 1 if inner == 1 else -(-inner // b.v)
    arguments = {
        "x": x.ref, "y": y.ref, "n": n, "inner": inner, "inner_vectors": vectors,
        "x_outer": n * inner, "x_step": inner, "y_outer": n * inner, "y_step": inner,
    }  # fmt: skip
    b.step(tile.name(b.target), softmax, tile, arguments, outer * vectors, [x], [y], "softmax")
