"""One layer through every algorithm that can compute it, beside PyTorch.

    python bench/algorithms.py [--threads N] [--only TEXT]

Each line is a layer, each number milliseconds: the median of repeated calls of `convwright.conv` on row-major arrays
into an array that exists already, changes of layout included, and of PyTorch's function on tensors. "auto" names the
algorithm that the estimates choose. Input and weights are random.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

import convwright as cw
from convwright.codegen.target import host_target
from convwright.errors import ConvwrightError
from convwright.model.lower.conv import algorithm_of
from convwright.model.problem import Problem
from convwright.spec import ConvSpec

ALGORITHMS = ("direct-blocked", "direct-planes", "paired", "im2col", "winograd", "winograd-planes", "fft")
SECONDS = 0.2


@dataclass(frozen=True)
class Layer:
    """A convolution and the size of its input."""

    channels: int
    outs: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "".join(f" {name} {value}" for name, value in self.options.items() if name != "padding")
        size, kernel = ("x".join(map(str, values)) for values in (self.size, self.kernel))
        return f"{size} {self.channels} to {self.outs}, {kernel}{options}"


def same(channels: int, outs: int, kernel: tuple[int, ...], size: tuple[int, ...], **options: Any) -> Layer:
    return Layer(channels, outs, kernel, size, {"padding": tuple(taps // 2 for taps in kernel), **options})


LAYERS = (
    same(256, 256, (1, 1), (56, 56)), same(512, 512, (1, 1), (28, 28)), same(256, 64, (1, 1), (56, 56)),
    same(64, 64, (3, 3), (56, 56)), same(256, 256, (3, 3), (28, 28)), same(512, 512, (3, 3), (7, 7)),
    same(128, 128, (3, 3), (56, 56), stride=2), same(3, 64, (7, 7), (224, 224), stride=2),
    same(96, 96, (5, 5), (27, 27)), same(64, 64, (7, 7), (56, 56)), same(32, 32, (11, 11), (64, 64)),
    same(64, 64, (9, 9), (64, 64), groups=64), same(64, 64, (13, 13), (64, 64), groups=64),
    same(64, 64, (31, 31), (64, 64), groups=64), same(64, 64, (301,), (16000,), groups=64),
    same(128, 128, (9,), (4000,)), same(8, 8, (7, 7, 7), (24, 32, 32)),
)  # fmt: skip


def milliseconds(function: Callable[[], object]) -> float:
    times: list[float] = []
    function()
    function()
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


def times_of(layer: Layer, threads: int) -> list[str]:
    """The time of each algorithm, "" where it cannot; of PyTorch; and what "auto" takes."""
    import torch

    rng = np.random.default_rng(0)
    spec = ConvSpec(layer.channels, layer.outs, layer.kernel, **layer.options)
    x, w, b = (rng.standard_normal(shape).astype(np.float32)
               for shape in ((1, layer.channels, *layer.size), spec.weight_shape, (layer.outs,)))  # fmt: skip
    out = cw.conv(x, w, b, threads=threads, **layer.options)
    cells = []
    for algorithm in ALGORITHMS:
        options = {**layer.options, "threads": threads, "algorithm": algorithm, "out": out}
        try:
            cells.append(f"{milliseconds(lambda options=options: cw.conv(x, w, b, **options)):.3f}")  # type: ignore[misc]
        except ConvwrightError:
            cells.append("")
    function = getattr(torch.nn.functional, f"conv{len(layer.size)}d")
    tensors = [torch.from_numpy(array) for array in (x, w, b)]
    with torch.inference_mode():
        cells.append(f"{milliseconds(lambda: function(*tensors, **layer.options)):.3f}")
    problem = Problem(spec.resolve(layer.size), layer.size, 1, x.dtype, host_target(), threads,
                      plain_input=True, plain_output=True)  # fmt: skip
    row = algorithm_of(problem)
    return [*cells, f"{row.name} {row.variant}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="layers whose line contains this text")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    print("| layer |", " | ".join((*ALGORITHMS, "PyTorch", "auto")), "|")
    print("| --- |" + " ---: |" * (len(ALGORITHMS) + 1) + " --- |")
    for layer in LAYERS:
        if arguments.only in str(layer):
            print(f"| {layer} |", " | ".join(times_of(layer, arguments.threads)), "|", flush=True)


if __name__ == "__main__":
    main()
