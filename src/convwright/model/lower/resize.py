"""Resize by the nearest pixel or linearly between neighbours."""

from __future__ import annotations

import numpy as np

from convwright.kernels import resize
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.values import blocks_of


def _tables(b: Builder, layer: Layer, strides: tuple[int, int]) -> dict[str, np.ndarray] | None:
    """The kernel's tables, or None where it cannot do this resizing."""
    node = layer.node
    get = node.attributes.get
    shape, out_shape = b.shape(node.inputs[0]), b.shape(layer.output)
    rank = len(shape)
    axes = [axis % rank for axis in get("axes") or range(rank)]
    if shape[:2] != out_shape[:2] or get("antialias", 0) or get("mode", "nearest") not in ("nearest", "linear"):
        return None
    scales = np.ones(rank)
    given = b.constant(node.input(2)) if node.input(2) else None
    if given is not None and given.size:
        scales[axes] = given.astype(np.float32)
    else:
        scales = np.array(out_shape) / np.array(shape)
    roi = b.constant(node.input(1)) if node.input(1) else None
    bounds = np.array([[0.0, 1.0]] * rank)
    if roi is not None and roi.size == 2 * len(axes):
        bounds[axes] = roi.reshape(2, -1).T
    spatial = range(2, rank)
    try:
        return resize.resize_tables(
            shape[2:], out_shape[2:], scales[2:].tolist(), strides[-(rank - 2) :], kind=get("mode", "nearest"),
            transformation=get("coordinate_transformation_mode", "half_pixel"),
            rounding=get("nearest_mode", "round_prefer_floor"), roi=[tuple(bounds[axis]) for axis in spatial],
        )  # fmt: skip
    except ValueError:
        return None


def can_lower(b: Builder, layer: Layer) -> bool:
    shape = b.shape(layer.output)
    if not b.fits_blocks(layer.output) or len(shape) not in (3, 4) or 0 in shape:
        return False
    return _tables(b, layer, (1, 1)) is not None


def lower(b: Builder, layer: Layer) -> None:
    x = b.blocked(layer.node.inputs[0])
    y = b.new_blocked(layer.output)
    tables = _tables(b, layer, (x.row, b.v))
    assert tables is not None
    tile = resize.Resize(layer.node.attributes.get("mode", "nearest"))
    blocks = blocks_of(x.channels, b.v)
    rows, cols = y.size
    chunk_rows, chunks = b.chunks(rows, x.n * blocks)
    arguments = {
        "x": x.ref, "y": y.ref, "blocks": blocks, "chunks": chunks, "chunk_rows": chunk_rows,
        "rows": rows, "cols": cols, "x_image": x.image, "x_block": x.block,
        "y_image": y.image, "y_block": y.block, "y_row": y.row,
        **{name: b.static(table) for name, table in tables.items()},
    }  # fmt: skip
    b.step(tile.name(b.target), resize, tile, arguments, x.n * blocks * chunks, [x], [y], "resizing")
