"""docs/performance.md: runs of parts are joined, and the page says what was measured and which targets are met."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import networks
from network_page import page
from network_results import OURS, Race, Result, joined, written

from convwright.cli.race import Row


def row(peer: str, milliseconds: float, ours: float, **figures: object) -> Row:
    made = Row(peer, "1.0", milliseconds / 1e3, milliseconds / 1e3, ratio=milliseconds / ours)
    for name, value in figures.items():
        setattr(made, name, value)
    return made


def race(threads: int, ours: float, others: float, **figures: object) -> Race:
    """Ours, a peer that takes `others` milliseconds, one that takes 1.5 times that, and one that cannot."""
    rows = [row(OURS, ours, ours, **figures), row("openvino", others, ours), row("onnxruntime", 1.5 * others, ours)]
    return Race(threads, 12.0, 0.0, [*rows, Row("ncnn", reason="cannot convert\nthe model")])


def result(name: str, **parts: object) -> Result:
    made = Result(name, "2026-01-02T03:04:05+00:00", "a machine")
    for part, value in parts.items():
        setattr(made, part, value)
    return made


def written_page(*results: Result) -> list[str]:
    return page(results, "a command", starts=3, chart=None, batches=[]).splitlines()


def line(lines: list[str], *cells: str) -> bool:
    return any(all(cell in [c.strip() for c in text.split("|")] for cell in cells) for text in lines)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    one = result(
        "resnet50",
        races=[race(1, 10.0, 15.0, spread=1.1, runs=200)],
        scaling={1: (0.01, 1.0), 2: (0.006, 1.7)},
        cold={"compile": 1.0},
        errors={"default": {"1x3x224x224": 1e-6, "3x3x224x224": "needs a file"}},
        failed={"first": "why"},
    )
    path = tmp_path / "one.json"
    written([one], path)
    assert joined([path]) == [one]


def test_parts_and_numbers_of_threads_measured_apart_are_joined(tmp_path: Path) -> None:
    old = result("vgg16", races=[race(1, 10.0, 15.0), race(2, 5.0, 9.0)], failed={"first": "old reason"})
    speed = result("vgg16", races=[race(2, 4.0, 9.0)])
    first = result("vgg16", cold={"compile": 1.0}, warm={"compile": 0.1})
    other = result("alexnet", races=[race(1, 1.0, 2.0)])
    paths = []
    for index, results in enumerate(([old, other], [speed], [first])):
        paths.append(tmp_path / f"{index}.json")
        written(results, paths[-1])
    alexnet, vgg16 = joined(paths)
    assert alexnet == other
    assert [race.threads for race in vgg16.races] == [1, 2]
    assert [race.ratio for race in vgg16.races] == [1.5, 2.25]
    assert vgg16.warm == {"compile": 0.1}
    assert vgg16.failed == {}


def test_the_page_says_which_targets_are_met() -> None:
    starts = {"cold": {"compile": 1.9}, "warm": {"compile": 0.3}}
    errors = {"default": {"a": 9e-6}, "strict": {"a": 2e-6}}
    lines = written_page(
        result("resnet50", races=[race(2, 10.0, 16.0, spread=1.4, beyond=50)], errors=errors, **starts),
        result("xception", races=[race(2, 10.0, 10.5, spread=1.2, beyond=50)]),
    )
    assert line(lines, "resnet50, 2 threads", ">= 1.5", "1.60", "yes")
    assert line(lines, "least, 2 threads", ">= 1.1", "1.05 (xception)", "no")
    assert line(lines, "geometric mean of 2 networks, 2 threads", "1.30", "no")
    assert line(lines, "p99 over median, worst, 2 threads", "1.40 (resnet50)", "no")
    assert line(lines, "cold compile of resnet50, s", "1.90", "yes")
    assert line(lines, "warm compile of resnet50, s", "0.30", "no")
    assert line(lines, "error, default, worst", "9.0e-06 (resnet50)", "yes")
    assert line(lines, "error, strict, worst", "2.0e-06 (resnet50)", "no")
    assert line(lines, "geometric mean", "1.00", "1.30", "1.94", "1.30", "1.5", "no")  # each peer's, and the best one's


def test_networks_nobody_tuned_for_have_a_section_and_targets_of_their_own() -> None:
    tuned, others = [result("resnet50", races=[race(2, 10.0, 16.0)])], [
        result("densenet121", races=[race(2, 10.0, 9.0)]), result("r3d_18", races=[race(2, 10.0, 20.0)])
    ]  # fmt: skip
    lines = page(tuned, "a command", starts=3, chart=None, batches=[], untuned=others).splitlines()
    assert line(lines, "geometric mean of 1 networks, 2 threads", "1.60", "yes")
    assert line(lines, "geometric mean of 2 networks nobody tuned for, 2 threads", ">= 1.3", "1.34", "yes")
    assert line(lines, "least of 2 networks nobody tuned for, 2 threads", ">= 1.0", "0.90 (densenet121)", "no")
    own = lines[lines.index("## Networks nobody tuned for") :]
    assert line(own, "densenet121", "10.00", "9.00", "13.50", "0.90", "1", "no")
    assert line(own, "r3d_18", "10.00", "20.00", "2.00", "1", "yes")
    assert not any("nobody tuned" in text for text in written_page(*tuned))


def test_the_page_says_why_a_peer_has_no_figures_and_who_disturbed() -> None:
    disturbed = race(1, 10.0, 16.0)
    disturbed.others = 0.4
    lines = written_page(result("resnet50", races=[disturbed], failed={"accuracy": "no float64 run"}))
    assert "- ncnn: cannot convert the model: resnet50 (1)" in lines
    assert "- resnet50, accuracy: no float64 run" in lines
    assert "- resnet50, 1 thread: others kept 0.4 cores busy during the race" in lines
    assert line(lines, "resnet50", "10.00", "16.00", "24.00", "-", "1.60", "yes")


def test_memory_is_compared_with_the_least_of_the_peers() -> None:
    compared = race(2, 10.0, 16.0, beyond=50_000_000, resident=40_000_000)
    compared.rows[1].beyond, compared.rows[2].beyond = 80_000_000, 60_000_000
    lines = written_page(result("resnet50", races=[compared]))
    assert line(lines, "least peer's peak memory over ours, worst", "1.20 (resnet50)", "yes")
    assert line(lines, "resnet50", "50.0 / 40.0", "1.20")


def test_a_run_that_convwright_did_not_finish_is_left_out() -> None:
    lost = Race(2, 12.0, 0.0, [Row(OURS, reason="no kernel"), Row("openvino")])
    lines = written_page(result("resnet50", races=[lost]))
    assert "- convwright: no kernel: resnet50 (2)" in lines
    assert not any(text.startswith("## Speed") for text in lines)


def test_the_command_joins_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, batches = tmp_path / "one.json", tmp_path / "batches.json"
    written([result("resnet50", races=[race(2, 10.0, 16.0)])], path)
    rates = {"convwright": 30.0, "openvino": 20.0}
    batches.write_text(
        json.dumps([{"network": "resnet50", "threads": 2, "batch": 8, "images_per_second": rates, "ratio": 1.5}])
    )
    monkeypatch.setattr(sys, "argv", ["networks.py", "--join", str(path), "--throughput", str(batches)])
    networks.main()
    lines = capsys.readouterr().out.splitlines()
    assert line(lines, "resnet50", "30.0", "20.0", "1.50")
    assert line(lines, "throughput, batch 8, mean", ">= 1.3", "1.50", "yes")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--only", "speed,sped"], "--only sped: known are speed, scaling, first, accuracy"),
        (["--against", "nobody"], "--against nobody: known are"),
        (["--threads", "1,two"], "--threads 1,two: numbers of threads"),
        (["--threads", "0"], "--threads 0: numbers of threads"),
        ([], "no such file"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["networks.py", str(tmp_path), *given])
    with pytest.raises(SystemExit):
        networks.main()
    assert said in capsys.readouterr().err


def test_the_chart_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from network_plot import draw, relative

    results = [result("resnet50", races=[race(1, 20.0, 24.0), race(2, 10.0, 16.0)])]
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    draw(results, one)
    draw(results, two)
    assert one.read_bytes() == two.read_bytes()
    assert "2 threads, batch 1, float32: geometric mean 1.60" in one.read_text()
    compared = results[0].races[1]
    assert [relative(compared, peer) for peer in (OURS, "openvino", "ncnn")] == [1.6, 1.0, 0.0]
