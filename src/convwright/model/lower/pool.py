"""Pooling over windows and over whole planes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convwright.graph.shape_rules.windows import axis_list, window_padding
from convwright.kernels import global_pool, pool
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import conv, winograd, winograd_cut
from convwright.model.problem import OPERATORS, problem_of
from convwright.model.values import Value, blocks_of


def can_lower(b: Builder, layer: Layer) -> bool:
    node = layer.node
    shape = b.shape(node.inputs[0])
    one_result = len([name for name in node.outputs if name]) == 1
    return b.fits_blocks(node.inputs[0]) and len(shape) >= 3 and one_result and 0 not in shape


def fuse(b: Builder, readers: Mapping[str, list[Layer]]) -> None:
    """Let Winograd layers store the largest of each 2 x 2 outputs, where a pool of these windows alone reads them.

    Their own output, four times as large, is never written.
    """
    gone = set()
    for layer in b.layers:
        after = readers.get(layer.output, [])
        if len(after) != 1 or layer.op not in OPERATORS or layer.shuffle or layer.output in b.graph.outputs:
            continue
        (pool,) = after
        if layer.output in b.orders or not _halves(b, pool) or not conv.can_lower(b, layer):
            continue
        p = problem_of(b, layer)
        if conv.algorithm_of(p) is winograd.ROW and winograd_cut.pooled(winograd_cut.cut(p)) is not None:
            layer.output, layer.pooled = pool.output, True
            layer.fused.append(pool.node)
            gone.add(id(pool))
    b.layers[:] = [layer for layer in b.layers if id(layer) not in gone]


def _halves(b: Builder, layer: Layer) -> bool:
    """Whether the layer takes the largest of 2 x 2 pixels, no pixel twice, a last odd row or column left out."""
    node = layer.node
    if node.op != "MaxPool" or len(b.shape(node.inputs[0])) != 4 or not can_lower(b, layer):
        return False
    size, kernel = b.shape(node.inputs[0])[2:], tuple(node.attributes["kernel_shape"])
    stride, dilation = axis_list(node, "strides", 2, 1), axis_list(node, "dilations", 2, 1)
    if (kernel, stride, dilation) != ((2, 2), (2, 2), (1, 1)):
        return False
    padded = any(map(any, window_padding(node, tuple(size), kernel, stride, dilation)))
    return not padded and b.shape(layer.output)[2:] == tuple(length // 2 for length in size)


def lower(b: Builder, layer: Layer) -> None:
    """MaxPool and AveragePool."""
    node = layer.node
    x, y = b.blocked(node.inputs[0]), b.new_blocked(layer.output)
    rank = len(x.shape) - 2
    kernel = tuple(node.attributes["kernel_shape"])
    stride, dilation = axis_list(node, "strides", rank, 1), axis_list(node, "dilations", rank, 1)
    padding = tuple(window_padding(node, tuple(x.shape[2:]), kernel, stride, dilation))
    if rank == 1:
        kernel, stride, dilation, padding = (1, *kernel), (1, *stride), (1, *dilation), ((0, 0), *padding)
    maximum = node.op == "MaxPool"
    count_padding = bool(node.attributes.get("count_include_pad", 0))
    tile = pool.pool_of(maximum, kernel[-1], stride[-1], dilation[-1], count_padding, b.target, rank == 3)
    windows = tuple(size[-2:] for size in (kernel, stride, dilation, padding))
    if rank < 3:
        _add(b, tile, x, y, x.n, windows, {})
        return
    deep = {
        "in_slices": x.shape[2], "x_slice": x.slice, "taps_deep": kernel[0], "stride_deep": stride[0],
        "dilation_deep": dilation[0], "pad_front": padding[0][0], "pad_behind": padding[0][1],
    }  # fmt: skip
    for image in range(x.n):
        _add(b, tile, x.plane_batch(image), y.plane_batch(image), y.shape[2], windows, deep)


def _add(
    b: Builder, tile: pool.Pool, x: Value, y: Value, images: int, windows: tuple[Any, ...], deep: dict[str, int]
) -> None:
    """A step over planes; ``deep``: of a volume, whose output slices are the images."""
    kernel, stride, dilation, padding = windows
    blocks = blocks_of(x.channels, b.v)
    rows = y.size[0]
    chunk_rows, chunks = b.row_chunks(rows, images, blocks)
    arguments = {
        "x": x.ref, "y": y.ref, "blocks": blocks, "chunks": chunks, "chunk_rows": chunk_rows,
        "in_rows": x.size[0], "in_cols": x.size[1], "out_rows": rows, "out_cols": y.size[1],
        "x_image": x.image, "x_block": x.block, "x_row": x.row, "y_image": y.image, "y_block": y.block, "y_row": y.row,
        "taps_high": kernel[0], "taps_wide": kernel[1], "stride_high": stride[0], "stride_wide": stride[1],
        "dilation_high": dilation[0], "dilation_wide": dilation[1],
        "pad_top": padding[0][0], "pad_bottom": padding[0][1], "pad_left": padding[1][0], "pad_right": padding[1][1],
        **deep,
    }  # fmt: skip
    b.step(tile.name(b.target), pool, tile, arguments, images * blocks * chunks, [x], [y], "pooling")


def lower_global(b: Builder, layer: Layer) -> None:
    """GlobalMaxPool and GlobalAveragePool."""
    x, y = b.blocked(layer.node.inputs[0]), b.new_blocked(layer.output)
    tile = global_pool.GlobalPool(layer.op == "GlobalMaxPool", deep=not x.even)
    blocks = blocks_of(x.channels, b.v)
    rows, cols = x.shape[3:] if tile.deep else x.size
    if x.flat:
        rows, cols = 1, rows * cols
    arguments = {
        "x": x.ref, "y": y.ref, "blocks": blocks, "rows": rows, "cols": cols,
        "x_image": x.image, "x_block": x.block, "x_row": x.row, "y_image": y.image, "y_block": y.block,
    }  # fmt: skip
    if tile.deep:
        arguments |= {"slices": x.shape[2], "x_slice": x.slice}
    b.step(tile.name(b.target), global_pool, tile, arguments, x.n * blocks, [x], [y], "pooling over the plane")
