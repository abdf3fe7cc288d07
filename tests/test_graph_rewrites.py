"""simplify keeps results and reaches the forms that kernels are written for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convwright.graph import Graph, infer, simplify

from .graph_models import Array, model, node, norm_parameters, random_feeds, read, run, run_graph, scalar, weights

X = {"x": (2, 6, 9, 8)}
OPEN = {"x": ("N", 6, "H", "W")}


def simplified(
    folder: Path,
    nodes: Sequence[Any],
    constants: Mapping[str, Array] | None = None,
    *,
    inputs: Mapping[str, Sequence[int | str | None]] = X,
    shapes: Mapping[str, Sequence[int]] = X,
    opset: int = 17,
) -> Graph:
    """The simplified graph, after checking that it computes what the model does and that the original is untouched."""
    proto = model(nodes, inputs, constants, opset=opset)
    graph = read(proto)
    before = [str(node) + str(node.inputs) + str(node.attributes) for node in graph.nodes]
    result = simplify(graph)
    assert before == [str(node) + str(node.inputs) + str(node.attributes) for node in graph.nodes]
    result.validate()
    feeds = random_feeds(shapes)
    (expected,) = run(proto, feeds)
    (actual,) = run_graph(result, feeds, folder)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5 * max(np.abs(expected).max(), 1))
    inferred = infer(result, shapes)
    assert inferred[result.outputs[0]].shape == expected.shape
    return result


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


BN = "bn_0 bn_1 bn_2 bn_3"


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_after_a_convolution_is_folded(tmp_path: Path, groups: int, bias: bool) -> None:
    constants = norm_parameters(12) | {"w": weights(12, 6 // groups, 3, 3)} | ({"b": weights(12)} if bias else {})
    nodes = [
        node("Conv", "x w b" if bias else "x w", "c", group=groups, pads=[1, 1, 1, 1]),
        node("BatchNormalization", f"c {BN}", "y"),
    ]
    assert ops(simplified(tmp_path, nodes, constants)) == ["Conv"]


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_after_a_transposed_convolution_is_folded(tmp_path: Path, groups: int) -> None:
    constants = norm_parameters(8) | {"w": weights(6, 8 // groups, 3, 3)}
    nodes = [node("ConvTranspose", "x w", "c", group=groups), node("BatchNormalization", f"c {BN}", "y", epsilon=0.01)]
    assert ops(simplified(tmp_path, nodes, constants)) == ["ConvTranspose"]


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_batch_norm_before_a_convolution_is_folded_only_without_padding(tmp_path: Path, pad: int, groups: int) -> None:
    constants = norm_parameters(6) | {"w": weights(12, 6 // groups, 3, 3), "b": weights(12)}
    nodes = [node("BatchNormalization", f"x {BN}", "n"), node("Conv", "n w b", "y", group=groups, pads=[pad] * 4)]
    assert ops(simplified(tmp_path, nodes, constants)) == (["BatchNormalization", "Conv"] if pad else ["Conv"])


def test_a_scale_before_a_padded_convolution_is_folded(tmp_path: Path) -> None:
    constants = {"s": weights(1, 6, 1, 1), "w": weights(4, 6, 3, 3)}
    nodes = [node("Mul", "x s", "n"), node("Conv", "n w", "y", pads=[1, 1, 1, 1])]
    assert ops(simplified(tmp_path, nodes, constants)) == ["Conv"]


def test_batch_norm_after_a_concatenation_is_folded_into_its_parts(tmp_path: Path) -> None:
    constants = norm_parameters(7) | {"v": weights(3, 6, 1, 1), "w": weights(4, 6, 1, 1)}
    nodes = [
        node("Conv", "x v", "a"),
        node("Conv", "x w", "b"),
        node("Concat", "a b", "c", axis=1),
        node("BatchNormalization", f"c {BN}", "y"),
    ]
    assert ops(simplified(tmp_path, nodes, constants)) == ["Conv", "Conv", "Concat"]


def test_batch_norm_of_a_value_read_twice_stays(tmp_path: Path) -> None:
    constants = norm_parameters(6) | {"w": weights(6, 6, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("BatchNormalization", f"c {BN}", "n"), node("Add", "c n", "y")]
    assert "BatchNormalization" in ops(simplified(tmp_path, nodes, constants))


def test_batch_norm_with_open_sizes_is_folded(tmp_path: Path) -> None:
    constants = norm_parameters(4) | {"w": weights(4, 6, 3, 3)}
    nodes = [node("Conv", "x w", "c"), node("BatchNormalization", f"c {BN}", "y")]
    assert ops(simplified(tmp_path, nodes, constants, inputs=OPEN)) == ["Conv"]


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (5, 1, 1), (1, 5, 1, 1)])
@pytest.mark.parametrize("first", [False, True])
def test_arithmetic_with_channel_constants_is_folded(
    tmp_path: Path, op: str, shape: tuple[int, ...], first: bool
) -> None:
    nodes = [node("Conv", "x w", "c"), node(op, "k c" if first else "c k", "y")]
    graph = simplified(tmp_path, nodes, {"w": weights(5, 6, 3, 3), "k": np.abs(weights(*shape)) + 0.5})
    assert ops(graph) == (["Conv", "Div"] if op == "Div" and first else ["Conv"])


def test_arithmetic_along_other_axes_stays(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), node("Add", "c k", "y")]
    graph = simplified(tmp_path, nodes, {"w": weights(8, 6, 2, 1), "k": weights(8)})
    assert ops(graph) == ["Conv", "Add"]


def test_names_of_activations_are_found(tmp_path: Path) -> None:
    x6 = {"three": scalar(3), "six": scalar(6), "zero": scalar(0), "sixth": scalar(1 / 6)}
    hard = [node("Add", "x three", "p"), node("Clip", "p zero six", "r")]
    half = {"one": scalar(1), "half": scalar(0.5), "root": scalar(np.sqrt(2))}
    erf = [node("Div", "x root", "d"), node("Erf", "d", "e"), node("Add", "e one", "g")]
    tanh = half | {"cube": scalar(3), "k": scalar(0.044715), "c": scalar(np.sqrt(2 / np.pi))}
    cases: list[tuple[str, list[Any], dict[str, Array]]] = [
        ("Silu", [node("Sigmoid", "x", "s"), node("Mul", "x s", "y")], {}),
        ("Silu", [node("Sigmoid", "x", "s"), node("Mul", "s x", "y")], {}),
        ("HardSwish", [node("HardSigmoid", "x", "s", alpha=1 / 6, beta=0.5), node("Mul", "x s", "y")], {}),
        ("HardSwish", [*hard, node("Div", "r six", "s"), node("Mul", "x s", "y")], x6),
        ("HardSwish", [*hard, node("Mul", "x r", "s"), node("Div", "s six", "y")], x6),
        ("HardSwish", [*hard, node("Mul", "r sixth", "s"), node("Mul", "s x", "y")], x6),
        ("HardSigmoid", [*hard, node("Div", "r six", "y")], x6),
        ("Mish", [node("Softplus", "x", "s"), node("Tanh", "s", "t"), node("Mul", "x t", "y")], {}),
        ("Gelu", [*erf, node("Mul", "x g", "m"), node("Mul", "m half", "y")], half),
        ("Gelu", [*erf, node("Mul", "half x", "m"), node("Mul", "m g", "y")], half),
        ("Gelu", [*erf, node("Mul", "g half", "m"), node("Mul", "x m", "y")], half),
        (
            "Gelu",
            [
                node("Pow", "x cube", "p"),
                node("Mul", "p k", "q"),
                node("Add", "x q", "r"),
                node("Mul", "r c", "s"),
                node("Tanh", "s", "t"),
                node("Add", "t one", "g"),
                node("Mul", "x half", "m"),
                node("Mul", "m g", "y"),
            ],
            tanh,
        ),
        ("Clip", [node("Clip", "x zero six", "y")], x6),
        ("Clip", [node("Relu", "x", "r"), node("Min", "r six", "y")], x6),
        ("Relu", [node("Clip", "x zero", "y")], x6),
        ("Relu", [node("Max", "zero x", "y")], x6),
    ]
    for name, nodes, constants in cases:
        assert ops(simplified(tmp_path, nodes, constants)) == [name], nodes


def test_gates_that_are_no_activation_stay(tmp_path: Path) -> None:
    nodes = [node("HardSigmoid", "x", "s"), node("Mul", "x s", "y")]
    assert ops(simplified(tmp_path, nodes)) == ["HardSigmoid", "Mul"]


def test_clip_limits_become_floats(tmp_path: Path) -> None:
    graph = simplified(tmp_path, [node("Clip", "x lo hi", "y")], {"lo": scalar(-0.5), "hi": scalar(0.25)})
    assert graph.nodes[0].attributes == {"min": -0.5, "max": 0.25}
    assert graph.nodes[0].inputs == ["x"]
    assert not graph.constants


SHUFFLE = [node("Reshape", "x a", "p"), node("Transpose", "p", "q", perm=[0, 2, 1, 3, 4]), node("Reshape", "q b", "y")]


@pytest.mark.parametrize(
    ("split", "whole"),
    [((2, 3, 2, 9, 8), (2, 6, 9, 8)), ((-1, 3, 2, 9, 8), (-1, 6, 9, 8)), ((0, 3, 2, 9, -1), (0, -1, 9, 8))],
)
def test_channel_shuffle_is_found(tmp_path: Path, split: tuple[int, ...], whole: tuple[int, ...]) -> None:
    graph = simplified(tmp_path, SHUFFLE, {"a": np.array(split), "b": np.array(whole)})
    assert [(node.op, node.domain, node.attributes) for node in graph.nodes] == [
        ("ChannelShuffle", "convwright", {"groups": 3})
    ]
    assert ops(simplify(read_back(tmp_path))) == ["ChannelShuffle"]


@pytest.mark.parametrize("groups", [1, 6])
def test_a_shuffle_that_moves_nothing_is_removed(tmp_path: Path, groups: int) -> None:
    sizes = {"a": np.array((2, groups, 6 // groups, 9, 8)), "b": np.array((2, 6, 9, 8))}
    nodes = [node("Relu", "x", "r"), node("Reshape", "r a", "p"), *SHUFFLE[1:]]
    assert ops(simplified(tmp_path, nodes, sizes)) == ["Relu"]


def read_back(folder: Path) -> Graph:
    from convwright.graph import load

    return load(folder / "graph.onnx")


def test_channel_shuffle_is_found_with_open_sizes(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Slice", "s two four", "hw"),
        node("Concat", "n g hw", "a", axis=0),
        *SHUFFLE[:2],
        node("Reshape", "q s", "y"),
    ]
    constants = {"zero": np.array([0]), "two": np.array([2]), "four": np.array([4]), "g": np.array([3, 2])}
    assert ops(simplified(tmp_path, nodes, constants, inputs=OPEN)) == ["ChannelShuffle"]


def test_a_shuffle_of_other_axes_is_left(tmp_path: Path) -> None:
    nodes = [SHUFFLE[0], node("Transpose", "p", "q", perm=[0, 1, 2, 4, 3]), SHUFFLE[2]]
    graph = simplified(tmp_path, nodes, {"a": np.array([2, 3, 2, 9, 8]), "b": np.array([2, 6, 9, 8])})
    assert ops(graph) == ["Reshape", "Transpose", "Reshape"]


@pytest.mark.parametrize("inputs", [X, OPEN])
@pytest.mark.parametrize(("keepdims", "expected"), [(1, ["GlobalAveragePool"]), (0, ["GlobalAveragePool", "Flatten"])])
def test_mean_over_space_is_a_global_pool(tmp_path: Path, inputs: Any, keepdims: int, expected: list[str]) -> None:
    nodes = [node("ReduceMean", "x", "y", axes=[-1, 2], keepdims=keepdims)]
    assert ops(simplified(tmp_path, nodes, inputs=inputs)) == expected


def test_a_pool_over_everything_is_a_global_pool(tmp_path: Path) -> None:
    assert ops(simplified(tmp_path, [node("AveragePool", "x", "y", kernel_shape=[9, 8])])) == ["GlobalAveragePool"]


def test_a_reshape_that_flattens_is_a_flatten(tmp_path: Path) -> None:
    for target in ([2, -1], [0, -1], [-1, 432]):
        graph = simplified(tmp_path, [node("Reshape", "x s", "y")], {"s": np.array(target)})
        assert [(node.op, node.inputs, node.attributes) for node in graph.nodes] == [("Flatten", ["x"], {"axis": 1})]


def test_a_reshape_that_moves_the_batch_is_left(tmp_path: Path) -> None:
    graph = simplified(tmp_path, [node("Reshape", "x s", "y")], {"s": np.array([4, -1])})
    assert ops(graph) == ["Reshape"]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (4,), (1, 4), (1,), (), (3, 4)])
def test_gemm_has_one_form(tmp_path: Path, trans_a: int, trans_b: int, bias: tuple[int, ...] | None) -> None:
    shapes = {"x": (5, 3) if trans_a else (3, 5)}
    constants = {"w": weights(4, 5) if trans_b else weights(5, 4)}
    if bias is not None:
        constants["b"] = weights(*bias) if bias else scalar(0.7)
    names = "x w" if bias is None else "x w b"
    nodes = [node("Gemm", names, "y", alpha=0.5, beta=2.0, transA=trans_a, transB=trans_b)]
    graph = simplified(tmp_path, nodes, constants, inputs=shapes, shapes=shapes)
    assert ops(graph) == ["Transpose"] * trans_a + ["Gemm"] + ["Add"] * (bias == (3, 4))
    gemm = next(node for node in graph.nodes if node.op == "Gemm")
    assert gemm.attributes == {"transB": 1}
    assert graph.constants[gemm.inputs[1]].shape == (4, 5)


def test_matmul_and_add_are_a_gemm(tmp_path: Path) -> None:
    shapes = {"x": (3, 5)}
    nodes = [node("MatMul", "x w", "m"), node("Add", "b m", "y")]
    graph = simplified(tmp_path, nodes, {"w": weights(5, 4), "b": weights(4)}, inputs=shapes, shapes=shapes)
    assert ops(graph) == ["Gemm"]
    assert [graph.constants[name].shape for name in graph.nodes[0].inputs[1:]] == [(4, 5), (4,)]


def test_zeros_around_a_convolution_become_its_padding(tmp_path: Path) -> None:
    pads = {"p": np.array([0, 0, 1, 0, 0, 0, 2, 3]), "q": np.array([0, 0, 0, 1, 0, 0, 0, 0]), "w": weights(4, 6, 3, 3)}
    nodes = [node("Pad", "x p", "a"), node("Pad", "a q", "b"), node("Conv", "b w", "y", pads=[0, 1, 0, 1])]
    graph = simplified(tmp_path, nodes, pads)
    assert [(node.op, node.attributes["pads"]) for node in graph.nodes] == [("Conv", (1, 2, 2, 4))]


@pytest.mark.parametrize(
    ("pads", "value", "mode"),
    [
        ((0, 0, 1, 1, 0, 0, 1, 1), 2.0, "constant"),
        ((0, 0, 1, 1, 0, 0, 1, 1), 0.0, "reflect"),
        ((0, 0, -1, 1, 0, 0, 1, 1), 0.0, "constant"),
    ],
)
def test_other_pads_stay(tmp_path: Path, pads: tuple[int, ...], value: float, mode: str) -> None:
    nodes = [node("Pad", "x p v", "a", mode=mode), node("Conv", "a w", "y")]
    graph = simplified(tmp_path, nodes, {"p": np.array(pads), "v": scalar(value), "w": weights(4, 6, 3, 3)})
    assert ops(graph) == ["Pad", "Conv"]


@pytest.mark.parametrize("include", [0, 1])
def test_zeros_around_an_average_pool_are_counted(tmp_path: Path, include: int) -> None:
    pool = node("AveragePool", "a", "y", kernel_shape=[3, 3], strides=[2, 2], count_include_pad=include)
    graph = simplified(tmp_path, [node("Pad", "x p", "a"), pool], {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])})
    assert ops(graph) == ["AveragePool"]


def test_nodes_that_change_nothing_go(tmp_path: Path) -> None:
    nodes = [
        node("Identity", "x", "a"),
        node("Dropout", "a", "b"),
        node("Relu", "b", "c"),
        node("Transpose", "c", "d", perm=[0, 2, 3, 1]),
        node("Transpose", "d", "e", perm=[0, 3, 1, 2]),
        node("AveragePool", "e", "f", kernel_shape=[1, 1]),
        node("Reshape", "f s", "g"),
        node("Concat", "g", "h", axis=1),
        node("Cast", "h", "y", to=1),
    ]
    graph = simplified(tmp_path, nodes, {"s": np.array([2, 6, 9, 8])})
    assert ops(graph) == ["Relu"]
    assert graph.outputs == ["y"]


def test_an_identity_between_input_and_output_stays(tmp_path: Path) -> None:
    assert ops(simplified(tmp_path, [node("Identity", "x", "y")])) == ["Identity"]


def test_given_shapes_fold_arithmetic_on_shapes() -> None:
    nodes = [node("Shape", "x", "s"), node("Slice", "s two four", "hw"), node("Concat", "nc hw", "t", axis=0)]
    nodes += [node("Relu", "x", "r"), node("Reshape", "r t", "y")]
    constants = {"two": np.array([2]), "four": np.array([4]), "nc": np.array([3, -1])}
    graph = read(model(nodes, {"x": (None, 6, None, None)}, constants))
    assert ops(simplify(graph)) == ["Shape", "Slice", "Concat", "Relu", "Reshape"]
    result = simplify(graph, {"x": (2, 6, 5, 4)})
    assert ops(result) == ["Relu", "Reshape"]
    np.testing.assert_array_equal(result.constants["t"], [3, -1, 5, 4])
    assert result.inputs["x"].shape == (2, 6, 5, 4)
    assert graph.inputs["x"].shape == (None, 6, None, None)


def test_dead_nodes_and_constants_go(tmp_path: Path) -> None:
    graph = simplified(tmp_path, [node("Sigmoid", "x", "dead"), node("Relu", "x", "y")], {"unused": weights(3)})
    assert ops(graph) == ["Relu"]
    assert not graph.constants


def test_constants_are_folded(tmp_path: Path) -> None:
    nodes = [
        node("Mul", "a a", "b"),
        node("Transpose", "b", "c", perm=[1, 0, 2, 3]),
        node("Cast", "c", "w", to=1),
        node("Conv", "x w", "y"),
    ]
    assert ops(simplified(tmp_path, nodes, {"a": weights(6, 4, 3, 3).astype(np.float64)})) == ["Conv"]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 3, -1])
def test_softmax_before_opset_13(tmp_path: Path, op: str, axis: int) -> None:
    graph = simplified(tmp_path, [node(op, "x", "y", axis=axis)], opset=11)
    assert ops(graph).count(op) == 1
    assert (ops(graph) == [op]) == (axis != 1)


def test_softmax_before_opset_13_over_channels(tmp_path: Path) -> None:
    nodes = [node("GlobalAveragePool", "x", "p"), node("Softmax", "p", "y", axis=1)]
    graph = simplified(tmp_path, nodes, opset=11)
    assert ops(graph) == ["GlobalAveragePool", "Softmax"]
    assert graph.nodes[1].attributes == {"axis": 1}
