"""How long a model takes to plan for a new input shape.

    python bench/plans.py NETWORK.onnx [SHAPE ...]

The network's single input is taken as free in batch, height and width, whatever its file says (a network that holds
fixed sizes inside then refuses). For each shape: planning for the first time, with the compilation of kernels that no
cache has; planning once more with the kernels in memory, which is what a new shape costs once its register tiles have
been met (the median of five); and a call.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

import convwright as cw
from convwright.graph import ValueInfo

SHAPES = ("1x3x224x224", "1x3x299x299", "1x3x331x299", "2x3x299x299", "1x3x315x300", "3x3x225x225")


def milliseconds(function: Callable[..., object], *operands: object) -> float:
    start = time.perf_counter()
    function(*operands)
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", metavar="NETWORK.onnx")
    parser.add_argument("shapes", metavar="SHAPE", nargs="*", default=SHAPES)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    graph = cw.load(options.network)
    (name,) = graph.inputs
    graph.inputs[name] = ValueInfo(np.dtype(np.float32), ("N", graph.inputs[name].shape[1], "H", "W"))
    table = Table(title=f"{options.network}, milliseconds")
    for heading in ("shape", "first plan", "plan again", "call"):
        table.add_column(heading, justify="right")
    with cw.compile(graph, threads=options.threads) as model:
        for text in options.shapes:
            shape = tuple(int(size) for size in text.split("x"))
            first = milliseconds(model.prepare, shape)
            again = []
            for _ in range(5):
                model.forget_plans()
                again.append(milliseconds(model.prepare, shape))
            x = np.zeros(shape, np.float32)
            model(x)
            table.add_row(text, f"{first:.0f}", f"{median(again):.1f}", f"{milliseconds(model, x):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
