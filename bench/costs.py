"""How long `cw.cost` takes: milliseconds of a process's first call, imports included, and the median of later ones.

    python bench/costs.py [NAME or FILE ...]    built-in networks (all by default) and ONNX files

Weights of built-in networks are zeros that take no memory; reading a file or building a graph is not timed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import convwright as cw

RUNS = 15


def measure(name: str) -> str:
    graph = cw.load(name) if os.path.exists(name) else cw.networks.build(name, seed=None)
    seconds = []
    for _ in range(1 + RUNS):
        begin = time.perf_counter()
        found = cw.cost(graph)
        seconds.append(time.perf_counter() - begin)
    first, *later = seconds
    weighted = sum(layer.macs > 0 for layer in found)
    return f"{name:<24}{weighted:>9}{len(found):>9}{1e3 * first:>11.1f}{1e3 * statistics.median(later):>11.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measure(options.names[0]))
        return
    print(f"{'network':<24}{'with MACs':>9}{'layers':>9}{'first, ms':>11}{'later, ms':>11}")
    for name in options.names or cw.networks.TABLE:
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    main()
