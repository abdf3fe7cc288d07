"""Bytes in NCHW order to words of the values that a row of taps reads: the input of ``kernels.integer_planes``.

For each word of a row's ``channels x taps`` values (channel by channel, see ``kernels.words``), the result has a plane
with one word an output column, for every padded row: ``[N][D][group][word][phase][row][output column]``. Rows are
sorted by their phase, the row modulo the stride, so that all the rows that one tap reads follow each other, and the
whole plane is one row of pixels. Values past the last one repeat it. As in ``kernels.integer_layout``, signed input has
128 added in the form "bytes", and the zero point is subtracted in the form "halves".
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import I32, Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.spans import fill
from convwright.kernels.words import CHANNELS, I8, advance_bytes, join, load_byte, padding_word, splat_word

ARGUMENTS = Arguments(
    "x zero y scratch",
    # work: item -> (image, padded plane of depth, group, chunk of padded rows); x strides and scratch in bytes
    "depths groups chunks chunk_rows padded_rows deep rows cols channels taps tap_step words phases phase_rows "
    "out_cols padded_cols stride x_image x_group x_channel x_depth y_image y_depth y_group y_word front top left "
    "scratch_channel scratch_thread",
)

STRIDES = 4  # larger ones are read byte by byte


@dataclass(frozen=True)
class RowWords:
    """What is baked into one kernel.

    form: "bytes" or "halves"; signed: the input is int8. stride: along the row, 0 for one that is an argument.
    narrow: rows of the output are shorter than a vector.
    """

    form: str
    signed: bool
    stride: int
    narrow: bool

    @property
    def key(self) -> str:
        return f"integer-rows-{self!r}"

    def name(self, target: Target) -> str:
        return f"{'s8' if self.signed else 'u8'}-rows-{self.stride or 'any'}-{target.name}"


def emit(tile: RowWords, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    zero = load_byte(k, a.zero, tile.signed)
    padding = k.b.bitcast(splat_word(k, padding_word(k, tile.form, tile.signed, zero)), k.vector_type)
    scratch = advance_bytes(k, a.scratch, k.thread * a.scratch_thread)
    _fill_ends(k, a, scratch, k.b.trunc(zero, I8))
    with k.loop(k.begin, k.end) as item:
        plane, chunk = item // a.chunks, item % a.chunks
        group, rest = plane % a.groups, plane // a.groups
        padded_depth, image = rest % a.depths, rest // a.depths
        depth = padded_depth - a.front
        exists = k.b.and_(depth >= 0, depth < a.deep)
        x = advance_bytes(k, a.x, image * a.x_image + group * a.x_group + depth * a.x_depth)
        y = k.advance(a.y, image * a.y_image + padded_depth * a.y_depth + group * a.y_group)
        first = chunk * a.chunk_rows
        with k.loop(first, k.minimum(first + a.chunk_rows, a.padded_rows)) as padded_row:
            row = padded_row - a.top
            to = k.advance(y, ((padded_row % a.phases) * a.phase_rows + padded_row // a.phases) * a.out_cols)
            with k.either(k.b.and_(exists, k.b.and_(row >= 0, row < a.rows))) as (inside, border):
                with inside:
                    _copy_row(k, a, advance_bytes(k, x, row * a.cols), scratch)
                    with k.loop(0, a.words) as word:
                        _convert(k, a, tile, scratch, k.advance(to, word * a.y_word), word, zero)
                with border, k.loop(0, a.words) as word:
                    fill(k, padding, k.advance(to, word * a.y_word), 0, a.out_cols)
    return k.finish()


def _fill_ends(k: Kernel, a: Reader, scratch: ir.Value, zero: ir.Value) -> None:
    """The padding at both ends of the rows in scratch, which stays."""
    with k.loop(0, a.channels) as channel:
        row = advance_bytes(k, scratch, channel * a.scratch_channel)
        for start, stop in ((0, a.left), (a.left + a.cols, a.padded_cols)):
            with k.loop(start, stop) as at:
                k.b.store(zero, advance_bytes(k, row, at), align=1)


def _copy_row(k: Kernel, a: Reader, x: ir.Value, scratch: ir.Value) -> None:
    """A row of every channel of the group, 16 bytes, 4 bytes or a byte at a time."""
    with k.loop(0, a.channels) as channel:
        source = advance_bytes(k, x, channel * a.x_channel)
        target = advance_bytes(k, scratch, channel * a.scratch_channel + a.left)

        def copy(count: int, source: ir.Value = source, target: ir.Value = target) -> None:
            kind = ir.VectorType(I8, count) if count > 1 else I8
            with k.loop(0, a.cols, count) as wanted:
                at = k.smaller(wanted, a.cols - count)
                value = k.b.load(advance_bytes(k, source, at), typ=kind, align=1)
                k.b.store(value, advance_bytes(k, target, at), align=1)

        with k.either(a.cols < 16) as (short, long):
            with short, k.either(a.cols < 4) as (few, some):
                with few:
                    copy(1)
                with some:
                    copy(4)
            with long:
                copy(16)


def _convert(k: Kernel, a: Reader, tile: RowWords, scratch: ir.Value, y: ir.Value, word: Int, zero: ir.Value) -> None:
    """One word of every output column of a row."""
    size = CHANNELS[tile.form]
    sources = []
    for place in range(size):
        value = k.smaller(word * size + place, a.channels * a.taps - 1)
        sources.append(advance_bytes(k, scratch, value // a.taps * a.scratch_channel + value % a.taps * a.tap_step))

    def convert(left: Int, mask: ir.Value | None) -> None:
        values = [_strided(k, a, tile, source, left) for source in sources]
        k.store(k.b.bitcast(join(k, tile.form, tile.signed, values, zero), k.vector_type), y, left, mask)

    if tile.narrow:
        convert(Int(k, k.int_value(0)), k.mask(0, a.out_cols))
    else:
        with k.loop(0, a.out_cols, k.v) as wanted:
            convert(k.smaller(wanted, a.out_cols - k.v), None)


def _strided(k: Kernel, a: Reader, tile: RowWords, source: ir.Value, left: Int) -> ir.Value:
    """The bytes that a vector of output columns reads, a stride apart."""
    if tile.stride:
        kind = ir.VectorType(I8, k.v * tile.stride)
        row = k.b.load(advance_bytes(k, source, left * tile.stride), typ=kind, align=1)
        return row if tile.stride == 1 else k.shuffle(row, row, range(0, k.v * tile.stride, tile.stride))
    vector = ir.Constant(ir.VectorType(I8, k.v), ir.Undefined)
    for lane in range(k.v):
        at = k.smaller(left + lane, a.out_cols - 1) * a.stride
        byte = k.b.load(advance_bytes(k, source, at), typ=I8, align=1)
        vector = k.b.insert_element(vector, byte, ir.Constant(I32, lane))
    return vector
