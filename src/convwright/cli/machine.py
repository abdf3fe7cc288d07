"""`convwright machine`: what this machine has, and how fast it goes at best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from convwright.cli.options import json_option, print_json, progress_bar, threads_option

if TYPE_CHECKING:
    from convwright.runtime.ceilings import Ceilings


@click.command()
@threads_option
@click.option("--remeasure", is_flag=True, help="Measure anew what the store holds.")
@json_option
def machine(threads: int | None, remeasure: bool, as_json: bool) -> None:
    """Show this machine's caches and instruction set, and its measured ceilings, of one thread and of all.

    A ceiling is the best that generated code reaches: multiply-adds of each data type (two operations each) that touch
    no memory, and bytes read from each level of cache and from memory. They are measured once, in a second or two, and
    kept beside the cache of kernels.

    Example: convwright machine --remeasure
    """
    from convwright.runtime.ceilings import measured
    from convwright.runtime.machine import cores, describe

    told: list[Ceilings] = []
    with progress_bar() as progress:
        for count in dict.fromkeys((1, threads or cores())):
            progress.add_task(f"measuring {count} thread{'s' * (count > 1)}", total=None)
            told.append(measured(count, remeasure=remeasure))
    if as_json:
        print_json(describe() | {"ceilings": [ceilings.to_dict() for ceilings in told]})
    else:
        click.echo(_text(describe(), told), nl=False)


def _text(about: dict[str, Any], told: list[Ceilings]) -> str:
    from rich.table import Table

    from convwright.model.report import render

    sizes = ", ".join(f"{name.upper()} {about[f'{name}_bytes'] >> 10:,} KiB" for name in ("l1d", "l2", "l3"))
    table = Table(title=f"{about['cpu']}, {about['isa']}, {about['cores']} cores, {sizes}")
    table.add_column("at best")
    for ceilings in told:
        table.add_column(f"{ceilings.threads} thread{'s' * (ceilings.threads > 1)}", justify="right")

    def row(name: str, figures: list[float | None], unit: str) -> None:
        table.add_row(name, *("" if figure is None else f"{figure / 1e9:,.1f} {unit}" for figure in figures))

    for kind in dict.fromkeys(kind for ceilings in told for kind in ceilings.operations):
        row(f"{kind} multiply-adds, 2 operations each", [c.operations.get(kind) for c in told], "GOP/s")
    for level in dict.fromkeys(level for ceilings in told for level in ceilings.read):
        name = "memory" if level == "memory" else level.upper()
        row(f"{name}, read", [c.read.get(level) for c in told], "GB/s")
    row("memory, written", [c.write for c in told], "GB/s")
    row("memory, copied (read + written)", [c.copy for c in told], "GB/s")
    return render(table)
