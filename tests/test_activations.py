"""Every row of activations against its float64 reference, on every target."""

from __future__ import annotations

import re

import numpy as np
import pytest

from convwright.codegen.jit import assembly
from convwright.codegen.target import Target, target_named
from convwright.kernels.activations import ROWS
from convwright.kernels.elementwise import Flat, emit_flat
from tests.kernels import call, each_target

CASES = [
    pytest.param(name, values, id=f"{name}{values or ''}") for name, row in ROWS.items() for values in row.examples
]


def inputs() -> np.ndarray:
    rng = np.random.default_rng(6)
    sizes = [0.0, 1e-45, 1e-40, 1.2e-38, 1e-30, 1e-8, 0.25, 0.5, 1.0, 1.5, 2.5, 3.0, 50.0, 88.5, 2.0**22 + 0.5, 2.0**23]
    sizes += [1e10, 1e19, 1e30, 3.4e38, np.inf]
    parts = [
        np.array([*sizes, *(-size for size in sizes), np.nan, -np.nan]),
        rng.standard_normal(4000) * 3,
        rng.uniform(-110, 110, 4000),
        np.exp(rng.uniform(-85, 85, 4000)) * rng.choice([-1, 1], 4000),
    ]
    return np.concatenate(parts).astype(np.float32)


def run(name: str, parameters: tuple[float, ...], x: np.ndarray, target: Target) -> np.ndarray:
    out = np.empty_like(x)
    config = Flat((name, 0, *parameters), ("full",))
    values = {"y": out.ctypes.data, "x0": x.ctypes.data, "size": x.size, "span": x.size + target.vector}
    call(config, emit_flat, config.arguments, values, 1, target)
    return out


@each_target
@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_an_activation_is_within_its_bound(target: Target, name: str, parameters: tuple[float, ...]) -> None:
    x = inputs()
    row = ROWS[name]
    actual = run(name, parameters, x, target)
    with np.errstate(all="ignore"):
        exact = row.reference(x.astype(np.float64), *parameters)
        expected = exact.astype(np.float32)
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(actual[~finite], expected[~finite])
        assert np.isnan(actual[np.isnan(x)]).all()
        error = np.abs(actual[finite] - exact[finite])
        bound = row.bound(x[finite].astype(np.float64), exact[finite])
    worst = np.argmax(error - bound)
    assert (error <= bound).all(), (x[finite][worst], actual[finite][worst], exact[finite][worst])


SIGNED = [
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "tanh",
    "erf",
    "softsign",
    "silu",
    "floor",
    "ceil",
    "round",
    "sqrt",
]


@each_target
@pytest.mark.parametrize("name", SIGNED)
def test_minus_zero_stays(target: Target, name: str) -> None:
    out = run(name, ROWS[name].examples[0], np.array([-0.0] * 3 + [0.0] * 2, np.float32), target)
    np.testing.assert_array_equal(np.signbit(out), [True] * 3 + [False] * 2)


@pytest.mark.parametrize("name", ROWS)
def test_an_activation_calls_no_function(name: str) -> None:
    target = target_named("generic")  # it has the fewest instructions: what is missing becomes a call for every lane
    config = Flat((name, 0, *ROWS[name].examples[0]), ("full",))
    text = assembly(config.key, lambda: emit_flat(config, target), target)
    assert not re.search(r"\bcall|\bbl\s", text)
