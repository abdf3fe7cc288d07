"""Every kind of convolution as a function of arrays: random calls against the float64 references."""

from __future__ import annotations

from typing import Any

import pytest

from convwright import functional
from tests.kinds import CHAINS, CONVOLUTIONS, random_call
from tests.sweeps import FIRST, check_each, on_host

every_kind = pytest.mark.parametrize("kind", [*CONVOLUTIONS, *CHAINS])


@pytest.fixture(autouse=True)
def nothing_remembered() -> Any:
    yield
    functional.forget()


@every_kind
@on_host(200)
def test_random_calls(kind: str, seeds: range) -> None:
    check_each(seeds, lambda seed: random_call(kind, seed), lambda call: call.check())


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@on_host(0, full=500, first=10 * FIRST)
def test_random_calls_by_every_algorithm(kind: str, seeds: range) -> None:
    check_each(seeds, lambda seed: random_call(kind, seed), lambda call: call.check_algorithms())
