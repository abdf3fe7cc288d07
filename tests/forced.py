"""Random convolutions of every kind through an algorithm that is asked for, against float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from convwright import reference
from convwright.codegen.lang import lanes
from convwright.codegen.target import Target
from convwright.errors import ConvwrightError
from convwright.graph import Node
from convwright.spec import PADDING_MODES, ConvSpec
from tests.plans import Planned, graph_of, planned

ROUNDING = {"f32": 2.0**-24, "f64": 2.0**-53}


@dataclass(frozen=True)
class Case:
    """A convolution of random numbers, planned as a model plans it, every buffer beside an unreadable page."""

    algorithm: str
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
        attributes = {"spec": self.spec, "algorithm": self.algorithm}
        nodes = [Node("Convolution", ["x", *constants], ["y"], attributes, domain="convwright")]
        if self.relu:
            nodes.append(Node("Relu", ["y"], ["z"]))
        graph = graph_of(nodes, inputs, [nodes[-1].outputs[0]], constants)
        return planned(graph, target, self.threads, numerics="default")

    def error(self, target: Target) -> tuple[Planned, float]:
        """The largest error, relative to the largest output."""
        inputs, constants = self.arrays()
        plan = self.plan(inputs, constants, target)
        (y,) = plan.run(inputs, at_end=self.at_end).values()
        expected = reference.conv(inputs["x"], constants["w"], constants.get("b"), self.spec)
        largest = 1 + np.abs(expected).max(initial=0.0)
        if self.relu:
            expected = np.maximum(expected, 0)
        assert y.shape == expected.shape
        assert not np.isnan(y).any(), self
        return plan, float(np.abs(y - expected).max(initial=0.0) / largest)

    def check(self, target: Target) -> Planned:
        plan, error = self.error(target)
        terms = math.prod(self.spec.weight_shape[1:]) + 1
        assert error <= 32 * ROUNDING[self.element] * math.sqrt(terms), self
        return plan


def random_case(algorithm: str, seed: int, target: Target) -> Case:
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
        if rng.random() < 0.1:
            kernel = [1] * rank
        edges = [1, 2, v - 1, v, v + 1, 2 * v + 3, int(rng.integers(1, 30))]
        size = [int(rng.choice(edges)) if axis >= rank - 2 else int(rng.integers(1, 5))
                for axis in range(rank)]  # fmt: skip
        strides = [1] if rng.random() < 0.4 else [1, 1, 2, 3, 4, 5, 9]
        try:
            spec = ConvSpec(
                groups * own_in,
                groups * own_out,
                kernel,
                stride=[int(rng.choice(strides)) for _ in range(rank)],
                padding=0
                if rng.random() < 0.3
                else [tuple(int(n) for n in rng.integers(0, 5, 2)) for _ in range(rank)],
                dilation=[int(rng.choice([1, 1, 1, 2, 3])) for _ in range(rank)],
                groups=groups,
                transposed=transposed,
                output_padding=[int(rng.integers(0, 2)) for _ in range(rank)]
                if transposed and rng.random() < 0.3
                else 0,
                padding_mode="zeros" if transposed else str(rng.choice([*PADDING_MODES, "zeros", "zeros"])),
                flip=bool(rng.random() < 0.2),
                bias=bool(rng.random() < 0.7),
            )
            spec.output_size(size)
        except ConvwrightError:
            continue
        return Case(
            algorithm,
            spec,
            tuple(size),
            batch=int(rng.integers(1, 3)),
            element=element,
            threads=int(rng.integers(1, 4)),
            at_end=bool(rng.random() < 0.5),
            relu=element == "f32" and bool(rng.random() < 0.2),
            seed=seed,
        )
