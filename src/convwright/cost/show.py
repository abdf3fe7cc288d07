"""A cost as a table on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convwright.cost.report import Figures, Group, Layer

if TYPE_CHECKING:
    from rich.table import Table

    from convwright.cost.report import Cost

_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def short(number: float) -> str:
    """A number to three or four digits with a decimal unit.

    >>> short(118013952), short(999), short(25557032)
    ('118 M', '999', '25.6 M')
    """
    for size, unit in _UNITS:
        if number >= 0.9995 * size:
            value = number / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{number:g}" if isinstance(number, int) else f"{number:.1f}"


def table(cost: Cost) -> Table:
    """The rows, the total, and what is not counted; of a layer, its output's shape."""
    from rich.table import Table

    layers = cost.by == "layer"
    result = Table(title=cost.title, caption=_caption(cost), show_footer=True)
    result.add_column(cost.by, footer="total", overflow="fold")
    if layers:
        result.add_column("kind", no_wrap=True)
        result.add_column("output", no_wrap=True)
    else:
        result.add_column("layers", footer=str(len(cost.layers)), justify="right")
    for heading, footer in _cells(cost, cost.total).items():
        result.add_column(heading, footer=footer, justify="right", no_wrap=True)
    for row in cost.rows:
        result.add_row(*_named(row), *_cells(cost, row).values())
    return result


def _named(row: Layer | Group) -> list[str]:
    if isinstance(row, Layer):
        return [row.name, row.kind, "x".join(map(str, row.output_shape))]
    return [row.name, str(len(row.layers))]


def _cells(cost: Cost, row: Figures) -> dict[str, str]:
    def number(value: int) -> str:
        return short(value) if value else ""

    return {
        "parameters": number(row.parameters),
        "MACs": number(row.macs),
        "share": f"{cost.share(row, 'macs'):.1%}" if row.macs else "",
        "FLOPs": number(row.flops),
        "elementwise": number(row.elementwise),
        "weights, B": number(row.bytes_weights),
        "written, B": number(row.bytes_activations),
        "moved, B": number(row.bytes_moved),
        "FLOPs/B": f"{row.intensity:.1f}" if row.macs else "",
        "alive, B": number(row.bytes_peak),
    }


def _caption(cost: Cost) -> str:
    total = cost.total
    counted = (
        f"{total.parameters:,} parameters, {total.macs:,} MACs, {total.flops:,} FLOPs (2 a MAC), "
        f"{total.bytes_peak:,} bytes of activations at most alive"
    )
    rest = (
        f"not counted: {one.name} ({one.op}), about {short(one.estimate)} operations: {one.reason}"
        for one in cost.not_counted
    )
    return "\n".join([counted, *rest])


def text(cost: Cost) -> str:
    """The table as text, as wide as the terminal or as it needs to be."""
    from convwright.model.report import render

    shown: Any = table(cost)
    return render(shown).rstrip("\n")
