#!/usr/bin/env python3
"""Every kind of convolution beside torch, onnxruntime and openvino, layer by layer.

    python bench/kinds.py [--only KIND,...] [--quick] [--seconds 2] [--threads 2] [--json] [--write]
    python bench/kinds.py --join FILE ... [--json] [--write]

Each case is one layer as an ONNX file with random weights; the runtimes take turns in one run, a process each, from the
caller's row-major arrays (N x C x spatial) to row-major arrays, so conversions of layout count for everyone. PyTorch is
raced in both of its layouts, and a peer for which there are several forms of the same layer in each; the fastest form
counts. Rounds in which the cores had moved apart (bench/quiet.py) are repeated, up to a limit.

GFLOP/s is 2 x multiply-accumulates over the median time, in 10**9; for integers the same count of integer operations.
Transposed convolutions are counted on their input's size, deformable ones without sampling, HetConv without the zeros.

"to best" is the best peer's time over convwright's, the median over the rounds; for the kinds "odd", "het" and "mix"
the targets compare convwright with itself ("to own"): the rate over that at the next multiples of 16 channels, the
dense layer's time over HetConv's, the sum of the parts' times over MixConv's. "instead" is, for HetConv, the time of
the best peer's dense layer, which a user would otherwise run, over ours; no target is about it. "kernel" is
convwright's rate without conversion of the layout, whose share is that on one thread. "error" is the largest
deviation from float64 over the largest absolute value; a peer that deviates by more than 1 % does not count.

A kind for which convwright has no kernel yet is not timed. Without --only all kinds are measured; --write writes
docs/kinds.md. --join takes what earlier runs wrote with --json in place of measuring, a later file's cases before an
earlier one's.
"""

import argparse
import contextlib
import math
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from kind_cases import KINDS, Case, Kind
from kind_models import random_inputs
from kind_results import DISTURBED, OURS, PEERS, Result, joined, page, show
from quiet import Others, calm_on

import convwright as cw
from convwright.cli.options import print_json, progress_bar
from convwright.cli.race import Entry, Row, compete
from convwright.cli.workers import Lost, Workers
from convwright.errors import ConvwrightError
from convwright.graph import Graph
from convwright.model.lower.fallback import SlowOperatorWarning

PAGE = Path(__file__).resolve().parent.parent / "docs" / "kinds.md"
TURN = 0.06  # seconds: several rounds in a short race; the first inference of a turn does not count
WRONG = 0.01  # deviation from float64, in shares of the largest value
ATTEMPTS = 3  # at a race that others disturb
PATIENCE = 20.0  # seconds for a peer's first answer
INSTEAD = "instead"  # the word before the runtime in the name of an entry that runs what a user would otherwise take
_CONVERSIONS = ("pack", "unpack")  # steps that only change the layout


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(kind: Kind, case: Case, workers: Workers, peers: Sequence[str], seconds: float) -> Result:
    """Race one case."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    result = Result(kind.name, case.name, case.macs, workers.threads, when)
    with tempfile.TemporaryDirectory(prefix="convwright-kinds-") as name:
        folder = Path(name)
        model = case.build()
        inputs = random_inputs(model)
        path = saved(model, folder / "case.onnx")
        own = case.own or partial(cw.load, path)
        result.reason = why_slow(own(), workers.threads)
        entries = list(peer_entries(case, path, inputs, peers, folder, result))
        if result.reason is None:
            (folder / "own.pickle").write_bytes(pickle.dumps(own()))
            entries.insert(0, Entry(OURS, "graph", str(folder / "own.pickle"), inputs, truth=path))
            for index, other in enumerate(case.beside):
                aside = other.build()
                file = saved(aside, folder / f"beside{index}.onnx")
                entries.append(Entry(f"{OURS} {index + 2}", OURS, file, random_inputs(aside)))
                if case.instead and not index:
                    entries += [
                        Entry(f"{INSTEAD} {runtime}", runtime, file, random_inputs(aside))
                        for runtime in runtimes_of(case, peers)
                    ]
        for _ in range(ATTEMPTS):
            others = Others()
            calm = calm_on(workers.threads)
            rows = compete(entries, workers, seconds=seconds, turn=TURN, keep=True, patience=PATIENCE, calm=calm)
            result.others = others.cores()
            if result.others < DISTURBED:
                break
        judge(result, kind, case, {row.peer: row for row in rows})
        if result.reason is None:
            profile(result, own, inputs)
    return result


def saved(model: Any, path: Path) -> str:
    onnx.save(model, path)
    return str(path)


def runtimes_of(case: Case, peers: Sequence[str]) -> list[str]:
    """Each peer that takes part, PyTorch in each of its forms."""
    able = [peer for peer in peers if peer not in case.absent]
    return [runtime for peer in able for runtime in (case.torch if peer == "torch" else (peer,))]


def peer_entries(
    case: Case, path: str, inputs: Mapping[str, np.ndarray], peers: Sequence[str], folder: Path, result: Result
) -> Iterator[Entry]:
    """Each peer with each of its forms; `PEER FORM` is the name of an entry."""
    for peer in peers:
        if peer in case.absent:
            result.lost[peer] = case.absent[peer]
        else:
            for runtime in case.torch if peer == "torch" else (peer,):
                yield Entry(runtime, runtime, path, inputs, truth=path)
        for (owner, form), write in case.forms.items():
            if owner == peer:
                file = folder / form
                try:
                    write(file)
                except Exception as error:  # whatever a foreign runtime raises is why it does not take part
                    result.lost[peer] = f"{form}: {error}"
                else:
                    yield Entry(f"{peer} {form}", peer, str(file), inputs, truth=path)


def why_slow(graph: Graph, threads: int) -> str | None:
    """Why convwright has no kernels for all of this model, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlowOperatorWarning)
        try:
            cw.compile(graph, threads=threads).close()
        except (SlowOperatorWarning, ConvwrightError) as error:
            return f"no kernel yet: {error}"
    return None


def judge(result: Result, kind: Kind, case: Case, rows: Mapping[str, Row]) -> None:
    """From the rows of a race to the figures of a case."""
    ratios: dict[str, float] = {}
    for name, row in rows.items():
        if name.startswith(f"{INSTEAD} "):
            if row.median_s is not None and row.ratio is not None:
                result.instead_seconds[name.removeprefix(f"{INSTEAD} ")] = row.median_s
                result.instead = min(row.ratio, result.instead or math.inf)
            continue
        if name.startswith(f"{OURS} "):  # a model beside
            continue
        peer = name.split()[0].partition("-")[0]
        if row.median_s is None:
            if row.reason is not None:
                result.lost[peer] = row.reason
            continue
        if row.error is not None and not row.error <= WRONG and peer != OURS:
            result.lost[peer] = f"deviates by {row.error:.1e} from float64"
            continue
        result.versions[peer] = row.version
        if row.median_s < result.seconds.get(peer, math.inf):
            result.seconds[peer], result.forms[peer] = row.median_s, name
        if row.ratio is not None and peer != OURS:
            ratios[name] = row.ratio
    for peer in result.seconds:
        result.lost.pop(peer, None)
    ours = rows.get(OURS)
    if ours is None or ours.median_s is None:
        result.reason = result.reason or (ours.reason if ours is not None else None) or "not raced"
        return
    result.error, result.rounds = ours.error, len(ours.turns)
    result.to_best = min(ratios.values(), default=None)
    if kind.ratio == "peers":
        result.ratio = result.to_best
        return
    others = [rows[f"{OURS} {index + 2}"] for index in range(len(case.beside))]
    if any(other.ratio is None or other.median_s is None for other in others):
        return
    for other, row in zip(case.beside, others, strict=True):
        result.beside[other.name] = row.median_s or math.nan
    result.ratio = sum(row.ratio or math.nan for row in others)
    if kind.ratio == "rate":
        result.ratio *= case.macs / case.beside[0].spec.macs(case.size)


def profile(result: Result, build: Callable[[], Graph], inputs: Mapping[str, np.ndarray]) -> None:
    """Which steps convwright runs, and the part of the time that goes into those that do more than change the layout.

    The parts are those of one thread, in which no thread waits for another: under a barrier after every step, steps of
    microseconds take as long as it takes to wake who sleeps. The whole is the race's.
    """
    with cw.compile(build(), threads=result.threads) as model:
        steps = model.profile(dict(inputs), runs=1).steps
    result.kernels = ", ".join(dict.fromkeys(step.kernel for step in steps if step.macs))
    with cw.compile(build(), threads=1) as model:
        steps = model.profile(dict(inputs), runs=20).steps
    working = sum(step.seconds for step in steps if step.kernel not in _CONVERSIONS)
    result.kernel_seconds = result.seconds[OURS] * working / sum(step.seconds for step in steps)


# -- the command -------------------------------------------------------------------------------------------------------


def measured(kinds: Sequence[Kind], quick: bool, peers: Sequence[str], threads: int, seconds: float) -> list[Result]:
    todo = [(kind, case) for kind in kinds for case in kind.cases[: 1 if quick else None]]
    results = []
    with Workers(threads) as workers, progress_bar() as progress:
        task = progress.add_task("starting", total=len(todo))
        for kind, case in todo:
            progress.update(task, description=f"{kind.name}: {case.name}")
            with contextlib.suppress(Lost):
                results.append(measure(kind, case, workers, peers, seconds))
            progress.advance(task)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), metavar="KIND,...", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--against", default=",".join(PEERS), metavar="PEER,...", help="of %(default)s")
    parser.add_argument("--quick", action="store_true", help="one size a kind")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the timing of a case, over all runtimes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="cases from these files of --json")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.parent.name}/{PAGE.name}")
    options = parser.parse_args()
    names, peers = options.only.split(","), options.against.split(",")
    for option, given, known in ("--only", names, KINDS), ("--against", peers, PEERS):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{option} {','.join(unknown)}: known are {', '.join(known)}")
    if options.join:
        results = [result for result in joined(options.join) if result.kind in names]
    else:
        kinds = [KINDS[name] for name in KINDS if name in names]
        results = measured(kinds, options.quick, peers, options.threads, options.seconds)
    if not results:
        parser.error("nothing was measured")
    if options.json:
        print_json([asdict(result) for result in results])
    else:
        show(results)
    if options.write:
        timing = "" if options.seconds == 2.0 else f" --seconds {options.seconds:g}"
        command = f"python bench/kinds.py{timing} --write"
        if options.join:
            command = "python bench/kinds.py --only KIND --json > KIND.json"
            command += "`, a kind at a time, and `python bench/kinds.py --join *.json --write"
        PAGE.write_text(page(results, command, "\n\n".join((__doc__ or "").split("\n\n")[2:5])), encoding="utf-8")
        print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
