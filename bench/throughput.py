"""Images a second: a batch in one call, and its images one by one on a thread each, beside other runtimes.

    python bench/throughput.py FOLDER [NAME ...] [--batch 8] [--threads N] [--seconds 20] [--scaling] [--json FILE]

FOLDER holds the networks that bench/export_networks.py writes. Runtimes take turns, a process each. `map` is
`Model.map`; `threads` is one session on one thread, called by N Python threads; `streams` is openvino under its
throughput hint, a stream a thread; `images` is ncnn, which takes no batch, on N threads, an image after another. The
ratio is convwright's better figure over the best of the others. Networks whose files fit no such batch are left out.
--scaling measures convwright alone on 1 to N threads.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from quiet import calm_on
from rich.console import Console
from rich.table import Table

import convwright as cw
from convwright.cli.race import Entry, Row, compete
from convwright.cli.workers import Workers
from convwright.files import replacing
from convwright.graph.shapes import infer
from convwright.runtime.machine import cores

OWN = ("convwright", "convwright-map")
OTHERS = (
    "onnxruntime", "onnxruntime-threads", "openvino", "openvino-streams", "torch", "ncnn-threads", "ncnn-images", "mnn",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--seconds", type=float, default=20.0, help="of each race")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.batch < 1 or options.threads < 1:
        parser.error(f"--batch and --threads must be positive, not {options.batch} and {options.threads}")
    usual = [path for path in sorted(options.folder.glob("*.onnx")) if "-" not in path.stem]  # the rest: other shapes
    paths = [path for path in usual if not options.names or path.stem in options.names]
    if not paths:
        parser.error(f"no networks {' '.join(options.names)} in {options.folder}")
    counts = list(range(1, options.threads + 1)) if options.scaling else [options.threads]
    peers = OWN if options.scaling else OWN + OTHERS
    table = Table("network", "threads", *peers, *([] if options.scaling else ["ratio"]), title="images a second")
    found: list[dict[str, Any]] = []
    for path in paths:
        if (reason := why_no_batch(path, options.batch)) is not None:
            print(f"{path.stem}: left out: {reason}")
            continue
        for threads in counts:
            rows = measure(path, peers, options.batch, threads, options.seconds)
            rates = {row.peer: options.batch / row.median_s if row.median_s else None for row in rows}
            reasons = {row.peer: row.reason for row in rows if row.reason}
            own, others = best(rates, OWN), best(rates, OTHERS)
            ratio = own / others if own and others else None
            cells = [f"{rate:.1f}" if (rate := rates[peer]) else "-" for peer in peers]
            if not options.scaling:
                cells.append(f"{ratio:.2f}" if ratio else "-")
            table.add_row(path.stem, str(threads), *cells)
            for peer, reason in reasons.items():
                print(f"{path.stem}: {peer}: {reason}")
            figures = {"images_per_second": rates, "ratio": ratio, "reasons": reasons}
            found.append({"network": path.stem, "threads": threads, "batch": options.batch, **figures})
            if options.json:
                with replacing(options.json.resolve()) as file:
                    file.write(json.dumps(found, indent=1).encode())
    Console(width=150).print(table)


def why_no_batch(path: Path, batch: int) -> str | None:
    """Why a network takes no such batch: it holds sizes that do not fit. A peer may compute something all the same."""
    graph = cw.load(path)
    for name, shape in shapes_of(graph).items():
        graph.inputs[name].shape = (batch, *shape[1:])
    try:
        infer(graph)
    except cw.ConvwrightError as error:
        return str(error)
    return None


def shapes_of(graph: cw.Graph) -> dict[str, tuple[int, ...]]:
    """The inputs' shapes, 224 where a size is open."""
    return {
        name: tuple(size if isinstance(size, int) else 224 for size in info.shape)
        for name, info in graph.inputs.items()
    }


def measure(path: Path, peers: tuple[str, ...], batch: int, threads: int, seconds: float) -> list[Row]:
    """One race on one network with random images."""
    generator = np.random.default_rng(0)
    inputs = {}
    graph = cw.load(path)
    for name, shape in shapes_of(graph).items():
        inputs[name] = generator.standard_normal((batch, *shape[1:])).astype(graph.inputs[name].dtype)
    entries = [Entry(peer, peer, str(path), inputs) for peer in peers]
    with Workers(threads) as workers:
        # Turns of several batches each, of the slow networks too.
        return compete(entries, workers, seconds=seconds, turn=0.5, compare=False, calm=calm_on(threads))


def best(rates: dict[str, float | None], peers: tuple[str, ...]) -> float | None:
    return max((rate for peer in peers if (rate := rates.get(peer))), default=None)


if __name__ == "__main__":
    main()
