"""Integer convolutions: ConvInteger (exact 32-bit sums) and QLinearConv (the same, scaled back to 8 bits).

Inputs and outputs are plain NCHW tensors; the kernels' own layout of the input lives for one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convwright.graph import Node
from convwright.graph.shape_rules.windows import axis_list, window_padding
from convwright.kernels import integer, integer_layout
from convwright.kernels.words import CHANNELS, ROUND_BITS
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.tiles import Shape, choose_tile
from convwright.model.values import Ref, Value
from convwright.runtime.memory import aligned_empty
from convwright.spec import ConvSpec

_SCRATCH_BYTES = 64 * 1024  # of one thread: sums on their way to the output
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


@dataclass(frozen=True, slots=True)
class Operands:
    """The names of a node's inputs by what they are, "" where there is none."""

    x: str
    w: str
    x_zero: str
    w_zero: str
    x_scale: str = ""
    w_scale: str = ""
    y_scale: str = ""
    y_zero: str = ""
    bias: str = ""


def operands(node: Node) -> Operands:
    """Of a ConvInteger or a QLinearConv node."""
    names = [node.input(place) for place in range(9)]
    if node.op == "ConvInteger":
        return Operands(*names[:4])
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = names
    return Operands(x, w, x_zero, w_zero, x_scale, w_scale, y_scale, y_zero, bias)


def can_lower(b: Builder, layer: Layer) -> bool:
    """Everything but the input and its zero point has to be constant."""
    names = operands(layer.node)
    shape = b.shape(names.x)
    given = (names.w, names.w_zero, names.x_scale, names.w_scale, names.y_scale, names.y_zero, names.bias)
    known = all(name in b.graph.constants for name in given if name)
    bytes_ = all(b.types[name].dtype in _BYTES for name in (names.x, names.w, names.x_zero) if name)
    pads = layer.node.attributes.get("pads") or (0,)
    return known and bytes_ and 3 <= len(shape) <= 5 and 0 not in (*shape, *b.shape(layer.output)) and min(pads) >= 0


def spec_of(node: Node, size: tuple[int, ...], weight_shape: tuple[int, ...]) -> ConvSpec:
    """The convolution of a node, for inputs of this spatial size."""
    rank = len(size)
    stride, dilation = axis_list(node, "strides", rank, 1), axis_list(node, "dilations", rank, 1)
    groups = node.get("group", 1)
    return ConvSpec(
        weight_shape[1] * groups,
        weight_shape[0],
        weight_shape[2:],
        stride=stride,
        dilation=dilation,
        padding=window_padding(node, size, weight_shape[2:], stride, dilation),
        groups=groups,
        bias=False,
    )


@dataclass(frozen=True, slots=True)
class Window:
    """A convolution over three spatial axes, the first ones of size 1 where it has fewer."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    size: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def padded(self) -> tuple[int, ...]:
        """The size with the padding that windows reach."""
        sizes = []
        for axis in range(3):
            reach = (self.out[axis] - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
            sizes.append(max(reach, self.before[axis] + self.size[axis]))
        return tuple(sizes)


def window_of(spec: ConvSpec, size: tuple[int, ...]) -> Window:
    missing = 3 - spec.rank
    ones, zeros = (1,) * missing, (0,) * missing
    return Window(
        ones + spec.kernel, ones + spec.stride, ones + spec.dilation,
        zeros + tuple(low for low, _ in spec.pads(size)), ones + tuple(size), ones + spec.output_size(size),
    )  # fmt: skip


def lower(b: Builder, layer: Layer) -> None:
    names = operands(layer.node)
    x = b.plain(names.x)
    weight = b.constant(names.w)
    assert weight is not None
    spec = spec_of(layer.node, x.shape[2:], weight.shape)
    window = window_of(spec, x.shape[2:])
    centred = _centred(weight, b.constant(names.w_zero) if names.w_zero else None)
    form = "bytes" if b.target.has_vnni and centred.min() >= -128 and centred.max() <= 127 else "halves"
    zero = b.plain(names.x_zero) if names.x_zero else None
    own = spec.in_channels // spec.groups
    words = _pack_input(b, x, zero, own, spec.groups, window, form)
    _convolve(b, layer, names, spec, window, x, zero, words, centred, form)


def _centred(weight: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """``w - zero point``, of 16 bits, ``[K, C, kd, kh, kw]``."""
    wide = weight.astype(np.int16)
    if zero is not None:
        wide = wide - zero.astype(np.int16).reshape(-1, *(1,) * (weight.ndim - 1))
    return wide.reshape(*weight.shape[:2], *(1,) * (5 - weight.ndim), *weight.shape[2:])


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


def _pack_input(b: Builder, x: Value, zero: Value | None, own: int, groups: int, window: Window, form: str) -> Words:
    """The input as words, in memory of the arena."""
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
    tile = integer_layout.pack_words(form, x.dtype == np.int8, own, cols * joined, b.target)
    high_joined = high // joined
    chunks = b.chunks(high_joined, planes)
    chunk_rows = -(-high_joined // chunks)
    chunks = -(-high_joined // chunk_rows)
    plane = rows * cols
    arguments = {
        "x": x.ref, "zero": _zero_ref(b, zero), "y": value.ref,
        "depths": deep, "groups": groups, "blocks": blocks, "chunks": chunks, "chunk_rows": chunk_rows,
        "deep": window.size[0], "rows": rows // joined, "cols": cols * joined,
        "x_image": math.prod(x.shape[1:]), "x_group": own * window.size[0] * plane, "x_channel": window.size[0] * plane,
        "x_depth": plane, "x_row": cols * joined,
        "y_image": image, "y_block": block, "y_depth": depth, "y_row": row * joined,
        "front": front, "top": top, "bottom": high - top - rows, "left": left, "right": wide - left - cols,
    }  # fmt: skip
    reads = [x] if zero is None else [x, zero]
    b.step(tile.name(b.target), integer_layout, tile, arguments, planes * chunks, reads, [value], why="layout")
    return Words(value, pitch, blocks, image, block, depth, row)


def _zero_ref(b: Builder, zero: Value | None) -> Ref:
    return b.static(np.zeros(4, np.uint8)) if zero is None else zero.ref


def _convolve(
    b: Builder, layer: Layer, names: Operands, spec: ConvSpec, window: Window, x: Value, zero: Value | None,
    words: Words, centred: np.ndarray, form: str,
) -> None:  # fmt: skip
    v, groups = b.v, spec.groups
    requantised = layer.op == "QLinearConv"
    key = (names.w_zero, form, groups)

    def derived(what: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        return b.weights.derived(names.w, (what, *key), lambda _: make())

    packed = derived("words", lambda: pack_weights(centred, groups, form, v))
    w_sums = derived("sums of weights", lambda: _by_vector(_sums(centred), groups, v))
    start = derived(f"bias {names.bias}", lambda: _by_vector(_bias(b, names, spec), groups, v))
    vectors = len(packed) // groups
    reduction = packed.shape[1]
    _, rows, cols = window.out
    chooser = replace(b.target, has_fma=b.target.has_fma and b.target.has_vnni)  # else a product needs a register
    shape = choose_tile(rows, cols, vectors, groups, reduction, chooser)
    images = x.n * window.out[0]
    table = _table(spec, shape.outs, vectors, words, reduction, v)
    cut = cut_rectangles(rows, cols, shape, len(table), images, 4 * words.image, 4 * packed.size, v, b.threads)
    signed = x.dtype == np.int8
    merged = window.dilation[2] == 1
    tile = integer.IntegerTile(
        shape.rows, shape.cols, shape.outs, words.words, window.stride[2] * words.words,
        integer.choose_unroll(words.words * (window.kernel[2] if merged else 1)), form, signed, requantised,
    )  # fmt: skip
    y = b.new_plain(layer.output)
    scratch_thread = cut.band_rows * cut.span_cols * shape.outs * v
    scratch = b.plain_room((scratch_thread * b.threads,), np.dtype(np.int32))
    plane = rows * cols
    arguments: dict[str, Any] = {
        "x": words.value.ref, "w": b.static(packed), "start": b.static(start), "w_sums": b.static(w_sums),
        "scales": 0, "limits": 0, "y_offset": 0,
        "zero": _zero_ref(b, zero), "y": y.ref, "table": b.static(table), "scratch": scratch.ref,
        "tiles_inner": -(-len(table) // cut.parts), "tiles": len(table), "rectangles": cut.bands * cut.spans * images,
        "bands": cut.bands, "spans": cut.spans, "band_rows": cut.band_rows, "span_cols": cut.span_cols,
        "out_rows": rows, "out_cols": cols, "out_depths": window.out[0],
        "x_image": words.image, "x_block": words.block, "x_depth": words.depth * window.stride[0],
        "x_row": words.row * window.stride[1], "x_tap_depth": words.depth * window.dilation[0],
        "x_tap_row": words.row * window.dilation[1], "x_tap_col": words.words * window.dilation[2],
        "blocks": words.blocks, "words": integer_layout.words_of(spec.in_channels // groups, form),
        "taps_deep": window.kernel[0], "taps_high": window.kernel[1], "taps_wide": window.kernel[2],
        "merged": int(merged), "w_out": reduction * v,
        "y_image": spec.out_channels * window.out[0] * plane, "y_channel": window.out[0] * plane, "y_depth": plane,
        "scratch_thread": scratch_thread,
    }  # fmt: skip
    if requantised:
        arguments |= _requantisation(b, names, spec, y.dtype)
    items = cut.parts * arguments["tiles_inner"] * arguments["rectangles"]
    why = f"{form}: {shape.rows}x{shape.cols} pixels by {shape.outs} vectors"
    reads = [words.value] if zero is None else [words.value, zero]
    macs = spec.macs(x.shape[2:], x.n)
    b.step(tile.name(b.target), integer, tile, arguments, items, reads, [y, scratch], why, macs)


def _sums(centred: np.ndarray) -> np.ndarray:
    return centred.astype(np.int64).sum(axis=(1, 2, 3, 4)).astype(np.int32)


def _bias(b: Builder, names: Operands, spec: ConvSpec) -> np.ndarray:
    bias = b.constant(names.bias) if names.bias else None
    return np.zeros(spec.out_channels, np.int32) if bias is None else bias.astype(np.int32).reshape(-1)


def _requantisation(b: Builder, names: Operands, spec: ConvSpec, dtype: np.dtype) -> dict[str, Any]:
    """Scales of the output channels, and the limits of 8 bits as seen from the zero point."""
    x_scale, w_scale, y_scale = (
        np.asarray(b.constant(name), np.float32).reshape(-1) for name in (names.x_scale, names.w_scale, names.y_scale)
    )
    # In float32, in this order, as onnxruntime.
    scales = np.broadcast_to(x_scale * w_scale / y_scale, (spec.out_channels,))
    zero = int(np.asarray(b.constant(names.y_zero)).reshape(-1)[0]) if names.y_zero else 0
    info = np.iinfo(dtype)
    return {
        "scales": b.static(_by_vector(scales, spec.groups, b.v)),
        "limits": b.static(np.array([info.min - zero, info.max - zero], np.float32)),
        "y_offset": zero - ROUND_BITS,
    }


def pack_weights(centred: np.ndarray, groups: int, form: str, v: int) -> np.ndarray:
    """``[K, C/groups, kd, kh, kw]`` to ``[groups * vectors][reduction][v]`` words (see ``kernels.integer``)."""
    size = CHANNELS[form]
    out, own = centred.shape[0] // groups, centred.shape[1]
    vectors, words = -(-out // v), -(-own // size)
    padded = np.zeros((groups, vectors * v, words * size, *centred.shape[2:]), np.int8 if size == 4 else np.int16)
    padded[:, :out, :own] = centred.reshape(groups, out, *centred.shape[1:])
    lanes = padded.reshape(groups * vectors, v, words, size, *centred.shape[2:]).transpose(0, 4, 5, 6, 2, 1, 3)
    entries, deep = groups * vectors, centred.shape[2]
    pieces = [lanes[..., at : at + v, :, :].reshape(entries, deep, -1) for at in range(0, words, v)]
    whole = np.concatenate(pieces, axis=2).reshape(entries, -1).view(np.int32)
    packed = aligned_empty(whole.size).view(np.int32).reshape(entries, -1, v)
    packed[...] = whole.reshape(packed.shape)
    return packed


def _by_vector(values: np.ndarray, groups: int, v: int) -> np.ndarray:
    """One value an output channel, as ``[groups * vectors][v]``; zeros where a group does not fill its last vector."""
    own = values.size // groups
    padded = np.zeros((groups, -(-own // v) * v), values.dtype)
    padded[:, :own] = values.reshape(groups, own)
    return padded


def _table(spec: ConvSpec, outs: int, vectors: int, words: Words, reduction: int, v: int) -> np.ndarray:
    """The output tiles: ``outs`` neighbouring vectors of a group each, the last of a group moved back inside it."""
    own = spec.out_channels // spec.groups
    rows = []
    for group in range(spec.groups):
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
