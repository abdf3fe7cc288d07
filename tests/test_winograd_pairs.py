"""Winograd convolutions whose products are summed in pairs: weights, and the kernel against float64 on every target.

Buffers lie beside unreadable pages, and memory that means nothing is NaN (`tests.plans`).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright.codegen.target import Target
from convwright.kernels import winograd
from convwright.kernels import winograd_pairs as kernel
from convwright.model.lower import winograd as lowering
from convwright.model.lower import winograd_cut, winograd_forms, winograd_pairs
from convwright.spec import ConvSpec
from tests.convolutions import RESIDUAL, STEEPEST, Case, compare
from tests.kernels import each_target
from tests.plans import Planned

F4 = (4, 3)


def cut_of(form: winograd_forms.Form, size: tuple[int, int], strip: int, piece: int, **more: Any) -> winograd_cut.Cut:
    tiles, outs = size
    return winograd_cut.Cut(form, tiles, outs, strip, -(-form.tiles // strip), paired=piece, **more)


def planned(case: Case, target: Target, cut: winograd_cut.Cut, constants: Any = None) -> tuple[Planned, Any, Any]:
    inputs, own = case.arrays()
    constants = {**own, **(constants or {})}
    with patch.object(winograd_cut, "cut", lambda *_: cut):
        plan = case.plan(inputs, constants, target)
    assert [tile.paired for tile in plan.tiles(winograd)] == [True]
    return plan, inputs, constants


def check(case: Case, target: Target, cut: winograd_cut.Cut) -> NDArray[Any]:
    """The result, found to be as near to float64 as that of products one by one."""
    plan, inputs, constants = planned(case, target, cut)
    result: NDArray[Any] = case.run(plan, inputs)[0]
    expected, _ = case.expected(inputs, constants)
    compare(result, expected, 0.6 * winograd_forms.ERROR * STEEPEST * np.abs(expected).max(), case)
    return result


def case_of(
    spec: ConvSpec, size: tuple[int, ...], batch: int = 1, algorithm: str = "winograd-4x4", **more: Any
) -> Case:
    return Case(spec, batch, size, algorithm=algorithm, numerics="default", **more)


# -- the weights -------------------------------------------------------------------------------------------------------


@each_target
@pytest.mark.parametrize(("out_channels", "blocks", "more", "groups"), [(1, 2, 0, 1), (17, 3, 1, 1), (64, 4, 0, 2)])
def test_packed_weights_are_transformed_ones_times_powers_of_two(
    target: Target, out_channels: int, blocks: int, more: int, groups: int
) -> None:
    v = target.vector
    channels = blocks * v + more
    rng = np.random.default_rng(v)
    weight = rng.standard_normal((out_channels, channels, 1, 3, 3)).astype(np.float32)
    weight *= np.exp2(rng.uniform(-9, 9, (out_channels, channels, 1, 1, 1))).astype(np.float32)
    weight[:, 1] = 0
    form = winograd_forms.Form(F4, F4, (1, 1), (8, 8))
    flat = winograd_pairs.pack(weight, form, groups, target, 3)
    parts = winograd_pairs.parts_of(flat, form, out_channels, channels, groups, v)
    plain = lowering.transform(weight, form, target, 1)
    order = np.arange(channels)
    whole = channels // (2 * v) * 2 * v
    order[:whole] = [2 * v * pair + which * v + lane
                     for pair, lane, which in itertools.product(range(whole // (2 * v)), range(v), (0, 1))]  # fmt: skip
    per_group = len(plain) // groups
    for vector, (u, squares, backs) in enumerate(zip(parts.u, parts.squares, parts.backs, strict=True)):
        scales = parts.channel_scales[vector // per_group]
        assert np.isin(np.abs(np.frexp(scales[:channels])[0]), 0.5).all()
        assert not scales[channels:].any()
        some = u.any((1, 2))
        assert (np.frexp(backs[some])[0] == 0.5).all()
        assert not backs[~some].any()
        restored = u[:, 0] * scales[order, None] * backs[:, None]
        np.testing.assert_array_equal(restored, plain[vector, :, 0][:, order])
        b = u[:, 0, :whole].astype(np.float64).reshape(len(u), -1, v, 2, v)[:, :, kernel.is_pair(np.arange(v))]
        np.testing.assert_allclose(squares, -(b[:, :, :, 0] * b[:, :, :, 1]).sum((1, 2)), rtol=1e-6, atol=1e-6)


# -- the kernel --------------------------------------------------------------------------------------------------------

CUTS = [
    ((1, 1), 1, 1), ((1, 1), 15, 3), ((3, 2), 4, 1), ((3, 2), 4, 2), ((3, 1), 15, 1), ((3, 2), 7, 3), ((7, 1), 14, 2),
]  # fmt: skip


@each_target
@pytest.mark.parametrize("threads", [1, 3])
def test_every_cut_gives_the_same_bits(target: Target, threads: int) -> None:
    """Strips, parts and register tiles do not change a tile's scale or the order of its sums."""
    v = target.vector
    form = winograd_forms.Form(F4, F4, (1, 1), (18, 11))
    spec = ConvSpec(5 * v + 3, 2 * v + 3, (3, 3), padding=1)
    for piece in (2 * v, 8 * v):
        results = []
        for number, (size, strip, parts) in enumerate(CUTS):
            case = case_of(spec, (18, 11), 2, epilogue=(RESIDUAL,), threads=threads, at_end=number % 2 == 0)
            results.append(check(case, target, cut_of(form, size, strip, piece, parts=parts)))
        assert all(np.array_equal(results[0], result) for result in results)


@each_target
def test_channels_around_blocks(target: Target) -> None:
    v = target.vector
    form = winograd_forms.Form(F4, F4, (1, 1), (9, 6))
    for channels, out_channels in [(2 * v, 1), (2 * v + 1, v), (3 * v - 1, v - 1), (3 * v, v + 1), (4 * v, 2 * v + 1),
                                   (4 * v + 1, 2 * v), (7 * v, 3 * v)]:  # fmt: skip
        spec = ConvSpec(channels, out_channels, (3, 3), padding=1)
        check(case_of(spec, (9, 6), epilogue=(("relu",),)), target, cut_of(form, (3, 1), 6, 64))


@each_target
@pytest.mark.parametrize(
    ("kernel_size", "size", "option", "axes", "more"),
    [
        ((3, 3), (9, 11), "2x4", ((2, 3), (4, 3)), {}),
        ((3, 3), (9, 11), "3x3", ((3, 3), (3, 3)), {"groups": 2}),
        ((3, 3), (7, 13), "3x4", ((3, 3), (4, 3)), {}),
        ((3, 3), (9, 13), "4x6", ((4, 3), (6, 3)), {}),
        ((3, 3), (13, 9), "6x4", ((6, 3), (4, 3)), {}),
        ((3, 3), (11, 9), "5x5", ((5, 3), (5, 3)), {}),
        ((5, 5), (9, 9), "4x4", ((4, 5), (4, 5)), {}),
        ((7, 1), (11, 5), "5x1", ((5, 7), (1, 1)), {}),
        ((1, 7), (5, 13), "1x4", ((1, 1), (4, 7)), {}),
        ((5, 5), (9, 13), "3x3", ((3, 5), (3, 5)), {}),
        ((3, 3), (13, 18), "4x4", ((4, 3, 2), (4, 3, 2)), {"stride": 2}),
    ],
)
def test_kinds(
    target: Target, kernel_size: tuple[int, int], size: tuple[int, int], option: str, axes: Any, more: Any
) -> None:
    v = target.vector
    spec = ConvSpec(4 * v, 4 * v, kernel_size, padding=tuple(taps // 2 for taps in kernel_size), **more)
    stride = more.get("stride", 1)
    (high, wide), out = axes, spec.output_size(size)
    form = winograd_forms.Form(high, wide, (1, 1), (out[0], out[1]), stride=(stride, stride))
    case = case_of(spec, size, 2, f"winograd-{option}", epilogue=(RESIDUAL, ("relu",)), threads=2)
    check(case, target, cut_of(form, (min(3, form.tiles), 2), min(4, form.tiles), 2 * v))


@each_target
def test_tiles_of_unequal_size_and_channels_that_weights_make_up_for(target: Target) -> None:
    """Each tile's errors are of its own size, as products one by one have them."""
    v = target.vector
    form = winograd_forms.Form(F4, F4, (1, 1), (8, 24))
    case = case_of(ConvSpec(6 * v, v, (3, 3), padding=1, bias=False), (8, 24))
    inputs, constants = case.arrays()
    rng = np.random.default_rng(7)
    of_channels = np.exp2(rng.integers(-10, 10, 6 * v)).astype(np.float32)
    weight = constants["w"] / of_channels[:, None, None]
    plan, inputs, constants = planned(case, target, cut_of(form, (4, 1), 6, 64), {"w": weight})
    sizes = np.repeat(np.exp2([-40.0, 0, 30, -5, 12, 0]), 4)  # columns that only tiles beside each other share
    x = np.abs(inputs["x"]) * of_channels[:, None, None] * sizes
    x = x.astype(np.float32)
    result = case.run(plan, {"x": x})[0]
    expected, _ = case.expected({"x": x}, constants)
    for first in range(0, 24, 4):
        seen = np.abs(x[..., max(0, first - 1) : first + 5] / of_channels[:, None, None]).max()
        own = np.abs(result - expected)[..., first : first + 4].max()
        assert own <= 1e-5 * seen * np.abs(expected / sizes).max(), first


@each_target
def test_zeros_give_the_bias_and_numbers_of_any_size_a_result(target: Target) -> None:
    v = target.vector
    form = winograd_forms.Form(F4, F4, (1, 1), (4, 8))
    case = case_of(ConvSpec(4 * v, v, (3, 3), padding=1), (4, 8))
    plan, inputs, constants = planned(case, target, cut_of(form, (2, 1), 2, 64))
    bias = np.broadcast_to(constants["b"][:, None, None], (1, v, 4, 8))
    np.testing.assert_array_equal(case.run(plan, {"x": np.zeros_like(inputs["x"])})[0], bias)
    for exponent in (-100, -60, 60, 110):
        x = np.ldexp(inputs["x"], exponent).astype(np.float32)
        expected, _ = case.expected({"x": x}, constants)
        compare(case.run(plan, {"x": x})[0], expected, 5e-6 * np.abs(expected).max(), exponent)


@each_target
def test_zeros_in_all_channels_but_few(target: Target) -> None:
    """Few of large weights, whose inputs are scaled by more than others; channels behind the last pair of blocks; and
    inputs so small that what scales them would overflow together with a channel's scale."""
    v = target.vector
    form = winograd_forms.Form(F4, F4, (1, 1), (4, 8))
    for channels in (2 * v, 2 * v + 3, 3 * v):
        case = case_of(ConvSpec(channels, v, (3, 3), padding=1), (4, 8))
        weight = case.arrays()[1]["w"].copy()
        weight[:, 3] *= 2.0**16
        plan, inputs, constants = planned(case, target, cut_of(form, (2, 1), 2, 64), {"w": weight})
        for some in (slice(0), slice(3, 4), slice(2 * v, None)):
            for exponent in (0, -100, -116, 100):
                x = np.zeros_like(inputs["x"])
                x[:, some] = np.ldexp(inputs["x"][:, some], exponent)
                expected, _ = case.expected({"x": x}, constants)
                compare(case.run(plan, {"x": x})[0], expected, 5e-6 * np.abs(expected).max(), (channels, exponent))


@each_target
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_fill_their_tiles_and_no_others(target: Target, value: float) -> None:
    v = target.vector
    form = winograd_forms.Form(F4, F4, (1, 1), (8, 8))
    case = case_of(ConvSpec(2 * v + 1, v, (3, 3), padding=1), (8, 8))
    plan, inputs, constants = planned(case, target, cut_of(form, (3, 1), 3, 64))
    for channel in (0, 2 * v - 1):
        x = inputs["x"].copy()
        x[0, channel, 1, 2] = value
        result = case.run(plan, {"x": x})[0]
        assert np.isnan(result[..., :4, :4]).all()
        expected, _ = case.expected(inputs, constants)
        rest = np.ones((8, 8), bool)
        rest[:4, :4] = False
        compare(result[..., rest], expected[..., rest], 5e-6 * np.abs(expected).max(), channel)


@each_target
@pytest.mark.parametrize(
    ("kernel_size", "more"), [((3, 3, 3), {}), ((2, 3, 3), {"stride": (2, 1, 1)}), ((3, 3, 3), {"dilation": (2, 1, 1)}),
                              ((5, 3, 3), {"stride": (3, 1, 1)})],
)  # fmt: skip
def test_an_axis_that_joins_the_sum(target: Target, kernel_size: tuple[int, int, int], more: Any) -> None:
    """Several slices of an item, of which each tap reads others; the same slices hold numbers of other sizes."""
    v = target.vector
    for channels, outs, chunk, strip in ((2 * v, v + 1, 1, 1), (3 * v + 1, 2 * v, 2, 3), (4 * v, 1, 4, 6)):
        spec = ConvSpec(channels, outs, kernel_size, padding=1, **more)
        size = (7, 9, 7)
        depth, *plane = spec.output_size(size)
        step, gap = (options[0] if (options := more.get(name)) else 1 for name in ("stride", "dilation"))
        form = winograd_forms.Form(
            F4, F4, (1, 1), (plane[0], plane[1]), kernel_size[0], gap, depth, deep_stride=step
        )  # fmt: skip
        case = case_of(spec, size, 2, epilogue=(("relu",),), threads=2)
        cut = cut_of(form, (min(3, chunk * strip), min(2, -(-outs // v))), strip, 2 * v, chunk=min(chunk, depth))
        check(case, target, cut)


# -- where it is chosen ------------------------------------------------------------------------------------------------


@each_target
def test_pieces_are_as_long_as_errors_allow(target: Target) -> None:
    from tests.test_winograd import problem_of

    v = target.vector
    form = winograd_forms.Form(F4, F4, (1, 1), (28, 28))
    for channels, able in ((2 * v - 1, False), (2 * v, True), (256, True), (512, True)):
        problem = problem_of(ConvSpec(channels, 64, (3, 3), padding=1), (28, 28), target)
        with patch.object(winograd_forms, "adds_beside_multiply_adds", lambda _: True):
            pieces = [piece for piece in winograd_forms.sums_of(form, problem) if piece]
        assert bool(pieces) == able
        for piece in pieces:
            assert winograd_forms.error_bound(form, problem, piece) <= winograd_forms.ERROR
    deep = winograd_forms.Form(F4, F4, (1, 1), (28, 28), deep_taps=3)
    volume = problem_of(ConvSpec(64, 64, (3, 3, 3)), (9, 28, 28), target)
    assert winograd_forms.error_bound(form, volume, 64) < winograd_forms.error_bound(deep, volume, 64)


@each_target
def test_chosen_where_additions_cost_nothing(target: Target) -> None:
    from tests.test_winograd import problem_of, room_for

    problem = problem_of(ConvSpec(64, 64, (3, 3), padding=1), (56, 56), target, "winograd-4x4")
    figures = []
    for adds in (True, False):
        with patch.object(winograd_forms, "adds_beside_multiply_adds", lambda _, adds=adds: adds), room_for(None):
            assert (winograd_cut.cut(problem).paired > 0) == adds
            figures.append((winograd_cut.cut(problem).cycles, lowering.ROW.multiplications(problem)))
    assert figures[0][0] < figures[1][0]
    assert figures[0][1] < figures[1][1]


@each_target
@pytest.mark.parametrize(
    ("channels", "kernel_size", "size", "outputs"),
    [(64, (3, 3), (24, 24), (4, 6)), (96, (3, 3), (35, 35), (5, 5)), (48, (5, 5), (35, 35), (4, 4)),
     (192, (1, 7), (17, 17), (1, 5)), (256, (3, 3), (14, 14), (3, 4))],
)  # fmt: skip
def test_pieces_allow_larger_tiles(
    target: Target, channels: int, kernel_size: tuple[int, int], size: tuple[int, int], outputs: tuple[int, int]
) -> None:
    """Whose errors are within what is allowed, and below half of it where they are measured."""
    from tests.test_winograd import problem_of, room_for

    problem = problem_of(ConvSpec(channels, 32, kernel_size, padding="same"), size, target)
    sizes = []
    for adds in (False, True):
        with patch.object(winograd_forms, "adds_beside_multiply_adds", lambda _, adds=adds: adds), room_for(None):
            forms = winograd_forms.forms_of(problem)
            assert not isinstance(forms, str)
            sizes.append({(form.high[0], form.wide[0]): form for form in forms})
            for form in forms:
                bounds = [winograd_forms.error_bound(form, problem, piece)
                          for piece in winograd_forms.sums_of(form, problem)]  # fmt: skip
                assert bounds
                assert max(bounds) <= winograd_forms.ERROR
    assert outputs in sizes[True]
    assert set(sizes[False]) <= set(sizes[True]) | {(3, 3)}
    form = sizes[True][outputs]
    with patch.object(winograd_forms, "adds_beside_multiply_adds", lambda _: True):
        piece = winograd_forms.sums_of(form, problem)[-1]
    option = "x".join(map(str, outputs))
    case = case_of(ConvSpec(channels, 32, kernel_size, padding="same", bias=False), size, 1, f"winograd-{option}")
    plan, inputs, _ = planned(case, target, cut_of(form, (2, 1), 8, piece))
    expected, _ = case.expected(inputs, case.arrays()[1])
    assert np.abs(case.run(plan, inputs)[0] - expected).max() <= 7.2e-6 * np.abs(expected).max()


@each_target
def test_a_form_that_is_named_has_the_least_errors_where_none_are_small(target: Target) -> None:
    from tests.test_winograd import problem_of

    problem = problem_of(ConvSpec(256, 32, (3, 3), padding=1), (24, 24), target, "winograd-6x6")
    with patch.object(winograd_forms, "adds_beside_multiply_adds", lambda _: True):
        assert winograd_forms.sums_of(winograd_forms.Form((6, 3), (6, 3), (1, 1), (24, 24)), problem) == [0, 32]


def test_memory_is_worth_a_little_time() -> None:
    """More weights are taken for much time alone; beyond four times the constant they cost more."""
    from convwright.codegen.target import host_target
    from tests.test_winograd import problem_of

    problem = problem_of(ConvSpec(64, 64, (3, 3), padding=1), (56, 56), host_target())
    prices = [
        winograd_cut.price(problem, winograd_forms.Form((m, 3), (m, 3), (1, 1), (56, 56))) / (m + 2) ** 2
        for m in (2, 4, 6)
    ]
    assert prices[0] == pytest.approx(prices[1])
    assert prices[2] > 2 * prices[1]
    several = [
        winograd_cut.price(replace(problem, threads=threads), winograd_cut.cut(problem).form) for threads in (1, 4)
    ]
    assert several[0] == 4 * several[1]
