"""Depthwise convolutions against float64, on every target: planned as a model plans them, every buffer beside an
unreadable page, and NaN in all memory that means nothing."""

from __future__ import annotations

import numpy as np
import pytest

from convwright.codegen.target import Target, host_target
from convwright.kernels import depthwise
from convwright.spec import ConvSpec
from tests.convolutions import (
    RESIDUAL,
    SIZES,
    WIDER,
    Case,
    random_epilogue,
    random_size,
    random_window,
)  # fmt: skip
from tests.kernels import each_target
from tests.sweeps import check_each, on_targets


def depthwise_spec(channels: int, kernel: tuple[int, ...], **options: object) -> ConvSpec:
    return ConvSpec(channels, channels, kernel, groups=channels, **options)  # type: ignore[arg-type]


def random_case(seed: int, target: Target) -> Case:
    rng = np.random.default_rng(seed)
    v = target.vector
    channels = int(rng.choice([2, 3, v - 1, v, v + 1, 2 * v + 3]))
    window = random_window(rng, 1 if rng.random() < 0.2 else 2, 7)
    spec = depthwise_spec(channels, **window, bias=bool(rng.random() < 0.7))
    return Case(
        spec,
        batch=int(rng.integers(1, 4)),
        size=random_size(rng, spec),
        epilogue=random_epilogue(rng),
        inside=bool(rng.random() < 0.5),
        halo=bool(rng.random() < 0.2),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        seed=seed,
    )


@on_targets(40)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: case.check(target))


@each_target
@pytest.mark.parametrize("stride", [1, 2])
def test_sizes_around_the_tile(target: Target, stride: int) -> None:
    for number, size in enumerate((*SIZES, *WIDER)):
        spec = depthwise_spec(target.vector + 1, (3, 3), stride=stride, padding=1)
        Case(spec, 1, (1 + number % 4, size), (("relu",),), at_end=number % 2 == 0).check(target)


@each_target
@pytest.mark.parametrize("width", [9, 11, 13, 27, 31])
def test_wide_kernels(target: Target, width: int) -> None:
    """On both sides of the width whose weights are held in registers."""
    for dilation in (1, 2):
        spec = depthwise_spec(target.vector + 1, (1, width), padding=((0, 0), (width, width)), dilation=dilation)
        case = Case(spec, 2, (2, 33), at_end=dilation == 1)
        inputs, constants = case.arrays()
        tiles = case.plan(inputs, constants, target).tiles(depthwise)
        assert [tile.unrolled for tile in tiles] == [depthwise.fits_registers(width, target)]
        case.check(target)


@each_target
def test_large_kernels_leave_out_taps_on_padding(target: Target) -> None:
    for number, (kernel, size, padding, stride) in enumerate(
        [
            ((31, 31), (14, 14), 15, 1),
            ((9, 31), (5, 33), (4, 15), (1, 2)),
            ((13, 9), (9, 4), ((12, 0), (1, 8)), (3, 1)),
            ((9, 9), (20, 20), 0, 1),
            ((11, 11), (1, 1), 10, 1),
        ]
    ):
        spec = depthwise_spec(target.vector + 1, kernel, padding=padding, stride=stride)
        case = Case(spec, 1 + number % 2, size, at_end=number % 2 == 0, threads=2, seed=number)
        plan = case.plan(*case.arrays(), target)
        assert [tile.clipped for tile in plan.tiles(depthwise)] == [True]
        case.check(target)


@each_target
def test_whole_rows_of_outputs_in_registers(target: Target) -> None:
    """From one output a row to as many as leave room for two inputs, and one more."""
    most = target.registers - (2 if target.has_fma else 4) - 2
    v = target.vector
    for number, (cols, width, padding, stride) in enumerate(
        [
            (1, 31, (15, 15), 1),
            (7, 9, (4, 4), 1),
            (most, 9, (4, 4), 1),
            (most + 1, 9, (4, 4), 1),
            (8, 11, (10, 0), 1),
            (9, 10, (0, 9), 2),
            (6, 9, (3, 13), 3),
        ]
    ):
        size = (cols - 1) * stride + width - sum(padding)
        spec = depthwise_spec(
            v + number % 3 - 1, (9, width), padding=((5, 3), padding), stride=(1 + number % 2, stride)
        )
        case = Case(spec, 1 + number % 2, (4, size), (RESIDUAL, ("relu",)), at_end=number % 2 == 0, seed=number)
        (tile,) = case.plan(*case.arrays(), target).tiles(depthwise)
        assert (tile.row_inputs == size) == (cols <= most)
        case.check(target)


def test_an_infinite_weight_makes_nan_of_padding() -> None:
    target = host_target()
    case = Case(depthwise_spec(3, (9, 9), padding=8), 1, (4, 4))
    inputs, constants = case.arrays()
    constants["w"][1, 0, 0, 0] = np.inf
    plan = case.plan(inputs, constants, target)
    assert [tile.clipped for tile in plan.tiles(depthwise)] == [False]
    expected, _ = case.expected(inputs, constants)
    np.testing.assert_array_equal(np.isnan(case.run(plan, inputs)[0]), np.isnan(expected))


@each_target
def test_corners(target: Target) -> None:
    v = target.vector
    for number, spec in enumerate(
        [
            depthwise_spec(2, (1, 1)),
            depthwise_spec(v, (1, 1), stride=(2, 3)),
            depthwise_spec(v - 1, (2, 2), stride=(5, 3)),
            depthwise_spec(2 * v + 3, (2, 5), stride=(3, 1), dilation=(1, 3), padding=((0, 3), (4, 1))),
            depthwise_spec(v + 1, (9, 14)),
            depthwise_spec(3, (2, 2), padding=5),
        ]
    ):
        for batch in (1, 3):
            epilogue = (("relu",), RESIDUAL) if number % 2 else (RESIDUAL, ("relu",))
            case = Case(spec, batch, (9, 14), epilogue, threads=batch, at_end=batch == 1, seed=number)
            inputs, constants = case.arrays()
            assert case.plan(inputs, constants, target).tiles(depthwise)
            case.check(target)


@each_target
def test_nan_and_infinity_stay_in_their_channel_and_window(target: Target) -> None:
    rng = np.random.default_rng(7)
    for kernel in ((3, 3), (1, 31)):
        spec = depthwise_spec(target.vector + 1, kernel, padding=tuple(k // 2 for k in kernel))
        Case(spec, 2, (9, 14), (RESIDUAL, ("relu",))).check_specials(target, rng)
