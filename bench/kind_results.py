"""What bench/kinds.py measures of a case, and the tables that it shows of many."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean

from kind_cases import KINDS
from networks import machine
from rich.console import Console
from rich.table import Table

OURS = "convwright"
PEERS = ("torch", "onnxruntime", "openvino")
DISTURBED = 0.15  # cores that others kept busy during a race, above which its figures are in doubt


@dataclass(slots=True)
class Result:
    """What was measured of one case.

    - `seconds`: by runtime, a peer's in its fastest form; `forms`: which one that was.
    - `ratio`: what the kind's target is about; `to_best`: the best peer's time over ours.
    - `instead`: the best peer's time for the first of the models beside, over ours for the case; `instead_seconds`: its
      times by runtime.
    - `kernels`: the steps of convwright that compute; `kernel_seconds`: without conversions of the
      layout.
    - `others`: cores that other processes kept busy during the race.
    - `reason`: why there are no figures for convwright; `lost`: the same for peers.
    """

    kind: str
    case: str
    macs: int
    threads: int
    when: str
    seconds: dict[str, float] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)
    ratio: float | None = None
    to_best: float | None = None
    instead: float | None = None
    instead_seconds: dict[str, float] = field(default_factory=dict)
    error: float | None = None
    kernels: str = ""
    kernel_seconds: float | None = None
    rounds: int = 0
    others: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    lost: dict[str, str] = field(default_factory=dict)

    def rate(self, seconds: float | None) -> float | None:
        """GFLOP/s."""
        return 2e-9 * self.macs / seconds if seconds else None

    @property
    def best(self) -> str | None:
        """The fastest peer."""
        peers = {name: seconds for name, seconds in self.seconds.items() if name != OURS}
        return min(peers, key=lambda name: peers[name]) if peers else None


def cells(result: Result) -> list[str]:
    """A case's line, in the order of `headings`."""
    kind = KINDS[result.kind]
    rates = [number(result.rate(result.seconds.get(peer)), "{:.0f}") for peer in PEERS]
    if result.reason is not None:
        ours = ["no kernel yet" if result.reason.startswith("no kernel") else "failed", "-"]
        verdict = "no"
    else:
        ours = [
            number(result.rate(result.seconds[OURS]), "{:.0f}"),
            number(result.rate(result.kernel_seconds), "{:.0f}"),
        ]
        verdict = "-" if result.ratio is None else "yes" if result.ratio >= kind.target else "no"
    own = "-" if kind.ratio == "peers" else number(result.ratio, "{:.2f}")
    return [
        result.kind, result.case, f"{result.macs / 1e6:.1f}", *ours, *rates, number(result.to_best, "{:.2f}"), own,
        number(result.instead, "{:.2f}"), f"{kind.target:g}", verdict, number(result.error, "{:.0e}"),
        result.kernels or "-",
    ]  # fmt: skip


def headings() -> list[str]:
    ratios = ["to best", "to own", "instead"]
    return ["kind", "case", "MMACs", OURS, "kernel", *PEERS, *ratios, "target", "met", "error", "kernels"]


def summary(results: Sequence[Result]) -> list[list[str]]:
    """A line a kind: cases, of them measured, geometric mean and minimum of the ratios, target, verdict."""
    lines = []
    for name, kind in KINDS.items():
        found = [result for result in results if result.kind == name]
        if not found:
            continue
        ratios = [result.ratio for result in found if result.ratio is not None]
        mean = geometric_mean(ratios) if ratios else None
        if len(ratios) < len(found):
            verdict = "no kernel yet" if not ratios else "no: some have no figures"
        elif min(ratios) >= kind.target:
            verdict = "met in every case"
        else:
            short = sum(ratio < kind.target for ratio in ratios)
            verdict = f"no: {short} of {len(ratios)} short" + ", mean met" * (geometric_mean(ratios) >= kind.target)
        against = {"peers": "best peer", "rate": "own rate, next multiple of 16", "time": "own time, beside"}[
            kind.ratio
        ]
        figures = [number(mean, "{:.2f}"), number(min(ratios, default=None), "{:.2f}"), f"{kind.target:g}"]
        lines.append([name, f"{len(ratios)} of {len(found)}", against, *figures, verdict])
    return lines


SUMMARY = ["kind", "measured", "against", "mean", "least", "target", "verdict"]


def number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def notes(results: Sequence[Result]) -> list[str]:
    """Who could not take part, and why, equal reasons of a kind once; and which races were disturbed."""
    found: dict[str, None] = {}
    for result in results:
        if result.reason is not None:
            found[f"{result.kind}, {OURS}: {brief(result.reason)}"] = None
        if result.others >= DISTURBED:
            found[f"{result.kind}, {result.case}: others kept {result.others:.1f} cores busy during the race"] = None
        for peer, reason in result.lost.items():
            found[f"{result.kind}, {peer}: {brief(reason)}"] = None
    return list(found)


def brief(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= 160 else f"{line[:157]}..."


def show(results: Sequence[Result]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 190
    for title, columns, lines in (
        ("GFLOP/s", headings(), [cells(result) for result in results]),
        ("ratios", SUMMARY, summary(results)),
    ):
        table = Table(title=title)
        for column in columns:
            left = column in ("kind", "case", "kernels", "against", "verdict", "met")
            table.add_column(column, justify="left" if left else "right", no_wrap=column != "kernels")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for note in notes(results):
        console.print(note, markup=False, soft_wrap=True)


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page(results: Sequence[Result], command: str, explained: str) -> str:
    """docs/kinds.md; `explained` says how the figures come about."""
    versions: dict[str, str] = {}
    for result in results:
        versions |= result.versions
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    when = " to ".join(dict.fromkeys((min(r.when for r in results)[:10], max(r.when for r in results)[:10])))
    parts = [
        "# Kinds of convolution, layer by layer",
        f"Measured {when} on {machine()}; {results[0].threads} threads, batch 1. Versions: {named}.",
        f"`{command}` measures this and writes this page.",
        explained,
        "## Against the targets",
        markdown(SUMMARY, summary(results)),
        "## Cases",
        "GFLOP/s, more is better.",
        markdown(headings(), [cells(result) for result in results]),
    ]
    if remarks := notes(results):
        parts += ["## Remarks", "\n".join(f"- {note}" for note in remarks)]
    return "\n\n".join(parts) + "\n"


def joined(paths: Sequence[Path]) -> list[Result]:
    """The cases of earlier runs in the table's order; a later file's replace an earlier one's."""
    found: dict[tuple[str, str], Result] = {}
    for path in paths:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            found[entry["kind"], entry["case"]] = Result(**entry)
    order = [(kind.name, case.name) for kind in KINDS.values() for case in kind.cases]
    return [found[key] for key in order if key in found]
