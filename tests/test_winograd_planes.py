"""Winograd's algorithm along the rows of first layers: the weights, and the kernel against float64.

The kernel runs as a model plans it; every buffer lies beside an unreadable page, and memory that means nothing, scratch
included, is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import convwright as cw
from convwright import reference
from convwright.codegen.target import Target
from convwright.errors import ConvwrightError
from convwright.graph import Node
from convwright.kernels import winograd_planes
from convwright.kernels.cook_toom import filtering
from convwright.model.lower import conv, direct, winograd_forms
from convwright.model.lower import winograd_planes as lowering
from convwright.model.problem import Problem
from convwright.runtime.machine import caches
from convwright.spec import ConvSpec
from tests.convolutions import RESIDUAL, STEEPEST, Case, compare, random_epilogue
from tests.kernels import each_target
from tests.plans import Planned, graph_of, planned
from tests.sweeps import check_each, on_targets


@contextmanager
def tiles_of(m: int | None, strips: int = 4) -> Iterator[None]:
    """Tiles of ``m`` outputs, whatever their errors, and so many strips for each thread."""

    def forms(p: Problem) -> list[tuple[int, int, int]]:
        return [(m or 1, p.spec.kernel[-1], p.spec.stride[-1])]

    lowering.cut.cache_clear()
    chosen = patch.object(lowering, "_tiles_of", forms if m else lowering._tiles_of)
    with chosen, patch.object(lowering, "_STRIPS_A_THREAD", strips):
        yield
    lowering.cut.cache_clear()


def check(case: Case, target: Target, m: int | None = None, strips: int = 4) -> Planned:
    case = replace(case, algorithm="winograd-planes", numerics="default", inside=False)
    inputs, constants = case.arrays()
    with tiles_of(m, strips):
        plan = case.plan(inputs, constants, target)
        assert len(plan.tiles(winograd_planes)) == 1, case
        problem = next(iter(plan.builder.problems.values()))
        bound = lowering.ROW.error_bound(problem)
    results = case.run(plan, inputs)
    expected, _ = case.expected(inputs, constants)
    largest = np.abs(replace(case, epilogue=()).expected(inputs, constants)[0]).max()
    compare(results[0], expected, bound * STEEPEST * largest + 1e-6 * np.abs(expected).max(), case)
    if case.halo:
        after = ConvSpec.of_rank(case.spec.rank, case.spec.out_channels, 2, 3, padding=1, bias=False)
        wanted = reference.conv(results[0], constants["after"], None, after)
        compare(results[1], wanted, 1e-5 * np.abs(wanted).max(), case)
    return plan


@pytest.mark.parametrize("v", [4, 16])
@pytest.mark.parametrize(("out_channels", "channels"), [(1, 1), (16, 4), (17, 3)])
@pytest.mark.parametrize(("m", "high", "wide", "stride"), [(4, 3, 3, 1), (7, 7, 7, 2), (2, 1, 11, 4), (3, 5, 2, 1)])
def test_transformed_weights(
    v: int, out_channels: int, channels: int, m: int, high: int, wide: int, stride: int
) -> None:
    weight = np.random.default_rng(v).standard_normal((out_channels, channels, high, wide)).astype(np.float32)
    packed = winograd_planes.transform_weights(weight, v, m, stride)
    g = filtering(m, wide, stride).float_g()
    rows = np.zeros((-(-out_channels // v) * v, len(g), high, channels))
    rows[:out_channels] = np.einsum("nr,kchr->knhc", g, weight.astype(float))
    expected = rows.reshape(-1, v, *rows.shape[1:]).transpose(0, 2, 3, 4, 1)
    assert packed.dtype == np.float32
    np.testing.assert_allclose(packed, expected, rtol=2**-24 * 1.01, atol=1e-15)  # rounded once
    assert packed.ctypes.data % 64 == 0


def random_case(seed: int, target: Target) -> tuple[Case, int, int]:
    """The case, the outputs of its tiles and the strips of a thread."""
    rng = np.random.default_rng(seed)
    v = target.vector
    while True:
        rank = int(rng.choice([1, 2, 2, 2]))
        kernel = tuple(int(number) for number in rng.choice([1, 2, 3, 5, 7, 11], rank))
        stride = tuple(int(number) for number in rng.choice([1, 1, 2, 3, 4], rank))
        padding = tuple((int(low), int(high)) for low, high in rng.integers(0, 5, (rank, 2)))
        spec = ConvSpec(
            int(rng.integers(1, 5)), int(rng.choice([1, v - 1, v, v + 1, 2 * v + 3])), kernel, stride=stride,
            padding=padding if rng.random() < 0.7 else 0, bias=bool(rng.random() < 0.7),
        )  # fmt: skip
        size = tuple(int(number) for number in rng.choice([*range(4, 18), 33, 75, 131], rank))
        m = int(rng.integers(2, 8))
        try:
            filtering(m, kernel[-1], stride[-1])
            enough = spec.output_size(size)[-1] >= m
        except (ConvwrightError, ValueError):  # the kernel is larger than the input; no points for so many inputs
            continue
        if enough and kernel[-1] > stride[-1]:
            break
    epilogue = tuple(operation for operation in random_epilogue(rng) if operation != RESIDUAL)
    case = Case(
        spec,
        batch=int(rng.integers(1, 4)),
        size=size,
        epilogue=epilogue,
        halo=bool(rng.random() < 0.2),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        seed=seed,
    )
    return case, m, int(rng.choice([1, 2, 4, 9]))


@on_targets(30)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda drawn: check(drawn[0], target, *drawn[1:]))


@each_target
@pytest.mark.parametrize("m", [2, 7])
def test_rows_around_tiles_and_vectors_of_tiles(target: Target, m: int) -> None:
    """One tile and one output more, all tiles that are summed together and one more, a vector of tiles and one more."""
    most = lowering._most_tiles(target)
    for tiles in (1, most, target.vector):
        for out in (tiles * m - 1, tiles * m, tiles * m + 1):
            if out >= m:
                check(Case(ConvSpec(3, 5, (3, 3), stride=2), 1, (9, 2 * out + 1), threads=2), target, m)


@each_target
@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec(3, 96, (7, 7), stride=2),
        ConvSpec(3, 64, (11, 11), stride=4, padding=2),
        ConvSpec(3, 64, (5, 5), stride=2, padding=2),
    ],
)
def test_first_layers_of_networks(target: Target, spec: ConvSpec) -> None:
    """They are chosen without being named, and read the graph's input where it lies."""
    assert conv.algorithm_of(problem_of(spec, (224, 224), target, "auto")) is lowering.ROW
    assert conv.algorithm_of(problem_of(spec, (224, 224), target, "auto", numerics="strict")) is direct.ROW
    plan = check(Case(spec, 1, (64, 70), (("relu",),), halo=True, threads=2), target)
    assert not [step.name for step in plan.steps if step.name in ("pad", "pack")]


@each_target
def test_parts_of_a_concatenation(target: Target) -> None:
    v, rng = target.vector, np.random.default_rng(3)
    inputs = {"x": rng.standard_normal((2, 3, 17, 21)).astype(np.float32)}
    constants = {f"w{i}": rng.standard_normal((k, 3, 5, 5)).astype(np.float32) for i, k in enumerate((2 * v, v, 5))}
    attributes = {"kernel_shape": (5, 5), "pads": (2, 2, 2, 2), "strides": (2, 1), "algorithm": "winograd-planes"}
    nodes = [Node("Conv", ["x", f"w{i}"], [f"y{i}"], dict(attributes)) for i in range(3)]
    nodes.append(Node("Concat", ["y0", "y1", "y2"], ["y"], {"axis": 1}))
    plan = planned(graph_of(nodes, inputs, ["y"], constants), target, 2, numerics="default")
    expected = np.concatenate([
        reference.conv(inputs["x"], w, None, ConvSpec(3, len(w), (5, 5), stride=(2, 1), padding=2, bias=False))
        for w in constants.values()
    ], axis=1)  # fmt: skip
    assert len(plan.tiles(winograd_planes)) == 3
    compare(plan.run(inputs)["y"], expected, 6e-6 * np.abs(expected).max(), "concatenation")


@each_target
def test_every_strip_gives_the_same_result(target: Target) -> None:
    case = Case(
        ConvSpec(3, 20, (7, 5), stride=(2, 1), padding=(3, 2)), 2, (31, 23), (("relu",),), inside=False, threads=3,
        numerics="default", algorithm="winograd-planes",
    )  # fmt: skip
    inputs, constants = case.arrays()
    results, counts = [], set()
    for strips in (1, 2, 5, 20):
        with tiles_of(4, strips):
            plan = case.plan(inputs, constants, target)
        counts.add(next(step for step in plan.steps if step.family is winograd_planes).items)
        results.append(case.run(plan, inputs)[0])
    assert len(counts) == 4
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@each_target
def test_strips_fit_the_cache(target: Target) -> None:
    problem = problem_of(ConvSpec(3, 64, (7, 7), stride=2, padding=3), (1024, 2048), target)
    c = lowering.cut(problem)
    assert 4 * c.room.total <= caches().l2 // 2 or c.strip == 1
    assert (c.strips - 1) * c.strip < 512 <= c.strips * c.strip


def problem_of(
    spec: ConvSpec, size: tuple[int, ...], target: Target, algorithm: str = "winograd-planes", **options: Any
) -> Problem:
    options = {"plain_input": True, **options}
    return Problem(spec, size, 1, np.dtype(np.float32), target, 2, algorithm=algorithm, **options)


FIRST = ConvSpec(3, 64, (7, 7), stride=2, padding=3)


@each_target
@pytest.mark.parametrize(
    ("spec", "options", "reason"),
    [
        (FIRST, {"numerics": "strict"}, "numerics is strict"),
        (FIRST, {"plain_input": False}, "an input of the graph"),
        (FIRST, {"residual": True}, "adds no residual"),
        (ConvSpec(8, 64, (7, 7), stride=2), {}, "at most 4 channels that are an input of the graph, not 8"),
        (ConvSpec(4, 64, (7, 7), stride=2, groups=2), {}, "groups 2"),
        (ConvSpec(3, 64, (7, 7), stride=2, dilation=2), {}, r"dilation \(2, 2\)"),
        (ConvSpec(3, 64, (7, 3), stride=3), {}, "no tile saves"),
        (ConvSpec(3, 64, (7, 33), stride=2), {}, "no tile saves"),
        (ConvSpec(3, 64, (3, 3, 3)), {}, "not 3"),
        (ConvSpec(3, 64, (7, 7), padding=3, padding_mode="reflect"), {}, "'reflect'"),
        (ConvSpec(3, 64, (7, 7), transposed=True), {}, "transposed"),
    ],
)
def test_what_it_cannot_do_has_a_reason(target: Target, spec: ConvSpec, options: dict[str, Any], reason: str) -> None:
    size = (40, 40, 40)[: spec.rank]
    with pytest.raises(ConvwrightError, match=reason):
        conv.algorithm_of(problem_of(spec, size, target, **options))


@each_target
def test_other_tiles_that_are_named_are_not_its_own(target: Target) -> None:
    assert conv.algorithm_of(problem_of(FIRST, (224, 224), target, "winograd")) is lowering.ROW
    assert conv.algorithm_of(problem_of(FIRST, (224, 224), target, "winograd-2x2")) is not lowering.ROW


@each_target
def test_figures_of_the_row(target: Target) -> None:
    problem = problem_of(FIRST, (224, 224), target)
    m = lowering.cut(problem).tile.m
    places = len(filtering(m, 7, 2).g)
    assert lowering.ROW.multiplications(problem) == 112 * -(-112 // m) * places * 21 * 64 < problem.macs / 2
    assert direct.error_of_sum(problem) < lowering.ROW.error_bound(problem) <= winograd_forms.ERROR
    assert lowering.ROW.workspace(problem) > 0
    small = problem_of(ConvSpec(3, 32, (3, 3), stride=2, padding=1), (224, 224), target, "auto")
    assert conv.algorithm_of(small) is direct.ROW  # 9 multiplications for 12 do not pay for transforms


def test_threads_at_the_same_time() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 61, 75)).astype(np.float32)
    w, b = rng.standard_normal((40, 3, 7, 7)).astype(np.float32), rng.standard_normal(40).astype(np.float32)
    spec = ConvSpec(3, 40, (7, 7), stride=2, padding=3)
    expected = reference.conv(x, w, b, spec)
    for _ in range(10):
        y = cw.conv(x, w, b, stride=2, padding=3, algorithm="winograd-planes")
        compare(y, expected, 6e-6 * np.abs(expected).max(), "threads")


@each_target
def test_nan_and_infinity_stay_in_their_tiles(target: Target) -> None:
    """They reach every output of a direct sum that they reach there, and further ones of the same tile alone."""
    case = Case(
        ConvSpec(3, 5, (3, 5), stride=(2, 2), padding=(1, 2)), 2, (11, 33), inside=False, numerics="default",
        algorithm="winograd-planes", threads=2,
    )  # fmt: skip
    inputs, constants = case.arrays()
    with tiles_of(4):
        plan = case.plan(inputs, constants, target)
    clean = case.run(plan, inputs)[0]
    for number, (row, col) in enumerate([(0, 0), (10, 32), (5, 16), (4, 7), (3, 31)]):
        x = inputs["x"].copy()
        x[number % 2, number % 3, row, col] = (np.nan, np.inf, -np.inf)[number % 3]
        y, (direct_sum, _) = case.run(plan, {"x": x})[0], case.expected({"x": x}, constants)
        lost, needed = ~np.isfinite(y), ~np.isfinite(direct_sum)
        assert lost[needed].all()
        tiles = np.pad(needed, [(0, 0)] * 3 + [(0, -y.shape[3] % 4)]).reshape(*y.shape[:3], -1, 4).any(-1)
        reach = [start <= col + 2 < start + 11 for start in range(0, tiles.shape[3] * 8, 8)]
        rows = needed.any((0, 1, 3))
        assert not lost[1 - number % 2].any()
        assert not lost[:, :, ~rows].any()
        assert not lost[..., ~np.repeat(reach, 4)[: y.shape[3]]].any()
        np.testing.assert_array_equal(y[~lost], clean[~lost])
