"""`convwright run`: images or arrays in; classes, pictures or arrays out."""

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from convwright.cli.options import (
    json_option,
    load_model,
    model_argument,
    print_json,
    progress_bar,
    threads_option,
    tune_option,
    tuning_bar,
)
from convwright.errors import ConvwrightError

if TYPE_CHECKING:
    from convwright.cli.images import Preparation
    from convwright.graph import Graph


@click.command()
@model_argument
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False), metavar="IMAGE...")
@click.option("--mean", default="0", show_default=True, metavar="M[,M,M]", help="Subtracted from scaled pixels.")
@click.option("--std", default="1", show_default=True, metavar="S[,S,S]", help="What then divides them.")
@click.option("--scale", type=float, metavar="X", help="Multiplies pixels of 0..255.  [default: 1/255]")
@click.option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Text file with the names of the classes, one a line.",
)
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="How many classes to print."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(),
    metavar="PATH",
    help="Where to write an output that is a picture (.png, .jpg, ...) or any output as an array (.npy): a file, or a "
    "folder, where files are named after the images.",
)
@threads_option
@tune_option
@json_option
def run(
    model: str,
    images: tuple[str, ...],
    mean: str,
    std: str,
    scale: float | None,
    labels: str | None,
    top: int,
    output: str | None,
    threads: int | None,
    tune: bool,
    as_json: bool,
) -> None:
    """Run a network on images or arrays: print classes, write pictures.

    IMAGE is a picture in any common format, turned as its EXIF data says, converted to RGB or luminance as the model
    asks, and resized where the model fixes the size; or a .npy array, taken as it is. The network is fed
    (pixel * scale - mean) / std, and a picture that it returns is turned back the same way.

    Examples: convwright run classifier.onnx cat.jpg --labels names.txt

              convwright run restorer.onnx noisy.png --output restored.png
    """
    import convwright as cw
    from convwright.cli.images import Preparation, check_output

    preparation = Preparation(scale if scale is not None else 1 / 255, _numbers("--mean", mean), _numbers("--std", std))
    targets = output_names(images, output)
    for target in targets:
        if target is not None:
            check_output(target)
    names = Path(labels).read_text(encoding="utf-8", errors="replace").splitlines() if labels else []
    graph = load_model(model)
    if not Path(model).exists():
        warnings.warn(f"built-in network {model!r} has random weights, so what it says means nothing", stacklevel=2)
    if len(graph.inputs) != 1:
        raise ConvwrightError(
            f"{model}: run feeds one input, the model has {len(graph.inputs)}: {', '.join(graph.inputs)}"
        )
    reports = []
    with progress_bar() as progress:
        task = progress.add_task("compiling", total=len(images))
        with cw.compile(graph, threads=threads, tune=tune, progress=tuning_bar(progress)) as compiled:
            for path, target in zip(images, targets, strict=True):
                progress.update(task, description=f"running {path}")
                x = _read(path, graph, preparation)
                try:
                    answer = compiled(x)
                except ConvwrightError as error:
                    raise ConvwrightError(f"{path}: {error}") from error
                answers = answer if isinstance(answer, dict) else {graph.outputs[0]: answer}
                reports.append(_report(path, answers, names, top, target, preparation))
                progress.advance(task)
    if as_json:
        print_json(reports)
    else:
        for report in reports:
            _print(report)


def output_names(images: tuple[str, ...], output: str | None) -> list[str | None]:
    """Where each image's answer goes: `output` itself, or a file in it named after the image where it is a folder."""
    if output is None:
        return [None] * len(images)
    folder = Path(output)
    if not folder.is_dir() and not output.endswith("/"):
        if len(images) > 1:
            raise ConvwrightError(f"--output {output}: {len(images)} images need a folder, and this is none")
        if not folder.parent.is_dir():
            raise ConvwrightError(f"--output {output}: no folder {folder.parent}")
        return [output]
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
    names = [str(folder / (Path(path).stem + (".npy" if path.endswith(".npy") else ".png"))) for path in images]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConvwrightError(f"--output {output}: {images[names.index(name)]} and {images[index]} share {name}")
    return list(names)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"{option} {text}: not numbers with commas between") from None


def _read(path: str, graph: "Graph", preparation: "Preparation") -> np.ndarray:
    from convwright.cli.images import read_array, read_image

    ((name, value),) = graph.inputs.items()
    if path.endswith(".npy"):
        array = read_array(path)
        return array[np.newaxis] if array.ndim == len(value.shape) - 1 else array
    if len(value.shape) != 4:
        raise ConvwrightError(f"{path}: input {name!r} has shape {value.shape}, an image needs (N, C, H, W)")
    batch, channels, height, width = (size if isinstance(size, int) else None for size in value.shape)
    if batch not in (None, 1):
        raise ConvwrightError(f"{path}: the model fixes a batch of {batch}, images are run one at a time")
    channels = channels or 3
    preparation.check(channels)
    pixels = read_image(path, channels, (height, width))
    dtype = np.dtype(value.dtype)
    if dtype == np.uint8:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))[np.newaxis]
    return preparation.apply(pixels)[np.newaxis].astype(dtype, copy=False)


def _report(
    path: str,
    answers: dict[str, np.ndarray],
    labels: list[str],
    top: int,
    target: str | None,
    preparation: "Preparation",
) -> dict[str, Any]:
    from convwright.cli.images import write_array, write_image

    outputs: list[dict[str, Any]] = []
    written = False
    for name, y in answers.items():
        entry: dict[str, Any] = {"name": name, "shape": list(y.shape)}
        image = y.ndim == 4 and y.shape[0] == 1 and y.shape[1] in (1, 3) and y.size > 0
        if y.ndim == 2 and y.shape[0] == 1 and y.size > 0:
            entry["classes"] = best_classes(y[0], labels, top)
        elif y.size > 0:
            entry.update(minimum=float(y.min()), mean=float(y.mean()), maximum=float(y.max()))
        if target is not None and not written and (image or target.endswith(".npy")):
            if target.endswith(".npy"):
                write_array(target, y)
            else:
                write_image(target, preparation.undo(y[0]))
            entry["written"], written = target, True
        outputs.append(entry)
    if target is not None and not written:
        shapes = ", ".join(f"{name} {tuple(y.shape)}" for name, y in answers.items())
        raise ConvwrightError(f"--output {target}: no output is shaped like an image: {shapes}")
    return {"input": path, "outputs": outputs}


def best_classes(scores: np.ndarray, labels: list[str], top: int) -> list[dict[str, Any]]:
    """The `top` classes, best first. Scores that do not already add up to 1 become probabilities through softmax."""
    scores = scores.astype(np.float64)
    probabilities = scores
    if scores.min() < 0 or abs(scores.sum() - 1) > 1e-3:
        exponentials = np.exp(scores - scores.max())
        probabilities = exponentials / exponentials.sum()
    return [
        {
            "class": int(index),
            "label": labels[index] if index < len(labels) else str(index),
            "score": float(scores[index]),
            "probability": float(probabilities[index]),
        }
        for index in np.argsort(-scores, kind="stable")[:top]
    ]


def _print(report: dict[str, Any]) -> None:
    click.echo(report["input"])
    for entry in report["outputs"]:
        if "classes" in entry:
            for item in entry["classes"]:
                click.echo(f"  {item['probability']:8.2%}  {item['label']}")
            continue
        shape = "x".join(map(str, entry["shape"]))
        spread = "empty"
        if "mean" in entry:
            spread = f"min {entry['minimum']:.4g}, mean {entry['mean']:.4g}, max {entry['maximum']:.4g}"
        click.echo(f"  {entry['name']}  {shape}  {spread}")
        if "written" in entry:
            click.echo(f"  wrote {entry['written']}")
