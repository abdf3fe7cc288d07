"""Layers in strips beside layer after layer: each network compiled both ways, in turns in one process.

    python bench/strips.py FOLDER [NAME ...] [--runs 60]

FOLDER holds the networks that bench/export_networks.py writes. Prints the median milliseconds of one inference, the
ratio (above 1: strips are quicker), and how many layers went into how many chains. The outputs have to be equal to the
last bit.
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
    table = Table("network", "chains", "apart, ms", "strips, ms", "ratio")
    for path in sorted(options.folder.glob("*.onnx")):
        if options.names and path.stem not in options.names:
            continue
        graph = cw.load(path)
        shape = tuple(size if isinstance(size, int) else 1 for size in next(iter(graph.inputs.values())).shape)
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        models = [cw.compile(graph, threads=options.threads, strips=strips) for strips in (False, True)]
        apart, together = (model(x) for model in models)
        assert np.array_equal(apart, together), path
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.runs):
            for model, taken in zip(models, seconds, strict=True):
                model(x)
                start = time.perf_counter()
                model(x)
                taken.append(time.perf_counter() - start)
        lengths = [
            int(step.kernel.split()[-1])
            for step in models[1].profile(x, runs=1).steps
            if step.kernel.startswith("strips")
        ]
        a, b = (1e3 * median(taken) for taken in seconds)
        table.add_row(path.stem, f"{sum(lengths)} in {len(lengths)}", f"{a:.2f}", f"{b:.2f}", f"{a / b:.3f}")
        for model in models:
            model.close()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
