"""Deformable convolutions against float64, on every target: planned as a model plans them, every buffer beside an
unreadable page, and NaN in all memory that means nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright import reference
from convwright.codegen.target import Target
from convwright.graph import Node
from convwright.kernels.activations import ROWS
from convwright.model.lower import deformable as lowering
from convwright.spec import ConvSpec, DeformableSpec
from tests.convolutions import ACTIVATIONS, RESIDUAL, Epilogue, compare, random_epilogue, random_size, random_window
from tests.kernels import each_target
from tests.plans import Arrays, Planned, graph_of, planned


@dataclass(frozen=True)
class Case:
    """A deformable convolution with its epilogue.

    reach: the offsets' standard deviation, in pixels.
    inside: the input is not the graph's own.
    chunk_bytes: of the columns of one chunk, 0 for the usual.
    """

    spec: DeformableSpec
    batch: int
    size: tuple[int, ...]
    epilogue: Epilogue = ()
    reach: float = 1.5
    inside: bool = False
    threads: int = 1
    at_end: bool = True
    chunk_bytes: int = 0
    seed: int = 0

    def arrays(self) -> tuple[Arrays, Arrays]:
        """The graph's inputs, and its constants."""
        rng, spec, conv = np.random.default_rng(self.seed), self.spec, self.spec.conv

        def normal(*shape: int) -> NDArray[np.float32]:
            return rng.standard_normal(shape).astype(np.float32)

        x = normal(self.batch, conv.in_channels, *self.size)
        offset = normal(*spec.offset_shape(self.size, self.batch)) * np.float32(self.reach)
        # Whole and half offsets, where the weights of some pixels are zero, and places far outside.
        some = rng.random(offset.shape) < 0.2
        offset[some] = np.round(2 * offset[some]) / 2
        far = rng.random(offset.shape) < 0.02
        offset[far] = rng.choice([1e30, -1e30, 1e9, -70000.0, np.inf, -np.inf], far.sum())
        inputs: Arrays = {"x": x, "offset": offset}
        if spec.modulated:
            inputs["mask"] = normal(*spec.mask_shape(self.size, self.batch))
        if RESIDUAL in self.epilogue:
            inputs["r"] = normal(self.batch, conv.out_channels, *conv.output_size(self.size))
        constants: Arrays = {"w": normal(*conv.weight_shape)}
        if conv.bias:
            constants["b"] = normal(conv.out_channels)
        return inputs, constants

    def node(self, source: str) -> Node:
        conv = self.spec.conv
        low, high = zip(*conv.pads(self.size), strict=True)
        attributes: dict[str, Any] = {
            "kernel_shape": conv.kernel, "strides": conv.stride, "dilations": conv.dilation, "pads": (*low, *high),
            "group": conv.groups, "offset_group": self.spec.offset_groups,
        }  # fmt: skip
        names = [source, "w", "offset", "b" if conv.bias else "", "mask" if self.spec.modulated else ""]
        return Node("DeformConv", names, ["y"], attributes)

    def plan(self, inputs: Arrays, constants: Arrays, target: Target) -> Planned:
        nodes = [Node("Identity", ["x"], ["inside"])] if self.inside else []
        nodes.append(self.node("inside" if self.inside else "x"))
        for number, operation in enumerate(self.epilogue):
            name = nodes[-1].outputs[0]
            if operation == RESIDUAL:
                nodes.append(Node("Add", [name, "r"], [f"y{number}"]))
            else:
                op, options = ACTIVATIONS[operation]
                nodes.append(Node(op, [name], [f"y{number}"], dict(options)))
        return planned(graph_of(nodes, inputs, [nodes[-1].outputs[0]], constants), target, self.threads)

    def run(self, inputs: Arrays, constants: Arrays, target: Target) -> tuple[NDArray[Any], Planned]:
        with pytest.MonkeyPatch.context() as patch:
            if self.chunk_bytes:
                patch.setattr(lowering, "_COLUMN_BYTES", self.chunk_bytes)
            plan = self.plan(inputs, constants, target)
        (result,) = plan.run(inputs, at_end=self.at_end).values()
        return result, plan

    def expected(self, inputs: Arrays, constants: Arrays) -> tuple[NDArray[np.float64], float]:
        """The output in float64, and how far a result may be from it (see ``tests.convolutions``)."""
        spec, b = self.spec, constants.get("b")
        y = reference.deform_conv(inputs["x"], inputs["offset"], constants["w"], b, spec, inputs.get("mask"))
        terms = math.prod(spec.conv.weight_shape[1:])
        largest = [
            float(np.abs(array).max()) for array in (inputs["x"], constants["w"], inputs.get("mask", np.ones(1)))
        ]
        bound = 2e-6 * math.sqrt(terms) * (math.prod(largest) + 1)
        for name, *parameters in self.epilogue:
            with np.errstate(all="ignore"):
                y = y + inputs["r"] if (name,) == RESIDUAL else ROWS[name].reference(y, *parameters)
        return y, bound

    def check(self, target: Target) -> Planned:
        inputs, constants = self.arrays()
        result, plan = self.run(inputs, constants, target)
        compare(result, *self.expected(inputs, constants), self)
        return plan


def random_case(seed: int, target: Target) -> Case:
    rng = np.random.default_rng(seed)
    v = target.vector
    own_in, own_out = (int(n) for n in rng.choice([1, 1, 2, 3, 4, v - 1, v, v + 1, 2 * v + 3], 2))
    groups = int(rng.choice([1, 1, 2, 3, 4, v, v + 1]))
    if own_in * own_out * groups > 2000:
        groups = 1
    if rng.random() < 0.3:
        own_out = own_in
    channels = own_in * groups
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    offset_groups = 1 if rng.random() < 0.5 else int(rng.choice(divisors[:6] + divisors[-1:]))
    window = random_window(rng, 2, 5)
    conv = ConvSpec(channels, own_out * groups, groups=groups, **window, bias=bool(rng.random() < 0.7))
    return Case(
        DeformableSpec(conv, offset_groups, bool(rng.random() < 0.5)),
        batch=int(rng.integers(1, 4)),
        size=random_size(rng, conv, 200),
        epilogue=random_epilogue(rng),
        reach=float(rng.choice([0.0, 0.3, 1.5, 6.0])),
        inside=bool(rng.random() < 0.3),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        chunk_bytes=int(rng.choice([0, 1, 20_000])),
        seed=seed,
    )


@each_target
@pytest.mark.parametrize("start", range(0, 40, 20))
def test_random_convolutions(target: Target, start: int) -> None:
    for seed in range(start, start + 20):
        random_case(seed, target).check(target)


@pytest.mark.long
@each_target
@pytest.mark.parametrize("start", range(1000, 2000, 100))
def test_many_random_convolutions(target: Target, start: int) -> None:
    for seed in range(start, start + 100):
        random_case(seed, target).check(target)
