"""Time several runtimes in one run, a process each, in turns, so that the machine's moods strike all alike."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

TURN = 0.25  # seconds a runtime has the machine to itself before the next one's turn


@dataclass(slots=True)
class Row:
    """One runtime's figures.

    - `median_s`, `best_s`: of one inference.
    - `ratio`: this runtime's time over convwright's, the median over the rounds of what a round's two medians give.
    - `first_s`: from opening the file to the first answer, the runtime imported before.
    - `peak`, `beyond`: bytes, of the process at its peak, and what of it came after the runtime was imported.
    - `account`: bytes by what they are for, as the runtime itself says, where it says anything.
    - `error`: largest deviation from the float64 run, over that run's largest absolute value.
    - `busy`: the largest share of a core that its threads still used when it was another's turn.
    - `reason`: why there are no figures.
    """

    peer: str
    version: str = ""
    median_s: float | None = None
    best_s: float | None = None
    ratio: float | None = None
    first_s: float | None = None
    import_s: float | None = None
    peak: int | None = None
    beyond: int | None = None
    account: dict[str, int] = field(default_factory=dict)
    error: float | None = None
    busy: float = 0.0
    reason: str | None = None
    turns: list[list[float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The figures without each single time."""
        figures = asdict(self)
        del figures["turns"]
        return figures


class Lost(Exception):
    """A worker that cannot go on, and why."""


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, peer: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.log = folder / f"{peer}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "convwright.cli.worker", peer],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **environment},
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Lost(f"its process ended with code {self.process.wait()}" + "".join(f": {text}" for text in last))
        answer: dict[str, Any] = json.loads(line)
        for key in "unavailable", "failed":
            if key in answer:
                raise Lost(answer[key])
        return answer

    def close(self) -> None:
        for pipe in self.process.stdin, self.process.stdout:
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


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
    report: Callable[[str, float], None] = lambda what, share: None,
) -> list[Row]:
    """Time the model on each runtime, `seconds` in all (each gets three turns at least), and compare the answers.

    - `inputs`: what every runtime is fed; their shapes override the model's.
    - `peers`: names from `convwright.cli.peers`; ratios are to "convwright" where it is among them.
    - `environment`: variables for the workers.
    - `required`: runtimes without which there is no race: `Lost` is raised if one of them cannot open the model.
    - `compare`: whether to run the model in float64 too; without, rows have no `error`.
    - `report`: told what goes on and the share that is done.

    A runtime that is missing or fails has its reason in its row.
    """
    rows = {name: Row(name) for name in peers}
    shared = {"OMP_NUM_THREADS": str(threads), **(environment or {})}
    with tempfile.TemporaryDirectory(prefix="convwright-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        opening = _opening(path, inputs, folder, threads)
        workers: dict[str, _Worker] = {}
        for row, worker in _started(rows, folder, shared, stack):
            report(f"first run: {row.peer}", 0.0)
            with _recorded(row):
                answer = worker.ask(**opening)
                row.version, row.first_s, row.import_s = answer["version"], answer["first_s"], answer["import_s"]
                row.beyond, row.busy = answer["baseline"], answer["busy"]
                workers[row.peer] = worker
            if row.reason is not None and row.peer in required:
                raise Lost(row.reason)
        _rounds(rows, workers, seconds, report)
        for peer, worker in workers.items():
            with _recorded(rows[peer]):
                row = rows[peer]
                answer = worker.ask(do="finish", outputs=str(folder / f"{peer}.npz"))
                row.peak, row.account = answer["peak"], answer["account"]
                row.beyond = answer["peak"] - (row.beyond or 0)
            worker.close()
        if compare:
            report("float64 run", 1.0)
            _compare(rows, opening, folder, shared, stack)
    _summarise(rows)
    return list(rows.values())


def _started(
    rows: Mapping[str, Row], folder: Path, environment: Mapping[str, str], stack: contextlib.ExitStack
) -> Iterator[tuple[Row, _Worker]]:
    for name, row in rows.items():
        worker = _Worker(name, folder, environment)
        stack.callback(worker.close)
        yield row, worker


@contextlib.contextmanager
def _recorded(row: Row) -> Iterator[None]:
    try:
        yield
    except Lost as error:
        row.reason = str(error)


def _rounds(
    rows: Mapping[str, Row], workers: dict[str, _Worker], seconds: float, report: Callable[[str, float], None]
) -> None:
    """Turns in rounds; whoever begins a round ends the next, so that none always follows the same neighbour."""
    counts = dict.fromkeys(workers, 1)
    for peer in list(workers):
        with _recorded(rows[peer]):
            once = min(workers[peer].ask(do="time", count=2)["seconds"])
            counts[peer] = max(1, min(500, round(TURN / once)))
        if rows[peer].reason is not None:
            del workers[peer]
    total = max(3, round(seconds / (TURN * max(1, len(workers)))))
    order = list(workers)
    for index in range(total):
        for peer in order:
            row = rows[peer]
            if row.reason is not None:
                continue
            report(f"timing {peer}", index / total)
            with _recorded(row):
                answer = workers[peer].ask(do="time", count=counts[peer])
                row.turns.append(answer["seconds"])
                row.busy = max(row.busy, answer["busy"])
        order = order[1:] + order[:1]


def _compare(
    rows: Mapping[str, Row],
    opening: dict[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    stack: contextlib.ExitStack,
) -> None:
    done = [row for row in rows.values() if row.reason is None]
    if not done:
        return
    worker = _Worker("float64", folder, environment)
    stack.callback(worker.close)
    with contextlib.suppress(Lost):
        worker.ask(**opening)
        worker.ask(do="finish", outputs=str(folder / "float64.npz"))
        truth = read_outputs(folder / "float64.npz")
        for row in done:
            row.error = deviation(read_outputs(folder / f"{row.peer}.npz"), truth)


def run_once(
    peer: str,
    path: str,
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int,
    environment: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Open the model in a process of its own and run it: what the worker measured, and the outputs.

    `peer` is a name from `convwright.cli.peers`, or "float64". Raises `Lost` where it cannot.
    """
    with tempfile.TemporaryDirectory(prefix="convwright-bench-") as name:
        folder = Path(name)
        worker = _Worker(peer, folder, {"OMP_NUM_THREADS": str(threads), **(environment or {})})
        try:
            measured = worker.ask(**_opening(path, inputs, folder, threads))
            measured |= worker.ask(do="finish", outputs=str(folder / "outputs.npz"))
            return measured, read_outputs(folder / "outputs.npz")
        finally:
            worker.close()


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
            scale = float(np.abs(truth).max()) or 1.0
            share = float(np.abs(y.reshape(truth.shape) - truth).max()) / scale
            worst = share if np.isnan(share) else max(worst, share)
            if np.isnan(worst):
                break
    return worst


def _summarise(rows: Mapping[str, Row]) -> None:
    own = rows.get("convwright")
    for row in rows.values():
        if row.turns and row.reason is None:
            times = [second for turn in row.turns for second in turn]
            row.median_s, row.best_s = median(times), min(times)
            if own is not None and own.turns:
                pairs = zip(row.turns, own.turns, strict=False)
                row.ratio = median(median(theirs) / median(ours) for theirs, ours in pairs)
