"""Options that several verbs share, and the values behind them."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from convwright.errors import ConvwrightError

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress

    from convwright.graph import Graph


def model_or_name(value: str) -> str:
    """The file, if it exists, or the name of a built-in network; click.BadParameter where it is neither."""
    if os.path.isdir(value):
        raise click.BadParameter(f"{value!r} is a directory")
    if os.path.exists(value):
        return value
    from convwright.networks import require

    if os.sep in value or "." in value:
        raise click.BadParameter(f"file {value!r} does not exist")
    try:
        return require(value)
    except ConvwrightError as error:
        raise click.BadParameter(f"file {value!r} does not exist, and {error}") from None


model_argument = click.argument("model", callback=lambda context, parameter, value: model_or_name(value))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="How many threads to use.  [default: the cores that this process may use]",
)
tune_option = click.option(
    "--tune",
    is_flag=True,
    help="Choose convolutions' algorithms by measurement; what is measured is stored, and not measured again.",
)
shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="[NAME=]SIZES",
    help="Shape of an input, such as 1x3x224x224, where the model leaves sizes open. Several inputs: one NAME=SIZES "
    "each.",
)


def load_model(model: str, *, seed: int | None = 0) -> "Graph":
    """The network in an ONNX file, or the built-in one of that name where there is no such file.

    - `seed`: of a built-in network's random weights; None where they do not matter.
    """
    import convwright as cw

    return cw.load(model) if os.path.exists(model) else cw.networks.build(model, seed=seed)


@contextmanager
def model_file(model: str) -> Iterator[str]:
    """The path of an ONNX file with that network, written for the time being if it is a built-in one."""
    if os.path.exists(model):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="convwright-") as folder:
        path = os.path.join(folder, f"{model}.onnx")
        load_model(model).save(path)
        yield path


def parse_shape(text: str) -> tuple[int, ...]:
    """The sizes in `1x3x224x224`.

    >>> parse_shape("1x3x224x224")
    (1, 3, 224, 224)
    """
    try:
        shape = tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a shape such as 1x3x224x224", param_hint="--shape") from None
    if any(size < 0 for size in shape):
        raise click.BadParameter(f"{text!r} has a negative size", param_hint="--shape")
    return shape


def input_shapes(graph: "Graph", shapes: tuple[str, ...], batch: int | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every input: as the user says, else as the model fixes it; a free first axis is the batch, 1.

    Raises `click.UsageError` for a name that the model does not have, and `ConvwrightError` for an axis nobody fixes.
    """
    said: dict[str, tuple[int, ...]] = {}
    for text in shapes:
        name, separator, sizes = text.rpartition("=")
        if not separator and len(graph.inputs) > 1:
            raise click.UsageError(f"--shape {text}: which of the inputs {', '.join(graph.inputs)}? Say NAME={text}")
        name = name if separator else next(iter(graph.inputs), "")
        if name not in graph.inputs:
            raise click.UsageError(f"--shape {text}: the model's inputs are {', '.join(graph.inputs)}")
        said[name] = parse_shape(sizes)
        declared = graph.inputs[name].shape
        if len(said[name]) != len(declared):
            raise ConvwrightError(f"--shape {said[name]}: input {name!r} has {len(declared)} axes, {declared}")
    from convwright.cost.subject import input_shapes as complete

    try:
        return complete(graph, said, batch)
    except ConvwrightError as error:
        raise ConvwrightError(f"{error} with --shape") from None


def random_inputs(graph: "Graph", shapes: Mapping[str, tuple[int, ...]]) -> dict[str, "np.ndarray"]:
    """Standard normal values (zeros and ones for integers), the same at every call."""
    import numpy as np

    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in shapes.items():
        dtype = np.dtype(graph.inputs[name].dtype)
        whole = dtype.kind not in "fc"
        arrays[name] = (rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)).astype(dtype)
    return arrays


def print_json(value: Any) -> None:
    """JSON on standard output; what is not finite becomes null, for JSON has no word for it."""
    click.echo(json.dumps(_plain(value), indent=2))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)


@contextmanager
def progress_bar() -> Iterator["Progress"]:
    """A progress bar on standard error where that is a terminal; in a pipe, nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def tuning_bar(progress: "Progress") -> Callable[[str, float], None]:
    """What `compile(progress=...)` calls while it measures: a bar of its own, which leaves when all is done."""
    task = progress.add_task("tuning", total=1.0, visible=False)
    return lambda what, share: progress.update(task, description=what, completed=share, visible=share < 1)
