"""Winograd convolutions: the weights, and the kernel against float64.

The kernel runs as a model plans it; every buffer lies beside an unreadable page, and memory that means nothing, scratch
included, is NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

import convwright as cw
from convwright import reference
from convwright.codegen.target import Target, target_named
from convwright.errors import ConvwrightError
from convwright.graph import Node
from convwright.kernels import winograd
from convwright.kernels.cook_toom import filtering
from convwright.model.builder import Step
from convwright.model.lower import conv, direct, winograd_cut, winograd_forms, winograd_pairs
from convwright.model.lower import winograd as lowering
from convwright.model.problem import Problem
from convwright.runtime.machine import caches
from convwright.spec import ConvSpec
from tests.convolutions import RESIDUAL, STEEPEST, Case, Random, compare, random_epilogue
from tests.kernels import each_target
from tests.plans import Planned, graph_of, planned
from tests.sweeps import check_each, on_targets

F4 = (4, 3)
PLACES = 36


@contextmanager
def room_for(strip_bytes: int | None) -> Iterator[None]:
    """Strips of tiles as small as ``strip_bytes`` makes them."""
    caches: tuple[Any, ...] = (winograd_cut.cut, winograd_forms.forms_of, conv._row_of)
    for one in caches:
        one.cache_clear()
    with patch.object(winograd_cut, "strip_bytes", lambda: strip_bytes or 512 * 1024):
        yield
    for one in caches:
        one.cache_clear()


def planned_case(case: Case, target: Target, strip_bytes: int | None = None) -> tuple[Planned, Any, Any]:
    """The plan, in which the convolution is Winograd's, with its inputs and constants."""
    inputs, constants = case.arrays()
    with room_for(strip_bytes):
        plan = replace(case, numerics="default").plan(inputs, constants, target)
    assert plan.tiles(winograd), case
    return plan, inputs, constants


def check(case: Case, target: Target, strip_bytes: int | None = None) -> Planned:
    """The case by Winograd F(4 x 4, 3 x 3), if it names nothing else."""
    if not case.algorithm:
        case = replace(case, algorithm="winograd-4x4")
    plan, inputs, constants = planned_case(case, target, strip_bytes)
    results = case.run(plan, inputs)
    problem = next(iter(plan.builder.problems.values()))
    expected, _ = case.expected(inputs, constants)
    largest = np.abs(replace(case, epilogue=()).expected(inputs, constants)[0]).max()
    bound = conv.algorithm_of(problem).error_bound(problem)
    compare(results[0], expected, bound * STEEPEST * largest + 1e-6 * np.abs(expected).max(), case)
    if case.halo:
        after = ConvSpec.of_rank(case.spec.rank, case.spec.out_channels, 2, 3, padding=1, bias=False)
        wanted = reference.conv(results[0], constants["after"], None, after)
        compare(results[1], wanted, 1e-5 * np.abs(wanted).max(), case)
    return plan


def step_of(plan: Planned) -> Step:
    """The first Winograd step."""
    return next(step for step in plan.steps if step.family is winograd)


# -- the weights -------------------------------------------------------------------------------------------------------


@each_target
@pytest.mark.parametrize(("out_channels", "channels"), [(1, 1), (16, 4), (17, 3), (35, 20)])
@pytest.mark.parametrize(
    ("high", "wide", "taps"), [((4, 3), (4, 3), 1), ((1, 1), (4, 7), 1), ((2, 5), (3, 2), 1), ((2, 3), (4, 3), 3)]
)
def test_transformed_weights(
    target: Target, out_channels: int, channels: int, high: winograd.Axis, wide: winograd.Axis, taps: int
) -> None:
    v = target.vector
    shape = (out_channels, channels, taps, high[1], wide[1])
    weight = np.random.default_rng(v).standard_normal(shape).astype(np.float32)
    form = winograd_forms.Form(high, wide, (1, 1), (8, 8), taps)
    packed = lowering.transform(weight, form, target, 2)
    places = winograd.places_of(high, wide)
    g_high, g_wide = filtering(*high).float_g(), filtering(*wide).float_g()
    rows = np.zeros((-(-out_channels // v) * v, places, taps, channels))
    spread = np.einsum("ai,kctij,bj->kabtc", g_high, weight.astype(float), g_wide)
    rows[:out_channels] = spread.reshape(out_channels, places, taps, channels)
    expected = rows.reshape(-1, v, places, taps, channels).transpose(0, 2, 3, 4, 1)
    assert packed.dtype == np.float32
    assert packed.shape == expected.shape
    np.testing.assert_allclose(packed, expected, rtol=2**-24 * 1.01, atol=1e-15)  # rounded once
    assert not packed[-1, ..., out_channels - (len(packed) - 1) * v :].any()


# -- the kernel --------------------------------------------------------------------------------------------------------

PADDINGS: list[Any] = [0, 1, 1, 1, 2, ((0, 1), (2, 0)), ((2, 1), (0, 0)), ((1, 0), (1, 3))]


def random_case(seed: int, target: Target) -> Case:
    """A third of the cases are F(4 x 4, 3 x 3), the others any kernel that is not one pixel, stride and dilation, of
    one to three axes, some in groups that fill vectors."""
    rng = np.random.default_rng(seed)
    v = target.vector
    channels, out_channels = (int(number) for number in rng.choice([1, 3, v - 1, v, v + 1, 20, 37, 2 * v + 3], 2))
    rank = int(rng.choice([1, 2, 2, 2, 3])) if seed % 3 else 2
    groups = 1
    if seed % 3 and rng.random() < 0.15:
        groups, channels, out_channels = 2, *(2 * v * int(number) for number in rng.integers(1, 3, 2))
    bias = bool(rng.random() < 0.7)
    while True:
        m = tuple(int(number) for number in rng.integers(1, 6, min(rank, 2)))
        if seed % 3:
            padding = tuple((int(low), int(high)) for low, high in rng.integers(0, 4, (rank, 2)))
            kernel, dilation, stride = (
                tuple(int(n) for n in rng.choice(choice, rank)) for choice in ((1, 2, 3, 5), (1, 1, 2, 3), (1, 1, 2, 3))
            )
            spec = ConvSpec(
                channels, out_channels, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
                bias=bias,
            )  # fmt: skip
        else:
            spec = ConvSpec(channels, out_channels, (3, 3), padding=PADDINGS[rng.integers(len(PADDINGS))], bias=bias)
            m = (4, 4)
        size = tuple(int(number) for number in rng.choice([*range(4, 18), 33] if rank < 3 else range(2, 12), rank))
        algorithm = f"winograd-{'x'.join(map(str, m))}"
        try:
            problem = Problem(spec, size, 1, np.dtype(np.float32), target, 1, algorithm=algorithm)
            if lowering.why_not(problem) is None:
                break
        except ConvwrightError:  # the kernel is larger than the input
            continue
    epilogue = random_epilogue(rng)
    if rank == 3:
        epilogue = tuple(operation for operation in epilogue if operation != RESIDUAL)
    return Case(
        spec,
        batch=int(rng.integers(1, 4)),
        size=size,
        epilogue=epilogue,
        inside=channels <= 4 or bool(rng.random() < 0.6),
        halo=rank < 3 and bool(rng.random() < 0.2),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        algorithm=algorithm,
        seed=seed,
    )


def random_strip_bytes(case: Case, target: Target, rng: Random) -> int | None:
    """Usually room for a few tiles only, so that there are several strips."""
    a_tile = 4 * PLACES * target.vector * -(-case.spec.in_channels // target.vector)
    return a_tile * int(rng.integers(1, 12)) if rng.random() < 0.6 else None


def check_random(case: Case, target: Target) -> None:
    check(case, target, random_strip_bytes(case, target, np.random.default_rng(case.seed)))


@on_targets(40)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: check_random(case, target))


@each_target
def test_sizes_around_the_tile(target: Target) -> None:
    v = target.vector
    for number, (high, wide) in enumerate([(4, 4), (5, 4), (4, 7), (6, 8), (9, 5), (12, 12), (13, 16), (4, 33)]):
        spec = ConvSpec(v + 1, 2 * v - 1, (3, 3), padding=1)
        check(Case(spec, 1 + number % 3, (high, wide), threads=2, at_end=number % 2 == 0), target, 1)


KINDS: list[tuple[ConvSpec, tuple[int, ...], str]] = [
    (ConvSpec(20, 17, (3, 3), padding=1), (13, 8), "6x6"),
    (ConvSpec(20, 17, (3, 3), padding=1), (13, 8), "2x4"),
    (ConvSpec(20, 17, (3, 3), padding=1), (13, 8), "1x4"),
    (ConvSpec(20, 17, (3, 3), padding=1), (13, 8), "4x1"),
    (ConvSpec(20, 17, (3, 3), padding=2, dilation=2), (13, 17), "4x4"),
    (ConvSpec(20, 17, (3, 3), padding=(4, 1), dilation=(4, 1)), (13, 9), "2x4"),
    (ConvSpec(20, 17, (3, 3), padding=2, dilation=(2, 3)), (9, 9), "1x2"),
    (ConvSpec(20, 17, (3, 2), padding=2, dilation=(3, 2)), (9, 9), "2x1"),
    (ConvSpec(20, 17, (3, 3), padding=4, dilation=4), (10, 7), "3x2"),
    (ConvSpec(20, 17, (3, 3), padding=((6, 6), (0, 12)), dilation=6), (8, 9), "2x2"),
    (ConvSpec(20, 17, (1, 7), padding=((0, 0), (3, 3))), (7, 17), "1x4"),
    (ConvSpec(20, 17, (1, 7), padding=((1, 0), (3, 3))), (7, 17), "6"),
    (ConvSpec(20, 17, (7, 1), padding=((3, 3), (0, 0))), (17, 7), "4"),
    (ConvSpec(20, 17, (5, 5), padding=2), (9, 13), "4x4"),
    (ConvSpec(20, 17, (5, 5), padding=(2, 4), dilation=(1, 2)), (9, 13), "2x2"),
    (ConvSpec(20, 17, (5,), padding=2), (31,), "4"),
    (ConvSpec(20, 17, (3,), padding=3, dilation=3), (31,), "6"),
    (ConvSpec(32, 64, (3, 3), padding=1, groups=2), (9, 11), "4x4"),
]


@each_target
@pytest.mark.parametrize(
    ("spec", "size", "option"), KINDS, ids=[f"{kind[0].kernel}-{kind[0].dilation}-{kind[2]}" for kind in KINDS]
)
def test_kinds(target: Target, spec: ConvSpec, size: tuple[int, ...], option: str) -> None:
    epilogue = (RESIDUAL, ("relu",))
    case = Case(spec, 2, size, epilogue, threads=2, algorithm=f"winograd-{option}")
    check(case, target)
    check(replace(case, batch=1, at_end=False, threads=3, halo=True), target, 4 * 64 * target.vector * 9)


STRIDED: list[tuple[ConvSpec, tuple[int, ...], str]] = [
    (ConvSpec(20, 17, (3, 3), stride=2, padding=1), (13, 18), "4x4"),
    (ConvSpec(20, 17, (3, 3), stride=2, padding=((0, 1), (2, 0))), (14, 15), "2x5"),
    (ConvSpec(20, 17, (3, 3), stride=2, padding=1), (13, 15), "1x7"),
    (ConvSpec(20, 17, (3, 3), stride=2, padding=1), (13, 15), "3x1"),
    (ConvSpec(20, 17, (3, 3), stride=(1, 2), padding=1), (7, 9), "3x4"),
    (ConvSpec(20, 17, (3, 3), stride=(2, 3), padding=1), (9, 11), "4x1"),
    (ConvSpec(20, 17, (5, 4), stride=(3, 2), padding=2), (16, 9), "2x3"),
    (ConvSpec(20, 17, (5, 5), stride=4, padding=2), (17, 16), "2x2"),
    (ConvSpec(20, 17, (3, 1), stride=2), (11, 9), "4"),
    (ConvSpec(20, 17, (1, 3), stride=(3, 2), padding=((0, 1), (1, 1))), (7, 19), "1x4"),
    (ConvSpec(20, 17, (3, 3), stride=2, padding=2, dilation=2), (13, 17), "4x4"),
    (ConvSpec(20, 17, (3, 3), stride=2, padding=3, dilation=3), (21, 16), "2x2"),
    (ConvSpec(20, 17, (3, 3), stride=(4, 2), padding=6, dilation=(2, 6)), (21, 26), "2x2"),
    (ConvSpec(20, 17, (3, 3), stride=(2, 2), padding=4, dilation=(4, 3)), (9, 17), "1x2"),
    (ConvSpec(20, 17, (5,), stride=2, padding=2), (31,), "4"),
    (ConvSpec(32, 64, (3, 3), stride=2, padding=1, groups=2), (15, 17), "4x4"),
]


@each_target
@pytest.mark.parametrize(
    ("spec", "size", "option"), STRIDED,
    ids=[f"{kind[0].kernel}-{kind[0].stride}-{kind[0].dilation}-{kind[2]}" for kind in STRIDED],
)  # fmt: skip
def test_strides(target: Target, spec: ConvSpec, size: tuple[int, ...], option: str) -> None:
    case = Case(spec, 2, size, (RESIDUAL, ("relu",)), threads=2, algorithm=f"winograd-{option}")
    plan = check(case, target)
    assert step_of(plan).macs == spec.macs(size, 2)
    check(replace(case, batch=1, at_end=False, threads=3, halo=True), target, 4 * 64 * target.vector * 9)


VOLUMES: list[tuple[ConvSpec, tuple[int, ...], str]] = [
    (ConvSpec(5, 17, (3, 3, 3), padding=1), (5, 9, 13), "4x4"),
    (ConvSpec(20, 3, (3, 3, 3), padding=((1, 2), (1, 0), (3, 1)), dilation=(2, 1, 2)), (7, 6, 13), "2x4"),
    (ConvSpec(20, 17, (3, 3, 3), padding=4, dilation=(1, 3, 4)), (3, 5, 7), "3x2"),
    (ConvSpec(20, 17, (3, 1, 3)), (4, 2, 6), "1x4"),
    (ConvSpec(20, 17, (1, 3, 3), padding=((0, 0), (1, 1), (1, 1))), (3, 7, 5), "2x2"),
    (ConvSpec(20, 17, (2, 3, 3), padding=((2, 0), (0, 0), (0, 0))), (1, 6, 6), "4x4"),
    (ConvSpec(5, 17, (3, 3, 3), stride=2, padding=1), (9, 8, 15), "4x4"),
    (ConvSpec(20, 3, (3, 3, 3), stride=(1, 2, 2), padding=((1, 2), (1, 0), (3, 1))), (4, 6, 13), "3x5"),
    (ConvSpec(20, 17, (3, 3, 3), stride=(2, 1, 2), padding=1, dilation=(3, 1, 2)), (12, 5, 17), "4x2"),
    (ConvSpec(20, 17, (2, 3, 3), stride=(3, 2, 1), dilation=(2, 1, 1)), (11, 9, 6), "4x4"),
    (ConvSpec(20, 17, (1, 3, 3), stride=2, padding=((0, 0), (1, 1), (1, 1))), (5, 7, 5), "2x2"),
    (ConvSpec(32, 16, (4, 3, 3), stride=(2, 2, 2), padding=1), (8, 7, 9), "2x2"),
]


@each_target
@pytest.mark.parametrize(
    ("spec", "size", "option"),
    VOLUMES,
    ids=[f"{kind[0].kernel}-{kind[0].stride}-{kind[0].dilation}-{kind[2]}" for kind in VOLUMES],
)
def test_volumes(target: Target, spec: ConvSpec, size: tuple[int, ...], option: str) -> None:
    """The depth slices that an item covers are all, some, or one."""
    case = Case(spec, 2, size, (("relu",),), inside=False, threads=2, algorithm=f"winograd-{option}")
    check(case, target)
    check(replace(case, batch=1, at_end=False, threads=3), target, 4 * 36 * target.vector * 5)


@each_target
@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_every_chunk_of_slices_gives_the_same_result(target: Target, chunk: int) -> None:
    spec = ConvSpec(target.vector + 1, 9, (3, 3, 3), padding=1)
    case = Case(spec, 2, (5, 7, 6), inside=False, threads=2, algorithm="winograd-4x4")
    form = winograd_forms.Form(F4, F4, (1, 1), (7, 6), deep_taps=3, out_slices=5)
    for strip in (1, 3, 4):
        made = winograd_cut.Cut(form, min(3, chunk * strip), 1, strip, -(-4 // strip), chunk)
        with patch.object(winograd_cut, "cut", lambda *_, made=made: made):
            step = step_of(check_planned(case, target))
        assert step.items == 2 * made.chunks * made.strips


def check_planned(case: Case, target: Target) -> Planned:
    """As `check`, while `winograd_cut.cut` stands replaced."""
    inputs, constants = case.arrays()
    plan = replace(case, numerics="default").plan(inputs, constants, target)
    expected, _ = case.expected(inputs, constants)
    compare(case.run(plan, inputs)[0], expected, 5e-6 * STEEPEST * np.abs(expected).max(), case)
    return plan


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
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "algorithm": "winograd-4x4"}
    nodes = [Node("Conv", ["x", f"w{i}"], [f"y{i}"], dict(attributes)) for i in range(3)]
    nodes.append(Node("Concat", ["y0", "y1", "y2"], ["y"], {"axis": 1}))
    with room_for(1):
        plan = planned(graph_of(nodes, inputs, ["y"], constants), target, 2, numerics="default")
    assert len(plan.tiles(winograd)) == 3
    expected = np.concatenate([
        reference.conv(inputs["x"], constants[f"w{i}"], None, ConvSpec(v + 1, k, (3, 3), padding=1, bias=False))
        for i, k in enumerate(channels)
    ], axis=1)  # fmt: skip
    compare(plan.run(inputs)["y"], expected, 5e-6 * np.abs(expected).max(), "concatenation")


# -- how the work is cut -----------------------------------------------------------------------------------------------

# Tiles and vectors of a register tile, tiles of a strip, parts of the output vectors; the output has 15 tiles and 3
# vectors: strips that divide and that do not, a register tile larger than what is left, more parts than vectors.
CUTS = [
    (1, 1, 1, 1), (1, 1, 15, 3), (3, 2, 4, 1), (3, 2, 4, 2), (3, 2, 15, 1), (3, 2, 7, 3), (3, 2, 3, 5), (1, 1, 14, 2),
]  # fmt: skip


@each_target
@pytest.mark.parametrize("threads", [1, 3])
def test_every_cut_gives_the_same_result(target: Target, threads: int) -> None:
    v = target.vector
    form = winograd_forms.Form(F4, F4, (1, 1), (18, 11))
    case = Case(
        ConvSpec(v + 3, 2 * v + 3, (3, 3), padding=1), 2, (18, 11), (RESIDUAL,), threads=threads,
        algorithm="winograd-4x4",
    )  # fmt: skip
    for number, (tiles, outs, strip, parts) in enumerate(CUTS):
        made = winograd_cut.Cut(form, tiles, outs, strip, -(-15 // strip), 1, parts)
        with patch.object(winograd_cut, "cut", lambda *_, made=made: made):
            plan = check_planned(replace(case, at_end=number % 2 == 0), target)
        assert plan.tiles(winograd) == [winograd.WinogradTile(F4, F4, tiles, outs, (RESIDUAL,))]
        assert step_of(plan).arguments["all_tiles"] == 15
        assert step_of(plan).items == 2 * -(-15 // strip) * parts


@each_target
@pytest.mark.parametrize("paired", [0, 1, 16])
def test_products_of_many_output_vectors_are_held(target: Target, paired: int) -> None:
    """All at once, or some in turn; in one strip or several, all by one thread or divided; with and without pairs."""
    v = target.vector
    form = winograd_forms.Form(F4, F4, (1, 1), (10, 11))  # 9 tiles
    case = Case(
        ConvSpec(5 * v - 3, 8 * v - 3, (3, 3), padding=1), 2, (10, 11), (RESIDUAL,), threads=2,
        algorithm="winograd-4x4", numerics="default",
    )  # fmt: skip
    for number, (tiles, outs, strip, parts, turns) in enumerate(
        [(3, 2, 9, 1, 4), (3, 2, 9, 2, 2), (2, 1, 5, 1, 8), (4, 1, 4, 2, 2), (9, 1, 9, 1, 4), (1, 2, 3, 2, 1)]
    ):
        made = winograd_cut.Cut(form, tiles, outs, strip, -(-9 // strip), 1, parts, paired=paired, turns=turns)
        with patch.object(winograd_cut, "cut", lambda *_, made=made: made):
            plan = check_planned(replace(case, at_end=number % 2 == 0), target)
        assert plan.tiles(winograd) == [winograd.WinogradTile(F4, F4, tiles, outs, (RESIDUAL,), paired=paired > 0)]
        assert step_of(plan).arguments["held"] == outs * turns


@pytest.mark.parametrize(("size", "channels", "threads", "held"), [(28, 512, 1, 8), (28, 512, 2, 16), (28, 128, 1, 1)])
def test_much_is_held_where_weights_are_many(size: int, channels: int, threads: int, held: int) -> None:
    """A second-level cache of 1 MB; M of 49 or 25 tiles of 36 places is 113 or 58 KB an output vector."""
    spec = ConvSpec(channels, channels, (3, 3), padding=1)
    sizes = replace(caches(), l2=1 << 20, l3=32 << 20)
    with patch.object(winograd_cut, "caches", lambda: sizes):
        problem = Problem(
            spec, (size, size), 1, np.dtype(np.float32), target_named("avx512"), threads, algorithm="winograd-4x4"
        )
        made = winograd_cut.cut_of(problem, winograd_forms.forms_of(problem)[0])  # type: ignore[arg-type]
    assert made.turns == held
    assert made.strips == (threads if held > 1 else made.strips)


@each_target
def test_small_caches_give_many_strips(target: Target) -> None:
    a_tile = 4 * PLACES * target.vector * 2
    case = Case(ConvSpec(target.vector + 1, 5, (3, 3), padding=1), 1, (14, 17))  # 4 x 5 tiles
    for fits in (1, 3, 7, 19, 20):
        step = step_of(check(case, target, fits * a_tile))
        strip = step.arguments["strip"]
        assert step.arguments["strips"] == -(-20 // strip)
        assert strip <= 2 * fits  # all of the cache; fewer where that leaves no room for weights and products


@each_target
def test_cuts_cover_the_output_and_fit_the_cache(target: Target) -> None:
    sizes = [(4, 4), (5, 9), (7, 7), (13, 64), (56, 56), (6, 9, 7)]
    for size, (c, k), threads, images in itertools.product(
        sizes, [(1, 1), (3, 37), (64, 64), (512, 300)], (1, 2, 5), (1, 3)
    ):
        spec = ConvSpec.of_rank(len(size), c, k, 3, padding=1)
        problem = Problem(spec, size, images, np.dtype(np.float32), target, threads, algorithm="winograd-4x4")
        cut = winograd_cut.cut(problem)
        tiles = -(-size[-2] // 4) * -(-size[-1] // 4)
        assert cut.strip * (cut.strips - 1) < tiles <= cut.strip * cut.strips
        assert cut.chunk * (cut.chunks - 1) < cut.form.out_slices <= cut.chunk * cut.chunks
        assert 1 <= cut.tiles <= cut.strip * cut.chunk
        assert 1 <= cut.outs <= -(-k // target.vector)
        assert cut.parts <= threads
        blocks = -(-c // target.vector)
        transformed = 4 * winograd.scratch_floats(PLACES, cut.in_slices * cut.strip, blocks, 0, 0, target.vector)
        room = (winograd_cut._MOST_HELD if cut.turns > 1 else 2) * winograd_cut.strip_bytes()
        assert transformed <= room + 12 * PLACES * target.vector or cut.strip == 1


@each_target
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_each_thread_has_its_own_scratch(target: Target, batch: int) -> None:
    case = Case(ConvSpec(3, target.vector, (3, 3)), batch, (6, 6), threads=3, algorithm="winograd-4x4")
    plan, inputs, _ = planned_case(case, target)  # one item an image
    case.run(plan, inputs)
    step = step_of(plan)
    assert step.items == batch
    memory = plan.memory[id(step.arguments["scratch"].buffer)].view(np.float32).reshape(3, -1)
    assert memory.shape[1] == winograd.scratch_floats(PLACES, 1, 1, 1, 1, target.vector)
    assert memory.shape[1] == step.arguments["scratch_thread"]
    bounds = np.linspace(0, batch, 4).astype(int)
    for thread, own in enumerate(memory):
        works = bounds[thread + 1] > bounds[thread]
        assert np.isfinite(own).any() == works, f"thread {thread}"


def test_threads_at_the_same_time() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 48, 26, 27)).astype(np.float32)
    w = (rng.standard_normal((48, 48, 3, 3)) / 20).astype(np.float32)
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "algorithm": "winograd-4x4"}
    nodes = [Node("Conv", [f"x{i}", "w"], [f"x{i + 1}"], dict(attributes)) for i in range(3)]
    graph = graph_of(nodes, {"x0": x}, ["x3"], {"w": w})
    model = cw.compile(graph, threads=2)
    model(x)
    expected: NDArray[Any] = x
    for _ in range(3):
        expected = reference.conv(expected, w, None, ConvSpec(48, 48, (3, 3), padding=1, bias=False))
    for _ in range(20):
        compare(model(x), expected, 1.5e-5 * np.abs(expected).max(), "two threads")


# -- where it applies, and what it does to NaN -------------------------------------------------------------------------


def problem_of(
    spec: ConvSpec, size: tuple[int, ...], target: Target, algorithm: str = "winograd", **options: Any
) -> Problem:
    return Problem(spec, size, 1, np.dtype(np.float32), target, 2, algorithm=algorithm, **options)


@each_target
def test_strict_numerics_never_use_it(target: Target) -> None:
    spec = ConvSpec(64, 64, (3, 3), padding=1)
    assert conv.algorithm_of(problem_of(spec, (28, 28), target, "auto")).name == "winograd"
    assert conv.algorithm_of(problem_of(spec, (28, 28), target, "auto", numerics="strict")).name == "direct"
    with pytest.raises(ConvwrightError, match="numerics is strict"):
        conv.algorithm_of(problem_of(spec, (28, 28), target, numerics="strict"))


@each_target
@pytest.mark.parametrize(
    ("spec", "size", "algorithm", "reason"),
    [
        (ConvSpec(20, 20, (3, 3), stride=3, padding=1), (12, 12), "winograd", r"stride \(3, 3\), .*: no tile saves"),
        (ConvSpec(20, 20, (3, 3), stride=3, padding=1), (12, 12), "winograd-4x4", "no phase of the stride has more"),
        (ConvSpec(20, 20, (3, 3), stride=2, padding=1), (6, 12), "winograd-4x4", "smaller than a tile of 4x4"),
        (ConvSpec(20, 20, (3, 3, 2), stride=2), (9, 12, 12), "winograd", "no tile saves"),
        (ConvSpec(20, 20, (3, 3), groups=2, padding=1), (12, 12), "winograd", "20 to 20 channels in 2 groups"),
        (ConvSpec(20, 20, (1, 1)), (12, 12), "winograd", r"kernel \(1, 1\)"),
        (ConvSpec(20, 20, (1, 1)), (12, 12), "winograd-4x4", "tiles of one output save nothing"),
        (ConvSpec(20, 20, (3, 3)), (3, 3), "winograd", r"output \(1, 1\): no tile saves"),
        (ConvSpec(20, 20, (3, 3)), (5, 12), "winograd-4x4", "smaller than a tile of 4x4"),
        (ConvSpec(20, 20, (3, 3), dilation=3, padding=3), (9, 99), "winograd-4x4", "smaller than a tile of 4x4"),
        (ConvSpec(20, 20, (3, 3)), (12, 12), "winograd-0x4", "name the outputs of a tile"),
        (ConvSpec(20, 20, (3, 3)), (12, 12), "winograd-fast", "name the outputs of a tile"),
        (ConvSpec(20, 20, (3,)), (12,), "winograd-4x4", "tiles of 1 axes"),
        (ConvSpec(20, 20, (3, 3, 3)), (9, 12, 12), "winograd-2x4x4", "tiles of 2 axes"),
        (ConvSpec(20, 20, (3, 3, 3)), (9, 12, 12), "winograd-1x4", "depth alone"),
        (ConvSpec(20, 20, (9, 9)), (22, 22), "winograd-6x6", "no points"),
        (ConvSpec(20, 20, (3, 3), padding=1, padding_mode="reflect"), (12, 12), "winograd", "'reflect'"),
        (ConvSpec(20, 20, (3, 3), padding=1, flip=True), (12, 12), "winograd", "flip True"),
        (ConvSpec(20, 20, (3, 3), padding=1, transposed=True), (12, 12), "winograd", "transposed"),
    ],
)
def test_what_it_cannot_do_has_a_reason(
    target: Target, spec: ConvSpec, size: tuple[int, ...], algorithm: str, reason: str
) -> None:
    with pytest.raises(ConvwrightError, match=reason):
        conv.algorithm_of(problem_of(spec, size, target, algorithm))
    if algorithm == "winograd":
        assert conv.algorithm_of(problem_of(spec, size, target, "auto")).name != "winograd"


@each_target
def test_what_is_chosen_has_small_errors(target: Target) -> None:
    """Larger tiles are for those who name them."""
    for channels, kernel, most in ((64, (3, 3), 6), (2048, (3, 3), 4), (192, (1, 7), 5), (64, (5, 5), 4)):
        spec = ConvSpec(channels, 64, kernel, padding="same")
        for size in ((24, 24), (56, 56)):
            cut = winograd_cut.cut(problem_of(spec, size, target))
            assert 2 <= max(cut.form.high[0], cut.form.wide[0]) <= most
            row = conv.algorithm_of(problem_of(spec, size, target))
            assert row.error_bound(problem_of(spec, size, target)) <= winograd_forms.ERROR
            named = problem_of(spec, size, target, "winograd-6")
            assert row.error_bound(named) > winograd_forms.ERROR
            assert row.multiplications(problem_of(spec, size, target)) < named.macs
            forms = winograd_cut.cut(named).form, cut.form
            assert forms[0].tiles * forms[0].places < forms[1].tiles * forms[1].places


@each_target
def test_figures_of_a_row(target: Target) -> None:
    problem = problem_of(ConvSpec(64, 48, (3, 3), padding=1), (16, 12), target, "winograd-4x4")
    channels = winograd_pairs.multiplications(64, target.vector) if winograd_cut.cut(problem).paired else 64
    assert lowering.ROW.multiplications(problem) == 4 * 3 * 36 * channels * 48
    assert lowering.ROW.workspace(problem) <= 2 * (2 * winograd_cut.strip_bytes() + 4 * 36 * target.vector)
    deep = problem_of(ConvSpec(16, 16, (3, 3, 3), padding=1), (5, 16, 12), target, "winograd-4x4")
    assert lowering.DEEP.multiplications(deep) == 5 * 4 * 3 * 36 * 3 * 16 * 16
    assert lowering.DEEP.cycles(deep) > 0
    strided = problem_of(ConvSpec(64, 48, (3, 3), stride=2, padding=1), (16, 24), target, "winograd-4x4")
    channels = winograd_pairs.multiplications(64, target.vector) if winograd_cut.cut(strided).paired else 64
    assert lowering.ROW.multiplications(strided) == 2 * 3 * 81 * channels * 48
    assert 1 < lowering.ROW.error_bound(strided) / direct.error_of_sum(strided) < (1.2 if channels == 64 else 1.4)


def test_strict_models_send_nan_where_the_reference_does() -> None:
    case = Case(ConvSpec(20, 17, (3, 3), padding=1), 1, (12, 12))
    inputs, constants = case.arrays()
    inputs["x"][0, 3, 5, 6] = np.nan
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}

    def result(**options: Any) -> NDArray[Any]:
        algorithm = {} if options else {"algorithm": "winograd-4x4"}
        nodes = [Node("Conv", ["x", "w", "b"], ["y"], {**attributes, **algorithm})]
        graph = graph_of(nodes, inputs, ["y"], constants)
        answer: NDArray[Any] = cw.compile(graph, threads=1, **options)(inputs["x"])
        return answer

    strict = result(numerics="strict")
    expected, bound = case.expected(inputs, constants)
    compare(strict, expected, bound, case)
    assert np.isnan(strict).sum() == 17 * 9 < np.isnan(result()).sum()


def pixels_of_tiles(spec: ConvSpec, size: tuple[int, ...], pixel: tuple[int, int]) -> NDArray[np.bool_]:
    """The outputs of the 4 x 4 tiles that read the input pixel; the last tile of a row or column is moved inside."""
    axes = []
    for at, out, (before, _) in zip(pixel, spec.output_size(size), spec.pads(size), strict=True):
        starts = {min(start, out - 4) for start in range(0, out, 4)}
        reached = [start for start in starts if start <= at + before < start + 6]
        axes.append(np.isin(np.arange(out), [start + i for start in reached for i in range(4)]))
    return np.logical_and.outer(*axes)


@each_target
@pytest.mark.parametrize("strip_bytes", [None, 1])
def test_nan_and_infinity_reach_every_output_that_sums_them_and_stay_in_their_tiles(
    target: Target, strip_bytes: int | None
) -> None:
    """A tile's inputs are mixed before they are multiplied: NaN reaches outputs of the tile that a direct sum keeps
    finite, and an infinity becomes NaN. Where that matters there is numerics="strict"."""
    v = target.vector
    case = Case(
        ConvSpec(v + 1, v + 3, (3, 3), padding=((1, 1), (2, 0))), 2, (10, 13), threads=2, algorithm="winograd-4x4"
    )
    plan, inputs, constants = planned_case(case, target, strip_bytes)
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
        assert np.abs(y - clean)[~lost].max() <= 5e-6 * np.abs(clean).max()


@each_target
def test_nan_of_the_residual_and_of_the_weights(target: Target) -> None:
    v = target.vector
    case = Case(
        ConvSpec(v + 1, 2 * v + 3, (3, 3), padding=1),
        2,
        (7, 9),
        (RESIDUAL, ("relu",)),
        threads=2,
        algorithm="winograd-4x4",
    )
    inputs, constants = case.arrays()
    inputs["r"][1, v, 3, 8] = np.nan
    constants["w"][v + 2, 1, 0, 2] = np.nan
    plan = replace(case, numerics="default").plan(inputs, constants, target)
    lost = np.isnan(case.run(plan, inputs)[0])
    assert lost[:, v + 2].all()
    assert lost[1, v, 3, 8]
    assert lost.sum() == 2 * 7 * 9 + 1
