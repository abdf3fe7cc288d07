"""Transposed convolutions whose kernel is their stride, in pairs: against float64 on every target, every buffer beside
an unreadable page and NaN in all memory that means nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convwright import reference
from convwright.codegen.target import Target, target_named
from convwright.graph import Node
from convwright.kernels import paired
from convwright.model.lower import conv
from convwright.model.lower import paired as paired_lowering
from convwright.model.lower import paired_transposed as lowering
from convwright.model.problem import Problem
from convwright.spec import ConvSpec
from tests.kernels import each_target
from tests.plans import graph_of, planned


def problem_of(spec: ConvSpec, size: tuple[int, ...], target: Target, **options: Any) -> Problem:
    options = {"algorithm": "paired", "batch": 1, "threads": 2, **options}
    return Problem(spec, size, dtype=np.dtype(np.float32), target=target, **options)


def check(spec: ConvSpec, size: tuple[int, ...], target: Target, batch: int, threads: int, at_end: bool) -> None:
    rng = np.random.default_rng(spec.out_channels)
    inputs = {"x": rng.standard_normal((batch, spec.in_channels, *size)).astype(np.float32)}
    constants = {"w": rng.standard_normal(spec.weight_shape).astype(np.float32)}
    if spec.bias:
        constants["b"] = rng.standard_normal(spec.out_channels).astype(np.float32)
    nodes = [
        Node("Identity", ["x"], ["inside"]),
        Node("Convolution", ["inside", *constants], ["y"], {"spec": spec, "algorithm": "paired"}, domain="convwright"),
        Node("Relu", ["y"], ["z"]),
    ]
    plan = planned(graph_of(nodes, inputs, ["z"], constants), target, threads, numerics="default")
    assert len(plan.tiles(paired)) == 1
    (y,) = plan.run(inputs, at_end=at_end).values()
    exact = reference.conv(inputs["x"], constants["w"], constants.get("b"), spec)
    bound = lowering.ROW.error_bound(problem_of(spec, size, target)) * np.abs(exact).max()
    np.testing.assert_allclose(y, np.maximum(exact, 0), rtol=0, atol=bound, err_msg=str(spec))
    # The plan keeps the packed weights alone.
    np.testing.assert_array_equal(plan.builder.weights.array("w"), constants["w"])


@each_target
def test_every_size_of_kernel_and_channels(target: Target) -> None:
    v = target.vector
    cases: list[tuple[int, int, tuple[int, ...], tuple[int, ...]]] = [
        (8, 1, (2, 2), (2, 4)),
        (24, v - 1, (1, 3), (3, 3)),
        (40, v, (3, 2), (4, 5)),
        (8, v + 1, (2, 2), (1, 9)),
        (72, 2 * v, (2, 2), (7, 5)),
        (16, 3 * v + 2, (4,), (13,)),
        (24, 2, (1, 8), (8, 1)),
    ]
    for number, (channels, outs, kernel, size) in enumerate(cases):
        spec = ConvSpec(channels, outs, kernel, stride=kernel, transposed=True, bias=number % 3 != 1)
        check(spec, size, target, batch=1 + number % 2, threads=1 + number % 3, at_end=number % 2 == 0)


@pytest.mark.parametrize(
    ("spec", "options", "reason"),
    [
        (ConvSpec(16, 16, (2, 2), stride=2), {}, "not transposed"),
        (ConvSpec(16, 16, (2, 2, 2), stride=2, transposed=True), {}, "at most two axes"),
        (ConvSpec(16, 16, (3, 3), stride=2, transposed=True), {}, "not the same"),
        (ConvSpec(16, 16, (1, 1), transposed=True), {}, "not the same"),
        (ConvSpec(16, 16, (2, 2), stride=2, dilation=2, transposed=True), {}, "dilation"),
        (ConvSpec(16, 16, (2, 2), stride=2, flip=True, transposed=True), {}, "flip True"),
        (ConvSpec(16, 16, (2, 2), stride=2, padding=1, output_padding=1, transposed=True), {}, "must be none"),
        (ConvSpec(16, 16, (2, 2), stride=2, groups=2, transposed=True), {}, "2 groups"),
        (ConvSpec(12, 16, (2, 2), stride=2, transposed=True), {}, "12 input channels"),
        (ConvSpec(16, 16, (2, 2), stride=2, transposed=True), {"residual": True}, "no residual"),
        (ConvSpec(16, 16, (2, 2), stride=2, transposed=True), {"numerics": "strict"}, "strict"),
    ],
)
def test_what_it_cannot_do_has_a_reason(spec: ConvSpec, options: Any, reason: str) -> None:
    problem = problem_of(spec, (9,) * spec.rank, target_named("avx512"), **options)
    assert reason in (lowering.ROW.why_not(problem) or "")


def test_chosen_by_itself_only_where_additions_have_pipes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConvSpec(128, 64, (2, 2), stride=2, transposed=True)
    problem = problem_of(spec, (56, 56), target_named("avx512"), algorithm="auto", plain_input=True, plain_output=True)
    for beside in (True, False):
        monkeypatch.setattr(paired_lowering, "adds_beside_multiply_adds", lambda _, beside=beside: beside)
        conv._row_of.cache_clear()
        assert (conv.algorithm_of(problem) is lowering.ROW) == beside
        assert conv.algorithm_of(replace(problem, numerics="strict")) is not lowering.ROW
    conv._row_of.cache_clear()


def test_figures_of_the_row() -> None:
    target, spec = target_named("avx512"), ConvSpec(64, 48, (2, 2), stride=2, transposed=True)
    problem = problem_of(spec, (16, 12), target)
    assert lowering.ROW.multiplications(problem) == spec.macs((16, 12)) * 11 // 16
    assert 0 < lowering.ROW.workspace(problem) < 2 * 2**20
