"""Deformable convolution (arXiv 1703.06211; with a mask arXiv 1811.11168) on channel-blocked activations.

Every tap of every output position reads the input at a place of its own, between four pixels. A work item is a chunk of
output positions; it goes through two stages while everything stays in the caches of the core:

1. For ``v`` positions at a time, and each tap, the places and weights of the four pixels are computed, a lane a
   position. Then, position by position, the four pixels are loaded, ``v`` channels at once, and their weighted sum, a
   column, goes to the thread's scratch. Columns of the whole image never exist.
2. The columns are multiplied by the weights: as ``kernels.direct`` does it, where a group has many channels; where the
   channels of several groups share a vector, lane by lane ("spread"), so that none is wasted. Or in pairs, as
   ``kernels.paired`` does it, where the columns are scaled on their way to its own part of the scratch.

Pixels outside the input are read from the zeros of its halo: the input needs a row of zeros above it, or a column to
its left. What lies a whole pixel or more outside is zero, infinitely far places too; an offset of NaN gives NaN. An
offset is split into its whole part and its fraction before it is added to the position, which keeps all of its bits.

Scratch of one thread, in elements: rows and columns of ``v`` positions; the four places (int32) and the four weights of
``v`` positions; the columns, ``[blocks][taps][chunk][v]``, and a vector that is read past their end; what
``kernels.paired`` needs for a strip of a chunk's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from types import SimpleNamespace
from typing import Any

from llvmlite import ir

from convwright.codegen.lang import I32, I64, Int, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels import paired, paired_inputs
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.direct import TABLE_COLUMNS, DirectTile, Masks, store_tile, sum_tile

ARGUMENTS = Arguments(
    # places, channel_scales, squares, out_scales: as in kernels.paired, of a pixel of the columns
    "x offset mask w bias y residual table runs scratch places channel_scales squares out_scales",
    # work: item -> (image, chunk of output positions)
    "chunks chunk pixels tiles run_count offset_groups taps_high taps_wide high wide wrap_cols "
    "stride_high stride_wide pad_high pad_wide dilation_high dilation_wide channels w_out scratch_thread "
    "x_image x_block x_row y_image y_block y_row r_image r_block r_row",
)

RUN_COLUMNS = 5  # offset group, first block, number of blocks, first and last + 1 lane
UNROLL = 4  # blocks of one position that are interpolated in one turn of the loop
_CORNERS = 4
_GAP = 10  # chunks behind the columns
_PLACES = 2 + 2 * _CORNERS  # vectors of scratch in front of the columns


@dataclass(frozen=True)
class DeformableTile:
    """What is baked into one kernel.

    product: the register tile of the second stage, one row high, its epilogue and its kind of stores.
    own: input and output channels of a group where products are spread over lanes; (0, 0) for dense ones.
    modulated: there is a mask.
    split: offset groups share blocks: columns are stored under lane masks.
    narrow: chunks are shorter than a vector.
    element: "f32" or "f64", of all tensors.
    pairs: products are summed in pairs; ``tiles`` is the number of output vectors then, and there is no table.
    """

    product: DirectTile
    own: tuple[int, int] = (0, 0)
    modulated: bool = False
    split: bool = False
    narrow: bool = False
    element: str = "f32"
    pairs: bool = False

    @property
    def key(self) -> str:
        return f"deformable-{self!r}"

    def name(self, target: Target) -> str:
        kind = "deformable-spread" if self.own[0] else "deformable-paired" if self.pairs else "deformable"
        return f"{self.element}-{kind}-{self.product.cols}x{self.product.outs}-{target.name}"


def scratch_elements(blocks: int, taps: int, chunk: int, v: int) -> int:
    """Elements of scratch that one thread needs, and a gap behind them that nobody writes.

    The second stage walks through the columns in steps of a chunk, and the CPU fetches ahead as many as nine of them:
    without the gap it takes another thread's columns away from it. Measured on two cores of Zen 4, 64 to 64 channels on
    56 x 56: 1.42 ms without, 1.22 ms with a gap of nine steps or more.
    """
    return (_PLACES + (blocks * taps + _GAP) * chunk + 1) * v


def why_not_spread(own_in: int, own_out: int, v: int) -> str | None:
    """Why products of groups of ``own_in`` to ``own_out`` channels cannot be spread over lanes; None where they can."""
    if own_out >= v or v % own_out:
        return f"{own_out} output channels a group do not divide a vector of {v} into several parts"
    if own_out % own_in:
        return f"{own_in} input channels a group do not divide its {own_out} output channels"
    return None


@dataclass(frozen=True)
class _Bounds:
    """The input's size as vectors: the edges that a position lies between, and the last row and column."""

    minus_one: ir.Value
    high: ir.Value
    wide: ir.Value
    last_row: ir.Value
    last_col: ir.Value


def emit(tile: DeformableTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target, element=tile.element)
    a = ARGUMENTS.read(k)
    scratch = k.advance(a.scratch, k.thread * a.scratch_thread)
    columns = k.advance(scratch, _PLACES * k.v)
    high, wide = (k.broadcast(_real(k, size)) for size in (a.high, a.wide))
    one = k.splat(1.0)
    bounds = _Bounds(k.splat(-1.0), high, wide, k.sub(high, one), k.sub(wide, one))
    with k.loop(k.begin, k.end) as item:
        image, first = item // a.chunks, k.smaller(item % a.chunks * a.chunk, a.pixels - a.chunk)
        with k.loop(0, a.chunk, k.v) as wanted:
            at: Int = Int(k, k.int_value(0)) if tile.narrow else k.smaller(wanted, a.chunk - k.v)
            _write_bases(k, a, scratch, first + at)
            count = k.smaller(a.chunk - at, k.v)
            with k.loop(0, a.run_count) as run:
                _write_run(k, a, tile, bounds, run, image, first + at, wanted - at, count, scratch, columns, at)
        (_multiply_in_pairs if tile.pairs else _multiply)(k, a, tile, columns, image, first)
    return k.finish()


def _real(k: Kernel, number: Integer) -> ir.Value:
    """An integer as a scalar of the kernel's element."""
    return k.b.sitofp(k.int_value(number), k.scalar_type)


def _write_bases(k: Kernel, a: Reader, bases: ir.Value, pixel: Int) -> None:
    """Rows, then columns, of the input at which the windows of ``v`` outputs from ``pixel`` on begin."""
    row, col = k.variable(pixel // a.wrap_cols), k.variable(pixel % a.wrap_cols)
    with k.loop(0, k.v) as lane:
        here, right = row.get(), col.get()
        k.store_scalar(_real(k, here * a.stride_high - a.pad_high), bases, lane)
        k.store_scalar(_real(k, right * a.stride_wide - a.pad_wide), bases, lane + k.v)
        ended = (right + 1).equals(a.wrap_cols)
        row.set(k.choose(ended, here + 1, here))
        col.set(k.choose(ended, 0, right + 1))


def _write_run(
    k: Kernel, a: Reader, tile: DeformableTile, bounds: _Bounds, run: Int, image: Int, pixel: Int, begin: Int, end: Int,
    scratch: ir.Value, columns: ir.Value, at: Int,
) -> None:  # fmt: skip
    """The columns of a run of blocks that share an offset group, for the positions ``begin <= position < end``."""
    entries = [k.load_int(a.runs, run * RUN_COLUMNS + column) for column in range(RUN_COLUMNS)]
    group, block, blocks, lane_begin, lane_end = entries
    mask = k.mask(lane_begin, lane_end) if tile.split else None
    x = k.advance(a.x, image * a.x_image + block * a.x_block)
    taps = a.taps_high * a.taps_wide
    to_block = taps * a.chunk * k.v
    with k.loop(0, a.taps_high) as tap_row, k.loop(0, a.taps_wide) as tap_col:
        tap = tap_row * a.taps_wide + tap_col
        plane = (image * a.offset_groups + group) * taps + tap
        _locate(k, a, tile, bounds, scratch, plane, pixel, tap_row * a.dilation_high, tap_col * a.dilation_wide, end)
        to = k.advance(columns, block * to_block + (tap * a.chunk + at) * k.v)
        with k.loop(begin, end) as position:
            places = [_place(k, scratch, position + corner * k.v) for corner in range(_CORNERS)]
            weights = [
                k.broadcast(k.load_scalar(scratch, position + (2 + _CORNERS + corner) * k.v))
                for corner in range(_CORNERS)
            ]
            here = k.advance(to, position * k.v)
            whole = blocks // UNROLL * UNROLL
            for start, stop, step in ((0, whole, UNROLL), (whole, blocks, 1)):
                with k.loop(start, stop, step) as number:
                    for ahead in range(step):
                        pixels = k.advance(x, (number + ahead) * a.x_block)
                        total = k.mul(k.load(pixels, places[0]), weights[0])
                        for place, weight in zip(places[1:], weights[1:], strict=True):
                            total = k.fma(k.load(pixels, place), weight, total)
                        k.store(total, here, (number + ahead) * to_block, mask)


def _place(k: Kernel, scratch: ir.Value, index: Int) -> Int:
    """One of the places: elements from the first pixel of a block to a pixel."""
    slot = k.b.gep(k.advance(scratch, 2 * k.v), [index.value], source_etype=I32)
    return Int(k, k.b.sext(k.b.load(slot, typ=I32, align=4), I64))


def _locate(
    k: Kernel, a: Reader, tile: DeformableTile, bounds: _Bounds, scratch: ir.Value, plane: Int, pixel: Int,
    tap_row: Int, tap_col: Int, count: Int,
) -> None:  # fmt: skip
    """Write the four places and weights of ``v`` positions for one tap.

    ``plane``: of the mask, counted through images, offset groups and taps; the offsets have two planes for each.
    """
    only = k.mask(0, count) if tile.narrow else None
    zero, one = k.splat(0.0), k.splat(1.0)
    lows, fractions, fit = [], [], []
    inside, outside = [], []  # of NaN neither is true
    axes = ((tap_row, bounds.high, bounds.last_row), (tap_col, bounds.wide, bounds.last_col))
    for axis, (tap, size, last) in enumerate(axes):
        base = k.add(k.load(scratch, axis * k.v), k.broadcast(_real(k, tap)))
        offset = k.load(a.offset, (plane * 2 + axis) * a.pixels + pixel, only)
        whole = k.unary("floor", offset)
        fractions.append(k.sub(offset, whole))
        exact, low = k.add(base, offset), k.add(base, whole)
        lows.append(low)
        inside += [k.b.fcmp_ordered(">", exact, bounds.minus_one), k.b.fcmp_ordered("<", exact, size)]
        outside += [k.b.fcmp_ordered("<=", exact, bounds.minus_one), k.b.fcmp_ordered(">=", exact, size)]
        fit.append((k.b.fcmp_ordered(">=", low, zero), k.b.fcmp_ordered("<", low, last)))
    near, away = reduce(k.b.and_, inside), reduce(k.b.or_, outside)
    # Selected before they are converted: the conversion of a number that no integer holds is not defined.
    row, col = (k.b.fptosi(k.select(near, low, zero), k.int_vector_type) for low in lows)
    first = k.b.add(k.b.mul(row, k.int_broadcast(a.x_row)), k.b.mul(col, k.splat_int(k.v)))
    zeros = k.splat_int(-k.v)  # in the halo
    mask = k.load(a.mask, plane * a.pixels + pixel, only) if tile.modulated else None
    shares = [(k.sub(one, fraction), fraction) for fraction in fractions]
    for corner in range(_CORNERS):
        down, right = divmod(corner, 2)
        there = k.b.and_(near, k.b.and_(fit[0][down], fit[1][right]))
        step = k.b.add(k.int_broadcast(a.x_row) if down else k.splat_int(0), k.splat_int(right * k.v))
        place = k.select(there, k.b.add(first, step), zeros)
        k.b.store(place, k.b.gep(k.advance(scratch, 2 * k.v), [I64(corner * k.v)], source_etype=I32), align=4)
        weight = k.select(away, zero, k.mul(shares[0][down], shares[1][right]))
        k.store(k.mul(weight, mask) if mask is not None else weight, scratch, (2 + _CORNERS + corner) * k.v)


def _multiply(k: Kernel, a: Reader, tile: DeformableTile, columns: ir.Value, image: Int, first: Int) -> None:
    """All output channels of the chunk's positions: its columns times the weights."""
    product = tile.product
    to_tap = a.chunk * k.v
    to_block = a.taps_high * a.taps_wide * to_tap
    # The columns as an input of a direct convolution: a row of positions, its taps in other rows.
    as_input: Any = SimpleNamespace(
        x_block=to_block, x_row=0, x_tap_row=a.taps_wide * to_tap, x_tap_col=to_tap,
        taps_high=a.taps_high, taps_wide=a.taps_wide, channels=a.channels, w_out=a.w_out,
    )  # fmt: skip
    with k.loop(0, a.tiles) as out_tile:
        row = [k.load_int(a.table, out_tile * TABLE_COLUMNS + column) for column in range(TABLE_COLUMNS)]
        channel, block, w_offset, lane_begin, lane_end = row
        masks: Masks = [None] * product.outs
        if product.masked:
            masks = [k.mask(lane_begin - out * k.v, lane_end - out * k.v) for out in range(product.outs)]
        w, bias = k.advance(a.w, w_offset), k.advance(a.bias, block * k.v)
        y = k.advance(a.y, image * a.y_image + block * a.y_block)
        residual = k.advance(a.residual, image * a.r_image + block * a.r_block)
        with k.loop(0, a.chunk, product.cols) as wanted:
            left = k.smaller(wanted, a.chunk - product.cols)
            if tile.own[0]:
                # Output vector ``block`` reads a whole number of groups, from lane ``channel % v`` of one block on.
                x = k.advance(columns, channel // k.v * to_block + left * k.v + channel % k.v)
                sums = _sum_spread(k, a, tile, x, to_tap, w, bias)
            else:
                corner = k.advance(columns, left * k.v)
                sums = sum_tile(k, as_input, product, corner, w, bias, channel, masks, wanted // product.cols % UNROLL)
            store_tile(k, a, product, sums, y, residual, 0, first + left, masks)


def _multiply_in_pairs(k: Kernel, a: Reader, tile: DeformableTile, columns: ir.Value, image: Int, first: Int) -> None:
    """As ``_multiply``, of one group whose channels fill vectors."""
    own = paired.PairedTile(tile.product.cols, tile.product.outs)
    blocks = a.channels // k.v * (a.taps_high * a.taps_wide)
    inputs = paired_inputs.Inputs(a.places, a.channel_scales, blocks)
    weights = paired.Weights(a.w, a.w_out, a.squares, blocks)
    turns = (a.chunk + (own.tiles - 1)) // own.tiles
    room = k.advance(columns, (blocks + _GAP) * (a.chunk * k.v) + k.v)
    tile_floats, tile_numbers = blocks * (own.tiles * k.v), k.v * paired.vectors_of(own, k.v)
    sums = k.advance(room, turns * tile_floats)
    factors = k.advance(sums, turns * tile_numbers)
    a_channel = k.div(ir.Constant(k.scalar_type, 1.0), _real(k, blocks * k.v))
    likely = k.variable(k.splat_int(paired_inputs.ONE))
    with k.loop(0, turns) as turn:
        left = k.smaller(turn * own.tiles, a.chunk - own.tiles)
        together = min(paired_inputs.TOGETHER, own.tiles)
        with k.loop(0, own.tiles, together) as wanted:
            pixel = k.smaller(wanted, own.tiles - together)
            places = [(left + pixel + number) * k.v for number in range(together)]
            to = k.advance(room, turn * tile_floats + pixel * k.v)
            numbers = (k.advance(base, turn * tile_numbers + pixel) for base in (sums, factors))
            paired_inputs.prepare(k, inputs, columns, places, a_channel, likely, to, own.tiles, *numbers)
    with k.loop(0, a.tiles, own.outs) as wanted, k.loop(0, turns) as turn:
        out = k.smaller(wanted, a.tiles - own.outs)
        left = k.smaller(turn * own.tiles, a.chunk - own.tiles)
        total = paired.multiply(
            k, weights, own, k.advance(room, turn * tile_floats), k.advance(sums, turn * tile_numbers), out, turn % 4
        )
        y = k.advance(a.y, image * a.y_image + out * a.y_block)
        residual = k.advance(a.residual, image * a.r_image + out * a.r_block)

        def store(results: list[list[ir.Value]], y: ir.Value = y, r: ir.Value = residual, left: Int = left) -> None:
            store_tile(k, a, tile.product, results, y, r, 0, first + left, [None] * own.outs)

        paired.restore(k, a, k.advance(factors, turn * tile_numbers), out, total, store)


def _sum_spread(
    k: Kernel, a: Reader, tile: DeformableTile, x: ir.Value, to_tap: Int, w: ir.Value, bias: ir.Value
) -> list[list[ir.Value]]:
    """The sums of one vector of output channels; lane l takes its inputs from lanes ``l // own_out * own_in`` on."""
    own_in, own_out = tile.own
    initial = k.load(bias)
    sums = [k.variable(initial) for _ in range(tile.product.cols)]
    with k.loop(0, a.taps_high * a.taps_wide) as tap:
        here, weights = k.advance(x, tap * to_tap), k.advance(w, tap * (own_in * k.v))
        vectors = [k.load(weights, channel * k.v) for channel in range(own_in)]
        for pixel, total in enumerate(sums):
            value = k.load(here, pixel * k.v)
            for channel, vector in enumerate(vectors):
                lanes = [lane // own_out * own_in + channel for lane in range(k.v)]
                spread = value if lanes == list(range(k.v)) else k.shuffle(value, value, lanes)
                total.set(k.fma(spread, vector, total.get()))
    return [[total.get()] for total in sums]
