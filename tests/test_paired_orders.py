"""Products in pairs where a plan has orders of its own for channels: behind a shuffle, and in lanes of their groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest

from convwright import reference
from convwright.codegen.target import Target
from convwright.graph import Node
from convwright.kernels import direct, paired
from convwright.model.lower import paired as lowering
from convwright.spec import ConvSpec
from tests.convolutions import compare
from tests.kernels import each_target
from tests.plans import graph_of, planned


@contextmanager
def halved_cuts() -> Iterator[None]:
    """Work is divided so that the last of a group's output vectors is half of one, wherever it can be."""
    usual = lowering.cut_of

    def cut_of(pixels: int, images: int, reduction: int, out_channels: int, target: Target, *rest: int) -> lowering.Cut:
        if 0 < out_channels % target.vector <= target.vector // 2:
            return lowering.Cut(3, -(-out_channels // target.vector), pixels, 1, 1, 0.0, True)
        return usual(pixels, images, reduction, out_channels, target, *rest)

    with patch.object(lowering, "cut_of", cut_of):
        yield


@each_target
@pytest.mark.parametrize(
    ("channels", "last_groups", "first"),
    [
        ((24, 48, 16), 1, "direct-blocked"),
        ((24, 120, 96), 3, "direct-blocked"),  # 40 channels a group: lanes between the groups, and half a block
        ((48, 96, 96), 3, "paired"),
        ((48, 96, 33), 1, "paired"),
        ((24, 3 * 72, 48), 3, "direct-blocked"),
    ],
)
def test_channels_in_the_order_of_a_shuffle(
    target: Target, channels: tuple[int, int, int], last_groups: int, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer before stores its channels in an order of its own, so that the shuffle costs nothing; blocks are put
    together of the lanes where they lie."""
    monkeypatch.setattr(lowering, "adds_beside_multiply_adds", lambda _: True)
    monkeypatch.setattr(lowering, "_WORTH", 1e9)
    rng = np.random.default_rng(0)
    before, middle, after = channels
    inputs = {"x": rng.standard_normal((2, before, 5, 6)).astype(np.float32)}
    specs = [ConvSpec(before, middle, (1, 1), groups=3), ConvSpec(middle, after, (1, 1), groups=last_groups)]
    constants = {
        f"w{at}": rng.standard_normal(spec.weight_shape).astype(np.float32) for at, spec in enumerate(specs)
    } | {f"b{at}": rng.standard_normal(spec.out_channels).astype(np.float32) for at, spec in enumerate(specs)}
    nodes = [
        Node("Identity", ["x"], ["i"]),
        Node("Conv", ["i", "w0", "b0"], ["c"], {"kernel_shape": (1, 1), "group": 3, "algorithm": first}),
        Node("ChannelShuffle", ["c"], ["s"], {"groups": 3}, domain="convwright"),
        Node("Conv", ["s", "w1", "b1"], ["p"], {"kernel_shape": (1, 1), "group": last_groups}),
        Node("Identity", ["p"], ["y"]),
    ]
    plan = planned(graph_of(nodes, inputs, ["y"], constants), target, 2, numerics="default")
    assert "s" in plan.builder.orders
    steps = [step for one in plan.steps for step in (one, *one.calls)]
    gathered = [getattr(step.tile, "gathered", None) is not None for step in steps if step.family is paired]
    assert gathered == [False, True][first != "paired" :]
    assert sum(step.family is direct for step in steps) == (first != "paired")
    shuffled = reference.channel_shuffle(reference.conv(inputs["x"], constants["w0"], constants["b0"], specs[0]), 3)
    expected = reference.conv(shuffled, constants["w1"], constants["b1"], specs[1])
    compare(plan.run(inputs)["y"], expected, 2e-6 * np.abs(expected).max(), "shuffled")


@each_target
def test_groups_whose_last_vector_is_half_of_one(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group's outputs begin a vector, where a shuffle, a depthwise layer and one that gathers follow: both of the
    pointwise layers have their products in pairs, and weights that can be given back."""
    monkeypatch.setattr(lowering, "adds_beside_multiply_adds", lambda _: True)
    monkeypatch.setattr(lowering, "_WORTH", 1e9)
    v, rng = target.vector, np.random.default_rng(0)
    own, before = 2 * max(v, 8) + v // 2, 3 * max(v, 8)
    after, strict = 3 * v, own % 8 > 0  # then the last one sums directly
    specs = [
        ConvSpec(before, 3 * own, (1, 1), groups=3),
        ConvSpec(3 * own, 3 * own, (3, 3), padding=1, groups=3 * own),
        ConvSpec(3 * own, after, (1, 1), groups=3),
    ]
    inputs = {"x": rng.standard_normal((2, before, 5, 6)).astype(np.float32)}
    constants = {
        f"w{at}": rng.standard_normal(spec.weight_shape).astype(np.float32) for at, spec in enumerate(specs)
    } | {f"b{at}": rng.standard_normal(spec.out_channels).astype(np.float32) for at, spec in enumerate(specs)}
    kept = {name: array.copy() for name, array in constants.items()}
    nodes = [
        Node("Identity", ["x"], ["i"]),
        Node("Conv", ["i", "w0", "b0"], ["c"], {"kernel_shape": (1, 1), "group": 3}),
        Node("ChannelShuffle", ["c"], ["s"], {"groups": 3}, domain="convwright"),
        Node("Conv", ["s", "w1", "b1"], ["d"], {"kernel_shape": (3, 3), "pads": (1,) * 4, "group": 3 * own}),
        Node("Conv", ["d", "w2", "b2"], ["p"], {"kernel_shape": (1, 1), "group": 3}),
        Node("Identity", ["p"], ["y"]),
    ]
    with halved_cuts():
        plan = planned(graph_of(nodes, inputs, ["y"], constants), target, 2, numerics="default")
    steps = [step for one in plan.steps for step in (one, *one.calls)]
    tiles = [step.tile for step in steps if step.family is paired]
    assert [(tile.halved, tile.gathered is not None) for tile in tiles] == [(True, False), (False, True)][: 2 - strict]
    hidden = reference.channel_shuffle(reference.conv(inputs["x"], constants["w0"], constants["b0"], specs[0]), 3)
    hidden = reference.conv(hidden, constants["w1"], constants["b1"], specs[1])
    expected = reference.conv(hidden, constants["w2"], constants["b2"], specs[2])
    compare(plan.run(inputs)["y"], expected, 4e-6 * np.abs(expected).max(), "halved")
    weights = plan.builder.weights
    weights.release()
    for name, array in kept.items():
        np.testing.assert_array_equal(weights.array(name), array)
