"""`convwright receptive-field`: how much of the input each layer of a network sees, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from convwright.cli.options import input_shapes, json_option, load_model, model_argument, print_json, shape_option
from convwright.errors import ConvwrightError

if TYPE_CHECKING:
    from convwright.cost.receptive_field import ReceptiveField
    from convwright.graph import Graph


@dataclass(frozen=True)
class Row:
    """A layer's name, operator, output, and the field of that output."""

    layer: str
    op: str
    output: str
    field: ReceptiveField
    changed: bool


@click.command("receptive-field")
@model_argument
@click.option("--layer", metavar="L", help="Only this layer, by its name or its output's.")
@click.option("--input", "of", metavar="NAME", help="The input whose elements are counted.  [default: the first]")
@click.option("--all", "everything", is_flag=True, help="Layers too whose field is that of their input.")
@shape_option
@json_option
def receptive_field(
    model: str, layer: str | None, of: str | None, everything: bool, shapes: tuple[str, ...], as_json: bool
) -> None:
    """Show how much of the input each layer sees: size, stride, padding and centre on each spatial axis.

    Output i of a layer depends on inputs from i x stride - padding on, size elements; the centre is that of output 0.
    Where paths meet, the field holds all of them; paths whose strides or centres differ are listed below. Without
    --all, layers are shown whose field differs from their input's.

    Example: convwright receptive-field model.onnx --layer conv5
    """
    import convwright as cw

    graph = load_model(model, seed=None)
    fields = cw.receptive_fields(graph, input_shapes(graph, shapes), input=of)
    rows = _rows(graph, fields)
    if layer is not None:
        rows = [_named(rows, layer)]
    elif not everything and not as_json:
        rows = [row for row in rows if row.changed]
    if as_json:
        print_json([_told(row) for row in rows])
    else:
        click.echo(_text(graph.name or model, rows), nl=False)


def _rows(graph: Graph, fields: dict[str, ReceptiveField]) -> list[Row]:
    rows = []
    for node in graph.nodes:
        output = next((out for out in node.outputs if out in fields), None)
        if output is not None:
            before = [fields[name] for name in node.inputs if name in fields]
            told = {line for field in before for line in field.disagreements}
            new = not told.issuperset(fields[output].disagreements)
            changed = new or _numbers(fields[output]) not in map(_numbers, before)
            rows.append(Row(node.name or output, node.op, output, fields[output], changed))
    return rows


def _numbers(field: ReceptiveField) -> tuple[object, object]:
    return field.axes, field.local


def _named(rows: list[Row], name: str) -> Row:
    for row in rows:
        if name in (row.layer, row.output):
            return row
    close = get_close_matches(name, [row.layer for row in rows], 3)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ConvwrightError(f"no layer {name!r} depends on the input{hint}")


def _told(row: Row) -> dict[str, Any]:
    return {"layer": row.layer, "op": row.op, "output": row.output, **row.field.to_dict()}


def _text(title: str, rows: list[Row]) -> str:
    from rich.markup import escape
    from rich.table import Table

    from convwright.model.report import render

    table = Table(title=escape(title), caption="output i sees inputs from i x stride - padding on, size elements")
    table.add_column("layer", overflow="ellipsis", no_wrap=True)
    table.add_column("op", no_wrap=True)
    for heading in ("size", "stride", "padding", "centre of output 0", "without global paths"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        field = row.field
        local = "" if field.local is None else " x ".join(str(axis.size) for axis in field.local)
        figures = (field.size, field.stride, field.padding, field.centre)
        table.add_row(escape(row.layer), row.op, *(" x ".join(map(str, each)) for each in figures), local)
    lines = dict.fromkeys(line for row in rows for line in (*row.field.disagreements, *_remarks(row.field)))
    return render(table) + "".join(f"{line}\n" for line in lines)


def _remarks(field: ReceptiveField) -> tuple[str, ...]:
    """All but the one that the column of local fields shows layer by layer."""
    return field.remarks if field.local is None else field.remarks[:-1]
