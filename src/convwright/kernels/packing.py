"""Weights put into the order in which kernels read them, transformed and brought to one size on the way.

Lanes are outputs. Of a vector of outputs the weights are transposed, so that what one channel and tap has for each of
them lies together; transformed (G g G^T, `kernels.winograd`) in float64 and rounded once; and multiplied by powers of
two, one for each channel, one for each output and place, which is found from what the transformed weights are. The
matrices G are arguments: of all forms of Winograd's algorithm there is one kernel, which loops over their entries for
several channels at a time. Unrolled for one form it would take a third of the arithmetic, in a step that waits for
memory, and a compilation for each form.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import F64, Int, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.doubles import Doubles
from convwright.kernels.spans import fill, transpose

TOGETHER = 4  # channels that are transformed together
_HALVES = 2 * TOGETHER
_SMALLEST = 2.0**-126  # normal number of float32

ARGUMENTS = Arguments(
    "weights to order factors counted high wide wanted squares backs lost shares scratch",
    "rows channels taps_high taps_wide places_high places_wide group_vectors factors_group limit scratch_thread",
)
"""Of all kernels here, whose work items are vectors of rows, those of one group after another.

- weights ``[rows][channels][taps_high][taps_wide]``; a vector of rows belongs to one group, and only the last of all
  has fewer rows than lanes;
- shares ``[vector of rows][channels]``, float64 ("shares");
- to ``[vector of rows][place][channels][v]``, places ``[places_high][places_wide]``; lanes without a row are zeros;
- high ``[places_high][taps_high]``, wide ``[places_wide][taps_wide]``: G of each axis, float64 ("transform");
- order: of each channel as it is packed, the floats before it in ``[channel][taps][v]``; then, up to a multiple of
  `TOGETHER`, those before the channel behind the last one, int64 ("transform");
- factors ``[group][factors_group]``: what channels are multiplied by as they are packed, powers of two, then zeros up
  to a multiple of `TOGETHER`, float64;
- wanted ``[place]``: the square sums over channels that outputs are brought near to, float64;
- limit: the largest exponent of a power of two of an output; below zero, weights are transformed and no more;
- backs ``[vector of rows][place][v]``: the inverses of these powers, zeros where all weights are zeros;
- counted ``[channels]``: whether a channel's product with the channel before it, as they are packed, is counted, int64;
  squares ``[vector of rows][place][v]``: minus the sum of those products;
- lost ``[vector of rows][v]``: 1 where weights that are not zero became smaller than normal numbers ("scale");
- scratch: see `scratch_floats`.
"""


@dataclass(frozen=True)
class Packing:
    """What a kernel does.

    - "shares": find the sum over a vector of rows of each channel's part in a row's sum of squares, times the channels.
      What is not finite counts as zero.
    - "scale": pack as they are weights of a single place and tap, at their size.
    - "transform": pack transformed ones, at their size or not.
    """

    what: str

    @property
    def key(self) -> str:
        return f"packing-{self.what}"


def scratch_floats(channels: int, taps: tuple[int, int], places: tuple[int, int], v: int) -> int:
    """Floats of scratch that one thread needs, whatever the kernel does."""
    columns = (channels + 1) * taps[0] * taps[1] * v
    sums = 2 * v * max(channels, places[0] * places[1])
    return columns + sums + 2 * v * TOGETHER * (taps[0] + places[0]) * taps[1]


def emit(tile: Packing, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    d = Doubles(k)
    size = a.channels * a.taps_high * a.taps_wide
    places = a.places_high * a.places_wide
    columns = k.advance(a.scratch, k.thread * a.scratch_thread)
    sums = k.advance(columns, (size + a.taps_high * a.taps_wide) * k.v)
    with k.loop(k.begin, k.end) as item:
        to = k.advance(a.to, item * places * a.channels * k.v)
        factors = k.b.gep(a.factors, [(item // a.group_vectors * a.factors_group).value], source_etype=F64)
        _transpose(k, a, item, size, to if tile.what == "scale" else columns)
        if tile.what == "shares":
            _shares(k, d, a, item, columns, sums)
        elif tile.what == "scale":
            _sum_up(k, d, a, to, factors, sums)
            _scale(k, d, a, tile, item, Int(k, k.int_value(0)), item, to, factors, sums)
        else:
            fill(k, k.splat(0.0), columns, size * k.v, (size + a.taps_high * a.taps_wide) * k.v)
            _transform(k, d, a, columns, to, factors, sums)
            with k.when(a.limit >= 0), k.loop(0, places) as place:
                _scale(k, d, a, tile, item, place, k.opaque_int(item * places + place), to, factors, sums)
    return k.finish()


def _transpose(k: Kernel, a: Reader, item: Int, size: Int, to: ir.Value) -> None:
    """A vector of rows as ``[channel and tap][v]``."""
    first = item * k.v
    rows = [k.advance(a.weights, k.minimum(first + lane, a.rows - 1) * size) for lane in range(k.v)]
    own = k.mask(0, a.rows - first)
    whole = size - size % k.v
    with k.loop(0, whole, k.v) as at:
        for number, column in enumerate(transpose(k, [k.load(row, at) for row in rows])):
            k.store(k.select(own, column, k.splat(0.0)), to, (at + number) * k.v)
    with k.when(whole < size):
        some = k.mask(0, size - whole)
        for number, column in enumerate(transpose(k, [k.load(row, whole, some) for row in rows])):
            with k.when(whole + number < size):
                k.store(k.select(own, column, k.splat(0.0)), to, (whole + number) * k.v)


def _shares(k: Kernel, d: Doubles, a: Reader, item: Int, columns: ir.Value, sums: ir.Value) -> None:
    taps = a.taps_high * a.taps_wide
    totals = [k.variable(d.splat(0.0)) for _ in d.lanes]
    at = k.variable(0)
    with k.loop(0, a.channels) as channel:
        own = [k.variable(d.splat(0.0)) for _ in d.lanes]
        with k.loop(0, taps):
            for one, lane in zip(own, d.lanes, strict=True):
                one.set(k.add(one.get(), _finite_square(k, d, d.of_floats(columns, at.get() + lane))))
            at.set(at.get() + k.v)
        for number, (one, total) in enumerate(zip(own, totals, strict=True)):
            d.store(one.get(), sums, (channel * 2 + number) * k.v)
            total.set(k.add(total.get(), one.get()))
    count = d.broadcast(k.b.sitofp(a.channels.value, d.kind.element))
    shares = [
        k.select(k.b.fcmp_ordered(">", total.get(), d.splat(0.0)), k.div(count, total.get()), d.splat(0.0))
        for total in totals
    ]
    with k.loop(0, a.channels) as channel:
        low, high = (k.mul(share, d.load(sums, (channel * 2 + n) * k.v)) for n, share in enumerate(shares))
        to = k.b.gep(a.shares, [(item * a.channels + channel).value], source_etype=F64)
        k.b.store(d.sum(k.add(low, high)), to, align=8)


def _finite_square(k: Kernel, d: Doubles, x: ir.Value) -> ir.Value:
    square = k.mul(x, x)
    return k.select(k.b.fcmp_ordered("<", square, d.splat(float("inf"))), square, d.splat(0.0))


def _sum_up(k: Kernel, d: Doubles, a: Reader, to: ir.Value, factors: ir.Value, sums: ir.Value) -> None:
    """The sums of the squares of what weights become by the channels' factors."""
    totals = [k.variable(d.splat(0.0)) for _ in d.lanes]
    with k.loop(0, a.channels) as channel:
        factor = d.repeated(factors, channel)
        for total, lane in zip(totals, d.lanes, strict=True):
            scaled = k.mul(d.of_floats(to, channel * k.v + lane), factor)
            total.set(k.add(total.get(), _finite_square(k, d, scaled)))
    for number, total in enumerate(totals):
        d.store(total.get(), sums, number * k.v)


def _transform(
    k: Kernel, d: Doubles, a: Reader, columns: ir.Value, to: ir.Value, factors: ir.Value, sums: ir.Value
) -> None:
    """G g G^T of all channels, and at each place the sums of their squares as `_sum_up`'s."""
    places = a.places_high * a.places_wide
    taken = k.advance(sums, places * (2 * k.v))
    between = k.advance(taken, a.taps_high * a.taps_wide * (_HALVES * k.v))
    fill(k, k.splat(0.0), sums, 0, places * (2 * k.v))
    with k.loop(0, a.channels, TOGETHER) as first:
        sources = [k.advance(columns, k.load_int(a.order, first + ahead)) for ahead in range(TOGETHER)]
        with k.loop(0, a.taps_high * a.taps_wide) as tap:
            tap = k.opaque_int(tap)
            for number, (source, lane) in enumerate(itertools.product(sources, d.lanes)):
                d.store(d.of_floats(source, tap * k.v + lane), taken, (tap * _HALVES + number) * k.v)
        with k.loop(0, a.taps_wide) as col, k.loop(0, a.places_high) as row:
            row, col = k.opaque_int(row), k.opaque_int(col)
            line = k.b.gep(a.high, [(row * a.taps_high).value], source_etype=F64)
            made = _combine(k, d, line, a.taps_high, k.advance(taken, col * (_HALVES * k.v)), a.taps_wide)
            for number, one in enumerate(made):
                d.store(one.get(), between, ((row * a.taps_wide + col) * _HALVES + number) * k.v)
        with k.loop(0, a.places_high) as row, k.loop(0, a.places_wide) as col:
            row, col = k.opaque_int(row), k.opaque_int(col)
            line = k.b.gep(a.wide, [(col * a.taps_wide).value], source_etype=F64)
            made = _combine(k, d, line, a.taps_wide, k.advance(between, row * a.taps_wide * (_HALVES * k.v)), 1)
            place = row * a.places_wide + col
            _add_squares(k, d, made, k.b.gep(factors, [first.value], source_etype=F64), sums, place)
            at = (place * a.channels + first) * k.v
            for ahead in range(TOGETHER):
                with k.when(first + ahead < a.channels):
                    for lane, one in zip(d.lanes, made[2 * ahead : 2 * ahead + 2], strict=True):
                        d.to_floats(one.get(), to, at + (ahead * k.v + lane))


def _combine(k: Kernel, d: Doubles, line: ir.Value, terms: Int, at: ir.Value, apart: Int | int) -> list[Variable]:
    """The sum of so many terms: an entry of ``line`` times `_HALVES` vectors, ``apart`` times as many after each."""
    totals = [k.variable(d.splat(0.0)) for _ in range(_HALVES)]
    with k.loop(0, terms) as term:
        entry = d.repeated(line, term)
        for number, total in enumerate(totals):
            vector = d.load(at, (k.opaque_int(term) * apart * _HALVES + number) * k.v)
            total.set(d.fma(entry, vector, total.get()))
    return totals


def _add_squares(
    k: Kernel, d: Doubles, made: list[Variable], factors: ir.Value, sums: ir.Value, place: Int
) -> None:  # fmt: skip
    totals = [d.load(sums, (place * 2 + number) * k.v) for number in range(2)]
    for ahead in range(TOGETHER):
        factor = d.repeated(factors, ahead)
        for number in range(2):
            scaled = k.mul(made[2 * ahead + number].get(), factor)
            totals[number] = d.fma(scaled, scaled, totals[number])
    for number, total in enumerate(totals):
        d.store(total, sums, (place * 2 + number) * k.v)


def _scale(
    k: Kernel, d: Doubles, a: Reader, tile: Packing, item: Int, place: Int, number: Int, to: ir.Value,
    factors: ir.Value, sums: ir.Value,
) -> None:  # fmt: skip
    """Bring what is packed at one place to its size; ``number``: of the place, among those of all vectors."""
    scales = []
    for half, lane in enumerate(d.lanes):
        total = d.load(sums, (place * 2 + half) * k.v)
        scale, back = _powers(k, d, k.div(d.repeated(a.wanted, place), total), a.limit)
        back = k.select(k.b.fcmp_ordered("==", total, d.splat(0.0)), d.splat(0.0), back)
        d.to_floats(back, a.backs, number * k.v + lane)
        scales.append(scale)
    at = k.advance(to, place * a.channels * k.v)
    before, products = ([k.variable(d.splat(0.0)) for _ in scales] for _ in range(2))
    smallest = [k.variable(d.splat(float("inf"))) for _ in scales]
    with k.loop(0, a.channels) as channel:
        factor = d.repeated(factors, channel)
        made = []
        for scale, lane, least in zip(scales, d.lanes, smallest, strict=True):
            weight = d.of_floats(at, channel * k.v + lane)
            made.append(k.mul(weight, k.mul(factor, scale)))
            d.to_floats(made[-1], at, channel * k.v + lane)
            if tile.what == "scale":
                size = d.size(made[-1])
                told = k.b.and_(
                    k.b.fcmp_unordered("!=", weight, d.splat(0.0)), k.b.fcmp_ordered("<", size, least.get())
                )
                least.set(k.select(told, size, least.get()))
        with k.when(k.load_int(a.counted, channel) >= 1):
            for one, two, total in zip(before, made, products, strict=True):
                total.set(d.fma(one.get(), two, total.get()))
        for one, two in zip(before, made, strict=True):
            one.set(two)
    for lane, total, least in zip(d.lanes, products, smallest, strict=True):
        d.to_floats(k.sub(d.splat(0.0), total.get()), a.squares, number * k.v + lane)
        if tile.what == "scale":
            lost = k.select(k.b.fcmp_ordered("<", least.get(), d.splat(_SMALLEST)), d.splat(1.0), d.splat(0.0))
            d.to_floats(lost, a.lost, item * k.v + lane)


def _powers(k: Kernel, d: Doubles, quotient: ir.Value, limit: Int) -> tuple[ir.Value, ir.Value]:
    """The powers of two next to the roots of quotients that are not negative, and their inverses."""
    double = k.b.bitcast(k.mul(quotient, d.splat(2.0)), d.ints)
    # The logarithm of twice the quotient, rounded down and halved, is half that of the quotient rounded to the nearest.
    exponent = k.b.ashr(k.b.sub(k.b.lshr(double, d.splat_int(52)), d.splat_int(1023)), d.splat_int(1))
    low, high = (d.int_broadcast(bound) for bound in (0 - limit, limit))
    exponent = k.b.select(k.b.icmp_signed("<", exponent, low), low, exponent)
    exponent = k.b.select(k.b.icmp_signed(">", exponent, high), high, exponent)
    powers = (k.b.add(d.splat_int(1023), exponent), k.b.sub(d.splat_int(1023), exponent))
    scale, back = (k.b.bitcast(k.b.shl(power, d.splat_int(52)), d.kind) for power in powers)
    return scale, back
