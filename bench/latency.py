#!/usr/bin/env python3
"""What an inference takes right after another one, and after a pause in which threads sleep and caches are lost.

    python bench/latency.py FOLDER [NAME ...] [--threads 2] [--rounds 20] [--json]

FOLDER is what bench/export_networks.py wrote. For each network, the median milliseconds of single inferences: one after
another; each after 200 ms of sleep; each after 200 ms in which this thread was busy; each after something else has
filled the caches.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import convwright as cw

PAUSE = 0.2  # seconds
BIG = 1 << 26  # bytes: more than caches hold


def busy() -> None:
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        pass


def measure(path: Path, threads: int, rounds: int) -> dict[str, float]:
    """Median seconds by what happened before."""
    graph = cw.load(str(path))
    shapes = {
        name: [size if isinstance(size, int) else 1 for size in info.shape] for name, info in graph.inputs.items()
    }
    model = cw.compile(graph, threads=threads)
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    other = np.zeros(BIG, np.uint8)

    def fill_caches() -> None:
        np.add(other, 1, out=other)

    before: dict[str, Callable[[], None]] = {
        "at once": lambda: None, "after sleep": lambda: time.sleep(PAUSE), "after work": busy,
        "after others": fill_caches,
    }  # fmt: skip
    for _ in range(5):
        model(**inputs)
    found = {}
    for name, pause in before.items():
        times = []
        for _ in range(rounds):
            pause()
            start = time.perf_counter()
            model(**inputs)
            times.append(time.perf_counter() - start)
        found[name] = statistics.median(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = options.names or sorted(path.stem for path in options.folder.glob("*.onnx") if "-" not in path.stem)
    results = {name: measure(options.folder / f"{name}.onnx", options.threads, options.rounds) for name in names}
    if options.json:
        print(json.dumps(results, indent=1))
        return
    table = Table(title=f"Milliseconds of one inference, {options.threads} threads")
    table.add_column("network")
    for column in next(iter(results.values())):
        table.add_column(column, justify="right")
    for name, times in results.items():
        table.add_row(name, *(f"{seconds * 1e3:.2f}" for seconds in times.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
