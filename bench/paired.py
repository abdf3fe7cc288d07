"""Pointwise layers of well-known networks by products in pairs, beside direct summation.

    python bench/paired.py [--threads N] [--only TEXT] [--rounds N]

Both compute the same layer between neighbours in channel blocks, in turns, in one process: its own step is timed, as
tuning does (`convwright.model.timing`). Of each round the median counts, and of the rounds the median ratio. The errors
are the largest ones relative to the largest output, for normal random numbers.
"""

import argparse
from statistics import median

import numpy as np

from convwright.codegen.target import host_target
from convwright.graph import Graph, Node, ValueInfo
from convwright.model import plan, timing
from convwright.model.builder import Builder
from convwright.model.weights import Weights

LAYERS = (
    ("ResNet-50", 56, 64, 256), ("ResNet-50", 28, 512, 128), ("ResNet-50", 14, 256, 1024), ("ResNet-50", 7, 2048, 512),
    ("MobileNet v1", 56, 128, 128), ("MobileNet v1", 14, 512, 512), ("MobileNet v1", 7, 1024, 1024),
    ("MobileNet v2", 28, 32, 192), ("Xception", 19, 728, 728), ("Inception v3", 17, 768, 192),
    ("MobileNet v2", 56, 144, 24), ("a group of ShuffleNet v1", 14, 160, 40), ("a group of ShuffleNet v1", 28, 80, 40),
)  # fmt: skip
"""Network, rows and columns of pixels, channels in and out."""
WAYS = ("direct-blocked", "paired")


def planned(size: int, channels: int, outs: int, threads: int) -> Builder:
    """A plan of the layer between two others, from which `timing.race` takes it."""
    rng = np.random.default_rng(0)
    around = {"kernel_shape": (1, 1), "group": channels}
    nodes = [
        Node("Conv", ["x", "before"], ["inside"], around),
        Node("Conv", ["inside", "w"], ["y"], {"kernel_shape": (1, 1)}),
        Node("Conv", ["y", "after"], ["z"], {"kernel_shape": (1, 1), "group": outs}),
    ]
    constants = {
        "before": np.ones((channels, 1, 1, 1), np.float32),
        "w": (rng.standard_normal((outs, channels, 1, 1)) / channels**0.5).astype(np.float32),
        "after": np.ones((outs, 1, 1, 1), np.float32),
    }
    shape = (1, channels, size, size)
    graph = Graph("layer", {"x": ValueInfo(np.dtype(np.float32), shape)}, ["z"], nodes, constants)
    weights = Weights(constants, host_target().vector)
    return plan.make_plan(graph, {"x": shape}, weights, host_target(), threads, "default")


def seconds_of(b: Builder, rounds: int) -> list[list[float]]:
    """Of each way, in each round."""
    layer = next(layer for layer in b.layers if layer.output == "y")
    entries = [timing.Entry((layer,), (way,)) for way in WAYS]
    return [timing.race(b, entries) for _ in range(rounds)]


def error_of(size: int, channels: int, outs: int, way: str) -> float:
    import convwright as cw

    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, channels, size, size)).astype(np.float32)
    w = rng.standard_normal((outs, channels, 1, 1)).astype(np.float32)
    exact = w[:, :, 0, 0].astype(float) @ x.reshape(channels, -1)
    y = cw.conv(x, w, algorithm=way).reshape(outs, -1)
    return float(np.abs(y - exact).max() / np.abs(exact).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="layers of networks whose name contains this text")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| layer | direct, GFLOP/s | paired, GFLOP/s | paired / direct | error of direct | of paired |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for network, size, channels, outs in LAYERS:
        if arguments.only not in network:
            continue
        times = seconds_of(planned(size, channels, outs, arguments.threads), arguments.rounds)
        flops = 2e-9 * size * size * channels * outs
        rates = (f"{flops / median(own):.0f}" for own in zip(*times, strict=True))
        ratio = median(direct / paired for direct, paired in times)
        errors = (f"{error_of(size, channels, outs, way):.1e}" for way in WAYS)
        print(
            f"| {network}, {size} x {size}, {channels} to {outs} |", " | ".join((*rates, f"{ratio:.2f}", *errors)), "|"
        )


if __name__ == "__main__":
    main()
