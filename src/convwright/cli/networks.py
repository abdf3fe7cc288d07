"""`convwright networks`: the built-in networks, and what each costs."""

from __future__ import annotations

from typing import Any

import click

from convwright.cli.options import json_option, print_json, progress_bar


@click.command()
@json_option
def networks(as_json: bool) -> None:
    """Show the built-in networks at their usual input size: parameters, MACs, FLOPs, memory, receptive field.

    One MAC is one multiply-accumulate, FLOPs are twice the MACs. "alive" is the most memory that activations take at
    one time, "field" the receptive field of the last feature map, before global pools and fully connected layers.

    Example: convwright cost resnet50 --by block
    """
    from convwright.networks import TABLE

    with progress_bar() as progress:
        task = progress.add_task("counting", total=len(TABLE))
        rows = []
        for name in TABLE:
            progress.update(task, description=name)
            rows.append(_row(name))
            progress.advance(task)
    if as_json:
        print_json(rows)
    else:
        click.echo(_text(rows), nl=False)


def _row(name: str) -> dict[str, Any]:
    import convwright as cw

    graph = cw.networks.build(name, seed=None)
    found = cw.cost(graph)
    assert found.field is not None
    total = found.total
    return {
        "name": name,
        "input": list(graph.inputs["x"].shape[1:]),
        "parameters": total.parameters,
        "macs": total.macs,
        "flops": total.flops,
        "bytes_peak": total.bytes_peak,
        "receptive_field": [axis.size for axis in found.field],
    }


def _text(rows: list[dict[str, Any]]) -> str:
    from rich.table import Table

    from convwright.cost.show import short
    from convwright.model.report import render

    table = Table(caption="weights are random: cw.networks.from_state_dict takes torchvision's and timm's")
    table.add_column("network", no_wrap=True)
    for heading in ("input", "parameters", "MACs", "FLOPs", "alive", "field"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        figures = (short(row[key]) for key in ("parameters", "macs", "flops"))
        table.add_row(
            row["name"],
            "x".join(map(str, row["input"])),
            *figures,
            f"{short(row['bytes_peak'])}B",
            " x ".join(map(str, row["receptive_field"])),
        )
    return render(table)
