"""`convwright compare`: two networks, or a convolution and its replacement, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from convwright.cli.described import KINDS, described, is_described
from convwright.cli.options import (
    input_shapes,
    json_option,
    load_model,
    model_or_name,
    parse_shape,
    print_json,
    progress_bar,
    random_inputs,
    shape_option,
    threads_option,
)
from convwright.errors import ConvwrightError

if TYPE_CHECKING:
    from convwright.cost import Cost
    from convwright.graph import Graph

_SECONDS = 1.0  # of measuring, for each of the two
_MOST_RUNS = 200


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--in", "shape", metavar="NxCxSIZES", help="The input's shape, where A and B are convolutions.")
@click.option("--no-measure", is_flag=True, help="Leave out the measured times: nothing runs.")
@threads_option
@shape_option
@json_option
def compare(
    first: str, second: str, shape: str | None, no_measure: bool, threads: int | None, shapes: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Show two networks, or a convolution and its replacement, side by side, with times taken in turns.

    A and B are each an ONNX file, the name of a built-in network, or a convolution in a few words: its kind, the output
    channels, k the kernel, s the stride, d the dilation, g the groups, p the padding ("same" unless given), m the
    filters a channel of a depthwise stage, part the P of HetConv. Convolutions need --in.

    \b
    Examples: convwright compare resnet50 mobilenet_v2
              convwright compare "standard 128 k3" "separable 128 k3" --in 1x64x56x56
              convwright compare "standard k3" "het k3 part4" --in 1x64x56x56
    """
    sides = [_side(text, shape, shapes) for text in (first, second)]
    if not no_measure:
        _measure(sides, threads)
    rows = [_figures(side) for side in sides]
    if as_json:
        print_json({"a": rows[0], "b": rows[1]})
    else:
        click.echo(_text(rows), nl=False)


class _Side:
    """One of the two: its graph, what it costs, and the median seconds of an inference."""

    def __init__(self, name: str, graph: Graph, sizes: dict[str, tuple[int, ...]], cost: Cost):
        self.name, self.graph, self.sizes, self.cost = name, graph, sizes, cost
        self.seconds: float | None = None


def _side(text: str, shape: str | None, shapes: tuple[str, ...]) -> _Side:
    import convwright as cw

    if not is_described(text):
        try:
            model = model_or_name(text)
        except click.BadParameter as error:
            raise ConvwrightError(f"{error.message}; a convolution begins with {', '.join(KINDS)}") from None
        graph = load_model(model)
        sizes = input_shapes(graph, shapes)
        return _Side(text, graph, sizes, cw.cost(graph, shapes=sizes))
    if shape is None:
        raise click.UsageError(f"{text!r} is a convolution, which needs --in, such as --in 1x64x56x56")
    whole = parse_shape(shape)
    if not 3 <= len(whole) <= 5:
        raise click.BadParameter(f"{shape!r} is no batch, channels and 1 to 3 sizes", param_hint="--in")
    from convwright.cost.subject import graph_of

    spec = described(text, whole[1], len(whole) - 2)
    graph, sizes = graph_of(spec, whole, None, None, "float32")
    return _Side(text, _with_weights(graph), sizes, cw.cost(spec, shapes=whole))


def _with_weights(graph: Graph) -> Graph:
    """The graph with random weights, as layers that are trained have."""
    import numpy as np

    rng = np.random.default_rng(0)
    graph = graph.copy()
    for name, array in graph.constants.items():
        graph.constants[name] = rng.standard_normal(array.shape).astype(array.dtype)
    return graph


def _measure(sides: Sequence[_Side], threads: int | None) -> None:
    """Median times, A and B by turns."""
    import convwright as cw

    with progress_bar() as progress:
        task = progress.add_task("compiling", total=None)
        models = [cw.compile(side.graph, threads=threads) for side in sides]
        inputs = [random_inputs(side.graph, side.sizes) for side in sides]
        for model, arrays in zip(models, inputs, strict=True):
            model(arrays)
        progress.update(task, description="measuring")
        taken: list[list[float]] = [[], []]
        begin = time.perf_counter()
        while (time.perf_counter() - begin < 2 * _SECONDS and len(taken[0]) < _MOST_RUNS) or len(taken[0]) < 3:
            for model, arrays, seconds in zip(models, inputs, taken, strict=True):
                # The first call brings back into the caches what the other has driven out.
                model(arrays)
                start = time.perf_counter()
                model(arrays)
                seconds.append(time.perf_counter() - start)
        for side, model, seconds in zip(sides, models, taken, strict=True):
            side.seconds = median(seconds)
            model.close()


def _figures(side: _Side) -> dict[str, Any]:
    field = side.cost.field
    return {
        "name": side.name,
        "inputs": {name: list(shape) for name, shape in side.sizes.items()},
        "output": list(side.cost.layers[-1].output_shape),
        **side.cost.total.figures(),
        "receptive_field": None if field is None else [axis.size for axis in field],
        "effective_stride": None if field is None else [str(axis.stride) for axis in field],
        "seconds": side.seconds,
    }


_ROWS = (
    ("parameters", "parameters"), ("macs", "MACs"), ("flops", "FLOPs"), ("elementwise", "elementwise"),
    ("bytes_weights", "weights, B"), ("bytes_activations", "written, B"), ("bytes_moved", "moved, B"),
    ("bytes_peak", "alive, B"), ("intensity", "FLOPs a byte"),
)  # fmt: skip


def _text(rows: Sequence[dict[str, Any]]) -> str:
    from rich.table import Table

    from convwright.model.report import render

    table = Table(caption="one MAC is one multiply-accumulate, FLOPs are twice the MACs; alive: the most at one time")
    table.add_column("")
    for row in rows:
        table.add_column(row["name"], justify="right", overflow="fold")
    table.add_column("B / A", justify="right")
    for key in ("inputs", "output"):
        shapes = [list(row[key].values()) if key == "inputs" else [row[key]] for row in rows]
        table.add_row(key.removesuffix("s"), *(", ".join(_by(shape) for shape in side) for side in shapes), "")
    for key, heading in _ROWS:
        a, b = (row[key] for row in rows)
        table.add_row(
            heading, *(f"{value:,.1f}" if key == "intensity" else f"{value:,}" for value in (a, b)), _ratio(a, b)
        )
    table.add_row("receptive field", *(_by(row["receptive_field"] or ["-"]) for row in rows), "")
    table.add_row("its stride", *(_by(row["effective_stride"] or ["-"]) for row in rows), "")
    a, b = (row["seconds"] for row in rows)
    if a is not None and b is not None:
        table.add_row("measured, ms", f"{1e3 * a:.3f}", f"{1e3 * b:.3f}", _ratio(a, b))
        rates = [2e-9 * row["macs"] / row["seconds"] for row in rows]
        table.add_row("GFLOP/s", *(f"{rate:.0f}" for rate in rates), _ratio(*rates))
    return render(table)


def _ratio(a: float, b: float) -> str:
    return f"{b / a:.3f}" if a else ""


def _by(sizes: Sequence[Any]) -> str:
    return "x".join(map(str, sizes))
