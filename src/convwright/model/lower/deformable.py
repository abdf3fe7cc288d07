"""Deformable convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convwright.codegen.lang import lanes
from convwright.codegen.target import Target
from convwright.errors import ConvwrightError
from convwright.graph.shape_rules.windows import axis_list, window_padding
from convwright.kernels import deformable, interleave, paired
from convwright.kernels.direct import DirectTile
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import direct, paired_weights
from convwright.model.lower.channels import with_halo
from convwright.model.lower.direct import output_tiles, vectors_a_group
from convwright.model.lower.paired import tile_of
from convwright.model.tiles import Shape, choose_tile, most_pixels
from convwright.model.values import NO_HALO, Buffer, Halo, Ref, Value, blocks_of
from convwright.model.weights import entries_of, pack_direct, pack_spread
from convwright.runtime.machine import adds_beside_multiply_adds

_WEIGHTS, _OFFSET, _BIAS, _MASK = 1, 2, 3, 4  # places among the operator's inputs
_COLUMN_BYTES = 256 * 1024  # of one chunk's columns: a part of a second-level cache of 1 MB
_PAIRED_VECTORS = 4  # of outputs: with fewer, scaling the columns takes as long as pairs of products save
_ZEROS: Halo = (1, 0, 0, 0)  # where samples outside the input are read


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A layer's numbers at one input size."""

    channels: int
    out_channels: int
    groups: int
    offset_groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: list[tuple[int, int]]

    @property
    def own(self) -> tuple[int, int]:
        """Input and output channels of a group."""
        return self.channels // self.groups, self.out_channels // self.groups

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)


def _numbers(b: Builder, layer: Layer) -> _Numbers:
    node = layer.node
    shape, weights = b.shape(node.inputs[0]), b.shape(node.inputs[_WEIGHTS])
    stride, dilation = axis_list(node, "strides", 2, 1), axis_list(node, "dilations", 2, 1)
    return _Numbers(
        shape[1], weights[0], node.get("group", 1), node.get("offset_group", 1), weights[2:], stride, dilation,
        window_padding(node, shape[2:], weights[2:], stride, dilation),
    )  # fmt: skip


def can_lower(b: Builder, layer: Layer) -> bool:
    node = layer.node
    known = all(name in b.graph.constants for name in (node.inputs[_WEIGHTS], node.input(_BIAS)) if name)
    dtype = b.types[node.inputs[0]].dtype
    if not known or dtype not in (np.float32, np.float64) or any(b.types[name].dtype != dtype for name in layer.reads):
        return False
    shape = b.shape(node.inputs[0])
    return len(shape) == 4 and 0 not in (*shape, *b.shape(layer.output))


def needs_halo(layer: Layer) -> dict[str, Halo]:
    """Zeros that the layer wants around its input."""
    return {layer.node.inputs[0]: _ZEROS}


def lower(b: Builder, layer: Layer) -> None:
    node, g = layer.node, _numbers(b, layer)
    dtype = b.types[node.inputs[0]].dtype
    element = "f64" if dtype == np.float64 else "f32"
    v = lanes(b.target, element)
    if element == "f32":
        x, y = with_halo(b, node.inputs[0], _ZEROS), b.new_blocked(layer.output)
    else:
        x, y = _packed(b, node.inputs[0]), _blocks(b.shape(layer.output), NO_HALO, v)
    if x.block >= 2**31:  # the kernel's places in a block are 32-bit numbers
        raise ConvwrightError(
            f"{node}: an input of {x.size[0]} x {x.size[1]} is too large for a deformable convolution"
        )
    offset = b.plain(node.inputs[_OFFSET])
    mask = b.plain(node.inputs[_MASK]) if node.input(_MASK) else None
    residual = b.blocked(layer.residual) if layer.residual else None

    wrap = not (y.flat and (residual is None or residual.flat))
    work = _products(b, layer, g, dtype, math.prod(y.size), x.n)
    cut, packed = work.cut, work.packed
    runs, split = _runs(g, v)
    product = DirectTile(
        1, cut.cols, cut.outs, v, wrap=wrap, masked=work.masked,
        pieces=not work.spread and direct.in_pieces(b.numerics, g.own[0] * g.taps, element), epilogue=layer.epilogue,
    )  # fmt: skip
    own = g.own if work.spread else (0, 0)
    pairs = work.pairs
    tile = deformable.DeformableTile(product, own, mask is not None, split, cut.chunk < v, element, pairs is not None)
    blocks = blocks_of(g.channels, v)
    scratch_thread = deformable.scratch_elements(blocks, g.taps, cut.chunk, v)
    if pairs is not None:
        scratch_thread += paired.scratch_floats(cut.chunk, cut.cols, blocks * g.taps, v)
    scratch = Buffer(dtype.itemsize * scratch_thread * b.threads)
    arguments = {
        "x": x.ref, "offset": offset.ref, "mask": mask.ref if mask else 0, "w": b.static(packed),
        "bias": b.static(work.bias), "y": y.ref, "residual": residual.ref if residual else 0,
        "table": b.static(work.table), "runs": b.static(runs), "scratch": Ref(scratch),
        "places": b.static(np.arange(blocks * g.taps, dtype=np.int64) * (cut.chunk * v)) if pairs else 0,
        "channel_scales": b.static(pairs.channel_scales) if pairs else 0,
        "squares": b.static(pairs.squares) if pairs else 0, "out_scales": b.static(pairs.out_scales) if pairs else 0,
        "chunks": cut.chunks, "chunk": cut.chunk, "pixels": math.prod(y.size),
        "tiles": len(work.table), "run_count": len(runs),
        "offset_groups": g.offset_groups, "taps_high": g.kernel[0], "taps_wide": g.kernel[1],
        "high": x.size[0], "wide": x.size[1], "wrap_cols": y.size[1],
        "stride_high": g.stride[0], "stride_wide": g.stride[1],
        "pad_high": g.padding[0][0], "pad_wide": g.padding[1][0],
        "dilation_high": g.dilation[0], "dilation_wide": g.dilation[1],
        "channels": g.own[0], "w_out": packed.shape[1] * v, "scratch_thread": scratch_thread,
        "x_image": x.image, "x_block": x.block, "x_row": x.row,
        "y_image": y.image, "y_block": y.block, "y_row": y.row,
        "r_image": residual.image if residual else 0, "r_block": residual.block if residual else 0,
        "r_row": residual.row if residual else 0,
    }  # fmt: skip
    kind = "groups side by side in a vector" if work.spread else "dense" if g.groups == 1 else "grouped"
    if pairs is not None:
        kind = "products in pairs"
    why = f"{kind}: {cut.chunks} chunks of {cut.chunk} positions, tiles of {cut.cols} by {cut.outs} vectors"
    reads: list[Value] = [value for value in (x, offset, mask, residual) if value is not None]
    macs = g.taps * g.own[0] * g.out_channels * math.prod(y.size) * x.n
    b.step(tile.name(b.target), deformable, tile, arguments, x.n * cut.chunks, reads, [y], why, macs)
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))
    if element == "f64":
        _interleave(b, "unpack", y, y, b.new_plain(layer.output))


def _blocks(shape: tuple[int, ...], halo: Halo, v: int) -> Value:
    """Room for a tensor of float64 in channel blocks; zeros, if any, are rows above it."""
    row = shape[3] * v
    block = (halo[0] + shape[2]) * row
    image = blocks_of(shape[1], v) * block
    buffer = Buffer(8 * image * shape[0])
    offset = 8 * halo[0] * row
    extent = buffer.nbytes - offset
    return Value(shape, np.dtype(np.float64), buffer, True, offset, image, block, row, halo, extent)


def _packed(b: Builder, name: str) -> Value:
    """A tensor of float64 in channel blocks, a row of zeros above each."""
    source = b.plain(name)
    value = _blocks(source.shape, _ZEROS, lanes(b.target, "f64"))
    _interleave(b, "pack", value, source, value)
    return value


def _interleave(b: Builder, kind: str, blocks: Value, x: Value, y: Value) -> None:
    tile = interleave.Interleave(kind, "f64")
    count = blocks.image // blocks.block
    arguments = {
        "x": x.ref, "y": y.ref, "blocks": count, "channels": x.channels, "pixels": math.prod(x.size),
        "image": blocks.image, "block": blocks.block, "lead": blocks.halo[0] * blocks.row,
    }  # fmt: skip
    b.step(tile.name(b.target), interleave, tile, arguments, x.n * count, [x], [y], why="layout")
    b.steps[-1].touches.append((y.buffer, 0, y.buffer.nbytes, True, "inside"))


@dataclass(frozen=True, slots=True)
class _Cut:
    """Chunks of an image's output positions, positions in each, and the register tile of their products."""

    chunks: int
    chunk: int
    cols: int
    outs: int


@dataclass(frozen=True, slots=True)
class _Products:
    """The second stage of the kernel: its weights, its output tiles and how they are cut.

    ``masked``: tiles cover lanes of other groups. ``spread``: groups lie side by side in a vector. ``pairs``: all that
    products in pairs read, where they are.
    """

    packed: np.ndarray
    bias: np.ndarray
    table: np.ndarray
    cut: _Cut
    masked: bool = False
    spread: bool = False
    pairs: paired_weights.Packed | None = None


def _products(b: Builder, layer: Layer, g: _Numbers, dtype: np.dtype, pixels: int, images: int) -> _Products:
    v = lanes(b.target, "f64" if dtype == np.float64 else "f32")
    if dtype == np.float32 and _in_pairs(b, g):
        return _paired_products(b, layer, g, pixels, images)
    spread = g.groups > 1 and deformable.why_not_spread(*g.own, v) is None
    packed, bias = _constants(b, layer, g, dtype, spread)
    most = max(1, _COLUMN_BYTES // (dtype.itemsize * blocks_of(g.channels, v) * g.taps * v))
    if spread:
        cut = _cut(pixels, most, images, b.threads, _spread_shape(b.target))
        return _Products(packed, bias, _spread_table(g, v), cut, spread=True)
    entries, reduction = entries_of(g.out_channels, g.groups, v), packed.shape[1]
    vectors = min(vectors_a_group(entries))

    def shape_of(chunk: int) -> Shape:
        return choose_tile(1, chunk, vectors, g.groups, reduction, b.target)

    cut = _cut(pixels, most, images, b.threads, shape_of)
    table = output_tiles(entries, cut.outs, g.own[0], reduction, v)
    return _Products(packed, bias, table, cut, masked=g.groups > 1 and g.own[1] % v != 0)


def _in_pairs(b: Builder, g: _Numbers) -> bool:
    """Whether products in pairs gain more than scaling the columns costs."""
    fits = g.groups == 1 and g.channels % b.v == 0 and g.out_channels >= _PAIRED_VECTORS * b.v
    return fits and b.numerics != "strict" and adds_beside_multiply_adds(b.target)


def _paired_products(b: Builder, layer: Layer, g: _Numbers, pixels: int, images: int) -> _Products:
    v, name = b.v, layer.node.inputs[_WEIGHTS]
    reduction, vectors = g.channels * g.taps, blocks_of(g.out_channels, v)

    def rows(weight: np.ndarray) -> np.ndarray:
        """Of each output, the taps of one block after another's."""
        return weight.reshape(g.out_channels, -1, v, g.taps).swapaxes(2, 3).reshape(g.out_channels, reduction)

    def back(made: np.ndarray) -> np.ndarray:
        return made.reshape(g.out_channels, -1, g.taps, v).swapaxes(2, 3)

    packed = paired_weights.packed_rows(b, name, ("columns",), (g.out_channels, reduction), rows, back)
    most = max(1, _COLUMN_BYTES // (4 * reduction))

    def shape_of(chunk: int) -> Shape:
        cols, outs, cycles = tile_of(chunk, vectors, reduction, b.target)
        return Shape(1, cols, outs, cycles)

    cut = _cut(pixels, most, images, b.threads, shape_of)
    bias = b.weights.bias(layer.node.input(_BIAS), g.out_channels)
    table = np.zeros((vectors, 0), np.int64)
    return _Products(packed.weights, bias, table, cut, pairs=packed)


def _constants(b: Builder, layer: Layer, g: _Numbers, dtype: np.dtype, spread: bool) -> tuple[np.ndarray, np.ndarray]:
    """The packed weights, and the bias in whole vectors."""
    name, bias = layer.node.inputs[_WEIGHTS], layer.node.input(_BIAS)
    if dtype == np.float32:
        form, groups = ("spread", 1) if spread else ("direct", g.groups)
        packed = b.weights.get(name, form, (g.out_channels, g.own[0], *g.kernel), groups)
        return packed, b.weights.bias(bias, g.out_channels)
    v = lanes(b.target, "f64")

    def pack(weight: np.ndarray) -> np.ndarray:
        return pack_spread(weight, v) if spread else pack_direct(weight, g.groups, v)

    whole = np.zeros(blocks_of(g.out_channels, v) * v)
    if bias:
        whole[: g.out_channels] = b.weights.array(bias)
    return b.weights.derived(name, ("deformable", g.groups), pack), whole


def _cut(pixels: int, most: int, images: int, threads: int, shape_of: Callable[[int], Shape]) -> _Cut:
    """The cut with the least work on the busiest thread, of those whose chunks are not much smaller than ``most``.

    ``shape_of``: the tile for a chunk, and its cycles.
    """
    fewest = -(-pixels // min(most, pixels))
    best: tuple[float, _Cut] | None = None
    for wanted in range(fewest, min(pixels, 2 * max(fewest, threads)) + 1):
        chunk = -(-pixels // wanted)
        chunks = -(-pixels // chunk)
        shape = shape_of(chunk)
        cycles = -(-chunks * images // threads) * shape.cycles
        if best is None or cycles < best[0]:
            best = cycles, _Cut(chunks, chunk, shape.cols, shape.outs)
    assert best is not None
    return best[1]


def _spread_shape(target: Target) -> Callable[[int], Shape]:
    """Tiles of one output vector: as many positions as half of the registers hold, at most 8."""
    most = min(8, most_pixels(1, target) // 2)
    return lambda chunk: Shape(1, min(chunk, most), 1, -(-chunk // most))


def _runs(g: _Numbers, v: int) -> tuple[np.ndarray, bool]:
    """Runs of blocks whose channels share an offset group (see ``kernels.deformable``); whether groups share blocks."""
    own = g.channels // g.offset_groups
    if g.offset_groups == 1 or own % v == 0:
        each = blocks_of(own, v)
        return np.array([(group, group * each, each, 0, v) for group in range(g.offset_groups)], np.int64), False
    rows = []
    for group in range(g.offset_groups):
        start, stop = group * own, (group + 1) * own
        head, tail = -(-start // v), stop // v  # whole blocks
        if head > tail:  # inside one block
            rows.append((group, tail, 1, start % v, stop % v))
            continue
        if start % v:
            rows.append((group, head - 1, 1, start % v, v))
        if tail > head:
            rows.append((group, head, tail - head, 0, v))
        if stop % v:
            rows.append((group, tail, 1, 0, stop % v))
    return np.array(rows, np.int64), True


def _spread_table(g: _Numbers, v: int) -> np.ndarray:
    """The output vectors: the first input channel of each is that of its first group."""
    own_in, own_out = g.own
    rows = [
        (block * v // own_out * own_in, block, block * g.taps * own_in * v, 0, v)
        for block in range(blocks_of(g.out_channels, v))
    ]
    return np.array(rows, np.int64)
