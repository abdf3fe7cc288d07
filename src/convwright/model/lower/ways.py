"""The ways to compute a convolution, by the names that ask for them, with what each is estimated to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from convwright.model.lower import conv, winograd, winograd_cut
from convwright.model.lower.winograd_forms import Form, forms_of
from convwright.model.problem import Algorithm, Problem


def name_of(row: Algorithm, p: Problem) -> str:
    """The name by which `p.algorithm` asks for what this row does: "direct-blocked", "winograd-4x4"."""
    if row in (winograd.ROW, winograd.DEEP):
        return _name_of_form(winograd_cut.cut(p).form, p.spec.rank)
    return f"{row.name}-{row.variant}"


def _name_of_form(form: Form, rank: int) -> str:
    outputs = (form.high[0], form.wide[0])[-min(rank, 2) :]
    return "winograd-" + "x".join(map(str, outputs))


@lru_cache(maxsize=4096)
def ways(p: Problem) -> Mapping[str, float]:
    """Estimated cycles on each thread, conversions of layout included, by name; the least first.

    All that computes the problem within the error and the numerics allowed, whatever algorithm it asks for.
    """
    p = replace(p, algorithm="auto")
    found: dict[str, float] = {}
    for row in conv.ROWS:
        if row.why_not(p) is not None:
            continue
        if row in (winograd.ROW, winograd.DEEP):
            names = [_name_of_form(form, p.spec.rank) for form in forms_of(p) if isinstance(form, Form)]
        else:
            names = [name_of(row, p)]
        found |= {name: conv.cost(row, replace(p, algorithm=name)) for name in names}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def runner_up(p: Problem, measured: Mapping[str, float] | None = None) -> str:
    """The best of the ways that were not taken: its name, and its time as a multiple of what was taken; "" for none.

    - `measured`: seconds by name, where they were measured.
    """
    row = conv.algorithm_of(p)
    taken = name_of(row, p)
    how = "measured" if measured and len(measured) > 1 and taken in measured else "estimated"
    times = measured if measured and how == "measured" else ways(p)
    others = [name for name in times if name != taken]
    if not others:
        return ""
    best = min(others, key=lambda name: times[name])
    return f"{best} {times[best] / (times.get(taken) or conv.cost(row, p)):.2f}x {how}"
