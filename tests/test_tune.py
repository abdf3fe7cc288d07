"""Choices by measurement: they follow what is measured, are stored and read again, whatever becomes of the store."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import convwright as cw
from convwright import reference
from convwright.cli import main
from convwright.codegen.target import target_named
from convwright.graph import Graph, Node, ValueInfo
from convwright.model import timing, tune
from convwright.model.lower import conv, fft, winograd
from convwright.model.lower.ways import name_of
from convwright.model.problem import Problem
from convwright.runtime import store
from convwright.spec import ConvSpec


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "measured.sqlite"
    monkeypatch.setattr(store, "store_path", lambda: path)
    return path


class Timer:
    """Stands in for measuring: what is asked for, and which way is to be the fastest."""

    def __init__(self) -> None:
        self.asked: list[tuple[Problem, list[str]]] = []
        self.asked_cuts: list[list[str]] = []
        self.fastest: Callable[[Sequence[str]], str] = lambda names: names[0]
        self.fastest_cut: Callable[[Sequence[str]], str] = lambda names: names[0]

    def __call__(self, b: Any, layer: Any, p: Problem, names: Sequence[str]) -> dict[str, float]:
        self.asked.append((p, list(names)))
        return self._seconds(names, self.fastest(names))

    def of_strips(self, b: Any, run: Any, cuts: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        self.asked_cuts.append(list(cuts))
        return self._seconds(list(cuts), self.fastest_cut(list(cuts)))

    def _seconds(self, names: Sequence[str], best: str) -> dict[str, float]:
        return {name: 1e-4 if name == best else 2e-4 + 1e-5 * place for place, name in enumerate(names)}


@pytest.fixture
def timer() -> Iterator[Timer]:
    timer = Timer()
    with patch.multiple(tune, measured=timer, measured_strips=timer.of_strips):
        yield timer


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(
    spec: ConvSpec, size: tuple[int, ...], residual: bool = False, shuffle: int = 0, inside: bool = True
) -> tuple[Graph, NDArray[np.float64]]:
    """A convolution between two halvings, or alone, and what it gives of `normal(0, ...)` in float64."""
    x, weight, bias = normal(0, 1, spec.in_channels, *size), normal(1, *spec.weight_shape), normal(2, spec.out_channels)
    weight /= np.float32(np.sqrt(np.prod(weight.shape[1:])))
    constants = {"w": weight, "b": bias}
    nodes = [Node("Convolution", ["in", "w", "b"], ["c"], {"spec": spec}, "conv", "convwright")]
    expected = x.astype(np.float64)

    def halve(source: str, target: str, channels: int) -> None:
        constants[f"{target} w"] = np.full((channels, 1, *(1,) * len(size)), 0.5, np.float32)
        inputs = [source, f"{target} w"]
        nodes.append(Node("Conv", inputs, [target], {"group": channels, "algorithm": "direct"}, target))

    if inside:
        nodes = []
        halve("x", "in", spec.in_channels)
        nodes.append(Node("Convolution", ["in", "w", "b"], ["c"], {"spec": spec}, "conv", "convwright"))
        expected = expected / 2
    else:
        nodes[0].inputs[0] = "x"
    before = expected
    expected = reference.conv(expected, weight, bias, spec)
    name = "c"
    if residual:
        nodes[-1].op, nodes[-1].domain = "Conv", ""
        nodes[-1].attributes = {"pads": [low for low, _ in spec.pads(size)] + [high for _, high in spec.pads(size)]}
        nodes.append(Node("Add", ["c", "in"], ["sum"]))
        name, expected = "sum", expected + before
    if shuffle:
        nodes.append(Node("ChannelShuffle", [name], ["mixed"], {"groups": shuffle}, domain="convwright"))
        shape = expected.shape
        expected = expected.reshape(1, shuffle, -1, *shape[2:]).swapaxes(1, 2).reshape(shape)
        name = "mixed"
    if inside:
        halve(name, "y", spec.out_channels)
        name, expected = "y", expected / 2
    graph = Graph("network", {"x": ValueInfo(x.dtype, x.shape)}, [name], nodes, constants)
    return graph, expected


DENSE = ConvSpec(32, 48, (3, 3), padding=1), (28, 30)
NETWORKS: dict[str, Any] = {
    "dense": DENSE,
    "alone": (*DENSE, False, 0, False),
    "residual": (ConvSpec(32, 32, (3, 3), padding=1), (14, 15), True),
    "shuffled": (ConvSpec(32, 32, (1, 1), groups=2), (14, 13), False, 2),
    "1x1 of one channel": (ConvSpec(1, 17, (1, 1)), (9, 11)),
    "depthwise": (ConvSpec(33, 33, (3, 3), padding=1, groups=33), (14, 9)),
    "strided": (ConvSpec(31, 33, (3, 3), padding=1, stride=2), (15, 17)),
    "1-D": (ConvSpec(32, 16, (7,), padding=3), (65,)),
    "3-D": (ConvSpec(8, 16, (3, 3, 3), padding=1), (6, 7, 9)),
    "transposed": (ConvSpec(16, 24, (4, 4), padding=1, stride=2, transposed=True), (9, 8)),
    "circular": (ConvSpec(8, 8, (3, 3), padding=1, padding_mode="circular"), (9, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_measured_to_be_fastest_is_taken_and_right(timer: Timer, name: str) -> None:
    graph, expected = network(*NETWORKS[name])
    cw.compile(graph.copy(), threads=2, tune=True)
    kernel = NETWORKS[name][0].kernel
    names = next((names for p, names in timer.asked if p.spec.kernel == kernel), ["the only one"])
    kernels = set()
    for number, way in enumerate(names):

        def fastest(among: Sequence[str], way: str = way) -> str:
            return way if way in among else among[0]

        timer.fastest = fastest
        with (
            patch.object(store, "store_path", lambda: None),
            cw.compile(graph.copy(), threads=2, tune=True, strips=False) as model,
        ):
            y = model(normal(0, 1, NETWORKS[name][0].in_channels, *NETWORKS[name][1]))
            assert np.abs(y - expected).max() <= 1.2e-5 * np.abs(expected).max(), way
            steps = [step for step in model.explain(runs=1).steps if step.layer == "conv" and step.macs]
        if len(names) > 1:
            second, ratio = (names[1], 2.1) if number == 0 else (names[0], 2.0)
            assert {step.runner_up for step in steps} == {f"{second} {ratio:.2f}x measured"}
            assert any("winograd" in step.kernel for step in steps) == way.startswith("winograd"), way
        kernels.add(tuple(step.kernel for step in steps))
    assert len(kernels) == len(names)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_way_can_be_timed_alone(name: str) -> None:
    graph, _ = network(*NETWORKS[name])
    told: list[tuple[str, float]] = []
    with (
        patch.multiple(timing, SECONDS=0.0, LEAST_ROUNDS=1),
        cw.compile(graph, threads=1, tune=True, progress=lambda what, share: told.append((what, share))) as model,
    ):
        assert model._tuner is not None
        found: dict[Any, Any] = model._tuner._found
        alone = {parts[0][0]: seconds for parts, seconds in found.items() if len(parts) == 1}
        assert any(p.spec.kernel == NETWORKS[name][0].kernel for p in alone)
        for p, seconds in alone.items():
            assert list(seconds) == tune.candidates(p)
            assert len(seconds) == 1 or all(1e-8 < taken < 1 for taken in seconds.values())
        for parts, seconds in found.items():
            assert all(sum(map(int, cut.split("+"))) == len(parts) for cut in seconds if len(parts) > 1)
    several = [seconds for seconds in found.values() if len(seconds) > 1]
    assert len([what for what, _ in told if what.startswith("timing")]) == len(several)
    assert all(0 <= share <= 1 for _, share in told)
    assert not told or told[-1] == ("tuned", 1.0)


def test_what_is_timed_is_the_layer_and_the_changes_of_layout_that_it_makes_necessary() -> None:
    graph, _ = network(*DENSE)
    shares: dict[str, list[str]] = {}
    whole = timing.Turn.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, b: Any) -> Any:
        turn = whole(cls, b)
        (wish,) = (layer.node.attributes["algorithm"] for layer in b.layers if layer.name == "conv")
        shares[wish] = [info.kernel for info in turn.program.infos[turn.first : turn.last]]
        return turn

    with patch.object(timing.Turn, "of", classmethod(of)), patch.multiple(tune, _NEAR=100.0, _MOST=12):
        cw.compile(graph, threads=1, tune=True)
    assert len(shares["direct-blocked"]) == 1
    assert {len(own) for name, own in shares.items() if name.startswith("winograd-")} == {1}
    assert shares["direct-planes"][0] == "unpack"
    assert shares["direct-planes"][-1] == "pack"
    assert len(shares["direct-planes"]) == 3


def chain() -> Graph:
    """Pointwise, depthwise, pointwise, with a residual, between two poolings."""
    constants = {
        "w0": normal(0, 64, 32, 1, 1), "w1": normal(1, 64, 1, 3, 3), "w2": normal(2, 32, 64, 1, 1),
    }  # fmt: skip
    pool = {"kernel_shape": (2, 2), "strides": (2, 2)}
    nodes = [
        Node("MaxPool", ["x"], ["a"], pool),
        Node("Conv", ["a", "w0"], ["b"], {}, "expand"),
        Node("Relu", ["b"], ["c"]),
        Node("Conv", ["c", "w1"], ["d"], {"group": 64, "pads": (1, 1, 1, 1)}, "depthwise"),
        Node("Relu", ["d"], ["e"]),
        Node("Conv", ["e", "w2"], ["f"], {}, "project"),
        Node("Add", ["f", "a"], ["g"]),
        Node("MaxPool", ["g"], ["y"], pool),
    ]
    return Graph("chain", {"x": ValueInfo(np.dtype(np.float32), (1, 32, 56, 56))}, ["y"], nodes, constants)


def strips_of(model: cw.Model) -> list[str]:
    return [step.kernel for step in model.profile(runs=1).steps if step.kernel.startswith("strips")]


def test_a_run_of_layers_is_cut_as_measured(timer: Timer) -> None:
    x = normal(9, 1, 32, 56, 56)
    with cw.compile(chain(), threads=1, strips=False, tune=True) as model:
        expected = model(x)
    assert timer.asked_cuts == []
    cw.compile(chain(), threads=1, tune=True)
    (cuts,) = timer.asked_cuts
    assert {"3", "1+1+1"} <= set(cuts)
    for way in cuts:

        def fastest(among: Sequence[str], way: str = way) -> str:
            return way

        timer.fastest_cut = fastest
        with patch.object(store, "store_path", lambda: None), cw.compile(chain(), threads=1, tune=True) as model:
            assert strips_of(model) == [f"strips of {length}" for length in way.split("+") if length != "1"]
            np.testing.assert_array_equal(model(x), expected)
            told = [step.runner_up for step in model.explain(runs=1).steps if step.kernel.startswith("strips")]
            assert all(text.endswith("x measured") and text.split()[0] in set(cuts) - {way} for text in told)
    with cw.compile(chain(), threads=1) as model:
        told = [step.runner_up for step in model.explain(runs=1).steps if step.kernel.startswith("strips")]
        assert all(text.startswith("1+1") and text.endswith("x estimated") for text in told)
    asked = len(timer.asked_cuts)
    cw.compile(chain(), threads=1, tune=True)  # the store has it
    assert len(timer.asked_cuts) == asked


def test_runs_are_timed_as_they_would_be_planned() -> None:
    shares: dict[tuple[str, ...], float] = {}
    whole = timing.Turn.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, b: Any) -> Any:
        turn = whole(cls, b)
        infos = turn.program.infos[turn.first : turn.last]
        kernels = tuple(info.kernel for info in infos if info.macs)
        shares[kernels] = sum(info.macs for info in infos)
        return turn

    # One round says little about times: the estimates' choices are taken, so that the run stays one.
    with (
        patch.object(timing.Turn, "of", classmethod(of)),
        patch.multiple(timing, SECONDS=0.0, LEAST_ROUNDS=1),
        patch.object(tune, "choice", lambda seconds: next(iter(seconds))),
    ):
        cw.compile(chain(), threads=2, tune=True)
    macs = 28 * 28 * (64 * 32 + 64 * 9 + 32 * 64)
    assert shares["strips of 3",] == macs
    ((apart, own),) = [(kernels, own) for kernels, own in shares.items() if len(kernels) == 3]
    assert own == macs
    assert "depthwise" in apart[1]


def test_strict_numerics_measures_sums_alone(timer: Timer) -> None:
    graph, _ = network(*DENSE)
    cw.compile(graph.copy(), tune=True, numerics="strict")
    cw.compile(graph, tune=True)
    strict, free = (names for p, names in timer.asked if p.spec.kernel == (3, 3))
    assert not any(name.startswith(("winograd", "fft")) for name in strict)
    assert any(name.startswith("winograd") for name in free)


def test_an_algorithm_that_is_asked_for_is_not_measured(timer: Timer) -> None:
    graph, _ = network(*DENSE)
    graph.nodes[1].attributes["algorithm"] = "direct"
    cw.compile(graph, tune=True)
    assert all(p.spec.kernel == (1, 1) for p, _ in timer.asked)


def test_nothing_is_measured_twice_and_the_choice_stays(timer: Timer) -> None:
    graph, _ = network(*DENSE)
    timer.fastest = lambda names: names[-1]
    with cw.compile(graph.copy(), threads=2, tune=True) as first:
        kernels = [step.kernel for step in first.profile(runs=1).steps]
    asked = len(timer.asked)
    assert asked > 0
    timer.fastest = lambda names: names[0]
    told: list[str] = []
    again = cw.compile(graph.copy(), threads=2, tune=True, progress=lambda what, share: told.append(what))
    assert [step.kernel for step in again.profile(runs=1).steps] == kernels
    back = pickle.loads(pickle.dumps(again))
    assert back.tune
    assert [step.kernel for step in back.profile(runs=1).steps] == kernels
    assert len(timer.asked) == asked
    assert told == []
    cw.compile(graph, threads=1, tune=True)  # another problem
    assert len(timer.asked) > asked


def test_without_tune_nothing_stored_is_used(timer: Timer) -> None:
    graph, _ = network(*DENSE)
    plain = [step.kernel for step in cw.compile(graph.copy(), threads=2).profile(runs=1).steps]
    timer.fastest = lambda names: names[-1]
    tuned = [step.kernel for step in cw.compile(graph.copy(), threads=2, tune=True).profile(runs=1).steps]
    after = [step.kernel for step in cw.compile(graph, threads=2).profile(runs=1).steps]
    assert after == plain != tuned


@pytest.mark.parametrize("told", ["cpu", "cores", "convwright", "sources"])
def test_what_another_machine_or_version_measured_is_not_used(timer: Timer, told: str) -> None:
    graph, _ = network(*DENSE)
    cw.compile(graph.copy(), tune=True)
    asked = len(timer.asked)
    other = {**tune._machine(), told: "another"}
    with patch.object(tune, "_machine", lambda: other):
        cw.compile(graph, tune=True)
    assert len(timer.asked) == 2 * asked


@pytest.mark.parametrize("value", [None, 3, [], {}, {"direct-blocked": 1e-3}, ("fast",), (-1.0,)])
def test_stored_figures_that_make_no_sense_are_measured_again(timer: Timer, value: Any) -> None:
    graph, _ = network(*DENSE)
    cw.compile(graph.copy(), threads=2, tune=True)
    asked = list(timer.asked)

    def stored(kind: str, key: Any) -> Any:
        return dict.fromkeys(asked[-1][1], *value) if isinstance(value, tuple) else value

    with patch.object(store, "recall", stored):
        cw.compile(graph, threads=2, tune=True)
    assert len(timer.asked) == 2 * len(asked)


def test_a_damaged_store_is_measured_again_and_replaced(timer: Timer, own_store: Path) -> None:
    graph, _ = network(*DENSE)
    cw.compile(graph.copy(), tune=True)
    asked = len(timer.asked)
    own_store.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    cw.compile(graph.copy(), tune=True)
    assert len(timer.asked) == 2 * asked
    cw.compile(graph, tune=True)
    assert len(timer.asked) == 2 * asked


def test_without_a_store_every_model_measures_once(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "store_path", lambda: None)
    graph, _ = network(*DENSE)
    graph.inputs["x"].shape = ("N", *graph.inputs["x"].shape[1:])
    with cw.compile(graph, threads=1, tune=True) as model:
        assert not timer.asked
        model(normal(0, 1, 32, 28, 30))
        asked = len(timer.asked)
        assert asked > 0
        model.forget_plans()
        model(normal(0, 1, 32, 28, 30))
        assert len(timer.asked) == asked
        model(normal(0, 2, 32, 28, 30))
        assert len(timer.asked) > asked


def _agree(path: Path, value: int, results: Any) -> None:
    store.store_path = lambda: path
    results.put([store.agree("test", {"number": number}, value) for number in range(20)])


def test_processes_that_store_at_the_same_time_agree(own_store: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_agree, args=(own_store, value, results)) for value in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(values == found[0] for values in found)
    assert found[0] == [store.recall("test", {"number": number}) for number in range(20)]


def test_what_another_process_stored_first_counts(timer: Timer) -> None:
    """Both measured; the store has the other's figures."""
    graph, _ = network(*DENSE)
    with patch.object(store, "recall", lambda kind, key: None):
        timer.fastest = lambda names: names[-1]
        cw.compile(graph.copy(), tune=True)
        timer.fastest = lambda names: names[0]
        late = cw.compile(graph, tune=True)
    ((p, names),) = [(p, names) for p, names in timer.asked if p.spec.kernel == (3, 3)][:1]
    assert late._tuner is not None
    found: dict[Any, Any] = late._tuner._found
    assert [tune.choice(seconds) for parts, seconds in found.items() if [q for q, _ in parts] == [p]] == [names[-1]]


def test_a_gain_within_the_noise_leaves_the_estimates_choice() -> None:
    assert tune.choice({"a": 1.0, "b": 0.98}) == "a"
    assert tune.choice({"a": 1.0, "b": 0.9, "c": 0.8}) == "c"
    assert tune.choice({"a": 1.0}) == "a"


def test_explain_tells_the_runner_up_by_estimate() -> None:
    graph, _ = network(*DENSE)
    with cw.compile(graph, threads=2) as model:
        explanation = model.explain(runs=1)
        (step,) = [step for step in explanation.steps if step.layer == "conv" and step.macs]
        name, ratio, how = step.runner_up.split()
        assert name in tune.candidates(next(p for p in _problems(model) if p.spec.kernel == (3, 3)))[1:]
        assert 1 <= float(ratio.rstrip("x")) < tune._NEAR
        assert how == "estimated"
        assert step.runner_up in str(explanation)
        assert step.runner_up in json.dumps(explanation.to_dict())
        assert not any(step.runner_up for step in model.profile(runs=1).steps)


def _problems(model: cw.Model) -> list[Problem]:
    (program,) = model._programs.values()
    return [info.runner_up.args[0] for info in program.infos if info.runner_up is not None]  # type: ignore[attr-defined]


def test_the_command_line_tunes(timer: Timer, tmp_path: Path) -> None:
    graph, _ = network(ConvSpec(32, 32, (3, 3), padding=1), (14, 15), residual=True)
    path = str(tmp_path / "network.onnx")
    for node in graph.nodes:
        node.attributes.pop("algorithm", None)
    graph.save(path)
    result = CliRunner().invoke(main, ["explain", path, "--tune", "--threads", "2", "--json"])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert timer.asked
    assert any(step["runner_up"].endswith("x measured") for step in json.loads(result.stdout)["steps"])
    np.save(tmp_path / "x.npy", np.zeros((32, 14, 15), np.float32))
    asked = len(timer.asked)
    result = CliRunner().invoke(main, ["run", path, str(tmp_path / "x.npy"), "--tune", "--threads", "2"])
    assert result.exit_code == 0, result.output
    arguments = [path, "--tune", "--threads", "2", "--against", "convwright", "--seconds", "0", "--json"]
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"][0]["median_s"] > 0
    assert len(timer.asked) == asked


def test_estimates_know_what_was_measured_inside_networks() -> None:
    """Groups that fill no part of a vector are summed on planes, others on channel blocks; what transforms need comes
    from further away."""
    target = target_named("avx512")

    def problem(spec: ConvSpec, size: int, plain: tuple[bool, bool] = (False, False)) -> Problem:
        dtype = np.dtype(np.float32)
        return Problem(spec, (size, size), 1, dtype, target, 2, plain_input=plain[0], plain_output=plain[1])

    for channels, way in ((96, "direct-planes"), (128, "direct-grouped")):
        groups = ConvSpec(channels, channels, (3, 3), padding=1, groups=32)
        assert name_of(conv.algorithm_of(problem(groups, 56)), problem(groups, 56)) == way
    whole = ConvSpec(128, 128, (3, 3), padding=1, groups=8)
    assert conv.algorithm_of(problem(whole, 56)).blocked
    first = ConvSpec(3, 64, (7, 7), padding=3, stride=2)
    alone, inside = (fft.ROW.cycles(problem(first, 224, (True, plain))) for plain in (True, False))
    assert inside > 1.5 * alone
    few, half = (
        winograd.ROW.cycles(problem(ConvSpec(channels, 64, (3, 3), padding=1), 56)) / channels for channels in (7, 8)
    )
    assert few > 1.3 * half


def test_a_tuned_model_maps(timer: Timer) -> None:
    graph, expected = network(*DENSE)
    x = normal(0, 1, 32, 28, 30)
    with cw.compile(graph, threads=2, tune=True) as model:
        assert {p.threads for p, _ in timer.asked} == {2}
        for y in model.map([x, x, x]):
            assert np.abs(y - expected).max() <= 1.2e-5 * np.abs(expected).max()
        assert {p.threads for p, _ in timer.asked} == {1, 2}
