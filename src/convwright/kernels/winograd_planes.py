"""Winograd's algorithm along the rows of few plain planes: first layers of large, mostly strided kernels.

F(m, r) is m outputs of a row and r taps at any stride (``kernels.cook_toom``). The n products of a tile are summed over
the rows of taps and the channels alike, "terms" here:

    V[place] = B^T d                                of every tile of the input rows that a strip reads, once
    M[place] = sum over terms V[place] U[place]     for a vector of output channels
    y = A^T M

One axis alone: of two there would be as many places to transform back as there are channels to multiply, 3.

V is made with tiles as lanes: a row is copied between zeros, and squares of it are transposed. M is summed in
registers, a few tiles and one vector at a time, and stays in the first-level cache until all its places are there.
Meanwhile the lines of the output that it will become are fetched, 5 % of the layer: transforms alone store faster than
lines arrive.

Scratch of one thread, in floats: padded rows ``[channel][row_floats]``, V as ``[n][input rows of a strip][channel]
[lanes]``, and M as ``[n][tiles][v]``. Weights are packed ``[output vector][n][row of taps][channel][v]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from convwright.codegen.lang import Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.cook_toom import Filtering, filtering
from convwright.kernels.products import add_products
from convwright.kernels.spans import copy, transpose
from convwright.kernels.transforms import combine
from convwright.kernels.winograd import notation
from convwright.runtime.memory import aligned_empty

UNROLL = 3  # terms in one turn of the inner loop: the channels of most images

ARGUMENTS = Arguments(
    "x u bias y scratch",
    # work: item -> (image, strip of output rows); stride: of rows; turns: over the tiles of a row
    "strips strip out_rows out_cols in_rows in_cols top left stride channels taps_high tiles turns vectors "
    "x_image x_plane x_row u_out y_image y_block y_row row_floats lanes scratch_thread",
)


@dataclass(frozen=True)
class PlanesTile:
    """What is baked into one kernel.

    - `m`, `r`, `stride`: the algorithm along the row.
    - `tiles`: summed together.
    """

    m: int
    r: int
    stride: int
    tiles: int
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def key(self) -> str:
        return f"winograd-planes-{self!r}"

    def name(self, target: Target) -> str:
        form = notation((1, 1), (self.m, self.r, self.stride))
        return f"f32-winograd-planes-{form}-{self.tiles}x1-{target.name}"

    @property
    def filtering(self) -> Filtering:
        return filtering(self.m, self.r, self.stride)

    @property
    def places(self) -> int:
        return len(self.filtering.g)

    @property
    def step(self) -> int:
        """Inputs from one tile to the next."""
        return self.m * self.stride

    @property
    def inputs(self) -> int:
        """Of one tile."""
        return (self.m - 1) * self.stride + self.r


@dataclass(frozen=True, slots=True)
class Room:
    """The sizes of a thread's scratch, in floats: tiles of a row in whole vectors, a padded row, and all of it."""

    lanes: int
    row_floats: int
    total: int


def room_of(tile: PlanesTile, turns: int, left: int, in_cols: int, strip_rows: int, channels: int, v: int) -> Room:
    """Of strips that read ``strip_rows`` input rows; ``left``: zeros in front of a row."""
    lanes = _whole(turns * tile.tiles, v)
    reach = (lanes - 1) * tile.step + _whole(tile.inputs, v)
    row_floats = _whole(max(reach, left + in_cols), v)
    transformed = tile.places * (strip_rows * channels * lanes + tile.tiles * v)
    return Room(lanes, row_floats, row_floats * channels + transformed)


def _whole(count: int, v: int) -> int:
    return -(-count // v) * v


def transform_weights(weight: np.ndarray, v: int, m: int, stride: int) -> np.ndarray:
    """``[K, C, r_h, r]`` to ``[ceil(K/v)][n][r_h][C][v]``, on a cache line: G g in float64, rounded once."""
    out_channels, channels, high, wide = weight.shape
    g = filtering(m, wide, stride).float_g()
    vectors = -(-out_channels // v)
    spread = np.zeros((vectors * v, len(g), high, channels))
    spread[:out_channels] = np.einsum("nr,kchr->knhc", g, weight.astype(np.float64))
    packed = aligned_empty(spread.size).reshape(vectors, len(g), high, channels, v)
    packed[...] = spread.reshape(vectors, v, len(g), high, channels).transpose(0, 2, 3, 4, 1)
    return packed


def emit(tile: PlanesTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    rows = k.advance(a.scratch, k.thread * a.scratch_thread)
    inputs = k.advance(rows, a.channels * a.row_floats)
    place_floats = ((a.strip - 1) * a.stride + a.taps_high) * a.channels * a.lanes
    products = k.advance(inputs, place_floats * tile.places)
    with k.loop(0, a.channels * a.row_floats, k.v) as at:
        k.store(k.splat(0.0), rows, at)
    with k.loop(k.begin, k.end) as item:
        image, first = item // a.strips, item % a.strips * a.strip
        count = k.smaller(a.strip, a.out_rows - first)
        x = k.advance(a.x, image * a.x_image)
        read = (count - 1) * a.stride + a.taps_high
        _transform_inputs(k, a, tile, x, first * a.stride - a.top, read, rows, inputs, place_floats)
        with k.loop(0, count) as down, k.loop(0, a.vectors) as out, k.loop(0, a.turns) as turn:
            start = turn * tile.tiles
            values = k.advance(inputs, down * a.stride * a.channels * a.lanes + start)
            row = k.advance(a.y, image * a.y_image + out * a.y_block + (first + down) * a.y_row)
            y = k.advance(row, start * (tile.m * k.v))
            _multiply(k, a, tile, values, k.advance(a.u, out * a.u_out), products, place_floats, y)
            _transform_back(k, a, tile, products, k.load(a.bias, out * k.v), y, start)
    return k.finish()


def _transform_inputs(
    k: Kernel, a: Reader, tile: PlanesTile, x: ir.Value, top: Int, count: Int, rows: ir.Value, inputs: ir.Value,
    place_floats: Int,
) -> None:  # fmt: skip
    """V of ``count`` input rows from row ``top`` on, which may lie outside the image."""
    with k.loop(0, count) as number:
        at = top + number
        v_row = k.advance(inputs, number * a.channels * a.lanes)
        with k.either(k.b.and_(at >= 0, at < a.in_rows)) as (then, otherwise):
            with then:
                with k.loop(0, a.channels) as channel:
                    source = k.advance(x, channel * a.x_plane + at * a.x_row)
                    copy(k, source, k.advance(rows, channel * a.row_floats + a.left), a.in_cols)
                with k.loop(0, a.channels) as channel, k.loop(0, a.lanes, k.v) as lane:
                    first = k.advance(rows, channel * a.row_floats + lane * tile.step)
                    vectors: list[ir.Value] = []
                    for square in range(0, tile.inputs, k.v):
                        vectors += transpose(k, [k.load(first, tile.step * each + square) for each in range(k.v)])
                    to = k.advance(v_row, channel * a.lanes + lane)
                    for place, vector in enumerate(combine(k, tile.filtering.bt, vectors[: tile.inputs])):
                        k.store(vector, to, place_floats * place)
            with otherwise, k.loop(0, tile.places) as nothing, k.loop(0, a.channels * a.lanes, k.v) as lane:
                k.store(k.splat(0.0), v_row, place_floats * nothing + lane)


def _multiply(
    k: Kernel, a: Reader, tile: PlanesTile, values: ir.Value, weights: ir.Value, products: ir.Value,
    place_floats: Int, y: ir.Value,
) -> None:  # fmt: skip
    """M[place][tile], place by place; ``y``: the lines to fetch."""
    terms = a.taps_high * a.channels
    whole = terms // UNROLL * UNROLL
    lines = -(-tile.tiles * tile.m // tile.places)
    with k.loop(0, tile.places) as place:
        for line in range(lines):
            k.prefetch(y, (place * lines + line) * k.v)
        sums = [[k.variable(k.splat(0.0))] for _ in range(tile.tiles)]
        now = k.variable(k.advance(weights, place * terms * k.v))
        at = k.variable(k.advance(values, place * place_floats))
        for start, stop, unroll in ((0, whole, UNROLL), (whole, terms, 1)):
            with k.loop(start, stop, unroll):
                here = at.get()

                def value(pixel: int, ahead: int, here: ir.Value = here) -> ir.Value:
                    return k.load_scalar(here, a.lanes * ahead + pixel)

                add_products(k, sums, now, 0, unroll, value)
                at.set(k.advance(here, a.lanes * unroll))
        to = k.advance(products, place * (tile.tiles * k.v))
        for pixel, (accumulator,) in enumerate(sums):
            k.store(accumulator.get(), to, pixel * k.v)


def _transform_back(
    k: Kernel, a: Reader, tile: PlanesTile, products: ir.Value, bias: ir.Value, y: ir.Value, start: Int
) -> None:
    """The outputs of the tiles from number ``start`` on; the row's last tile has fewer than m."""
    with k.loop(0, k.smaller(a.tiles - start, tile.tiles)) as number:
        m = k.advance(products, number * k.v)
        left = a.out_cols - (start + number) * tile.m
        to = k.advance(y, number * (tile.m * k.v))
        places = [k.load(m, place * (tile.tiles * k.v)) for place in range(tile.places)]
        for col, vector in enumerate(combine(k, tile.filtering.at, places)):
            vector = k.add(vector, bias)
            for operation in tile.epilogue:
                vector = apply(k, operation, vector)
            with k.when(left >= col + 1):
                k.store(vector, to, col * k.v)
