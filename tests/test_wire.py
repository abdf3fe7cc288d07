"""Large tensors leave an ONNX file on a way of their own, and nothing else about it changes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from convwright.errors import ConvwrightError
from convwright.graph import load, wire
from convwright.graph.wire import without_large_tensors

from .graph_models import FLOAT, Array, model, node, scalar, weights

X = {"x": (2, 6, 8, 8)}


@pytest.fixture(params=[1, 24, 200])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(wire, "LARGE", request.param)
    size: int = request.param
    return size


def everywhere() -> onnx.ModelProto:
    """Tensors as initializers, in nodes, in subgraphs and in functions; raw and typed data; more fields than one byte
    can count."""
    branches = {}
    for name, seed in (("then_branch", 3), ("else_branch", 4)):
        inner = [
            node("Constant", "", f"{name}_w", value=numpy_helper.from_array(weights(6, 6, 3, 3, seed=seed))),
            node("Conv", f"x {name}_w", f"{name}_y", pads=[1, 1, 1, 1]),
        ]
        result = [helper.make_empty_tensor_value_info(f"{name}_y")]
        own = [numpy_helper.from_array(weights(5, 5, seed=seed), f"{name}_unused")]
        branches[name] = helper.make_graph(inner, name, [], result, own)
    body = [
        node("Constant", "", "k", value=numpy_helper.from_array(weights(6, 6, 1, 1, seed=5))),
        node("Conv", "a k", "b"),
    ]
    function = helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    nodes = [
        node("If", "yes", "i", **branches),
        helper.make_node("Twice", ["i"], ["t"], domain="own"),
        helper.make_node("Twice", ["t"], ["u"], domain="own"),
        node("Conv", "u typed", "v", doc_string="d" * 300),
        node("Conv", "v w b", "y", pads=[1, 1, 1, 1]),
    ]
    proto = model(nodes, X, {"w": weights(6, 6, 3, 3), "b": weights(6), "yes": np.array(True), "lone": scalar(1)})
    typed = weights(6, 6, 1, 1, seed=9)
    proto.graph.initializer.append(helper.make_tensor("typed", FLOAT, typed.shape, typed.reshape(-1)))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.functions.append(function)
    proto.ir_version = 8
    return proto


def without(data: bytes) -> tuple[bytes, wire.Cut]:
    return without_large_tensors(io.BytesIO(data), len(data))


def raw_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    def of_nodes(nodes: list[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
        for entry in nodes:
            for attribute in entry.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("g"):
                    yield from attribute.g.initializer
                    yield from of_nodes(attribute.g.node)

    found = [*proto.graph.initializer, *of_nodes(proto.graph.node)]
    for function in proto.functions:
        found += of_nodes(function.node)
    return [tensor for tensor in found if tensor.HasField("raw_data")]


def test_what_is_cut_out_and_what_is_left_are_the_whole(large: int) -> None:
    whole = everywhere()
    rest, cut = without(whole.SerializeToString())
    proto = onnx.load_model_from_string(rest)
    kept, original = raw_tensors(proto), raw_tensors(whole)
    assert len(cut) == sum(len(tensor.raw_data) >= large for tensor in original) >= 3
    for tensor in kept:
        if tensor.raw_data in cut:
            tensor.raw_data = cut[tensor.raw_data].tobytes()
    assert proto == whole


def test_a_graph_does_not_depend_on_what_is_cut_out(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = everywhere().SerializeToString()
    found = load(data)
    monkeypatch.setattr(wire, "LARGE", 1 << 30)
    expected = load(data)
    assert list(found.constants) == list(expected.constants)
    for name, array in expected.constants.items():
        np.testing.assert_array_equal(found.constants[name], array)
    assert [str(entry) for entry in found.nodes] == [str(entry) for entry in expected.nodes]


@pytest.mark.parametrize(
    "array",
    [np.arange(60, dtype=kind).reshape(3, 20) for kind in ("f4", "f8", "f2", "i1", "u1", "i4", "i8", "u2", "c8")]
    + [np.arange(60) % 3 == 0, np.ones((0, 4), np.float32), np.array(3.5)],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_every_type(large: int, array: Array) -> None:
    graph = load(model([node("Identity", "w", "y")], X, {"w": array}).SerializeToString())
    found = graph.constants["w"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("count", [3, 1 << 40])
def test_bytes_that_are_too_many_or_too_few(large: int, count: int) -> None:
    proto = model([node("Relu", "x", "y")], X)
    proto.graph.initializer.append(onnx.TensorProto(name="k", data_type=FLOAT, dims=[count], raw_data=bytes(40)))
    with pytest.raises(ConvwrightError, match=f"needs {4 * count} bytes, the file has 40"):
        load(proto.SerializeToString())


def test_a_file_cut_off_anywhere_is_the_parsers_to_judge(large: int) -> None:
    whole = everywhere().SerializeToString()
    messages = []
    for size in range(1, len(whole), 7):
        try:
            load(whole[:size])
        except ConvwrightError as error:
            messages.append(str(error))
    assert len(messages) > len(whole) // 8
    assert all(message.startswith("model: ") and message.isprintable() for message in messages)


@pytest.mark.parametrize(
    "tail",
    [
        b"\xff" * 11,  # a number without an end
        b"\x3a\xff\xff\xff\xff\x0f",  # a graph that is longer than the file
        b"\x3b\x3c",  # a group, which no writer of ONNX uses
        b"\x3e",  # no such form
        b"\x3a\x05\x2a\x10",  # a tensor longer than its graph
    ],
)
def test_what_is_not_understood_comes_back_whole(large: int, tail: bytes) -> None:
    data = everywhere().SerializeToString() + tail
    rest, cut = without(data)
    assert (rest, cut) == (data, {}) or (rest.endswith(tail) and large > 24)


def test_the_last_of_several_contents_counts(large: int) -> None:
    """As protobuf has it for a field that is there twice."""
    tensor = onnx.TensorProto(name="k", data_type=FLOAT, dims=[60], raw_data=bytes(240)).SerializeToString()
    second = np.arange(60, dtype=np.float32)
    tensor += onnx.TensorProto(raw_data=second.tobytes()).SerializeToString()
    graph = b"\x2a" + bytes([len(tensor) & 0x7F | 0x80, len(tensor) >> 7]) + tensor
    data = model([node("Relu", "x", "y")], X).SerializeToString()
    data += b"\x3a" + bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph
    np.testing.assert_array_equal(load(data).constants["k"], second)


def test_a_file_may_change_once_it_is_read(tmp_path: Path) -> None:
    array = weights(64, 64, 3, 3)
    path = tmp_path / "m.onnx"
    proto = model([node("Conv", "x w", "y")], X, {"w": array})
    outside = model([node("Conv", "x w", "y")], X, {"w": array})
    onnx.save(outside, tmp_path / "n.onnx", save_as_external_data=True, location="n.data", size_threshold=0)
    path.write_bytes(proto.SerializeToString())
    graphs = [load(path), load(tmp_path / "n.onnx")]
    for file in (path, tmp_path / "n.data"):
        with open(file, "r+b") as opened:
            opened.truncate(10)
    for graph in graphs:
        np.testing.assert_array_equal(graph.constants["w"], array)
