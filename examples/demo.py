"""The demonstration: restore a photograph, read handwritten digits, and show what each network costs.

::

    python examples/demo.py                              # the photograph in examples/photos
    python examples/demo.py holiday.jpg --out restored   # another one, of any size; noise is added to it
    python examples/demo.py grainy.jpg --as-is           # one that is noisy already

Three networks, all trained by the scripts beside this file: `denoise/restorer.onnx` removes noise from photographs of
any size, `digits/standard.onnx` and `digits/separable.onnx` read digits of 8x8 pixels, with standard and with
depthwise-separable convolutions.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
# Run as a file, Python looks for modules in examples/ itself; the scripts are one package, so look beside it.
sys.path.insert(0, str(HERE.parent))

import convwright as cw  # noqa: E402 (after the line above, as those that follow)
from convwright.cli import describe_os_error  # noqa: E402
from convwright.cli.race import Row, race  # noqa: E402
from convwright.runtime.team import check_threads  # noqa: E402
from examples.digits.data import load_held_out  # noqa: E402
from examples.images import (  # noqa: E402
    SIGMA,
    add_noise,
    from_batch,
    load_picture,
    psnr,
    quantised,
    save_picture,
    to_batch,
)

Array = npt.NDArray[np.float32]

RESTORER = HERE / "denoise" / "restorer.onnx"
DIGITS = {kind: HERE / "digits" / f"{kind}.onnx" for kind in ("standard", "separable")}
PHOTOGRAPH = HERE / "photos" / "chelsea.png"
TIMED_SIZE = 512
"""Pixels a side of the photograph's corner that is timed, so that a large one does not take minutes."""
TIMED_DIGITS = 64
"""Digits in one call where time is measured: for a single one, the call itself would be what is measured."""
SECONDS = 2.0
"""How long each network is timed, both runtimes together."""


def restore(picture: Array, options: argparse.Namespace, console: Console) -> Array:
    """Restore the photograph, write the noisy and the restored one, and return what the network was fed."""
    # The noisy picture is a file too, so its noise is clipped to 0..1 and rounded to 8 bits before it is measured.
    noisy = picture if options.as_is else quantised(add_noise(picture, seed=options.seed, clip=True))
    image = to_batch(noisy)
    with console.status("restoring"), cw.compile(RESTORER, threads=options.threads) as model:
        restored = quantised(from_batch(np.asarray(model(image))))

    written: dict[str, Path] = {}
    pictures = [("restored", restored)] if options.as_is else [("noisy", noisy), ("restored", restored)]
    for name, result in pictures:
        written[name] = options.out / f"{options.image.stem}-{name}.png"
        save_picture(result, written[name])

    height, width = picture.shape[:2]
    noise = "as it is" if options.as_is else f"with Gaussian noise of sigma {SIGMA * 255:.0f} of 255 added"
    show(console, f"1. {options.image.name}, {width} x {height} pixels, {noise}")
    if not options.as_is:
        before, after = psnr(noisy, picture), psnr(restored, picture)
        show(console, f"   PSNR {before:.2f} dB before, {after:.2f} dB after restoring: {after - before:+.2f} dB")
    for name, file in written.items():
        show(console, f"   {name + ' picture:':<18}{file}")
    return image


def read_digits(options: argparse.Namespace, console: Console) -> Array:
    """Classify the held-out digits with both networks and return the digits."""
    images, labels = load_held_out()
    table = Table("convolutions", box=SIMPLE)
    table.add_column("read right", justify="right")
    table.add_column("accuracy", justify="right")
    for kind, path in DIGITS.items():
        with console.status(f"reading digits: {kind}"), cw.compile(path, threads=options.threads) as model:
            right = np.argmax(np.asarray(model(images)), axis=1) == labels
        table.add_row(kind, f"{right.sum()} of {len(labels)}", f"{right.mean():.2%}")
    show(console, f"\n2. {len(labels)} handwritten digits that no network was trained on")
    console.print(table)
    return images


def show(console: Console, line: str) -> None:
    """A line of text, not wrapped: names of files stay whole."""
    console.print(line, markup=False, soft_wrap=True)


def count(path: Path, image: Array) -> tuple[int, int]:
    """The network's parameters, and its multiply-accumulates for `image`."""
    from convwright.graph import infer

    graph = cw.load(path)
    shapes = infer(graph, {next(iter(graph.inputs)): image.shape})
    parameters = macs = 0
    for node in graph.nodes:
        if node.op in ("Conv", "Gemm", "BatchNormalization"):
            parameters += sum(graph.constants[name].size for name in node.inputs[1:3] if name)
        if node.op in ("Conv", "Gemm"):
            output = shapes[node.outputs[0]].shape
            weight = graph.constants[node.inputs[1]]
            # every output value sums over one filter: C/groups x kernel, or the other axis of a matrix
            macs += prod(int(size) for size in output if size) * (weight.size // int(output[1] or 1))
    return parameters, macs


def show_costs(cases: dict[str, tuple[Path, Array]], threads: int, console: Console) -> None:
    """Print size, work and time of each network; both runtimes take turns in one run, a process each."""
    table = Table("network", box=SIMPLE, collapse_padding=True)
    for heading in ("input", "parameters", "million\nMACs", "convwright\nms", "ONNX Runtime\nms", "ratio"):
        table.add_column(heading, justify="right")
    notes = []
    for name, (path, image) in cases.items():
        parameters, macs = count(path, image)
        with console.status(f"timing {name}"):
            rows = race(
                str(path), {"image": image}, ("convwright", "onnxruntime"),
                threads=threads, seconds=SECONDS, compare=False,
            )  # fmt: skip
        notes += [f"   {name}, {row.peer}: {row.reason}" for row in rows if row.reason]
        shape = "x".join(map(str, image.shape))
        own, peer = (row.median_s for row in rows)
        table.add_row(
            name, shape, f"{parameters:,}", f"{macs / 1e6:,.1f}", *map(_milliseconds, rows),
            f"{peer / own:.2f}" if own and peer else "-",
        )  # fmt: skip
    show(console, f"3. What each network costs, on {threads} thread{'s' * (threads > 1)}, float32")
    console.print(table)
    for note in notes:
        show(console, note)
    show(console, "   1 MAC (multiply-accumulate) = 2 FLOPs. Times are medians, the runtimes taking turns;")
    show(console, "   ratio: ONNX Runtime's time over convwright's; above 1, convwright is the faster one.")


def _milliseconds(row: Row) -> str:
    return "-" if row.median_s is None else f"{row.median_s * 1e3:.2f}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Restore a photograph, read digits, show what each network costs.")
    parser.add_argument("image", nargs="?", type=Path, default=PHOTOGRAPH, help="image file of any size")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder for the pictures, made if missing"
    )
    parser.add_argument("--as-is", action="store_true", help="the image is noisy already: add no noise")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--threads", type=int, help="by default, the cores that this process may use")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error(f"argument --seed: {options.seed} is negative")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit code, 2 for input that cannot be used."""
    options = parse(arguments)
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 100
    try:
        options.threads = check_threads(options.threads)
        image = restore(load_picture(options.image), options, console)
        digits = read_digits(options, console)
        cases = {"restorer": (RESTORER, np.ascontiguousarray(image[:, :, :TIMED_SIZE, :TIMED_SIZE]))}
        show_costs(
            cases | {kind: (path, digits[:TIMED_DIGITS]) for kind, path in DIGITS.items()}, options.threads, console
        )
    except (cw.ConvwrightError, OSError, MemoryError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error) or "out of memory"
        print(f"demo: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
