"""Weights are packed where they lie if the model alone holds them; whoever else holds them never notices."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import convwright as cw
from convwright.codegen.target import host_target
from convwright.graph import Graph, load
from convwright.large_arrays import large_empty, taken
from convwright.model import weights as module
from convwright.model.lower import paired_weights
from convwright.model.weights import Weights, keeps_place, pack_depthwise, pack_direct, pack_planar
from convwright.runtime.machine import adds_beside_multiply_adds

from .graph_models import model, node, weights

X = {"x": (2, 48, 9, 11)}


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the constants that were packed where they lie."""
    names: list[str] = []

    def watched(holder: dict[str, np.ndarray], name: str, room: int) -> np.ndarray | None:
        memory = original(holder, name, room)
        if memory is not None:
            names.append(name)
        return memory

    original = taken
    monkeypatch.setattr(module, "taken", watched)
    return names


def large(*shape: int) -> np.ndarray:
    array = large_empty(shape, np.dtype(np.float32))
    array[...] = np.arange(1, 1 + array.size).reshape(shape)
    return array


@pytest.mark.parametrize("v", [4, 8, 16])
@pytest.mark.parametrize(
    ("form", "groups", "shape"),
    [
        ("direct", 1, (64, 80, 1, 1)),
        ("direct", 1, (1000, 33, 1, 1)),
        ("direct", 1, (37, 40, 3, 3)),  # no room for the last vector
        ("direct", 1, (592, 7, 3, 5)),
        ("direct", 1, (1, 9000, 1, 1)),
        ("direct", 4, (64, 40, 3, 3)),
        ("direct", 2, (160, 24, 2, 3)),
        ("direct", 3, (51, 40, 3, 3)),  # vectors that two groups share
        ("planar", 1, (401, 3, 3, 5)),
        ("depthwise", 1, (2001, 1, 3, 3)),
        ("direct", 1, (32, 70000, 1, 1)),  # longer than a piece
    ],
)
def test_packed_where_it_lies_as_elsewhere(v: int, form: str, groups: int, shape: tuple[int, ...]) -> None:
    expected = {
        "direct": lambda: pack_direct(large(*shape), groups, v),
        "planar": lambda: pack_planar(large(*shape), v),
        "depthwise": lambda: pack_depthwise(large(*shape), v),
    }[form]()
    store = Weights({"w": large(*shape)}, v)
    address = store.constants["w"].ctypes.data
    store.consuming = True
    packed = store.get("w", form, shape, groups)
    np.testing.assert_array_equal(packed, expected)
    whole = -(-shape[0] // v) * v
    fits = keeps_place(shape[0], groups if form == "direct" else 1, v) and whole * 32 <= shape[0] * 33
    assert (packed.ctypes.data == address) == fits
    assert not store.constants["w"].any()
    np.testing.assert_array_equal(store.array("w"), large(*shape))
    np.testing.assert_array_equal(
        store.get("w", "spread", shape), Weights({"w": large(*shape)}, v).get("w", "spread", shape)
    )
    assert store.get("w", form, shape, groups) is packed


def test_a_constant_that_others_hold_is_packed_elsewhere() -> None:
    mine = large(64, 80, 1, 1)
    for other in (mine, mine[:1], mine.T, mine.reshape(-1)[:1]):
        store = Weights({"w": mine}, 16)
        store.consuming = True
        store.get("w", "direct", mine.shape)
        np.testing.assert_array_equal(mine, large(64, 80, 1, 1))
        del other


def network() -> onnx.ModelProto:
    """Every form of packing; a constant that two layers read in two forms, one that is an operand too, one that is
    read by a Transpose, and one that is an output."""
    constants = {
        "tied": weights(48, 48, 3, 3, seed=1),
        "half": weights(96, 24, 3, 3, seed=2),
        "deep": weights(48, 1, 11, 11, seed=3),
        "point": weights(480, 48, 1, 1, seed=4),
        "back": weights(48, 480, 1, 1, seed=5),
        "first": weights(48, 48, 9, 11, seed=6),
        "dense": weights(1000, 48, seed=7),
        "square": weights(100, 1000, seed=8),
    }
    constants = {name: array / np.float32(np.sqrt(array[0].size)) for name, array in constants.items()}
    nodes = [
        node("Conv", "x tied", "a", pads=[1, 1, 1, 1]),
        node("Conv", "a tied", "b", pads=[2, 2, 2, 2], dilations=[2, 2]),
        node("Add", "a b", "c"),
        node("Conv", "c half", "d", pads=[1, 1, 1, 1], group=2, strides=[2, 2]),
        node("Conv", "c deep", "e", pads=[5, 5, 5, 5], group=48),
        node("Conv", "e point", "f"),
        node("Relu", "f", "g"),
        node("Conv", "g back", "h"),
        node("Conv", "h first", "i"),
        node("Flatten", "i", "j"),
        node("Gemm", "j dense", "k", transB=1),
        node("MatMul", "k square_t", "y"),
        node("Transpose", "square", "square_t", perm=[1, 0]),
        node("ReduceMax", "dense", "most"),
        node("Identity", "back", "z"),
    ]
    return model(nodes, X, constants, outputs=["y", "d", "most", "z"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "m.onnx"
    place.write_bytes(network().SerializeToString())
    return place


def image() -> np.ndarray:
    return weights(*X["x"], seed=11)


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("numerics", ["default", "strict"])
@pytest.mark.parametrize("strips", [True, False])
def test_a_models_results_do_not_depend_on_who_holds_the_weights(
    path: Path, in_place: list[str], numerics: str, strips: bool
) -> None:
    in_pairs = numerics == "default" and adds_beside_multiply_adds(host_target())  # whose weights are scaled copies
    graph = load(path)
    before = {name: array.copy() for name, array in graph.constants.items()}
    expected = cw.compile(graph, numerics=numerics, strips=strips)(image())
    assert not in_place
    same(graph.constants, before)
    alone = cw.compile(path, numerics=numerics, strips=strips)
    assert ("point" in in_place) != in_pairs
    same(alone(image()), expected)
    same(alone(image()), expected)
    in_place.clear()
    handed_over = cw.compile(load(path), numerics=numerics, strips=strips)
    assert ("point" in in_place) != in_pairs
    same(handed_over(image()), expected)
    same(pickle.loads(pickle.dumps(alone))(image()), expected)
    alone.forget_plans()
    same(alone(image()), expected)


@pytest.mark.parametrize(
    "held",
    [
        lambda graph: graph,
        lambda graph: graph.copy(),
        lambda graph: graph.constants,
        lambda graph: cw.compile(graph),
        lambda graph: pickle.loads(pickle.dumps(cw.compile(graph))),
    ],
    ids=["graph", "copy", "constants", "model", "pickled model"],
)
def test_two_models_of_one_graph(path: Path, held: Callable[[Graph], object]) -> None:
    graph = load(path)
    other = held(graph)
    expected = cw.compile(path)(image())
    second = cw.compile(graph)
    del graph
    third = cw.compile(other.copy()) if isinstance(other, Graph) else second
    for one in (second, third):
        same(one(image()), expected)
    if isinstance(other, cw.Model):
        same(other(image()), expected)
    if isinstance(other, dict):
        same(other, load(path).constants)


def test_a_graph_is_saved_after_its_models_were_made(path: Path, tmp_path: Path) -> None:
    graph = load(path)
    models = [cw.compile(graph), cw.compile(graph.copy(), numerics="strict")]
    graph.save(tmp_path / "again.onnx")
    same(load(tmp_path / "again.onnx").constants, load(path).constants)
    same(models[0](image()), cw.compile(tmp_path / "again.onnx")(image()))


def test_a_compilation_that_fails_leaves_the_users_weights_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load(path)
    before = {name: array.copy() for name, array in graph.constants.items()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_pack_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cw.compile(graph)
    monkeypatch.undo()
    same(graph.constants, before)
    same(cw.compile(graph)(image()), cw.compile(path)(image()))


def test_a_model_whose_sizes_are_open_keeps_its_weights_through_a_call_that_fails(
    tmp_path: Path, in_place: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = model([node("Conv", "x w", "y")], {"x": ("N", 48, None, None)}, {"w": weights(480, 48, 1, 1)})
    (tmp_path / "open.onnx").write_bytes(proto.SerializeToString())
    compiled = cw.compile(tmp_path / "open.onnx")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_pack_blocks", interrupted)
        patch.setattr(paired_weights, "pack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compiled(image())
    np.testing.assert_array_equal(compiled(image()), cw.compile(load(tmp_path / "open.onnx"))(image()))
    assert not in_place
