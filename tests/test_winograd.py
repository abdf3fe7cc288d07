"""Winograd convolutions F(4 x 4, 3 x 3): the exact construction, the weights, and the kernel against float64.

The kernel runs as a model plans it with ``numerics="default"``, but wherever it applies instead of where it is faster;
every buffer lies beside an unreadable page, and memory that means nothing, scratch included, is NaN.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

import convwright as cw
from convwright import reference
from convwright.codegen.target import Target
from convwright.graph import Node
from convwright.kernels import direct, planar, winograd
from convwright.kernels.cook_toom import POINTS, Matrix, filtering
from convwright.model.builder import Step
from convwright.model.lower import winograd as lowering
from convwright.model.problem import Problem
from convwright.spec import ConvSpec
from tests.convolutions import RESIDUAL, STEEPEST, Case, Random, compare, random_epilogue
from tests.kernels import each_target
from tests.plans import Planned, graph_of, planned

# Of the convolution's largest value. Measured on normal random numbers: 1.8e-6 is the worst of 720 cases of up to 37
# channels; of 24 cases each, half without negative inputs, 1.4e-6 at 64 channels, 3.6e-6 at 128, 3.1e-6 at 256, 4.7e-6
# at 512.
BOUND = 5e-6


@contextmanager
def wherever_it_applies(group_bytes: int | None = None) -> Iterator[None]:
    """Winograd for every layer that it can compute; its groups of tiles as small as ``group_bytes`` makes them."""
    with (
        patch.object(lowering, "WORTH", 1e9),
        patch.object(lowering, "_GROUP_BYTES", group_bytes or lowering._GROUP_BYTES),
    ):
        yield


def planned_case(case: Case, target: Target, group_bytes: int | None = None) -> tuple[Planned, Any, Any]:
    """The plan, in which the convolution is Winograd's, with its inputs and constants."""
    inputs, constants = case.arrays()
    with wherever_it_applies(group_bytes):
        plan = replace(case, numerics="default").plan(inputs, constants, target)
    assert len(plan.tiles(winograd)) == 1 + case.halo, case
    assert not plan.tiles(direct)
    return plan, inputs, constants


def check(case: Case, target: Target, group_bytes: int | None = None) -> Planned:
    plan, inputs, constants = planned_case(case, target, group_bytes)
    results = case.run(plan, inputs)
    expected, _ = case.expected(inputs, constants)
    largest = np.abs(replace(case, epilogue=()).expected(inputs, constants)[0]).max()
    compare(results[0], expected, BOUND * STEEPEST * largest + 1e-6 * np.abs(expected).max(), case)
    if case.halo:
        after = ConvSpec(case.spec.out_channels, 2, (3, 3), padding=1, bias=False)
        wanted = reference.conv(results[0], constants["after"], None, after)
        compare(results[1], wanted, BOUND * np.abs(wanted).max(), case)
    return plan


def step_of(plan: Planned) -> Step:
    """The first Winograd step."""
    return next(step for step in plan.steps if step.family is winograd)


# -- the construction --------------------------------------------------------------------------------------------------

THIRDS = tuple(Fraction(*pair) for pair in ((0, 1), (1, 3), (-1, 3), (2, 1), (-5, 2), (7, 4)))
ALGORITHMS: list[tuple[int, int, tuple[Fraction, ...] | None]] = [
    (4, 3, None), (2, 3, None), (3, 2, None), (2, 5, None), (1, 4, None), (5, 2, None), (3, 4, None),
    (2, 2, THIRDS[:2]), (3, 3, THIRDS[1:5]), (4, 3, THIRDS[:5]), (4, 4, THIRDS), (6, 2, THIRDS), (1, 1, ()),
    (4, 3, tuple(map(Fraction, (0, 1, -1, 2, -2)))),
]  # fmt: skip


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize(("m", "r", "points"), ALGORITHMS)
def test_filtering_is_correlation_exactly(m: int, r: int, points: tuple[Fraction, ...] | None) -> None:
    made = filtering(m, r, points)
    rng = np.random.default_rng(m * 10 + r)
    n = m + r - 1
    sizes = [(len(matrix), {len(row) for row in matrix}) for matrix in (made.at, made.g, made.bt)]
    assert sizes == [(m, {n}), (n, {r}), (n, {n})]
    for _ in range(5):
        d, g = ([Fraction(int(number)) for number in rng.integers(-99, 100, size)] for size in (n, r))
        products = [a * b for a, b in zip(times(made.g, g), times(made.bt, d), strict=True)]
        assert times(made.at, products) == [sum(d[i + tap] * g[tap] for tap in range(r)) for i in range(m)]


@pytest.mark.parametrize(("m", "r", "points"), ALGORITHMS)
def test_transformed_inputs_keep_their_size(m: int, r: int, points: tuple[Fraction, ...] | None) -> None:
    for row in filtering(m, r, points).bt:
        assert 0.7 < float(sum(entry**2 for entry in row)) ** 0.5 < 1.42


@pytest.mark.parametrize(
    ("m", "r", "points"),
    [(4, 3, (0, 1, -1, 2)), (4, 3, (0, 1, -1, 2, -2, 3)), (4, 3, (0, 1, -1, 2, 1)), (2, 3, ()), (3, 3, None)],
)
def test_wrong_points_are_named(m: int, r: int, points: tuple[int, ...] | None) -> None:
    wanted = None if points is None else tuple(map(Fraction, points))
    named = re.escape(f"F({m}, {r}) needs {m + r - 2} different points, got {[str(point) for point in points or ()]}")
    with pytest.raises(ValueError, match=named):
        filtering(m, r, wanted)


def test_default_points_are_exact_in_binary() -> None:
    assert set(map(len, POINTS.values())) == set(POINTS)
    made = filtering(winograd.OUTPUT, winograd.TAPS)
    for row in (*made.at, *made.bt):
        assert all(Fraction(float(np.float32(float(entry)))) == entry for entry in row)


# -- the weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [4, 8, 16])
@pytest.mark.parametrize(("out_channels", "channels"), [(1, 1), (3, 5), (16, 4), (17, 3), (35, 20)])
def test_transformed_weights(v: int, out_channels: int, channels: int) -> None:
    weight = np.random.default_rng(v).standard_normal((out_channels, channels, 3, 3)).astype(np.float32)
    packed = winograd.transform_weights(weight, v)
    g = filtering(4, 3).float_g()
    rows = np.zeros((-(-out_channels // v) * v, 36, channels))
    rows[:out_channels] = np.einsum("ai,kcij,bj->kabc", g, weight.astype(float), g).reshape(out_channels, 36, -1)
    expected = rows.reshape(-1, v, 36, channels).transpose(0, 2, 3, 1)
    assert packed.dtype == np.float32
    assert packed.shape == expected.shape
    np.testing.assert_allclose(packed, expected, rtol=2**-24 * 1.01, atol=1e-15)  # rounded once
    assert not packed[-1, :, :, out_channels - (len(packed) - 1) * v :].any()


# -- the kernel --------------------------------------------------------------------------------------------------------

PADDINGS: list[Any] = [0, 1, 1, 1, 2, ((0, 1), (2, 0)), ((2, 1), (0, 0)), ((1, 0), (1, 3))]


def random_case(seed: int, target: Target) -> Case:
    rng = np.random.default_rng(seed)
    v = target.vector
    channels, out_channels = (int(number) for number in rng.choice([1, 3, v - 1, v, v + 1, 20, 37, 2 * v + 3], 2))
    spec = ConvSpec(
        channels, out_channels, (3, 3), padding=PADDINGS[rng.integers(len(PADDINGS))], bias=bool(rng.random() < 0.7)
    )
    while True:
        size = tuple(int(number) for number in rng.choice([*range(4, 18), 33], 2))
        if min(spec.output_size(size)) >= winograd.OUTPUT:
            break
    return Case(
        spec,
        batch=int(rng.integers(1, 4)),
        size=size,
        epilogue=random_epilogue(rng),
        inside=channels <= 4 or bool(rng.random() < 0.6),
        halo=bool(rng.random() < 0.2),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        seed=seed,
    )


def random_group_bytes(case: Case, target: Target, rng: Random) -> int | None:
    """Usually room for a few tiles only, so that there are several groups."""
    a_tile = 4 * winograd.PLACES * target.vector * -(-case.spec.in_channels // target.vector)
    return a_tile * int(rng.integers(1, 12)) if rng.random() < 0.6 else None


@each_target
@pytest.mark.parametrize("start", range(0, 24, 8))
def test_random_convolutions(target: Target, start: int) -> None:
    for seed in range(start, start + 8):
        case = random_case(seed, target)
        check(case, target, random_group_bytes(case, target, np.random.default_rng(seed)))


@pytest.mark.long
@each_target
@pytest.mark.parametrize("start", range(1000, 1300, 50))
def test_many_random_convolutions(target: Target, start: int) -> None:
    for seed in range(start, start + 50):
        case = random_case(seed, target)
        check(case, target, random_group_bytes(case, target, np.random.default_rng(seed)))


@each_target
def test_sizes_around_the_tile(target: Target) -> None:
    v = target.vector
    for number, (high, wide) in enumerate([(4, 4), (5, 4), (4, 7), (6, 8), (9, 5), (12, 12), (13, 16), (4, 33)]):
        spec = ConvSpec(v + 1, 2 * v - 1, (3, 3), padding=1)
        check(Case(spec, 1 + number % 3, (high, wide), threads=2, at_end=number % 2 == 0), target, 1)


@each_target
def test_long_sums_stay_inside_the_bound(target: Target) -> None:
    for channels in (128, 300):
        check(Case(ConvSpec(channels, 5, (3, 3), padding=1), 1, (8, 9)), target)


@each_target
def test_parts_of_a_concatenation(target: Target) -> None:
    v = target.vector
    rng = np.random.default_rng(3)
    channels = (2 * v, v, 5)
    inputs = {"x": rng.standard_normal((2, v + 1, 9, 6)).astype(np.float32)}
    constants = {f"w{i}": rng.standard_normal((k, v + 1, 3, 3)).astype(np.float32) for i, k in enumerate(channels)}
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    nodes = [Node("Conv", ["x", f"w{i}"], [f"y{i}"], dict(attributes)) for i in range(3)]
    nodes.append(Node("Concat", ["y0", "y1", "y2"], ["y"], {"axis": 1}))
    with wherever_it_applies(1):
        plan = planned(graph_of(nodes, inputs, ["y"], constants), target, 2, numerics="default")
    assert len(plan.tiles(winograd)) == 3
    expected = np.concatenate([
        reference.conv(inputs["x"], constants[f"w{i}"], None, ConvSpec(v + 1, k, (3, 3), padding=1, bias=False))
        for i, k in enumerate(channels)
    ], axis=1)  # fmt: skip
    compare(plan.run(inputs)["y"], expected, BOUND * np.abs(expected).max(), "concatenation")


# -- how the work is cut -----------------------------------------------------------------------------------------------

# Tiles and vectors of a register tile, tiles of a group, parts of the output vectors; the output has 15 tiles and 3
# vectors: groups that divide and that do not, a register tile larger than what is left, more parts than vectors.
CUTS = [
    (1, 1, 1, 1), (1, 1, 15, 3), (3, 2, 4, 1), (3, 2, 4, 2), (3, 2, 15, 1), (3, 2, 7, 3), (3, 2, 3, 5), (1, 1, 14, 2),
]  # fmt: skip


@each_target
@pytest.mark.parametrize("threads", [1, 3])
def test_every_cut_gives_the_same_result(target: Target, threads: int) -> None:
    v = target.vector
    case = Case(ConvSpec(v + 3, 2 * v + 3, (3, 3), padding=1), 2, (18, 11), (RESIDUAL,), threads=threads)
    for number, (tiles, outs, group, parts) in enumerate(CUTS):
        made = lowering.Cut(tiles, outs, group, -(-15 // group), parts, 0.0)
        with patch.object(lowering, "cut", lambda *_, made=made: made):
            plan = check(replace(case, at_end=number % 2 == 0), target)
        assert plan.tiles(winograd) == [winograd.WinogradTile(tiles, outs, (RESIDUAL,))]
        assert step_of(plan).arguments["tiles"] == 15
        assert step_of(plan).items == 2 * -(-15 // group) * parts


@each_target
def test_small_caches_give_many_groups(target: Target) -> None:
    a_tile = 4 * winograd.PLACES * target.vector * 2
    case = Case(ConvSpec(target.vector + 1, 5, (3, 3), padding=1), 1, (14, 17))  # 4 x 5 tiles
    for fits, groups in ((1, 20), (3, 7), (7, 3), (19, 2), (20, 1)):
        step = step_of(check(case, target, fits * a_tile))
        assert step.arguments["groups"] == groups
        assert step.arguments["group"] == -(-20 // groups)


@each_target
def test_cuts_cover_the_output_and_fit_the_cache(target: Target) -> None:
    sizes = [(4, 4), (5, 9), (7, 7), (13, 64), (56, 56)]
    for (high, wide), (c, k), threads, images in itertools.product(
        sizes, [(1, 1), (3, 37), (64, 64), (512, 300)], (1, 2, 5), (1, 3)
    ):
        spec = ConvSpec(c, k, (3, 3), padding=1)
        cut = lowering.cut(Problem(spec, (high, wide), images, np.dtype(np.float32), target, threads))
        tiles = -(-high // 4) * -(-wide // 4)
        assert cut.group * (cut.groups - 1) < tiles <= cut.group * cut.groups
        assert 1 <= cut.tiles <= cut.group
        assert 1 <= cut.outs <= -(-k // target.vector)
        assert cut.parts <= threads
        transformed = 4 * winograd.scratch_floats(cut.group, -(-c // target.vector), 0, target.vector)
        assert transformed <= lowering._GROUP_BYTES or cut.group == 1


@each_target
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_each_thread_has_its_own_scratch(target: Target, batch: int) -> None:
    case = Case(ConvSpec(3, target.vector, (3, 3)), batch, (6, 6), threads=3)  # one item an image
    plan, inputs, _ = planned_case(case, target)
    case.run(plan, inputs)
    step = step_of(plan)
    assert step.items == batch
    memory = plan.memory[id(step.arguments["scratch"].buffer)].view(np.float32).reshape(3, -1)
    assert memory.shape[1] == winograd.scratch_floats(1, 1, 1, target.vector) == step.arguments["scratch_thread"]
    bounds = np.linspace(0, batch, 4).astype(int)
    for thread, own in enumerate(memory):
        works = bounds[thread + 1] > bounds[thread]
        assert np.isfinite(own).any() == works, f"thread {thread}"


def test_threads_at_the_same_time() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 48, 26, 27)).astype(np.float32)
    w = (rng.standard_normal((48, 48, 3, 3)) / 20).astype(np.float32)
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    nodes = [Node("Conv", [f"x{i}", "w"], [f"x{i + 1}"], dict(attributes)) for i in range(3)]
    graph = graph_of(nodes, {"x0": x}, ["x3"], {"w": w})
    with wherever_it_applies():
        model = cw.compile(graph, threads=2)
        model(x)
    expected: NDArray[Any] = x
    for _ in range(3):
        expected = reference.conv(expected, w, None, ConvSpec(48, 48, (3, 3), padding=1, bias=False))
    for _ in range(20):
        compare(model(x), expected, 3 * BOUND * np.abs(expected).max(), "two threads")


# -- where it applies, and what it does to NaN -------------------------------------------------------------------------


@each_target
def test_strict_numerics_never_use_it(target: Target) -> None:
    case = Case(ConvSpec(64, 64, (3, 3), padding=1), 1, (28, 28), numerics="strict")
    inputs, constants = case.arrays()
    with wherever_it_applies():
        assert case.plan(inputs, constants, target).tiles(winograd) == []
        assert len(replace(case, numerics="default").plan(inputs, constants, target).tiles(winograd)) == 1


def test_strict_models_send_nan_where_the_reference_does() -> None:
    case = Case(ConvSpec(20, 17, (3, 3), padding=1), 1, (12, 12))
    inputs, constants = case.arrays()
    inputs["x"][0, 3, 5, 6] = np.nan
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    graph = graph_of([Node("Conv", ["x", "w", "b"], ["y"], attributes)], inputs, ["y"], constants)
    with wherever_it_applies():
        spread = np.isnan(cw.compile(graph, threads=1)(inputs["x"])).sum()
        strict = cw.compile(graph, threads=1, numerics="strict")(inputs["x"])
    expected, bound = case.expected(inputs, constants)
    compare(strict, expected, bound, case)
    assert np.isnan(strict).sum() == 17 * 9 < spread


@each_target
@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (ConvSpec(20, 20, (5, 5), padding=2), (12, 12)),
        (ConvSpec(20, 20, (3, 1), padding=((1, 1), (0, 0))), (12, 12)),
        (ConvSpec(20, 20, (3, 3), stride=2, padding=1), (12, 12)),
        (ConvSpec(20, 20, (3, 3), dilation=2, padding=2), (12, 12)),
        (ConvSpec(20, 20, (3, 3), groups=2, padding=1), (12, 12)),
        (ConvSpec(20, 20, (3, 3)), (5, 12)),
        (ConvSpec(20, 20, (3, 3)), (12, 5)),
        (ConvSpec(20, 20, (3,), padding=1), (12,)),
    ],
)
def test_other_layers_are_summed_directly(target: Target, spec: ConvSpec, size: tuple[int, ...]) -> None:
    case = Case(spec, 1, size, numerics="default")
    with wherever_it_applies():
        plan = case.plan(*case.arrays(), target)
    assert not plan.tiles(winograd)
    assert len(plan.tiles(direct)) + len(plan.tiles(planar)) == 1


def pixels_of_tiles(spec: ConvSpec, size: tuple[int, ...], pixel: tuple[int, int]) -> NDArray[np.bool_]:
    """The outputs of the 4 x 4 tiles that read the input pixel; the last tile of a row or column is moved inside."""
    axes = []
    for at, out, (before, _) in zip(pixel, spec.output_size(size), spec.pads(size), strict=True):
        starts = {min(start, out - 4) for start in range(0, out, 4)}
        reached = [start for start in starts if start <= at + before < start + 6]
        axes.append(np.isin(np.arange(out), [start + i for start in reached for i in range(4)]))
    return np.logical_and.outer(*axes)


@each_target
@pytest.mark.parametrize("group_bytes", [None, 1])
def test_nan_and_infinity_reach_every_output_that_sums_them_and_stay_in_their_tiles(
    target: Target, group_bytes: int | None
) -> None:
    """A tile's inputs are mixed before they are multiplied: NaN reaches outputs of the tile that a direct sum keeps
    finite, and an infinity becomes NaN. Where that matters there is numerics="strict"."""
    v = target.vector
    case = Case(ConvSpec(v + 1, v + 3, (3, 3), padding=((1, 1), (2, 0))), 2, (10, 13), threads=2)
    plan, inputs, constants = planned_case(case, target, group_bytes)
    clean, _ = case.expected(inputs, constants)
    rng = np.random.default_rng(5)
    pixels = [(0, 0), (9, 12), (5, 5), *((int(rng.integers(10)), int(rng.integers(13))) for _ in range(9))]
    for number, (row, col) in enumerate(pixels):
        x = inputs["x"].copy()
        image, channel = number % 2, int(rng.integers(v + 1))
        x[image, channel, row, col] = (np.nan, np.inf, -np.inf)[number % 3]
        y = case.run(plan, {"x": x})[0]
        direct_sum, _ = case.expected({"x": x}, constants)
        lost = ~np.isfinite(y)
        reachable = pixels_of_tiles(case.spec, case.size, (row, col))
        assert not lost[1 - image].any()
        assert not lost[image][:, ~reachable].any(), (row, col)
        assert lost[~np.isfinite(direct_sum)].all(), (row, col)
        assert np.abs(y - clean)[~lost].max() <= BOUND * np.abs(clean).max()


@each_target
def test_nan_of_the_residual_and_of_the_weights(target: Target) -> None:
    v = target.vector
    case = Case(ConvSpec(v + 1, 2 * v + 3, (3, 3), padding=1), 2, (7, 9), (RESIDUAL, ("relu",)), threads=2)
    inputs, constants = case.arrays()
    inputs["r"][1, v, 3, 8] = np.nan
    constants["w"][v + 2, 1, 0, 2] = np.nan
    with wherever_it_applies():
        plan = replace(case, numerics="default").plan(inputs, constants, target)
    lost = np.isnan(case.run(plan, inputs)[0])
    assert lost[:, v + 2].all()
    assert lost[1, v, 3, 8]
    assert lost.sum() == 2 * 7 * 9 + 1
