"""Grouped convolutions between which channels lie in an order of their own: against float64, on every target, beside
unreadable pages and with NaN in the lanes between the groups; and no step moves a channel."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright import reference
from convwright.codegen.target import Target, host_target
from convwright.graph import Node
from convwright.kernels import channels, direct
from convwright.kernels import strips as strips_kernel
from convwright.model.lower import direct as direct_lowering
from convwright.model.lower import strips
from convwright.model.values import Order
from convwright.model.weights import Weights
from convwright.spec import ConvSpec
from tests.convolutions import RESIDUAL, Case
from tests.kernels import each_target
from tests.plans import Arrays, Planned, graph_of, planned

INTERNAL = "convwright"


@dataclass(frozen=True)
class Unit:
    """ShuffleNet's: a convolution in groups, a shuffle, depthwise layers, a pointwise convolution in groups.

    - `groups`: of the first and of the last convolution; `own`: channels a group of input, middle and output.
    - `shuffle`: groups of the shuffle, 0 for none; `depthwise`: strides of the layers between.
    - `kernel`: of the first convolution; `residual`: whether the input is added, where it has the output's shape.
    """

    groups: tuple[int, int]
    channels: tuple[int, int, int]
    shuffle: int
    depthwise: tuple[int, ...] = (1,)
    kernel: int = 1
    size: tuple[int, int] = (7, 6)
    batch: int = 1
    bias: bool = True
    residual: bool = False
    threads: int = 2
    at_end: bool = True

    def specs(self) -> list[ConvSpec]:
        before, middle, after = self.channels
        first, last = self.groups
        return [
            ConvSpec(before, middle, (self.kernel,) * 2, groups=first, padding=self.kernel // 2, bias=self.bias),
            *(ConvSpec(middle, middle, (3, 3), stride=stride, padding=1, groups=middle) for stride in self.depthwise),
            ConvSpec(middle, after, (1, 1), groups=last, bias=self.bias),
        ]

    def plan(self, target: Target) -> tuple[Planned, Arrays, NDArray[np.float64]]:
        """The plan, its inputs, and what it should give."""
        rng = np.random.default_rng(sum(self.channels))
        inputs: Arrays = {"x": rng.standard_normal((self.batch, self.channels[0], *self.size)).astype(np.float32)}
        constants: Arrays = {}
        nodes, name, want = [Node("Identity", ["x"], ["inside"])], "inside", inputs["x"].astype(np.float64)
        for at, spec in enumerate(self.specs()):
            weight = rng.standard_normal(spec.weight_shape) / np.sqrt(np.prod(spec.weight_shape[1:]))
            constants[f"w{at}"] = weight.astype(np.float32)
            bias = rng.standard_normal(spec.out_channels).astype(np.float32) if spec.bias else None
            if bias is not None:
                constants[f"b{at}"] = bias
            algorithm = "direct-depthwise" if spec.groups == spec.out_channels == self.channels[1] > 1 else "direct"
            read = [name, f"w{at}", *([f"b{at}"] if spec.bias else [])]
            attributes = {"spec": spec, "algorithm": algorithm if algorithm != "direct" else "direct-blocked"}
            nodes.append(Node("Convolution", read, [f"c{at}"], attributes, domain=INTERNAL))
            want, name = reference.conv(want, constants[f"w{at}"], bias, spec), f"c{at}"
            if at == 0:
                nodes.append(Node("Relu", [name], ["relu"]))
                want, name = np.maximum(want, 0), "relu"
                if self.shuffle:
                    shuffled = Node("ChannelShuffle", [name], ["s"], {"groups": self.shuffle}, domain=INTERNAL)
                    nodes.append(shuffled)
                    want, name = reference.channel_shuffle(want, self.shuffle), "s"
        if self.residual:
            inputs["r"] = rng.standard_normal(want.shape).astype(np.float32)
            nodes += [Node("Identity", ["r"], ["r1"]), Node("Add", [name, "r1"], ["sum"])]
            want, name = want + inputs["r"], "sum"
        nodes.append(Node("Neg", [name], ["y"]))
        return planned(graph_of(nodes, inputs, ["y"], constants), target, self.threads), inputs, -want

    def check(self, target: Target) -> Planned:
        plan, inputs, want = self.plan(target)
        (got,) = plan.run(inputs, at_end=self.at_end).values()
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * (1 + np.abs(want).max()), err_msg=str(self))
        return plan


def units(v: int) -> list[Unit]:
    """Groups at, below and above vectors and their halves; one channel; shuffles of other groups than the layers'."""
    half = v // 2
    cases = [
        Unit((3, 3), (3 * 5, 3 * (v + 4), 3 * v), 3),
        Unit((3, 3), (3 * v, 3 * (2 * v + half), 3 * (v + 1)), 3, size=(5, 9), residual=True),
        Unit((2, 4), (8, 4 * (v - 1), 8), 2, batch=2),
        Unit((3, 3), (9, 3 * half, 9), 3, (1, 2), at_end=False),
        Unit((3, 3), (9, 3 * (half + 1), 12), 3, (), bias=False),
        Unit((1, 3), (5, 3 * 20, 3 * 7), 3, (2,)),
        Unit((4, 2), (4, 4 * (v + 1), 2), 2, batch=3, residual=True),
        Unit((2, 3), (6, 6 * v, 3), 6, threads=1),
        Unit((5, 1), (10, 5 * (v + half), v + 3), 5),
        Unit((3, 3), (6, 3 * (v + half), 6), 0, size=(3, 3)),
        Unit((2, 2), (2, 2 * (v + 1), 2 * v), 2, kernel=3),
        Unit((2, 2), (2, 2, 2), 2, ()),
        Unit((4, 4), (4 * (v + 2), 4 * v, 4), 4, size=(1, v + 1)),
    ]
    return cases


def halved(stack: ExitStack, yes: bool) -> None:
    """As on a machine on which half a vector takes half the time, or not."""
    stack.enter_context(patch.object(direct_lowering, "multiply_adds_a_cycle", lambda _: 1 if yes else 2))


@each_target
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_units_in_strips_and_layer_after_layer(target: Target, halves: bool, together: bool) -> None:
    with ExitStack() as stack:
        halved(stack, halves)
        stack.enter_context(patch.object(strips, "_FAR_CYCLES", 1e9 if together else 0.0))
        if not together:
            stack.enter_context(patch.object(strips, "chains", lambda *_: []))
        plans = [unit.check(target) for unit in units(target.vector)]
    kernels = [step for plan in plans for step in plan.steps]
    assert any(step.family is strips_kernel for step in kernels) == together
    tiles = [tile for plan in plans for tile in plan.tiles(direct)]
    assert together or any(tile.half for tile in tiles) == halves
    assert together or all(any(tile.gathered for tile in plan.tiles(direct)) for plan in plans[:9])


@each_target
def test_last_vectors_of_which_half_counts(target: Target) -> None:
    """First layers on planes, pointwise ones and windows, whose last vector is at most half full."""
    v, found = target.vector, set()
    with ExitStack() as stack:
        halved(stack, True)
        for seed, out in enumerate((1, v // 2, v // 2 + 1, v + 1, v + v // 2, 2 * v + 1, 3 * v + 1)):
            for kernel, stride, inside in ((1, 1, True), (3, 2, False), (3, 1, True)):
                spec = ConvSpec(3 if not inside else v + 3, out, (kernel,) * 2, stride=stride, padding=kernel // 2)
                epilogue = (RESIDUAL, ("relu",)) if inside else (("hard_swish",),)
                size = (5 + seed, 31 - seed)
                case = Case(spec, 2, size, epilogue, inside, halo=inside, threads=2, at_end=bool(seed % 2), seed=seed)
                inputs, constants = case.arrays()
                plan = case.plan(inputs, constants, target)
                want, bound = case.expected(inputs, constants)
                np.testing.assert_allclose(case.run(plan, inputs)[0], want, rtol=0, atol=bound, err_msg=str(case))
                found |= {(out, tile.half) for tile in plan.tiles(direct) if tile.epilogue}
    few = {(out, out != v // 2 + 1 and out < 3 * v) for out, _ in found}
    assert found == few


def test_no_step_moves_channels() -> None:
    for unit in units(host_target().vector):
        plan, *_ = unit.plan(host_target())
        assert channels not in [step.family for step in plan.steps], unit


@each_target
def test_what_others_see_is_in_order(target: Target) -> None:
    """A second reader, or an output of the graph, ends the passage."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 6, 5, 5)).astype(np.float32)
    constants = {
        "w": rng.standard_normal((60, 2, 1, 1)).astype(np.float32),
        "d": rng.standard_normal((60, 1, 3, 3)).astype(np.float32),
        "z": rng.standard_normal((9, 20, 1, 1)).astype(np.float32),
    }
    nodes = [
        Node("Identity", ["x"], ["inside"]),
        Node("Conv", ["inside", "w"], ["a"], {"group": 3, "algorithm": "direct-blocked"}),
        Node("ChannelShuffle", ["a"], ["s"], {"groups": 3}, domain=INTERNAL),
        Node("Conv", ["s", "d"], ["b"], {"group": 60, "pads": [1] * 4, "algorithm": "direct-depthwise"}),
        Node("Conv", ["b", "z"], ["c"], {"group": 3, "algorithm": "direct-blocked"}),
        Node("Neg", ["c"], ["y"]),
        Node("Abs", ["b"], ["other"]),
    ]
    want: Any = reference.conv(x, constants["w"], None, ConvSpec(6, 60, (1, 1), groups=3, bias=False))
    want = reference.channel_shuffle(want, 3)
    middle: Any = reference.conv(want, constants["d"], None, ConvSpec(60, 60, (3, 3), padding=1, groups=60, bias=False))
    last = reference.conv(middle, constants["z"], None, ConvSpec(60, 9, (1, 1), groups=3, bias=False))
    for outputs, found in ((["y", "other"], np.abs(middle)), (["y", "b"], middle), (["y", "s"], want)):
        kept = [node for node in nodes if node.outputs[0] != "other" or "other" in outputs]
        results = planned(graph_of(kept, {"x": x}, outputs, dict(constants)), target, 2).run({"x": x})
        np.testing.assert_allclose(results["y"], -last, rtol=0, atol=1e-4)
        np.testing.assert_allclose(results[outputs[1]], found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("v", [4, 8, 16])
def test_weights_in_lanes_come_back(v: int) -> None:
    """What is packed in lanes may lose its row-major form, and is found again to the last bit."""
    own, lanes = v + 2, 2 * v
    places = np.arange(3 * own) // own * lanes + np.arange(3 * own) % own
    mixed = places.reshape(3, own).T.reshape(-1)
    order = Order("test", mixed, places, 3 * lanes)
    rng = np.random.default_rng(v)
    arrays = {
        "direct": rng.standard_normal((3 * own, 400, 1, 1)).astype(np.float32),
        "depthwise": rng.standard_normal((3 * own, 1, 31, 31)).astype(np.float32),
    }
    weights = Weights({name: array.copy() for name, array in arrays.items()}, v)
    for name, array in arrays.items():
        weights.in_lanes(name, name, array.shape, 3, order)
    weights.release()
    for name, array in arrays.items():
        assert weights.constants[name].strides == (0, 0, 0, 0)
        np.testing.assert_array_equal(weights.array(name), array)
