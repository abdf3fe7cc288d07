"""Receptive fields: published values, and what perturbing the input of the float64 reference shows."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx.reference import ReferenceEvaluator

from convwright import reference
from convwright.cli import main
from convwright.cost.receptive_field import Walk, receptive_field, receptive_fields
from convwright.errors import ConvwrightError
from convwright.graph import Graph, Node, ValueInfo, infer
from convwright.graph.onnx_writer import model_proto
from convwright.spec import ConvSpec, DeformableSpec, HetSpec, MixSpec, SeparableSpec, SpatialSpec

from . import slim_networks
from .perturbation import RandomGraph, influence


@pytest.mark.parametrize(
    ("network", "size", "stride", "padding"),
    [
        ("alexnet_v2", 195, 32, 64),
        ("vgg_16", 212, 32, 90),
        ("mobilenet_v1", 315, 32, 126),
        ("resnet_v1_50", 483, 32, 239),
        ("inception_v2", 699, 32, 318),
        ("inception_v3", 1311, 32, 618),
    ],
)
def test_published_fields_of_slim_networks(network: str, size: int, stride: int, padding: int) -> None:
    """The table beside Araujo et al. 2019, at its input size of 224: "SAME" pads less there than at odd sizes."""
    graph = getattr(slim_networks, network)(224)
    field = receptive_fields(graph)[graph.outputs[0]]
    assert (field.size, field.stride, field.padding) == ((size,) * 2, (stride,) * 2, (padding,) * 2)
    assert field.local is None


@pytest.mark.parametrize(
    ("network", "padding"),
    [
        ("alexnet_v2", 64),
        ("vgg_16", 90),
        ("mobilenet_v1", 157),
        ("resnet_v1_50", 241),
        ("inception_v2", 349),
        ("inception_v3", 618),
    ],
)
def test_padding_where_same_meets_an_odd_size(network: str, padding: int) -> None:
    """The same table at 321."""
    graph = getattr(slim_networks, network)(321)
    assert receptive_fields(graph)[graph.outputs[0]].padding == (padding, padding)


def _measured(table: np.ndarray, place: int | None) -> list[tuple[int, int] | None]:
    """First and last input that each index along the value's axis `place` is seen to depend on."""
    others = tuple(axis for axis in range(1, table.ndim) if axis + 1 != place)
    seen = np.asarray(table.any(axis=others))
    if place is None:
        seen = seen[:, None]
    hits = [np.flatnonzero(column) for column in seen.T]
    return [(int(hit[0]), int(hit[-1])) if hit.size else None for hit in hits]


def agrees_with_perturbation(graph: Graph, size: tuple[int, ...], axis: int) -> int:
    """Every output's inputs lie in the interval told, and of each phase one output attains both ends.

    Returns how many phases were found to attain theirs. Near the borders a path may lead through padding, whose own
    field lies inside the input but is not seen; so no single output is held to its ends.
    """
    shapes = {"x": (1, 2, *size)}
    fields = receptive_fields(graph, shapes)
    places = Walk(graph, infer(graph, shapes), "x").seen
    resized = any(node.op == "Resize" for node in graph.nodes)
    attained = 0
    for name, table in influence(graph, size, axis).items():
        if not table.any():
            assert 0 in fields[name].size, name
            continue
        field, place = fields[name].axes[axis], places[name].axes[axis].place
        if field.stride == 0:
            place = None
        told = field.reach
        found = _measured(table, place)
        intervals = [told.at(index) for index in range(len(found))]
        for index, (seen, interval) in enumerate(zip(found, intervals, strict=True)):
            if seen is not None:
                assert interval is not None, (name, index, seen)
                if resized and (interval[0] < 0 or interval[1] >= size[axis]):
                    continue  # resizing repeats the border
                assert interval[0] <= seen[0] <= seen[1] <= interval[1], (name, index, seen, interval)
        if not told.exact:
            continue
        period = len(told.ends)
        for phase in range(min(period, len(found))):
            inside = [
                (seen, interval)
                for seen, interval in list(zip(found, intervals, strict=True))[phase::period]
                if interval is not None and interval[0] >= 0 and interval[1] < size[axis]
            ]
            if len(inside) > 3:
                assert any(seen == interval for seen, interval in inside), (name, phase, inside)
                attained += 1
    return attained


OPERATORS = "conv conv same_conv transposed pool residual branches resize slice pad swap"


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fields_are_what_perturbing_the_input_shows(rank: int) -> None:
    attained = 0
    for seed in range({1: 60, 2: 20, 3: 6}[rank]):
        attained += _random_agreement(seed, rank)
    assert attained > {1: 250, 2: 150, 3: 30}[rank]


@pytest.mark.long
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fields_of_many_networks(rank: int) -> None:
    for seed in range(1000, {1: 1600, 2: 1250, 3: 1080}[rank]):
        _random_agreement(seed, rank)


def _random_agreement(seed: int, rank: int) -> int:
    rng = np.random.default_rng([seed, rank])
    size = {1: (97,), 2: (47, 53), 3: (19, 23, 17)}[rank]
    graph = RandomGraph(rng, size).grow(int(rng.integers(1, 5)), OPERATORS)
    try:
        infer(graph, {"x": (1, 2, *size)})
    except ConvwrightError:  # too small for the next window
        return 0
    return sum(agrees_with_perturbation(graph, size, axis) for axis in range(rank))


def graph_of(nodes: list[Node], size: tuple[int, ...], constants: dict[str, np.ndarray] | None = None) -> Graph:
    info = ValueInfo(np.dtype(np.float32), (1, 2, *size))
    return Graph("test", {"x": info}, [nodes[-1].outputs[0]], nodes, constants or {}, 18)


def conv_node(x: str, y: str, weight: str = "w", **attributes: object) -> Node:
    return Node("Conv", [x, weight], [y], dict(attributes), f"conv_{y}")


W3 = {"w": np.ones((2, 2, 3, 3), np.float32), "w2": np.ones((2, 2, 2, 2), np.float32)}


def test_a_gate_is_told_apart_from_the_local_field() -> None:
    nodes = [
        conv_node("x", "a", strides=(2, 2), pads=(1, 1, 1, 1)),
        Node("GlobalAveragePool", ["a"], ["p"], name="squeeze"),
        Node("Sigmoid", ["p"], ["s"]),
        Node("Mul", ["a", "s"], ["m"]),
        conv_node("m", "y", pads=(1, 1, 1, 1)),
    ]
    fields = receptive_fields(graph_of(nodes, (20, 31), W3))
    assert (fields["p"].size, fields["p"].stride, fields["p"].padding) == ((20, 31), (0, 0), (0, 0))
    assert fields["p"].local is None
    field = fields["y"]
    assert (field.size, field.stride, field.centre) == ((20, 31), (0, 0), (Fraction(19, 2), 15))
    assert field.local is not None
    assert [(one.size, one.stride, one.padding) for one in field.local] == [(7, 2, 3)] * 2
    (remark,) = field.remarks
    assert remark.startswith("sees the whole extent through node 'squeeze' (GlobalAveragePool); without such paths")


def test_a_pool_over_a_part_sees_that_part() -> None:
    """Of input 11 a convolution of stride 4 and kernel 2 skips columns; pooling it misses the last three."""
    constants = {"w": np.ones((2, 2, 2, 2), np.float32)}
    nodes = [conv_node("x", "a", strides=(4, 4)), Node("GlobalMaxPool", ["a"], ["y"])]
    assert receptive_fields(graph_of(nodes, (11, 11), constants))["y"].axes[0].interval(0) == (0, 9)


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
def test_fully_connected_layers_see_everything(flatten: str) -> None:
    constants = W3 | {"f": np.ones((2 * 4 * 4, 5), np.float32), "t": np.array([1, -1])}
    nodes = [
        conv_node("x", "a", strides=(2, 2), pads=(1, 1, 1, 1)),
        Node(flatten, ["a", "t"] if flatten == "Reshape" else ["a"], ["b"]),
        Node("Gemm", ["b", "f"], ["y"]),
    ]
    field = receptive_fields(graph_of(nodes, (8, 8), constants))["y"]
    assert (field.size, field.stride, field.padding) == ((8, 8), (0, 0), (0, 0))


def test_axes_are_followed_through_reshapes_and_transposes() -> None:
    """A channel shuffle written out, and an input with its channels last."""
    constants = W3 | {"apart": np.array([0, 2, 1, 16, 12]), "back": np.array([0, 2, 16, 12])}
    nodes = [
        Node("Transpose", ["x"], ["t"], {"perm": (0, 3, 1, 2)}),
        conv_node("t", "a", strides=(1, 2), pads=(1, 1, 1, 1)),
        Node("Reshape", ["a", "apart"], ["b"]),
        Node("Transpose", ["b"], ["c"], {"perm": (0, 2, 1, 3, 4)}),
        Node("Reshape", ["c", "back"], ["y"]),
    ]
    info = ValueInfo(np.dtype(np.float32), (1, 16, 24, 2))
    field = receptive_fields(Graph("nhwc", {"x": info}, ["y"], nodes, constants, 18))["y"]
    assert (field.size, field.stride) == ((3, 3), (1, 2))


def test_paths_of_different_strides_are_told() -> None:
    """One path halves twice and doubles once, the other crops: the sizes meet, the strides do not."""
    constants = W3 | {"to": np.array([0, 0]), "end": np.array([4, 4]), "axes": np.array([2, 3])}
    nodes = [
        conv_node("x", "a", strides=(2, 2), pads=(1, 1, 1, 1)),
        Node("Slice", ["x", "to", "end", "axes"], ["b"]),
        Node("Add", ["a", "b"], ["j"], name="meet"),
        conv_node("j", "y"),
    ]
    fields = receptive_fields(graph_of(nodes, (8, 8), constants))
    assert fields["a"].disagreements == ()
    told = "node 'meet' (Add): on axis 0 its paths have different strides, 2 and 1"
    assert fields["y"].disagreements[0] == told
    # Output i of the one path sees 2 i - 1 to 2 i + 1, of the other i; at i = 3 they reach from 3 to 7.
    low, high = fields["j"].axes[0].interval(3) or (0, 0)
    assert low <= 3
    assert high >= 7
    assert "may be larger" in " ".join(fields["j"].remarks)


def test_paths_of_different_centres_are_told() -> None:
    nodes = [
        conv_node("x", "a", auto_pad="SAME_UPPER"),
        conv_node("x", "b", "w2", auto_pad="SAME_UPPER"),
        Node("Concat", ["a", "b"], ["y"], {"axis": 1}, "meet"),
    ]
    field = receptive_fields(graph_of(nodes, (8, 8), W3))["y"]
    assert field.size == (3, 3)
    assert field.disagreements[0] == (
        "node 'meet' (Concat): on axis 0 its paths have different centres, 0 and 0.5 at output 0 (stride 1)"
    )


def test_deformable_convolutions_are_told_by_their_undeformed_kernel() -> None:
    constants = {"w": np.ones((2, 2, 3, 3), np.float32), "o": np.ones((18, 2, 5, 5), np.float32)}
    nodes = [
        conv_node("x", "offsets", "o", pads=(2, 2, 2, 2)),
        Node("DeformConv", ["x", "w", "offsets"], ["y"], {"pads": (1, 1, 1, 1)}, "bent"),
    ]
    field = receptive_fields(graph_of(nodes, (9, 9), constants))["y"]
    assert field.size == (5, 5)  # that of the offsets, which are larger than the kernel here
    assert "node 'bent' (DeformConv): learned offsets move its taps without bound" in field.remarks[0]


def test_an_unknown_operator_is_assumed_to_read_all() -> None:
    nodes = [conv_node("x", "a"), Node("Einsum", ["a"], ["y"], {"equation": "nchw->nchw"}, "mix")]
    field = receptive_fields(graph_of(nodes, (9, 7), W3))["y"]
    assert field.size == (9, 7)
    assert field.remarks == ("node 'mix' (Einsum): what it reads is not known; the whole input is assumed",)


def test_several_inputs() -> None:
    info = ValueInfo(np.dtype(np.float32), (1, 2, 8, 8))
    nodes = [conv_node("b", "c", pads=(1, 1, 1, 1)), Node("Add", ["a", "c"], ["y"])]
    graph = Graph("two", {"a": info, "b": info}, ["y"], nodes, W3, 18)
    fields = receptive_fields(graph)
    assert (fields["y"].input, fields["y"].size) == ("a", (1, 1))
    assert fields["y"].remarks == ("depends on input 'b' too; the field is that on 'a'",)
    assert fields["c"].input == "b"
    assert receptive_fields(graph, input="b")["y"].size == (3, 3)
    with pytest.raises(ConvwrightError, match="no input 'c' with spatial axes; those of the graph are \\['a', 'b'\\]"):
        receptive_fields(graph, input="c")


def test_shape_arithmetic_is_no_path() -> None:
    """A resize to the size of another tensor does not depend on that tensor."""
    constants = W3 | {"nc": np.array([1, 2])}
    nodes = [
        Node("GlobalAveragePool", ["x"], ["p"]),
        Node("Shape", ["x"], ["s"], {"start": 2}),
        Node("Concat", ["nc", "s"], ["sizes"], {"axis": 0}),
        conv_node("x", "a", strides=(2, 2), pads=(1, 1, 1, 1)),
        Node("Resize", ["a", "", "", "sizes"], ["y"], {"mode": "nearest"}),
    ]
    field = receptive_fields(graph_of(nodes, (8, 8), constants))["y"]
    assert (field.size, field.stride, field.local) == ((3, 3), (1, 1), None)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("place", ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("count", [9, 20, 35, 40])
def test_resizes(mode: str, place: str, count: int) -> None:
    """Against onnx.reference: no output away from the borders sees more, and none of the extremes is made up."""
    nodes = [
        Node("Resize", ["x", "", "", "to"], ["y"], {"mode": mode, "coordinate_transformation_mode": place}, "resize")
    ]
    graph = graph_of(nodes, (20,), {"to": np.array([1, 2, count])})
    field = receptive_fields(graph)["y"].axes[0]
    eye = np.stack([np.eye(20, dtype=np.float32)] * 2, axis=1)
    session = ReferenceEvaluator(model_proto(graph))
    results = np.concatenate([session.run(None, {"x": row[None]})[0] for row in eye])
    found = _measured(np.abs(results).max(axis=1) > 1e-6, 2)
    exact = 0
    for index, seen in enumerate(found):
        low, high = field.interval(index) or (1, 0)
        if low >= 0 and high < 20:
            assert seen is not None
            assert low <= seen[0] <= seen[1] <= high, index
            exact += (low, high) == seen
    assert exact >= (1 if field.reach.exact else 0)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_a_transposed_spec_sees_what_its_definition_reads(kernel: int, dilation: int, stride: int) -> None:
    """Every phase, with padding that differs at the two ends, against the float64 reference."""
    span = dilation * (kernel - 1) + 1
    padding = [(span // 2, span // 3)]
    spec = ConvSpec(1, 1, (kernel,), stride=stride, dilation=dilation, padding=padding, transposed=True, bias=False)
    field = receptive_field(spec).axes[0]
    found = _measured(reference.conv(np.eye(30)[:, None], np.ones((1, 1, kernel)), None, spec)[:, 0] != 0, 2)
    middle = range(len(found) // 2 - stride, len(found) // 2 + stride)
    assert [field.interval(index) for index in middle] == [found[index] for index in middle]
    assert max(high - low + 1 for low, high in (found[index] or (0, -1) for index in middle)) == field.size
    assert spec.receptive_field == (field.size,)


def test_chains_of_specs() -> None:
    three = ConvSpec(4, 4, (3, 3), padding=1)
    assert receptive_field([three, three]).size == receptive_field(ConvSpec(4, 4, (5, 5))).size == (5, 5)
    assert receptive_field([three] * 3).size == (7, 7)
    assert receptive_field(SpatialSpec(ConvSpec(4, 4, (7, 5)))).size == (7, 5)
    assert receptive_field(SeparableSpec(ConvSpec(4, 4, (3, 3), stride=2))).stride == (2, 2)
    assert receptive_field(MixSpec(8, (3, 5, 9))).size == (9, 9)
    assert receptive_field(HetSpec(three, 2)).padding == (1, 1)
    assert "offsets" in receptive_field(DeformableSpec(three)).remarks[0]
    strided = ConvSpec(4, 4, (3, 3), stride=2, padding="same")
    assert [receptive_field([strided, strided], (size, 7)).padding for size in (8, 9)] == [(0, 1), (3, 1)]
    with pytest.raises(ConvwrightError, match="depends on the input size"):
        receptive_field(strided)
    with pytest.raises(ConvwrightError, match="specs over 2 and 1 spatial axes"):
        receptive_field([three, ConvSpec(1, 1, (3,))])
    with pytest.raises(ConvwrightError, match="needs a spec"):
        receptive_field([])


def test_a_graph_without_space_or_sizes_is_refused() -> None:
    nodes = [Node("Relu", ["x"], ["y"])]
    flat = Graph("flat", {"x": ValueInfo(np.dtype(np.float32), (1, 2))}, ["y"], nodes, {}, 18)
    with pytest.raises(ConvwrightError, match="no input of graph 'flat' has spatial axes"):
        receptive_fields(flat)
    unknown = Graph("open", {"x": ValueInfo(np.dtype(np.float32), (1, 2, "H", 8))}, ["y"], nodes, {}, 18)
    with pytest.raises(ConvwrightError, match="leaves sizes open: give shapes"):
        receptive_fields(unknown)
    assert receptive_fields(unknown, {"x": (1, 2, 8, 8)})["y"].size == (1, 1)


def test_fields_of_a_long_network_are_quick() -> None:
    """150 layers, so that a table of costs can show them."""
    graph = slim_networks.inception_v3(299)
    inferred = infer(graph)
    start = time.perf_counter()
    receptive_fields(graph, inferred=inferred)
    assert time.perf_counter() - start < 1.0


def test_an_open_batch_is_1() -> None:
    info = ValueInfo(np.dtype(np.float32), ("N", 2, 12, 9))
    graph = graph_of([conv_node("x", "y", strides=(2, 1))], (12, 9), W3)
    closed = receptive_fields(graph)["y"]
    graph.inputs["x"] = info
    assert receptive_fields(graph)["y"] == closed
    graph.inputs["x"] = ValueInfo(np.dtype(np.float32), ("N", 2, "H", 9))
    with pytest.raises(ConvwrightError, match="leaves sizes open"):
        receptive_fields(graph)
    assert receptive_fields(graph, {"x": (1, 2, 12, 9)})["y"] == closed


def test_the_command_shows_fields_and_what_limits_them(tmp_path: Path) -> None:
    nodes = [
        conv_node("x", "a", strides=(2, 2), pads=(1, 1, 1, 1)),
        Node("Relu", ["a"], ["r"], {}, "relu"),
        conv_node("r", "b", "w2", auto_pad="SAME_UPPER"),
        Node("Add", ["r", "b"], ["y"], {}, "meet"),
    ]
    path = str(tmp_path / "net.onnx")
    graph_of(nodes, (12, 9), W3).save(path)
    run = CliRunner().invoke
    shown = run(main, ["receptive-field", path])
    assert shown.exit_code == 0
    assert "conv_a" in shown.output
    assert "relu" not in shown.output  # sees what its input sees
    assert "node 'meet' (Add): on axis 0 its paths have different centres, 0 and 1 at output 0" in shown.output
    assert "relu" in run(main, ["receptive-field", path, "--all"]).output
    told = json.loads(run(main, ["receptive-field", path, "--layer", "conv_b", "--json"]).output)
    assert [row["output"] for row in told] == ["b"]
    assert told[0]["axes"][0] == {"size": 5, "stride": 2, "padding": 1, "centre": 1}
    gated = [nodes[0], Node("GlobalAveragePool", ["a"], ["p"]), Node("Mul", ["a", "p"], ["m"]), conv_node("m", "c")]
    graph_of(gated, (12, 9), W3).save(path_of_gate := str(tmp_path / "gate.onnx"))
    (row,) = [line for line in run(main, ["receptive-field", path_of_gate]).output.splitlines() if "conv_c" in line]
    assert "12 x 9" in row
    assert "7 x 7" in row  # without the gate
    wrong = run(main, ["receptive-field", path, "--layer", "conv_c"])
    assert wrong.exit_code == 2
    assert "no layer 'conv_c' depends on the input; did you mean 'conv_b' or 'conv_a'?" in wrong.stderr
