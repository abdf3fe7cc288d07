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


def on_host(count: int, first: int = 0, part: int = 100) -> pytest.MarkDecorator:
    """Parametrises a test with `count` seeds, `part` of them a case: its argument `seeds`."""
    return pytest.mark.parametrize("seeds", _parts(count, first, part), ids=lambda seeds: str(seeds.start))


def on_targets(
    host: int, others: int | None = None, first: int = 0, part: int = 100, targets: pytest.MarkDecorator = each_target
) -> pytest.MarkDecorator:
    """Parametrises a test with targets and seeds, its arguments `target` and `seeds`: `host` seeds for this CPU's own
    target, `others` (as many, unless given) for each other."""
    own = host_target().name
    params = [
        pytest.param(param.values[0], seeds, id=f"{param.id}-{seeds.start}", marks=param.marks)
        for param in targets.args[1]
        for seeds in _parts(host if param.id == own or others is None else others, first, part)
    ]
    return pytest.mark.parametrize(("target", "seeds"), params)


def _parts(count: int, first: int, part: int) -> list[range]:
    return [range(start, min(start + part, first + count)) for start in range(first, first + count, part)]


def check_each(seeds: range, draw: Callable[[int], T], check: Callable[[T], Any]) -> None:
    """Checks what is drawn for each seed; a failure names the seed and what was drawn."""
    for seed in seeds:
        drawn = draw(seed)
        try:
            check(drawn)
        except BaseException as failure:
            failure.add_note(f"seed {seed}: {drawn}")
            raise


full_run_on_host = on_host(HOST, FIRST)
full_run_on_targets = on_targets(HOST, OTHERS, FIRST)
