"""A cost as a table on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from convwright.cost.report import Figures, Group, Layer

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

    from convwright.cost.receptive_field import ReceptiveField
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


class Shown:
    """The table, with as many of its columns as the terminal has room for."""

    def __init__(self, cost: Cost) -> None:
        self.cost = cost

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        from rich.measure import Measurement

        left_out: list[str] = []
        # Names may be folded, but not below a length at which they can still be read.
        names = max((len(_named(row)[0]) for row in self.cost.rows), default=0)
        room = options.max_width + max(names - _SHORTEST_NAME, 0)
        for heading in ("", *_DISPENSABLE):
            left_out += [heading] if heading else []
            shown = table(self.cost, left_out)
            if Measurement.get(console, options.update(width=1 << 16), shown).maximum <= room:
                break
        yield shown


_DISPENSABLE = (
    "written, B", "weights, B", "elementwise", "output", "of MACs", "alive, B", "FLOPs/B", "field", "moved, B", "kind",
)  # fmt: skip
"""The columns that go, one after the other, where there is no room for all."""

_SHORTEST_NAME = 24


def table(cost: Cost, without: Sequence[str] = ()) -> Table:
    """The rows, the total, and what is not counted; of a layer, its output's shape."""
    from rich.table import Table

    result = Table(title=cost.title, caption=_caption(cost), show_footer=True)
    result.add_column("block" if cost.by == "tree" else cost.by, footer="total", overflow="fold")
    headings = {"kind": "", "output": ""} if cost.by == "layer" else {"layers": str(len(cost.layers))}
    headings |= _cells(cost, cost.total)
    for heading, footer in headings.items():
        if heading not in without:
            side: Any = "left" if heading in ("kind", "output") else "right"
            result.add_column(heading, footer=footer, justify=side, no_wrap=True)
    for row in cost.rows:
        name, *named = _named(row, cost.by)
        cells = dict(zip(headings, [*named, *_cells(cost, row).values()], strict=True))
        result.add_row(name, *(cell for heading, cell in cells.items() if heading not in without))
    return result


def _named(row: Layer | Group, by: str = "layer") -> list[str]:
    if isinstance(row, Layer):
        return [row.name, row.kind, "x".join(map(str, row.output_shape))]
    name = f"{'  ' * (len(row.path) - 1)}{row.path[-1]}" if by == "tree" else row.name
    return [name, str(len(row.layers))]


def _cells(cost: Cost, row: Figures) -> dict[str, str]:
    def number(value: int) -> str:
        return short(value) if value else ""

    cells = {
        "parameters": number(row.parameters),
        "MACs": number(row.macs),
        "of MACs": f"{cost.share(row, 'macs'):.1%}" if row.macs else "",
        "FLOPs": number(row.flops),
        "elementwise": number(row.elementwise),
        "weights, B": number(row.bytes_weights),
        "written, B": number(row.bytes_activations),
        "moved, B": number(row.bytes_moved),
        "FLOPs/B": f"{row.intensity:.1f}" if row.macs else "",
        "alive, B": number(row.bytes_peak),
    }
    if cost.by == "layer":
        cells["field"] = _field(row.receptive_field) if isinstance(row, Layer) else ""
    return cells


def _field(seen: ReceptiveField | None) -> str:
    """Size, stride and padding; a star where paths that disagree meet."""
    if seen is None:
        return ""
    return "/".join(map(_square, (seen.size, seen.stride, seen.padding))) + "*" * bool(seen.disagreements)


def _square(sizes: Sequence[Any]) -> str:
    """`3` where all axes have it, `3x5` where they differ."""
    return "x".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))


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
    seen = []
    if cost.by == "layer":
        seen = ["field: receptive field, effective stride and padding, in elements of the input"]
        if any(layer.receptive_field and layer.receptive_field.disagreements for layer in cost.layers):
            seen[0] += "; *: of paths that disagree in stride or centre"
    return "\n".join([counted, *seen, *rest])


def text(cost: Cost) -> str:
    """The table as text, as wide as the terminal or as it needs to be."""
    from convwright.model.report import render

    return render(Shown(cost)).rstrip("\n")
