"""Functions of arrays: first calls, a call beside PyTorch's, HetConv beside its dense layer, MixConv beside its parts.

    python bench/functional.py

Interleaved in one run; the medians of each, in milliseconds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import convwright as cw

ROUNDS, WARM = 40, 3


def race(runs: dict[str, Callable[[], Any]], calls: int = 1) -> dict[str, float]:
    """The median milliseconds of each, turn by turn."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + WARM):
        for name, run in runs.items():
            run()  # what the one before has left in the caches and asleep is not this one's fault
            start = time.perf_counter()
            for _ in range(calls):
                run()
            if turn >= WARM:
                taken[name].append((time.perf_counter() - start) / calls * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def show(title: str, times: dict[str, float]) -> None:
    print(f"{title:32}", "  ".join(f"{name} {taken:.4f}" for name, taken in times.items()))


_FIRST = """
import time
import numpy as np
import convwright as cw
x, w = np.ones((1, 64, 56, 56), np.float32), np.ones((64, 64, 3, 3), np.float32)
cw.conv  # imports
start = time.perf_counter()
cw.conv(x, w, padding=1)
first = time.perf_counter()
cw.conv(x, w, padding=1)
again = time.perf_counter()
cw.conv(x[..., :48], w, padding=1)
print(first - start, again - first, time.perf_counter() - again)
"""


def first_calls() -> None:
    """The first call of a process, imports apart: without a compiled kernel in the cache, and with all of them."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "CONVWRIGHT_CACHE": folder}
        for title in ("first call, empty cache", "first call, full cache"):
            done = subprocess.run(
                [sys.executable, "-c", _FIRST], env=environment, capture_output=True, text=True, check=True
            )
            taken = [1e3 * float(word) for word in done.stdout.split()]
            show(title, dict(zip(("first", "the same again", "another size"), taken, strict=True)))


def main() -> None:
    first_calls()
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    x, w, b = normal(1, 4, 6, 6), normal(5, 4, 3, 3), normal(5)
    tx, tw, tb = (torch.from_numpy(array) for array in (x, w, b))
    torch.set_num_threads(1)  # more would spin, and take the cores away from what is measured next
    with torch.inference_mode():
        runs = {
            "convwright": lambda: cw.conv(x, w, b, padding=1),
            "torch": lambda: torch.nn.functional.conv2d(tx, tw, tb, padding=1),
        }
        show("4 -> 5, 3x3, 6x6: a call", race(runs, 50))
    for channels, size in ((128, 28), (256, 14), (64, 56)):
        x, w = normal(1, channels, size, size), normal(channels, channels, 3, 3)
        runs = {"dense direct": lambda x=x, w=w: cw.conv(x, w, padding=1, numerics="strict")}  # type: ignore[misc]
        runs["dense"] = lambda x=x, w=w: cw.conv(x, w, padding=1)  # type: ignore[misc]
        for part in (2, 4, 8):
            runs[f"het P={part}"] = lambda x=x, w=w, part=part: cw.het_conv(x, w, part=part, padding=1)  # type: ignore[misc]
        show(f"{channels} -> {channels}, 3x3, {size}x{size}", race(runs))
    for channels, size, kernels in ((64, 56, (3, 5, 7)), (120, 28, (3, 5, 7, 9)), (240, 14, (3, 5, 7, 9, 11))):
        whole = normal(1, channels, size, size)
        split = np.array_split(np.arange(channels), len(kernels))
        weights = [normal(len(own), 1, k, k) for own, k in zip(split, kernels, strict=True)]
        parts = [np.ascontiguousarray(whole[:, own]) for own in split]

        def apart(parts: Any = parts, weights: Any = weights) -> None:
            for part, weight in zip(parts, weights, strict=True):
                cw.conv(part, weight, padding="same", groups=len(weight))

        def mixed(whole: Any = whole, weights: Any = weights) -> None:
            cw.mix_conv(whole, weights)

        show(f"mix {kernels} of {channels}, {size}x{size}", race({"mix": mixed, "its parts, a call each": apart}, 5))


if __name__ == "__main__":
    main()
