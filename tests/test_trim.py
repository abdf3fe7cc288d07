"""Taps that meet padding alone are left out, and results are the same as with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import convwright as cw
from convwright import reference
from convwright.codegen.target import Target, host_target
from convwright.graph.rewrites import simplify
from convwright.spec import ConvSpec
from tests.graph_models import model, node, random_feeds, read, run, weights
from tests.kernels import each_target
from tests.plans import Planned, planned

# size, kernel, attributes, and the kernel that is left
CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = [
    ((1, 1), (3, 3), {"pads": [1] * 4}, (1, 1)),
    ((1, 6), (3, 3), {"pads": [1] * 4}, (1, 3)),
    ((2, 2), (5, 5), {"pads": [2] * 4}, (3, 3)),
    ((2, 1), (3, 3), {"pads": [1] * 4, "strides": [2, 2]}, (2, 1)),
    ((1, 7, 7), (3, 3, 3), {"pads": [1] * 6}, (1, 3, 3)),
    ((2, 4, 4), (3, 3, 3), {"pads": [1] * 6, "strides": [2, 2, 2]}, (2, 3, 3)),
    ((4, 5), (3, 3), {"pads": [6] * 4, "dilations": [6, 6]}, (1, 1)),
    ((1,), (7,), {"pads": [3, 3]}, (1,)),
    ((3,), (7,), {"auto_pad": "SAME_LOWER"}, (5,)),
    ((2, 2), (4, 4), {"pads": [1, 2, 3, 1]}, (3, 3)),
    ((3, 3), (3, 3), {"pads": [1] * 4}, (3, 3)),
    ((2, 3), (3, 3), {"pads": [1] * 4}, (3, 3)),
    ((1, 1), (3, 3), {"pads": [2] * 4}, (3, 3)),
]


def plan_of(
    size: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any], target: Target, groups: int = 1
) -> tuple[Planned, np.ndarray, np.ndarray]:
    """The plan of x to y through a residual and an activation, what it gives and what it should."""
    v = target.vector
    channels = (v + 2, v + 2) if groups > 1 else (5, v + 1)
    constants = {"w": weights(channels[1], channels[0] // groups, *kernel), "b": weights(channels[1])}
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w b", "c", group=groups, **attributes),
        node("Abs", "c", "y"),
    ]
    shapes = {"x": (2, channels[0], *size)}
    proto = model(nodes, shapes, constants)
    feeds = random_feeds(shapes)
    plan = planned(simplify(read(proto)), target, threads=2)
    return plan, plan.run(feeds)["y"], run(proto, feeds)[0]


def kernel_of(plan: Planned) -> tuple[int, ...]:
    (layer,) = [layer for layer in plan.builder.layers if layer.op == "Conv"]
    return tuple(plan.builder.graph.constants[layer.node.inputs[1]].shape[2:])


@each_target
@pytest.mark.parametrize(("size", "kernel", "attributes", "left"), CASES, ids=str)
def test_taps_that_meet_padding_alone_are_left_out(
    target: Target, size: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any], left: tuple[int, ...]
) -> None:
    for groups in (1, 2, target.vector + 2):
        plan, given, wanted = plan_of(size, kernel, attributes, target, groups)
        np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert kernel_of(plan) == left


def test_infinite_weights_make_nan_of_padding() -> None:
    w = weights(2, 3, 3, 3)
    w[0, 1, 0, 0] = np.inf
    proto = model([node("Conv", "x w", "y", pads=[1] * 4)], {"x": (1, 3, 1, 1)}, {"w": w})
    feeds = random_feeds({"x": (1, 3, 1, 1)})
    given = planned(read(proto), host_target()).run(feeds)["y"]
    assert np.isnan(given).reshape(-1).tolist() == [True, False]


def test_one_model_of_a_small_and_of_a_large_image() -> None:
    w = weights(4, 3, 3, 3)
    graph = read(model([node("Conv", "x w", "y", pads=[1] * 4)], {"x": (1, 3, "H", "W")}, {"w": w}))
    compiled = cw.compile(graph)
    spec = ConvSpec(3, 4, (3, 3), padding=1, bias=False)
    for size in ((1, 1), (6, 5), (1, 4), (1, 1), (2, 2)):
        x = random_feeds({"x": (1, 3, *size)})["x"]
        np.testing.assert_allclose(compiled(x), reference.conv(x, w, None, spec), rtol=0, atol=1e-4)


def test_padding_modes_and_transposed_convolutions_keep_their_taps() -> None:
    x, w = weights(1, 3, 1, 1), weights(4, 3, 3, 3)
    for mode in ("replicate", "circular"):
        spec = ConvSpec(3, 4, (3, 3), padding=1, padding_mode=mode, bias=False)
        given = cw.conv(x, w, padding=1, padding_mode=mode)
        np.testing.assert_allclose(given, reference.conv(x, w, None, spec), rtol=0, atol=1e-4)
    flipped = ConvSpec(3, 4, (3, 3), padding=(0, 1), flip=True, bias=False)
    wide = weights(1, 3, 3, 1)
    given = cw.conv(wide, w, padding=(0, 1), flip=True)
    np.testing.assert_allclose(given, reference.conv(wide, w, None, flipped), rtol=0, atol=1e-4)
    transposed = ConvSpec(3, 5, (3, 3), stride=2, padding=1, transposed=True, bias=False)
    turned = weights(3, 5, 3, 3)
    given = cw.conv_transpose(x, turned, stride=2, padding=1)
    np.testing.assert_allclose(given, reference.conv(x, turned, None, transposed), rtol=0, atol=1e-4)
