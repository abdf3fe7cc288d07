"""Softmax and log-softmax against float64, and where NaN and infinities must show."""

from __future__ import annotations

import numpy as np
import pytest

from convwright.codegen.target import Target
from convwright.kernels import softmax
from tests.guard import guarded, guarded_empty
from tests.kernels import call, each_target


def run(x: np.ndarray, log: bool, target: Target, at_end: bool = True, in_place: bool = False) -> np.ndarray:
    """The kernel on ``[outer][n][inner]``."""
    outer, n, inner = x.shape
    x = guarded(x, at_end=at_end)
    y = x if in_place else guarded_empty(x.size, at_end=at_end).reshape(x.shape)
    vectors = -(-inner // target.vector)
    values = {"x": x.ctypes.data, "y": y.ctypes.data, "n": n, "inner": inner, "inner_vectors": vectors}
    values |= {"x_outer": n * inner, "y_outer": n * inner, "x_step": inner, "y_step": inner}
    config = softmax.Softmax(log, inner == 1)
    call(config, softmax.emit, softmax.ARGUMENTS, values, outer * vectors, target, ranges=2)
    return y


def oracle(x: np.ndarray, log: bool) -> np.ndarray:
    x = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        shifted = x - x.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(total) if log else np.exp(shifted) / total
    return result


@each_target
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("at_end", [True, False])
def test_softmax_of_every_shape(target: Target, log: bool, at_end: bool) -> None:
    rng = np.random.default_rng(0)
    v = target.vector
    for n in (1, 2, 10, v - 1, v, v + 1, 2 * v + 3, 1000):
        for inner in (1, 3, v, v + 1):
            x = rng.normal(0, 10, (3, n, inner)).astype(np.float32)
            y = run(x, log, target, at_end, in_place=n % 2 == 0)
            np.testing.assert_allclose(y, oracle(x, log), rtol=2e-6, atol=4e-6 if log else 1e-9)


@each_target
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("inner", [1, 3])
def test_large_values_do_not_overflow(target: Target, log: bool, inner: int) -> None:
    x = np.full((1, 5, inner), 3e38, np.float32)
    x[:, 2:] = -3e38
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(run(x, log, target)[:, :2], np.log(0.5) if log else 0.5, rtol=1e-6)


@each_target
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("place", [0, 7, 20])
def test_nan_and_infinities_are_those_of_the_definition(target: Target, log: bool, inner: int, place: int) -> None:
    for special in (np.nan, np.inf, -np.inf):
        x = np.random.default_rng(1).standard_normal((2, 21, inner)).astype(np.float32)
        x[1, place, 0] = special
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(run(x, log, target), oracle(x, log), rtol=2e-6, atol=1e-6)
    x[1] = -np.inf
    assert np.isnan(run(x, log, target)[1]).all()
