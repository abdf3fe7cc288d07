#!/usr/bin/env python3
"""Integer convolutions beside those of other runtimes, one layer at a time: 8-bit NCHW in, NCHW out.

    python bench/integer.py [LAYER ...] [--ops ConvInteger,QLinearConv] [--against NAME,...] [--seconds 4] [--json]

A layer is written as a model of one node: unsigned input with a zero point, signed weights without; ConvInteger gives
32-bit sums, QLinearConv unsigned 8 bits, with a bias and a scale a channel. The runtimes take turns, a process each.
Times are medians of whole calls, in milliseconds; "to the best" is the best peer's time over convwright's, the median
over the rounds. "same" says that the results are onnxruntime's to the last bit. torch-int8 is what PyTorch's quantised
models run.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convwright.cli.options import print_json
from convwright.cli.race import Row, race, run_once
from convwright.cli.workers import Lost
from convwright.graph import Graph, Node, ValueInfo
from convwright.graph.onnx_writer import save
from convwright.spec import ConvSpec

LAYERS = {
    "64-64-3x3-56": (ConvSpec(64, 64, (3, 3), padding=1), 56),
    "128-128-3x3-28": (ConvSpec(128, 128, (3, 3), padding=1), 28),
    "256-256-3x3-14": (ConvSpec(256, 256, (3, 3), padding=1), 14),
    "256-256-1x1-14": (ConvSpec(256, 256, (1, 1)), 14),
    "64-256-1x1-56": (ConvSpec(64, 256, (1, 1)), 56),
    "128-128-3x3s2-56": (ConvSpec(128, 128, (3, 3), stride=2, padding=1), 56),
    "3-64-7x7s2-224": (ConvSpec(3, 64, (7, 7), stride=2, padding=3), 224),
    "3-32-3x3s2-224": (ConvSpec(3, 32, (3, 3), stride=2, padding=1), 224),
    "144-144-3x3dw-56": (ConvSpec(144, 144, (3, 3), padding=1, groups=144), 56),
}
OPS = ("ConvInteger", "QLinearConv")
INPUT_ZERO = np.uint8(120)


@dataclass(slots=True)
class Result:
    layer: str
    op: str
    macs: int
    rows: list[Row]
    same: bool | None

    @property
    def best(self) -> Row | None:
        """The fastest peer."""
        ratios = [row for row in self.rows if row.peer != "convwright" and row.ratio is not None]
        return min(ratios, key=lambda row: row.ratio or 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        rows = [row.to_dict() for row in self.rows]
        return {"layer": self.layer, "op": self.op, "macs": self.macs, "same": self.same, "rows": rows}


def model(spec: ConvSpec, op: str, size: int) -> tuple[Graph, np.ndarray]:
    """A graph of one node, and an input for it."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, spec.in_channels, size, size)).astype(np.uint8)
    pads = spec.pads((size, size))
    attributes = {
        "strides": list(spec.stride),
        "pads": [low for low, _ in pads] + [high for _, high in pads],
        "group": spec.groups,
        "kernel_shape": list(spec.kernel),
    }
    constants: dict[str, np.ndarray] = {
        "w": rng.integers(-127, 128, spec.weight_shape).astype(np.int8),
        "xz": np.array(INPUT_ZERO),
    }
    node = Node(op, ["x", "w", "xz"], ["y"], attributes)
    if op == "QLinearConv":
        channels = spec.out_channels
        spread = 74 * 74 * np.sqrt(np.prod(spec.weight_shape[1:]))
        constants |= {
            "xs": np.array(0.02, np.float32),
            "ws": rng.uniform(0.005, 0.02, channels).astype(np.float32),
            "wz": np.zeros(channels, np.int8),
            "ys": np.array(0.02 * 0.01 * spread / 50, np.float32),
            "yz": np.array(128, np.uint8),
            "b": rng.integers(-1000, 1001, channels).astype(np.int32),
        }
        node = Node(op, ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["y"], attributes)
    return Graph("layer", {"x": ValueInfo(x.dtype, x.shape)}, ["y"], [node], constants), x


def measure(layer: str, op: str, peers: list[str], threads: int, seconds: float) -> Result:
    spec, size = LAYERS[layer]
    graph, x = model(spec, op, size)
    with tempfile.TemporaryDirectory(prefix="convwright-integer-") as folder:
        path = str(Path(folder) / f"{layer}.onnx")
        save(graph, path)
        inputs = {"x": x}
        same = None
        if "onnxruntime" in peers:
            try:
                ((ours,), (theirs,)) = (run_once(name, path, inputs, threads=threads)[1] for name in peers[:2])
                same = bool(np.array_equal(ours, theirs))
            except Lost as error:
                print(f"{layer}, {op}: {error}", file=sys.stderr)
        rows = race(path, inputs, peers, threads=threads, seconds=seconds, compare=False)
    return Result(layer, op, spec.macs((size, size)), rows, same)


def line(result: Result, peers: list[str]) -> str:
    rows = {row.peer: row for row in result.rows}
    times = [rows[peer].median_s for peer in peers]
    cells = [f"{1e3 * seconds:.3f}" if seconds is not None else "-" for seconds in times]
    best, own = result.best, times[0]
    cells.append(f"{best.ratio:.2f} {best.peer}" if best is not None else "-")
    cells.append(f"{result.macs / own / 1e9:.0f}" if own is not None else "-")
    cells.append({True: "yes", False: "NO", None: "-"}[result.same])
    return " | ".join([result.layer, result.op, *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="*", metavar="LAYER", help=f"of {', '.join(LAYERS)}")
    parser.add_argument("--ops", default=",".join(OPS))
    parser.add_argument("--against", default="onnxruntime,openvino,torch-int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="for one layer, over all runtimes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    layers = options.layers or list(LAYERS)
    unknown = set(layers) - set(LAYERS)
    if unknown:
        parser.error(f"no such layer: {', '.join(sorted(unknown))}")
    peers = ["convwright", *options.against.split(",")]
    results = []
    if not options.json:
        print(" | ".join(["layer", "operator", *peers, "to the best", "GMAC/s", "same"]))
    for layer in layers:
        for op in options.ops.split(","):
            results.append(measure(layer, op, peers, options.threads, options.seconds))
            if not options.json:
                print(line(results[-1], peers), flush=True)
    if options.json:
        print_json([result.to_dict() for result in results])
    for result in results:
        for row in result.rows:
            if row.reason is not None:
                print(f"{result.layer}, {result.op}, {row.peer}: {row.reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
