"""Inferred types against what ONNX Runtime computes, and the errors for what does not fit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from convwright.errors import ConvwrightError
from convwright.graph import Graph, Node, ValueInfo, infer

from .graph_models import Array, model, node, random_feeds, read, run, weights

X = {"x": (2, 6, 9, 8)}


def agrees(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array] | None = None,
    shapes: Mapping[str, Sequence[int]] = X,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> None:
    """Inference tells what the runtime's outputs turn out to be, with the input's sizes declared open."""
    open_shapes = {name: [None] * len(shape) for name, shape in shapes.items()}
    proto = model(nodes, open_shapes, constants, outputs, opset)
    inferred = infer(read(proto), shapes)
    for name, wanted in zip(outputs, run(proto, random_feeds(shapes)), strict=True):
        assert (inferred[name].shape, inferred[name].dtype) == (wanted.shape, wanted.dtype), name


@pytest.mark.parametrize("size", [7, 8, 9, 16])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows(size: int, kernel: int, stride: int) -> None:
    shapes = {"x": (1, 2, size, size + 1)}
    pad = kernel // 2
    same: dict[str, Any] = {"strides": [stride, stride]}
    w = {"w": weights(2, 2, kernel, kernel)}
    nodes: list[onnx.NodeProto] = []
    names: list[str] = []

    def add(op: str, inputs: str, **attributes: Any) -> None:
        names.append(f"y{len(names)}")
        nodes.append(node(op, inputs, names[-1], **same, **attributes))

    add("Conv", "x w", pads=[pad, 0, 0, pad])
    for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        add("Conv", "x w", auto_pad=auto)
        # ONNX Runtime refuses the negative padding that it finds where pools skip elements.
        if kernel >= stride:
            add("MaxPool", "x", auto_pad=auto, kernel_shape=[kernel, kernel])
    if kernel > 1:
        add("Conv", "x w", dilations=[1, 2], pads=[0, kernel, 0, kernel])
        add("MaxPool", "x", kernel_shape=[kernel, kernel], dilations=[1, 2], pads=[0, pad, 0, pad])
    for ceil in (0, 1):
        add("MaxPool", "x", kernel_shape=[kernel, kernel], pads=[pad] * 4, ceil_mode=ceil)
        add("AveragePool", "x", kernel_shape=[kernel, kernel], pads=[pad] * 4, ceil_mode=ceil)
    add("ConvTranspose", "x w", pads=[0, pad, pad, 0], output_padding=[stride - 1, 0])
    add("ConvTranspose", "x w", auto_pad="SAME_UPPER", output_shape=[size * stride, (size + 1) * stride])
    agrees(nodes, w, shapes, names)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_windows_of_every_rank(rank: int) -> None:
    shapes = {"x": (2, 4, *(9, 8, 7)[:rank])}
    constants = {"w": weights(6, 2, *(3, 2, 3)[:rank]), "v": weights(4, 3, *(2, 3, 2)[:rank]), "b": weights(6)}
    nodes = [
        node("Conv", "x w b", "p", group=2, strides=[2] * rank),
        node("ConvTranspose", "x v b", "q", group=2, strides=[2] * rank),
        node("GlobalAveragePool", "x", "r"),
        node("GlobalMaxPool", "x", "s"),
    ]
    agrees(nodes, constants, shapes, list("pqrs"))


def test_movement() -> None:
    constants = {
        "zero": np.array([0, -1, 4]),
        "axes": np.array([1, -1]),
        "starts": np.array([-100, 7]),
        "ends": np.array([100, -100]),
        "steps": np.array([2, -3]),
        "places": np.array([2, 3]),
        "parts": np.array([1, 2, 3]),
        "pads": np.array([0, 1, 2, -1, 0, 1, 0, 3]),
        "scales": np.array([1, 1, 1.5, 2.3], np.float32),
        "sizes": np.array([2, 6, 5, 31]),
        "wide": np.array([3, 1, 1, 1, 8]),
        "times": np.array([1, 2, 1, 3]),
        "picks": np.array([[0, 2], [1, -1]]),
    }
    nodes = [
        node("Reshape", "x zero", "a"),
        node("Flatten", "x", "b", axis=2),
        node("Transpose", "x", "c", perm=[3, 1, 0, 2]),
        node("Unsqueeze", "x axes", "d"),
        node("Squeeze", "d axes", "e"),
        node("Slice", "x starts ends places steps", "f"),
        node("Split", "x parts", "g h i", axis=1),
        node("Concat", "g i", "j", axis=1),
        node("Pad", "x pads", "k"),
        node("Resize", "x _ scales", "l"),
        node("Resize", "x _ _ sizes", "m", mode="linear"),
        node("Expand", "x wide", "n"),
        node("Tile", "x times", "o"),
        node("Gather", "x picks", "p", axis=2),
        node("SpaceToDepth", "m2", "q", blocksize=2),
        node("DepthToSpace", "q", "r", blocksize=2),
        node("ArgMax", "x", "s", axis=1, keepdims=0),
        node("ReduceMean", "x", "t", axes=[2, 3], keepdims=0),
        node("Shape", "x", "u", start=1),
        node("Size", "x", "v"),
        node("Cast", "x", "w", to=onnx.TensorProto.INT32),
        node("Greater", "x x", "z"),
        node("Where", "z x x", "za"),
        node("Softmax", "x", "zb", axis=1),
        node("Sum", "x x x", "zc"),
    ]
    outputs = [name for one in nodes for name in one.output]
    nodes.insert(14, node("Slice", "x first eight places", "m2"))
    constants |= {"first": np.array([0, 0]), "eight": np.array([8, 8])}
    agrees(nodes, constants, outputs=outputs)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4), (4, 5)), ((4,), (4, 5)), ((2, 3, 4), (4,)), ((2, 1, 3, 4), (5, 4, 2)), ((4,), (4,))]
)
def test_matrix_products(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    agrees([node("MatMul", "a b", "y")], shapes={"a": a, "b": b})


def test_operators_without_a_rule_go_through_onnx() -> None:
    constants = {"depth": np.array(5), "values": np.array([0, 1], np.float32), "i": np.array([0, 1, 4])}
    nodes = [node("OneHot", "i depth values", "a"), node("Einsum", "x x", "y", equation="nchw,nchw->nc")]
    agrees(nodes, constants, outputs=["a", "y"])


def test_shapes_computed_from_shapes() -> None:
    """Resizing to another tensor's size and flattening by hand, as exporters write them for open sizes."""
    constants = {
        "zero": np.array([0]),
        "two": np.array([2]),
        "four": np.array([4]),
        "pair": np.array([2.0, 0.5], np.float32),
        "rest": np.array([-1]),
    }
    nodes = [
        node("Shape", "x", "s"),
        node("Slice", "s zero two", "nc"),
        node("Slice", "s two four", "hw"),
        node("Cast", "hw", "f", to=1),
        node("Mul", "f pair", "g"),
        node("Floor", "g", "h"),
        node("Cast", "h", "i", to=7),
        node("Concat", "nc i", "sizes", axis=0),
        node("Resize", "x _ _ sizes", "r", mode="nearest"),
        node("Gather", "s zero", "n"),
        node("Concat", "n rest", "t", axis=0),
        node("Reshape", "r t", "y"),
    ]
    proto = model(nodes, {"x": ("N", "C", "H", "W")}, constants)
    for shape in ((1, 3, 8, 6), (2, 5, 7, 9)):
        inferred = infer(read(proto), {"x": shape})
        assert inferred.values["r"].shape == (*shape[:2], shape[2] * 2, shape[3] // 2)
        assert inferred["y"].shape == run(proto, random_feeds({"x": shape}))[0].shape
        np.testing.assert_array_equal(inferred.constants["t"], [shape[0], -1])


def test_input_shapes_are_checked() -> None:
    graph = read(model([node("Add", "a b", "y")], {"a": ("N", 3), "b": ("N", 3)}))
    assert infer(graph, {"a": (4, 3), "b": (4, 3)})["y"].shape == (4, 3)
    for shapes, message in (
        ({"c": (1, 3)}, "no input named 'c'"),
        ({"a": (1, 3)}, r"input 'b' is declared as float32\[N, 3\]: a concrete shape is needed"),
        ({"a": (1, 4), "b": (1, 3)}, r"input 'a' has shape \(1, 4\)"),
        ({"a": (1, 3, 1), "b": (1, 3)}, r"input 'a' has shape \(1, 3, 1\)"),
        ({"a": (1, 3), "b": (2, 3)}, "dimension 'N' is 1 in input 'a' and 2 in 'b'"),
    ):
        with pytest.raises(ConvwrightError, match=message):
            infer(graph, shapes)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("Conv", "x w5", {}, r"node 'here' \(Conv\): input of 6 channels, weights of shape \(4, 5, 3, 3\)"),
        ("Conv", "x w6", {"group": 2}, "2 groups"),
        ("Conv", "x w6", {"group": 0}, "0 groups"),
        ("Conv", "x w6", {"dilations": [5, 1]}, "kernel spanning 11 does not fit axis 0 of size 9"),
        ("Conv", "x w6", {"strides": [0, 1]}, r"strides \[0, 1\] must be positive"),
        ("Conv", "x w6", {"strides": [1]}, r"strides \[1\] for 2 spatial axes"),
        ("Conv", "x w6", {"pads": [1]}, r"pads \[1\]"),
        ("Conv", "x w6", {"kernel_shape": [2, 3]}, r"kernel_shape \[2, 3\]"),
        ("Conv", "x w6", {"auto_pad": "SOME"}, "auto_pad is 'SOME'"),
        ("Conv", "x w6 five", {}, r"bias of shape \(5,\) for 4 output channels"),
        ("ConvTranspose", "x w5", {}, "input of 6 channels"),
        ("MaxPool", "x", {}, "no kernel_shape"),
        ("MaxPool", "x", {"kernel_shape": [10, 1]}, "spanning 10 does not fit"),
        ("Add", "x five", {}, "do not broadcast"),
        ("Add", "x whole", {}, "element types float32 and int64 differ"),
        ("MatMul", "x w5", {}, "cannot multiply"),
        ("Concat", "x w5", {"axis": 0}, "cannot concatenate"),
        ("Concat", "x", {"axis": 4}, "axis 4 is out of range"),
        ("Reshape", "x whole", {}, r"cannot reshape \(2, 6, 9, 8\) to \[7\]"),
        ("Reshape", "x x", {}, "depends on the data"),
        ("Transpose", "x", {"perm": [0, 1]}, r"perm \[0, 1\]"),
        ("Squeeze", "x whole", {}, "axis 7"),
        ("DepthToSpace", "x", {"blocksize": 2}, "6 channels"),
        ("Nonsense", "x", {}, r"node 'here' \(Nonsense\): the operator is not supported"),
        ("NonZero", "x", {}, "no fixed type and shape"),
    ],
)
def test_errors_name_the_node(op: str, inputs: str, attributes: dict[str, Any], message: str) -> None:
    constants = {"w5": weights(4, 5, 3, 3), "w6": weights(4, 6, 3, 3), "five": weights(5), "whole": np.array([7])}
    graph = read(model([node(op, inputs, "y", name="here", **attributes)], X, constants))
    with pytest.raises(ConvwrightError, match=message) as caught:
        infer(graph)
    assert "\n" not in str(caught.value)


def test_internal_operators_have_shapes() -> None:
    info = {"x": ValueInfo(np.dtype(np.float32), (2, 6, 4, 4))}
    shuffle = Node("ChannelShuffle", ["x"], ["a"], {"groups": 3}, domain="convwright")
    silu = Node("Silu", ["a"], ["y"], domain="convwright")
    graph = Graph("g", info, ["y"], [shuffle, silu], {})
    assert infer(graph)["y"] == info["x"]
    shuffle.attributes["groups"] = 4
    with pytest.raises(ConvwrightError, match="4 groups"):
        infer(graph)


def test_inference_of_a_deep_network_takes_milliseconds() -> None:
    """The limit is generous: what it guards against is copying weights or importing onnx on the way."""
    nodes, constants = [], {"w": weights(6, 6, 3, 3), "b": weights(6)}
    for index in range(150):
        nodes.append(node("Conv", f"v{index} w b", f"c{index}", pads=[1, 1, 1, 1]))
        nodes.append(node("Relu", f"c{index}", f"v{index + 1}"))
    graph = read(model(nodes, {"v0": (1, 6, 9, 9)}, constants, ["v150"]))
    infer(graph)
    start = time.perf_counter()
    infer(graph)
    assert time.perf_counter() - start < 0.1


def test_a_graph_can_be_built_by_hand_and_saved(tmp_path: Path) -> None:
    info = ValueInfo(np.dtype(np.float32), ("N", 6, None, 4))
    graph = Graph("g", {"x": info}, ["y"], [Node("Relu", ["x"], ["y"])], {})
    graph.validate()
    assert str(graph) == "Graph 'g' (x: float32[N, 6, ?, 4]) -> y: 1 nodes"
    twin = graph.copy()
    twin.nodes[0].op = "Neg"
    assert graph.nodes[0].op == "Relu"
    assert graph.producers()["y"] is graph.nodes[0]
    assert graph.consumers()["x"] == [graph.nodes[0]]
    graph.save(tmp_path / "g.onnx")
    proto = onnx.load(tmp_path / "g.onnx")
    onnx.checker.check_model(proto, full_check=True)
    dims = [dim.dim_param or dim.dim_value for dim in proto.graph.output[0].type.tensor_type.shape.dim]
    assert dims == ["N", 6, 0, 4]
