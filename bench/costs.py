"""How long `cw.cost` takes: milliseconds of a process's first call, imports included, and the median of later ones.

    python bench/costs.py [NAME or FILE ...]    built-in networks (all by default), ONNX files, or `deep`:
                                                156 layers with weights, the bottlenecks of ResNet-152

Weights of built-in networks are zeros that take no memory; reading a file or building a graph is not timed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import convwright as cw
from convwright.graph import Graph
from convwright.networks.assembly import Assembly, Tensor

RUNS = 15


def deep() -> Graph:
    """The graph of ResNet-152 (arXiv 1512.03385, table 1), each batch norm a node of its own."""
    net = Assembly("deep", (3, 224, 224), seed=None)

    def normalised(name: str, x: Tensor, channels: int, kernel: int, stride: int = 1) -> Tensor:
        x = net.conv(name, x, channels, kernel, stride=stride, padding=kernel // 2)
        return net.batch_norm(f"{name}.bn", x)

    x = net.max_pool(net.relu(normalised("stem", net.input, 64, 7, 2)), 3, 2, padding=1)
    for stage, (depth, width) in enumerate(((3, 64), (8, 128), (36, 256), (3, 512))):
        for index in range(depth):
            with net.scope(f"{stage}.{index}"):
                stride = 2 if stage and not index else 1
                y = net.relu(normalised("reduce", x, width, 1))
                y = normalised("expand", net.relu(normalised("middle", y, width, 3, stride)), 4 * width, 1)
                x = net.relu(net.add(y, x if index else normalised("shortcut", x, 4 * width, 1, stride)))
    return net.finish(net.linear("fc", net.flatten(net.global_average_pool(x)), 1000))


def measure(name: str) -> str:
    graph = deep() if name == "deep" else cw.load(name) if os.path.exists(name) else cw.networks.build(name, seed=None)
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
    for name in options.names or (*cw.networks.TABLE, "deep"):
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    main()
