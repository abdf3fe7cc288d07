"""Bounds of layers by hand: which ceiling binds, from which level bytes come, and the share that is achieved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import convwright as cw
from convwright.cli import main
from convwright.cost.roofline import roofline
from convwright.graph import Graph, Node, ValueInfo
from convwright.model.report import Profile, StepReport
from convwright.runtime import ceilings as measuring
from convwright.runtime import store
from convwright.runtime.ceilings import Ceilings
from convwright.runtime.machine import Caches

CEILINGS = Ceilings(
    2, {"f32": 1e9, "f64": 5e8, "int8": 4e9}, {"l1": 8e9, "l2": 4e9, "l3": 2e9, "memory": 1e9}, 1e9, 1e9
)
SIZES = Caches(1 << 10, 1 << 12, 1 << 16)  # two threads have 8 KiB of second level


def network(size: int, channels: int = 4) -> Graph:
    """Depthwise 3x3, an activation, then a fully connected layer to 10."""
    inner = channels * size * size
    constants = {
        "w": np.ones((channels, 1, 3, 3), np.float32),
        "f": np.ones((inner, 10), np.float32),
    }
    nodes = [
        Node("Conv", ["x", "w"], ["a"], {"group": channels, "pads": (1, 1, 1, 1)}, "depthwise"),
        Node("Relu", ["a"], ["r"], {}, "relu"),
        Node("Flatten", ["r"], ["v"], {}, "flat"),
        Node("Gemm", ["v", "f"], ["y"], {}, "full"),
    ]
    info = ValueInfo(np.dtype(np.float32), (1, channels, size, size))
    return Graph("net", {"x": info}, ["y"], nodes, constants, 18)


def test_the_larger_time_binds_and_bytes_come_from_what_holds_them() -> None:
    """Of 12 x 12: activations of 4.6 KB stay in L2, weights of 23 KB in L3."""
    depthwise, relu, full = roofline(cw.cost(network(12)), ceilings=CEILINGS, sizes=SIZES)
    assert (depthwise.name, relu.name, full.name) == ("depthwise", "relu", "full")
    assert depthwise.arithmetic == pytest.approx(2 * 9 * 4 * 144 / 1e9)
    assert depthwise.memory == pytest.approx(4 * 36 / 2e9 + 2 * 4 * 576 / 4e9)
    assert (depthwise.binds, depthwise.seconds) == ("arithmetic", depthwise.arithmetic)
    assert relu.arithmetic == 0
    assert (relu.binds, relu.activations_in) == ("l2", "l2")
    assert full.memory == pytest.approx(4 * 5760 / 2e9 + 4 * (576 + 10) / 4e9)
    assert (full.binds, full.weights_in) == ("l3", "l3")
    assert full.arithmetic < full.seconds == full.memory


def test_what_no_cache_holds_comes_from_memory() -> None:
    depthwise, _, full = roofline(cw.cost(network(48)), ceilings=CEILINGS, sizes=SIZES)
    assert (depthwise.activations_in, depthwise.weights_in) == ("memory", "memory")
    assert full.activations_in == "l3"
    assert full.binds == "memory"
    no_third = Ceilings(2, CEILINGS.operations, {"l2": 4e9, "memory": 1e9}, 1e9, 1e9)
    assert roofline(cw.cost(network(48)), ceilings=no_third, sizes=SIZES).layers[2].activations_in == "memory"


def test_integer_layers_have_a_ceiling_of_their_own() -> None:
    constants = {"w": np.ones((8, 4, 3, 3), np.int8)}
    nodes = [Node("ConvInteger", ["x", "w"], ["y"], {}, "conv")]
    graph = Graph("net", {"x": ValueInfo(np.dtype(np.uint8), (1, 4, 9, 9))}, ["y"], nodes, constants, 18)
    (bound,) = roofline(cw.cost(graph), ceilings=CEILINGS, sizes=SIZES)
    assert bound.arithmetic == pytest.approx(2 * 8 * 4 * 9 * 49 / 4e9)


def test_shares_of_what_was_measured() -> None:
    """A layer's steps are summed; one that is fused into another has no time, and is not in the total."""

    def step(layer: str, seconds: float) -> StepReport:
        return StepReport(layer, "", "", "", seconds, 0, 0, None)

    steps = (step("depthwise", 3e-6), step("depthwise", 2e-6), step("full", 4e-5), step("", 1e-6))
    result = roofline(cw.cost(network(12)), Profile("net", 2, steps, 5e-5), ceilings=CEILINGS, sizes=SIZES)
    depthwise, relu, full = result
    assert depthwise.measured == pytest.approx(5e-6)
    assert depthwise.share == pytest.approx(depthwise.seconds / 5e-6)
    assert relu.measured is relu.share is None
    assert result.seconds == pytest.approx(depthwise.seconds + full.seconds)
    assert result.share == pytest.approx(result.seconds / 5e-5)
    assert "not of the totals of times" in str(result)
    told = json.loads(json.dumps(result.to_dict()))
    assert told["layers"][0]["binds"] == "arithmetic"
    assert told["ceilings"]["threads"] == 2


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured on a real model; what fuses an activation leaves it without a time."""
    monkeypatch.setattr(measuring, "_measure", lambda threads: Ceilings(threads, *list_of(CEILINGS)))
    monkeypatch.setattr(store, "store_path", lambda: tmp_path / "measured.sqlite")
    path = str(tmp_path / "net.onnx")
    network(12).save(path)
    run = CliRunner().invoke
    shown = run(main, ["cost", path, "--roofline", "--threads", "1"])
    assert shown.exit_code == 0, shown.output
    assert "measured" not in shown.output
    assert "1 GFLOP/s of float32" in shown.output
    told = json.loads(run(main, ["cost", path, "--measure", "--threads", "1", "--json"]).output)
    layers = {layer["name"]: layer for layer in told["roofline"]["layers"]}
    assert layers["depthwise"]["measured"] > 0
    assert layers["relu"]["measured"] is None
    assert layers["full"]["share"] > 0
    assert told["total"]["macs"] == sum(layer["flops"] for layer in layers.values()) // 2


def list_of(ceilings: Ceilings) -> tuple[dict[str, float], dict[str, float], float, float]:
    return ceilings.operations, ceilings.read, ceilings.write, ceilings.copy
