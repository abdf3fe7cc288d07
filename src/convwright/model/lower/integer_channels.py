"""Integer convolutions whose lanes are output channels: the input in words, register tiles, the cut of the work."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from convwright.kernels import integer, integer_layout
from convwright.kernels.words import CHANNELS
from convwright.model.builder import Builder
from convwright.model.lower.integer_layer import IntegerLayer
from convwright.model.tiles import Shape, choose_tile
from convwright.model.values import Ref, Value
from convwright.runtime.memory import aligned_empty

_SCRATCH_BYTES = 64 * 1024  # of one thread: sums on their way to the output
_OUT_CYCLES = 6.0  # a vector of sums, through scratch and transposed
_IN_CYCLES = 8.0  # a vector of input words, joined and transposed


def lower(b: Builder, layer: IntegerLayer) -> None:
    """Add the layer's steps."""
    words = pack_input(b, layer)
    groups, window = layer.spec.groups, layer.window
    shape = _shape(b, layer)
    run = words.words * (window.kernel[2] if window.dilation[2] == 1 else 1)
    tile = integer.IntegerTile(
        shape.rows, shape.cols, shape.outs, words.words, window.stride[2] * words.words,
        integer.choose_unroll(run), layer.form, layer.signed, layer.requantised,
    )  # fmt: skip
    reduction = math.prod(window.kernel) * integer_layout.words_of(layer.own_in, layer.form)
    packed = layer.derived(b, "vectors", lambda: pack_weights(layer.centred, groups, layer.form, b.v))
    convolve(b, layer, words, Kernel(integer, tile, shape, packed, reduction))


@dataclass(frozen=True, slots=True)
class Words:
    """A packed input: its memory, and its strides in words."""

    value: Value
    words: int  # of a pixel
    blocks: int
    image: int
    block: int
    depth: int
    row: int


def pack_input(b: Builder, layer: IntegerLayer) -> Words:
    """The input as words, in memory of the arena."""
    x, window, form, own, groups = layer.x, layer.window, layer.form, layer.own_in, layer.spec.groups
    deep, high, wide = window.padded
    front, top, left = window.before
    rows, cols = window.size[1:]
    pitch = min(integer_layout.words_of(own, form), b.v)
    blocks = -(-own // (b.v * CHANNELS[form]))
    row = wide * pitch
    depth = high * row
    block = deep * depth
    image = groups * blocks * block
    value = b.plain_room((x.n * image,), np.dtype(np.int32))
    planes = x.n * deep * groups * blocks
    joined = 1
    if (high, wide) == (rows, cols):
        # Rows without gaps are joined as far as there are enough pieces for all threads.
        least = min(rows, -(-2 * b.threads // planes))
        joined = next(count for count in range(rows, 0, -1) if rows % count == 0 and rows // count >= least)
    tile = integer_layout.pack_words(form, layer.signed, own, cols * joined, b.target)
    high_joined = high // joined
    chunk_rows, chunks = b.chunks(high_joined, planes)
    plane = rows * cols
    arguments = {
        "x": x.ref, "zero": layer.zero_ref(b), "y": value.ref,
        "depths": deep, "groups": groups, "blocks": blocks, "chunks": chunks, "chunk_rows": chunk_rows,
        "deep": window.size[0], "rows": rows // joined, "cols": cols * joined,
        "x_image": math.prod(x.shape[1:]), "x_group": own * window.size[0] * plane, "x_channel": window.size[0] * plane,
        "x_depth": plane, "x_row": cols * joined,
        "y_image": image, "y_block": block, "y_depth": depth, "y_row": row * joined,
        "front": front, "top": top, "bottom": high - top - rows, "left": left, "right": wide - left - cols,
    }  # fmt: skip
    items = planes * chunks
    b.step(tile.name(b.target), integer_layout, tile, arguments, items, layer.reads(x), [value], why="layout")
    return Words(value, pitch, blocks, image, block, depth, row)


def _shape(b: Builder, layer: IntegerLayer) -> Shape:
    """The register tile, and the estimated cycles of the sums on one core."""
    _, rows, cols = layer.window.out
    vectors = -(-layer.own_out // b.v)
    reduction = math.prod(layer.window.kernel) * integer_layout.words_of(layer.own_in, layer.form)
    # Where products are not added by the instruction that makes them, they need a register.
    target = replace(b.target, has_fma=b.target.has_fma and b.target.has_vnni)
    return choose_tile(rows, cols, vectors, layer.spec.groups, reduction, target)


def estimate(b: Builder, layer: IntegerLayer) -> float:
    """Cycles of the whole layer on one core, by the model of ``model.tiles``."""
    window, groups, n = layer.window, layer.spec.groups, layer.x.n
    vectors = groups * -(-layer.own_out // b.v) * math.prod(window.out)
    packed = groups * integer_layout.words_of(layer.own_in, layer.form) * math.prod(window.padded) / b.v
    return n * (_shape(b, layer).cycles * window.out[0] + vectors * _OUT_CYCLES + packed * _IN_CYCLES)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel family that takes the arguments of ``kernels.integer``: its tile, and its weights.

    ``shape``: of the tile. ``reduction``: words of weights of one output channel.
    """

    family: ModuleType
    tile: Any
    shape: Shape
    packed: Ref
    reduction: int


def convolve(b: Builder, layer: IntegerLayer, words: Words, kernel: Kernel) -> None:
    """Add the step that sums, scales and stores."""
    v, groups, window, x = b.v, layer.spec.groups, layer.window, layer.x
    _, rows, cols = window.out
    vectors = -(-layer.own_out // v)
    shape, reduction = kernel.shape, kernel.reduction
    images = x.n * window.out[0]
    table = _table(layer, shape.outs, vectors, words, reduction, v)
    weight_bytes = 4 * groups * vectors * reduction * v
    cut = cut_rectangles(rows, cols, shape, len(table), images, 4 * words.image, weight_bytes, v, b.threads)
    y = b.new_plain(layer.layer.output)
    scratch_thread = cut.band_rows * cut.span_cols * shape.outs * v
    scratch = b.plain_room((scratch_thread * b.threads,), np.dtype(np.int32))
    plane = rows * cols
    arguments: dict[str, Any] = {
        "x": words.value.ref,
        "w": kernel.packed,
        **layer.channel_arguments(b, lambda values: _by_vector(values, groups, v)),
        "y": y.ref, "table": b.static(table), "scratch": scratch.ref,
        "tiles_inner": -(-len(table) // cut.parts), "tiles": len(table), "rectangles": cut.bands * cut.spans * images,
        "bands": cut.bands, "spans": cut.spans, "band_rows": cut.band_rows, "span_cols": cut.span_cols,
        "out_rows": rows, "out_cols": cols, "out_depths": window.out[0],
        "x_image": words.image, "x_block": words.block, "x_depth": words.depth * window.stride[0],
        "x_row": words.row * window.stride[1], "x_tap_depth": words.depth * window.dilation[0],
        "x_tap_row": words.row * window.dilation[1], "x_tap_col": words.words * window.dilation[2],
        "blocks": words.blocks, "words": integer_layout.words_of(layer.own_in, layer.form),
        "taps_deep": window.kernel[0], "taps_high": window.kernel[1], "taps_wide": window.kernel[2],
        "merged": int(window.dilation[2] == 1), "w_out": reduction * v,
        "y_image": layer.spec.out_channels * window.out[0] * plane, "y_channel": window.out[0] * plane,
        "y_depth": plane, "scratch_thread": scratch_thread,
    }  # fmt: skip
    items = cut.parts * arguments["tiles_inner"] * arguments["rectangles"]
    why = f"{layer.form}: {shape.rows}x{shape.cols} pixels by {shape.outs} vectors"
    reads = layer.reads(words.value)
    b.step(
        kernel.tile.name(b.target), kernel.family, kernel.tile, arguments, items, reads, [y, scratch], why, layer.macs
    )


def pack_weights(centred: np.ndarray, groups: int, form: str, v: int, *, whole: bool = False) -> np.ndarray:
    """``[K, C/groups, kd, kh, kw]`` to ``[groups * vectors][reduction][v]`` words (see ``kernels.integer``).

    ``whole``: where there are several blocks of ``v`` words, the last one is filled with zeros.
    """
    size = CHANNELS[form]
    out, own = centred.shape[0] // groups, centred.shape[1]
    vectors, words = -(-out // v), -(-own // size)
    if whole and words > v:
        words = -(-words // v) * v
    padded = np.zeros((groups, vectors * v, words * size, *centred.shape[2:]), np.int8 if size == 4 else np.int16)
    padded[:, :out, :own] = centred.reshape(groups, out, *centred.shape[1:])
    lanes = padded.reshape(groups * vectors, v, words, size, *centred.shape[2:]).transpose(0, 4, 5, 6, 2, 1, 3)
    entries, deep = groups * vectors, centred.shape[2]
    pieces = [lanes[..., at : at + v, :, :].reshape(entries, deep, -1) for at in range(0, words, v)]
    joined = np.concatenate(pieces, axis=2).reshape(entries, -1).view(np.int32)
    packed = aligned_empty(joined.size).view(np.int32).reshape(entries, -1, v)
    packed[...] = joined.reshape(packed.shape)
    return packed


def _by_vector(values: np.ndarray, groups: int, v: int) -> np.ndarray:
    """One value an output channel, as ``[groups * vectors][v]``; zeros where a group does not fill its last vector."""
    own = values.size // groups
    padded = np.zeros((groups, -(-own // v) * v), values.dtype)
    padded[:, :own] = values.reshape(groups, own)
    return padded


def _table(layer: IntegerLayer, outs: int, vectors: int, words: Words, reduction: int, v: int) -> np.ndarray:
    """The output tiles: ``outs`` neighbouring vectors of a group each, the last of a group moved back inside it."""
    own = layer.own_out
    rows = []
    for group in range(layer.spec.groups):
        for start in range(0, vectors, outs):
            first = min(start, vectors - outs)
            entry = group * vectors + first
            rows.append(
                (
                    group * words.blocks * words.block,
                    group * own + first * v,
                    entry,
                    entry * reduction * v,
                    own - first * v,
                )
            )
    return np.array(rows, np.int64)


@dataclass(frozen=True, slots=True)
class Rectangles:
    """The cut of an output plane, and into how many parts the output tiles go."""

    bands: int
    band_rows: int
    spans: int
    span_cols: int
    parts: int


def cut_rectangles(
    rows: int, cols: int, shape: Shape, tiles: int, images: int, x_bytes: int, weight_bytes: int, v: int, threads: int
) -> Rectangles:
    """Rectangles whose sums fit the scratch memory, with the least work for the thread that has most of it.

    ``x_bytes``: of one image. With more weights than input, each thread takes its own part of the weights.
    """
    best, least = None, math.inf
    most_pixels = max(shape.rows * shape.cols, _SCRATCH_BYTES // (4 * v * shape.outs))
    parts = threads if weight_bytes > x_bytes and tiles >= threads else 1
    for wanted in range(1, -(-rows // shape.rows) + 1):
        band_rows = _piece(rows, wanted, shape.rows)
        # Whole rows follow each other in the output: parts of them only where a tile's rows are too many.
        fewest = -(-band_rows * cols // most_pixels)
        for pieces in {fewest, -(-fewest // threads) * threads} if band_rows == shape.rows else {1}:
            span_cols = _piece(cols, pieces, shape.cols)
            bands, spans = -(-rows // band_rows), -(-cols // span_cols)
            tiles_inside = -(-band_rows // shape.rows) * -(-span_cols // shape.cols)
            if tiles_inside > 1 and band_rows * span_cols > 2 * most_pixels:
                continue
            share = -(-images * bands * spans * tiles // threads) * (tiles_inside + 0.2)
            if share < least:
                best, least = Rectangles(bands, band_rows, spans, span_cols, parts), share
    assert best is not None
    return best


def _piece(size: int, pieces: int, multiple: int) -> int:
    """Of ``size`` cut into about so many pieces: a multiple of the tile's size, or all there is."""
    each = -(-size // pieces)
    return min(size, -(-each // multiple) * multiple)
