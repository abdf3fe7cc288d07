"""`convwright bench`: time, first run, memory and accuracy, beside other runtimes in the same run."""

from typing import TYPE_CHECKING, Any

import click

from convwright.cli.options import (
    input_shapes,
    json_option,
    load_model,
    model_argument,
    model_file,
    print_json,
    progress_bar,
    random_inputs,
    shape_option,
    threads_option,
    tune_option,
    tuning_bar,
)
from convwright.errors import ConvwrightError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from rich.table import Table

    from convwright.cli.race import Row
    from convwright.graph import Graph

NOTE = (
    "time: median of one inference, runtimes taking turns, a process each; ratio: its time over convwright's. "
    "first run: from opening the file to the first answer, the runtime imported before (ncnn, mnn: with "
    "the conversion). memory: peak of the process beyond what importing the runtime took. "
    "error: largest deviation from a float64 run, over its largest absolute value."
)

BUSY = 0.1  # share of a core: a runtime that keeps more than this busy when it has nothing to do is named


@click.command()
@model_argument
@click.option(
    "--against",
    default="onnxruntime,openvino,torch,ncnn",
    show_default=True,
    metavar="NAME,...",
    help="Runtimes to compare with; one that is not installed is reported and left out.",
)
@shape_option
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Size of every input's first axis.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="S",
    help="How long to time, all runtimes together; each has three turns at least.",
)
@threads_option
@tune_option
@json_option
def bench(
    model: str,
    against: str,
    shapes: tuple[str, ...],
    batch: int | None,
    seconds: float,
    threads: int | None,
    tune: bool,
    as_json: bool,
) -> None:
    """Time a network beside other runtimes, and check the answers of all.

    Each runtime has a process of its own; they take turns, with the same inputs (random values) and the same number of
    threads. A float64 run says how exact each one's answers are. With --tune, what is measured is stored before the
    first turn.

    Example: convwright bench model.onnx --batch 3 --against onnxruntime
    """
    from convwright.cli.peers import PEERS
    from convwright.cli.race import race
    from convwright.cli.workers import Lost
    from convwright.runtime.machine import cores

    peers = list(dict.fromkeys(["convwright", *(name.strip() for name in against.split(",") if name.strip())]))
    unknown = [name for name in peers if name not in PEERS]
    if unknown:
        raise click.UsageError(f"--against {','.join(unknown)}: known are {', '.join(PEERS)}")
    graph = load_model(model, seed=None)
    inputs = random_inputs(graph, input_shapes(graph, shapes, batch))
    threads = threads or cores()
    with progress_bar() as progress, model_file(model) as path:
        if tune:
            _tune(graph, inputs, threads, tuning_bar(progress))
        del graph  # its weights; the workers read their own
        task = progress.add_task("starting", total=1.0)
        try:
            rows = race(
                path,
                inputs,
                peers,
                threads=threads,
                seconds=seconds,
                required=["convwright"],
                tune=tune,
                report=lambda what, share: progress.update(task, description=what, completed=share),
            )
        except Lost as error:
            raise ConvwrightError(f"{model}: {error}") from error
    sizes = {name: list(array.shape) for name, array in inputs.items()}
    if as_json:
        print_json({"model": model, "threads": threads, "inputs": sizes, "rows": [row.to_dict() for row in rows]})
    else:
        print_table(model, threads, sizes, rows)


def _tune(
    graph: "Graph", inputs: "Mapping[str, np.ndarray]", threads: int, report: "Callable[[str, float], None]"
) -> None:
    """Have the choices for these inputs' shapes stored, where the race's workers find them."""
    import convwright as cw

    for name, array in inputs.items():
        graph.inputs[name].shape = array.shape
    cw.compile(graph, threads=threads, tune=True, progress=report).close()


def print_table(model: str, threads: int, sizes: dict[str, list[int]], rows: "Sequence[Row]") -> None:
    """The table for people, on standard output."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sizes.items())
    console.print(f"{model}: {shapes}, {threads} thread{'s' * (threads > 1)}", soft_wrap=True, markup=False)
    console.print(bench_table(rows))
    for row in rows:
        if row.reason is not None:
            console.print(f"{row.peer}: {row.reason}", soft_wrap=True, markup=False)
        elif row.busy >= BUSY:
            console.print(f"{row.peer}: kept {row.busy:.0%} of a core busy while others ran")
    console.print(NOTE, style="dim")


def bench_table(rows: "Sequence[Row]") -> "Table":
    """One line a runtime."""
    from rich.table import Table

    table = Table("runtime", "version")
    for heading in "time, ms", "ratio", "first run, ms", "memory, MB", "error":
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.peer, row.version, *figures(row))
    return table


def figures(row: "Row") -> list[str]:
    """A row's figures as text: time, ratio, first run, memory, error."""

    def shown(value: Any, form: str) -> str:
        return "-" if value is None else form.format(value)

    def scaled(value: float | None, factor: float) -> float | None:
        return None if value is None else value * factor

    return [
        shown(scaled(row.median_s, 1e3), "{:.2f}"),
        shown(row.ratio, "{:.2f}"),
        shown(scaled(row.first_s, 1e3), "{:.0f}"),
        shown(scaled(row.beyond, 1e-6), "{:.1f}"),
        shown(row.error, "{:.1e}"),
    ]
