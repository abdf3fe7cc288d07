"""Convolutions in groups against float64, on every target: planned as a model plans them, every buffer beside an
unreadable page, and NaN in all memory that means nothing."""

from __future__ import annotations

import numpy as np
import pytest

from convwright.codegen.target import Target, host_target
from convwright.kernels import grouped
from convwright.model.lower import grouped as lowering
from convwright.model.lower.conv import algorithm_of
from convwright.model.problem import Problem
from convwright.spec import ConvSpec
from tests.convolutions import RESIDUAL, SIZES, WIDER, Case, random_epilogue, random_size, random_window
from tests.kernels import each_target
from tests.sweeps import check_each, on_targets


def in_groups(
    own: int, groups: int, kernel: tuple[int, ...] = (3, 3), multiple: int = 1, **options: object
) -> ConvSpec:
    """Of ``own`` input and ``own * multiple`` output channels a group."""
    return ConvSpec(own * groups, own * groups * multiple, kernel, groups=groups, **options)  # type: ignore[arg-type]


def check(case: Case, target: Target) -> grouped.GroupedTile:
    """The tile that computed it."""
    inputs, constants = case.arrays()
    (tile,) = case.plan(inputs, constants, target).tiles(grouped)
    case.check(target)
    assert isinstance(tile, grouped.GroupedTile)
    return tile


def parts_and_wholes(target: Target) -> list[int]:
    """Channels of groups that are a part of a vector, a vector, or several."""
    v = target.vector
    return [own for own in (2, 4, 8, 16) if own < v] + [v, 2 * v]


def random_case(seed: int, target: Target) -> Case:
    rng = np.random.default_rng(seed)
    own = int(rng.choice(parts_and_wholes(target)))
    whole = own % target.vector == 0
    window = random_window(rng, 1 if rng.random() < 0.2 else 2, 5)
    if whole and set(window["kernel"]) == {1}:
        window["kernel"] = (2,) * len(window["kernel"])
    spec = in_groups(
        own,
        int(rng.choice([2, 3, 5, 8])),
        multiple=int(rng.choice([1, 2])) if whole else 1,
        bias=bool(rng.random() < 0.7),
        **window,
    )
    return Case(
        spec,
        batch=int(rng.integers(1, 4)),
        size=random_size(rng, spec, 200),
        epilogue=random_epilogue(rng),
        inside=bool(rng.random() < 0.5),
        halo=bool(rng.random() < 0.2),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        algorithm="direct-grouped",
        seed=seed,
    )


@on_targets(30)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: check(case, target))


@each_target
@pytest.mark.parametrize("stride", [1, 2])
def test_sizes_around_the_tile(target: Target, stride: int) -> None:
    for number, size in enumerate((*SIZES, *WIDER)):
        for own in parts_and_wholes(target)[-3:]:
            spec = in_groups(own, 2, stride=stride, padding=1)
            at = (1 + number % 4, size)
            check(Case(spec, 1, at, (("relu",),), at_end=number % 2 == 0, algorithm="direct-grouped"), target)


@each_target
def test_corners(target: Target) -> None:
    v = target.vector
    for number, spec in enumerate(
        [
            in_groups(2, 3, (1, 1)),
            in_groups(2, v // 2 + 1, (1, 1), stride=(2, 3)),
            in_groups(v, 2, (2, 2), stride=(5, 3)),
            in_groups(2 * v, 3, (2, 5), stride=(3, 1), dilation=(1, 3), padding=((0, 3), (4, 1))),
            in_groups(v, 2, (9, 14), multiple=3),
            in_groups(v // 2, 3, (2, 2), padding=5) if v > 4 else in_groups(2, 3, (2, 2), padding=5),
            ConvSpec(6 * v, 2 * v, (3, 3), groups=2, padding=1),
        ]
    ):
        for batch in (1, 3):
            epilogue = (("relu",), RESIDUAL) if number % 2 else (RESIDUAL, ("relu",))
            case = Case(
                spec,
                batch,
                (9, 14),
                epilogue,
                threads=batch,
                at_end=batch == 1,
                algorithm="direct-grouped",
                seed=number,
            )
            check(case, target)


@each_target
def test_nan_and_infinity_stay_in_their_group_and_window(target: Target) -> None:
    rng = np.random.default_rng(7)
    for own in parts_and_wholes(target):
        case = Case(in_groups(own, 3, padding=1), 2, (5, 9), (RESIDUAL, ("relu",)), algorithm="direct-grouped")
        case.check_specials(target, rng)


@each_target
def test_weights_come_back_to_the_last_bit(target: Target) -> None:
    v = target.vector
    rng = np.random.default_rng(0)
    for shape, shared, blocks in (((6, 2, 3, 2), 2, 1), ((v + 2, 2, 1, 1), 2, 1), ((2 * v, 2 * v, 3, 3), v, 2)):
        weight = rng.standard_normal(shape).astype(np.float32)
        places = lowering._places(shape, shared, blocks, v)
        packed = lowering._pack(weight, places)
        np.testing.assert_array_equal(lowering._unpack(packed, shape, places), weight)


def problem(spec: ConvSpec, size: tuple[int, ...] = (28, 28), **options: object) -> Problem:
    return Problem(spec, size, 1, np.dtype(np.float32), host_target(), 2, **options)  # type: ignore[arg-type]


def test_why_not() -> None:
    v = host_target().vector

    def reason(spec: ConvSpec) -> str | None:
        return lowering.ROW.why_not(problem(spec))

    assert reason(in_groups(2, 3)) is None
    assert reason(in_groups(v, 3, multiple=2)) is None
    assert reason(ConvSpec(v, v, (3, 3))) == "not in groups"
    assert reason(in_groups(1, 8)) == "depthwise layers have a kernel of their own"
    assert reason(in_groups(3, 2)) == f"groups of 3 to 3 channels are neither vectors of {v} nor equal parts of one"
    assert reason(in_groups(2, 3, transposed=True)) == "transposed"
    assert reason(in_groups(v, 3, (1, 1))) == f"pointwise, of vectors of {v}: its pixels are one row elsewhere"


def test_the_layers_of_resnext_are_computed_so_without_leaving_channel_blocks() -> None:
    for channels, size, stride in ((128, 56, 1), (256, 56, 2), (256, 28, 1), (512, 28, 2), (1024, 14, 2)):
        spec = in_groups(channels // 32, 32, stride=stride, padding=1)
        if channels // 32 % host_target().vector == 0 or host_target().vector % (channels // 32) == 0:
            assert algorithm_of(problem(spec, (size, size))) is lowering.ROW, (channels, stride)
