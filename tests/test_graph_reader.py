"""Reading ONNX files: every opset in one form, and nothing but one-line errors for what is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from convwright.errors import ConvwrightError
from convwright.graph import Graph, infer, load, simplify, wire
from convwright.large_arrays import LARGE

from .graph_models import (
    FLOAT,
    Array,
    model,
    node,
    norm_parameters,
    random_feeds,
    read,
    run,
    run_graph,
    scalar,
    weights,
)

X = {"x": (2, 6, 8, 8)}


def same_results(proto: onnx.ModelProto, folder: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> Graph:
    """The graph, after checking that it computes what the model does, as read and simplified."""
    graph = read(proto)
    feeds = random_feeds(shapes or X)
    expected = run(proto, feeds)
    for form in (graph, simplify(graph)):
        for actual, wanted in zip(run_graph(form, feeds, folder), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)
    inferred = infer(graph, shapes or X)
    for name, wanted in zip(graph.outputs, expected, strict=True):
        assert (inferred[name].shape, inferred[name].dtype) == (wanted.shape, wanted.dtype)
    return graph


def test_a_graph_as_read() -> None:
    nodes = [node("Conv", "x w", "c", pads=[1, 1, 1, 1], auto_pad="NOTSET"), node("Relu", "c", "y")]
    graph = read(model(nodes, {"x": ("N", 3, None, 8)}, {"w": weights(4, 3, 3, 3)}))
    assert graph.inputs["x"].shape == ("N", 3, None, 8)
    assert graph.inputs["x"].dtype == np.float32
    assert graph.outputs == ["y"]
    assert [node.op for node in graph.nodes] == ["Conv", "Relu"]
    assert graph.nodes[0].attributes == {"pads": (1, 1, 1, 1), "auto_pad": "NOTSET"}
    np.testing.assert_array_equal(graph.constants["w"], weights(4, 3, 3, 3))
    assert graph.constants["w"].flags.aligned


def test_importing_does_not_import_onnx() -> None:
    program = (
        "import sys, convwright, convwright.graph as g; assert 'numpy' not in sys.modules;"
        "g.load, g.save, g.infer, g.simplify; assert 'onnx' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 18, 20, onnx.defs.onnx_opset_version()])
def test_a_network_of_each_opset(tmp_path: Path, opset: int) -> None:
    def axes(op: str, since: int, source: str, target: str, values: list[int], **attributes: Any) -> onnx.NodeProto:
        if opset < since:
            return node(op, source, target, axes=values, **attributes)
        constants[f"{target}_axes"] = np.array(values)
        return node(op, f"{source} {target}_axes", target, **attributes)

    constants = norm_parameters(6)
    nodes = [node("BatchNormalization", "x bn_0 bn_1 bn_2 bn_3", "a")]
    if opset < 11:
        nodes.append(node("Clip", "a", "b", min=-0.5, max=1.5))
        nodes.append(node("Pad", "b", "c", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.25))
    else:
        constants |= {"lo": scalar(-0.5), "hi": scalar(1.5), "v": scalar(0.25)}
        constants["pads"] = np.array([0, 0, 1, 2, 0, 0, 0, 1])
        nodes += [node("Clip", "a lo hi", "b"), node("Pad", "b pads v", "c")]
    if opset < 10:
        nodes.append(node("Slice", "c", "d", starts=[1, 0], ends=[9, -1], axes=[2, 3]))
    else:
        constants |= {"starts": np.array([1, 0]), "ends": np.array([9, -1]), "axes": np.array([2, 3])}
        nodes.append(node("Slice", "c starts ends axes", "d"))
    if opset < 13:
        nodes.append(node("Split", "d", "e f", axis=1, split=[2, 4]))
    else:
        constants["parts"] = np.array([2, 4])
        nodes.append(node("Split", "d parts", "e f", axis=1))
    nodes.append(axes("ReduceMean", 18, "e", "g", [1], keepdims=0))
    nodes.append(axes("ReduceSum", 13, "f", "h", [1], keepdims=0))
    nodes.append(node("Add", "g h", "i"))
    nodes.append(axes("Unsqueeze", 13, "i", "j", [1]))
    nodes.append(axes("Squeeze", 13, "j", "k", [1]))
    nodes += [node("Dropout", "k", "l"), node("Softmax", "l", "y", axis=1)]
    same_results(model(nodes, X, constants, opset=opset), tmp_path)


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample_is_a_resize(tmp_path: Path, opset: int) -> None:
    scales = [1.0, 1.0, 2.0, 3.0]
    for mode in ("nearest", "linear"):
        if opset == 7:
            proto = model([node("Upsample", "x", "y", mode=mode, scales=scales)], X, opset=opset)
        else:
            proto = model(
                [node("Upsample", "x s", "y", mode=mode)], X, {"s": np.array(scales, np.float32)}, opset=opset
            )
        assert same_results(proto, tmp_path).nodes[0].op == "Resize"


def test_constants_of_every_form() -> None:
    nodes = [
        node("Constant", "", "a", value=numpy_helper.from_array(weights(2, 6, 8, 8))),
        node("Constant", "", "b", value_float=2.5),
        node("Constant", "", "c", value_ints=[1, 2, 3]),
        node("Add", "x a", "d"),
        node("Mul", "d b", "y"),
    ]
    graph = read(model(nodes, X))
    assert len(graph.nodes) == 2
    assert graph.constants["b"] == np.float32(2.5)
    np.testing.assert_array_equal(graph.constants["c"], [1, 2, 3])


@pytest.mark.parametrize(
    "array",
    [
        np.array([-1.5, 0, 3e38], np.float32),
        np.array([1e300, -2], np.float64),
        np.array([0.5, -65504], np.float16),
        np.array([-128, 127], np.int8),
        np.array([255, 0], np.uint8),
        np.array([-(2**15), 5], np.int16),
        np.array([2**16 - 1], np.uint16),
        np.array([-(2**31), 2**31 - 1], np.int32),
        np.array([2**32 - 1], np.uint32),
        np.array([-(2**63), 2**63 - 1, -1, 0], np.int64),
        np.array([2**64 - 1], np.uint64),
        np.array([True, False]),
        np.array([1 + 2j], np.complex64),
    ],
)
def test_tensors_of_every_type_in_both_encodings(array: Array) -> None:
    code = helper.np_dtype_to_tensor_dtype(array.dtype)
    typed = helper.make_tensor("k", code, array.shape, array)
    for tensor in (numpy_helper.from_array(array, "k"), typed):
        proto = model([node("Relu", "x", "y")], X)
        proto.graph.initializer.append(tensor)
        found = read(proto).constants["k"]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_nodes_out_of_order_are_sorted() -> None:
    proto = model([node("Relu", "a", "y"), node("Sigmoid", "x", "a")], X)
    assert [node.op for node in read(proto).nodes] == ["Sigmoid", "Relu"]


def test_initialisers_listed_as_inputs_are_constants() -> None:
    proto = model([node("Conv", "x w", "y")], X | {"w": (4, 6, 3, 3)}, {"w": weights(4, 6, 3, 3)})
    assert list(read(proto).inputs) == ["x"]


def if_model(*, of_shape: bool) -> onnx.ModelProto:
    value = helper.make_empty_tensor_value_info
    then = helper.make_graph([node("Relu", "x", "t")], "then", [], [value("t")])
    other = helper.make_graph([node("Neg", "x", "t")], "else", [], [value("t")])
    nodes = [node("If", "condition", "y", then_branch=then, else_branch=other)]
    if not of_shape:
        return model(nodes, X, {"condition": np.array(True)})
    shape = [node("Shape", "x", "s"), node("Gather", "s one", "c"), node("Equal", "c six", "condition")]
    return model(shape + nodes, {"x": ("N", 6, "H", "W")}, {"one": np.array(1), "six": np.array(7)})


def test_an_if_with_a_known_condition_is_its_branch(tmp_path: Path) -> None:
    assert [node.op for node in same_results(if_model(of_shape=False), tmp_path).nodes] == ["Relu"]
    assert [node.op for node in same_results(if_model(of_shape=True), tmp_path).nodes][-1] == "Neg"


def test_functions_of_the_model_are_inlined(tmp_path: Path) -> None:
    body = [node("Sigmoid", "a", "b"), node("Mul", "a b", "c")]
    function = helper.make_function("own", "swish", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    proto = model([helper.make_node("swish", ["x"], ["y"], domain="own")], X)
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    assert [node.op for node in read(proto).nodes] == ["Sigmoid", "Mul"]


def external(folder: Path, **entries: str) -> Path:
    proto = model([node("Conv", "x w", "y")], X, {"w": weights(4, 6, 3, 3)})
    tensor = proto.graph.initializer[0]
    (folder / "w.bin").write_bytes(b"\0" * 64 + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin", "offset": "64", "length": "864"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_external_data_is_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(load(external(tmp_path)).constants["w"], weights(4, 6, 3, 3))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../w.bin"}, "outside the model's folder"),
        ({"location": "/etc/hostname"}, "outside the model's folder"),
        ({"location": "other.bin"}, "missing"),
        ({"location": "."}, "missing or not a file"),
        ({"location": ""}, "no usable location"),
        ({"offset": "65"}, "needs bytes 65 to 929"),
        ({"offset": "-1"}, "needs bytes -1"),
        ({"offset": "x"}, "not numbers"),
        ({"length": "860"}, "needs 864 bytes"),
    ],
)
def test_external_data_that_cannot_be_read(tmp_path: Path, entries: dict[str, str], message: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(b"\0" * 1000)
    with pytest.raises(ConvwrightError, match=message):
        load(external(folder, **entries))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 1000)
    path = external(folder)
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(ConvwrightError, match="outside the model's folder"):
        load(path)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("not a model at all, but some text that goes on for a while\n" * 20)
    for name, message in (("", "is a directory"), ("missing.onnx", "no such file"), ("empty.onnx", "empty")):
        with pytest.raises(ConvwrightError, match=message):
            load(tmp_path / name)
    with pytest.raises(ConvwrightError, match="not an ONNX model"):
        load(tmp_path / "text.onnx")
    with pytest.raises(ConvwrightError):
        load(str(tmp_path / "nul\0.onnx"))


def test_names_that_are_not_text() -> None:
    whole = model([node("Relu", "x", "result")], X, outputs=["result"]).SerializeToString()
    with pytest.raises(ConvwrightError, match="a name is not text"):
        load(whole.replace(b"result", b"\xff\xfe\xff\xfe\xff\xfe"))


def test_a_file_beyond_the_limit_of_the_format(tmp_path: Path) -> None:
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(ConvwrightError, match="it has 2147483648 bytes"):
        load(tmp_path / "large.onnx")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_weights_are_held_once(tmp_path: Path) -> None:
    """While loading and saving, too: large ones go from the file to their place, and from there to a file."""
    size = 64 << 20
    constants = {f"w{part}": np.ones(size // 16, np.float32) for part in range(4)}
    path = tmp_path / "m.onnx"
    path.write_bytes(model([node("Relu", "x", "y")], X, constants).SerializeToString())
    program = """
import sys, numpy, onnx
from convwright.graph import load
def memory(what):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(what))
before = memory("VmRSS")
graph = load(sys.argv[1])
print(memory("VmHWM") - before, memory("VmRSS") - before)
graph.save(sys.argv[1])
print(memory("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
    peak, after, peak_saving = map(int, done.stdout.split())
    assert peak < 1.3 * size
    assert peak_saving < 1.4 * size
    assert after < 1.3 * size


def tensor(dims: list[int], size: int = 16, code: int = FLOAT) -> onnx.TensorProto:
    return onnx.TensorProto(name="k", data_type=code, dims=dims, raw_data=bytes(size))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (tensor([1 << 40, 1 << 40]), "impossible dimensions"),
        (tensor([1 << 40]), "needs 4398046511104 bytes"),
        (tensor([-4]), "negative dimension"),
        (tensor([0, 1 << 62], 0), "impossible dimensions"),
        (tensor([5]), "needs 20 bytes, the file has 16"),
        (tensor([1] * 70, 4), "impossible dimensions"),
        (tensor([4], 16, 16), "BFLOAT16"),
        (tensor([4], 16, 99), "99"),
        (onnx.TensorProto(name="k", data_type=1, dims=[3], float_data=[1.0]), "needs 3 elements, the file has 1"),
    ],
)
def test_broken_tensors(broken: onnx.TensorProto, message: str) -> None:
    proto = model([node("Relu", "x", "y")], X)
    proto.graph.initializer.append(broken)
    with pytest.raises(ConvwrightError, match=message):
        read(proto)


@pytest.mark.parametrize(
    ("nodes", "outputs", "message"),
    [
        ([node("Add", "x missing", "y")], ["y"], "node of output 'y' .Add.: input 'missing' is not defined"),
        ([node("Add", "x y", "a"), node("Relu", "a", "y")], ["y"], "cycle"),
        ([node("Relu", "x", "y"), node("Neg", "x", "y")], ["y"], "defined twice"),
        ([node("Relu", "x", "x")], ["x"], "defined twice"),
        ([node("Relu", "x", "y")], ["z"], "output 'z' is not defined"),
        ([node("Relu", "x", "y")], [], "no outputs"),
        ([node("Constant", "", "y")], ["y"], "no value"),
    ],
)
def test_broken_graphs(nodes: list[onnx.NodeProto], outputs: list[str], message: str) -> None:
    with pytest.raises(ConvwrightError, match=message):
        read(model(nodes, X, outputs=outputs))


def test_what_is_not_supported_says_so() -> None:
    proto = if_model(of_shape=False)
    del proto.graph.initializer[:]
    proto.graph.input.append(helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []))
    with pytest.raises(ConvwrightError, match=r"node of output 'y' \(If\): its condition depends on the data"):
        read(proto)
    body = helper.make_graph([], "body", [], [])
    with pytest.raises(ConvwrightError, match=r"\(Loop\): operators that run a subgraph are not supported"):
        read(model([node("Loop", "_ _ x", "y", body=body)], X))
    with pytest.raises(ConvwrightError, match="opset 6"):
        read(model([node("Relu", "x", "y")], X, opset=6))
    proto = model([node("Relu", "x", "y")], X)
    proto.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(proto.graph.input[0].type))
    with pytest.raises(ConvwrightError, match="'x' is not a tensor"):
        read(proto)


def test_subgraphs_nested_without_end() -> None:
    graph = helper.make_graph([node("Relu", "x", "y")], "inner", [], [helper.make_empty_tensor_value_info("y")])
    for _ in range(25):
        inner = node("If", "c", "y", then_branch=graph, else_branch=graph.__class__())
        graph = helper.make_graph([inner], "outer", [], [helper.make_empty_tensor_value_info("y")])
    proto = model([node("If", "c", "y", then_branch=graph)], X)
    with pytest.raises(ConvwrightError, match="nested"):
        read(proto)


@pytest.mark.parametrize("large", [LARGE, 32])
def test_damaged_files_raise_nothing_but_the_one_error(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LARGE", large)
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c bn_0 bn_1 bn_2 bn_3", "n"),
        node("Constant", "", "s", value=numpy_helper.from_array(np.array([2, 3, 2, 8, 8]))),
        node("Reshape", "n s", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]),
        node("Clip", "t lo", "y"),
    ]
    constants = norm_parameters(6) | {"w": weights(6, 6, 3, 3), "b": weights(6), "lo": scalar(0)}
    whole = model(nodes, X, constants).SerializeToString()
    # Most of the bytes are weights; leave them out of the damage, they cannot break anything.
    head = np.frombuffer(whole, np.uint8)
    start = whole.index(weights(6, 6, 3, 3).tobytes())
    places = np.r_[0:start, start + 864 : head.size]
    rng = np.random.default_rng(5)
    messages = []
    for trial in range(1500):
        damaged = head.copy()
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(head.size)]
        elif trial % 3 == 1:
            damaged[rng.choice(places)] ^= np.uint8(1 << rng.integers(8))
        else:
            damaged[rng.choice(places, 4)] = rng.integers(0, 256, 4)
        try:
            graph = load(damaged.tobytes())
            infer(simplify(graph), dict.fromkeys(graph.inputs, (2, 6, 8, 8)))
            messages.append("")
        except ConvwrightError as error:
            messages.append(str(error))
    assert all(message.isprintable() for message in messages)
    assert 50 < messages.count("") < 1450
