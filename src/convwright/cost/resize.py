"""Which inputs a Resize reads for each output, from ONNX's definition (https://onnx.ai/onnx/operators/onnx__Resize)."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

from convwright.cost.reach import Rational, Taps, plain
from convwright.graph.graph import Node
from convwright.graph.shape_rules.scope import Scope

_LARGEST_DENOMINATOR = 1 << 12
"""Scales come as float32: the simplest fraction that is meant."""


def resize_taps(scope: Scope, node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> dict[int, Taps] | None:
    """Taps of each resized axis; None where a crop by coordinates decides what is read."""
    if node.get("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    axes = [axis % len(before) for axis in node.get("axes") or range(len(before))]
    given = scope.known(node.input(2)) if node.input(2) else None
    taps = {}
    for index, axis in enumerate(axes):
        scale = Fraction(after[axis], before[axis])
        if given is not None and given.size:
            scale = Fraction(float(given.reshape(-1)[index])).limit_denominator(_LARGEST_DENOMINATOR)
        if scale != 1 or after[axis] != before[axis]:
            taps[axis] = _axis_taps(node, before[axis], after[axis], scale)
    return taps


def _axis_taps(node: Node, size: int, count: int, scale: Fraction) -> Taps:
    """`rate` inputs an output, whose phases are as many as the rate's denominator."""
    rate, shift = _coordinates(node, size, count, scale)
    phases = rate.denominator
    offsets: list[tuple[Rational, ...]] = []
    for phase in range(min(phases, count) if phases > count else phases):
        place = rate * phase + shift
        offsets.append(tuple(plain(near - rate * phase) for near in _read(node, place, rate)))
    if phases > count:  # never comes round: the phases are not periods, only their hull is known
        ends = [offset for each in offsets for offset in each]
        return Taps(plain(rate), ((min(ends), max(ends)),), exact=False)
    return Taps(plain(rate), tuple(offsets))


def _coordinates(node: Node, size: int, count: int, scale: Fraction) -> tuple[Fraction, Fraction]:
    """Output i lies at input coordinate `rate * i + shift`."""
    mode = node.get("coordinate_transformation_mode", "half_pixel")
    rate = 1 / scale
    if mode == "align_corners":
        return (Fraction(size - 1, count - 1) if count > 1 else Fraction(0)), Fraction(0)
    if mode == "asymmetric":
        return rate, Fraction(0)
    if mode == "pytorch_half_pixel" and count == 1:
        return rate, Fraction(0)
    shift = rate / 2 - Fraction(1, 2)
    if mode == "half_pixel_symmetric":
        adjusted = Fraction(count) / (scale * size)
        shift += Fraction(size, 2) * (1 - adjusted)
    return rate, shift


def _read(node: Node, place: Fraction, rate: Fraction) -> list[int]:
    """The inputs read for a coordinate, ends included, wherever the input ends."""
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        return [_nearest(place, node.get("nearest_mode", "round_prefer_floor"))]
    reach: Fraction | int = 2 if mode == "cubic" else 1
    if node.get("antialias", 0) and rate > 1:
        reach *= rate
    elif place == floor(place):
        return [floor(place)]  # the other weights of linear and of cubic interpolation are zero there
    return [floor(place - reach) + 1, ceil(place + reach) - 1]


def _nearest(place: Fraction, mode: str) -> int:
    if mode == "floor":
        return floor(place)
    if mode == "ceil":
        return ceil(place)
    half = Fraction(1, 2)
    return floor(place + half) if mode == "round_prefer_ceil" else ceil(place - half)
