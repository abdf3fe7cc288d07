"""What products in pairs (`kernels.paired`) need of a pixel's inputs: a copy at one size, which power of two brought it
there, and the sum of its a1 a2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import I32, Int, Integer, Kernel, Variable

IN_PAIRS = (1, 2, 3, 5, 7)
"""Pairs of channels, of eight or fewer that are summed in turn, that become one product."""

TOGETHER = 4  # pixels that are copied together: enough that they do not wait for each other
ONE = 127  # the exponent of 1, as float32 hold it
_LIKELY_INSIDE = 4 / 3  # so that a mean square of 1/2, as behind a normalisation and a ReLU, is at no scale's end
_FOUR = ir.Constant(ir.VectorType(I32, 4), [0, 1, 2, 3])
_Combine = Callable[[ir.Value, ir.Value], ir.Value]


@dataclass(frozen=True)
class Inputs:
    """Where a pixel's inputs lie.

    - `places`: a table of floats from a pixel's first input to each of its `blocks`, then to half a block if `half`.
    - `channel_scales`: what the lanes of each block are multiplied by.
    """

    places: ir.Value
    channel_scales: ir.Value
    blocks: Int
    half: bool = False


def prepare(
    k: Kernel, a: Inputs, x: ir.Value, pixels: Sequence[Integer], a_channel: ir.Value, likely: Variable,
    to: ir.Value, apart: int, sums: ir.Value, factors: ir.Value,
) -> None:  # fmt: skip
    """Copy the channels of up to four pixels, scaled, and sum their a1 a2.

    - ``pixels``: floats from ``x`` to each pixel's first input. ``a_channel``: one divided by the number of channels.
    - ``likely``: the exponent, in all lanes, of the power of two that pixels before these were multiplied by. So are
      these; what another one belongs to is copied once more, with the same result.
    - ``to``: where the copies go, ``[block][pixel][v]``, blocks ``apart`` pixels from each other.
    - ``sums``, ``factors``: of each pixel the sum of its a1 a2, and what its outputs are multiplied by.
    """

    def scaled(block: Integer, mask: ir.Value | None, by: ir.Value | None = None) -> list[ir.Value]:
        """A block of each pixel, multiplied by its channels' scales, and those by ``by``."""
        scales, here = k.load(a.channel_scales, block * k.v, mask), k.advance(x, k.load_int(a.places, block))
        scales = scales if by is None else k.mul(scales, by)
        return [k.mul(k.load(here, place, mask), scales) for place in pixels]

    def sized(block: Integer, mask: ir.Value | None) -> list[ir.Value]:
        """A block of each pixel, multiplied by the pixel's own power of two too."""
        return [k.mul(vector, own) for vector, own in zip(scaled(block, mask), scales_of(exponents.get()), strict=True)]

    def store(vectors: Sequence[ir.Value], block: Integer) -> None:
        for pixel, vector in enumerate(vectors):
            k.store(vector, to, block * (apart * k.v) + pixel * k.v)

    def products(so_far: ir.Value, vector: ir.Value) -> ir.Value:
        return add_own_products(k, so_far, vector)

    def squares_of(so_far: ir.Value, vector: ir.Value) -> ir.Value:
        return k.fma(vector, vector, so_far)

    def largest_of(so_far: ir.Value, vector: ir.Value) -> ir.Value:
        return k.max(so_far, k.unary("fabs", vector))

    def look(
        vectors: Callable[[Integer, ir.Value | None], Sequence[ir.Value]], *looks: tuple[_Combine, _Combine]
    ) -> list[ir.Value]:
        """Of the pixels, a lane each: what the first of a pair of functions makes of so much and a further vector, and
        of its lanes the second."""
        results = [[k.variable(k.splat(0.0)) for _ in pixels] for _ in looks]

        def at(block: Integer, mask: ir.Value | None) -> None:
            for pixel, vector in enumerate(vectors(block, mask)):
                for (combine, _), own in zip(looks, results, strict=True):
                    own[pixel].set(combine(own[pixel].get(), vector))

        _each_block(k, a, at)
        return [of_lanes(k, [one.get() for one in own], over) for (_, over), own in zip(looks, results, strict=True)]

    def copied(block: Integer, mask: ir.Value | None) -> list[ir.Value]:
        vectors = scaled(block, mask, _powers_of_two(k, likely.get()))
        store(vectors, block)
        return vectors

    def scales_of(exponents: ir.Value) -> list[ir.Value]:
        powers = _powers_of_two(k, exponents)
        return [k.shuffle(powers, powers, [pixel] * k.v) for pixel in range(len(pixels))]

    squares, own_products = look(copied, (squares_of, k.add), (products, k.add))
    means = k.mul(squares, k.mul(k.broadcast(a_channel), k.splat(_LIKELY_INSIDE)))
    wanted, usual = _exponents_of_squares(k, means, likely.get())
    exponents, total = k.variable(wanted), k.variable(own_products)
    with k.when(k.any(k.b.icmp_signed("!=", wanted, likely.get()))):
        change = _powers_of_two(k, k.b.add(k.b.sub(wanted, likely.get()), k.splat_int(ONE)))
        total.set(k.mul(k.mul(own_products, change), change))
        with k.when(k.any(k.b.not_(usual))):
            # Squares too large or too small, or all inputs zeros.
            (largest,) = look(scaled, (largest_of, k.max))
            exponents.set(k.select(usual, wanted, _exponents_of_largest(k, largest)))
            (again,) = look(sized, (products, k.add))
            total.set(k.select(usual, total.get(), again))
        _each_block(k, a, lambda block, mask: store(sized(block, mask), block))
        of_pixels = k.select(usual, wanted, likely.get())
        likely.set(k.shuffle(of_pixels, of_pixels, [len(pixels) - 1] * k.v))
    back = _powers_of_two(k, k.b.sub(k.splat_int(254), exponents.get()))
    for vector, base in ((total.get(), sums), (back, factors)):
        if len(pixels) == 4:
            k.b.store(k.b.shuffle_vector(vector, vector, _FOUR), base, align=k.width)
        else:
            for pixel in range(len(pixels)):
                k.store_scalar(k.extract(vector, pixel), base, pixel)


def add_own_products(k: Kernel, so_far: ir.Value, vector: ir.Value) -> ir.Value:
    """``so_far`` and the a1 a2 of a pixel's block of channels, each in the lane of its a1."""
    firsts = ir.Constant(k.mask_type, [lane % 2 == 0 and lane // 2 in IN_PAIRS for lane in range(k.v)])
    seconds = k.shuffle(vector, vector, [lane ^ 1 for lane in range(k.v)])
    return k.select(firsts, k.fma(vector, seconds, so_far), so_far)


def of_lanes(k: Kernel, vectors: Sequence[ir.Value], over: _Combine) -> ir.Value:
    """What ``over`` makes of the lanes of up to four vectors: of the first in lane 0, of the second in lane 1."""
    vectors = [*vectors, *[vectors[-1]] * (4 - len(vectors))]

    def together(first: ir.Value, second: ir.Value, low: Sequence[int], high: Sequence[int]) -> ir.Value:
        """Of each four lanes, those of ``low`` with those of ``high``; 4 to 7: lanes of the second vector."""
        starts = range(0, k.v, 4)
        one, other = (
            k.shuffle(first, second, [start + lane % 4 + lane // 4 * k.v for start in starts for lane in own])
            for own in (low, high)
        )
        return over(one, other)

    twos = [together(vectors[at], vectors[at + 1], (0, 4, 1, 5), (2, 6, 3, 7)) for at in (0, 2)]
    vector = together(twos[0], twos[1], (0, 1, 4, 5), (2, 3, 6, 7))
    apart = k.v // 2
    while apart >= 4:
        vector = over(vector, k.shuffle(vector, vector, [lane ^ apart for lane in range(k.v)]))
        apart //= 2
    return vector


def _each_block(k: Kernel, a: Inputs, work: Callable[[Integer, ir.Value | None], None]) -> None:
    with k.loop(0, a.blocks) as block:
        work(block, None)
    if a.half:
        work(a.blocks, k.mask(0, k.v // 2))


def _exponents_of(k: Kernel, numbers: ir.Value) -> ir.Value:
    """As float32 hold them, of numbers that are not negative."""
    return k.b.lshr(k.b.bitcast(numbers, k.int_vector_type), k.splat_int(23))


def _exponents_of_squares(k: Kernel, means: ir.Value, of_inputs: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The exponents, as float32 hold them, of the powers of two that bring the roots of mean squares between those of
    1/2 and 2, where `of_inputs` is that of the power inputs had been multiplied by; and where they are not far from
    1's, so that squares neither overflow nor come near 0, whichever of such powers they had been multiplied by."""
    wanted = k.b.add(of_inputs, k.b.sub(k.splat_int(63), k.b.lshr(_exponents_of(k, means), k.splat_int(1))))
    usual = k.b.icmp_unsigned("<", k.b.sub(wanted, k.splat_int(ONE - 30)), k.splat_int(61))
    return wanted, usual


def _exponents_of_largest(k: Kernel, largest: ir.Value) -> ir.Value:
    """As of squares, but of the powers of two that bring `largest` between 2 and 4; for infinities and NaN, the
    nearest that has an inverse; for zeros one whose inverse is 0: nothing is left of how their sums are rounded."""
    wanted = k.b.sub(k.splat_int(255), _exponents_of(k, largest))
    wanted = k.select(k.b.icmp_signed(">", wanted, k.splat_int(253)), k.splat_int(253), wanted)
    wanted = k.larger(wanted, k.splat_int(1))
    return k.select(k.b.fcmp_ordered("==", largest, k.splat(0.0)), k.splat_int(254), wanted)


def _powers_of_two(k: Kernel, exponents: ir.Value) -> ir.Value:
    return k.b.bitcast(k.b.shl(exponents, k.splat_int(23)), k.vector_type)
