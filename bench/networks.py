#!/usr/bin/env python3
"""Measure a folder of exported networks and write docs/performance.md.

    python bench/networks.py FOLDER [NAME ...] [--only speed,first,memory,accuracy] [--json] [--no-write]

FOLDER is what bench/export_networks.py wrote. For each network NAME.onnx:

- speed: one inference at the shape that the file fixes, interleaved with the other runtimes, a process each;
- first: from importing the package to the first answer in a fresh process, with an empty cache of compiled kernels and
  with a full one, and what the seconds went into;
- memory: what the model takes beyond its weights, against the least that the lifetimes of its values allow;
- accuracy: deviation from a float64 run at batch 1, at batch 3, and at another, odd size.

A network that holds fixed sizes needs a file of its own for another shape, NAME-3x3x224x224.onnx; it is used if there,
and exported for the occasion where torch, torchvision and timm are installed.
With names or --only the tables are printed and not written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import convwright as cw
from convwright.cli.race import Lost, Row, deviation, race, run_once
from convwright.runtime.machine import describe

PARTS = ("speed", "first", "memory", "accuracy")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
BOUNDS = {"ratio": 1.25, "error": 1e-5, "memory": 1.2, "warm": 0.25}
COLD_BOUNDS = {"resnet50": 3.0, "mobilenet_v1": 1.5}
HERE = Path(__file__).resolve().parent
WARM_STARTS = 3  # the one of median rest counts


@dataclass(slots=True)
class Result:
    """What was measured of one network; times in seconds, memory in bytes.

    - `rows`: a row a runtime, convwright's first.
    - `cold`, `warm`: the first answer with an empty and with a full cache: total, import, read, pack, rest.
    - `memory`: the model's own account (weights, arena, liveness_bound), and `peak` and `resident` of the process
      beyond what it held when the runtime had been imported.
    - `errors`: by input shape, the deviation from float64, or why there is none.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    cold: dict[str, float] = field(default_factory=dict)
    warm: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float | str] = field(default_factory=dict)
    failed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        keys = "name", "cold", "warm", "memory", "errors", "failed"
        return {key: getattr(self, key) for key in keys} | {"rows": [row.to_dict() for row in self.rows]}


def measure(path: Path, peers: Sequence[str], parts: Iterable[str], threads: int, seconds: float) -> Result:
    """Measure one network."""
    result = Result(path.stem)
    graph = cw.load(str(path))
    ((name, value),) = graph.inputs.items()
    shape = tuple(size if isinstance(size, int) else 1 for size in value.shape)
    del graph
    try:
        if "first" in parts or "memory" in parts:
            measure_once(result, path, {name: random(shape)}, threads)
        if "speed" in parts:
            result.rows = race(str(path), {name: random(shape)}, peers, threads=threads, seconds=seconds)
        if "accuracy" in parts:
            with tempfile.TemporaryDirectory(prefix="convwright-networks-") as folder:
                for variant in variants(shape):
                    result.errors["x".join(map(str, variant))] = accuracy(path, name, variant, threads, Path(folder))
    except Lost as error:
        result.failed = str(error)
    return result


def measure_once(result: Result, path: Path, inputs: Mapping[str, np.ndarray], threads: int) -> None:
    """The first answer from a cold and from a warm cache, and the memory of the second."""
    ((_, x),) = inputs.items()
    with tempfile.TemporaryDirectory(prefix="convwright-cache-") as cache:
        fresh = {"CONVWRIGHT_CACHE": cache}
        result.cold = first_answer(path, x, threads, fresh)
        starts = [first_answer(path, x, threads, fresh) for _ in range(WARM_STARTS)]
        result.warm = sorted(starts, key=lambda start: start["rest"])[WARM_STARTS // 2]
        measured, _ = run_once("convwright", str(path), inputs, threads=threads, environment=fresh)
    beyond = {key: measured[key] - measured["baseline"] for key in ("peak", "resident")}
    result.memory = {**measured["account"], **beyond}


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


def accuracy(path: Path, name: str, shape: tuple[int, ...], threads: int, folder: Path) -> float | str:
    """The deviation from float64 at one shape; where the float64 run itself cannot take the shape, why.

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
            return f"needs {own.name}"
        file = exported
        _, truth = run_once("float64", str(file), inputs, threads=threads)
    _, found = run_once("convwright", str(file), inputs, threads=threads)
    return deviation(found, truth)


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


def page(results: Sequence[Result], peers: Sequence[str], threads: int, where: str) -> str:
    """docs/performance.md."""
    versions = {row.peer: row.version for result in results for row in result.rows if row.version}
    when = datetime.now(UTC).date().isoformat()
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    sections = [
        "# Performance",
        f"Measured {when} on {where}; {threads} threads, float32, batch 1. Versions: {named or 'not recorded'}.",
        ORIGIN,
    ]
    if any(result.rows for result in results):
        sections += ["## Speed", SPEED, table(["network", *peers, "to the best peer"], results, speed_cells(peers))]
    if any(result.cold for result in results):
        sections += [
            "## First answer",
            FIRST,
            table(["network", "cold", "warm", "import", "read", "pack", "rest", "bounds"], results, first_cells),
        ]
        headings = [
            "network",
            "weights",
            "arena",
            "liveness bound",
            "arena / bound",
            "process, resident",
            "process, peak",
        ]
        sections += ["## Memory", MEMORY, table(headings, results, memory_cells)]
    if any(result.errors for result in results):
        sections += ["## Accuracy", ACCURACY, table(["network", "usual", "batch 3", "odd size"], results, error_cells)]
    failures = [f"- {result.name}: {result.failed}" for result in results if result.failed]
    failures += [f"- {r.name}, {row.peer}: {row.reason}" for r in results for row in r.rows if row.reason]
    if failures:
        sections += ["## Failures", "\n".join(failures)]
    return "\n\n".join(sections) + "\n"


ORIGIN = (
    "`python bench/networks.py FOLDER` writes this page; `bench/export_networks.py` writes the networks, with random "
    "weights and random batch-norm statistics."
)
SPEED = (
    "Median milliseconds of one inference, the runtimes in turns, a process each. The last column is convwright's time "
    f"over the best peer's; {BOUNDS['ratio']} is the most that the project allows itself."
)
FIRST = (
    "Milliseconds from the first import of the package to the first answer, in a fresh process. Cold: no compiled "
    "kernel in the cache, bounds "
    + ", ".join(f"{name} {bound * 1e3:.0f}" for name, bound in COLD_BOUNDS.items())
    + ". Warm: all of them there, and what of it is importing, reading the file, packing the weights and the rest, "
    f"which is {BOUNDS['warm'] * 1e3:.0f} at most."
)
MEMORY = (
    "Megabytes. The liveness bound is the most that is alive at one step of the plan; the arena may take "
    f"{BOUNDS['memory']} times that. Process: beyond what it held when the package had been imported, weights included."
)
ACCURACY = (
    "Largest deviation from a float64 run of the same file, over its largest absolute value; at most "
    f"{BOUNDS['error']:.0e}. Odd size: 225 x 225 where 224 x 224 is usual, 283 x 283 where 299 x 299 is."
)


def table(headings: Sequence[str], results: Sequence[Result], cells: Callable[[Result], list[str]]) -> str:
    lines = [" | ".join(headings), " | ".join(["---", *["---:"] * (len(headings) - 1)])]
    lines += [" | ".join([result.name, *cells(result)]) for result in results]
    return "\n".join(f"| {line} |" for line in lines)


def speed_cells(peers: Sequence[str]) -> Callable[[Result], list[str]]:
    def cells(result: Result) -> list[str]:
        rows = {row.peer: row for row in result.rows}
        times = [number(rows[peer].median_s if peer in rows else None, 1e3, 2) for peer in peers]
        ratios = [row.ratio for row in result.rows if row.peer != "convwright" and row.ratio is not None]
        return [*times, number(1 / min(ratios) if ratios else None, 1, 2)]

    return cells


def first_cells(result: Result) -> list[str]:
    cold, warm = result.cold.get("total"), result.warm
    verdicts = []
    if cold is not None and result.name in COLD_BOUNDS:
        verdicts.append("cold " + ("met" if cold <= COLD_BOUNDS[result.name] else "missed"))
    if warm:
        verdicts.append("warm " + ("met" if warm["rest"] <= BOUNDS["warm"] else "missed"))
    cells = [cold, *(warm.get(key) for key in ("total", "import", "read", "pack", "rest"))]
    return [*(number(value, 1e3, 0) for value in cells), ", ".join(verdicts) or "-"]


def memory_cells(result: Result) -> list[str]:
    account = result.memory
    megabytes = {key: number(value, 1e-6, 1) for key, value in account.items()}
    bound = account.get("liveness_bound")
    ratio = number(account["arena"] / bound, 1, 2) if bound and "arena" in account else "-"
    first = [megabytes.get(key, "-") for key in ("weights", "arena", "liveness_bound")]
    return [*first, ratio, megabytes.get("resident", "-"), megabytes.get("peak", "-")]


def error_cells(result: Result) -> list[str]:
    cells = [error if isinstance(error, str) else f"{error:.1e}" for error in result.errors.values()]
    return (cells + ["-"] * 3)[:3]


def number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--against", default="onnxruntime,openvino")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="for the speed of one network, over all runtimes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    parser.add_argument("--no-write", action="store_true", help=f"leave {PAGE.name} as it is")
    options = parser.parse_args()
    parts = options.only.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"--only {options.only}: known are {', '.join(PARTS)}")
    usual = sorted(path for path in options.folder.glob("*.onnx") if "-" not in path.stem)
    paths = [options.folder / f"{name}.onnx" for name in options.names] or usual
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        parser.error(f"no such file: {', '.join(missing) or options.folder / '*.onnx'}")

    where = machine()
    peers = ["convwright", *options.against.split(",")]
    results = []
    for path in paths:
        print(path.stem, file=sys.stderr)
        results.append(measure(path, peers, parts, options.threads, options.seconds))
    text = page(results, peers, options.threads, where)
    print(json.dumps([result.to_dict() for result in results], indent=2) if options.json else text)
    if not options.no_write and not options.names and set(parts) == set(PARTS):
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
