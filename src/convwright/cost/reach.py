"""Which elements of an axis an output depends on, exactly: intervals that move with the output's index.

Along one axis, output i of most operators depends on inputs from `stride * i + low` to `stride * i + high`. After a
transposed convolution or a resize the two ends depend on i modulo a period as well, the phase; strides are fractions
there, and single phases may see nothing. Composing operators composes these intervals (A. Araujo, W. Norris, J. Sim,
Computing Receptive Fields of Convolutional Neural Networks, Distill 2019, whose recurrences are the case of one phase).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

Rational = int | Fraction
Interval = tuple[Rational, Rational]

_MOST_PHASES = 512
"""A longer period (a resize by an odd ratio) is replaced by the interval that holds all of its phases."""


@dataclass(frozen=True, slots=True)
class Taps:
    """What an operator reads along an axis: output i reads inputs `rate * i + offset`, offsets by i modulo their count.

    `rate * i + offset` is an integer for every i of the offset's phase. A phase without offsets reads nothing.
    """

    rate: Rational
    offsets: tuple[tuple[Rational, ...], ...]
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Reach:
    """Index i depends on inputs `stride * i + ends[i % len(ends)]`, both ends included; None: on nothing.

    `exact`: False where the intervals may be larger than what is seen, by less than an element's distance.
    """

    stride: Rational
    ends: tuple[Interval | None, ...]
    exact: bool = True

    def at(self, index: int) -> Interval | None:
        """First and last input that `index` depends on, wherever the input ends."""
        ends = self.ends[index % len(self.ends)]
        if ends is None:
            return None
        shift = self.stride * index
        return plain(shift + ends[0]), plain(shift + ends[1])

    def extent(self, count: int) -> Interval | None:
        """What the indices `0 .. count - 1` depend on together."""
        period = len(self.ends)
        places = {*range(min(count, period)), *range(max(0, count - period), count)}
        return _hull(self.at(place) for place in places)

    def largest(self) -> tuple[int, Interval] | None:
        """The phase that depends on most, the first of them, and its ends."""
        found = [(phase, ends) for phase, ends in enumerate(self.ends) if ends is not None]
        return max(found, key=lambda item: (item[1][1] - item[1][0], -item[0]), default=None)

    def compose(self, taps: Taps) -> Reach:
        """What outputs of an operator depend on that reads indices of this reach."""
        stride = plain(self.stride * taps.rate)
        exact = self.exact and taps.exact
        period, phases = len(self.ends), len(taps.offsets)
        if period == 1:
            return Reach(stride, tuple(self._shifted(offsets) for offsets in taps.offsets), exact).shortened()
        phases *= period // gcd(period, int(taps.rate * phases))
        if phases > _MOST_PHASES:
            one = Reach(self.stride, (_hull(self.ends),), False)
            return one.compose(taps)
        result = []
        for phase in range(phases):
            seen = []
            for offset in taps.offsets[phase % len(taps.offsets)]:
                ends = self.ends[int(taps.rate * phase + offset) % period]
                if ends is not None:
                    shift = self.stride * offset
                    seen.append((shift + ends[0], shift + ends[1]))
            result.append(_hull(seen))
        return Reach(stride, tuple(result), exact).shortened()

    def _shifted(self, offsets: tuple[Rational, ...]) -> Interval | None:
        ends = self.ends[0]
        if ends is None or not offsets:
            return None
        first, last = self.stride * min(offsets), self.stride * max(offsets)
        if first > last:
            first, last = last, first
        return plain(first + ends[0]), plain(last + ends[1])

    def join(self, other: Reach) -> Reach:
        """What depends on both at every index; their strides are equal."""
        if self.ends == other.ends:
            return self if not self.exact else other
        period = lcm(len(self.ends), len(other.ends))
        if period > _MOST_PHASES:
            return Reach(self.stride, (_hull((*self.ends, *other.ends)),), False)
        pairs = ((self.ends[i % len(self.ends)], other.ends[i % len(other.ends)]) for i in range(period))
        return Reach(self.stride, tuple(_hull(pair) for pair in pairs), self.exact and other.exact)

    def within(self, stride: Rational, count: int) -> Reach:
        """The narrowest reach of one phase and this stride that holds this one at indices `0 .. count - 1`."""
        shifted = []
        for index in range(count):
            ends = self.at(index)
            if ends is not None:
                shifted.append((ends[0] - stride * index, ends[1] - stride * index))
        return Reach(stride, (_hull(shifted),), False)

    def shortened(self) -> Reach:
        """The same with as few phases as say it."""
        if len(self.ends) > 1 and len(set(self.ends)) == 1:
            return Reach(self.stride, self.ends[:1], self.exact)
        if len(self.ends) > _MOST_PHASES:
            return Reach(self.stride, (_hull(self.ends),), False)
        return self


IDENTITY = Reach(1, ((0, 0),))


def window_taps(kernel: int, stride: int, dilation: int, low: int) -> Taps:
    """Of a convolution or a pool: output i reads `i * stride - low + t * dilation` for every tap t."""
    return Taps(stride, (tuple(tap * dilation - low for tap in range(kernel)),))


def transposed_taps(kernel: int, stride: int, dilation: int, low: int) -> Taps:
    """Of a transposed convolution: output i reads m wherever `m * stride + t * dilation == i + low`.

    Each of `stride` phases has its own taps, and those of some phases may be none.
    """
    phases = []
    for phase in range(stride):
        met = [low - tap * dilation for tap in range(kernel) if (phase + low - tap * dilation) % stride == 0]
        phases.append(tuple(plain(Fraction(place, stride)) for place in met))
    return Taps(plain(Fraction(1, stride)), tuple(phases))


def plain(value: Rational) -> Rational:
    """An int where the value is one."""
    return value.numerator if value.denominator == 1 else value


def _hull(ends: Iterable[Interval | None]) -> Interval | None:
    found = [pair for pair in ends if pair is not None]
    if not found:
        return None
    return plain(min(low for low, _ in found)), plain(max(high for _, high in found))
