"""Tensors of three spatial axes, and of one, in channel blocks: every step a kernel, every buffer beside an unreadable
page, NaN in the lanes that mean nothing. ONNX Runtime is the oracle, as in `test_operators`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from convwright.codegen.target import Target, host_target
from convwright.graph.rewrites import simplify
from convwright.kernels import depthwise, direct, winograd
from convwright.kernels.pool import Pool
from tests.graph_models import Array, model, node, norm_parameters, random_feeds, read, run, weights
from tests.kernels import each_target
from tests.plans import Planned, planned
from tests.volume_networks import residual_network, u_network

HOST = host_target()


def check(
    proto: onnx.ModelProto,
    shapes: Mapping[str, Sequence[int]],
    target: Target,
    numerics: str = "strict",
    tolerance: float = 1e-5,
) -> Planned:
    """The plan, all of whose steps are kernels, gives what ONNX Runtime gives."""
    feeds = random_feeds(shapes)
    graph = simplify(read(proto))
    expected = run(proto, feeds)
    plan = planned(graph, target, threads=2, numerics=numerics)
    assert [step.name for step in plan.steps if step.python] == []
    for at_end in (True, False):
        given = plan.run(feeds, at_end=at_end)
        for name, wanted in zip(graph.outputs, expected, strict=True):
            scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)) or 1.0
            np.testing.assert_allclose(given[name], wanted, rtol=0, atol=tolerance * scale, err_msg=name)
    return plan


def of_nodes(
    nodes: list[onnx.NodeProto],
    shapes: Mapping[str, Sequence[int]],
    target: Target,
    constants: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
    numerics: str = "strict",
    opset: int = 17,
) -> Planned:
    return check(model(nodes, shapes, constants or {}, outputs, opset), shapes, target, numerics)


# -- networks ----------------------------------------------------------------------------------------------------------


@each_target
@pytest.mark.parametrize("numerics", ["strict", "default"])
def test_a_residual_network_runs_on_kernels_and_converts_its_input_and_output_alone(
    target: Target, numerics: str
) -> None:
    v = target.vector
    proto = residual_network((5, 13, 18), (v + 1, v + 4), blocks=1, classes=3)
    plan = check(proto, {"x": (1, 3, 5, 13, 18)}, target, numerics)
    # The stem of three channels may read its input where it lies, and its output is then packed.
    assert sum(step.name in ("pack", "unpack") for step in plan.steps) <= 2
    assert all(step.layer is None or step.layer.op != "Add" for step in plan.steps)


@each_target
@pytest.mark.parametrize("numerics", ["strict", "default"])
def test_a_u_network_runs_on_kernels(target: Target, numerics: str) -> None:
    check(u_network((4, 6, 8), (3, target.vector + 1), 2), {"x": (1, 1, 4, 6, 8)}, target, numerics)


@each_target
def test_two_volumes_at_once(target: Target) -> None:
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w b", "c", pads=[1] * 6),
        node("Conv", "r s", "d", strides=[2, 1, 2]),
        node("Add", "c r", "sum"),
        node("Sigmoid", "sum", "y"),
        node("GlobalAveragePool", "r", "mean"),
        node("GlobalMaxPool", "r", "most"),
        node("Mul", "r mean", "z"),
    ]
    constants = {"w": weights(5, 5, 3, 3, 3), "b": weights(5), "s": weights(3, 5, 1, 1, 1)}
    outputs = ("y", "d", "mean", "most", "z")
    for numerics in ("strict", "default"):
        of_nodes(nodes, {"x": (2, 5, 3, 4, 6)}, target, constants, outputs, numerics)


# -- convolutions between channel blocks -------------------------------------------------------------------------------

Window = tuple[tuple[int, ...], dict[str, Any]]
WINDOWS: list[Window] = [
    ((3, 3, 3), {"pads": [1] * 6}),
    ((3, 3, 3), {"pads": [1] * 6, "strides": [2, 2, 2]}),
    ((3, 3, 3), {"pads": [2, 0, 1, 0, 3, 2], "strides": [1, 2, 1]}),
    ((3, 3, 3), {"pads": [2] * 6, "dilations": [2, 1, 2]}),
    ((1, 3, 3), {"pads": [0, 1, 1, 0, 1, 1]}),
    ((3, 1, 1), {"pads": [1, 0, 0, 1, 0, 0]}),
    ((2, 3, 4), {"strides": [3, 1, 2]}),
    ((1, 1, 1), {}),
    ((1, 1, 1), {"strides": [2, 2, 1]}),
    ((1, 1, 1), {"strides": [3, 1, 1], "pads": [1, 0, 1, 0, 1, 0]}),
    ((2, 2, 2), {"strides": [4, 3, 5]}),
    ((5, 7, 6), {"pads": [1, 1, 0, 1, 1, 0]}),
]


def convolve(
    target: Target, window: Window, channels: tuple[int, int], groups: int = 1, size: tuple[int, ...] = (5, 7, 6)
) -> list[Any]:
    """The tiles of its convolution with an activation, an addition and another activation, between ReLUs; of both
    kinds of numerics."""
    kernel, attributes = window
    taken, given = channels
    shape = (given, taken // groups, *kernel)
    constants = {"w": weights(*shape) / np.float32(np.sqrt(np.prod(shape[1:]))), "b": weights(given, seed=2)}
    before = [node("Relu", "x", "r"), node("Conv", "r w b", "c", group=groups, **attributes)]
    probe = model([*before], {"x": (1, taken, *size)}, constants, ("c",))
    out_shape = read_shape(probe, (1, taken, *size))
    nodes = [*before, node("Add", "c z", "sum"), node("LeakyRelu", "sum", "l"), node("Neg", "l", "y")]
    tiles = []
    for numerics in ("strict", "default"):
        nodes_of = [node("Abs", "z0", "z"), *nodes]
        plan = of_nodes(
            nodes_of, {"x": (1, taken, *size), "z0": out_shape}, target, constants, numerics=numerics
        )  # fmt: skip
        tiles += [step.tile for step in plan.steps if step.family in (direct, winograd)]
    return tiles


def read_shape(proto: onnx.ModelProto, shape: Sequence[int]) -> tuple[int, ...]:
    (given,) = run(proto, {"x": np.zeros(shape, np.float32)})
    return tuple(given.shape)


@each_target
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_of_three_axes(target: Target, window: Window) -> None:
    v = target.vector
    tiles = convolve(target, window, (3, v + 1))
    assert any(isinstance(tile, direct.DirectTile) and ("residual",) in tile.epilogue for tile in tiles)
    assert all(tile.deep == (window[0][0] > 1) for tile in tiles if isinstance(tile, direct.DirectTile))


@each_target
def test_channel_counts_and_groups(target: Target) -> None:
    v = target.vector
    dense = ((3, 3, 3), {"pads": [1] * 6})
    for channels, groups in (((1, 1), 1), ((v - 1, v), 1), ((2 * v, v + 3), 1), ((6, 4), 2), ((2 * v, 2 * v), 2)):
        convolve(target, dense, channels, groups, (3, 4, 5))


@each_target
def test_one_slice_one_row_one_column(target: Target) -> None:
    dense = ((3, 3, 3), {"pads": [1] * 6})
    for size in ((1, 4, 5), (4, 1, 5), (4, 5, 1), (1, 1, 1)):
        convolve(target, dense, (5, 4), size=size)


@each_target
@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((3, 3, 3), {"pads": [1] * 6}),
        ((3, 1, 1), {"pads": [1, 0, 0, 1, 0, 0]}),
        ((1, 3, 3), {"pads": [0, 1, 1, 0, 1, 1]}),
        ((2, 3, 2), {"pads": [1, 2, 1, 1, 2, 2], "dilations": [2, 2, 3]}),
        ((1, 1, 1), {}),
        ((11, 11, 11), {"pads": [5] * 6}),
        ((1, 1, 29), {"pads": [0, 0, 14, 0, 0, 14]}),
    ],
    ids=str,
)
def test_depthwise_layers(target: Target, kernel: tuple[int, ...], attributes: dict[str, Any]) -> None:
    v = target.vector
    constants = {
        "e": weights(v + 2, 5, 1, 1, 1), "w": weights(v + 2, 1, *kernel) / np.float32(kernel[0]), "b": weights(v + 2),
        "p": weights(5, v + 2, 1, 1, 1),
    }  # fmt: skip
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r e", "wide"),
        node("Conv", "wide w b", "d", group=v + 2, **attributes),
        node("Add", "d wide", "sum"),
        node("Conv", "sum p", "narrow"),
        node("Add", "narrow r", "y"),
    ]
    for n in (1, 2):
        plan = of_nodes(nodes, {"x": (n, 5, 3, 5, 4)}, target, constants)
        assert [step.name for step in plan.steps if step.name in ("pack", "unpack")] == ["pack", "unpack"]
        assert plan.tiles(depthwise)[0].deep == (kernel[0] > 1)


@each_target
def test_strided_depthwise_layers_and_groups_of_several_channels(target: Target) -> None:
    v = target.vector
    constants = {
        "w": weights(v + 1, 1, 3, 3, 3), "g": weights(2 * v + 2, 1, 3, 3, 3), "q": weights(2, v + 1, 1, 1, 1),
        "t": weights(v + 2, v + 1, 1, 3, 1),
    }  # fmt: skip
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w", "d", pads=[1] * 6, strides=[2, 1, 3], group=v + 1),
        node("Conv", "d g", "e", pads=[1] * 6, group=v + 1),
        node("Relu", "e", "f"),
        node("Conv", "f q", "y", group=2),
        node("Conv", "f t", "z", group=2),
    ]
    of_nodes(nodes, {"x": (1, v + 1, 4, 5, 7)}, target, constants, ("y", "z"))


@each_target
def test_transposed_layers_between_blocks(target: Target) -> None:
    constants = {"w": weights(5, 4, 2, 2, 2), "c": weights(3, 9, 3, 3, 3)}
    nodes = [
        node("Relu", "x", "r"),
        node("ConvTranspose", "r w", "up", strides=[2, 2, 2]),
        node("Concat", "up z", "both", axis=1),
        node("Conv", "both c", "y", pads=[1] * 6),
    ]
    of_nodes(nodes, {"x": (1, 5, 2, 3, 3), "z": (1, 5, 4, 6, 6)}, target, constants)


# -- everything else ---------------------------------------------------------------------------------------------------

SHAPES = [(2, 5, 3, 4, 7), (1, 20, 2, 1, 3), (1, 1, 1, 1, 1), (2, 19, 13)]
UNARY: list[tuple[str, dict[str, Any]]] = [
    ("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("HardSigmoid", {}), ("Sigmoid", {}), ("HardSwish", {}), ("Tanh", {}),
    ("Elu", {}), ("Selu", {}), ("Celu", {}), ("Softplus", {}), ("Softsign", {}), ("Erf", {}), ("Exp", {}), ("Abs", {}),
    ("Neg", {}), ("Floor", {}), ("Ceil", {}), ("Round", {}), ("ThresholdedRelu", {}), ("Reciprocal", {}), ("Mish", {}),
]  # fmt: skip


@each_target
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_activations_alone(target: Target, shape: tuple[int, ...]) -> None:
    nodes = [node(op, "x", f"y{at}", **attributes) for at, (op, attributes) in enumerate(UNARY)]
    nodes.append(node("Clip", "x low high", "clipped"))
    limits = {"low": np.float32(-0.5), "high": np.float32(0.7)}
    outputs = [name for one in nodes for name in one.output]
    of_nodes(nodes, {"x": shape}, target, limits, outputs, opset=18)  # type: ignore[arg-type]


@each_target
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arithmetic_with_operands_of_every_shape(target: Target, shape: tuple[int, ...]) -> None:
    n, channels, *size = shape
    ones = (1,) * len(size)
    others: dict[str, tuple[int, ...]] = {
        "full": shape, "channel": (n, channels, *ones), "pixel": (n, 1, *size), "one": (1, 1, *ones), "lone": (1,),
        "shared": (1, channels, *size), "row": (1, channels, *ones),
    }  # fmt: skip
    constants = {"known": weights(1, channels, *ones), "same": weights(*shape), "slope": weights(channels, *ones)}
    nodes = [node("PRelu", "x slope", "slanted"), node("Add", "x x", "double")]
    for op in ("Sub", "Mul"):
        nodes += [node(op, f"x {other}", f"{op}{other}") for other in (*others, "known", "same")]
    for op in ("Add", "Div", "Max", "Min"):
        nodes += [node(op, f"x {other}", f"{op}{other}") for other in ("full", "channel")]
    outputs = [name for one in nodes for name in one.output]
    feeds = {"x": shape, **others}
    of_nodes(nodes, feeds, target, constants, outputs)


@each_target
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_normalisation_alone(target: Target, shape: tuple[int, ...]) -> None:
    norm = norm_parameters(shape[1])
    nodes = [node("BatchNormalization", " ".join(["x", *norm]), "n"), node("Relu", "n", "y")]
    of_nodes(nodes, {"x": shape}, target, norm)


POOLS: list[dict[str, Any]] = [
    {"kernel_shape": [3, 3, 3], "strides": [2, 2, 2], "pads": [1] * 6},
    {"kernel_shape": [1, 3, 3], "strides": [1, 2, 2], "pads": [0, 1, 1, 0, 1, 1]},
    {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]},
    {"kernel_shape": [2, 1, 3], "strides": [1, 2, 3], "pads": [1, 0, 0, 0, 0, 2]},
    {"kernel_shape": [3, 2, 2], "strides": [2, 3, 2], "ceil_mode": 1, "pads": [1, 1, 0, 1, 0, 1]},
    {"kernel_shape": [2, 3, 2], "dilations": [2, 1, 3], "pads": [1, 1, 1, 0, 1, 1]},
    {"kernel_shape": [3, 3, 12], "strides": [1, 1, 1], "pads": [1, 1, 6, 1, 1, 5]},
    {"kernel_shape": [3, 3, 3], "strides": [2, 2, 2], "auto_pad": "SAME_LOWER"},
]


@each_target
@pytest.mark.parametrize("attributes", POOLS, ids=str)
def test_pooling_over_windows(target: Target, attributes: dict[str, Any]) -> None:
    nodes = [
        node("MaxPool", "x", "most", **attributes),
        node("AveragePool", "x", "mean", **attributes),
        node("AveragePool", "x", "counted", count_include_pad=1, **attributes),
    ]
    for shape in ((2, 3, 5, 6, 21), (1, target.vector + 1, 4, 3, 5)):
        plan = of_nodes(nodes, {"x": shape}, target, {}, ("most", "mean", "counted"), opset=19)
        assert sum(isinstance(step.tile, Pool) and step.tile.deep for step in plan.steps) == 3 * shape[0]


@each_target
def test_a_nan_is_the_largest_value_of_its_window(target: Target) -> None:
    x = np.zeros((1, 2, 3, 4, 30), np.float32)
    x[0, 1, 2, 3, 17] = np.nan
    proto = model([node("MaxPool", "x", "y", kernel_shape=[2, 2, 2])], {"x": x.shape})
    given = planned(read(proto), target).run({"x": x})["y"]
    assert np.isnan(given[0, 1, 1, 2, 16:18]).all()
    assert np.isnan(given).sum() == 2


@each_target
def test_volumes_inside_the_zeros_that_another_reader_wants(target: Target) -> None:
    """Pools, sums, slices and concatenations of a value whose slices have gaps between them."""
    v = target.vector
    constants = {
        "w": weights(v, 2 * v + 3, 3, 3, 3), "starts": np.array([v]), "ends": np.array([2 * v + 1]),
        "axes": np.array([1]), "u": weights(2, v + 3, 3, 1, 3), "half": np.array([v, v + 3]),
    }  # fmt: skip
    nodes = [
        node("Relu", "x", "a"),
        node("Tanh", "z", "t"),
        node("Concat", "a t", "both", axis=1),
        node("Conv", "both w", "c", pads=[1] * 6),
        node("MaxPool", "both", "p", kernel_shape=[2, 2, 2]),
        node("GlobalAveragePool", "both", "g"),
        node("GlobalMaxPool", "both", "m"),
        node("Slice", "both starts ends axes", "s"),
        node("Split", "both half", "front behind", axis=1),
        node("Conv", "behind u", "d", pads=[1, 0, 1, 1, 0, 1]),
        node("Mul", "both g", "scaled"),
        node("Sub", "both pixel", "less"),
        node("Flatten", "both", "flat"),
        node("Neg", "flat", "f"),
        node("Exp", "both", "e"),
    ]
    outputs = ("c", "p", "g", "m", "s", "front", "d", "scaled", "less", "f", "e")
    for n in (1, 2):
        shapes = {"x": (n, v, 3, 4, 5), "z": (n, v + 3, 3, 4, 5), "pixel": (n, 1, 3, 4, 5)}
        of_nodes(nodes, shapes, target, constants, outputs)


def test_a_volume_flattened_for_a_fully_connected_layer() -> None:
    constants = {"c": weights(4, 4, 3, 3, 3), "w": weights(3, 4 * 2 * 3 * 2)}
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r c", "d", pads=[1] * 6),
        node("Flatten", "r", "f"),
        node("Gemm", "f w", "y", transB=1),
    ]
    of_nodes(nodes, {"x": (2, 4, 2, 3, 2)}, HOST, constants, ("y", "d"))
    singles = [node("Relu", "x", "r"), node("Reshape", "r s", "f"), node("Gemm", "f w", "y", transB=1)]
    of_nodes(singles, {"x": (2, 4, 1, 1, 1)}, HOST, {"w": weights(3, 4), "s": np.array([2, 4])})


def test_one_dimensional_networks_run_on_kernels() -> None:
    norm = norm_parameters(5)
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1]),
        node("Relu", "c", "r"),
        node("MaxPool", "r", "p", kernel_shape=[3], strides=[2], pads=[1, 1]),
        node("Conv", "p u", "d", pads=[2, 2], dilations=[2]),
        node("Add", "d p", "sum"),
        node("BatchNormalization", " ".join(["sum", *norm]), "n"),
        node("HardSwish", "n", "h"),
        node("Concat", "h p", "both", axis=1),
        node("AveragePool", "both", "a", kernel_shape=[2], strides=[2], ceil_mode=1),
        node("GlobalAveragePool", "a", "mean"),
        node("Flatten", "mean", "f"),
        node("Gemm", "f g", "y", transB=1),
    ]
    constants = {"w": weights(5, 3, 3), "b": weights(5), "u": weights(5, 5, 3), "g": weights(4, 10), **norm}
    of_nodes(nodes, {"x": (2, 3, 29)}, HOST, constants)
