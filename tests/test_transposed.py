"""Transposed convolutions by the phases of their stride, on channel blocks: against float64, guard pages around every
buffer, NaN in all memory that means nothing."""

from __future__ import annotations

import numpy as np
import pytest

from convwright import reference
from convwright.codegen.target import Target, host_target
from convwright.graph import Node
from convwright.kernels import winograd
from convwright.model.lower import subpixel
from convwright.model.lower import transposed as lowering
from convwright.model.problem import Problem
from convwright.spec import ConvSpec
from tests.plans import graph_of, planned
from tests.sweeps import OTHERS, check_each, on_targets

BOUND = 8e-6  # of the largest value: tests/test_winograd.py


def check(spec: ConvSpec, size: tuple[int, ...], target: Target, *, batch: int = 1, threads: int = 2, seed: int = 0,
          at_end: bool = True, variant: str = "transposed") -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    inputs = {"x": rng.standard_normal((batch, spec.in_channels, *size)).astype(np.float32)}
    constants = {"w": rng.standard_normal(spec.weight_shape).astype(np.float32)}
    if spec.bias:
        constants["b"] = rng.standard_normal(spec.out_channels).astype(np.float32)
    attributes = {"spec": spec, "algorithm": f"winograd-{variant}"}
    nodes = [
        Node("Identity", ["x"], ["inside"]),
        Node("Convolution", ["inside", *constants], ["y"], attributes, domain="convwright"),
        Node("Relu", ["y"], ["z"]),
    ]
    plan = planned(graph_of(nodes, inputs, ["z"], constants), target, threads, numerics="default")
    steps = plan.tiles(winograd)
    assert len(steps) == (int(np.prod(spec.stride)) if variant == "transposed" else 1)
    (y,) = plan.run(inputs, at_end=at_end).values()
    expected = np.maximum(reference.conv(inputs["x"], constants["w"], constants.get("b"), spec), 0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=BOUND * (1 + np.abs(expected).max()), err_msg=str(spec))


Drawn = tuple[ConvSpec, tuple[int, ...], int]  # with its seed


def random_spec(seed: int, target: Target) -> Drawn:
    """A convolution whose phases Winograd can compute, and an input size."""
    rng = np.random.default_rng(seed)
    v = target.vector
    while True:
        rank = int(rng.integers(1, 3))
        stride = [int(rng.integers(1, 4)) for _ in range(rank)]
        kernel = [int(rng.integers(step, step * 3 + 1)) for step in stride]
        groups = 1
        own = [int(rng.choice([1, 3, v - 1, v, v + 1, 2 * v])) for _ in range(2)]
        if rng.random() < 0.2:
            groups, own = 2, [2 * v, 4 * v]
        padding = rng.integers(0, 1 if rng.random() < 0.3 else 3, (rank, 2)).tolist()
        extra = [int(rng.integers(0, step)) for step in stride]
        spec = ConvSpec(
            own[0], own[1], kernel, groups=groups, stride=stride, padding=padding, output_padding=extra,
            transposed=True, flip=bool(rng.random() < 0.2), bias=bool(rng.random() < 0.7),
        )  # fmt: skip
        size = tuple(int(rng.integers(2, 14)) for _ in range(rank))
        low = [step * (n - 1) + k + e - sum(p)
               for step, n, k, e, p in zip(stride, size, kernel, extra, padding, strict=True)]  # fmt: skip
        if min(low) < 1:
            continue
        p = Problem(spec, size, 1, np.dtype(np.float32), target, 2, algorithm="winograd-transposed")
        if lowering.ROW.why_not(p) is None:
            return spec, size, seed


def random_few(seed: int, target: Target) -> Drawn:
    """A convolution to fewer output channels than fill a vector, and an input size."""
    rng = np.random.default_rng(seed)
    while True:
        rank = int(rng.integers(1, 3))
        stride = [int(rng.integers(1, 5)) for _ in range(rank - 1)] + [int(rng.integers(2, 5))]
        kernel = [int(rng.integers(1, 10)) for _ in range(rank)]
        size = tuple(int(rng.integers(7, 20)) for _ in range(rank))
        padding = [int(rng.integers(0, 1 + n // 2)) for n in kernel]
        spec = ConvSpec(
            int(rng.choice([1, 5, target.vector + 1])), int(rng.integers(1, target.vector)), kernel, stride=stride,
            padding=padding, transposed=True, flip=bool(rng.random() < 0.2), bias=bool(rng.random() < 0.7),
        )  # fmt: skip
        if subpixel.ROW.why_not(Problem(spec, size, 1, np.dtype(np.float32), target, 2)) is None:
            return spec, size, seed


def check_random(drawn: Drawn, target: Target, variant: str = "transposed") -> None:
    spec, size, seed = drawn
    check(
        spec, size, target, batch=1 + seed % 2, threads=1 + seed % 3, seed=seed, at_end=seed % 4 < 2, variant=variant
    )  # fmt: skip


@on_targets(25, full=(OTHERS, OTHERS))
def test_random_transposed_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_spec(seed, target), lambda drawn: check_random(drawn, target))


@on_targets(15, full=(OTHERS, OTHERS))
def test_phases_as_channels(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_few(seed, target), lambda drawn: check_random(drawn, target, "subpixel"))


def test_few_channels_of_many_phases_are_computed_together() -> None:
    spec = ConvSpec(64, 3, (9, 9), stride=3, padding=4, transposed=True)
    p = Problem(spec, (64, 64), 1, np.dtype(np.float32), host_target(), 2)
    form = subpixel.form_of(p)
    assert form.problem.spec.out_channels == 27
    assert form.problem.spec.kernel == (4, 4)
    assert subpixel.ROW.multiplications(p) < spec.macs((64, 64)) * 0.8


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ConvSpec(16, 16, (3, 3), stride=2), "not transposed"),
        (ConvSpec(16, 16, (3, 3), transposed=True), "one phase"),
        (ConvSpec(16, 16, (3, 3), stride=2, dilation=2, transposed=True), "not neighbours"),
        (ConvSpec(16, 16, (2, 3), stride=3, transposed=True), "no tap"),
        (ConvSpec(16, 16, (2, 2), stride=2, transposed=True), "as large as the stride"),
        (ConvSpec(16, 16, (3, 3, 3), stride=2, transposed=True), "at most two axes"),
        (ConvSpec(6, 6, (4, 4), stride=2, groups=2, transposed=True), "groups must fill vectors"),
    ],
)
def test_what_it_cannot_do_has_a_reason(spec: ConvSpec, reason: str) -> None:
    p = Problem(spec, (9,) * spec.rank, 1, np.dtype(np.float32), host_target(), 2)
    assert reason in (lowering.ROW.why_not(p) or "")


def test_multiplications_are_those_of_the_phases() -> None:
    spec = ConvSpec(16, 32, (4, 4), stride=2, padding=1, transposed=True)
    p = Problem(spec, (16, 16), 1, np.dtype(np.float32), host_target(), 2)
    each = {phase.cut.form.high for phase in lowering.phases_of(p) if not isinstance(phase, str)}
    assert all(axis[0] > 1 and axis[1] == 2 for axis in each)
    assert lowering.ROW.multiplications(p) < spec.macs((16, 16))
