"""Heterogeneous and mixed convolutions: against their float64 references, plans between guard pages, refusals."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import convwright as cw
from convwright import functional, reference
from convwright.codegen.target import Target, target_named
from convwright.graph import Graph, Node
from convwright.graph.graph import INTERNAL
from convwright.kernels import paired_ring, winograd
from convwright.model import Model
from convwright.model.lower import het as lowering
from convwright.model.lower import het_blocks
from convwright.model.lower import paired_ring as ring_lowering
from convwright.model.problem import Problem
from convwright.runtime.region import STEP_COLUMNS
from convwright.spec import (
    PADDING_MODES,
    ConvSpec,
    HetSpec,
    MixSpec,
)
from tests.functional import Array, close, normal, refused
from tests.kernels import each_target
from tests.plans import graph_of, planned
from tests.sweeps import OTHERS, check_each, on_host, on_targets


@pytest.fixture(autouse=True)
def nothing_remembered() -> Any:
    yield
    functional.forget()


Drawn = tuple[HetSpec, tuple[int, ...], int]  # with the input's size and the seed


def random_het(seed: int) -> Drawn:
    """A het convolution that fits its input."""
    pick = random.Random(seed)
    while True:
        rank = pick.choice([1, 2, 2, 3])
        channels, filters = pick.choice([1, 2, 3, 5, 8, 16, 17]), pick.choice([1, 2, 3, 4, 7, 8, 20])
        try:
            conv = ConvSpec(
                channels, filters, [pick.choice([1, 3, 3, 5]) for _ in range(rank)],
                stride=[pick.choice([1, 1, 2, 3]) for _ in range(rank)],
                padding=[(pick.randint(0, 2), pick.randint(0, 2)) for _ in range(rank)] if pick.random() < 0.7 else 0,
                dilation=[pick.choice([1, 1, 2]) for _ in range(rank)], padding_mode=pick.choice(PADDING_MODES),
                flip=pick.random() < 0.3, bias=pick.random() < 0.5,
            )  # fmt: skip
            size = tuple(pick.choice([4, 5, 7, 9, 16, 17, 33]) if rank < 3 else pick.randint(3, 9) for _ in range(rank))
            conv.output_size(size)
        except cw.ConvwrightError:
            continue
        return HetSpec(conv, pick.randint(1, channels)), size, seed


def random_residues(seed: int, target: Target) -> Drawn:
    """A het convolution whose residues are groups that fill vectors."""
    pick, v = random.Random(seed), target.vector
    while True:
        rank, part = pick.choice([1, 2, 2, 2]), pick.choice([2, 2, 3, 4])
        try:
            conv = ConvSpec(
                part * v * pick.choice([1, 1, 2]), part * v * pick.choice([1, 1, 2]),
                [pick.choice([1, 3, 3, 3, 5]) for _ in range(rank)],
                stride=[pick.choice([1, 1, 1, 2]) for _ in range(rank)],
                padding=[(pick.randint(0, 3), pick.randint(0, 3)) for _ in range(rank)] if pick.random() < 0.7 else 0,
                dilation=[pick.choice([1, 1, 2]) for _ in range(rank)], bias=pick.random() < 0.6,
            )  # fmt: skip
            size = tuple(pick.choice([4, 5, 7, 9, 12, v - 1, v, v + 1]) for _ in range(rank))
            conv.output_size(size)
        except cw.ConvwrightError:
            continue
        if het_blocks.why_not(Problem(conv, size, 1, np.dtype(np.float32), target, 1), part) is None:
            return HetSpec(conv, part), size, seed


class TestHet:
    @on_host(200)
    def test_random(self, seeds: range) -> None:
        check_each(seeds, random_het, self.check)

    def check(self, drawn: Drawn) -> None:
        spec, size, seed = drawn
        conv, dtype = spec.conv, np.float32 if seed % 3 else np.float64
        x, weight = normal(seed, 2, conv.in_channels, *size, dtype=dtype), normal(1, *spec.weight_shape, dtype=dtype)
        bias = normal(2, conv.out_channels, dtype=dtype) if conv.bias else None
        options: dict[str, Any] = {
            "part": spec.part, "stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation,
            "padding_mode": conv.padding_mode, "flip": conv.flip, "threads": 1 + seed % 3,
        }  # fmt: skip
        expected = reference.het_conv(x, weight, bias, spec)
        close(cw.het_conv(x, weight, bias, **options), expected, dtype)
        close(cw.het_conv(x[1], weight, bias, **options), expected[1], dtype)

    @on_targets(12, full=(OTHERS, OTHERS))
    def test_between_guard_pages(self, target: Target, seeds: range) -> None:
        check_each(seeds, random_het, lambda drawn: self.check_plan(drawn, target))

    def check_plan(self, drawn: Drawn, target: Target) -> None:
        spec, size, seed = drawn
        x, weight = normal(seed, 1, spec.conv.in_channels, *size), normal(1, *spec.weight_shape)
        bias = normal(2, spec.conv.out_channels)
        spec = HetSpec(replace(spec.conv, bias=True), spec.part)
        node = Node("HetConvolution", ["x", "w", "b"], ["y"], {"spec": spec}, domain=INTERNAL)
        plan = planned(graph_of([node], {"x": x}, ["y"], {"w": weight, "b": bias}), target, 1 + seed % 2)
        expected = reference.het_conv(x, weight, bias, spec)
        for at_end in (True, False):
            close(plan.run({"x": x}, at_end=at_end)["y"], expected, np.float32)

    def test_weights_that_are_not_read_do_not_count(self) -> None:
        x, weight = normal(0, 1, 4, 5, 5), normal(1, 4, 4, 3, 3)
        poisoned = weight.copy()
        for out in range(4):
            for channel in range(4):
                if (channel - out) % 2:
                    centre = poisoned[out, channel, 1, 1]
                    poisoned[out, channel] = np.nan
                    poisoned[out, channel, 1, 1] = centre
        expected = cw.het_conv(x, weight, part=2, padding=1)
        np.testing.assert_array_equal(cw.het_conv(x, poisoned, part=2, padding=1), expected)

    @pytest.mark.parametrize("numerics", ["default", "strict"])
    @pytest.mark.parametrize("part", [2, 3])
    def test_where_dense_layers_are_fast(self, part: int, numerics: str) -> None:
        """Winograd's algorithm may take the layer; strict numerics keep to direct sums."""
        spec = HetSpec(ConvSpec(64, 64, (3, 3), padding=1), part)
        x, weight, bias = normal(0, 2, 64, 30, 30), normal(1, *spec.weight_shape), normal(2, 64)
        expected = reference.het_conv(x, weight, bias, spec)
        result = cw.het_conv(x, weight, bias, part=part, padding=1, numerics=numerics)
        assert np.abs(result - expected).max() <= (1e-5 if numerics == "default" else 3e-6) * np.abs(expected).max()

    @each_target
    def test_by_residue_on_channel_blocks(self, target: Target) -> None:
        """Where residues fill vectors: batches, parts even and odd, C and K that differ, paddings, dilation, no bias,
        row-major neighbours and channel blocks, an activation fused; odd rows so that tiles overlap."""
        v = target.vector
        cases: list[tuple[int, int, int, int, dict[str, Any]]] = [
            (2, 1, 1, 1, {"padding": 1}),
            (3, 1, 2, 2, {"padding": 1}),
            (4, 2, 1, 1, {"padding": 0}),
            (2, 1, 3, 1, {"padding": ((2, 1), (0, 2))}),
            (2, 2, 2, 2, {"padding": 2, "dilation": 2, "bias": False}),
            (2, 1, 1, 1, {"padding": 1, "stride": (1, 2)}),
        ]
        for seed, (part, own_in, own_out, batch, options) in enumerate(cases):
            spec = HetSpec(ConvSpec(part * own_in * v, part * own_out * v, (3, 3), **options), part)
            self.check_residues((spec, (9, 2 * v + 5), seed), target, batch)

    @each_target
    def test_pointwise_part_in_pairs(self, target: Target) -> None:
        """Rings of one to four residues, of one block and several; tiles that overlap; inputs that differ in size by
        channel a millionfold."""
        v = target.vector
        with patch.object(ring_lowering, "adds_beside_multiply_adds", lambda _: True):
            for seed, (part, own_in, own_out, size) in enumerate(
                [(2, 1, 2, (7, 9)), (3, 2, 2, (4, 5)), (5, 1, 4, (9, 6))]
            ):
                spec = HetSpec(ConvSpec(part * own_in * v, part * own_out * v, (3, 3), padding=1), part)
                self.check_residues((spec, size, seed), target, 1 + seed % 2, pairs=True)
                x, weight = normal(seed, 1, spec.conv.in_channels, *size), normal(1, *spec.weight_shape)
                x *= np.where(np.arange(spec.conv.in_channels) % part == 0, 1e-3, 1e3)[:, None, None].astype(np.float32)
                self.check_values(spec, x, weight, normal(2, spec.conv.out_channels), target)

    def check_values(self, spec: HetSpec, x: Array, weight: Array, bias: Array, target: Target) -> None:
        node = Node("HetConvolution", ["x", "w", "b"], ["y"], {"spec": spec}, domain=INTERNAL)
        with patch.object(lowering, "estimates", lambda *_: {"blocks": 0.0}):
            plan = planned(graph_of([node], {"x": x}, ["y"], {"w": weight, "b": bias}), target, numerics="default")
        expected = reference.het_conv(x, weight, bias, spec)
        assert plan.tiles(paired_ring)
        assert np.abs(plan.run({"x": x})["y"] - expected).max() <= 1e-5 * np.abs(expected).max()

    @on_targets(0, full=(500, 250))
    def test_random_by_residue(self, target: Target, seeds: range) -> None:
        check_each(
            seeds,
            lambda seed: random_residues(seed, target),
            lambda drawn: self.check_residues(drawn, target, 1 + drawn[-1] % 2),
        )

    def check_residues(self, drawn: Drawn, target: Target, batch: int, pairs: bool = False) -> None:
        spec, size, seed = drawn
        conv = spec.conv
        x, weight = normal(seed, batch, conv.in_channels, *size), normal(1, *spec.weight_shape)
        bias = normal(2, conv.out_channels) if conv.bias else None
        constants = {"w": weight} | ({} if bias is None else {"b": bias})
        expected = reference.het_conv(x, weight, bias, spec)
        before = Node("Abs", ["x"], ["a"])
        het = Node("HetConvolution", ["x", *constants], ["y"], {"spec": spec}, domain=INTERNAL)
        inside = Node("HetConvolution", ["a", *constants], ["h"], {"spec": spec}, domain=INTERNAL)
        pool = Node("MaxPool", ["r"], ["y"], {"kernel_shape": (1,) * spec.rank})
        nodes = [before, inside, Node("Relu", ["h"], ["r"]), pool]
        within = np.maximum(reference.het_conv(np.abs(x), weight, bias, spec), 0)
        largest = np.abs(expected).max()
        for network, wanted in (([het], expected), (nodes, within)):
            graph = graph_of(network, {"x": x}, ["y"], constants)
            with patch.object(lowering, "estimates", lambda *_: {"blocks": 0.0}):
                plan = planned(graph, target, 1 + seed % 2, numerics="default")
            assert plan.tiles(winograd)
            assert plan.tiles(paired_ring) or not pairs
            for at_end in (True, False):
                result = plan.run({"x": x}, at_end=at_end)["y"]
                assert np.abs(result - wanted).max() <= 1e-5 * largest, len(network)

    @each_target
    def test_larger_tiles_where_errors_allow(self, target: Target) -> None:
        """F(5 x 5, 3 x 3) at 14 x 14 for groups of 64 channels, within the error allowed; never for groups of 128."""
        spec = HetSpec(ConvSpec(256, 256, (3, 3), padding=1, bias=False), 4)
        p = Problem(spec.conv, (14, 14), 1, np.dtype(np.float32), target, 2)
        assert not het_blocks.grouped(p, 2).algorithm.startswith("winograd")
        x, weight = normal(0, 1, 256, 14, 14), normal(1, *spec.weight_shape)
        node = Node("HetConvolution", ["x", "w"], ["y"], {"spec": spec}, domain=INTERNAL)
        with patch.object(lowering, "estimates", lambda *_: {"blocks": 0.0}):
            plan = planned(graph_of([node], {"x": x}, ["y"], {"w": weight}), target, 2, numerics="default")
        assert plan.tiles(winograd)[0].high[0] == (5 if het_blocks.grouped(p, 4).algorithm == "winograd-5" else 4)
        expected = reference.het_conv(x, weight, None, spec)
        assert np.abs(plan.run({"x": x})["y"] - expected).max() <= 1e-5 * np.abs(expected).max()

    @each_target
    def test_activations_are_fused(self, target: Target) -> None:
        """By every way to compute the layer."""
        v = target.vector
        spec = HetSpec(ConvSpec(2 * v, 2 * v, (3, 3), padding=1), 2)
        x, weight, bias = normal(0, 1, 2 * v, 7, 9), normal(1, *spec.weight_shape), normal(2, 2 * v)
        nodes = [
            Node("HetConvolution", ["x", "w", "b"], ["h"], {"spec": spec}, domain=INTERNAL),
            Node("LeakyRelu", ["h"], ["y"], {"alpha": 0.5}),
        ]
        graph = graph_of(nodes, {"x": x}, ["y"], {"w": weight, "b": bias})
        sums = reference.het_conv(x, weight, bias, spec)
        for way in ("planes", "blocks", "dense"):
            with patch.object(lowering, "estimates", lambda *_, way=way: {way: 0.0}):
                plan = planned(graph, target, numerics="default")
            result = plan.run({"x": x})["y"]
            assert np.abs(result - np.where(sums < 0, sums / 2, sums)).max() <= 1e-5 * np.abs(sums).max(), way

    def test_where_residues_are_no_groups(self) -> None:
        """What cannot be computed by residues on channel blocks, in a sentence."""
        target = target_named("generic")
        for spec, part, reason in (
            (ConvSpec(8, 8, (3, 3), padding=1), 1, "part 1 is a standard convolution"),
            (ConvSpec(12, 8, (3, 3), padding=1), 3, "part 3 does not divide 12 and 8 channels"),
            (ConvSpec(8, 8, (3, 3), padding=1), 4, "groups must fill vectors of 4 channels"),
            (ConvSpec(8, 8, (3, 3), padding=1, padding_mode="reflect"), 2, "padding_mode 'reflect'"),
            (ConvSpec(8, 8, (3, 3, 3), padding=1), 2, "channel blocks have at most 2 spatial axes, not 3"),
        ):
            p = Problem(spec.resolve((9,) * spec.rank), (9,) * spec.rank, 1, np.dtype(np.float32), target, 1)
            assert reason in (het_blocks.why_not(p, part) or "")

    def test_part_one_is_standard(self) -> None:
        x, weight = normal(0, 1, 4, 5, 5), normal(1, 6, 4, 3, 3)
        spec = ConvSpec(4, 6, (3, 3), bias=False)
        close(cw.het_conv(x, weight, part=1), reference.conv(x, weight, None, spec), np.float32)

    def test_refused(self) -> None:
        x, weight = normal(0, 1, 4, 6, 6), normal(1, 6, 4, 3, 3)
        refused(lambda: cw.het_conv(x, weight, part=5), "part 5 is more than in_channels 4")
        refused(lambda: cw.het_conv(x, weight, part=0), "part must be at least 1, got 0")
        refused(lambda: cw.het_conv(x, weight, part=2.0), "2.0")  # type: ignore[arg-type]
        refused(lambda: cw.het_conv(x, normal(1, 6, 4, 2, 3), part=2), "odd kernel sizes", "(2, 3)")
        refused(lambda: cw.het_conv(x[:, :3], weight, part=2), "(1, 3, 6, 6)")
        refused(lambda: cw.het_conv(x, weight, normal(0, 5), part=2), "bias must be 6 values")


class TestMix:
    @on_host(200)
    def test_random(self, seeds: range) -> None:
        check_each(seeds, self.draw, self.check)

    def draw(self, seed: int) -> tuple[MixSpec, tuple[int, ...], int]:
        """With the size of the input, and the seed."""
        pick = random.Random(seed)
        rank, padding = pick.choice([1, 2, 2, 3]), pick.choice(["same", "same_lower", "half"])
        kernels = pick.choice([(1,), (3, 5), (3, 5, 7), (1, 3, 9)] if padding == "half" else [(2,), (3, 4), (1, 2, 5)])
        channels = pick.choice([3, 4, 5, 8, 16, 17, 40])
        spec = MixSpec(
            channels, kernels, rank=rank, split=pick.choice(["equal", "exponential"]) if channels > 3 else "equal",
            stride=pick.choice([1, 1, 2, 3]), dilation=pick.choice([1, 1, 2]), padding=padding,
            bias=pick.random() < 0.5,
        )  # fmt: skip
        size = tuple(pick.choice([1, 4, 5, 9, 16, 17, 33]) if rank < 3 else pick.randint(1, 9) for _ in range(rank))
        return spec, size, seed

    def check(self, drawn: tuple[MixSpec, tuple[int, ...], int]) -> None:
        spec, size, seed = drawn
        dtype = np.float32 if seed % 3 else np.float64
        x = normal(seed, 1 + seed % 3, spec.channels, *size, dtype=dtype)
        weights = [normal(at, *part.weight_shape, dtype=dtype) for at, part in enumerate(spec.parts)]
        bias = normal(9, spec.channels, dtype=dtype) if spec.bias else None
        options: dict[str, Any] = {"stride": spec.stride, "dilation": spec.dilation, "padding": spec.padding}
        expected = reference.mix_conv(x, weights, bias, spec)
        close(cw.mix_conv(x, weights, bias, **options, threads=1 + seed % 3), expected, dtype)
        close(cw.mix_conv(x[0], weights, bias, **options), expected[0], dtype)

    @on_targets(12, full=(OTHERS, OTHERS))
    def test_between_guard_pages(self, target: Target, seeds: range) -> None:
        check_each(seeds, self.draw, lambda drawn: self.check_plan(drawn, target))

    def check_plan(self, drawn: tuple[MixSpec, tuple[int, ...], int], target: Target) -> None:
        spec, size, seed = drawn
        graph, x, expected = self.graph(spec, size, 1 + seed % 2)
        result = planned(graph, target, 1 + seed % 3).run({"x": x}, at_end=seed % 4 < 2)["y"]
        close(result, expected, np.float32)

    def graph(self, spec: MixSpec, size: tuple[int, ...], batch: int) -> tuple[Graph, Array, Array]:
        """A convolution with its input and what it should give."""
        x, weights = (
            normal(0, batch, spec.channels, *size),
            [normal(at, *p.weight_shape) for at, p in enumerate(spec.parts)],
        )
        biases = np.split(normal(9, spec.channels), np.cumsum(spec.part_channels)[:-1])
        names = [f"{letter}{at}" for letter in "wb" for at in range(len(weights))]
        node = Node("MixConvolution", ["x", *names], ["y"], {"parts": spec.parts}, domain=INTERNAL)
        graph = graph_of([node], {"x": x}, ["y"], dict(zip(names, [*weights, *biases], strict=True)))
        return graph, x, reference.mix_conv(x, weights, np.concatenate(biases), replace(spec, bias=True))

    @pytest.mark.parametrize("rank", [1, 2, 3])
    @each_target
    def test_activations_are_fused(self, target: Target, rank: int) -> None:
        """Into each part, in the order of the graph, and still in one pass."""
        spec = MixSpec(19, (1, 3, 5), rank=rank, stride=2, bias=False)
        x = normal(0, 2, 19, *(17, 6, 5)[:rank])
        names, weights = ["w0", "w1", "w2"], [normal(at, *part.weight_shape) for at, part in enumerate(spec.parts)]
        nodes = [
            Node("MixConvolution", ["x", *names], ["h"], {"parts": spec.parts}, domain=INTERNAL),
            Node("LeakyRelu", ["h"], ["r"], {"alpha": 0.25}),
            Node("Sigmoid", ["r"], ["y"]),
        ]
        plan = planned(graph_of(nodes, {"x": x}, ["y"], dict(zip(names, weights, strict=True))), target, 2)
        assert len(plan.steps) == 3
        convolved = reference.mix_conv(x, weights, None, spec)
        expected = 1 / (1 + np.exp(-np.where(convolved < 0, 0.25 * convolved, convolved)))
        for at_end in (True, False):
            close(plan.run({"x": x}, at_end=at_end)["y"], expected, np.float32)

    def test_is_one_pass(self) -> None:
        """No step waits for the one before."""
        graph, _, _ = self.graph(MixSpec(20, (3, 5, 7)), (17, 9), 2)
        program = Model(graph, 2, "default")._program(((2, 20, 17, 9),))
        assert program.table[:, STEP_COLUMNS - 1].tolist() == [0, 0, 0]

    def test_refused(self) -> None:
        x, weights = normal(0, 1, 5, 6, 6), [normal(1, 2, 1, 3, 3), normal(2, 3, 1, 5, 5)]
        refused(lambda: cw.mix_conv(x, []), "one array a part")
        refused(lambda: cw.mix_conv(x, weights[:1]), "the input must be (N, 2, H, W)")
        refused(lambda: cw.mix_conv(x, [weights[0], normal(2, 3, 1, 5)]), "differ in their axes")
        refused(lambda: cw.mix_conv(x, [weights[0], normal(2, 3, 2, 5, 5)]), "Cp x 1 x kernel, got (3, 2, 5, 5)")
        refused(lambda: cw.mix_conv(x, weights, padding=1), "'half', got 1")  # type: ignore[arg-type]
        refused(lambda: cw.mix_conv(x, [normal(0, 5, 1, 2, 2)], padding="half"), "odd kernel sizes, got (2, 2)")
        refused(lambda: cw.mix_conv(x, weights, normal(0, 4)), "bias must be 5 values")
        refused(lambda: cw.mix_conv(x, [weights[0], weights[1].astype(float)]), "w1 float64")
