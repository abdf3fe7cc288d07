"""Choices by measurement beside choices by estimate: each network compiled both ways, in turns in one process.

    python bench/tuning.py FOLDER [NAME ...] [--runs 60]

FOLDER holds the networks that bench/export_networks.py writes. Prints the median milliseconds of one inference, the
ratio (above 1: the tuned plan is quicker), the seconds of the first compilation with tune=True, and which layers
changed. Outputs have to agree within 2e-5 of their largest value.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

import convwright as cw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    table = Table("network", "estimated, ms", "tuned, ms", "ratio", "tuning, s", "layers changed")
    for path in sorted(options.folder.glob("*.onnx")):
        if options.names and path.stem not in options.names:
            continue
        graph = cw.load(path)
        info = next(iter(graph.inputs.values()))
        shape = tuple(size if isinstance(size, int) else 1 for size in info.shape)
        info.shape = shape
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        start = time.perf_counter()
        cw.compile(graph, threads=options.threads, tune=True).close()
        took = time.perf_counter() - start
        models = [cw.compile(graph, threads=options.threads, tune=tune) for tune in (False, True)]
        expected, found = (model(x) for model in models)
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max(), path
        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(options.runs):
            for at in (0, 1) if number % 2 else (1, 0):
                models[at](x)
                begin = time.perf_counter()
                models[at](x)
                seconds[at].append(time.perf_counter() - begin)
        kernels = [
            {step.layer: step.kernel for step in model.profile(x, runs=1).steps if step.macs} for model in models
        ]
        changed = [layer for layer in kernels[1] if kernels[1][layer] != kernels[0].get(layer)]
        a, b = (1e3 * median(taken) for taken in seconds)
        table.add_row(
            path.stem, f"{a:.2f}", f"{b:.2f}", f"{a / b:.3f}", f"{took:.1f}", f"{len(changed)} of {len(kernels[1])}"
        )
        for layer in changed:
            print(path.stem, layer, kernels[0].get(layer), "->", kernels[1][layer])
        for model in models:
            model.close()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
