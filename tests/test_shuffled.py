"""A channel shuffle that follows a convolution: against float64, beside unreadable pages, and without a step of its own
wherever the convolution or the conversion of its output can place the channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from convwright import reference
from convwright.codegen.lang import lanes
from convwright.codegen.target import Target, host_target
from convwright.graph import Node
from convwright.kernels import channels, gemm, layout, planar
from convwright.spec import ConvSpec
from tests.convolutions import random_size, random_window
from tests.kernels import each_target
from tests.plans import Arrays, Planned, graph_of, planned
from tests.sweeps import check_each, on_targets

ALGORITHMS = ("auto", "im2col", "direct-planes", "direct-blocked")
INTERNAL = "convwright"


@dataclass(frozen=True)
class Case:
    """A convolution, an activation, a shuffle of `groups` groups (0: of the convolution's), another activation.

    `inside`: between operators that hold channel blocks, a depthwise convolution behind.
    `element`: float64 ("f64") has no activations, and a tensor of three spatial axes none of its own.
    """

    spec: ConvSpec
    size: tuple[int, ...]
    algorithm: str = "auto"
    groups: int = 0
    batch: int = 1
    threads: int = 1
    inside: bool = False
    at_end: bool = True
    element: str = "f32"
    seed: int = 0

    @property
    def activations(self) -> tuple[bool, bool]:
        """Whether there is one before the shuffle, and one behind."""
        return self.element == "f32", self.element == "f32" and self.spec.rank < 3

    def plan(self, target: Target) -> tuple[Planned, Arrays, Arrays]:
        rng = np.random.default_rng(self.seed)
        out, dtype = self.spec.out_channels, np.float64 if self.element == "f64" else np.float32

        def normal(*shape: int) -> Any:
            return rng.standard_normal(shape).astype(dtype)

        inputs: Arrays = {"x": normal(self.batch, self.spec.in_channels, *self.size)}
        constants: Arrays = {"w": normal(*self.spec.weight_shape), "b": normal(out)}
        attributes = {"spec": self.spec, "algorithm": self.algorithm}
        nodes = [Node("Convolution", ["x", "w", "b"], ["t"], attributes, domain=INTERNAL)]
        before, behind = self.activations
        if before:
            nodes.append(Node("Relu", ["t"], ["u"]))
        groups = {"groups": self.groups or self.spec.groups}
        nodes.append(Node("ChannelShuffle", [nodes[-1].outputs[0]], ["s"], groups, domain=INTERNAL))
        if behind:
            nodes.append(Node("Neg", ["s"], ["y"]))
        if self.inside:
            constants["d"] = normal(out, 1, *[3] * self.spec.rank)
            attributes = {"group": out, "pads": [1] * (2 * self.spec.rank)}
            nodes.append(Node("Conv", [nodes[-1].outputs[0], "d"], ["z"], attributes))
        graph = graph_of(nodes, inputs, [nodes[-1].outputs[0]], constants)
        return planned(graph, target, self.threads, numerics="default"), inputs, constants

    def check(self, target: Target) -> Planned:
        plan, inputs, constants = self.plan(target)
        (got,) = plan.run(inputs, at_end=self.at_end).values()
        want: Any = reference.conv(inputs["x"], constants["w"], constants["b"], self.spec)
        before, behind = self.activations
        want = reference.channel_shuffle(np.maximum(want, 0) if before else want, self.groups or self.spec.groups)
        want = -want if behind else want
        if self.inside:
            depthwise = ConvSpec.of_weight(constants["d"].shape, padding=1, groups=self.spec.out_channels, bias=False)
            want = reference.conv(want, constants["d"], None, depthwise)
        allowed = (1e-5 if self.element == "f32" else 1e-14) * (1 + np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=allowed, err_msg=str(self))
        return plan


def pointwise(own: int, outs: int, groups: int, rank: int = 2) -> ConvSpec:
    return ConvSpec(own * groups, outs * groups, (1,) * rank, groups=groups)


def random_case(seed: int, target: Target) -> Case:
    """Mostly pointwise in groups, of one to three axes, shuffled by the convolution's groups; some of other kernels,
    and some shuffled by another divisor of the channels."""
    rng = np.random.default_rng(seed)
    element = "f64" if rng.random() < 0.2 else "f32"
    v, rank = lanes(target, element), int(rng.choice([1, 2, 2, 3]))
    groups = int(rng.choice([1, 2, 3, 4, 5, 8]))
    own_in, own_out = (int(n) for n in rng.choice([1, 2, 3, v // 2, v - 1, v, v + 1, 2 * v], 2))
    window = random_window(rng, rank, 3)
    if rng.random() < 0.7:
        window["kernel"] = (1,) * rank
    if rng.random() < 0.6:
        window |= {"stride": 1, "padding": 0}
    spec = ConvSpec(groups * own_in, groups * own_out, groups=groups, **window)
    on_blocks = rank < 3 and element == "f32" and spec.kind != "depthwise"
    divisors = [n for n in range(1, spec.out_channels + 1) if spec.out_channels % n == 0]
    return Case(
        spec,
        random_size(rng, spec, 150),
        str(rng.choice(ALGORITHMS if on_blocks else ALGORITHMS[:-1])),
        groups=int(rng.choice(divisors)) if rng.random() < 0.2 else 0,
        batch=int(rng.integers(1, 4)),
        threads=int(rng.integers(1, 4)),
        inside=bool(rng.random() < 0.3),
        at_end=bool(rng.random() < 0.5),
        element=element,
        seed=seed,
    )


@on_targets(12)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: case.check(target))


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


@each_target
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 6, 2, 3, 5), np.float32), ((2, 6, 4, 3), np.float64), ((1, 6, 7), np.int32), ((3, 6), np.int64)],
)
def test_what_channel_blocks_do_not_hold_is_shuffled_in_a_copy(
    target: Target, shape: tuple[int, ...], dtype: Any
) -> None:
    x = np.random.default_rng(0).integers(-99, 99, shape).astype(dtype)
    for groups in (2, 3, 6):
        node = Node("ChannelShuffle", ["x"], ["y"], {"groups": groups}, domain=INTERNAL)
        plan = planned(graph_of([node], {"x": x}, ["y"], {}), target, 2)
        np.testing.assert_array_equal(plan.run({"x": x})["y"], reference.channel_shuffle(x, groups))
