"""Writing ONNX files: the same results after a round trip, and no half-written files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from convwright.errors import ConvwrightError
from convwright.graph import Graph, Node, ValueInfo, load, save

from .graph_models import Array, model, node, random_feeds, read, run, weights

X = {"x": (2, 6, 9, 8)}
F32 = np.dtype(np.float32)


def net() -> Graph:
    nodes = [node("Conv", "x w b", "c", pads=[1, 1, 1, 1], name="first"), node("Relu", "c", "y")]
    return read(model(nodes, X, {"w": weights(600, 6, 3, 3), "b": weights(600)}))


@pytest.mark.parametrize("outside", [False, True])
def test_round_trip(tmp_path: Path, outside: bool) -> None:
    graph, path = net(), tmp_path / "net.onnx"
    save(graph, path, external_data=outside)
    onnx.checker.check_model(str(path), full_check=True)
    expected = ["net.onnx", "net.onnx.data"] if outside else ["net.onnx"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == expected
    again = load(path)
    assert [repr(node) for node in again.nodes] == [repr(node) for node in graph.nodes]
    assert (again.inputs, again.outputs) == (graph.inputs, graph.outputs)
    for name, array in graph.constants.items():
        np.testing.assert_array_equal(again.constants[name], array)
    feeds = random_feeds(X)
    small = run(path, feeds)[0]
    assert small.shape == (2, 600, 9, 8)
    if outside:
        assert path.stat().st_size < 4000
        assert next(int(e.value) for e in tensor_of(path, "w").external_data if e.key == "offset") % 4096 == 0


def tensor_of(path: Path, name: str) -> onnx.TensorProto:
    proto = onnx.load(path, load_external_data=False)
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32),
        np.array(2.5, np.float64),
        weights(4, 6)[:, ::2],
        np.array([True, False]),
        np.array(["a", "bc"], object),
        np.array([1, -1], np.int8),
    ],
)
def test_constants_of_all_kinds(tmp_path: Path, array: Array) -> None:
    graph = Graph("g", {"x": ValueInfo(F32, (1,))}, ["y"], [Node("Relu", ["x"], ["y"])], {"k": array})
    graph.save(tmp_path / "k.onnx")
    found = load(tmp_path / "k.onnx").constants["k"]
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(found, array)


def test_internal_operators_are_written_out(tmp_path: Path) -> None:
    nodes = [
        Node("ChannelShuffle", ["x"], ["a"], {"groups": 3}, domain="convwright"),
        Node("Silu", ["a"], ["b"], domain="convwright"),
        Node("Clip", ["b"], ["y"], {"max": 0.5}),
    ]
    for shape in ((2, 6, 4, 5), ("N", 6, "H", "W"), ("N", "C", None, None)):
        graph = Graph("g", {"x": ValueInfo(F32, shape)}, ["y"], nodes, {})
        graph.save(tmp_path / "g.onnx")
        feeds = random_feeds({"x": (2, 6, 4, 5)})
        shuffled = feeds["x"].reshape(2, 3, 2, 4, 5).transpose(0, 2, 1, 3, 4).reshape(2, 6, 4, 5)
        expected = np.minimum(shuffled / (1 + np.exp(-shuffled)), 0.5)
        np.testing.assert_allclose(run(tmp_path / "g.onnx", feeds)[0], expected, rtol=1e-5, atol=1e-6)
    assert nodes[2].inputs == ["b"]


def test_a_graph_that_is_not_valid_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    net().save(path)
    before = path.read_bytes()
    for broken in (
        Node("Conv", ["c"], ["y"]),
        Node("Relu", ["nowhere"], ["y"]),
        Node("Relu", ["c"], ["y"], {"surprise": 1}),
        Node("Special", ["c"], ["y"], domain="convwright"),
    ):
        graph = net()
        graph.nodes[1] = broken
        with pytest.raises(ConvwrightError) as caught:
            graph.save(path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]


def test_nodes_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    graph = net()
    for twin in graph.nodes:
        twin.name = "same"
    graph.save(tmp_path / "net.onnx")
    assert run(tmp_path / "net.onnx", random_feeds(X))[0].shape == (2, 600, 9, 8)
    assert [node.name for node in load(tmp_path / "net.onnx").nodes] == ["same", "same_1"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing" / "net.onnx"):
        with pytest.raises(ConvwrightError, match="cannot write"):
            net().save(place)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convwright.graph.onnx_writer.os.replace", fail)
    with pytest.raises(ConvwrightError, match="No space left"):
        net().save(tmp_path / "net.onnx", external_data=True)
    assert not list(tmp_path.iterdir())


def test_a_graph_can_be_saved_over_its_own_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    save(net(), path, external_data=True)
    for outside in (True, False):
        save(load(path), path, external_data=outside)
        np.testing.assert_array_equal(load(path).constants["w"], weights(600, 6, 3, 3))
