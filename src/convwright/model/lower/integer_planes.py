"""Integer convolutions whose lanes are output pixels: rows of taps in words, register tiles, the cut of the work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from convwright.kernels import integer_planes, integer_rows
from convwright.kernels.words import CHANNELS
from convwright.model.builder import Builder
from convwright.model.lower.integer_layer import IntegerLayer
from convwright.model.tiles import most_pixels, step_cycles
from convwright.model.values import Value

_INPUT_BYTES = 256 * 1024  # of the words that all of a group's output channels pass over
_OUTS = (1, 2, 3, 4, 6, 8)
_TILE_CYCLES = 20.0
_TAP_CYCLES = 4.0  # a row of taps: its loop
_STORE_CYCLES = 4.0  # a vector of sums: scaled and stored
_IN_CYCLES = 7.0  # a vector of input words
_COPY_CYCLES = 0.2  # a byte of the input, copied to where it is padded


@dataclass(frozen=True, slots=True)
class Tile:
    """``outs`` output channels by ``cols`` vectors of pixels, and the estimated cycles of the sums on one core."""

    outs: int
    cols: int
    cycles: float


def words_of(layer: IntegerLayer) -> int:
    """Words that hold the values of a row of taps."""
    return -(-layer.own_in * layer.window.kernel[2] // CHANNELS[layer.form])


def _tile(b: Builder, layer: IntegerLayer) -> Tile:
    window, words = layer.window, words_of(layer)
    deep, high, _ = window.kernel
    vectors = max(1, window.out[1] * window.out[2] // b.v)
    planes = layer.spec.groups * window.out[0]
    best: Tile | None = None
    for cols in range(1, min(8, vectors) + 1):
        # Registers for vectors of pixels, as many as the vectors of weights of a direct convolution's tile.
        most = most_pixels(cols, b.target) if b.target.has_vnni else most_pixels(cols, b.target) - 1
        for outs in (outs for outs in _OUTS if outs <= min(layer.own_out, most)):
            tiles = -(-layer.own_out // outs) * -(-window.out[1] * window.out[2] // (cols * b.v))
            sums = deep * high * (words * step_cycles(outs, cols) + _TAP_CYCLES)
            cycles = planes * tiles * (sums + _TILE_CYCLES + outs * cols * _STORE_CYCLES)
            if best is None or cycles < best.cycles:
                best = Tile(outs, cols, cycles)
    assert best is not None
    return best


def estimate(b: Builder, layer: IntegerLayer) -> float:
    """Cycles of the whole layer on one core."""
    window = layer.window
    rows = layer.spec.groups * window.padded[0] * window.padded[1]
    packed = rows * words_of(layer) * max(window.out[2], b.v) / b.v
    copied = math.prod(layer.x.shape[1:])
    return layer.x.n * (_tile(b, layer).cycles + packed * _IN_CYCLES + copied * _COPY_CYCLES)


@dataclass(frozen=True, slots=True)
class Planes:
    """A packed input: its memory, its strides in words, and where each tap of a column begins."""

    value: Value
    image: int
    depth: int
    group: int
    word: int
    taps: np.ndarray


def lower(b: Builder, layer: IntegerLayer) -> None:
    """Add the layer's steps."""
    _convolve(b, layer, _pack_input(b, layer))


def _pack_input(b: Builder, layer: IntegerLayer) -> Planes:
    """The input as words of rows of taps, in memory of the arena."""
    x, window = layer.x, layer.window
    deep, high, wide = window.padded
    front, top, left = window.before
    rows, cols = window.size[1:]
    stride, gap, out_cols = window.stride[2], window.dilation[2], window.out[2]
    phases = window.stride[1]
    phase_rows = -(-high // phases)
    words = words_of(layer)
    word = phases * phase_rows * out_cols
    group = words * word
    depth = layer.spec.groups * group
    image = deep * depth
    value = b.plain_room((x.n * image + b.v,), np.dtype(np.int32))  # the last vector of a small plane reads past it
    planes = x.n * deep * layer.spec.groups
    chunk_rows, chunks = b.chunks(high, planes)
    scratch_channel = wide + b.v * stride
    scratch_thread = -(-layer.own_in * scratch_channel // 64) * 64
    scratch = b.plain_room((scratch_thread * b.threads,), np.dtype(np.uint8))
    baked = stride if stride <= integer_rows.STRIDES else 0
    tile = integer_rows.RowWords(layer.form, layer.signed, baked, out_cols < b.v)
    plane = rows * cols
    arguments = {
        "x": x.ref, "zero": layer.zero_ref(b), "y": value.ref, "scratch": scratch.ref,
        "depths": deep, "groups": layer.spec.groups, "chunks": chunks, "chunk_rows": chunk_rows, "padded_rows": high,
        "deep": window.size[0], "rows": rows, "cols": cols, "channels": layer.own_in, "taps": window.kernel[2],
        "tap_step": gap, "words": words, "phases": phases, "phase_rows": phase_rows, "out_cols": out_cols,
        "padded_cols": wide, "stride": stride,
        "x_image": math.prod(x.shape[1:]), "x_group": layer.own_in * window.size[0] * plane,
        "x_channel": window.size[0] * plane, "x_depth": plane,
        "y_image": image, "y_depth": depth, "y_group": group, "y_word": word,
        "front": front, "top": top, "left": left,
        "scratch_channel": scratch_channel, "scratch_thread": scratch_thread,
    }  # fmt: skip
    items, reads = planes * chunks, layer.reads(x)
    b.step(tile.name(b.target), integer_rows, tile, arguments, items, reads, [value, scratch], why="layout")
    rows_of_taps = [tap * window.dilation[1] for tap in range(window.kernel[1])]
    taps = np.array([(row % phases * phase_rows + row // phases) * out_cols for row in rows_of_taps], np.int64)
    return Planes(value, image, depth, group, word, taps)


def _convolve(b: Builder, layer: IntegerLayer, planes: Planes) -> None:
    window, spec = layer.window, layer.spec
    shape, words = _tile(b, layer), words_of(layer)
    pixels = window.out[1] * window.out[2]
    narrow = pixels < b.v
    tile = integer_planes.PlanesTile(shape.outs, shape.cols, layer.form, layer.signed, layer.requantised, narrow)
    out_tiles = -(-layer.own_out // shape.outs)
    step = shape.cols * b.v
    others = layer.x.n * spec.groups * out_tiles
    chunks = max(-(-4 * planes.group // _INPUT_BYTES), b.chunks(-(-pixels // step), others)[1])
    each = -(-pixels // chunks)
    chunk_pixels = -(-each // step) * step
    chunks = -(-pixels // chunk_pixels)
    y = b.new_plain(layer.layer.output)
    reduction = window.kernel[0] * window.kernel[1] * words
    arguments: dict[str, Any] = {
        "x": planes.value.ref, "w": layer.derived(b, "rows", lambda: pack_rows(layer)),
        **layer.channel_arguments(b, np.ascontiguousarray),
        "y": y.ref, "taps": b.static(planes.taps),
        "out_depths": window.out[0], "groups": spec.groups, "chunks": chunks, "chunk_pixels": chunk_pixels,
        "pixels": pixels, "out_tiles": out_tiles, "own_out": layer.own_out,
        "x_image": planes.image, "x_depth": planes.depth * window.stride[0], "x_group": planes.group,
        "x_word": planes.word, "x_tap_depth": planes.depth * window.dilation[0],
        "words": words, "taps_deep": window.kernel[0], "taps_high": window.kernel[1], "w_out": reduction,
        "y_image": spec.out_channels * window.out[0] * pixels, "y_channel": window.out[0] * pixels, "y_depth": pixels,
    }  # fmt: skip
    items = layer.x.n * window.out[0] * spec.groups * chunks * out_tiles
    why = f"{layer.form}: {shape.outs} channels by {shape.cols} vectors of pixels"
    reads = layer.reads(planes.value)
    b.step(tile.name(b.target), integer_planes, tile, arguments, items, reads, [y], why, layer.macs)


def pack_rows(layer: IntegerLayer) -> np.ndarray:
    """``[K, C/groups, kd, kh, kw]`` to ``[K][kd][kh][word]`` (see ``kernels.integer_planes``)."""
    size = CHANNELS[layer.form]
    out_channels, own, deep, high, wide = layer.centred.shape
    rows = layer.centred.transpose(0, 2, 3, 1, 4).reshape(out_channels, deep, high, own * wide)
    padded = np.zeros((out_channels, deep, high, words_of(layer) * size), np.int8 if size == 4 else np.int16)
    padded[..., : own * wide] = rows
    return padded.view(np.int32)
