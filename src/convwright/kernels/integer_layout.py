"""Bytes in NCHW order to words of several channels, padded: the input of the integer convolution kernels.

The result is ``[N][group][blocks][D][H + padding][W + padding][words]``. A block is what fills a vector with words
(see ``kernels.words``), or, with fewer channels, all of them. Channels that do not exist are zeros; words past the last
one of a block that is not full hold anything. In the form "bytes" the input stays unsigned (signed input has 128 added,
and so has its zero point); in the form "halves" the zero point is subtracted. Padding holds the zero point.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import I32, PTR, Int, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.spans import fill, transpose
from convwright.kernels.words import CHANNELS, I8, advance_bytes, join, load_byte, padding_word, splat_word

ARGUMENTS = Arguments(
    "x zero y",
    # work: item -> (image, padded plane of depth, group, block, chunk of padded rows); x strides in bytes, y in words
    "depths groups blocks chunks chunk_rows deep rows cols x_image x_group x_channel x_depth x_row "
    "y_image y_block y_depth y_row front top bottom left right",
)


@dataclass(frozen=True)
class PackWords:
    """What is baked into one kernel; ``pack_words`` makes it.

    form: "bytes" or "halves"; signed: the input is int8.
    words: of one pixel. whole: some block is full. tail: channels of the last block where it is not full, else 0.
    narrow: rows are shorter than a vector.
    """

    form: str
    signed: bool
    words: int
    whole: bool
    tail: int
    narrow: bool

    @property
    def key(self) -> str:
        return f"integer-pack-{self!r}"

    def name(self, target: Target) -> str:
        return f"{'s8' if self.signed else 'u8'}-words-{self.words}-{target.name}"


def words_of(channels: int, form: str) -> int:
    """Words that hold so many channels."""
    return -(-channels // CHANNELS[form])


def pack_words(form: str, signed: bool, channels: int, cols: int, target: Target) -> PackWords:
    """The kernel for groups of ``channels`` channels and rows of ``cols`` pixels."""
    full = target.vector * CHANNELS[form]
    words = min(words_of(channels, form), target.vector)
    return PackWords(form, signed, words, channels >= full, channels % full, cols < target.vector)


def emit(tile: PackWords, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    full = k.v * CHANNELS[tile.form]
    zero = load_byte(k, a.zero, tile.signed)
    with k.loop(k.begin, k.end) as item:
        image, depth, group, block, chunk = item.unravel(a.depths, a.groups, a.blocks, a.chunks)
        plane_in = depth - a.front
        there = image * a.x_image + group * a.x_group + block * full * a.x_channel + plane_in * a.x_depth
        x = advance_bytes(k, a.x, there)
        exists = k.b.and_(plane_in >= 0, plane_in < a.deep)
        y = k.advance(a.y, image * a.y_image + (group * a.blocks + block) * a.y_block + depth * a.y_depth)
        first = chunk * a.chunk_rows
        last = k.minimum(first + a.chunk_rows, a.top + a.rows + a.bottom)
        if tile.whole and tile.tail:
            with k.either((block + 1).equals(a.blocks)) as (partial, whole):
                with partial:
                    _convert_rows(k, a, tile, x, y, first, last, tile.tail, zero, exists)
                with whole:
                    _convert_rows(k, a, tile, x, y, first, last, full, zero, exists)
        else:
            _convert_rows(k, a, tile, x, y, first, last, tile.tail or full, zero, exists)
    return k.finish()


def _convert_rows(
    k: Kernel, a: Reader, tile: PackWords, x: ir.Value, y: ir.Value, first: Int, last: Integer, channels: int,
    zero: ir.Value, exists: ir.Value,
) -> None:  # fmt: skip
    """Padded rows ``first <= row < last`` of a plane; one that does not exist is padding."""
    padding = k.b.bitcast(splat_word(k, padding_word(k, tile.form, tile.signed, zero)), k.vector_type)
    with k.loop(first, last) as padded_row:
        row = padded_row - a.top
        to = k.advance(y, padded_row * a.y_row)
        width = (a.left + a.cols + a.right) * tile.words
        with k.either(k.b.and_(exists, k.b.and_(row >= 0, row < a.rows))) as (inside, border):
            with inside:
                fill(k, padding, to, 0, a.left * tile.words)
                source = advance_bytes(k, x, row * a.x_row)
                pixels = k.advance(to, a.left * tile.words)
                if tile.narrow:
                    _convert(k, a, tile, source, pixels, 0, channels, zero, a.cols)
                else:
                    with k.loop(0, a.cols, k.v) as col:
                        _convert(k, a, tile, source, pixels, k.minimum(col, a.cols - k.v), channels, zero, None)
                fill(k, padding, to, (a.left + a.cols) * tile.words, width)
            with border:
                fill(k, padding, to, 0, width)


def _convert(
    k: Kernel, a: Reader, tile: PackWords, x: ir.Value, y: ir.Value, left: Integer, channels: int, zero: ir.Value,
    cols: Int | None,
) -> None:  # fmt: skip
    """``cols`` pixels (None: a vector of them) from ``left`` on, all the words of a block."""
    size = CHANNELS[tile.form]
    words = []
    for start in range(0, channels, size):
        rows = range(start, min(start + size, channels))
        bytes_ = [_load_bytes(k, advance_bytes(k, x, a.x_channel * row + left), cols) for row in rows]
        words.append(join(k, tile.form, tile.signed, bytes_, zero))
    if tile.words == 1:
        mask = None if cols is None else k.mask(0, cols)
        k.store(k.b.bitcast(words[0], k.vector_type), y, left, mask)
        return
    nothing = ir.Constant(k.int_vector_type, [0] * k.v)
    kept = None if tile.words == k.v else k.mask(0, tile.words)
    for pixel, vector in enumerate(transpose(k, words + [nothing] * (k.v - len(words)))):
        place = left * tile.words + pixel * tile.words
        vector = k.b.bitcast(vector, k.vector_type)
        if cols is None or pixel == 0:
            k.store(vector, y, place, kept)
        else:
            with k.when(k.b.not_(cols < pixel + 1)):
                k.store(vector, y, place, kept)


def _load_bytes(k: Kernel, x: ir.Value, cols: Int | None) -> ir.Value:
    """A vector of bytes; past ``cols`` no memory is touched."""
    kind = ir.VectorType(I8, k.v)
    if cols is None:
        return k.b.load(x, typ=kind, align=1)
    if k.target.has_masks:
        call = k.intrinsic(f"llvm.masked.load.v{k.v}i8.p0", kind, [PTR, I32, k.mask_type, kind])
        return k.b.call(call, [x, ir.Constant(I32, 1), k.mask(0, cols), ir.Constant(kind, [0] * k.v)])
    vector = ir.Constant(kind, ir.Undefined)
    for pixel in range(k.v):
        byte = k.b.load(advance_bytes(k, x, k.minimum(pixel, cols - 1)), typ=I8, align=1)
        vector = k.b.insert_element(vector, byte, ir.Constant(I32, pixel))
    return vector
