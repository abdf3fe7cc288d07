"""Costs summed by kind and block, as tables and files, and on the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import convwright as cw
from convwright.cli import main
from convwright.cost.report import FIGURES, Cost
from convwright.graph import Graph
from convwright.networks.assembly import Assembly
from convwright.spec import ConvSpec


def residual_network() -> Graph:
    """A stem, two residual blocks of which one has a branch of its own, and a classifier."""
    net = Assembly("residual", (3, 16, 16), seed=0)
    x = net.relu(net.conv("stem", net.input, 4, 3, padding=1), "act")
    for index, channels in enumerate((4, 8)):
        with net.scope(f"layer.{index}"):
            y = net.conv("conv2", net.relu(net.conv("conv1", x, channels, 3, padding=1), "act"), channels, 1)
            if x.channels != channels:
                with net.scope("downsample"):
                    x = net.batch_norm("1", net.conv("0", x, channels, 1))
            x = net.add(y, x, "add")
    return net.finish(net.linear("fc", net.flatten(net.global_average_pool(x, "mean")), 5))


@pytest.fixture
def found() -> Cost:
    result: Cost = cw.cost(residual_network())
    return result


@pytest.fixture
def path(tmp_path: Path) -> str:
    place = tmp_path / "residual.onnx"
    residual_network().save(place)
    return str(place)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["cost", *arguments])


def test_kinds_sum_to_the_total(found: Cost) -> None:
    groups = found.groups("kind")
    assert [group.name for group in groups] == [
        "standard", "activation", "pointwise", "arithmetic", "normalisation", "pooling", "fully connected",
    ]  # fmt: skip
    for figure in set(FIGURES) - {"intensity", "bytes_peak"}:
        assert sum(getattr(group, figure) for group in groups) == getattr(found.total, figure), figure
    assert max(group.bytes_peak for group in groups) == found.total.bytes_peak
    standard = groups[0]
    assert standard.macs == sum(layer.macs for layer in found if layer.kind == "standard") > 0
    assert standard.intensity == 2 * standard.macs / standard.bytes_moved


def test_blocks_come_from_the_names(found: Cost) -> None:
    blocks = {group.name: [layer.name for layer in group.layers] for group in found.groups("block")}
    assert list(blocks) == ["stem", "act", "layer.0", "layer.1", "layer.1.downsample", "mean", "fc"]
    assert blocks["layer.1"] == ["layer.1.conv1", "layer.1.act", "layer.1.conv2", "layer.1.add"]
    assert [group.name for group in found.groups("block", depth=1)] == ["stem", "act", "layer", "mean", "fc"]


def test_a_tree_holds_blocks_before_what_they_consist_of(found: Cost) -> None:
    groups = {group.path: group for group in found.tree()}
    assert list(groups) == [
        ("stem",), ("act",), ("layer",), ("layer", "0"), ("layer", "1"), ("layer", "1", "downsample"),
        ("mean",), ("fc",),
    ]  # fmt: skip
    assert groups["layer",].macs == groups["layer", "0"].macs + groups["layer", "1"].macs
    assert len(groups["layer", "1"].layers) == 6
    assert [group.path for group in found.tree(depth=1)] == [("stem",), ("act",), ("layer",), ("mean",), ("fc",)]
    paths = [group.path for group in found.tree(sort="macs")]
    assert paths[:4] == [("layer",), ("layer", "1"), ("layer", "1", "downsample"), ("layer", "0")]


def test_names_of_pytorchs_exporter_give_the_same_blocks() -> None:
    graph = residual_network()
    for node in graph.nodes:
        *outer, last = node.name.split(".")
        modules = [".".join(outer[: place + 1]) for place in range(len(outer))]
        node.name = "/" + "/".join([*modules, *([] if node.op == "Add" else [last]), node.op])
    blocks = [group.name for group in cw.cost(graph).groups("block")]
    assert blocks == ["stem", "act", "layer.0", "layer.1", "layer.1.downsample", "mean", "fc"]


def test_rows_are_sorted_by_a_figure(found: Cost) -> None:
    rows = cw.cost(residual_network(), sort="macs").rows
    assert [row.macs for row in rows] == sorted((layer.macs for layer in found), reverse=True)
    assert {row.name for row in rows} == {layer.name for layer in found}
    groups = cw.cost(residual_network(), by="kind", sort="parameters").rows
    assert [group.parameters for group in groups] == sorted((group.parameters for group in groups), reverse=True)


def test_the_dictionary_has_every_figure(found: Cost) -> None:
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["title"] == "residual (x 1x3x16x16)"
    assert set(plain["total"]) == set(FIGURES)
    assert plain["total"]["flops"] == 2 * plain["total"]["macs"] == sum(layer["flops"] for layer in plain["layers"])
    layer = next(layer for layer in plain["layers"] if layer["name"] == "layer.0.conv1")
    assert layer["kind"] == "standard"
    assert layer["output_shape"] == [1, 4, 16, 16]
    assert layer["shares"]["macs"] == layer["macs"] / plain["total"]["macs"]
    assert [axis["size"] for axis in layer["receptive_field"]["axes"]] == [5, 5]
    grouped = cw.cost(residual_network(), by="kind").to_dict()
    assert grouped["layers"] == plain["layers"]
    assert [group["name"] for group in grouped["groups"]][:2] == ["standard", "activation"]


def test_a_file_is_written_whole_or_not_at_all(found: Cost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "cost.csv"
    found.to_csv(place)
    rows = list(csv.DictReader(io.StringIO(place.read_text())))
    assert [row["name"] for row in rows] == [layer.name for layer in found]
    assert [int(row["macs"]) for row in rows] == [layer.macs for layer in found]
    assert (rows[0]["output_shape"], rows[0]["receptive_field"], rows[0]["effective_padding"]) == (
        "1x4x16x16", "3x3", "1x1",
    )  # fmt: skip
    found.to_json(tmp_path / "cost.json")
    assert json.loads((tmp_path / "cost.json").read_text()) == found.to_dict()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    before = place.read_text()
    with pytest.raises(cw.ConvwrightError, match=r"cannot write '.*cost.csv': No space left on device"):
        cw.cost(ConvSpec(1, 1, (1,)), input_size=(3,)).to_csv(place)
    assert place.read_text() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cost.csv", "cost.json"]
    with pytest.raises(cw.ConvwrightError, match="it is a directory"):
        found.to_json(tmp_path)
    with pytest.raises(cw.ConvwrightError, match="No such file"):
        found.to_json(tmp_path / "missing" / "cost.json")


def test_pandas_gets_the_rows_or_its_absence_is_told(found: Cost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(cw.ConvwrightError, match="to_pandas needs pandas, which is not installed"):
        found.to_pandas()
    # pandas itself is no dependency of the tests: what it is handed is what counts.
    recorder = ModuleType("pandas")
    recorder.DataFrame = lambda records: records  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", recorder)
    records = found.to_pandas()
    assert [record["macs"] for record in records] == [layer.macs for layer in found]
    assert len({tuple(record) for record in records}) == 1
    assert all(isinstance(value, str | int | float) for record in records for value in record.values())


def shown(cost: Cost, width: int) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(cost)
    return text.getvalue()


@pytest.mark.parametrize("by", ["layer", "kind", "block", "tree"])
def test_a_table_fits_its_terminal_and_cuts_no_number(by: str) -> None:
    cost = cw.cost(residual_network(), by=by)
    for width in (70, 100, 130, 200):
        text = shown(cost, width)
        assert "…" not in text, width
        assert max(map(len, text.splitlines())) <= width
    assert "FLOPs" in shown(cost, 70).splitlines()[2]
    assert "elementwise" not in shown(cost, 70)
    for part in ("parameters", "MACs", "FLOPs", "of MACs", "elementwise", "FLOPs/B", "total"):
        assert part in shown(cost, 200)
    assert str(cost).splitlines()[0].strip() == "residual (x 1x3x16x16)"
    exact = f"{cost.total.macs:,} MACs, {2 * cost.total.macs:,} FLOPs (2 a MAC)"
    assert exact in " ".join(str(cost).split())


def test_paths_that_disagree_are_marked() -> None:
    net = Assembly("crooked", (1, 8, 8), seed=None)
    even = net.conv("even", net.input, 2, 2, padding=((0, 1), (0, 1)))
    net.finish(net.add(even, net.conv("odd", net.input, 2, 3, padding=1), "add"))
    cost = cw.cost(net.graph)
    assert "3/1/1*" in str(cost)
    assert "*: of paths that disagree" in str(cost)
    assert "*" not in str(cw.cost(residual_network()))


def test_the_command_prints_the_table(path: str) -> None:
    result = invoke(path, "--by", "kind", "--sort", "macs")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{cw.cost(path, by='kind', sort='macs')}\n"
    assert invoke(path, "--by", "tree", "--depth", "1").stdout == f"{cw.cost(path, by='tree', depth=1)}\n"


def test_the_command_prints_json_and_writes_csv(path: str, tmp_path: Path) -> None:
    result = invoke(path, "--json", "--batch", "2", "--csv", str(tmp_path / "cost.csv"))
    expected = cw.cost(path, batch=2)
    assert json.loads(result.stdout) == expected.to_dict()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "cost.csv").read_text())))
    assert [int(row["macs"]) for row in rows] == [layer.macs for layer in expected]
    assert json.loads(invoke(path, "--json", "--shape", "2x3x16x16").stdout) == expected.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "colour"), "got 'colour'"),
        (("--sort", "speed"), "got 'speed'"),
        (("--depth", "0", "--by", "tree"), "depth must be a positive int, got 0"),
        (("--batch", "0"), "0"),
        (("--shape", "1x3x8x8"), "(1, 3, 8, 8)"),
        (("--csv", "/no/such/folder/x.csv"), "cannot write '/no/such/folder/x.csv'"),
    ],
)
def test_the_commands_errors_are_one_line(path: str, arguments: tuple[str, ...], message: str) -> None:
    result = invoke(path, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
