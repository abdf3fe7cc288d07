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
from convwright.cli.race import Row, race  # noqa: E402
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
DIGITS_BATCH = 64
"""Digits in one call where time is measured: for a single one, the call itself would be what is measured."""


def restore(model: cw.Model, options: argparse.Namespace, console: Console) -> Array:
    """Restore the photograph, write the noisy and the restored one, and return what the network was fed."""
    picture = load_picture(options.image)
    # The noisy picture is a file too, so its noise is clipped to 0..1 and rounded to 8 bits before it is measured.
    noisy = picture if options.as_is else quantised(add_noise(picture, seed=options.seed, clip=True))
    image = to_batch(noisy)
    restored = np.clip(from_batch(np.asarray(model(image))), 0, 1)

    files = {name: options.out / f"{options.image.stem}-{name}.png" for name in ("noisy", "restored")}
    save_picture(noisy, files["noisy"])
    save_picture(restored, files["restored"])
    height, width = picture.shape[:2]
    console.print(f"{options.image.name}, {width} x {height} pixels", markup=False)
    table = Table("photograph", box=SIMPLE)
    table.add_column("PSNR", justify="right")
    table.add_column("file", overflow="fold")
    noisy_psnr, restored_psnr = ("", "") if options.as_is else (_decibels(noisy, picture), _decibels(restored, picture))
    noise = "as given" if options.as_is else f"noise of sigma {SIGMA * 255:.0f} of 255 added"
    table.add_row(noise, noisy_psnr, str(files["noisy"]))
    table.add_row("restored", restored_psnr, str(files["restored"]))
    console.print(table)
    return image


def _decibels(picture: Array, reference: Array) -> str:
    return f"{psnr(picture, reference):.2f} dB"


def read_digits(models: dict[str, cw.Model], console: Console) -> Array:
    """Classify the held-out digits with both networks and return the digits."""
    images, labels = load_held_out()
    console.print(f"{len(labels)} handwritten digits that no network was trained on")
    table = Table("convolutions", box=SIMPLE)
    table.add_column("right", justify="right")
    table.add_column("accuracy", justify="right")
    for kind, model in models.items():
        right = np.argmax(np.asarray(model(images)), axis=1) == labels
        table.add_row(kind, str(right.sum()), f"{right.mean():.2%}")
    console.print(table)
    return images


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
    table = Table("network", box=SIMPLE)
    for heading in ("input", "parameters", "MACs", "convwright", "ONNX Runtime", "ratio"):
        table.add_column(heading, justify="right")
    for name, (path, image) in cases.items():
        parameters, macs = count(path, image)
        with console.status(f"timing {name}"):
            own, peer = race(str(path), {"image": image}, ("convwright", "onnxruntime"), threads=threads, seconds=3)
        shape = "x".join(map(str, image.shape))
        ratio = "" if peer.ratio is None else f"{peer.ratio:.2f}"
        table.add_row(
            name, shape, f"{parameters:,}", f"{macs / 1e6:,.1f} M", _milliseconds(own), _milliseconds(peer), ratio
        )
    console.print(f"What each network costs on {threads} threads; ratio: ONNX Runtime's time over convwright's")
    console.print(table)


def _milliseconds(row: Row) -> str:
    return row.reason or "" if row.median_s is None else f"{row.median_s * 1e3:.2f} ms"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Restore a photograph, read digits, show what each network costs.")
    parser.add_argument("image", nargs="?", type=Path, default=PHOTOGRAPH, help="image file of any size")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the images (made if missing)")
    parser.add_argument("--as-is", action="store_true", help="the image is noisy already: add no noise")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; returns the exit code, 2 for input that cannot be used."""
    options = parse(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    try:
        restorer = cw.compile(RESTORER, threads=options.threads)
        readers = {kind: cw.compile(path, threads=options.threads) for kind, path in DIGITS.items()}
        image = restore(restorer, options, console)
        digits = read_digits(readers, console)[:DIGITS_BATCH]
    except (cw.ConvwrightError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    cases = {"restorer": (RESTORER, image)} | {kind: (path, digits) for kind, path in DIGITS.items()}
    show_costs(cases, options.threads, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
