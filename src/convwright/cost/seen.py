"""What one value of a graph depends on along each tracked axis of an input, and how values are joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

from convwright.cost.reach import Interval, Rational, Reach, Taps, plain


@dataclass(frozen=True, slots=True)
class Along:
    """What a value depends on along one axis of the input.

    - `place`: the value's axis whose index moves what is seen, None where nothing moves it.
    - `local`: what moves, by index of that axis; None where there is no such path.
    - `whole`: what every element depends on, through pools over the whole extent and the like; None where there are no
      such paths.
    - `through`: what made it whole.
    """

    place: int | None
    local: Reach | None
    whole: Interval | None = None
    through: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a value depends on: an entry for each tracked axis, and what is to be told about it."""

    axes: tuple[Along, ...]
    sizes: tuple[int, ...]
    remarks: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()

    def through(self, taps: Mapping[int, Taps]) -> Seen:
        """After an operator that reads these taps along the value's axes, and nothing else moves."""
        return replace(
            self,
            axes=tuple(
                replace(along, local=along.local.compose(taps[along.place]))
                if along.local is not None and along.place is not None and along.place in taps
                else along
                for along in self.axes
            ),
        )

    def whole_over(self, places: Iterable[int] | None, shape: Sequence[int], why: str) -> Seen:
        """After an operator each of whose outputs reads all of these axes of the value; None: all axes."""
        chosen = None if places is None else set(places)
        axes = []
        for along, size in zip(self.axes, self.sizes, strict=True):
            if along.local is None or (chosen is not None and along.place not in chosen):
                axes.append(along)
                continue
            count = 1 if along.place is None else shape[along.place]
            extent = clip(along.local.extent(count), size)
            axes.append(Along(None, None, _union(along.whole, extent), along.through or why))
        return replace(self, axes=tuple(axes))

    def fixed(self, place: int) -> Seen:
        """For an axis of size 1: its index is 0 wherever the value goes from here."""
        axes = []
        for along in self.axes:
            if along.place == place and along.local is not None:
                axes.append(replace(along, place=None, local=Reach(0, (along.local.at(0),), along.local.exact)))
            else:
                axes.append(replace(along, place=None) if along.place == place else along)
        return replace(self, axes=tuple(axes))

    def moved(self, places: Mapping[int, int]) -> Seen:
        """With the value's axes renumbered."""
        return replace(
            self,
            axes=tuple(a if a.place is None else replace(a, place=places[a.place]) for a in self.axes),
        )

    def noting(self, remark: str) -> Seen:
        return self if remark in self.remarks else replace(self, remarks=(*self.remarks, remark))


def join(first: Seen, second: Seen, shape: Sequence[int], where: str) -> Seen:
    """What a value depends on of which each element reads both others at its own place. Paths that differ are told."""
    told: list[str] = []
    if first.axes == second.axes:
        axes = first.axes
    else:
        joined = []
        for index, (a, b) in enumerate(zip(first.axes, second.axes, strict=True)):
            along, complaint = _join_axis(a, b, shape)
            joined.append(along)
            if complaint:
                told.append(f"{where}: on axis {index} its paths have {complaint}")
        axes = tuple(joined)
    return Seen(
        axes,
        first.sizes,
        _both(first.remarks, second.remarks),
        _both(_both(first.disagreements, second.disagreements), told),
    )


def _join_axis(a: Along, b: Along, shape: Sequence[int]) -> tuple[Along, str]:
    whole, why = _union(a.whole, b.whole), a.through or b.through
    if a.local is None or b.local is None or a.local == b.local:
        moving = b if a.local is None else a
        return Along(moving.place, moving.local, whole, why), ""
    if a.place == b.place and a.local.stride == b.local.stride:
        return Along(a.place, a.local.join(b.local), whole, why), _centres(a.local, b.local)
    if None in (a.place, b.place):
        # One does not move (an axis of size 1 that is spread): all see it.
        still, moving = (a, b) if a.place is None else (b, a)
        if moving.place is not None and still.local is not None:
            fixed = still.local.at(0)
            return Along(
                moving.place, moving.local, _union(whole, fixed), why or "an axis of size 1 that is spread"
            ), ""
        return Along(None, Reach(0, (_union(a.local.at(0), b.local.at(0)),)), whole, why), ""
    if a.place != b.place or a.place is None:
        return Along(None, None, _union(whole, (0, 0)), why), "different axes"
    wider = max(a.local, b.local, key=_size)
    count = shape[a.place]
    local = a.local.within(wider.stride, count).join(b.local.within(wider.stride, count))
    return Along(a.place, local, whole, why), f"different strides, {a.local.stride} and {b.local.stride}"


def _centres(a: Reach, b: Reach) -> str:
    """How the middles of two paths differ, `""` where they are the same."""
    if len(a.ends) != len(b.ends) or len(a.ends) > 1:
        return ""
    first, second = a.ends[0], b.ends[0]
    if first is None or second is None or sum(first) == sum(second):
        return ""
    middles = [f"{float(plain(sum(ends)) / 2):g}" for ends in (first, second)]
    return f"different centres, {middles[0]} and {middles[1]} at output 0 (stride {a.stride})"


def _size(reach: Reach) -> Rational:
    largest = reach.largest()
    return -1 if largest is None else largest[1][1] - largest[1][0]


def elements(ends: Interval | None) -> int:
    """How many elements an interval holds at most."""
    return 0 if ends is None else floor(ends[1] - ends[0]) + 1


def clip(ends: Interval | None, size: int) -> Interval | None:
    """The part of an interval that lies in the input."""
    if ends is None:
        return None
    low, high = max(ends[0], 0), min(ends[1], size - 1)
    return (low, high) if low <= high else None


def _union(first: Interval | None, second: Interval | None) -> Interval | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first[0], second[0]), max(first[1], second[1])


def _both(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    if not second or first == second:
        return tuple(first)
    return tuple(dict.fromkeys((*first, *second)))
