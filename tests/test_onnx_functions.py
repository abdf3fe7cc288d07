"""Convolutions that ONNX lacks, written to files as functions: other programs run them, `load` knows them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import convwright as cw
from convwright.graph import Graph, Node, ValueInfo, load, save
from convwright.graph.graph import INTERNAL
from convwright.spec import ConvSpec, HetSpec, MixSpec


def _graph(op: str, attributes: dict[str, Any], parts: tuple[ConvSpec, ...], size: tuple[int, ...]) -> Graph:
    rng = np.random.default_rng(7)
    constants, inputs = {}, ["x"]
    for place, part in enumerate(parts):
        constants[f"w{place}"] = rng.standard_normal(part.weight_shape, np.float32)
    for place, part in enumerate(parts):
        if part.bias:
            constants[f"b{place}"] = rng.standard_normal(part.out_channels, np.float32)
    inputs += constants
    channels = sum(part.in_channels for part in parts)
    info = ValueInfo(np.dtype(np.float32), ("N", channels, *size))
    node = Node(op, inputs, ["y"], attributes, "layer", INTERNAL)
    return Graph("one", {"x": info}, ["y"], [node], constants)


def _convolution(spec: ConvSpec, size: tuple[int, ...]) -> Graph:
    return _graph("Convolution", {"spec": spec}, (spec,), size)


def _het(spec: HetSpec, size: tuple[int, ...]) -> Graph:
    return _graph("HetConvolution", {"spec": spec}, (spec.conv,), size)


def _mix(spec: MixSpec, size: tuple[int, ...]) -> Graph:
    return _graph("MixConvolution", {"parts": spec.parts}, spec.parts, size)


CASES = {
    "reflected": _convolution(ConvSpec(3, 4, (3, 5), padding=((1, 0), (2, 1)), padding_mode="reflect"), (6, 7)),
    "replicated": _convolution(ConvSpec(4, 6, (3,), padding=4, groups=2, padding_mode="replicate"), (6,)),
    "wrapped": _convolution(
        ConvSpec(2, 3, (3, 1, 2), padding=(2, 0, 1), padding_mode="circular", bias=False), (4, 3, 5)
    ),
    "flipped": _convolution(ConvSpec(3, 5, (3, 2), padding=1, flip=True), (5, 6)),
    "same under a stride": _convolution(ConvSpec(3, 4, (3, 2), stride=(2, 3), padding="same"), (8, 9)),
    "same, low end": _convolution(ConvSpec(1, 1, (4,), stride=3, padding="same_lower", dilation=2), (11,)),
    "same, stride above the kernel": _convolution(ConvSpec(2, 2, (1, 2), stride=(3, 4), padding="same"), (7, 9)),
    "same, wrapped": _convolution(ConvSpec(2, 2, (3,), stride=2, padding="same", padding_mode="circular"), (8,)),
    "transposed, flipped": _convolution(
        ConvSpec(
            4, 6, (3, 2), stride=2, padding=((1, 0), (0, 1)), output_padding=1, groups=2, transposed=True, flip=True
        ),
        (5, 4),
    ),
    "het": _het(HetSpec(ConvSpec(8, 6, (3, 3), padding=1), 4), (6, 7)),
    "het, part divides nothing": _het(HetSpec(ConvSpec(5, 7, (3, 1), stride=(2, 1), bias=False), 3), (7, 4)),
    "het, one filter": _het(HetSpec(ConvSpec(3, 1, (5,), padding=2, padding_mode="reflect"), 3), (9,)),
    "het, one channel": _het(HetSpec(ConvSpec(1, 4, (3, 3), padding="same", stride=2), 1), (6, 5)),
    "het, flipped": _het(HetSpec(ConvSpec(4, 4, (3, 5), padding="same", dilation=2, flip=True), 2), (7, 8)),
    "mix": _mix(MixSpec(10, (3, 5, 7), padding="half", bias=False), (9, 8)),
    "mix, strided": _mix(MixSpec(8, (3, 4), split="exponential", stride=2), (9, 8)),
    "mix, 1-d": _mix(MixSpec(3, (1, 3), rank=1), (6,)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_file_has_the_same_output_elsewhere_and_the_same_node_here(case: str, tmp_path: Path) -> None:
    graph = CASES[case]
    path = tmp_path / "one.onnx"
    save(graph, path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    back = load(path)
    (node,), (again,) = graph.nodes, back.nodes
    assert (again.op, again.domain, again.name, again.inputs, again.outputs, again.attributes) == (
        node.op, node.domain, node.name, node.inputs, node.outputs, node.attributes,
    )  # fmt: skip
    assert back.domains == graph.domains
    shape = (2, *(int(size) for size in next(iter(graph.inputs.values())).shape[1:]))  # type: ignore[arg-type]
    assert cw.cost(back, shapes={"x": shape}) == cw.cost(graph, shapes={"x": shape})
    x = np.random.default_rng(8).standard_normal(shape, np.float32)
    expected = cw.compile(graph)(x)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(cw.compile(back)(x), expected)


def test_weights_that_a_het_convolution_does_not_read_may_be_anything(tmp_path: Path) -> None:
    graph = _het(HetSpec(ConvSpec(2, 2, (3,), bias=False), 2), (5,))
    graph.constants["w0"][0, 1, 0] = np.inf
    save(graph, tmp_path / "one.onnx")
    x = np.ones((1, 2, 5), np.float32)
    result = ort.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(result, cw.compile(graph)(x), rtol=1e-5)


def test_layers_of_the_same_kind_share_a_function(tmp_path: Path) -> None:
    graph = _het(HetSpec(ConvSpec(4, 4, (3,), padding=1), 2), (6,))
    graph.nodes.append(Node("HetConvolution", ["y", "w0", "b0"], ["z"], dict(graph.nodes[0].attributes), "", INTERNAL))
    graph.outputs = ["z"]
    save(graph, tmp_path / "two.onnx")
    assert len(onnx.load(tmp_path / "two.onnx").functions) == 1
    assert [node.op for node in load(tmp_path / "two.onnx").nodes] == ["HetConvolution"] * 2


def test_functions_of_others_are_inlined_beside_ours(tmp_path: Path) -> None:
    save(CASES["het"], tmp_path / "one.onnx")
    model = onnx.load(tmp_path / "one.onnx")
    twice = helper.make_function("theirs", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                                 [helper.make_opsetid("", 20)])  # fmt: skip
    model.functions.append(twice)
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    model.graph.node.append(helper.make_node("Twice", ["y"], ["z"], domain="theirs"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    assert [node.op for node in load(model.SerializeToString()).nodes] == ["HetConvolution", "Add"]


@pytest.mark.parametrize(("attribute", "value"), [("group", [3]), ("part", 9), ("strides", []), ("auto_pad", None)])
def test_a_damaged_description_is_told(attribute: str, value: Any, tmp_path: Path) -> None:
    save(CASES["het"], tmp_path / "one.onnx")
    model = onnx.load(tmp_path / "one.onnx")
    node = model.graph.node[0]
    kept = [entry for entry in node.attribute if entry.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value:
        node.attribute.append(helper.make_attribute(attribute, value))
    with pytest.raises(cw.ConvwrightError, match="attributes do not describe a HetConvolution"):
        load(model.SerializeToString())


@pytest.mark.parametrize("name", CASES)
def test_the_float64_evaluator_expands_functions(name: str) -> None:
    """What `convwright bench` compares every answer with."""
    from convwright.graph.onnx_writer import model_proto
    from convwright.torch.evaluate import Evaluator

    graph = CASES[name]
    x = np.random.default_rng(3).standard_normal((2, *graph.inputs["x"].shape[1:]))  # type: ignore[arg-type]
    given = x.astype(np.float32)
    wanted = cw.compile(graph, numerics="strict")(given)
    result = Evaluator(model_proto(graph))({"x": given})["y"]
    assert result.dtype == np.float64
    np.testing.assert_allclose(wanted, result, rtol=0, atol=3e-6 * np.abs(result).max())
