"""Depthwise convolution in place on row-major planes, against float64, on every target: planned as a model plans it,
every buffer beside an unreadable page."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from convwright import reference
from convwright.codegen.lang import lanes
from convwright.codegen.target import Target, host_target
from convwright.errors import ConvwrightError
from convwright.kernels import depthwise_planes, planar
from convwright.model import weights as weights_module
from convwright.model.lower import depthwise_planes as lowering
from convwright.model.lower.conv import algorithm_of
from convwright.model.problem import Problem
from convwright.spec import ConvSpec
from tests.forced import Case
from tests.kernels import each_target
from tests.sweeps import HOST, check_each, on_targets

Options = tuple[tuple[str, Any], ...]


def depthwise(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    options: Options = (),
    *,
    channels: int = 3,
    multiplier: int = 1,
    **how: Any,
) -> Case:
    """A depthwise convolution of random numbers, ``multiplier`` filters a channel; ``options``: of the spec."""
    spec = ConvSpec(channels, channels * multiplier, kernel, groups=channels, **dict(options))
    return Case("direct-in-place", spec, size, **how)


def check(case: Case, target: Target) -> Any:
    """The tile that computed it."""
    (tile,) = case.check(target).tiles(depthwise_planes)
    return tile


def random_case(seed: int, target: Target) -> Case:
    rng = np.random.default_rng(seed)
    element = "f64" if rng.random() < 0.25 else "f32"
    v, rank = lanes(target, element), int(rng.integers(1, 4))
    while True:
        most = {1: 12, 2: 7, 3: 4}[rank]
        edges = [1, 2, v - 1, v, v + 1, 2 * v + 3, int(rng.integers(1, 30))]
        if rank == 1:
            edges += [9 * v, 19 * v + 5]
        options = {
            "stride": tuple(int(rng.choice([1, 1, 2, 3])) for _ in range(rank)),
            "padding": 0 if rng.random() < 0.3 else tuple((int(n), int(m)) for n, m in rng.integers(0, 4, (rank, 2))),
            "dilation": tuple(int(rng.choice([1, 1, 1, 2, 3])) for _ in range(rank)),
            "flip": bool(rng.random() < 0.2),
            "bias": bool(rng.random() < 0.7),
        }
        case = depthwise(
            tuple(int(rng.choice(edges)) if axis >= rank - 2 else int(rng.integers(1, 5)) for axis in range(rank)),
            tuple(int(rng.integers(1, most)) for _ in range(rank)),
            tuple(options.items()),
            channels=int(rng.choice([2, 3, 7])),
            multiplier=int(rng.choice([1, 1, 1, 2])),
            batch=int(rng.integers(1, 3)),
            element=element,
            threads=int(rng.integers(1, 4)),
            at_end=bool(rng.random() < 0.5),
            relu=element == "f32" and bool(rng.random() < 0.2),
            seed=seed,
        )
        try:
            case.spec.output_size(case.size)
        except ConvwrightError:
            continue
        if lowering.ROW.why_not(problem(case, target)) is None:
            return case


def problem(case: Case, target: Target, **changes: Any) -> Problem:
    dtype = np.dtype(np.float64 if case.element == "f64" else np.float32)
    options = {"plain_input": True, "plain_output": True, **changes}
    return Problem(case.spec, case.size, case.batch, dtype, target, case.threads, **options)


@on_targets(30, full=(HOST, HOST))
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: check(case, target))


@each_target
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_sizes_around_the_tile(target: Target, stride: int) -> None:
    for number, wide in enumerate((1, 2, target.vector - 1, target.vector, target.vector + 1, 3 * target.vector + 2)):
        high = (1, 7, 14, 16, 17, 33)[number]
        options = (("stride", stride), ("padding", 1))
        check(depthwise((high, wide), (3, 3), options, threads=1 + number % 2, at_end=number % 2 == 0), target)


@each_target
def test_single_rows_take_several_vectors_at_once(target: Target) -> None:
    v = target.vector
    for number, length in enumerate((8 * v, 9 * v + 1, 10 * v, 10 * v + 1, 33 * v + 7)):
        for kernel, stride, padding in ((3, 1, 1), (3, 1, 0), (4, 2, (3, 0)), (5, 3, 2), (31, 1, 15)):
            size = (length * stride,)
            options = (("stride", stride), ("padding", padding if isinstance(padding, int) else (padding,)))
            tile = check(depthwise(size, (kernel,), options, at_end=number % 2 == 0), target)
            assert tile.wide


@each_target
def test_volumes_leave_out_slices_on_padding(target: Target) -> None:
    for options in (
        (("padding", 1),),
        (("padding", (3, 1, 1)), ("stride", (2, 1, 2))),
        (("padding", (4, 0, 2)), ("dilation", (2, 1, 2))),
    ):
        check(depthwise((4, 9, target.vector + 3), (3, 3, 3), options, threads=2), target)


def test_a_plane_has_few_forms_of_tiles() -> None:
    """One at the upper edge, one inside, one at the lower edge."""
    form = lowering.form_of(problem(depthwise((112, 112), (3, 3), (("padding", 1),), channels=64), host_target()))
    assert form is not None
    assert set(form.tile.clips) == {(1, 0), (0, 0), (0, 1)}


def test_why_not() -> None:
    target = host_target()

    def reason(spec: ConvSpec, size: tuple[int, ...] = (9, 9), **changes: Any) -> str | None:
        p = Problem(spec, size, 1, np.dtype(np.float32), target, 1, **changes)
        return lowering.ROW.why_not(p)

    assert reason(ConvSpec(4, 4, (3, 3), groups=4)) is None
    assert reason(ConvSpec(4, 8, (3, 3), groups=2)) == "not depthwise"
    assert reason(ConvSpec(4, 4, (3, 3), groups=4, transposed=True)) == "transposed"
    reflecting = ConvSpec(4, 4, (3, 3), groups=4, padding=1, padding_mode="reflect")
    assert reason(reflecting) == "padding holds reflect values, not zeros"
    assert reason(ConvSpec(4, 4, (3, 3), groups=4), residual=True) == "adds no residual"
    assert reason(ConvSpec(4, 4, (3, 3), groups=4, stride=4)) == "a horizontal stride of 4, above 3"
    assert reason(ConvSpec(4, 4, (99, 99), groups=4, padding=49)) == "a kernel too large for its plane"


@pytest.mark.skipif(not host_target().has_masks, reason="chosen where loads take masks")
@pytest.mark.parametrize(
    ("size", "kernel", "stride"),
    [((112, 112), 3, 1), ((56, 56), 3, 2), ((28, 28), 5, 1), ((14, 14), 3, 1), ((8000,), 3, 1), ((4, 14, 14), 3, 1)],
)
def test_layers_between_plain_arrays_take_it(size: tuple[int, ...], kernel: int, stride: int) -> None:
    options = (("stride", stride), ("padding", kernel // 2))
    p = problem(depthwise(size, (kernel,) * len(size), options, channels=256, threads=2), host_target())
    assert algorithm_of(p) is lowering.ROW


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (3, 3, 3)])
def test_nan_and_infinity_go_where_the_sums_take_them(kernel: tuple[int, ...]) -> None:
    case = depthwise((6,) * len(kernel), kernel, (("padding", 1),), channels=2)
    inputs, constants = case.arrays()
    inputs["x"][0, 0].flat[5] = np.nan
    inputs["x"][0, 1].flat[3] = np.inf
    (y,) = case.plan(inputs, constants, host_target()).run(inputs).values()
    expected = reference.conv(inputs["x"], constants["w"], constants["b"], case.spec)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(y[np.isinf(expected)], expected[np.isinf(expected)])


def test_an_infinite_weight_meets_the_padding() -> None:
    case = depthwise((5, 5), (3, 3), (("padding", 1),))
    inputs, constants = case.arrays()
    constants["w"][1, 0, 0, 0] = np.inf
    plan = case.plan(inputs, constants, host_target())
    assert plan.tiles(planar)
    (y,) = plan.run(inputs).values()
    with np.errstate(invalid="ignore"):
        expected = reference.conv(inputs["x"], constants["w"], constants["b"], case.spec)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    assert np.isnan(y[0, 1]).any()


@pytest.mark.parametrize("seed", range(20))
def test_weights_come_back_from_their_packed_form(seed: int) -> None:
    case = random_case(seed, host_target())
    inputs, constants = case.arrays()
    kept = constants["w"].copy()
    weights = case.plan(inputs, constants, host_target()).builder.weights
    with patch.object(weights_module, "_SMALL", 0):
        weights.release()
    np.testing.assert_array_equal(weights.array("w").reshape(kept.shape), kept)


@each_target
def test_a_row_whose_taps_take_all_registers_has_no_wide_tile(target: Target) -> None:
    case = depthwise((1, 3, 19), (1, 3, 2), (("stride", (1, 1, 3)), ("padding", ((0, 0), (0, 0), (0, 1)))), channels=2)
    form = lowering.form_of(problem(case, target))
    assert form is not None
    assert form.tile.wide >= 0  # a negative step would never end
    check(case, target)
