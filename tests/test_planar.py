"""Direct convolution on row-major tensors against float64: every rank, padding mode and type, transposed or not.

Planned as a model plans it, every buffer beside an unreadable page and scratch memory full of NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from convwright import reference
from convwright.codegen.lang import lanes
from convwright.codegen.target import Target, host_target
from convwright.errors import ConvwrightError
from convwright.graph import Node
from convwright.kernels import planar
from convwright.model import weights as weights_module
from convwright.model.lower import planar as lowering
from convwright.model.lower.conv import algorithm_of
from convwright.model.problem import Problem
from convwright.spec import PADDING_MODES, ConvSpec
from tests.kernels import each_target
from tests.plans import Planned, graph_of, planned

Random = np.random.Generator
ROUNDING = {"f32": 2.0**-24, "f64": 2.0**-53}


@dataclass(frozen=True)
class Case:
    """A convolution of random numbers."""

    spec: ConvSpec
    size: tuple[int, ...]
    batch: int = 1
    element: str = "f32"
    threads: int = 1
    at_end: bool = True
    relu: bool = False
    seed: int = 0

    def arrays(self) -> tuple[Any, Any]:
        rng = np.random.default_rng(self.seed)
        dtype = np.dtype(np.float64 if self.element == "f64" else np.float32)
        inputs = {"x": rng.standard_normal((self.batch, self.spec.in_channels, *self.size)).astype(dtype)}
        constants = {"w": rng.standard_normal(self.spec.weight_shape).astype(dtype)}
        if self.spec.bias:
            constants["b"] = rng.standard_normal(self.spec.out_channels).astype(dtype)
        return inputs, constants

    def plan(self, inputs: Any, constants: Any, target: Target) -> Planned:
        attributes = {"spec": self.spec, "algorithm": "direct-planes"}
        nodes = [Node("Convolution", ["x", *constants], ["y"], attributes, domain="convwright")]
        if self.relu:
            nodes.append(Node("Relu", ["y"], ["z"]))
        return planned(graph_of(nodes, inputs, [nodes[-1].outputs[0]], constants), target, self.threads)

    def check(self, target: Target) -> Planned:
        inputs, constants = self.arrays()
        plan = self.plan(inputs, constants, target)
        assert plan.tiles(planar), plan.steps
        (y,) = plan.run(inputs, at_end=self.at_end).values()
        expected = reference.conv(inputs["x"], constants["w"], constants.get("b"), self.spec)
        terms = math.prod(self.spec.weight_shape[1:]) + 1
        bound = 32 * ROUNDING[self.element] * math.sqrt(terms) * (1 + np.abs(expected).max(initial=0.0))
        if self.relu:
            expected = np.maximum(expected, 0)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=0, atol=bound, err_msg=str(self))
        return plan


def random_case(seed: int, target: Target) -> Case:
    rng = np.random.default_rng(seed)
    element = "f64" if rng.random() < 0.25 else "f32"
    v = lanes(target, element)
    rank = int(rng.integers(1, 4))
    transposed = bool(rng.random() < 0.35)
    while True:
        groups = int(rng.choice([1, 1, 1, 2, 3, 7]))
        own_in, own_out = (int(rng.choice([1, 1, 2, 3, 5, 9])) for _ in range(2))
        most = {1: 12, 2: 6, 3: 4}[rank]
        kernel = [int(rng.integers(1, most)) for _ in range(rank)]
        if rng.random() < 0.15:
            kernel[rank - 1 - int(rng.random() < 0.5 and rank > 1)] = int(rng.integers(8, 14))
        edges = [1, 2, v - 1, v, v + 1, 2 * v + 3, int(rng.integers(1, 30))]
        size = [int(rng.choice(edges)) if axis >= rank - 2 else int(rng.integers(1, 5))
                for axis in range(rank)]  # fmt: skip
        try:
            spec = ConvSpec(
                groups * own_in,
                groups * own_out,
                kernel,
                stride=[int(rng.choice([1, 1, 2, 3, 4, 5, 6])) for _ in range(rank)],
                padding=[tuple(int(n) for n in rng.integers(0, 5, 2)) for _ in range(rank)],
                dilation=[int(rng.choice([1, 1, 1, 2, 3])) for _ in range(rank)],
                groups=groups,
                transposed=transposed,
                padding_mode="zeros" if transposed else str(rng.choice([*PADDING_MODES, "zeros", "zeros"])),
                flip=bool(rng.random() < 0.2),
                bias=bool(rng.random() < 0.7),
            )
            spec.output_size(size)
        except ConvwrightError:
            continue
        return Case(
            spec,
            tuple(size),
            batch=int(rng.integers(1, 3)),
            element=element,
            threads=int(rng.integers(1, 4)),
            at_end=bool(rng.random() < 0.5),
            relu=element == "f32" and bool(rng.random() < 0.2),
            seed=seed,
        )


@each_target
def test_random_convolutions(target: Target) -> None:
    for seed in range(40):
        random_case(seed, target).check(target)


@pytest.mark.long
@each_target
@pytest.mark.parametrize("start", range(1000, 4000, 100))
def test_many_random_convolutions(target: Target, start: int) -> None:
    for seed in range(start, start + 100):
        random_case(seed, target).check(target)


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
        plan = Case(ConvSpec(3, 3, kernel, **options), (19, width), threads=2).check(target)
        (tile,) = plan.tiles(planar)
        assert tile.column, tile


@each_target
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
def test_phases_of_transposed_convolutions_are_woven_together(target: Target, stride: int) -> None:
    for width, kernel, low in ((1, 1, 0), (5, 2, 0), (target.vector + 1, 9, 4), (40, 3, 1)):
        if stride * (width - 1) + kernel <= 2 * low:
            continue
        spec = ConvSpec(2, 3, (kernel,), stride=stride, padding=low, transposed=True)
        Case(spec, (width,), batch=2).check(target)


@each_target
def test_many_groups_are_taken_several_to_a_work_item(target: Target) -> None:
    plan = Case(ConvSpec(101, 101, (3, 3), padding=1, groups=101), (7, 7), threads=2).check(target)
    (step,) = plan.steps
    assert 1 < step.arguments["chunk_groups"] < 101
    assert step.items == -(-101 // step.arguments["chunk_groups"])


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (3, 3, 3)])
def test_nan_and_infinity_go_where_the_sums_take_them(kernel: tuple[int, ...]) -> None:
    spec = ConvSpec(2, 2, kernel, padding=1, groups=2)
    case = Case(spec, (6,) * len(kernel))
    inputs, constants = case.arrays()
    inputs["x"][0, 0].flat[7 % inputs["x"][0, 0].size] = np.nan
    inputs["x"][0, 1].flat[3] = np.inf
    (y,) = case.plan(inputs, constants, host_target()).run(inputs).values()
    expected = reference.conv(inputs["x"], constants["w"], constants["b"], spec)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(y[np.isinf(expected)], expected[np.isinf(expected)])


def test_scratch_is_what_the_row_says() -> None:
    spec = ConvSpec(64, 64, (3, 3), padding=1, groups=16)
    p = Problem(spec, (56, 56), 1, np.dtype(np.float32), host_target(), 2, plain_input=True, plain_output=True)
    assert algorithm_of(p) is lowering.ROW
    plan = Case(spec, (56, 56), threads=2).check(host_target())
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
