"""Racing runtimes: what is measured, and what happens to one that cannot take part."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from convwright.cli import peers
from convwright.cli import race as race_module
from convwright.cli.peers import PEERS, Peer
from convwright.cli.race import Entry, compete, deviation, race, run_once
from convwright.cli.worker import memory, settle
from convwright.cli.workers import Lost, Workers
from convwright.torch.evaluate import Evaluator


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A small network of the operators that matter; its file fixes the shape 1 x 3 x 12 x 12."""
    rng = np.random.default_rng(1)
    constants = {
        "w1": rng.standard_normal((8, 3, 3, 3)),
        "b1": rng.standard_normal(8),
        "scale": rng.uniform(0.5, 1.5, 8),
        "shift": rng.standard_normal(8),
        "mean": rng.standard_normal(8),
        "variance": rng.uniform(0.5, 1.5, 8),
        "w2": rng.standard_normal((8, 1, 3, 3)),
        "fc": rng.standard_normal((5, 8)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["d"], group=8, auto_pad="SAME_UPPER"),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("MaxPool", ["e"], ["f"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["f"], ["g"], kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Softsign", ["g"], ["h"]),
        helper.make_node("GlobalAveragePool", ["h"], ["i"]),
        helper.make_node("Flatten", ["i"], ["j"]),
        helper.make_node("Gemm", ["j", "fc"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_evaluator_agrees_with_the_reference(network: str) -> None:
    x = values(1, 3, 12, 12)
    y = Evaluator(network)({"x": x})["y"]
    assert y.dtype == np.float64
    (expected,) = ReferenceEvaluator(onnx.load(network)).run(None, {"x": x})
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_evaluator_in_float32(network: str) -> None:
    x = values(1, 3, 12, 12)
    y = Evaluator(network, dtype=torch.float32, channels_last=True)({"x": x})["y"]
    assert y.dtype == np.float32
    assert deviation([y], [Evaluator(network)({"x": x})["y"]]) < 1e-5


def test_float64_without_torch(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    x = values(1, 3, 12, 12)
    y = peers.FLOAT64.open(network, {"x": x.shape}, 1)({"x": x})["y"]
    assert y.dtype == np.float64
    assert deviation([y], [Evaluator(network)({"x": x})["y"]]) < 1e-9


def test_runtimes_take_turns(network: str) -> None:
    told: list[str] = []
    names = ["onnxruntime", "torch"]
    rows = race(
        network, {"x": values(1, 3, 12, 12)}, names, threads=1, seconds=0, report=lambda what, _: told.append(what)
    )
    assert [row.peer for row in rows] == names
    for row in rows:
        assert row.reason is None
        assert len(row.turns) == 3
        assert row.median_s is not None
        assert 0 < row.median_s < 1
        assert row.first_s is not None
        assert row.error is not None
        assert row.error < 1e-5
        assert row.peak is not None
        assert row.beyond is not None
        assert 0 < row.beyond < row.peak
        assert row.ratio is None  # convwright was not in the race
    turns = [what for what in told if what.startswith("timing")]
    assert turns == [
        f"timing {name}" for name in ("onnxruntime", "torch", "torch", "onnxruntime", "onnxruntime", "torch")
    ]


def test_another_shape_than_the_file_fixes(network: str) -> None:
    x = {"x": values(3, 3, 15, 13)}
    _, truth = run_once("float64", network, x, threads=1)
    _, found = run_once("onnxruntime", network, x, threads=1)
    assert truth[0].shape == (3, 5)
    assert deviation(found, truth) < 1e-5


def test_a_runtime_that_fails_has_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a model")
    (row,) = race(str(path), {"x": values(1, 3)}, ["onnxruntime"], threads=1, seconds=0)
    assert row.median_s is None
    assert row.reason
    assert "\n" not in row.reason
    with pytest.raises(Lost):
        race(str(path), {"x": values(1, 3)}, ["onnxruntime"], threads=1, seconds=0, required=["onnxruntime"])


def test_a_runtime_that_is_not_installed() -> None:
    assert Peer(("convwright_no_such_module",), "none", PEERS["torch"].open).why_not() == (
        "not installed: convwright_no_such_module"
    )


def test_deviation_of_differing_outputs() -> None:
    one = [np.ones((1, 3))]
    assert np.isnan(deviation(one, [np.ones((1, 4))]))
    assert np.isnan(deviation(one, []))
    assert deviation([np.ones((3, 1, 1))], one) == 0
    assert np.isnan(deviation([np.array([[np.nan, 1, 1]])], one))


def test_an_idle_process_has_settled() -> None:
    assert settle(limit=5.0) < 0.1
    assert 0 < memory("VmRSS") <= memory("VmHWM")


def test_entries_may_have_models_of_their_own(network: str, tmp_path: Path) -> None:
    """Processes stay between races, a slow one is lost, and a model in another form is compared with its truth."""
    other = onnx.load(network)
    other.graph.initializer[-1].CopyFrom(numpy_helper.from_array(values(5, 8), "fc"))
    path = str(tmp_path / "other.onnx")
    onnx.save(other, path)
    x = {"x": values(1, 3, 12, 12)}
    with Workers(1) as workers:
        entries = [Entry("one", "onnxruntime", network, x), Entry("two", "onnxruntime", path, x)]
        entries.append(Entry("wrong", "onnxruntime", path, x, truth=network))
        errors = {row.peer: row.error or 0.0 for row in compete(entries, workers, seconds=0, turn=0.01, keep=True)}
        kept = workers.get("one", "onnxruntime").process.pid
        assert 0 < errors["one"] < 1e-5
        assert 0 < errors["two"] < 1e-5
        assert errors["wrong"] > 0.1
        (row,) = compete([Entry("one", "onnxruntime", path, x)], workers, seconds=0, keep=True, compare=False)
        assert row.reason is None
        assert workers.get("one", "onnxruntime").process.pid == kept
        (row,) = compete([Entry("one", "onnxruntime", path, x)], workers, seconds=0, patience=1e-6)
        assert row.reason == "no answer within 1e-06 s"  # its process was ended
        (row,) = compete([Entry("one", "onnxruntime", path, x)], workers, seconds=0, compare=False)
        assert row.reason is None  # a new process
        assert workers.get("one", "onnxruntime").process.pid != kept


def test_threads_of_one_entry_and_delays_of_another(network: str) -> None:
    x = {"x": values(1, 3, 12, 12)}
    entries = [Entry("convwright", "onnxruntime", network, x), Entry("two", "convwright", network, x, threads=2)]
    with Workers(1) as workers:
        one, two = compete(entries, workers, seconds=0, turn=0.01, steady=["two"], keep=True, compare=False)
        environments = [
            Path(f"/proc/{workers.get(name, peer).process.pid}/environ").read_bytes().split(b"\0")
            for name, peer in (("convwright", "onnxruntime"), ("two", "convwright"))
        ]
    assert (one.spread, one.runs) == (None, 0)
    assert two.runs >= 200
    assert two.spread is not None
    assert two.spread >= 1
    assert one.median_s is not None
    assert one.p99_s is not None
    assert one.p99_s >= one.median_s
    assert two.resident is not None
    assert two.resident > 0
    assert b"OMP_NUM_THREADS=1" in environments[0]
    assert b"OMP_NUM_THREADS=2" in environments[1]


@pytest.mark.parametrize(("peer", "modules"), [("ncnn", ("ncnn", "pnnx")), ("mnn", ("MNN",))])
def test_runtimes_with_formats_of_their_own(peer: str, modules: tuple[str, ...], tmp_path: Path) -> None:
    """They open ONNX files and what they have made of one before, and say when they cannot make anything of a file."""
    for module in modules:
        pytest.importorskip(module)
    path = str(tmp_path / "plain.onnx")
    weight = numpy_helper.from_array(values(8, 3, 3, 3), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["a"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 12, 12])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    x = {"x": values(1, 3, 12, 12)}
    shape = x["x"].shape
    made = peers.ncnn_file(path, shape, tmp_path) if peer == "ncnn" else peers.mnn_file(path, tmp_path)
    _, truth = run_once("float64", path, x, threads=1)
    for file in path, str(made):
        _, found = run_once(peer, file, x, threads=1)
        assert deviation(found, truth) < 1e-5
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(Lost, match="cannot convert the model"):
        run_once(peer, str(broken), x, threads=1)


def test_deviation_of_small_integers() -> None:
    assert deviation([np.array([254], np.uint8)], [np.array([255], np.uint8)]) == 1 / 255


def test_rounds_on_a_machine_that_is_not_calm_are_repeated(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "CALM_SECONDS", 0.0)
    x = {"x": values(1, 3, 12, 12)}
    entries = [Entry("one", "onnxruntime", network, x), Entry("two", "onnxruntime", network, x)]
    # Before and after each turn; the second turn of the first round is disturbed.
    answers = iter([True, True, False, True])
    with Workers(1) as workers:
        rows = compete(entries, workers, seconds=0, turn=0.01, compare=False, calm=lambda: next(answers, True))
        assert [(len(row.turns), row.disturbed) for row in rows] == [(3, 0), (3, 0)]
        never = compete(entries, workers, seconds=0, turn=0.01, compare=False, calm=lambda: False)
        assert [(len(row.turns), row.disturbed) for row in never] == [(3, 3), (3, 3)]
