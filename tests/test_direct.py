"""Direct convolutions against float64, on every target: planned as a model plans them, every buffer beside an
unreadable page, and NaN in all memory that means nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convwright.codegen.target import Target
from convwright.graph import Node
from convwright.kernels import direct
from convwright.spec import ConvSpec
from tests.convolutions import (
    RESIDUAL,
    SIZES,
    WIDER,
    Case,
    compare,
    random_channels,
    random_epilogue,
    random_size,
    random_window,
)  # fmt: skip
from tests.kernels import each_target
from tests.plans import graph_of, planned
from tests.sweeps import check_each, on_targets


def random_case(seed: int, target: Target) -> Case:
    rng = np.random.default_rng(seed)
    in_channels, out_channels, groups = random_channels(rng, target.vector)
    rank = 1 if rng.random() < 0.2 else 2
    window = random_window(rng, rank, 5)
    spec = ConvSpec(in_channels, out_channels, **window, groups=groups, bias=bool(rng.random() < 0.7))
    tile = (int(rng.integers(1, 5)), int(rng.integers(1, 10)), int(rng.integers(1, 4))) if rng.random() < 0.3 else None
    return Case(
        spec,
        batch=int(rng.integers(1, 4)),
        size=random_size(rng, spec),
        epilogue=random_epilogue(rng),
        inside=bool(rng.random() < 0.6),
        halo=bool(rng.random() < 0.2),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        tile=tile,
        seed=seed,
    )


@on_targets(80)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: case.check(target))


@each_target
@pytest.mark.parametrize("inside", [True, False])
def test_sizes_around_the_tile(target: Target, inside: bool) -> None:
    v = target.vector
    for case, size in enumerate((*SIZES, *WIDER)):
        spec = ConvSpec(3, (v - 1, v, v + 1, 2 * v + 3)[case % 4], (3, 3), padding=1)
        Case(spec, 1, (size, max(1, size - case % 3)), inside=inside, at_end=case % 2 == 0).check(target)
        pointwise = ConvSpec(v + 1, 2 * v, (1, 1))
        Case(pointwise, 1, (1 + case % 3, size), (RESIDUAL,), inside, halo=case % 2 == 1, seed=case).check(target)


@each_target
def test_rows_are_one_row_of_pixels_even_where_the_output_has_gaps(target: Target) -> None:
    v = target.vector
    for number, (size, tile) in enumerate(
        [((5, 3), (1, 7, 1)), ((9, 8), (1, 14, 2)), ((2, 31), (1, 5, 3)), ((33, 2), None)]
    ):
        for epilogue in ((), (RESIDUAL, ("relu",))):
            spec = ConvSpec(v + 1, 3 * v - 1, (1, 1))
            case = Case(spec, 1 + number % 2, size, epilogue, halo=True, tile=tile, threads=2, at_end=number % 2 == 0)
            inputs, constants = case.arrays()
            assert case.plan(inputs, constants, target).tiles(direct)[0].wrap
            case.check(target)


SPECS: dict[str, Any] = {
    "one channel": lambda v: ConvSpec(1, 1, (3, 3), padding=1),
    "one output channel": lambda v: ConvSpec(2 * v + 3, 1, (3, 3), padding=1),
    "groups that fill vectors": lambda v: ConvSpec(2 * v, 4 * v, (3, 3), padding=1, groups=2),
    "groups inside a vector": lambda v: ConvSpec(v, v, (3, 3), padding=1, groups=4),
    "groups across vectors": lambda v: ConvSpec(3 * (v + 1), 3 * (v + 1), (3, 3), padding=1, groups=3),
    "channel multiplier 2": lambda v: ConvSpec(v + 1, 2 * v + 2, (3, 3), padding=1, groups=v + 1),
    "channel multiplier 3": lambda v: ConvSpec(5, 15, (3, 3), padding=1, groups=5),
    "stride larger than the kernel": lambda v: ConvSpec(v + 1, v, (2, 2), stride=(5, 3)),
    "everything different on every axis": lambda v: ConvSpec(
        v - 1, v + 1, (2, 5), stride=(3, 1), dilation=(1, 3), padding=((0, 3), (4, 1))
    ),
    "the kernel covers the input": lambda v: ConvSpec(v + 1, 2 * v + 3, (9, 14)),
    "padding beyond the kernel": lambda v: ConvSpec(3, 2, (2, 2), padding=5),
    "one axis": lambda v: ConvSpec(v + 1, v - 1, (7,), stride=2, padding=3, dilation=2),
}
WHERE = pytest.mark.parametrize("inside", [True, False])


@each_target
@WHERE
@pytest.mark.parametrize("name", SPECS)
def test_corners(target: Target, name: str, inside: bool) -> None:
    spec = SPECS[name](target.vector)
    for batch in (1, 3):
        size = (9, 14)[-spec.rank :]
        Case(spec, batch, size, (("relu",), RESIDUAL), inside, threads=batch, at_end=batch == 1).check(target)


@each_target
@WHERE
def test_long_sums_stay_inside_the_bound(target: Target, inside: bool) -> None:
    Case(ConvSpec(300, 5, (3, 3), padding=1), 1, (4, 5), inside=inside).check(target)
    Case(ConvSpec(4, 5, (31, 31), padding=15), 1, (4, 5), inside=inside).check(target)


@each_target
@WHERE
@pytest.mark.parametrize("name", SPECS)
def test_nan_and_infinity_go_where_the_reference_sends_them(target: Target, name: str, inside: bool) -> None:
    spec = SPECS[name](target.vector)
    case = Case(spec, 2, (9, 14)[-spec.rank :], (RESIDUAL, ("relu",)), inside)
    case.check_specials(target, np.random.default_rng(7))


@each_target
def test_a_channel_of_nan_stays_in_its_group(target: Target) -> None:
    for own in (1, 3, target.vector - 1, target.vector + 1):
        spec = ConvSpec(3 * own, 6 * own, (3, 3), padding=1, groups=3)
        case = Case(spec, 1, (5, 6))
        inputs, constants = case.arrays()
        inputs["x"][:, own : 2 * own] = np.nan
        (y,) = case.run(case.plan(inputs, constants, target), inputs)
        assert np.isnan(y[:, 2 * own : 4 * own]).all()
        assert np.isfinite(y[:, : 2 * own]).all()
        assert np.isfinite(y[:, 4 * own :]).all()


@each_target
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
@pytest.mark.parametrize("shape", [(), (1, 1), (3, 2)])
def test_fully_connected(target: Target, batch: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(batch)
    v = target.vector
    for channels, out_channels in ((1, 1), (v + 1, v - 1), (3, 2 * v + 3)):
        x = rng.standard_normal((batch, channels, *shape)).astype(np.float32)
        w = rng.standard_normal((out_channels, x[0].size)).astype(np.float32)
        b = rng.standard_normal(out_channels).astype(np.float32)
        nodes = [Node("Gemm", ["f", "w", "b"], ["y"], {"transB": 1})]
        nodes.insert(0, Node("Flatten", ["x"], ["f"], {"axis": 1}) if shape else Node("Identity", ["x"], ["f"]))
        plan = planned(graph_of(nodes, {"x": x}, ["y"], {"w": w, "b": b}), target, threads=2)
        assert plan.tiles(direct)
        expected = x.reshape(batch, -1).astype(float) @ w.T.astype(float) + b
        compare(plan.run({"x": x}, at_end=batch % 2 == 0)["y"], expected, 2e-5, (batch, channels, out_channels))
