"""Convolutions side by side: what becomes one grouped convolution, where activations go, and what is left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from convwright.graph import Graph, simplify

from .graph_models import Array, model, node, random_feeds, read, run, run_graph, weights

X = {"x": (2, 12, 5, 6)}


def rewritten(
    folder: Path, nodes: Sequence[Any], constants: dict[str, Array], outputs: Sequence[str] = ("y",)
) -> Graph:
    """The simplified graph, after checking that it computes what the model does."""
    proto = model(nodes, X, constants, outputs)
    result = simplify(read(proto))
    result.validate()
    feeds = random_feeds(X)
    for actual, expected in zip(run_graph(result, feeds, folder), run(proto, feeds), strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return result


def ops(graph: Graph) -> list[str]:
    return [one.op for one in graph.nodes]


def parts(
    sizes: Sequence[int] = (4, 4, 4),
    widths: Sequence[int] = (5, 5, 5),
    kernels: Sequence[int] = (1, 1, 1),
    groups: int = 1,
    biases: Sequence[bool] = (False, False, False),
    order: Sequence[int] = (0, 1, 2),
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Split x, convolve each part, concatenate the results as "cat"."""
    constants: dict[str, Array] = {"sizes": np.array(sizes, np.int64)}
    count = len(sizes)
    nodes = [node("Split", "x sizes", " ".join(f"x{place}" for place in range(count)), axis=1)]
    for place, (size, width, kernel) in enumerate(zip(sizes, widths, kernels, strict=True)):
        constants[f"w{place}"] = weights(width, size // groups, kernel, kernel, seed=place)
        inputs = f"x{place} w{place}"
        if biases[place]:
            constants[f"b{place}"] = weights(width, seed=10 + place)
            inputs += f" b{place}"
        nodes.append(node("Conv", inputs, f"c{place}", group=groups, pads=[kernel // 2] * 4))
    nodes.append(node("Concat", " ".join(f"c{place}" for place in order), "cat", axis=1))
    return nodes, constants


def replaced(nodes: Sequence[onnx.NodeProto], old: str, new: str) -> list[onnx.NodeProto]:
    """The nodes with one name changed wherever it stands."""
    changed = []
    for one in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(one)
        for names in (copy.input, copy.output):
            names[:] = [new if name == old else name for name in names]
        changed.append(copy)
    return changed


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_equal_convolutions_of_all_parts_are_one_grouped_convolution(
    tmp_path: Path, kernel: int, groups: int, bias: bool
) -> None:
    nodes, constants = parts(widths=(8,) * 3, kernels=(kernel,) * 3, groups=groups, biases=(bias,) * 3)
    graph = rewritten(tmp_path, replaced(nodes, "cat", "y"), constants)
    assert ops(graph) == ["Conv"]
    assert graph.nodes[0].attributes["group"] == 3 * groups
    assert graph.constants[graph.nodes[0].inputs[1]].shape == (24, 4 // groups, kernel, kernel)


def test_two_parts_are_enough_and_a_normalisation_behind_them_is_folded(tmp_path: Path) -> None:
    nodes, constants = parts((6, 6), (3, 3), (3, 3), biases=(True, True), order=(0, 1))
    constants |= {f"n{place}": np.abs(weights(6, seed=place)) + np.float32(0.5) for place in range(4)}
    nodes.append(node("BatchNormalization", "cat n0 n1 n2 n3", "n"))
    assert ops(rewritten(tmp_path, [*nodes, node("Relu", "n", "y")], constants)) == ["Conv", "Relu"]


UNLIKE: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
    "kernels": parts(kernels=(1, 3, 1)),
    "widths": parts(widths=(5, 6, 5)),
    "sizes": parts(sizes=(2, 6, 4)),
    "some biases": parts(biases=(True, False, True)),
    "order": parts(order=(1, 0, 2)),
    "a part left out": parts(order=(0, 1)),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_unlike_parts_stay_apart(tmp_path: Path, name: str) -> None:
    nodes, constants = UNLIKE[name]
    assert "Concat" in ops(rewritten(tmp_path, replaced(nodes, "cat", "y"), constants))


def test_parts_or_results_that_are_read_elsewhere_stay_apart(tmp_path: Path) -> None:
    nodes, constants = parts()
    nodes = replaced(nodes, "cat", "y")
    for outputs, more in ((("y", "c1"), []), (("y", "x1"), []), (("y", "z"), [node("Relu", "c0", "z")])):
        assert "Concat" in ops(rewritten(tmp_path, [*nodes, *more], constants, outputs))


def test_a_split_or_concatenation_along_another_axis_stays(tmp_path: Path) -> None:
    nodes, constants = parts()
    nodes[-1] = node("Concat", "c0 c1 c2", "y", axis=2)
    assert "Concat" in ops(rewritten(tmp_path, nodes, constants))
    constants = {"w": weights(5, 12, 1, 1), "sizes": np.array((3, 3), np.int64)}
    nodes = [
        node("Split", "x sizes", "a b", axis=3),
        node("Conv", "a w", "c"),
        node("Conv", "b w", "d"),
        node("Concat", "c d", "y", axis=3),
    ]
    assert ops(rewritten(tmp_path, nodes, constants)) == ["Split", "Conv", "Conv", "Concat"]


def test_convolutions_whose_weights_are_shared_keep_them_for_other_readers(tmp_path: Path) -> None:
    nodes, constants = parts()
    nodes = [*replaced(replaced(replaced(nodes, "cat", "y"), "w1", "w0"), "w2", "w0"), node("Conv", "x0 w0", "z")]
    graph = rewritten(tmp_path, nodes, constants, ("y", "z"))
    assert ops(graph).count("Conv") == 4  # x0 is read twice


ACTIVATIONS = {
    "Relu": {},
    "LeakyRelu": {"alpha": 0.2},
    "Sigmoid": {},
    "Tanh": {},
    "HardSwish": {},
    "HardSigmoid": {"alpha": 0.3},
    "Elu": {"alpha": 0.5},
}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_an_activation_of_unlike_parts_goes_in_front_of_the_concatenation(tmp_path: Path, op: str) -> None:
    nodes, constants = parts(kernels=(1, 3, 5))
    graph = rewritten(tmp_path, [*nodes, node(op, "cat", "y", **ACTIVATIONS[op])], constants)
    assert ops(graph).count(op) == 3
    assert graph.nodes[-1].op == "Concat"
    assert graph.outputs == ["y"]


def test_clips_and_patterns_of_activations_go_too(tmp_path: Path) -> None:
    nodes, constants = parts(kernels=(1, 3, 5))
    constants |= {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    assert ops(rewritten(tmp_path, [*nodes, node("Clip", "cat low high", "y")], constants)).count("Clip") == 3
    silu = [node("Sigmoid", "cat", "s"), node("Mul", "cat s", "y")]
    assert ops(rewritten(tmp_path, [*nodes, *silu], constants)).count("Silu") == 3


def test_an_activation_stays_where_others_read_what_it_reads(tmp_path: Path) -> None:
    nodes, constants = parts(kernels=(1, 3, 5))
    for outputs, more in (
        (("y", "cat"), []),
        (("y", "c1"), []),
        (("y", "z"), [node("Neg", "cat", "z")]),
        (("y", "z"), [node("Neg", "c2", "z")]),
    ):
        graph = rewritten(tmp_path, [*nodes, node("Relu", "cat", "y"), *more], constants, outputs)
        assert ops(graph).count("Relu") == 1


def beside_a_pool(pooled: str, op: str = "Relu", **window: Any) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """A convolution, and pools of `pooled`, under one activation."""
    nodes = [
        node("Relu", "x", "r"),
        node("Conv", "x w", "c"),
        node("MaxPool", pooled, "m", kernel_shape=[3, 3], **{"pads": [1] * 4, **window}),
        node("AveragePool", "m", "p", kernel_shape=[1, 2], pads=[0, 1, 0, 0]),
        node("Concat", "p c", "cat", axis=1),
        node(op, "cat", "y"),
    ]
    return nodes, {"w": weights(5, 12, 1, 1)}


def test_a_relu_passes_by_pools_of_what_has_been_through_one(tmp_path: Path) -> None:
    graph = rewritten(tmp_path, *beside_a_pool("r"))
    assert sorted(ops(graph)) == ["AveragePool", "Concat", "Conv", "MaxPool", "Relu", "Relu"]
    assert ops(graph)[-1] == "Concat"


def test_an_activation_stays_behind_pools_that_it_may_change(tmp_path: Path) -> None:
    for nodes, constants in (
        beside_a_pool("x"),
        beside_a_pool("r", "Sigmoid"),
        beside_a_pool("r", pads=[2, 1, 2, 1], dilations=[2, 1]),
    ):
        assert ops(rewritten(tmp_path, nodes, constants))[-1] == nodes[-1].op_type


def test_an_activation_stays_behind_parts_that_are_no_convolutions_or_come_twice(tmp_path: Path) -> None:
    nodes, constants = parts(kernels=(1, 3, 5))
    mixed = [*nodes[:-1], node("Concat", "c0 x c2", "cat", axis=1)]
    assert ops(rewritten(tmp_path, [*mixed, node("Relu", "cat", "y")], constants)).count("Relu") == 1
    twice = [*nodes[:-1], node("Concat", "c0 c1 c0", "cat", axis=1)]
    assert ops(rewritten(tmp_path, [*twice, node("Relu", "cat", "y")], constants)).count("Relu") == 1
