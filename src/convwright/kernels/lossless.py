"""float32 weights in 28 bits, without loss: what the sign, 4 bits of exponent and 23 of mantissa are enough for.

The weights of one output (a row) are rarely more than 2^15 apart. A row has one base, 15 below its largest exponent,
and a weight the code of its exponent: 1 to 15 above the base, or 0 for zeros and denormals, whose exponent is 0.
Smaller weights, some in ten thousand of a normal distribution, are stored as zero here and beside the rest, in a list
of their own ("rare").

Eight channels of a vector of rows are seven vectors of words. Seven of the channels have a word each, sign, code and
mantissa where float32 has them, with four bits between sign and code that hold a seventh of the eighth channel:

    bit 31   30..27                 26..23   22..0
    sign     of the eighth channel  code     mantissa

Adding the base to the code, where that is not zero, gives the number back. Two to three instructions a vector.
"""

from __future__ import annotations

from llvmlite import ir

from convwright.codegen.lang import I32, I64, Int, Integer, Kernel, Variable
from convwright.kernels.arguments import Reader
from convwright.kernels.spans import along, transpose

BLOCK = 8  # channels that are coded together
WORDS = 7  # vectors of words that hold them
BITS = 28
CODES = 15  # exponents above the base
MANTISSA = 23  # bits
EXPONENT = 0x7F800000
UNUSABLE = 1 << 40  # what a count of rare weights is where a weight is infinite or NaN

_SIGNED = 1 << 32
_KEPT = 0x87FFFFFF - _SIGNED
_CODE = 0x07800000


def decode(k: Kernel, words: list[ir.Value], base: ir.Value, count: int = BLOCK) -> list[ir.Value]:
    """The first ``count`` channels of a block as vectors of float32, from its words and the rows' bases."""
    b, narrow = k.b, words[:count]
    if count == BLOCK:
        fours = [_joined(k, words[at], words[at + 1], 4) for at in (0, 2, 4)]
        eights = [_joined(k, fours[0], fours[1], 8), _joined(k, fours[2], words[6], 8)]
        last = b.shl(_joined(k, eights[0], eights[1], 16), k.splat_int(1))
        narrow = [*narrow, b.ashr(last, k.splat_int(4))]
    vectors = []
    for word in narrow:
        kept = b.and_(word, k.splat_int(_KEPT))
        coded = b.icmp_signed("!=", b.and_(word, k.splat_int(_CODE)), k.splat_int(0))
        vectors.append(b.bitcast(b.select(coded, b.add(kept, base), kept), k.vector_type))
    return vectors


def _joined(k: Kernel, upper: ir.Value, lower: ir.Value, bits: int) -> ir.Value:
    """From bit 30 down: ``bits`` of ``upper`` from bit 30 on, then what ``lower`` has there."""
    mask = ((1 << bits) - 1) << (31 - bits)
    down = k.b.lshr(lower, k.splat_int(bits))
    return k.b.or_(k.b.and_(upper, k.splat_int(mask)), k.b.and_(down, k.splat_int(~mask)))


def encode(k: Kernel, weights: list[ir.Value], base: ir.Value) -> list[ir.Value]:
    """The words of a block's channels."""
    b, zero, narrow = k.b, k.splat_int(0), []
    for weight in weights:
        normal = b.icmp_signed("!=", b.and_(weight, k.splat_int(EXPONENT)), zero)
        coded = b.select(normal, b.sub(weight, base), weight)
        narrow.append(b.select(_rare(k, weight, base), zero, coded))
    last = narrow.pop()
    sign = b.lshr(b.and_(last, k.splat_int(1 << 31)), k.splat_int(1))
    rest = b.or_(sign, b.and_(b.shl(last, k.splat_int(3)), k.splat_int((1 << 30) - 1)))
    pieces = (b.and_(b.shl(rest, k.splat_int(4 * at)), k.splat_int(0xF << 27)) for at in range(WORDS))
    return [b.or_(word, piece) for word, piece in zip(narrow, pieces, strict=True)]


def _rare(k: Kernel, weights: ir.Value, base: ir.Value) -> ir.Value:
    """The lanes in which an exponent is neither zero nor above the base."""
    exponent = k.b.and_(weights, k.splat_int(EXPONENT))
    normal = k.b.icmp_signed("!=", exponent, k.splat_int(0))
    return k.b.and_(normal, k.b.icmp_signed("<=", exponent, base))


def survey(k: Kernel, a: Reader, item: Int, rows: list[ir.Value]) -> None:
    """The bases of a vector of rows, and the rare weights in it."""
    largest = _largest_exponents(k, a, rows)
    unusable = k.b.icmp_signed("==", largest, k.splat_int(EXPONENT))
    base = k.b.sub(largest, k.splat_int(CODES << MANTISSA))
    base = k.larger(base, k.splat_int(0))
    k.store(k.b.bitcast(base, k.vector_type), a.bases, item * k.v)
    count = k.variable(k.choose(k.any(unusable), UNUSABLE, 0))
    for lane, row in enumerate(rows):
        own = k.int_broadcast(_bits(k, a.bases, item * k.v + lane))

        def look(first: Int, mask: ir.Value | None, row: ir.Value = row, own: ir.Value = own, lane: int = lane) -> None:
            rare = _rare(k, k.b.bitcast(k.load(row, first, mask), k.int_vector_type), own)
            with k.when(k.any(rare)):
                _list_rare(k, a, item, row, lane, first, count)

        along(k, 0, a.channels, look)
    k.store_int(count.get(), a.counts, item)


def _largest_exponents(k: Kernel, a: Reader, rows: list[ir.Value]) -> ir.Value:
    """Of each row, in its lane, as float32 has it."""
    largest = [k.variable(k.splat_int(0)) for _ in rows]

    def look(first: Int, mask: ir.Value | None) -> None:
        for row, most in zip(rows, largest, strict=True):
            bits = k.b.bitcast(k.load(row, first, mask), k.int_vector_type)
            most.set(k.larger(k.b.and_(bits, k.splat_int(EXPONENT)), most.get()))

    along(k, 0, a.channels, look)
    columns = transpose(k, [k.b.bitcast(most.get(), k.vector_type) for most in largest])
    result = k.b.bitcast(columns[0], k.int_vector_type)
    for column in columns[1:]:
        result = k.larger(result, k.b.bitcast(column, k.int_vector_type))
    return result


def _list_rare(k: Kernel, a: Reader, item: Int, row: ir.Value, lane: int, first: Int, count: Variable) -> None:
    """Add the rare weights of a vector along a row to the list, one by one: there are few."""
    base = _bits(k, a.bases, item * k.v + lane)
    with k.loop(first, k.minimum(first + k.v, a.channels)) as at:
        bits = _bits(k, row, at)
        exponent = k.b.and_(bits.value, ir.Constant(I64, EXPONENT))
        above_zero = k.b.icmp_signed(">", exponent, ir.Constant(I64, 0))
        with k.when(k.b.and_(above_zero, k.b.icmp_signed("<=", exponent, base.value))):
            number = count.get()
            with k.when(number < a.room):
                k.store_int(bits * _SIGNED + at * k.v + lane, a.rare, item * a.room + number)
            count.set(number + 1)


def _bits(k: Kernel, pointer: ir.Value, offset: Integer) -> Int:
    """The 32 bits there, not negative."""
    return Int(k, k.b.zext(k.b.load(k.advance(pointer, offset), typ=I32, align=4), I64))
