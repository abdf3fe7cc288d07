"""Time several runtimes in one run, a process each, in turns, so that the machine's moods strike all alike."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from convwright.cli.workers import Lost, WorkerProcess, Workers

TURN = 0.25  # seconds a runtime has the machine to itself before the next one's turn
STEADY_RUNS, STEADY_SECONDS = 200, 3.0  # of inferences one after another, at least
CALM_WAITS, CALM_SECONDS = 10, 0.5  # how often, and how far apart, a machine that is not calm is asked again


@dataclass(slots=True)
class Row:
    """One runtime's figures.

    - `median_s`, `best_s`, `p99_s`: of one inference; the last is the 99th percentile.
    - `ratio`: this runtime's time over convwright's, the median over the rounds of what a round's two medians give.
    - `first_s`: from opening the file to the first answer, the runtime imported before.
    - `spread`: the 99th percentile of an inference's time over the median, of `runs` one after another; None where they
      were not asked for.
    - `peak`, `beyond`: bytes, of the process at its peak, and what of it came after the runtime was imported.
    - `resident`: bytes that the process holds between inferences, beyond what it held when the runtime was imported.
    - `account`: bytes by what they are for, as the runtime itself says, where it says anything.
    - `error`: largest deviation from the float64 run, over that run's largest absolute value.
    - `disturbed`: how many of its turns were taken although the machine was not calm.
    - `busy`: the largest share of a core that its threads still used when it was another's turn.
    - `reason`: why there are no figures.
    """

    peer: str
    version: str = ""
    median_s: float | None = None
    best_s: float | None = None
    p99_s: float | None = None
    ratio: float | None = None
    first_s: float | None = None
    import_s: float | None = None
    spread: float | None = None
    runs: int = 0
    peak: int | None = None
    beyond: int | None = None
    resident: int | None = None
    account: dict[str, int] = field(default_factory=dict)
    error: float | None = None
    disturbed: int = 0
    busy: float = 0.0
    reason: str | None = None
    turns: list[list[float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The figures without each single time."""
        figures = asdict(self)
        del figures["turns"]
        return figures


@dataclass(frozen=True, slots=True)
class Entry:
    """Who takes part in a race.

    - `name`: of its row and of its process.
    - `peer`: a name from `convwright.cli.peers`; or "tuned" or "strict", convwright with `tune=True` or
      `numerics="strict"`; or "graph", with a pickled `Graph`.
    - `path`: the model's file.
    - `inputs`: what it is fed; their shapes override the model's.
    - `truth`: the ONNX file to compare with in float64, the same model as `path`, which may have another form.
    - `threads`: where it takes another number than the rest.
    """

    name: str
    peer: str
    path: str
    inputs: Mapping[str, np.ndarray]
    truth: str | None = None
    threads: int | None = None


def race(
    path: str,
    inputs: Mapping[str, np.ndarray],
    peers: Sequence[str],
    *,
    threads: int,
    seconds: float = 10.0,
    environment: Mapping[str, str] | None = None,
    required: Sequence[str] = (),
    compare: bool = True,
    tune: bool = False,
    report: Callable[[str, float], None] = lambda what, share: None,
) -> list[Row]:
    """Time the model on each runtime, `seconds` in all (each gets three turns at least), and compare the answers.

    - `inputs`: what every runtime is fed; their shapes override the model's.
    - `peers`: names from `convwright.cli.peers`; ratios are to "convwright" where it is among them.
    - `environment`: variables for the workers.
    - `required`: runtimes without which there is no race: `Lost` is raised if one of them cannot open the model.
    - `compare`: whether to run the model in float64 too; without, rows have no `error`.
    - `tune`: whether convwright's algorithms are chosen by measurement.
    - `report`: told what goes on and the share that is done.

    A runtime that is missing or fails has its reason in its row.
    """
    entries = [Entry(name, "tuned" if tune and name == "convwright" else name, path, inputs) for name in peers]
    with Workers(threads, environment) as workers:
        return compete(entries, workers, seconds=seconds, required=required, compare=compare, report=report)


def compete(
    entries: Sequence[Entry],
    workers: Workers,
    *,
    seconds: float,
    turn: float = TURN,
    required: Sequence[str] = (),
    compare: bool = True,
    keep: bool = False,
    patience: float | None = None,
    steady: Sequence[str] = (),
    calm: Callable[[], bool] | None = None,
    report: Callable[[str, float], None] = lambda what, share: None,
) -> list[Row]:
    """What `race` does, for entries that may differ in their models: a row each.

    - `turn`: seconds that an entry has the machine to itself.
    - `required`: names of entries, as in `race`.
    - `keep`: whether the processes stay for the next race; memory figures then are of all their models together.
    - `patience`: seconds that an entry may take to open its model and run it once; one that takes longer is lost.
    - `steady`: names of entries that, after the rounds, run so many inferences one after another that rare delays show.
    - `calm`: whether the machine is as it should be now, asked after every turn. A round in which it was not does not
      count; it is repeated, until twice as many rounds as asked for have been lost.

    Each entry is compared with its own model in float64; entries of equal models are fed the same inputs.
    """
    rows = {entry.name: Row(entry.name) for entry in entries}
    with contextlib.ExitStack() as stack:
        folders = {name: Path(stack.enter_context(tempfile.TemporaryDirectory(dir=workers.folder))) for name in rows}
        openings = {e.name: _opening(e.path, e.inputs, folders[e.name], e.threads or workers.threads) for e in entries}
        running = _opened(entries, rows, openings, workers, required, patience, report)
        _rounds(rows, running, seconds, turn, calm, report)
        _in_a_row(rows, {name: worker for name, worker in running.items() if name in steady}, calm, report)
        for name, worker in running.items():
            with _recorded(rows[name]):
                row = rows[name]
                answer = worker.ask(do="finish", outputs=str(folders[name] / "outputs.npz"))
                row.peak, row.account = answer["peak"], answer["account"]
                row.resident = answer["resident"] - (row.beyond or 0)
                row.beyond = answer["peak"] - (row.beyond or 0)
            if not keep:
                workers.drop(name)
        if compare:
            report("float64 run", 1.0)
            truths = {e.name: openings[e.name] | {"path": os.path.abspath(e.truth or e.path)} for e in entries}
            _compare(rows, truths, folders, workers)
            if not keep:
                workers.drop("float64")
    _summarise(rows)
    return list(rows.values())


def _opened(
    entries: Sequence[Entry],
    rows: Mapping[str, Row],
    openings: Mapping[str, dict[str, Any]],
    workers: Workers,
    required: Sequence[str],
    patience: float | None,
    report: Callable[[str, float], None],
) -> dict[str, WorkerProcess]:
    """The processes of those entries that have run their model once."""
    running: dict[str, WorkerProcess] = {}
    for entry in entries:
        row = rows[entry.name]
        worker = workers.get(entry.name, entry.peer, entry.threads)
        report(f"first run: {entry.name}", 0.0)
        with _recorded(row):
            answer = worker.ask(patience, **openings[entry.name])
            row.version, row.first_s, row.import_s = answer["version"], answer["first_s"], answer["import_s"]
            row.beyond, row.busy = answer["baseline"], answer["busy"]
            running[entry.name] = worker
        if row.reason is not None and entry.name in required:
            raise Lost(row.reason)
    return running


@contextlib.contextmanager
def _recorded(row: Row) -> Iterator[None]:
    try:
        yield
    except Lost as error:
        row.reason = str(error)


def _rounds(
    rows: Mapping[str, Row],
    workers: dict[str, WorkerProcess],
    seconds: float,
    turn: float,
    calm: Callable[[], bool] | None,
    report: Callable[[str, float], None],
) -> None:
    """Turns in rounds; whoever begins a round ends the next, so that none always follows the same neighbour."""
    counts = dict.fromkeys(workers, 1)
    for peer in list(workers):
        with _recorded(rows[peer]):
            once = min(workers[peer].ask(do="time", count=2)["seconds"])
            counts[peer] = max(1, min(500, round(turn / once)))
        if rows[peer].reason is not None:
            del workers[peer]
    total = max(3, round(seconds / (turn * max(1, len(workers)))))
    order = list(workers)
    index, patience = 0, 2 * total if calm is not None else 0
    while index < total:
        if patience:
            _awaited(calm)
        taken: dict[str, list[float]] = {}
        quiet = True
        for peer in order:
            row = rows[peer]
            if row.reason is not None:
                continue
            report(f"timing {peer}", index / total)
            with _recorded(row):
                answer = workers[peer].ask(do="time", count=counts[peer])
                taken[peer] = answer["seconds"]
                row.busy = max(row.busy, answer["busy"])
            quiet = quiet and (calm is None or calm())
            if not quiet and patience:
                break
        if not quiet and patience:
            patience -= 1
            continue
        for peer, times in taken.items():
            rows[peer].turns.append(times)
            rows[peer].disturbed += not quiet
        order = order[1:] + order[:1]
        index += 1


def _awaited(calm: Callable[[], bool] | None) -> None:
    """Wait some seconds for the machine to be calm."""
    for _ in range(CALM_WAITS):
        if calm is None or calm():
            return
        time.sleep(CALM_SECONDS)


def _in_a_row(
    rows: Mapping[str, Row],
    workers: Mapping[str, WorkerProcess],
    calm: Callable[[], bool] | None,
    report: Callable[[str, float], None],
) -> None:
    """How far the slowest hundredth of the inferences of each lies from its median; again where it was not calm."""
    for name, worker in workers.items():
        row = rows[name]
        if row.reason is None and row.turns:
            report(f"timing {name} in a row", 1.0)
            once = median(row.turns[-1])
            count = max(STEADY_RUNS, min(10 * STEADY_RUNS, round(STEADY_SECONDS / once)))
            with _recorded(row):
                for _ in range(3):
                    _awaited(calm)
                    times = worker.ask(do="time", count=count)["seconds"]
                    row.spread, row.runs = float(np.quantile(times, 0.99)) / median(times), count
                    if calm is None or calm():
                        break


def _compare(
    rows: Mapping[str, Row], openings: Mapping[str, dict[str, Any]], folders: Mapping[str, Path], workers: Workers
) -> None:
    truths: dict[str, list[np.ndarray] | None] = {}  # by model; None where it has no float64 run
    for name, row in rows.items():
        if row.reason is not None:
            continue
        opening = openings[name]
        model = opening["path"]
        if model not in truths:
            truths[model] = None
            outputs = folders[name] / "float64.npz"
            with contextlib.suppress(Lost):
                worker = workers.get("float64", "float64")
                worker.ask(**opening)
                worker.ask(do="finish", outputs=str(outputs))
                truths[model] = read_outputs(outputs)
        truth = truths[model]
        if truth is not None:
            row.error = deviation(read_outputs(folders[name] / "outputs.npz"), truth)


def run_once(
    peer: str,
    path: str,
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int,
    environment: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Open the model in a process of its own and run it: what the worker measured, and the outputs.

    `peer` is a name from `convwright.cli.peers`, "strict" or "float64". Raises `Lost` where it cannot.
    """
    with Workers(threads, environment) as workers:
        worker = workers.get(peer, peer)
        measured = worker.ask(**_opening(path, inputs, workers.folder, threads))
        measured |= worker.ask(do="finish", outputs=str(workers.folder / "outputs.npz"))
        return measured, read_outputs(workers.folder / "outputs.npz")


def _opening(path: str, inputs: Mapping[str, np.ndarray], folder: Path, threads: int) -> dict[str, Any]:
    fed = folder / "inputs.npz"
    np.savez(fed, *inputs.values())
    return {
        "do": "open",
        "path": os.path.abspath(path),
        "inputs": str(fed),
        "names": list(inputs),
        "threads": threads,
    }


def read_outputs(path: Path) -> list[np.ndarray]:
    """The arrays that a worker wrote, in the order of the model's outputs."""
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def deviation(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest |found - expected| over the largest |expected|, the worst of the outputs.

    NaN where shapes differ or a value is NaN.

    >>> deviation([np.array([1.0, 2.0])], [np.array([1.0, 4.0])])
    0.5
    """
    if len(found) != len(expected):
        return float("nan")
    worst = 0.0
    for y, truth in zip(found, expected, strict=True):
        if y.size != truth.size:
            return float("nan")
        if truth.size:
            wide = truth.astype(np.float64)  # small integers would wrap around
            scale = float(np.abs(wide).max()) or 1.0
            share = float(np.abs(y.reshape(truth.shape) - wide).max()) / scale
            worst = share if np.isnan(share) else max(worst, share)
            if np.isnan(worst):
                break
    return worst


def _summarise(rows: Mapping[str, Row]) -> None:
    own = rows.get("convwright")
    for row in rows.values():
        if row.turns and row.reason is None:
            times = [second for turn in row.turns for second in turn]
            row.median_s, row.best_s, row.p99_s = median(times), min(times), float(np.quantile(times, 0.99))
            if own is not None and own.turns:
                pairs = zip(row.turns, own.turns, strict=False)
                row.ratio = median(median(theirs) / median(ours) for theirs, ours in pairs)
