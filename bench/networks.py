#!/usr/bin/env python3
"""Measure a folder of exported networks beside other runtimes, and write docs/performance.md.

    python bench/networks.py FOLDER [NAME ...] [--only PART,...] [--threads 1,2] [--seconds 12] [--json FILE] [--write]
    python bench/networks.py --join FILE ... [--throughput FILE] [--untuned FILE ...] [--write]

FOLDER is what bench/export_networks.py wrote. For each network NAME.onnx, the parts:

- speed: one inference at the shape that the file fixes, beside the other runtimes, a process each, in turns, so that
  one computes at a time; a race for each number of threads, of `--seconds` and what opening the model in six runtimes
  takes, 10 to 40 s. With it, how much memory each took, how exact each was, and how far convwright's slowest
  inferences lie from the median;
- scaling: convwright alone on 1 to all threads, in turns;
- first: compiling, and the way from importing the package to the first answer in a fresh process, with an empty cache
  of compiled kernels and with a full one;
- accuracy: deviation from a float64 run at batch 1, at batch 3, and at another, odd size, for default and for strict
  numerics.

A network that holds fixed sizes needs a file of its own for another shape, NAME-3x3x224x224.onnx; it is used if there,
and exported for the occasion where torch, torchvision and timm are installed.

--json writes what was measured after every network; --join takes such files in place of measuring, a later file's
figures before an earlier one's, so that parts, networks and numbers of threads can be measured apart. --throughput adds
what bench/throughput.py --json wrote, --untuned what this program wrote of the folder that bench/export_others.py
makes. --write writes the page and its chart, which needs matplotlib.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from network_page import page
from network_results import OURS, Race, Result, joined, written
from quiet import Others, calm_on

import convwright as cw
from convwright.cli.peers import PEERS, Unavailable, mnn_file, ncnn_file
from convwright.cli.race import Entry, Row, compete, deviation, run_once
from convwright.cli.workers import Lost, Workers
from convwright.runtime.machine import cores, describe

PARTS = ("speed", "scaling", "first", "accuracy")
AGAINST = ("onnxruntime", "openvino", "torch", "ncnn", "mnn")
HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
SECONDS = 12.0  # of a race
STARTS = 3  # of a process, cold and warm; the one whose compile took the median counts
NUMERICS = {"default": OURS, "strict": "strict"}  # the runtimes that they go by in a race


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(
    path: Path, peers: Sequence[str], parts: Iterable[str], counts: Sequence[int], seconds: float, where: str
) -> Result:
    """Measure one network.

    - `peers`: names from `convwright.cli.peers`.
    - `counts`: numbers of threads to race on; the other parts but scaling take the largest.
    - `seconds`: for each race.
    """
    result = Result(path.stem, datetime.now(UTC).isoformat(timespec="seconds"), where)
    name, shape = usual_input(path)
    x, threads = random(shape), max(counts)
    with tempfile.TemporaryDirectory(prefix="convwright-networks-") as scratch:
        folder = Path(scratch)
        cache = {"CONVWRIGHT_CACHE": str(folder / "cache")}
        if "first" in parts:
            with failing(result, "first"):
                result.cold = median_start(first_answer(path, x, threads, fresh(folder)) for _ in range(STARTS))
                first_answer(path, x, threads, cache)
                result.warm = median_start(first_answer(path, x, threads, cache) for _ in range(STARTS))
        if "speed" in parts:
            with failing(result, "speed"):
                result.races = speed(path, {name: x}, peers, counts, seconds, folder, cache)
        if "scaling" in parts:
            with failing(result, "scaling"):
                result.scaling = scaling(path, {name: x}, seconds, cache)
        if "accuracy" in parts:
            with failing(result, "accuracy"):
                for variant in variants(shape):
                    for numerics, error in accuracy(path, name, variant, threads, folder).items():
                        result.errors.setdefault(numerics, {})["x".join(map(str, variant))] = error
    return result


@contextlib.contextmanager
def failing(result: Result, part: str) -> Iterator[None]:
    """Note why a part has no figures, and go on to the next."""
    begin = time.perf_counter()
    try:
        yield
    except Lost as error:
        result.failed[part] = str(error)
    print(f"{result.name}: {part}, {time.perf_counter() - begin:.0f} s", file=sys.stderr)


def usual_input(path: Path) -> tuple[str, tuple[int, ...]]:
    """The name of the only input and the shape that the file fixes, 1 where it fixes none."""
    ((name, value),) = cw.load(str(path)).inputs.items()
    return name, tuple(size if isinstance(size, int) else 1 for size in value.shape)


def speed(
    path: Path,
    inputs: Mapping[str, np.ndarray],
    peers: Sequence[str],
    counts: Sequence[int],
    seconds: float,
    folder: Path,
    environment: Mapping[str, str],
) -> list[Race]:
    """A race for each number of threads, the models of runtimes with formats of their own converted before."""
    entries, lost = [Entry(OURS, OURS, str(path), inputs)], []
    for peer in peers:
        try:
            file = converted(peer, path, inputs, folder)
        except Unavailable as error:
            lost.append(Row(peer, reason=str(error)))
        else:
            entries.append(Entry(peer, peer, str(file), inputs, truth=str(path)))
    races = []
    for threads in counts:
        # So that its kernels are in the cache, and its memory at the peak is not the compiler's.
        run_once(OURS, str(path), inputs, threads=threads, environment=environment)
        others = Others()
        exact = threads == counts[-1]  # the answers of one number of threads are enough, and float64 takes its time
        with Workers(threads, environment) as workers:
            calm = calm_on(threads)
            rows = compete(entries, workers, seconds=seconds, required=[OURS], compare=exact, steady=[OURS], calm=calm)
        races.append(Race(threads, seconds, others.cores(), [*rows, *lost]))
    return races


def converted(peer: str, path: Path, inputs: Mapping[str, np.ndarray], folder: Path) -> Path:
    """The file that the runtime opens; one that cannot open ONNX files gets its own format. Raises `Unavailable`."""
    reason = PEERS[peer].why_not()
    if reason is not None:
        raise Unavailable(reason)
    if peer == "ncnn":
        ((_, x),) = inputs.items()
        return ncnn_file(str(path), x.shape, folder)
    return mnn_file(str(path), folder) if peer == "mnn" else path


def scaling(
    path: Path, inputs: Mapping[str, np.ndarray], seconds: float, environment: Mapping[str, str]
) -> dict[int, tuple[float, float]]:
    """By the number of threads up to that of cores, our time and how many times as fast as on one thread that is."""
    names = {OURS if threads == 1 else f"{OURS} {threads}": threads for threads in range(1, cores() + 1)}
    entries = [Entry(name, OURS, str(path), inputs, threads=threads) for name, threads in names.items()]
    with Workers(1, environment) as workers:
        calm = calm_on(cores())
        rows = compete(entries, workers, seconds=seconds / 2, required=list(names), compare=False, calm=calm)
    return {
        names[row.peer]: (row.median_s, 1 / row.ratio)
        for row in rows
        if row.median_s is not None and row.ratio is not None
    }


def median_start(starts: Iterable[dict[str, float]]) -> dict[str, float]:
    ordered = sorted(starts, key=lambda start: start["compile"])
    return ordered[len(ordered) // 2]


def fresh(folder: Path) -> dict[str, str]:
    """The environment of a process that finds no compiled kernels."""
    return {"CONVWRIGHT_CACHE": tempfile.mkdtemp(prefix="empty-", dir=folder)}


def first_answer(path: Path, x: np.ndarray, threads: int, environment: Mapping[str, str]) -> dict[str, float]:
    """What bench/first_answer.py tells, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="convwright-first-") as folder:
        file = Path(folder) / "x.npy"
        np.save(file, x)
        command = [sys.executable, str(HERE / "first_answer.py"), str(path), str(file), str(threads)]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Lost(f"first answer: {(done.stderr.strip().splitlines() or [f'code {done.returncode}'])[-1]}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def variants(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The usual shape, the same at batch 3, and another, odd size: 225 for 224, 283 for 299."""
    size = {224: 225, 299: 283}.get(shape[-1], shape[-1] // 2 * 2 + 1)
    return [shape, (3, *shape[1:]), (*shape[:2], *[size] * len(shape[2:]))]


def accuracy(path: Path, name: str, shape: tuple[int, ...], threads: int, folder: Path) -> dict[str, float | str]:
    """By numerics, the deviation from float64 at one shape; where the float64 run itself cannot take the shape, why.

    `folder` is for a file of this shape, where one has to be exported.
    """
    own = path.with_name(f"{path.stem}-{'x'.join(map(str, shape))}.onnx")
    file = own if own.exists() else path
    inputs = {name: random(shape)}
    try:
        _, truth = run_once("float64", str(file), inputs, threads=threads)
    except Lost:
        exported = export(path.stem, shape, folder) if file is path else None
        if exported is None:
            return dict.fromkeys(NUMERICS, f"needs {own.name}")
        file = exported
        _, truth = run_once("float64", str(file), inputs, threads=threads)
    return {
        numerics: deviation(run_once(runtime, str(file), inputs, threads=threads)[1], truth)
        for numerics, runtime in NUMERICS.items()
    }


def export(name: str, shape: tuple[int, ...], folder: Path) -> Path | None:
    """The network for another shape, from bench/export_networks.py; None where that cannot be."""
    if any(find_spec(module) is None for module in ("torch", "torchvision", "timm")) or len(shape) != 4:
        return None
    sizes = ["--batch", str(shape[0]), "--size", str(shape[-1])]
    command = [sys.executable, str(HERE / "export_networks.py"), str(folder), name, *sizes]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    path = folder / f"{name}-{'x'.join(map(str, shape))}.onnx"
    return path if path.exists() else None


def random(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def machine() -> str:
    """The machine in one line."""
    what = describe()
    caches = ", ".join(f"{level.upper()} {what[f'{level}_bytes'] // 1024} KB" for level in ("l1d", "l2", "l3"))
    return (
        f"{what['cpu']} ({what['llvm_cpu']}), {what['cores']} cores, {what['isa']} kernels, {caches}, "
        f"Python {what['python']}, LLVM {what['llvm']}"
    )


# -- the command -------------------------------------------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PART,...", help="of %(default)s")
    parser.add_argument("--against", default=",".join(AGAINST), metavar="PEER,...", help="of %(default)s")
    parser.add_argument("--threads", default=f"1,{cores()}" if cores() > 1 else "1", metavar="N,...")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for a race, over all runtimes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="take these files of --json")
    parser.add_argument("--throughput", type=Path, metavar="FILE", help="what bench/throughput.py --json wrote")
    parser.add_argument("--untuned", type=Path, nargs="+", metavar="FILE", help="files of --json, of other networks")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.parent.name}/{PAGE.name} and its chart")
    return parser


def measured(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Result]:
    """Measure as the options say, or refuse them."""
    parts, peers, counts = options.only.split(","), options.against.split(","), options.threads.split(",")
    for option, given, known in ("--only", parts, PARTS), ("--against", peers, AGAINST):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{option} {','.join(unknown)}: known are {', '.join(known)}")
    if not all(count.isdecimal() and int(count) for count in counts):
        parser.error(f"--threads {options.threads}: numbers of threads, such as 1,2")
    if options.folder is None:
        parser.error("a FOLDER to measure or files to --join")
    usual = sorted(path for path in options.folder.glob("*.onnx") if "-" not in path.stem)
    paths = [options.folder / f"{name}.onnx" for name in options.names] or usual
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        parser.error(f"no such file: {', '.join(missing) or options.folder / '*.onnx'}")
    where, results = machine(), []
    for path in paths:
        threads = sorted({int(count) for count in counts})
        results.append(measure(path, peers, parts, threads, options.seconds, where))
        if options.json:
            written(results, options.json)
    return results


def reproducing(options: argparse.Namespace) -> str:
    """The command that the page names."""
    timing = "" if options.seconds == SECONDS else f" --seconds {options.seconds:g}"
    batches = " --throughput BATCHES.json" if options.throughput else ""
    batches += " --untuned OTHERS.json" if options.untuned else ""
    if not options.join:
        return f"python bench/networks.py FOLDER{timing}{batches} --write"
    return (
        f"python bench/networks.py FOLDER{timing} --only PART --json PART.json`, a part at a time, and `python "
        f"bench/networks.py --join PART.json ...{batches} --write"
    )


def main() -> None:
    parser = arguments()
    options = parser.parse_args()
    results = joined(options.join) if options.join else measured(options, parser)
    batches = json.loads(options.throughput.read_text(encoding="utf-8")) if options.throughput else []
    chart = PAGE.with_suffix(".svg") if find_spec("matplotlib") is not None else None
    text = page(
        results, reproducing(options), starts=STARTS, chart=chart.name if chart else None, batches=batches,
        untuned=joined(options.untuned or []),
    )  # fmt: skip
    if not options.write:
        print(text)
        return
    if chart is None:
        print("no chart: matplotlib is not installed", file=sys.stderr)
    elif any(result.races for result in results):
        from network_plot import draw

        draw(results, chart)
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)


if __name__ == "__main__":
    main()
