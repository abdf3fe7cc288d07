"""Seeded random specifications: how many a test draws, on which targets, and which one failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from convwright.codegen.target import host_target
from tests.kernels import each_target

T = TypeVar("T")

HOST, OTHERS = 3000, 1000  # specifications of a full run: on this CPU's own target, and on each other
FIRST = 1000  # the first seed of full runs; smaller ones are the default run's


def on_host(count: int, full: int = HOST, first: int = FIRST, part: int = 100) -> pytest.MarkDecorator:
    """Parametrises a test with seeds, `part` of them a case: its argument `seeds`.

    `count` are the default run's; `full` further ones, from `first` on, are marked long.
    """
    seeds = _parts(count, full, first, part)
    return pytest.mark.parametrize("seeds", [pytest.param(own, id=str(own.start), marks=marks) for own, marks in seeds])


def on_targets(
    count: int, full: tuple[int, int] = (HOST, OTHERS), part: int = 100, targets: pytest.MarkDecorator = each_target
) -> pytest.MarkDecorator:
    """Parametrises a test with targets and seeds, its arguments `target` and `seeds`: as `on_host`, `full` for this
    CPU's own target and for each other."""
    own = host_target().name
    params = [
        pytest.param(param.values[0], seeds, id=f"{param.id}-{seeds.start}", marks=[*param.marks, *marks])
        for param in targets.args[1]
        for seeds, marks in _parts(count, full[param.id != own], FIRST, part)
    ]
    return pytest.mark.parametrize(("target", "seeds"), params)


Marks = list[pytest.MarkDecorator]


def _parts(count: int, full: int, first: int, part: int) -> list[tuple[range, Marks]]:
    """The seeds of each case, and how it is marked."""
    runs: list[tuple[range, Marks]] = [(range(count), []), (range(first, first + full), [pytest.mark.long])]
    return [
        (range(start, min(start + part, seeds.stop)), marks)
        for seeds, marks in runs
        for start in range(seeds.start, seeds.stop, part)
    ]


def check_each(seeds: range, draw: Callable[[int], T], check: Callable[[T], Any]) -> None:
    """Checks what is drawn for each seed; a failure names the seed and what was drawn."""
    for seed in seeds:
        drawn = draw(seed)
        try:
            check(drawn)
        except BaseException as failure:
            failure.add_note(f"seed {seed}: {drawn}")
            raise
