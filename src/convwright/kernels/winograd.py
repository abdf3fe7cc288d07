"""Winograd convolution F(m_h x m_w, r_h x r_w): n_h n_w multiplications for m_h m_w outputs, n = m + r - 1 on each axis
(arXiv 1509.09308); direct summation needs m_h m_w r_h r_w. An axis with m = r = 1 is left as it is. At a stride, tiles
read more pixels, and the transforms have rows for each of the stride's phases (`cook_toom.filtering`).

A work item takes a strip of output tiles through all three stages while everything stays in the second-level cache: it
transforms their inputs (V = B^T d B), multiplies them, for each of the n_h n_w places of a tile, by the transformed
weights (M = V U, a matrix product over the input channels), and transforms the products back (A^T M A), adding bias
and epilogue. The products of ``held`` output vectors are computed place by place and then transformed: those of one
register tile, or where V does not stay in the second-level cache those of more, so that V is read less often.

A third axis, the depth of 3-D convolutions, joins the sum: M = V[depth + tap] U[tap], summed over taps and channels. A
work item covers several output slices and transforms each input slice once. At stride 1 the tiles of a slice follow
those of the slice before, so that a tap is nothing but an offset in V; at a stride, the next slice that a tap reads
follows. Tables say which input slices V holds, and where in it each tap begins.

The plan says where tiles lie and what they store, in a table. Tiles at the right and bottom edge are moved back inside,
and store only what the tiles before them do not: the same output computed in two places of a tile is not the same to
the last bit. Where there is less than a tile, it reaches into zeros. The pixels of a tile are ``x_row`` and ``x_col``
apart: those of a dilated convolution are the pixels of one phase.

Scratch of one thread, in floats: a tile halfway through a transform, as ``[n_h n_w][v]``; then V as ``[n_h n_w][channel
blocks][input slices][strip][v]``; then M as ``[n_h n_w][held][output slices][strip][v]``. From one place of V or M
to the next there may be a vector more (`_apart`). Weights are packed ``[output vector][n_h n_w][depth tap][channel]
[v]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llvmlite import ir

from convwright.codegen.lang import Int, Integer, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels import winograd_pairs as pairs
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.cook_toom import filtering
from convwright.kernels.pool import greater
from convwright.kernels.products import Sums, add_products
from convwright.kernels.transforms import both_ways, in_registers

UNROLL = 4

ARGUMENTS = Arguments(
    # tiles: a row a tile of one slice, see TILE_COLUMNS
    # slices: floats from an item's first input slice to each that V holds; taps: floats of V before each tap's first
    # channel_scales, squares, backs: of products in pairs (`winograd_pairs`), each input channel's scale, and for each
    # output vector and place minus the sums of b1 b2, and what products are multiplied by
    "x u bias y residual scratch tiles slices taps channel_scales squares backs",
    # work: item -> (group of channels, part of its output vectors, image, chunk of slices, strip of tiles);
    # vectors, part_vectors, held: output vectors of a group, of a part, and of those that M holds; each a number of
    # times `outs`, but for a part's last
    # pair_blocks: twice so many blocks are summed in pairs, pair_piece times two of them before they are added to M
    "parts part_vectors held vectors images chunks chunk_slices strips strip all_tiles out_slices in_slices "
    "deep_taps blocks channels pair_blocks pair_piece "
    "x_image x_block x_slice x_row x_col u_out y_image y_block y_slice y_row y_col "
    "r_image r_block r_slice r_row r_col scratch_thread",
)
TILE_COLUMNS = 5
"""First input, output and residual, in floats from the slice's own; bits of the rows and of the columns to store."""

_Count = TypeVar("_Count", int, Int)
Axis = tuple[int, int] | tuple[int, int, int]
"""(m, r): outputs of a tile and taps along one axis; (m, r, stride) where that is above 1."""


@dataclass(frozen=True)
class WinogradTile:
    """What is baked into one kernel.

    - `high`, `wide`: the algorithm along each axis.
    - `tiles`, `outs`: the register tile of the products, in vectors.
    - `pooled`: the largest of each 2 x 2 outputs is stored in their place; m is even on both axes, and ``y_row`` and
      ``y_col`` are half of what lies between two stored outputs.
    - `paired`: products are those of `winograd_pairs`.
    """

    high: Axis
    wide: Axis
    tiles: int
    outs: int
    epilogue: tuple[tuple[object, ...], ...] = ()
    pooled: bool = False
    paired: bool = False

    @property
    def key(self) -> str:
        return f"winograd-{self!r}"

    def name(self, target: Target) -> str:
        pairs = "-pairs" if self.paired else ""
        return f"f32-winograd-{notation(self.high, self.wide)}-{self.tiles}x{self.outs}{pairs}-{target.name}"


def notation(high: Axis, wide: Axis) -> str:
    """The algorithm as the literature writes it, without spaces: ``F(4x4,3x3)``, and ``F(4x4,3x3)s2x2`` at a stride."""
    strides = stride_of(high), stride_of(wide)
    at = f"s{strides[0]}x{strides[1]}" if max(strides) > 1 else ""
    return f"F({high[0]}x{wide[0]},{high[1]}x{wide[1]}){at}"


def stride_of(axis: Axis) -> int:
    return axis[2] if len(axis) == 3 else 1


def multiplications_of(axis: Axis) -> int:
    """Of one tile along one axis; at stride 1 they are as many as its inputs."""
    return len(filtering(*axis).g)


def places_of(high: Axis, wide: Axis) -> int:
    """The multiplications of a tile, n_h n_w."""
    return multiplications_of(high) * multiplications_of(wide)


def scratch_floats(places: int, inputs: int, blocks: int, outputs: int, held: int, v: int, paired: bool = False) -> int:
    """Floats of scratch that one thread needs for an item of so many input and output tiles, all slices together."""
    behind = pairs.scratch_floats(places, inputs, v) if paired else 0
    return places * v * (1 + _apart(inputs * blocks) + _apart(outputs * held)) + behind


def _apart(vectors: _Count) -> _Count:
    """Vectors from one place of a tile to the next, of so many: never a multiple of four, so that the places of a tile
    lie in different sets of the caches. Of 128 channels in strips of 16 tiles, where all lay in one, transforms of
    inputs took twice as long; odd numbers in place of all even ones gained nothing."""
    return vectors + (4 - vectors % 4) // 4


def emit(tile: WinogradTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    room = k.advance(a.scratch, k.thread * a.scratch_thread)
    places = places_of(tile.high, tile.wide)
    in_tiles, out_tiles = a.in_slices * a.strip, a.chunk_slices * a.strip
    inputs = k.advance(room, places * k.v)
    v_place, m_place = _apart(in_tiles * a.blocks) * k.v, _apart(out_tiles * a.held) * k.v
    products = k.advance(inputs, v_place * places)
    behind = k.advance(products, m_place * places)
    with k.loop(k.begin, k.end) as item:
        # Not `unravel`, which loads all counts first: on AVX2 two more of a tile's addresses would be spilled.
        rest, strip = item // a.strips, item % a.strips
        rest, chunk = rest // a.chunks, rest % a.chunks
        rest, image = rest // a.images, rest % a.images
        group, part = rest // a.parts, rest % a.parts
        first = k.smaller(strip * a.strip, a.all_tiles - a.strip)
        slice_at = k.smaller(chunk * a.chunk_slices, a.out_slices - a.chunk_slices)
        x = k.advance(a.x, image * a.x_image + group * a.blocks * a.x_block + slice_at * a.x_slice)
        scaling = pairs.scaling(k, a, places, behind, in_tiles, group) if tile.paired else None
        _transform_inputs(k, a, tile, x, first, room, inputs, v_place, in_tiles, scaling)
        if scaling:
            with k.when(k.b.icmp_signed(">", a.deep_taps.value, k.int_value(1))):
                pairs.sum_taps(k, a, scaling, places, in_tiles, out_tiles)
        start = part * a.part_vectors
        stop = k.minimum(start + a.part_vectors, a.vectors)
        u_place = a.deep_taps * a.channels * k.v
        with k.loop(start, stop, a.held) as wanted:
            out = group * a.vectors + k.smaller(wanted, a.vectors - a.held)
            with k.loop(0, places) as place, k.loop(0, a.held, tile.outs) as number:
                last = k.b.icmp_signed("==", (number + tile.outs).value, a.held.value)
                # From one register tile's weights to those of the next, which are fetched meanwhile.
                ahead = k.choose(last, u_place - (a.held - tile.outs) * a.u_out, a.u_out * tile.outs)
                v = k.advance(inputs, place * v_place)
                m = k.advance(products, place * m_place + number * out_tiles * k.v)
                if scaling:
                    size = tile.tiles, tile.outs
                    pairs.multiply(k, a, scaling, places, size, v, m, place, out + number, in_tiles, out_tiles, ahead)
                else:
                    u = k.advance(a.u, (out + number) * a.u_out + place * u_place)
                    _multiply(k, a, tile, v, m, u, in_tiles, out_tiles, ahead)
            y = k.advance(a.y, image * a.y_image + out * a.y_block + slice_at * a.y_slice)
            residual = k.advance(a.residual, image * a.r_image + out * a.r_block + slice_at * a.r_slice)
            bias = k.advance(a.bias, out * k.v)
            _transform_back(k, a, tile, y, residual, bias, first, room, products, m_place, out_tiles, scaling)
    return k.finish()


def _transform_inputs(
    k: Kernel, a: Reader, tile: WinogradTile, x: ir.Value, first: Int, room: ir.Value, inputs: ir.Value,
    place_stride: Int, in_tiles: Int, scaling: pairs.Scaling | None,
) -> None:  # fmt: skip
    """V of all tiles of the strip, in all slices that the item reads; meanwhile the next tile's inputs are fetched."""
    high, wide = filtering(*tile.high).bt, filtering(*tile.wide).bt
    fetched = max(stride_of(tile.high), stride_of(tile.wide)) == 1  # else they are too many: 4 to 12 % slower
    # One beside each load, F(4 x 6) of VGG16's first layers took 0.97 of its time, F(3 x 4) of 14 x 14 up to 1.06.
    at_once = in_registers(len(high[0]), len(wide[0]), k.target)
    with k.loop(0, a.in_slices) as number, k.loop(0, a.strip) as place:
        number, place = k.opaque_int(number), k.opaque_int(place)
        slice_at = k.advance(x, k.load_int(a.slices, number))
        at = k.advance(slice_at, k.load_int(a.tiles, (first + place) * TILE_COLUMNS))
        following = k.smaller(first + place + 1, a.all_tiles - 1)
        later = k.advance(slice_at, k.load_int(a.tiles, following * TILE_COLUMNS))
        own = number * a.strip + place
        if scaling:
            with k.when(number.equals(0)):
                of_tile = k.advance(x, k.load_int(a.tiles, (first + place) * TILE_COLUMNS))
                pairs.scale_tile(k, a, scaling, of_tile, (len(high[0]), len(wide[0])), place)
            scale = pairs.scale_of(k, scaling, own)
        with k.loop(0, a.blocks) as block:
            block = k.opaque_int(block)
            d, ahead = k.advance(at, block * a.x_block), k.advance(later, block * a.x_block)
            if fetched and at_once:
                for row in range(len(high[0])):
                    for col in range(len(wide[0])):
                        k.prefetch(ahead, a.x_row * row + a.x_col * col)
            v = k.advance(inputs, (block * in_tiles + own) * k.v)
            by = k.mul(scale, k.load(scaling.channel_scales, block * k.v)) if scaling else None

            def load(row: Integer, col: Integer) -> ir.Value:
                offset = a.x_row * row + a.x_col * col
                if fetched and not at_once:
                    k.prefetch(ahead, offset)
                value = k.load(d, offset)
                return k.mul(value, by) if by else value

            def store(row: Integer, vectors: Sequence[ir.Value]) -> None:
                to = k.advance(v, place_stride * (row * len(wide)))
                for vector in vectors:
                    k.store(vector, to)
                    to = k.advance(to, place_stride)

            both_ways(k, high, wide, load, store, room)
        if scaling:
            pairs.sum_squares(k, a, scaling, len(high) * len(wide), inputs, place_stride, in_tiles, own)


def _multiply(
    k: Kernel, a: Reader, tile: WinogradTile, inputs: ir.Value, products: ir.Value, weights: ir.Value,
    in_tiles: Int, out_tiles: Int, ahead: Int,
) -> None:  # fmt: skip
    """M[out][tile] = sum of V[channel][tile + tap] U[out][tap][channel], of one place."""
    turns = (out_tiles + (tile.tiles - 1)) // tile.tiles
    with k.loop(0, turns) as number:
        start = k.minimum(number * tile.tiles, out_tiles - tile.tiles)
        sums = [[k.variable(k.splat(0.0)) for _ in range(tile.outs)] for _ in range(tile.tiles)]
        now = k.variable(weights)
        with k.loop(0, a.deep_taps) as tap:
            v_tap = k.advance(inputs, k.load_int(a.taps, tap) + start * k.v)
            with k.loop(0, a.blocks) as block:
                v_block = k.advance(v_tap, block * in_tiles * k.v)
                count = k.minimum(a.channels - block * k.v, k.v)
                whole = count // UNROLL * UNROLL
                with k.loop(0, whole, UNROLL) as lane:
                    at = k.advance(v_block, k.opaque_int(lane))
                    _step(k, a, tile, sums, now, at, UNROLL, ahead)
                with k.loop(whole, count) as lane:
                    at = k.advance(v_block, k.opaque_int(lane))
                    _step(k, a, tile, sums, now, at, 1, ahead)
        for pixel, accumulators in enumerate(sums):
            for out, accumulator in enumerate(accumulators):
                k.store(accumulator.get(), products, (out_tiles * out + start + pixel) * k.v)


def _step(
    k: Kernel, a: Reader, tile: WinogradTile, sums: Sums, weights: Variable, x: ir.Value, unroll: int, later: Int
) -> None:
    """Add ``unroll`` channels to the sums; meanwhile weights that are ``later`` come to the second-level cache."""
    now = weights.get()
    add_products(k, sums, weights, a.u_out, unroll, lambda pixel, ahead: k.load_scalar(x, pixel * k.v + ahead))
    if unroll == UNROLL:
        for out in range(tile.outs):
            for line in range(UNROLL):
                k.prefetch(k.advance(now, a.u_out * out), later + line * k.v, locality=2)


def _transform_back(
    k: Kernel, a: Reader, tile: WinogradTile, y: ir.Value, residual: ir.Value, bias: ir.Value, first: Int,
    room: ir.Value, products: ir.Value, place_stride: Int, out_tiles: Int, scaling: pairs.Scaling | None,
) -> None:  # fmt: skip
    """The outputs of ``held`` vectors of all tiles of the strip, in all slices that the item writes."""
    high, wide = filtering(*tile.high).at, filtering(*tile.wide).at
    with k.loop(0, a.chunk_slices) as number, k.loop(0, a.strip) as place:
        number, place = k.opaque_int(number), k.opaque_int(place)
        row_of = (first + place) * TILE_COLUMNS
        y_at = k.load_int(a.tiles, row_of + 1) + number * a.y_slice
        r_at = k.load_int(a.tiles, row_of + 2) + number * a.r_slice
        rows, cols = k.load_int(a.tiles, row_of + 3), k.load_int(a.tiles, row_of + 4)
        own = number * a.strip + place
        back = k.broadcast(k.load_scalar(scaling.backs, own)) if scaling else None
        with k.loop(0, a.held) as out:
            out = k.opaque_int(out)
            m = k.advance(products, (out_tiles * out + own) * k.v)
            own_bias = k.load(bias, out * k.v)
            own_y = k.advance(y, y_at + out * a.y_block)
            own_residual = k.advance(residual, r_at + out * a.r_block)

            def finished(row: Integer, vectors: Sequence[ir.Value]) -> Iterator[ir.Value]:
                adds = k.advance(own_residual, a.r_row * row)
                for col, vector in enumerate(vectors):
                    vector = k.fma(vector, back, own_bias) if back else k.add(vector, own_bias)
                    for operation in tile.epilogue:
                        if operation[0] == "residual":
                            vector = k.add(vector, k.load(adds, a.r_col * col))
                        else:
                            vector = apply(k, operation, vector)
                    yield vector

            def store(row: Integer, vectors: Sequence[ir.Value]) -> None:
                with k.when(_has(k, rows, row)):
                    to = k.advance(own_y, a.y_row * row)
                    for col, vector in enumerate(finished(row, vectors)):
                        with k.when(_has(k, cols, col)):
                            k.store(vector, to, a.y_col * col)

            above: list[ir.Value] = []

            def store_pooled(row: Integer, vectors: Sequence[ir.Value]) -> None:
                values = list(finished(row, vectors))
                pairs = [greater(k, left, right) for left, right in zip(values[::2], values[1::2], strict=True)]
                if not above:
                    above.extend(pairs)
                    return
                with k.when(_has(k, rows, row)):
                    to = k.advance(own_y, a.y_row * (row - 1))
                    for number, (upper, lower) in enumerate(zip(above, pairs, strict=True)):
                        with k.when(_has(k, cols, 2 * number)):
                            k.store(greater(k, upper, lower), to, a.y_col * (2 * number))
                above.clear()

            def load(row: Integer, col: Integer) -> ir.Value:
                return k.load(m, place_stride * (row * len(wide[0]) + col))

            both_ways(k, high, wide, load, *((store_pooled, room, 2) if tile.pooled else (store, room)))


def _has(k: Kernel, bits: Int, number: Integer) -> ir.Value:
    """Whether the bit is set."""
    bit = k.b.shl(k.int_value(1), k.int_value(number)) if isinstance(number, Int) else k.int_value(1 << number)
    return k.b.icmp_unsigned("!=", k.b.and_(bits.value, bit), k.int_value(0))
