"""Fully connected layers: few images by many weights in few bits (`kernels.dense`), others as convolutions."""

from __future__ import annotations

import math

import numpy as np

from convwright.kernels import dense
from convwright.kernels.narrow import CODINGS
from convwright.model import narrow
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import direct
from convwright.model.values import Ref, Value, spatial

# Smaller layers stay in the caches from one inference to the next, and the memory does not limit them.
_LEAST_BYTES = 1 << 20


def lower(b: Builder, layer: Layer) -> None:
    """The layer, whichever way is the quicker. Weights that cannot be packed stay as they are."""
    narrowed = _narrowed(b, layer)
    if narrowed is None:
        direct.lower_gemm(b, layer)
        return
    parts, packed = narrowed
    node = layer.node
    outputs, channels = b.graph.constants[node.inputs[1]].shape
    x = _in_a_row(b, b.flattened.get(node.inputs[0], node.inputs[0]))
    y = b.new_blocked(layer.output)
    images = y.n
    buffer = b.static(packed).buffer
    tile = dense.DenseTile(images, parts.coding, channels % CODINGS[parts.coding].BLOCK, layer.epilogue)
    arguments = {
        "x": x.ref, "words": Ref(buffer), "bases": Ref(buffer, parts.bases), "starts": Ref(buffer, parts.starts),
        "rare": Ref(buffer, parts.rare), "bias": b.static(b.weights.bias(node.input(2), outputs)), "y": y.ref,
        "channels": channels, "blocks": parts.blocks, "x_image": x.image or channels,
        "y_image": y.image, "y_block": y.block,
    }  # fmt: skip
    loss = "rounded" if parts.coding == "fixed" else "lossless"
    why = f"{images} x {channels} by {outputs}: weights in {parts.bits} bits, {loss}"
    b.step(tile.name(b.target), dense, tile, arguments, parts.vectors, [x], [y], why, images * outputs * channels)


def _in_a_row(b: Builder, name: str) -> Value:
    """The value with all that belongs to an image in a row: blocks of a single pixel are that too."""
    if spatial(b.shape(name)) == (1, 1) and not b.is_plain(name):
        x = b.blocked(name)
        if x.block == b.v:
            return x
    return b.plain(name)


def _narrowed(b: Builder, layer: Layer) -> tuple[narrow.Parts, np.ndarray] | None:
    """The layer's weights in fewer bits, or None where direct summation of plain ones is the quicker."""
    name = layer.node.inputs[1]
    info = b.types[name]
    nbytes = info.dtype.itemsize * math.prod(b.shape(name))
    if info.dtype != np.float32 or not _limited_by_memory(b, nbytes, b.shape(layer.output)[0]):
        return None
    # Nothing here refers to the constant: its memory is used again.
    return b.weights.narrowed(name, b.target, b.threads, exact=b.numerics == "strict")


def _limited_by_memory(b: Builder, nbytes: int, images: int) -> bool:
    """Whether fewer bytes of weights make a layer quicker that has so many now: with vectors of four lanes decoding
    takes longer than it saves."""
    return nbytes >= _LEAST_BYTES and images <= dense.MOST_IMAGES and b.target.name != "generic"
