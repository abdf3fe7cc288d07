"""What operators cost: multiply-accumulates, elementwise operations, parameters, and what is not counted."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import convwright as cw
from convwright.cost.report import Cost
from convwright.graph import Graph, Node, ValueInfo
from convwright.graph.graph import INTERNAL
from tests.graph_models import model, node, read


def one(
    op: str, inputs: Mapping[str, Sequence[int | None]], constants: Any = None, order: str = "", **attributes: Any
) -> Cost:
    """The cost of a network of one node that reads the inputs, then the constants."""
    names = order or " ".join([*inputs, *(constants or {})])
    proto = model([node(op, names, "y", **attributes)], inputs, constants, opset=20)
    return cw.cost(read(proto))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("found", "kind", "operations"),
    [
        (one("Sigmoid", {"x": (2, 3)}), "activation", 6),
        (one("Add", {"x": (2, 3), "z": (3,)}), "arithmetic", 6),
        (one("Sum", {"x": (2, 3), "z": (3,), "u": (1, 3)}), "arithmetic", 12),
        (one("Softmax", {"x": (2, 3)}), "softmax", 30),
        (one("MaxPool", {"x": (1, 2, 6, 6)}, kernel_shape=[3, 2], strides=[2, 2]), "pooling", 6 * 2 * 2 * 3),
        (one("AveragePool", {"x": (1, 2, 6)}, kernel_shape=[3], pads=[1, 1]), "pooling", 3 * 2 * 6),
        (one("GlobalMaxPool", {"x": (1, 2, 6, 5)}), "pooling", 60),
        (one("ReduceMean", {"x": (2, 3, 4)}, {"axes": ints(1)}), "reduction", 24),
        (one("LRN", {"x": (1, 8, 2, 2)}, size=5), "normalisation", 32 * 10),
        (one("LayerNormalization", {"x": (2, 8)}, {"w": np.ones(8, np.float32)}), "normalisation", 16 * 7),
        (one("Transpose", {"x": (2, 3)}, perm=[1, 0]), "movement", 0),
        (one("Concat", {"x": (2, 3), "z": (2, 4)}, axis=1), "movement", 0),
        (one("Resize", {"x": (1, 2, 4, 4)}, {"s": ints(1, 2, 8, 4)}, "x _ _ s", mode="nearest"), "resize", 0),
        (one("Resize", {"x": (1, 2, 4, 4)}, {"s": ints(1, 2, 8, 4)}, "x _ _ s", mode="linear"), "resize", 64 * 4),
        (one("Resize", {"x": (1, 2, 4, 4)}, {"s": ints(1, 2, 8, 8)}, "x _ _ s", mode="cubic"), "resize", 128 * 32),
        (one("GridSample", {"x": (1, 2, 4, 4), "g": (1, 3, 3, 2)}), "resize", 18 * 8),
    ],
    ids=lambda value: value.layers[0].op if isinstance(value, Cost) else None,
)
def test_elementwise_operations(found: Cost, kind: str, operations: int) -> None:
    (layer,) = found
    assert (layer.kind, layer.elementwise, layer.macs) == (kind, operations, 0)
    assert found.not_counted == ()


def test_products_of_matrices() -> None:
    weight = {"w": np.ones((4, 5), np.float32)}
    (layer,) = one("MatMul", {"x": (2, 3, 4)}, weight)
    assert (layer.kind, layer.macs, layer.parameters) == ("fully connected", 2 * 3 * 4 * 5, 20)
    (layer,) = one("MatMul", {"x": (2, 3, 4), "z": (2, 4, 7)})
    assert (layer.kind, layer.macs, layer.parameters) == ("matrix product", 2 * 3 * 4 * 7, 0)
    (layer,) = one("MatMul", {"x": (4,), "z": (4,)})
    assert layer.macs == 4
    (layer,) = one("Gemm", {"x": (4, 3)}, weight | {"c": np.ones(5, np.float32)}, transA=1)
    assert (layer.macs, layer.elementwise, layer.parameters) == (60, 15, 25)
    (layer,) = one("Einsum", {"x": (2, 3, 4), "z": (4, 5)}, equation="bij,jk->bik")
    assert (layer.kind, layer.macs) == ("matrix product", 2 * 3 * 4 * 5)
    (layer,) = one("Einsum", {"x": (2, 3)}, equation="ij->i")
    assert (layer.kind, layer.elementwise) == ("reduction", 6)
    (layer,) = one("Einsum", {"x": (2, 3)}, equation="ij->ji")
    assert (layer.kind, layer.elementwise) == ("movement", 0)
    (layer,) = one("Einsum", {"x": (2, 3), "z": (3, 4)}, equation="ij,jk")
    assert (layer.kind, layer.macs) == ("matrix product", 24)
    (layer,) = one("Einsum", {"x": (3,), "z": (4,)}, equation="i,j->ij")
    assert (layer.kind, layer.macs, layer.elementwise) == ("arithmetic", 0, 12)


def test_padding_that_crops_and_output_shapes() -> None:
    weight = {"w": np.ones((2, 1, 3), np.float32)}
    (layer,) = one("Conv", {"x": (1, 1, 9)}, weight, pads=[-2, 1])
    assert (layer.output_shape, layer.macs) == ((1, 2, 6), 6 * 3 * 2)
    (layer,) = one("ConvTranspose", {"x": (1, 2, 4)}, weight, strides=[2], output_shape=[11])
    assert (layer.output_shape, layer.macs, layer.kind) == ((1, 1, 11), 4 * 2 * 3, "transposed")
    (layer,) = one("ConvTranspose", {"x": (1, 2, 4)}, weight, strides=[2], pads=[0, -3])
    assert (layer.output_shape, layer.macs) == ((1, 1, 12), 4 * 2 * 3)
    (layer,) = one("Conv", {"x": (1, 1, 9)}, weight, auto_pad="SAME_UPPER", strides=[2])
    assert (layer.output_shape, layer.macs) == ((1, 2, 5), 5 * 3 * 2)


def test_a_convolution_with_weights_that_depend_on_the_data() -> None:
    (layer,) = one("Conv", {"x": (1, 2, 5), "w": (4, 2, 3)})
    assert (layer.parameters, layer.macs, layer.bytes_weights) == (0, 3 * 3 * 2 * 4, 0)
    assert layer.bytes_read == 4 * (10 + 24)


def test_shared_constants_count_once_and_copies_of_them_each() -> None:
    weight = {"w": np.ones((2, 2, 1), np.float32)}
    nodes = [node("Conv", "x w", "a"), node("Conv", "a w", "b")]
    found = cw.cost(read(model([*nodes, node("Relu", "b", "y")], {"x": (1, 2, 5)}, weight)))
    assert [layer.parameters for layer in found] == [4, 4, 0]
    assert (found.total.parameters, found.total.bytes_weights) == (4, 16)
    assert found.total.bytes_moved == sum(layer.bytes_moved for layer in found)
    # PyTorch's exporter merges parameters of equal values, and leaves an Identity for each name.
    nodes = [node("Identity", "w", "v"), node("Conv", "x w", "a"), node("Conv", "a v", "y")]
    found = cw.cost(read(model(nodes, {"x": (1, 2, 5)}, weight)))
    assert (len(found), found.total.parameters) == (2, 8)


def test_scalars_and_settings_are_no_parameters() -> None:
    constants: dict[str, Any] = {"low": np.float32(0), "high": np.float32(6), "half": np.full(1, 0.5, np.float32)}
    nodes = [node("Clip", "x low high", "a"), node("Mul", "a half", "y")]
    assert cw.cost(read(model(nodes, {"x": (1, 2, 5)}, constants))).total.parameters == 0
    constants = {"scale": np.ones((2, 1), np.float32), "slope": np.full(1, 0.1, np.float32)}
    nodes = [node("Mul", "x scale", "a"), node("PRelu", "a slope", "y")]
    assert cw.cost(read(model(nodes, {"x": (1, 2, 5)}, constants))).total.parameters == 3


def test_quantised_weights_are_parameters_of_one_byte() -> None:
    nodes = [
        node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w s z", "v"), node("Conv", "d v b", "y"),
    ]  # fmt: skip
    constants: dict[str, Any] = {
        "s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 2, 3), np.int8), "b": np.ones(4, np.float32),
    }  # fmt: skip
    found = cw.cost(read(model(nodes, {"x": (1, 2, 5)}, constants)))
    assert [layer.op for layer in found] == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    assert (found.total.parameters, found.total.bytes_weights, found.total.macs) == (28, 24 + 16, 3 * 3 * 2 * 4)
    assert found.layers[0].bytes_activations == 10
    assert [layer.elementwise for layer in found] == [30, 20, 12]


def test_scales_of_fake_quantised_weights_are_no_parameters() -> None:
    nodes = [
        node("QuantizeLinear", "w s z", "q", axis=0), node("DequantizeLinear", "q s z", "v", axis=0),
        node("Transpose", "v", "t", perm=[0, 2, 1]), node("Conv", "x t", "y"),
    ]  # fmt: skip
    constants: dict[str, Any] = {
        "s": np.full(4, 0.1, np.float32), "z": np.zeros(4, np.int8), "w": np.ones((4, 3, 2), np.float32),
    }  # fmt: skip
    (layer,) = cw.cost(read(model(nodes, {"x": (1, 2, 5)}, constants)))
    assert (layer.op, layer.parameters, layer.bytes_weights) == ("Conv", 24, 96)


def test_quantised_operators() -> None:
    point: dict[str, Any] = {"s": np.float32(0.1), "z": np.uint8(0)}
    weight: dict[str, Any] = {"w": np.ones((4, 2, 3), np.uint8), "b": np.ones(4, np.int32)}
    quantise = node("QuantizeLinear", "x s z", "q")
    nodes = [quantise, node("QLinearConv", "q s z w s z s z b", "y")]
    layer = cw.cost(read(model(nodes, {"x": (1, 2, 5)}, point | weight))).layers[1]
    assert (layer.kind, layer.macs, layer.parameters, layer.elementwise) == ("integer", 72, 28, 4 * 3 * (1 + 3))
    weight = {"w": np.ones((5, 4), np.uint8)}
    for op, names in (("MatMulInteger", "q w"), ("QLinearMatMul", "q s z w s z s z")):
        nodes = [quantise, node(op, names, "y")]
        layer = cw.cost(read(model(nodes, {"x": (3, 5)}, point | weight))).layers[1]
        assert (layer.kind, layer.macs, layer.parameters) == ("fully connected", 60, 20)


def test_what_costs_nothing_has_no_row() -> None:
    nodes = [
        node("Relu", "x", "dead"), node("Identity", "x", "i"), node("Dropout", "i", "d"),
        node("Shape", "d", "shape"), node("Gather", "shape zero", "n"), node("Reshape", "d to", "r"),
        node("Relu", "r", "y"),
    ]  # fmt: skip
    constants = {"zero": ints(0), "to": ints(0, -1)}
    found = cw.cost(read(model(nodes, {"x": (2, 3, 4)}, constants)))
    assert [layer.op for layer in found] == ["Relu"]
    assert found.total.bytes_peak == 2 * 24 * 4  # the reshaped view is the input's own memory


def test_what_is_not_counted_is_listed_with_an_estimate() -> None:
    weights = {"w": np.ones((1, 4 * 5, 3), np.float32), "r": np.ones((1, 4 * 5, 5), np.float32)}
    found = one("LSTM", {"x": (7, 2, 3)}, weights, hidden_size=5)
    (left_out,) = found.not_counted
    assert left_out.estimate == 7 * 2 * (60 + 100)
    assert found.layers[0].kind == "not counted"
    assert (found.total.macs, found.total.parameters) == (0, 160)
    sizes = {"q": (2, 4, 5, 8), "k": (2, 4, 7, 8), "v": (2, 4, 7, 6)}
    proto = model([node("Attention", "q k v", "y")], sizes, opset=23)
    assert cw.cost(read(proto)).not_counted[0].estimate == 2 * 4 * 5 * 7 * (8 + 6)
    found = one("Det", {"x": (6, 3, 3)})
    assert (found.not_counted[0].op, found.not_counted[0].estimate) == ("Det", 6)
    assert "not counted: y (Det), about 6 operations" in str(found)
    found = one("Einsum", {"x": (3, 3)}, equation="ii->i")
    assert found.not_counted[0].estimate == 3
    found = one("Conv", {"x": (1, 2, 3, 3, 3, 3)}, {"w": np.ones((4, 2, 1, 1, 1, 1), np.float32)})
    assert found.not_counted[0].estimate == 81 * 2 * 4


def test_what_cannot_be_known_is_refused() -> None:
    with pytest.raises(cw.ConvwrightError, match=r"input 'x' is declared as float32\[1, \?\], which leaves sizes open"):
        one("Relu", {"x": (1, None)})
    with pytest.raises(cw.ConvwrightError, match=r"NonZero.*no fixed type and shape"):
        one("NonZero", {"x": (2, 3)})
    with pytest.raises(cw.ConvwrightError, match=r"node of output 'y' \(my.Blur\): the operator is not supported"):
        one("Blur", {"x": (2, 3)}, domain="my")


def test_a_channel_shuffle_costs_the_same_when_it_is_written_out() -> None:
    """A file has it as reshapes and a transposition, whose shapes the batch leaves open."""
    info = ValueInfo(np.dtype(np.float32), ("N", 6, 4, 5))
    nodes = [
        Node("Relu", ["x"], ["a"], name="relu"),
        Node("ChannelShuffle", ["a"], ["y"], {"groups": 3}, "shuffle", INTERNAL),
    ]
    graph = Graph("shuffled", {"x": info}, ["y"], nodes, {})
    with tempfile.TemporaryDirectory() as folder:
        graph.save(f"{folder}/shuffled.onnx")
        written = cw.cost(f"{folder}/shuffled.onnx", batch=2)
    found = cw.cost(graph, batch=2)
    assert [layer.figures() for layer in written] == [layer.figures() for layer in found]
    assert [layer.op for layer in written] == ["Relu", "Transpose"]
