"""float32 weights as integers of 24 bits, the number of bits of a float32's significand, with a power of two for each
output (a row) as their unit.

All weights of a row are below a power of two, 2^e, and are rounded to multiples of 2^(e - 23): the largest ones lose a
bit of their significand, those of half the size two, and so on. For weights of a normal distribution the error is at
most 2.7e-7 of their root mean square.

Four channels of a vector of rows are three vectors of words, each the integer of a channel in its upper 24 bits and in
the lower 8 a third of the fourth channel's, the most significant first.
"""

from __future__ import annotations

from llvmlite import ir

from convwright.codegen.lang import Int, Kernel, Variable
from convwright.codegen.vmath import round_even
from convwright.kernels.arguments import Reader
from convwright.kernels.spans import along

BLOCK = 4  # channels that are coded together
WORDS = 3  # vectors of words that hold them
BITS = 24
LOWEST = -95
"""The least that e may be, so that 2^(e - 31), the unit of a whole word, and its inverse are normal numbers."""

_BYTE = 0xFF
_WHOLE = -1 ^ _BYTE
_LARGEST = 2.0**23 - 1


def decode(k: Kernel, words: list[ir.Value], base: ir.Value, count: int = BLOCK) -> list[ir.Value]:
    """The first ``count`` channels of a block as vectors of float32, from its words and the rows' units."""
    b, whole = k.b, [k.b.and_(word, k.splat_int(_WHOLE)) for word in words[:count]]
    if count == BLOCK:
        last = b.shl(words[0], k.splat_int(8))
        for word in words[1:]:
            last = b.shl(b.or_(last, b.and_(word, k.splat_int(_BYTE))), k.splat_int(8))
        whole.append(last)
    unit = b.bitcast(base, k.vector_type)
    return [k.mul(b.sitofp(integer, k.vector_type), unit) for integer in whole]


def encode(k: Kernel, weights: list[ir.Value], base: ir.Value) -> list[ir.Value]:
    """The words of a block's channels. Of two multiples as near it is the even one: weights are often drawn from a grid
    whose every other point lies between multiples, and errors of one sign would add up."""
    b, whole = k.b, []
    inverse = b.fdiv(k.splat(1 / 256), b.bitcast(base, k.vector_type))
    for weight in weights:
        multiple = k.min(k.mul(b.bitcast(weight, k.vector_type), inverse), k.splat(_LARGEST))
        multiple = k.max(multiple, k.splat(-_LARGEST))  # 2^e itself would have another unit when it is packed again
        whole.append(b.shl(b.fptosi(round_even(k, multiple), k.int_vector_type), k.splat_int(8)))
    last = whole.pop()
    thirds = (b.and_(b.lshr(last, k.splat_int(bits)), k.splat_int(_BYTE)) for bits in (24, 16, 8))
    return [b.or_(word, third) for word, third in zip(whole, thirds, strict=True)]


def survey(k: Kernel, a: Reader, item: Int, rows: list[ir.Value]) -> None:
    """The largest absolute value (as the base) and the sum of squares of each of a vector of rows."""
    for lane, row in enumerate(rows):
        largest, squares = k.variable(k.splat(0.0)), k.variable(k.splat(0.0))

        def look(
            first: Int,
            mask: ir.Value | None,
            row: ir.Value = row,
            largest: Variable = largest,
            squares: Variable = squares,
        ) -> None:
            weights = k.load(row, first, mask)
            squares.set(k.fma(weights, weights, squares.get()))
            largest.set(k.max(k.max(weights, k.b.fneg(weights)), largest.get()))

        along(k, 0, a.channels, look)
        k.store_scalar(k.reduced(largest.get(), k.max), a.bases, item * k.v + lane)
        k.store_scalar(k.reduced(squares.get(), k.add), a.squares, item * k.v + lane)
