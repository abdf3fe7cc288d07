"""A channel shuffle that follows a convolution: against float64, beside unreadable pages, and without a step of its own
wherever the convolution or the conversion of its output can place the channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from convwright import reference
from convwright.codegen.target import Target, host_target
from convwright.graph import Node
from convwright.kernels import channels, gemm, layout, planar
from convwright.spec import ConvSpec
from tests.kernels import each_target
from tests.plans import Arrays, Planned, graph_of, planned

ALGORITHMS = ("auto", "im2col", "direct-planes", "direct-blocked")
INTERNAL = "convwright"


@dataclass(frozen=True)
class Case:
    """A convolution, an activation, a shuffle of `groups` groups (0: of the convolution's), another activation.

    `inside`: between operators that hold channel blocks, a depthwise convolution behind.
    """

    spec: ConvSpec
    size: tuple[int, ...]
    algorithm: str = "auto"
    groups: int = 0
    batch: int = 1
    threads: int = 1
    inside: bool = False
    at_end: bool = True

    def plan(self, target: Target) -> tuple[Planned, Arrays, Arrays]:
        rng = np.random.default_rng(sum(self.size))
        out = self.spec.out_channels
        inputs: Arrays = {"x": rng.standard_normal((self.batch, self.spec.in_channels, *self.size)).astype(np.float32)}
        constants: Arrays = {"w": rng.standard_normal(self.spec.weight_shape).astype(np.float32)}
        constants["b"] = rng.standard_normal(out).astype(np.float32)
        attributes = {"spec": self.spec, "algorithm": self.algorithm}
        nodes = [
            Node("Convolution", ["x", "w", "b"], ["t"], attributes, domain=INTERNAL),
            Node("Relu", ["t"], ["u"]),
            Node("ChannelShuffle", ["u"], ["s"], {"groups": self.groups or self.spec.groups}, domain=INTERNAL),
            Node("Neg", ["s"], ["y"]),
        ]
        if self.inside:
            constants["d"] = rng.standard_normal((out, 1, *[3] * self.spec.rank)).astype(np.float32)
            attributes = {"group": out, "pads": [1] * (2 * self.spec.rank)}
            nodes.append(Node("Conv", ["y", "d"], ["z"], attributes))
        graph = graph_of(nodes, inputs, ["z" if self.inside else "y"], constants)
        return planned(graph, target, self.threads, numerics="default"), inputs, constants

    def check(self, target: Target) -> Planned:
        plan, inputs, constants = self.plan(target)
        (got,) = plan.run(inputs, at_end=self.at_end).values()
        want: Any = reference.conv(inputs["x"], constants["w"], constants["b"], self.spec)
        want = -reference.channel_shuffle(np.maximum(want, 0), self.groups or self.spec.groups)
        if self.inside:
            depthwise = ConvSpec.of_weight(constants["d"].shape, padding=1, groups=self.spec.out_channels, bias=False)
            want = reference.conv(want, constants["d"], None, depthwise)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * (1 + np.abs(want).max()), err_msg=str(self))
        return plan


def pointwise(own: int, outs: int, groups: int, rank: int = 2) -> ConvSpec:
    return ConvSpec(own * groups, outs * groups, (1,) * rank, groups=groups)


@each_target
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_groups_that_fill_vectors_and_groups_that_do_not(target: Target, algorithm: str) -> None:
    v = target.vector
    for own, outs, groups in [(3, 1, 2), (2, 3, 3), (v, v, 2), (v - 1, v + 1, 3), (v + 1, 2 * v, 4), (5, v - 1, 8)]:
        for size in [(7, 7), (1, v), (3, v - 2)]:
            Case(pointwise(own, outs, groups), size, algorithm, at_end=groups != 3).check(target)


@each_target
@pytest.mark.parametrize("inside", [False, True])
def test_images_and_threads(target: Target, inside: bool) -> None:
    v = target.vector
    for outs in (v // 2 + 1, v):
        Case(pointwise(6, outs, 3), (5, 9), batch=3, threads=2, inside=inside).check(target)
        Case(pointwise(6, outs, 3, rank=1), (2 * v + 1,), batch=2, threads=3, inside=inside).check(target)


@each_target
def test_any_convolution_may_be_shuffled_by_any_groups(target: Target) -> None:
    v = target.vector
    specs = [
        (ConvSpec(8, 2 * v, (3, 3), padding=1), 4),
        (ConvSpec(2 * v, 4 * v, (3, 3), groups=2, padding=1), 2),
        (ConvSpec(12, 24, (3, 2), stride=2, groups=3), 3),
        (ConvSpec(12, 24, (1, 1), groups=3), 4),
        (ConvSpec(12, 24, (1, 1), groups=12), 12),
        (ConvSpec(12, 24, (2, 3), groups=3, stride=2, transposed=True), 3),
        (ConvSpec(12, 18, (3, 3), groups=3, padding=1, padding_mode="reflect"), 3),
    ]
    for spec, groups in specs:
        Case(spec, (9, 8), groups=groups).check(target)
    for algorithm in ("winograd", "im2col", "direct-planes"):
        Case(specs[1][0], (9, 8), algorithm, groups=2).check(target)
        Case(specs[1][0], (9, 8), algorithm, groups=4).check(target)


def families(case: Case) -> list[Any]:
    plan, *_ = case.plan(host_target())
    return [step.family for step in plan.steps]


def test_no_step_is_left_where_channels_can_be_placed() -> None:
    for own, groups, size in [(80, 3, (28, 28)), (48, 8, (28, 28)), (160, 3, (14, 14)), (64, 4, (7, 7))]:
        spec = pointwise(own, own, groups)
        assert families(Case(spec, size, "im2col")) == [gemm]
        assert families(Case(spec, size, "direct-planes")) == [planar]
        blocked = families(Case(spec, size, "direct-blocked"))
        assert channels not in blocked
        assert blocked[-1] is layout


def test_a_shuffle_that_others_read_beside_stays() -> None:
    """The convolution's own output is asked for too."""
    spec = pointwise(4, 4, 3)
    rng = np.random.default_rng(0)
    inputs: Arrays = {"x": rng.standard_normal((1, 12, 6, 7)).astype(np.float32)}
    constants: Arrays = {"w": rng.standard_normal(spec.weight_shape).astype(np.float32)}
    nodes = [
        Node("Conv", ["x", "w"], ["t"], {"group": 3}),
        Node("ChannelShuffle", ["t"], ["y"], {"groups": 3}, domain=INTERNAL),
    ]
    results = planned(graph_of(nodes, inputs, ["t", "y"], constants), host_target()).run(inputs)
    np.testing.assert_array_equal(results["y"], reference.channel_shuffle(results["t"], 3))
    sums = reference.conv(inputs["x"], constants["w"], None, ConvSpec(12, 12, (1, 1), groups=3, bias=False))
    np.testing.assert_allclose(results["t"], sums, rtol=0, atol=1e-5 * np.abs(sums).max())
