"""Every operator, compiled and run, gives what ONNX Runtime gives, or onnx.reference where the former lacks a type."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import convwright as cw
from convwright.codegen.target import NAMES, host_target, runs_here, target_named
from convwright.model import lower
from convwright.model.lower.fallback import SlowOperatorWarning

from .graph_models import Array, node, norm_parameters, random_feeds, run, weights

Shapes = Mapping[str, Sequence[int]]
X: Shapes = {"x": (2, 20, 7, 9)}
V = host_target().vector
TOLERANCE = 1e-5  # of the largest value


@pytest.fixture(params=NAMES)
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    """Models are compiled for each instruction set; the value is the number of float32 in its vectors."""
    if not runs_here(request.param):
        pytest.skip(f"no {request.param} here")
    target = target_named(request.param)
    with patch("convwright.model.model.host_target", lambda: target):
        yield target.vector


@dataclass
class Case:
    """A small network: its nodes, the shapes of its float32 inputs, its constants and outputs.

    ``slow``: the operators that have no kernel. ``feeds``: inputs that are not random float32.
    """

    nodes: list[onnx.NodeProto]
    shapes: Shapes = field(default_factory=lambda: X)
    constants: Mapping[str, Array] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    slow: tuple[str, ...] = ()
    feeds: Mapping[str, Array] | None = None
    opset: int = 17
    reference: bool = False  # onnx.reference is the oracle, not ONNX Runtime

    def inputs(self) -> dict[str, Array]:
        return dict(self.feeds) if self.feeds is not None else random_feeds(self.shapes)

    def proto(self, feeds: Mapping[str, Array]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in feeds.items()
            ],
            [helper.make_empty_tensor_value_info(name) for name in self.outputs],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def check(case: Case, threads: int = 2, tolerance: float = TOLERANCE) -> cw.Model:
    """The compiled network agrees with the oracle in values, shapes and types, twice in a row."""
    feeds = case.inputs()
    proto = case.proto(feeds)
    expected = ReferenceEvaluator(proto).run(None, feeds) if case.reference else run(proto, feeds)
    graph = cw.load(proto.SerializeToString())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SlowOperatorWarning)
        model = cw.compile(graph, threads=threads)
    messages = sorted(str(one.message) for one in caught)
    assert len(messages) == len(case.slow), messages
    for op in case.slow:
        assert any(f"({op})" in message for message in messages), messages
    for _ in range(2):
        given = model(feeds)
        results = [given[name] for name in case.outputs] if len(case.outputs) > 1 else [given]
        for name, result, wanted in zip(case.outputs, results, expected, strict=True):
            assert result.shape == wanted.shape, name
            assert result.dtype == wanted.dtype, name
            finite = np.abs(wanted[np.isfinite(wanted)]) if wanted.dtype.kind == "f" else np.abs(wanted)
            scale = float(finite.max(initial=0)) or 1.0
            np.testing.assert_allclose(result, wanted, rtol=0, atol=tolerance * scale, err_msg=name)
    return model


def kernels(model: cw.Model) -> list[str]:
    """Family of every step of the model's newest plan."""
    program = next(reversed(model._programs.values()))
    return [info.kernel.split("-")[1] if info.kernel.startswith("f32-") else info.kernel for info in program.infos]


# -- convolutions ------------------------------------------------------------------------------------------------------


def convolution(
    out_channels: int, in_channels: int, kernel: Sequence[int], *, groups: int = 1, bias: bool = True, **attributes: Any
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """The node x -> y and its weights, scaled so that results stay near 1."""
    shape = (out_channels, in_channels // groups, *kernel)
    constants = {"w": weights(*shape) / np.float32(np.sqrt(np.prod(shape[1:])))}
    if bias:
        constants["b"] = weights(out_channels, seed=2)
    if groups > 1:
        attributes["group"] = groups
    return [node("Conv", "x w b" if bias else "x w", "y", **attributes)], constants


def channel_counts(v: int) -> list[int]:
    return sorted({1, 3, v - 1, v, v + 1, 20, 24, 37})


def test_channel_counts_around_the_vector(isa: int) -> None:
    counts = channel_counts(isa)
    for place, count in enumerate(counts):
        other = counts[(place * 3 + 2) % len(counts)]
        nodes, constants = convolution(other, count, (3, 3), pads=[1] * 4)
        # Behind a ReLU the input is in blocks; in front of it, plain planes are read.
        check(
            Case([node("Relu", "x", "r"), node("Conv", "r w b", "y", pads=[1] * 4)], {"x": (1, count, 5, 6)}, constants)
        )
        check(Case(nodes, {"x": (1, count, 5, 6)}, constants))


@pytest.mark.parametrize("kernel", [1, 3])
def test_spatial_sizes_from_1_to_17(kernel: int) -> None:
    nodes, constants = convolution(V + 1, 5, (kernel, kernel), pads=[kernel // 2] * 4)
    for size in range(1, 18):
        check(Case(nodes, {"x": (1, 5, size, 18 - size)}, constants))


CONVOLUTIONS: dict[str, tuple[Shapes, tuple[list[onnx.NodeProto], dict[str, Array]]]] = {
    "1x1": (X, convolution(24, 20, (1, 1))),
    "1x1 of several images": ({"x": (3, 20, 1, 1)}, convolution(24, 20, (1, 1))),
    "stride": (X, convolution(24, 20, (3, 3), strides=[2, 2], pads=[1] * 4)),
    "1x1 stride": (X, convolution(24, 20, (1, 1), strides=[2, 2])),
    "no bias": (X, convolution(24, 20, (3, 3), bias=False)),
    "uneven": (X, convolution(5, 20, (2, 5), strides=[3, 1], pads=[0, 3, 1, 0])),
    "dilation": (X, convolution(5, 20, (3, 3), dilations=[2, 3], pads=[2, 3, 2, 3])),
    "SAME_UPPER": (X, convolution(5, 20, (4, 3), strides=[2, 2], auto_pad="SAME_UPPER")),
    "SAME_LOWER": (X, convolution(5, 20, (4, 3), strides=[2, 2], auto_pad="SAME_LOWER")),
    "VALID": (X, convolution(5, 20, (4, 3), auto_pad="VALID")),
    "kernel as large as the input": (X, convolution(5, 20, (7, 9))),
    "windows that end before the input": (X, convolution(5, 20, (2, 2), strides=[5, 5])),
    "first layer": ({"x": (2, 3, 9, 11)}, convolution(24, 3, (7, 7), strides=[2, 2], pads=[3] * 4)),
    "first layer of one channel": ({"x": (2, 1, 9, 11)}, convolution(5, 1, (5, 5), pads=[2] * 4)),
    "two groups": (X, convolution(24, 20, (3, 3), groups=2, pads=[1] * 4)),
    "groups narrower than a vector": (X, convolution(15, 20, (3, 3), groups=5, pads=[1] * 4)),
    "groups wider than a vector": ({"x": (1, 2 * V, 5, 5)}, convolution(2 * (V + 3), 2 * V, (1, 1), groups=2)),
    "whole vectors a group": ({"x": (1, 2 * V, 5, 5)}, convolution(4 * V, 2 * V, (3, 3), groups=2, pads=[1] * 4)),
    "depthwise": (X, convolution(20, 20, (3, 3), groups=20, pads=[1] * 4)),
    "depthwise stride": (X, convolution(20, 20, (5, 5), groups=20, pads=[2] * 4, strides=[2, 2])),
    "depthwise dilation": (X, convolution(20, 20, (3, 3), groups=20, pads=[2] * 4, dilations=[2, 2])),
    "depthwise large kernel": (X, convolution(20, 20, (1, 9), groups=20, pads=[0, 4, 0, 4])),
    "depthwise multiplier": (X, convolution(40, 20, (3, 3), groups=20, pads=[1] * 4)),
    "1-D": ({"x": (2, 20, 17)}, convolution(24, 20, (3,), pads=[1, 1], strides=[2])),
    "1-D depthwise": ({"x": (2, 20, 17)}, convolution(20, 20, (5,), groups=20, pads=[4, 0])),
    "1-D first layer": ({"x": (2, 1, 17)}, convolution(6, 1, (5,), pads=[4, 4], dilations=[2])),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(isa: int, name: str) -> None:
    shapes, (nodes, constants) = CONVOLUTIONS[name]
    check(Case(nodes, shapes, constants))


def test_three_dimensional_convolution_takes_its_activation() -> None:
    shapes = {"x": (1, 3, 4, 5, 4)}
    nodes, constants = convolution(4, 3, (3, 3, 3), pads=[1] * 6)
    check(Case(nodes, shapes, constants))
    nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "y")]
    check(Case(nodes, shapes, constants))
    nodes = [node("Conv", "x w b", "c"), node("Sigmoid", "c", "s"), node("Mul", "c s", "y")]
    assert check(Case(nodes, shapes, constants))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolution_takes_its_activation(rank: int) -> None:
    constants = {"w": weights(6, 2, *(3,) * rank), "b": weights(4)}
    transposed = node("ConvTranspose", "x w b", "c", strides=[2] * rank, group=2, output_padding=[1] * rank)
    check(Case([transposed, node("Relu", "c", "y")], {"x": (2, 6, *(5, 4, 3)[:rank])}, constants))


def test_convolution_by_weights_that_are_computed_runs_through_the_reference() -> None:
    shapes = {"x": (1, 3, 5, 5), "w": (2, 3, 3, 3)}
    check(Case([node("Conv", "x w", "c"), node("Relu", "c", "y")], shapes, slow=("Conv",)))


ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky": ("LeakyRelu", {"alpha": 0.2}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "hard sigmoid": ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    "hard swish": ("HardSwish", {}),
    "elu": ("Elu", {"alpha": 0.5}),
    "selu": ("Selu", {}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "thresholded": ("ThresholdedRelu", {"alpha": 0.3}),
    "abs": ("Abs", {}),
    "neg": ("Neg", {}),
    "exp": ("Exp", {}),
    "erf": ("Erf", {}),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_done_by_the_convolution_before_them_or_alone(name: str) -> None:
    op, attributes = ACTIVATIONS[name]
    _, constants = convolution(24, 20, (1, 1))
    nodes = [node("Conv", "x w b", "c"), node(op, "c", "y", **attributes)]
    assert "elementwise" not in kernels(check(Case(nodes, constants=constants)))
    assert "elementwise" in kernels(check(Case([node(op, "x", "y", **attributes)])))


def test_activations_written_as_patterns() -> None:
    silu = [node("Sigmoid", "x", "s"), node("Mul", "x s", "y")]
    assert kernels(check(Case(silu))).count("elementwise") == 1
    low, high = np.array(0, np.float32), np.array(6, np.float32)
    check(Case([node("Clip", "x low high", "y")], constants={"low": low, "high": high}))
    check(Case([node("Clip", "x _ high", "y")], constants={"high": high}))
    check(Case([node("Gelu", "x", "y")], opset=20))
    check(Case([node("Gelu", "x", "y", approximate="tanh")], opset=20))
    check(Case([node("Mish", "x", "y")], opset=20))


@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("order", ["c x", "x c"])
def test_an_addition_is_done_by_the_convolution_in_either_order(isa: int, depthwise: bool, order: str) -> None:
    _, constants = convolution(20, 20, (3, 3), groups=20 if depthwise else 1)
    nodes = [node("Conv", "x w b", "c", pads=[1] * 4, group=20 if depthwise else 1), node("Add", order, "s")]
    model = check(Case([*nodes, node("Relu", "s", "y")], constants=constants))
    assert "elementwise" not in kernels(model)


def test_an_addition_of_two_convolutions_is_done_by_the_later_one() -> None:
    _, constants = convolution(20, 20, (3, 3))
    conv = {"pads": [1] * 4}
    for order in ("p q", "q p"):
        nodes = [
            node("Conv", "x w b", "p", **conv),
            node("Relu", "p", "r"),
            node("Conv", "r w b", "q", **conv),
            node("Add", order, "s"),
            node("Conv", "s w b", "y", **conv),
        ]
        # The ReLU stands alone: what it reads is also added.
        assert kernels(check(Case(nodes, constants=constants))).count("elementwise") == 1


def test_an_addition_behind_an_activation_and_one_of_a_value_to_itself() -> None:
    _, constants = convolution(20, 20, (1, 1))
    nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Add", "r x", "s"), node("Add", "s s", "y")]
    check(Case(nodes, constants=constants))
    nodes = [node("Conv", "x w b", "c"), node("Add", "c x", "s"), node("Add", "s x", "t"), node("Add", "c t", "y")]
    check(Case(nodes, constants=constants))
    nodes = [node("Conv", "x w b", "c"), node("Add", "c x", "s"), node("Add", "s x", "y")]
    check(Case(nodes, constants=constants))


def test_a_one_dimensional_residual() -> None:
    _, constants = convolution(20, 20, (3,))
    nodes = [node("Conv", "x w b", "c", pads=[1, 1]), node("Add", "x c", "y")]
    check(Case(nodes, {"x": (2, 20, 13)}, constants))


def test_a_convolution_that_is_read_twice_keeps_its_own_result() -> None:
    _, constants = convolution(20, 20, (1, 1))
    nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Add", "c r", "y")]
    check(Case(nodes, constants=constants))
    check(Case(nodes, constants=constants, outputs=("c", "y")))


# -- fully connected ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_fully_connected(isa: int, batch: int) -> None:
    shapes = {"x": (batch, 37)}
    constants = {"w": weights(21, 37), "b": weights(21, seed=3), "one": np.array(0.5, np.float32)}
    constants |= {"t": weights(37, 21), "row": weights(1, 21)}
    check(Case([node("Gemm", "x w b", "y", transB=1)], shapes, constants))
    check(Case([node("Gemm", "x w", "y", transB=1)], shapes, constants))
    check(Case([node("Gemm", "x w one", "y", transB=1)], shapes, constants))
    check(Case([node("Gemm", "x t row", "y", alpha=0.5, beta=2.0)], shapes, constants))
    check(Case([node("MatMul", "x t", "m"), node("Add", "m b", "a"), node("Relu", "a", "y")], shapes, constants))


def test_fully_connected_with_a_bias_for_each_image() -> None:
    shapes = {"x": (2, 5)}
    for out in (1, 2, 7):
        constants = {"w": weights(out, 5), "b": weights(2, 1), "full": weights(2, out)}
        check(Case([node("Gemm", "x w b", "y", transB=1)], shapes, constants, slow=() if out == 1 else ("Add",)))
        check(Case([node("Gemm", "x w full", "y", transB=1)], shapes, constants))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plane", [(1, 1), (3, 4), (5,)], ids=str)
def test_fully_connected_behind_a_flatten(batch: int, plane: tuple[int, ...]) -> None:
    features = 20 * int(np.prod(plane))
    constants = {"w": weights(9, features) / np.float32(np.sqrt(features)), "b": weights(9, seed=3)}
    head = [node("Relu", "x", "r"), node("Flatten", "r", "f")]
    shapes = {"x": (batch, 20, *plane)}
    check(Case([*head, node("Gemm", "f w b", "y", transB=1)], shapes, constants))
    # Flattened and also read as it is, and as a graph output.
    check(Case([*head, node("Gemm", "f w b", "y", transB=1)], shapes, constants, outputs=("f", "y")))
    check(Case([*head, node("Gemm", "f w b", "y", transB=1), node("Abs", "f", "z")], shapes, constants, ("y", "z")))


def test_the_flattened_plane_may_lie_inside_the_zeros_that_another_reader_wants() -> None:
    _, constants = convolution(5, 20, (3, 3))
    constants |= {"v": weights(9, 20 * 12) / np.float32(np.sqrt(240)), "c": weights(9, seed=3)}
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "r w b", "z", pads=[1] * 4),
        node("Flatten", "r", "f"),
        node("Gemm", "f v c", "y", transB=1),
    ]
    check(Case(nodes, {"x": (2, 20, 3, 4)}, constants, ("y", "z")))


# -- pooling -----------------------------------------------------------------------------------------------------------

POOLS: list[tuple[str, dict[str, Any]]] = [
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 0, 1]}),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "count_include_pad": 1}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0], "strides": [2, 1]}),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
]


@pytest.mark.parametrize(("op", "attributes"), POOLS, ids=str)
def test_pooling(isa: int, op: str, attributes: dict[str, Any]) -> None:
    check(Case([node(op, "x", "y", **attributes)], {"x": (2, 20, 8, 10)}))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling_in_one_dimension(op: str) -> None:
    check(Case([node(op, "x", "y", kernel_shape=[3], strides=[2], pads=[1, 1])], {"x": (2, 20, 13)}))


@pytest.mark.parametrize("count", [0, 1])
def test_windows_of_ceil_mode_count_padding_but_not_what_lies_beyond_it(count: int) -> None:
    attributes = {
        "kernel_shape": [3, 3],
        "strides": [2, 2],
        "pads": [1] * 4,
        "ceil_mode": 1,
        "count_include_pad": count,
    }
    check(Case([node("AveragePool", "x", "y", **attributes)], {"x": (1, 5, 8, 6)}, opset=19))


def test_max_pooling_with_indices_runs_through_the_reference() -> None:
    nodes = [node("MaxPool", "x", "y i", kernel_shape=[2, 2], strides=[2, 2])]
    check(Case(nodes, {"x": (1, 2, 4, 4)}, outputs=("y", "i"), slow=("MaxPool",)))


@pytest.mark.parametrize("op", ["GlobalMaxPool", "GlobalAveragePool"])
@pytest.mark.parametrize("shape", [(2, 20, 7, 9), (1, 37, 1, 1), (2, 5, 13)], ids=str)
def test_pooling_over_the_plane(isa: int, op: str, shape: tuple[int, ...]) -> None:
    check(Case([node(op, "x", "y")], {"x": shape}))


def test_mean_over_the_spatial_axes_is_pooling_over_the_plane() -> None:
    nodes = [node("ReduceMean", "x", "y", axes=[2, 3], keepdims=0)]
    assert "GlobalAveragePool" not in kernels(check(Case(nodes)))


# -- elementwise -------------------------------------------------------------------------------------------------------

OPERANDS = {
    "channel": (1, 20, 1, 1),
    "channel without batch": (20, 1, 1),
    "scalar": (),
    "one element": (1,),
    "one element of rank 4": (1, 1, 1, 1),
}


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_with_constants(isa: int, op: str) -> None:
    for name, shape in OPERANDS.items():
        constants = {"c": np.asarray(weights(*shape) + np.float32(3), np.float32)}
        for order in ("x c", "c x"):
            model = check(Case([node(op, order, "y")], {"x": (2, 20, 3, 5)}, constants))
            assert "elementwise" in kernels(model), name


@pytest.mark.parametrize("op", ["Add", "Mul", "Max", "Min"])
def test_arithmetic_of_computed_values(isa: int, op: str) -> None:
    whole = (2, 20, 3, 5)
    others = (whole, (2, 20, 1, 1), (1, 20, 1, 1), (2, 1, 3, 5), (1, 1, 3, 5), (1, *whole[1:]), (1, 1, 1, 1), (1,), ())
    for other in others:
        for order in ("x z", "z x"):
            check(Case([node(op, order, "y")], {"x": whole, "z": other}))


@pytest.mark.parametrize(
    "shape",
    [(2, 20, 1, 1), (2, 20, 3, 5), (1, 20, 3, 5), (20, 3, 5), (3, 5), (5,), (2, 1, 1, 1), (1, 1, 3, 1)],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_constants_of_any_other_shape(shape: tuple[int, ...], batch: int) -> None:
    """With a kernel or without one, no broadcast is mistaken for another."""
    feeds = {"x": (batch, 20, 3, 5)}
    for op in ("Add", "Mul"):
        proto = Case([node(op, "x c", "y")], feeds, {"c": weights(*shape)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlowOperatorWarning)
            model = cw.compile(cw.load(proto.proto(proto.inputs()).SerializeToString()))
        x = proto.inputs()["x"]
        wanted = x + weights(*shape) if op == "Add" else x * weights(*shape)
        np.testing.assert_allclose(model(x), wanted, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 4, 5), (1, 5), (3, 5)], ids=str)
def test_constants_of_lower_ranks(shape: tuple[int, ...]) -> None:
    for own in {shape, shape[1:], shape[-1:], (shape[-2], 1), (shape[0], *[1] * (len(shape) - 1))}:
        case = Case([node("Sub", "x c", "y")], {"x": shape}, {"c": weights(*own)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SlowOperatorWarning)
            model = cw.compile(cw.load(case.proto(case.inputs()).SerializeToString()))
        x = case.inputs()["x"]
        np.testing.assert_allclose(model(x), x - weights(*own), atol=1e-6, err_msg=str(own))


def test_squeeze_and_excitation(isa: int) -> None:
    constants = {"w": weights(20, 20, 1, 1) / np.float32(4), "b": weights(20, seed=2)}
    nodes = [
        node("Relu", "x", "r"),
        node("GlobalAveragePool", "r", "g"),
        node("Conv", "g w b", "c"),
        node("HardSigmoid", "c", "s"),
        node("Mul", "r s", "y"),
    ]
    check(Case(nodes, constants=constants))


def test_attention_over_pixels(isa: int) -> None:
    constants = {"w": weights(1, 20, 1, 1) / np.float32(4), "b": weights(1, seed=2)}
    nodes = [node("Relu", "x", "r"), node("Conv", "r w b", "c"), node("Sigmoid", "c", "s"), node("Mul", "s r", "y")]
    check(Case(nodes, constants=constants))


def test_parametric_relu(isa: int) -> None:
    for slope in ((20, 1, 1), (1,), (1, 20, 1, 1)):
        check(Case([node("PRelu", "x s", "y")], constants={"s": weights(*slope)}))


@pytest.mark.parametrize("power", [2.0, 3.0, 0.5, -1.0])
def test_powers(power: float) -> None:
    feeds = {"x": np.abs(random_feeds(X)["x"]) + np.float32(0.1)}
    check(Case([node("Pow", "x p", "y")], constants={"p": np.array(power, np.float32)}, feeds=feeds))


def test_powers_without_a_kernel_run_through_the_reference() -> None:
    feeds = {"x": np.abs(random_feeds(X)["x"]) + np.float32(0.1)}
    check(Case([node("Pow", "x p", "y")], constants={"p": np.array(1.7, np.float32)}, feeds=feeds, slow=("Pow",)))


def test_unary_functions(isa: int) -> None:
    feeds = {"x": np.abs(random_feeds(X)["x"]) + np.float32(0.1)}
    for op in ("Log", "Sqrt", "Reciprocal", "Floor", "Ceil", "Round"):
        check(Case([node(op, "x", "y")], feeds=feeds))


def test_several_operands_and_one_operand_several_times() -> None:
    shapes = {"x": (2, 20, 3, 5), "z": (2, 20, 3, 5), "p": (2, 1, 3, 5)}
    check(Case([node("Max", "x z p", "y")], shapes))
    check(Case([node("Sum", "x z", "y")], shapes, slow=("Sum",)))
    check(Case([node("Mul", "x x", "y")]))


def test_batch_normalisation_that_no_convolution_takes_in(isa: int) -> None:
    nodes = [node("BatchNormalization", "x bn_0 bn_1 bn_2 bn_3", "y", epsilon=0.01)]
    check(Case(nodes, constants=norm_parameters(20)))
    check(Case(nodes, {"x": (3, 20)}, norm_parameters(20)))
    both = [*nodes, node("BatchNormalization", "y a_0 a_1 a_2 a_3", "z")]
    check(Case(both, constants=norm_parameters(20) | norm_parameters(20, "a", seed=5), outputs=("y", "z")))


# -- concatenation, splitting, slicing, shuffling ----------------------------------------------------------------------


def branches(*widths: int, tail: Sequence[onnx.NodeProto] = (), order: Sequence[int] | None = None) -> Case:
    """1x1 convolutions of x to the given widths, concatenated, and convolved with padding."""
    constants: dict[str, Array] = {}
    nodes = []
    for place, width in enumerate(widths):
        constants |= {f"w{place}": weights(width, 20, 1, 1, seed=place) / np.float32(4)}
        nodes += [node("Conv", f"x w{place}", f"c{place}"), node("Relu", f"c{place}", f"p{place}")]
    parts = [f"p{place}" for place in (order or range(len(widths)))]
    total = sum(widths[place] for place in (order or range(len(widths))))
    constants["v"] = weights(5, total, 3, 3) / np.float32(np.sqrt(9 * total))
    nodes += [node("Concat", " ".join(parts), "cat", axis=1), node("Conv", "cat v", "y", pads=[1] * 4), *tail]
    return Case(nodes, constants=constants)


@pytest.mark.parametrize("widths", [(16, 16), (16, 5), (5, 16), (3, 4, 5), (16, 32, 7), (1, 1), (37, 24, 20)], ids=str)
def test_concatenation_of_channels(isa: int, widths: tuple[int, ...]) -> None:
    check(branches(*widths))


def test_a_part_twice_in_a_concatenation(isa: int) -> None:
    for widths, order in (((16,), (0, 0)), ((5,), (0, 0)), ((20, 12), (0, 1, 0)), ((20, 12, 16), (0, 1, 2, 0))):
        check(branches(*widths, order=order))


@pytest.mark.parametrize("widths", [(16, 16), (5, 12)], ids=str)
def test_a_part_that_is_also_read_elsewhere(widths: tuple[int, int]) -> None:
    tail = [node("Sigmoid", "p0", "s"), node("MaxPool", "p1", "m", kernel_shape=[3, 3], pads=[1] * 4)]
    case = branches(*widths, tail=tail)
    case.outputs = ("y", "s", "m", "p1")
    check(case)


def test_parts_that_the_graph_is_given_and_an_output_that_is_one() -> None:
    shapes = {"x": (1, 16, 3, 4), "z": (1, 7, 3, 4)}
    for parts in ("x z", "z x", "x x", "r z", "z r x"):
        check(Case([node("Relu", "x", "r"), node("Concat", parts, "y", axis=1)], shapes, outputs=("y", "r")))


def test_dense_blocks_read_the_concatenation_that_they_are_written_into() -> None:
    nodes, constants = [node("Relu", "x", "a0")], {}
    width = 20
    for place in range(3):
        constants[f"w{place}"] = weights(12, width, 3, 3, seed=place) / np.float32(3 * np.sqrt(width))
        nodes += [
            node("Conv", f"a{place} w{place}", f"b{place}", pads=[1] * 4),
            node("Concat", f"a{place} b{place}", f"a{place + 1}", axis=1),
        ]
        width += 12
    check(Case([*nodes, node("Relu", "a3", "y")], constants=constants))


def test_concatenations_of_concatenations() -> None:
    case = branches(16, 32)
    case.nodes += [
        node("Concat", "cat p1 cat", "n", axis=1),
        node("MaxPool", "n", "z", kernel_shape=[3, 3], pads=[1] * 4),
    ]
    case.outputs = ("y", "z")
    check(case)


@pytest.mark.parametrize("axis", [0, 2, 3, -1])
def test_concatenation_along_another_axis(axis: int) -> None:
    nodes = [node("Relu", "x", "r"), node("Concat", "x r x", "y", axis=axis)]
    check(Case(nodes, {"x": (2, 3, 4, 5)}))


def test_concatenation_of_integers() -> None:
    feeds = {"x": np.arange(6, dtype=np.int64).reshape(2, 3), "z": np.arange(4, dtype=np.int64).reshape(2, 2)}
    check(Case([node("Concat", "x z", "y", axis=1)], feeds=feeds))


@pytest.mark.parametrize("sizes", [(16, 4), (5, 15), (10, 10), (1, 18, 1), (16, 16, 5)], ids=str)
def test_splitting_channels(isa: int, sizes: tuple[int, ...]) -> None:
    outputs = [f"p{place}" for place in range(len(sizes))]
    constants: dict[str, Array] = {"sizes": np.array(sizes, np.int64)}
    nodes = [node("Relu", "x", "r"), node("Split", "r sizes", " ".join(outputs), axis=1)]
    for place, size in enumerate(sizes):
        constants[f"w{place}"] = weights(4, size, 3, 3, seed=place) / np.float32(np.sqrt(9 * size))
        nodes.append(node("Conv", f"p{place} w{place}", f"q{place}", pads=[1] * 4))
    results = tuple(f"q{place}" for place in range(len(sizes)))
    check(Case(nodes, {"x": (2, sum(sizes), 5, 6)}, constants, results))
    check(Case(nodes, {"x": (2, sum(sizes), 5, 6)}, constants, (*results, *outputs)))


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_splitting_another_axis(axis: int) -> None:
    constants = {"sizes": np.array((1, 3), np.int64)}
    check(Case([node("Split", "x sizes", "y z", axis=axis)], {"x": (4, 4, 4, 4)}, constants, ("y", "z")))


SLICES = [
    ((0,), (16,), (1,), (1,)),
    ((16,), (24,), (1,), (1,)),
    ((3,), (23,), (1,), (1,)),
    ((0,), (24,), (1,), (2,)),
    ((-1,), (-100,), (1,), (-1,)),
    ((20,), (2,), (1,), (-3,)),
    ((1, 2), (-1, 5), (2, 3), (1, 1)),
    ((100,), (-100,), (3,), (-2,)),
    ((5, 0), (20, 6), (1, 2), (1, 2)),
    ((0,), (1,), (0,), (1,)),
]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES, ids=str)
def test_slicing(
    isa: int, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> None:
    names = {"s": starts, "e": ends, "a": axes, "t": steps}
    constants = {name: np.array(values, np.int64) for name, values in names.items()}
    nodes = [node("Relu", "x", "r"), node("Slice", "r s e a t", "p"), node("Sigmoid", "p", "y")]
    check(Case(nodes, {"x": (2, 24, 6, 7)}, constants))
    check(Case(nodes[:2], {"x": (2, 24, 6, 7)}, constants, ("p",)))


@pytest.mark.parametrize("groups", [2, 4])
def test_channel_shuffle(isa: int, groups: int) -> None:
    constants = {
        "to": np.array((2, groups, 24 // groups, 3, 4), np.int64),
        "back": np.array((2, 24, 3, 4), np.int64),
    }
    nodes = [
        node("Relu", "x", "r"),
        node("Reshape", "r to", "g"),
        node("Transpose", "g", "t", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "t back", "y"),
    ]
    assert kernels(check(Case(nodes, {"x": (2, 24, 3, 4)}, constants))).count("permute") == 0


# -- resizing, softmax, movement ---------------------------------------------------------------------------------------

RESIZES: list[tuple[dict[str, Any], tuple[float, float]]] = [
    ({"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, (2, 2)),
    ({"mode": "nearest"}, (1.5, 2.5)),
    ({"mode": "nearest", "nearest_mode": "ceil"}, (0.5, 0.7)),
    ({"mode": "linear"}, (2, 2)),
    ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, (2, 3)),
    ({"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, (0.5, 1)),
]


@pytest.mark.parametrize(("attributes", "scales"), RESIZES, ids=str)
def test_resizing(isa: int, attributes: dict[str, Any], scales: tuple[float, float]) -> None:
    constants = {"s": np.array((1, 1, *scales), np.float32)}
    check(Case([node("Resize", "x _ s", "y", **attributes)], {"x": (2, 20, 6, 7)}, constants))


def test_resizing_to_a_size_and_in_one_dimension() -> None:
    sizes = {"z": np.array((2, 20, 9, 5), np.int64)}
    check(Case([node("Resize", "x _ _ z", "y", mode="linear")], {"x": (2, 20, 6, 7)}, sizes))
    scales = {"s": np.array((1, 1, 2), np.float32)}
    check(Case([node("Resize", "x _ s", "y", mode="linear")], {"x": (2, 5, 7)}, scales))


def test_cubic_resizing_runs_through_the_reference() -> None:
    constants = {"s": np.array((1, 1, 2, 2), np.float32)}
    case = Case([node("Resize", "x _ s", "y", mode="cubic")], {"x": (1, 2, 4, 4)}, constants, slow=("Resize",))
    check(case, tolerance=1e-4)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax(isa: int, op: str, axis: int) -> None:
    check(Case([node(op, "x", "y", axis=axis)], {"x": (3, 20, 5, 7)}))


@pytest.mark.parametrize("shape", [(5,), (2, 1000), (2, 3, 4)], ids=str)
def test_softmax_of_other_ranks(shape: tuple[int, ...]) -> None:
    check(Case([node("Softmax", "x", "y", axis=-1)], {"x": shape}))


@pytest.mark.parametrize("size", [1, 3, 4, 47])
def test_local_response_normalisation(isa: int, size: int) -> None:
    case = Case([node("LRN", "x", "y", size=size, alpha=0.3, beta=0.6, bias=1.5)])
    feeds = case.inputs()
    low, squares = (size - 1) // 2, feeds["x"].astype(np.float64) ** 2
    total = [squares[:, max(0, at - low) : at + size // 2 + 1].sum(1) for at in range(squares.shape[1])]
    wanted = feeds["x"] / (1.5 + 0.3 / size * np.stack(total, 1)) ** 0.6
    if size % 2:
        check(case)  # ONNX Runtime takes odd sizes alone
    graph = cw.load(case.proto(feeds).SerializeToString())
    np.testing.assert_allclose(cw.compile(graph, threads=2)(feeds), wanted, rtol=2e-6)


@pytest.mark.parametrize("shape", [(3, 7), (1, 5, 40), (1, 3, 2, 3, 4)])
def test_local_response_normalisation_of_other_ranks(shape: tuple[int, ...]) -> None:
    """With the attributes' defaults, against a sum over the window's channels."""
    case = Case([node("LRN", "x", "y", size=3)], {"x": shape})
    x = case.inputs()["x"]
    padded = np.pad(x.astype(np.float64) ** 2, [(0, 0), (1, 1), *[(0, 0)] * (len(shape) - 2)])
    wanted = x / (1 + 1e-4 / 3 * (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:])) ** 0.75
    graph = cw.load(case.proto({"x": x}).SerializeToString())
    np.testing.assert_allclose(cw.compile(graph)(x), wanted, rtol=2e-6)


def test_local_response_normalisation_between_blocked_layers() -> None:
    nodes = [node("Conv", "x w", "c"), node("LRN", "c", "n", size=5, alpha=0.5, beta=0.75, bias=2.0)]
    nodes.append(node("MaxPool", "n", "y", kernel_shape=(3, 3), strides=(2, 2)))
    check(Case(nodes, constants={"w": weights(24, 20, 1, 1) / np.float32(4)}))


@pytest.mark.parametrize("order", [(0, 2, 3, 1), (0, 3, 1, 2), (3, 2, 1, 0), (1, 0, 2, 3), (0, 1, 3, 2)], ids=str)
def test_transposition(order: tuple[int, ...]) -> None:
    check(Case([node("Transpose", "x", "y", perm=order)]))
    nodes = [node("Relu", "x", "r"), node("Transpose", "r", "t", perm=order), node("Relu", "t", "y")]
    check(Case(nodes))


def test_transposition_of_other_ranks_and_types() -> None:
    check(Case([node("Transpose", "x", "y")], {"x": (3, 5)}))
    check(Case([node("Transpose", "x", "y", perm=[0, 2, 1, 4, 3])], {"x": (2, 3, 4, 5, 6)}))
    feeds = {"x": np.arange(24, dtype=np.int64).reshape(2, 3, 4)}
    check(Case([node("Transpose", "x", "y")], feeds=feeds))
    check(Case([node("Transpose", "x", "y")], feeds={"x": feeds["x"] % 2 == 0}, slow=("Transpose",)))


def test_padding() -> None:
    widths = np.array((0, 0, 1, 2, 0, 0, 0, 3), np.int64)
    constants: dict[str, Array] = {
        "p": widths,
        "value": np.array(1.5, np.float32),
        "channels": np.array((0, 2, 0, 0, 1, 3, 0, 0), np.int64),
    }
    check(Case([node("Pad", "x p", "y")], constants=constants))
    check(Case([node("Pad", "x p value", "y")], constants=constants))
    check(Case([node("Pad", "x channels value", "y")], constants=constants))
    check(Case([node("Pad", "x p", "y", mode="reflect")], constants=constants, slow=("Pad",)))
    check(Case([node("Pad", "x p", "y")], constants={"p": -widths}))
    crop = np.array((0, 0, -2, 3, 0, 0, -1, -2), np.int64)
    check(Case([node("Pad", "x p value", "y")], constants=constants | {"p": crop}))
    gone = np.array((0, 0, 2, 0, 0, 0, -7, 0), np.int64)
    check(Case([node("Pad", "x p value", "y")], constants=constants | {"p": gone}))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_and_back(mode: str) -> None:
    nodes = [node("Relu", "x", "r"), node("DepthToSpace", "r", "d", blocksize=2, mode=mode), node("Relu", "d", "y")]
    check(Case(nodes))
    check(Case([*nodes, node("SpaceToDepth", "y", "z", blocksize=2)], outputs=("d", "z")))


def test_expansion() -> None:
    for shape, to in (((2, 1, 1, 5), (2, 3, 4, 5)), ((3, 1), (2, 3, 4)), ((1,), (4, 4)), ((2, 3, 1, 1), (1, 1, 4, 4))):
        check(Case([node("Expand", "x to", "y")], {"x": shape}, {"to": np.array(to, np.int64)}))


SAME_ELEMENTS: dict[str, tuple[onnx.NodeProto, Sequence[int]]] = {
    "reshape": (node("Reshape", "r to", "y"), (2, 5, 4, 63)),
    "reshape with placeholders": (node("Reshape", "r to", "y"), (0, -1)),
    "flatten": (node("Flatten", "r", "y"), ()),
    "flatten axis 2": (node("Flatten", "r", "y", axis=2), ()),
    "flatten axis 0": (node("Flatten", "r", "y", axis=0), ()),
    "unsqueeze": (node("Unsqueeze", "r to", "y"), (0, 5)),
    "identity": (node("Identity", "r", "y"), ()),
}


@pytest.mark.parametrize("name", SAME_ELEMENTS)
def test_other_shapes_of_the_same_elements(name: str) -> None:
    """As the graph's output, beside what they show, of what the graph is given, and read on."""
    one, argument = SAME_ELEMENTS[name]
    constants = {"to": np.array(argument, np.int64)} if argument else {}
    head = node("Relu", "x", "r")
    check(Case([head, one], constants=constants))
    check(Case([head, one], constants=constants, outputs=("r", "y")))
    check(Case([head, one, node("Neg", "r", "z")], constants=constants, outputs=("y", "z")))
    check(Case([node("Identity", "x", "r"), one], constants=constants))
    check(Case([head, one, node("Softmax", "y", "z")], constants=constants, outputs=("z", "y")))


@pytest.mark.parametrize("shape", [(2, 20, 1, 1), (2, 1, 5, 1), (1, 20, 1, 7)], ids=str)
def test_squeezing(shape: tuple[int, ...]) -> None:
    axes = [axis for axis in range(1, 4) if shape[axis] == 1]
    constants = {"a": np.array(axes, np.int64), "back": np.array(axes, np.int64)}
    nodes = [
        node("Relu", "x", "r"),
        node("Squeeze", "r a", "s"),
        node("Neg", "s", "n"),
        node("Unsqueeze", "n back", "u"),
        node("Add", "u r", "y"),
    ]
    for outputs in (("y",), ("s", "y"), ("u", "n", "y", "s")):
        slow = ("Neg",) if len(axes) == 3 else ()
        check(Case(nodes, {"x": shape}, constants, outputs, slow))


# -- what graphs may be ------------------------------------------------------------------------------------------------


def test_outputs_of_every_kind() -> None:
    _, constants = convolution(20, 20, (1, 1))
    nodes = [
        node("Conv", "x w b", "c"),
        node("Relu", "c", "r"),
        node("Softmax", "r", "s", axis=1),
        node("Identity", "b", "k"),
        node("Identity", "x", "i"),
        node("Add", "b b", "sum"),
    ]
    check(Case(nodes, constants=constants, outputs=("r",)))
    check(Case(nodes, constants=constants, outputs=("c", "r")))
    check(Case(nodes, constants=constants, outputs=("s", "r", "c")))
    check(Case(nodes, constants=constants, outputs=("k", "r", "i", "sum")))


def test_an_output_may_be_an_input_or_a_constant() -> None:
    info = {"x": cw.graph.ValueInfo(np.dtype(np.float32), (1, 3))}
    graph = cw.Graph("edges", info, ["x", "k"], [], {"k": np.arange(4, dtype=np.float32)})
    x = np.ones((1, 3), np.float32)
    out = cw.compile(graph)(x)
    np.testing.assert_array_equal(out["x"], x)
    np.testing.assert_array_equal(out["k"], np.arange(4))
    assert not np.shares_memory(out["x"], x)
    assert not np.shares_memory(out["k"], graph.constants["k"])


SLOW: dict[str, Case] = {
    "CumSum": Case([node("CumSum", "x a", "y")], constants={"a": np.array(1, np.int64)}, slow=("CumSum",)),
    "TopK": Case([node("TopK", "x k", "y i")], constants={"k": np.array([3])}, outputs=("y", "i"), slow=("TopK",)),
    "ArgMax": Case([node("ArgMax", "x", "y", axis=1, keepdims=0)], slow=("ArgMax",)),
    "ReduceSum": Case([node("ReduceSum", "x", "y", keepdims=1)], slow=("ReduceSum",)),
    "Where": Case(
        [node("Greater", "x z", "g"), node("Where", "g x z", "y")],
        {"x": (2, 3), "z": (2, 3)},
        outputs=("y", "g"),
        slow=("Greater", "Where"),
    ),
    "between kernels": Case(
        [node("Relu", "x", "r"), node("CumSum", "r a", "c"), node("Sigmoid", "c", "y"), node("Add", "c r", "z")],
        constants={"a": np.array(3, np.int64)},
        outputs=("y", "z"),
        slow=("CumSum",),
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_an_operator_without_a_kernel_runs_through_the_reference_and_one_warning_names_it(name: str) -> None:
    check(SLOW[name])


def test_an_operator_that_nobody_knows_is_an_error_that_names_it() -> None:
    info = {"x": cw.graph.ValueInfo(np.dtype(np.float32), (1, 3))}
    graph = cw.Graph("odd", info, ["y"], [cw.graph.Node("Frobnicate", ["x"], ["y"], {}, "the odd one")], {})
    with pytest.raises(cw.ConvwrightError, match=r"the odd one.*Frobnicate") as caught:
        cw.compile(graph)
    assert "\n" not in str(caught.value)


def test_values_of_rank_6_and_other_types_run_through_the_reference() -> None:
    check(Case([node("Relu", "x", "y")], {"x": (1, 2, 3, 4, 5, 6)}, slow=("Relu",)))
    check(Case([node("Add", "x x", "y")], feeds={"x": np.arange(6, dtype=np.int64).reshape(2, 3)}, slow=("Add",)))
    check(Case([node("Not", "x", "y")], feeds={"x": np.array([[True, False]])}, slow=("Not",)))
    x = random_feeds(X)["x"].astype(np.float64)
    constants = {"w": weights(4, 20, 1, 1).astype(np.float64)}
    case = Case([node("Conv", "x w", "c"), node("Relu", "c", "y")], feeds={"x": x}, constants=constants)
    case.slow, case.reference = ("Relu",), True
    check(case)


def test_scalars_go_in_and_out() -> None:
    check(Case([node("Mul", "x s", "y")], feeds={"x": np.ones((1, 3), np.float32), "s": np.array(2.5, np.float32)}))
    constants = {"none": np.array((), np.int64)}
    check(Case([node("Reshape", "x none", "y")], {"x": (1, 1)}, constants))


def test_every_row_has_a_test() -> None:
    tested = {
        "Conv", "ConvTranspose", "Convolution", "HetConvolution", "MixConvolution", "DeformConv", "ConvInteger",
        "QLinearConv", "Gemm", "MaxPool",
        "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "BatchNormalization", "Concat",
        "Split", "Slice", "ChannelShuffle", "Resize", "Softmax", "LogSoftmax", "LRN", "Transpose", "Pad", "Expand",
        "DepthToSpace", "SpaceToDepth", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity",
    }  # fmt: skip
    assert {op for row in lower.ROWS for op in row.ops} == tested


# -- random networks ---------------------------------------------------------------------------------------------------


def random_network(seed: int) -> Case:
    """A random graph of the layers that networks are made of; every value that nothing reads is an output."""
    rng = np.random.default_rng(seed)

    def pick(values: Sequence[Any]) -> Any:
        return values[int(rng.integers(len(values)))]

    widths = (1, 3, 4, 5, 8, 12, 15, 16, 17, 20, 24, 32, 37)
    shapes: dict[str, tuple[int, ...]] = {"x": (pick((1, 1, 2)), pick(widths), *rng.integers(3, 14, 2).tolist())}
    start = shapes["x"]
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    read: set[str] = set()

    def add(op: str, inputs: Sequence[str], shape: tuple[int, ...], **attributes: Any) -> None:
        name = f"v{len(shapes)}"
        nodes.append(node(op, " ".join(inputs), name, **attributes))
        shapes[name] = shape
        read.update(inputs)

    def constant(*shape: int, scale: float = 1.0) -> str:
        name = f"k{len(constants)}"
        constants[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
        return name

    def conv(name: str, groups: int, out: int) -> None:
        n, c, h, w = shapes[name]
        k, stride, dilation = pick((1, 1, 3, 3, 5)), pick((1, 1, 1, 2)), pick((1, 1, 1, 2))
        pad = dilation * (k // 2)
        size = [(edge + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for edge in (h, w)]
        inputs = [name, constant(out, c // groups, k, k, scale=1 / np.sqrt(c // groups * k * k)), constant(out)]
        attributes = {"group": groups, "strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [pad] * 4}
        add("Conv", inputs, (n, out, *size), **attributes)

    for _ in range(int(rng.integers(5, 11))):
        # Newer values are likelier to be read on.
        name = list(shapes)[-1 - int(min(rng.geometric(0.5) - 1, len(shapes) - 1))]
        n, c, h, w = shapes[name]
        alike = [other for other, shape in shapes.items() if shape == shapes[name]]
        level = [other for other, shape in shapes.items() if shape[2:] == (h, w)]
        match pick(
            ("conv", "conv", "conv", "depthwise", "group", "act", "act", "add", "concat", "pool", "split", "scale")
        ):
            case "conv":
                conv(name, 1, pick(widths))
            case "depthwise":
                conv(name, c, c)
            case "group":
                groups = pick([groups for groups in range(1, c + 1) if c % groups == 0])
                conv(name, groups, groups * pick((1, 2, 3)))
            case "act":
                add(pick(("Relu", "Sigmoid", "HardSwish", "LeakyRelu")), [name], shapes[name])
            case "add":
                add("Add", [name, pick(alike)], shapes[name])
            case "concat":
                parts = [name, *(pick(level) for _ in range(pick((1, 1, 2))))]
                pick([parts.reverse, lambda: None])()
                add("Concat", parts, (n, sum(shapes[part][1] for part in parts), h, w), axis=1)
            case "pool":
                op, stride = pick(("MaxPool", "AveragePool")), pick((1, 2))
                size = [(edge - 1) // stride + 1 for edge in (h, w)]
                add(op, [name], (n, c, *size), kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2)
            case "split" if c > 1:
                at = int(rng.integers(1, c))
                names = [f"k{len(constants) + offset}" for offset in range(3)]
                for key, value in zip(names, (at, c, 1), strict=True):
                    constants[key] = np.array([value], np.int64)
                add("Slice", [name, *names], (n, c - at, h, w))
            case "scale":
                add("GlobalAveragePool", [name], (n, c, 1, 1))
                add("Mul", pick(([name, list(shapes)[-1]], [list(shapes)[-1], name])), shapes[name])
            case _:
                add("Neg", [name], shapes[name])
    outputs = [name for name in shapes if name not in read and name != "x"]
    inner = [name for name in shapes if name in read and name != "x"]
    if inner and rng.random() < 0.3:
        outputs.append(pick(inner))
    return Case(nodes, {"x": start}, constants, tuple(outputs))


def check_random(seed: int, isa_name: str) -> None:
    target = target_named(isa_name)
    with patch("convwright.model.model.host_target", lambda: target):
        check(random_network(seed), threads=1 + seed % 3, tolerance=2e-5)


USABLE = [name for name in NAMES if runs_here(name)]


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    check_random(seed, USABLE[seed % len(USABLE)])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_more_random_networks(seed: int) -> None:
    for name in USABLE:
        check_random(seed, name)
