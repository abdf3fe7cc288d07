"""Direct convolution on row-major tensors against float64: every rank, padding mode and type, transposed or not.

Planned as a model plans it, every buffer beside an unreadable page and scratch memory full of NaN.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from convwright import reference
from convwright.codegen.target import Target, host_target
from convwright.kernels import planar
from convwright.model import weights as weights_module
from convwright.model.lower import planar as lowering
from convwright.model.lower.conv import algorithm_of
from convwright.model.problem import Problem
from convwright.spec import ConvSpec
from tests import forced
from tests.forced import Case
from tests.kernels import each_target
from tests.plans import Planned
from tests.sweeps import HOST, check_each, on_targets

Random = np.random.Generator
planes = partial(Case, "direct-planes")
random_case = partial(forced.random_case, "direct-planes")


def check(case: Case, target: Target) -> Planned:
    plan = case.check(target)
    assert plan.tiles(planar), plan.steps
    return plan


@on_targets(40, full=(HOST, HOST))
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: check(case, target))


@each_target
@pytest.mark.parametrize("size", [(19,), (5, 7), (2, 3, 5)])
def test_one_tap_of_a_transposed_convolution(target: Target, size: tuple[int, ...]) -> None:
    """Its weights lie the other way round also where all positions are one row; output padding is no input's place."""
    one = (1,) * len(size)
    for channels, outs, groups in ((1, 2, 1), (2, 1, 1), (6, 9, 3)):
        check(planes(ConvSpec(channels, outs, one, groups=groups, transposed=True), size, batch=2), target)
    check(planes(ConvSpec(2, 3, one, dilation=2, output_padding=1, transposed=True), size), target)


@each_target
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((3, 3), (1, 1), (1, 1)), ((5, 3), (2, 1), (1, 2)), ((3, 5), (1, 2), (2, 1)), ((11, 2), (1, 1), (1, 1)),
     ((9, 3), (2, 1), (1, 1)), ((31, 31), (1, 1), (1, 1))],
)  # fmt: skip
def test_depthwise_layers_take_tall_tiles(
    target: Target, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> None:
    padding = [d * (k // 2) for k, d in zip(kernel, dilation, strict=True)]
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "groups": 3}
    for width in (target.vector - 1, target.vector, 3 * target.vector + 2):
        plan = check(planes(ConvSpec(3, 3, kernel, **options), (19, width), threads=2), target)
        (tile,) = plan.tiles(planar)
        assert tile.column, tile


@each_target
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
def test_phases_of_transposed_convolutions_are_woven_together(target: Target, stride: int) -> None:
    for width, kernel, low in ((1, 1, 0), (5, 2, 0), (target.vector + 1, 9, 4), (40, 3, 1)):
        if stride * (width - 1) + kernel <= 2 * low:
            continue
        spec = ConvSpec(2, 3, (kernel,), stride=stride, padding=low, transposed=True)
        check(planes(spec, (width,), batch=2), target)


@each_target
def test_many_groups_are_taken_several_to_a_work_item(target: Target) -> None:
    plan = check(planes(ConvSpec(101, 101, (3, 3), padding=1, groups=101), (7, 7), threads=2), target)
    (step,) = plan.steps
    assert 1 < step.arguments["chunk_groups"] < 101
    assert step.items == -(-101 // step.arguments["chunk_groups"])


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (3, 3, 3)])
def test_nan_and_infinity_go_where_the_sums_take_them(kernel: tuple[int, ...]) -> None:
    spec = ConvSpec(2, 2, kernel, padding=1, groups=2)
    case = planes(spec, (6,) * len(kernel))
    inputs, constants = case.arrays()
    inputs["x"][0, 0].flat[7 % inputs["x"][0, 0].size] = np.nan
    inputs["x"][0, 1].flat[3] = np.inf
    (y,) = case.plan(inputs, constants, host_target()).run(inputs).values()
    expected = reference.conv(inputs["x"], constants["w"], constants["b"], spec)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(y[np.isinf(expected)], expected[np.isinf(expected)])


def test_scratch_is_what_the_row_says() -> None:
    spec = ConvSpec(64, 64, (3, 3), padding=1, groups=16)
    p = Problem(spec, (56, 56), 1, np.dtype(np.float32), host_target(), 2, algorithm="direct-planes")
    assert algorithm_of(p) is lowering.ROW
    plan = check(planes(spec, (56, 56), threads=2), host_target())
    (step,) = plan.steps
    assert lowering.ROW.workspace(p) == step.arguments["scratch"].buffer.nbytes < 2 * lowering._SCRATCH_BYTES


@pytest.mark.parametrize("seed", range(30))
def test_weights_come_back_from_their_packed_form(seed: int) -> None:
    case = random_case(seed, host_target())
    inputs, constants = case.arrays()
    kept = constants["w"].copy()
    weights = case.plan(inputs, constants, host_target()).builder.weights
    with patch.object(weights_module, "_SMALL", 0):
        weights.release()
    assert not weights.constants["w"].any()
    np.testing.assert_array_equal(weights.array("w").reshape(kept.shape), kept)
