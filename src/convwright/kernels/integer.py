"""Direct convolution of 8-bit integers with exact 32-bit sums; lanes are output channels.

As in ``kernels.direct``, a register tile of ``rows x cols`` output pixels by ``outs`` vectors of output channels is
summed over all input words and taps (``kernels.words``, ``kernels.integer_layout``), one broadcast input word and
``outs`` vectors of weight words at a time. A work item is a rectangle of output pixels by ``outs`` vectors: its sums go
to scratch memory of the thread, pixel by pixel, and from there, transposed, to the output, which is NCHW.

Rectangles at the right and bottom edge, tiles at the edges of a rectangle, and the last vectors of a group, are moved
back inside: some outputs are computed twice, by two threads perhaps, to the same value.

Weights are packed ``[output vector][depth tap][block][kh][kw][word][v]``. Where all of a block's words follow each
other from tap to tap (no dilation along the row), a row of taps is one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llvmlite import ir

from convwright.codegen.lang import I32, Int, Integer, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.spans import transpose
from convwright.kernels.words import (
    I8,
    add_word,
    advance_bytes,
    load_byte,
    load_word,
    requantise,
    zero_of_bytes,
)  # fmt: skip

ARGUMENTS = Arguments(
    "x w start w_sums scales limits zero y table scratch",
    # work: item -> (part of the output tiles, rectangle, output tile inside the part)
    "tiles_inner tiles rectangles bands spans band_rows span_cols out_rows out_cols out_depths "
    "x_image x_block x_depth x_row x_tap_depth x_tap_row x_tap_col blocks words taps_deep taps_high taps_wide merged "
    "w_out y_image y_channel y_depth y_offset scratch_thread",
)

TABLE_COLUMNS = 5  # first word of the input, first output channel, first vector, first word of the weights, channels


@dataclass(frozen=True)
class IntegerTile:
    """What is baked into one kernel.

    rows, cols: output pixels of the register tile; outs: vectors of output channels.
    words: of an input pixel; step: words from one output pixel's input to the next one's in a row.
    unroll: words in one turn of the inner loop.
    form: of the words, "bytes" or "halves"; signed: the input is int8 (its zero point is read here).
    requantised: the output has 8 bits; else it is the 32-bit sums.
    """

    rows: int
    cols: int
    outs: int
    words: int
    step: int
    unroll: int
    form: str
    signed: bool
    requantised: bool

    @property
    def key(self) -> str:
        return f"integer-{self!r}"

    def name(self, target: Target) -> str:
        kind = "s8" if self.signed else "u8"
        instruction = "vnni" if target.has_vnni else "words"
        return f"{kind}-{instruction}-{self.rows * self.cols}x{self.outs}-{target.name}"


def choose_unroll(run: int) -> int:
    """For runs of so many words: no turn is left over where that can be."""
    if run <= 8:
        return run
    return next((count for count in (4, 7, 6, 5) if run % count == 0), 4)


def emit(tile: IntegerTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)

    def sum_rectangle(x: ir.Value, w: ir.Value, vector: Int, scratch: ir.Value) -> None:
        _sum_rectangle(k, a, tile, x, w, vector, scratch)

    emit_items(k, a, tile, sum_rectangle)
    return k.finish()


class Tile(Protocol):
    """What the parts that ``kernels.integer_amx`` shares ask of a tile (see ``IntegerTile``)."""

    @property
    def outs(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def form(self) -> str: ...
    @property
    def signed(self) -> bool: ...
    @property
    def requantised(self) -> bool: ...


def emit_items(
    k: Kernel, a: Reader, tile: Tile, sum_rectangle: Callable[[ir.Value, ir.Value, Int, ir.Value], None]
) -> None:
    """All the work items.

    ``sum_rectangle(x, w, vector, scratch)`` leaves the results of one, ``[row][col][outs][v]`` in 32 bits, in scratch.
    """
    scratch = k.advance(a.scratch, k.thread * a.scratch_thread)
    with k.loop(k.begin, k.end) as item:
        part = item // (a.tiles_inner * a.rectangles)
        rest = item % (a.tiles_inner * a.rectangles)
        out_tile = part * a.tiles_inner + rest % a.tiles_inner
        rectangle = rest // a.tiles_inner
        with k.when(out_tile < a.tiles):
            row = [k.load_int(a.table, out_tile * TABLE_COLUMNS + column) for column in range(TABLE_COLUMNS)]
            x_offset, channel, vector, w_offset, channels = row
            span, rest = rectangle % a.spans, rectangle // a.spans
            band, rest = rest % a.bands, rest // a.bands
            depth, image = rest % a.out_depths, rest // a.out_depths
            top = k.smaller(band * a.band_rows, a.out_rows - a.band_rows)
            left = k.smaller(span * a.span_cols, a.out_cols - a.span_cols)
            at = image * a.x_image + x_offset + depth * a.x_depth + top * a.x_row + left * tile.step
            sum_rectangle(k.advance(a.x, at), k.advance(a.w, w_offset), vector, scratch)
            size = 1 if tile.requantised else 4
            to = image * a.y_image + channel * a.y_channel + depth * a.y_depth + top * a.out_cols + left
            _move_out(k, a, tile, scratch, advance_bytes(k, a.y, to * size), channels)


def initial_sums(k: Kernel, a: Reader, tile: Tile, vector: Int) -> list[ir.Value]:
    """Bias and correction for the input's zero point, a vector of output channels each."""
    initial = [k.load_ints(a.start, (vector + out) * k.v) for out in range(tile.outs)]
    if tile.form == "halves":
        return initial
    zero = zero_of_bytes(k, tile.signed, load_byte(k, a.zero, tile.signed))
    of_weights = [k.load_ints(a.w_sums, (vector + out) * k.v) for out in range(tile.outs)]
    return [k.b.sub(first, k.b.mul(zero, total)) for first, total in zip(initial, of_weights, strict=True)]


def scaling(k: Kernel, a: Reader, tile: Tile, vector: Int) -> Callable[[ir.Value, int], ir.Value]:
    """A function of sums and the number of their vector: the sums themselves, or requantised."""
    if not tile.requantised:
        return lambda total, out: total
    low, high = (k.broadcast(k.load_scalar(a.limits, side)) for side in (0, 1))
    offset = k.int_broadcast(a.y_offset)
    scales = [k.load(a.scales, (vector + out) * k.v) for out in range(tile.outs)]
    return lambda total, out: requantise(k, total, scales[out], low, high, offset)


def _sum_rectangle(
    k: Kernel, a: Reader, tile: IntegerTile, x: ir.Value, w: ir.Value, vector: Int, scratch: ir.Value
) -> None:
    """All the tiles of a rectangle, into scratch ``[row][col][outs][v]``."""
    with k.loop(0, a.band_rows, tile.rows) as row, k.loop(0, a.span_cols, tile.cols) as col:
        top, left = k.minimum(row, a.band_rows - tile.rows), k.minimum(col, a.span_cols - tile.cols)
        sums = _sum_tile(k, a, tile, k.advance(x, top * a.x_row + left * tile.step), w, vector)
        _store_tile(k, a, tile, sums, vector, k.advance(scratch, (top * a.span_cols + left) * (tile.outs * k.v)))


def _sum_tile(
    k: Kernel, a: Reader, tile: IntegerTile, corner: ir.Value, w: ir.Value, vector: Int
) -> list[list[ir.Value]]:
    """The sums ``[pixel][out]`` of one register tile, bias and correction for the input's zero point included."""
    initial = initial_sums(k, a, tile, vector)
    sums = [[k.variable(first) for first in initial] for _ in range(tile.rows * tile.cols)]
    weights = k.variable(w)

    def run(x: ir.Value, count: Integer) -> None:
        """Add ``count`` words that follow each other in the input."""
        x_rows = [k.advance(x, a.x_row * row) for row in range(tile.rows)]
        whole = count // tile.unroll * tile.unroll
        with k.loop(0, whole, tile.unroll) as at:
            _add(k, a, tile, sums, weights, [k.advance(x_row, at) for x_row in x_rows], tile.unroll)
        with k.loop(whole, count) as at:
            _add(k, a, tile, sums, weights, [k.advance(x_row, at) for x_row in x_rows], 1)

    with k.loop(0, a.taps_deep) as tap_deep, k.loop(0, a.blocks) as block:
        start = k.advance(corner, tap_deep * a.x_tap_depth + block * a.x_block)
        count = k.smaller(a.words - block * tile.words, tile.words)
        joined = k.b.and_(a.merged.equals(1), count.equals(tile.words))
        columns = k.choose(joined, 1, a.taps_wide)
        length = k.choose(joined, a.taps_wide * tile.words, count)
        with k.loop(0, a.taps_high) as tap_row, k.loop(0, columns) as tap_col:
            run(k.advance(start, tap_row * a.x_tap_row + tap_col * a.x_tap_col), length)
    return [[accumulator.get() for accumulator in accumulators] for accumulators in sums]


def _add(
    k: Kernel, a: Reader, tile: IntegerTile, sums: list[list[Variable]], weights: Variable, starts: list[ir.Value],
    unroll: int,
) -> None:  # fmt: skip
    """Add ``unroll`` words of each pixel; the weights move on."""
    now = weights.get()
    shared = unroll > tile.step  # by neighbouring pixels, whose windows overlap
    for ahead in range(unroll):
        words = [k.advance(start, ahead) for start in starts]
        if shared:
            words = [k.opaque(word) for word in words]
        vectors = [k.load_ints(k.advance(now, a.w_out * out), ahead * k.v) for out in range(tile.outs)]
        for pixel, accumulators in enumerate(sums):
            x = load_word(k, words[pixel // tile.cols], (pixel % tile.cols) * tile.step)
            for vector, accumulator in zip(vectors, accumulators, strict=True):
                accumulator.set(add_word(k, tile.form, accumulator.get(), x, vector))
    weights.set(k.advance(now, unroll * k.v))


def _store_tile(
    k: Kernel, a: Reader, tile: IntegerTile, sums: list[list[ir.Value]], vector: Int, scratch: ir.Value
) -> None:
    finish = scaling(k, a, tile, vector)
    for pixel, vectors in enumerate(sums):
        at = (pixel // tile.cols) * a.span_cols + pixel % tile.cols
        for out, total in enumerate(vectors):
            result = k.b.bitcast(finish(total, out), k.vector_type)
            k.store(result, scratch, at * (tile.outs * k.v) + out * k.v)


def _move_out(k: Kernel, a: Reader, tile: Tile, scratch: ir.Value, y: ir.Value, channels: Int) -> None:
    """From scratch to the output; rows that follow each other there without a gap are one row."""
    whole = a.spans.equals(1)
    rows, cols = k.choose(whole, 1, a.band_rows), k.choose(whole, a.band_rows * a.span_cols, a.span_cols)
    size = 1 if tile.requantised else 4
    with k.loop(0, tile.outs) as out, k.loop(0, rows) as row:
        lanes = k.smaller(channels - out * k.v, k.v)
        source = k.advance(scratch, (row * a.span_cols * tile.outs + out) * k.v)
        target = advance_bytes(k, y, (out * k.v * a.y_channel + row * a.out_cols) * size)
        move = _move_bytes if tile.requantised else _move_sums
        move(k, a, tile, source, target, cols, lanes)


def _move_sums(k: Kernel, a: Reader, tile: Tile, source: ir.Value, target: ir.Value, cols: Int, lanes: Int) -> None:
    """A row of 32-bit sums, a vector of pixels at a time."""
    pitch = tile.outs * k.v
    with k.either(cols < k.v) as (narrow, wide):
        with narrow, k.loop(0, cols) as col, k.loop(0, lanes) as at:
            value = k.b.load(k.advance(source, col * pitch + at), typ=I32, align=4)
            k.b.store(value, k.advance(target, at * a.y_channel + col), align=4)
        with wide, k.loop(0, cols, k.v) as wanted:
            col = k.smaller(wanted, cols - k.v)
            pixels = [k.load_ints(source, (col + pixel) * pitch) for pixel in range(k.v)]
            for lane, vector in enumerate(transpose(k, pixels)):
                with k.when(k.b.not_(lanes < lane + 1)):
                    k.b.store(vector, k.advance(target, a.y_channel * lane + col), align=4)


def _move_bytes(k: Kernel, a: Reader, tile: Tile, source: ir.Value, target: ir.Value, cols: Int, lanes: Int) -> None:
    """A row of bytes: four pixels become a word in each channel's lane, and ``v`` such vectors are transposed."""
    pitch = tile.outs * k.v

    def four_pixels(col: Int) -> ir.Value:
        pixels = [k.load_ints(source, (col + pixel) * pitch) for pixel in range(4)]
        word = k.b.shl(pixels[3], k.splat_int(24))
        for place, pixel in enumerate(pixels[:3]):
            word = k.b.or_(word, k.b.shl(k.b.and_(pixel, k.splat_int(255)), k.splat_int(8 * place)))
        return word

    with k.either(cols < 4 * k.v) as (narrow, wide):
        with narrow, k.either(cols < 4) as (few, some):
            with few, k.loop(0, cols) as col, k.loop(0, lanes) as at:
                value = k.b.load(k.advance(source, col * pitch + at), typ=I32, align=4)
                k.b.store(k.b.trunc(value, I8), advance_bytes(k, target, at * a.y_channel + col), align=1)
            with some, k.loop(0, cols, 4) as wanted:
                col = k.smaller(wanted, cols - 4)
                word = four_pixels(col)
                for lane in range(k.v):
                    with k.when(k.b.not_(lanes < lane + 1)):
                        where = advance_bytes(k, target, a.y_channel * lane + col)
                        k.b.store(k.extract(word, lane), where, align=1)
        with wide, k.loop(0, cols, 4 * k.v) as wanted:
            col = k.smaller(wanted, cols - 4 * k.v)
            words = [four_pixels(col + 4 * place) for place in range(k.v)]
            for lane, vector in enumerate(transpose(k, words)):
                with k.when(k.b.not_(lanes < lane + 1)):
                    k.b.store(vector, advance_bytes(k, target, a.y_channel * lane + col), align=1)
