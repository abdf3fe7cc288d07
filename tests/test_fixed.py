"""Weights in 24 bits (`kernels.fixed`): the nearest multiples of their row's unit, the same when they are packed again,
and only where that is near enough; products with them against float64, every buffer beside an unreadable page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright.codegen.target import Target, host_target
from convwright.kernels import fixed
from convwright.large_arrays import large_empty
from convwright.model import narrow
from convwright.model.weights import Weights
from tests.kernels import each_target
from tests.test_dense import alike, at_the_edges, huge, normal, pruned, sizes, zeros

Array = NDArray[np.float32]
KINDS: list[Callable[..., Any]] = [normal, pruned, alike, at_the_edges, zeros]


@pytest.fixture
def however_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are rounded, whatever that changes."""
    monkeypatch.setattr(narrow, "MOST_ROUNDED", 1.0)


def surveyed(matrix: Array, target: Target, threads: int = 1) -> narrow.Survey:
    return narrow.Survey(matrix, target, threads, exact=False)


def is_rounded(found: Array, matrix: Array) -> bool:
    """Whether these are multiples of each row's 2^(e - 23), where 2^e is the least power of two above its weights, and
    the nearest, of two the even one, but for weights within half a unit of 2^e, which is no multiple."""
    rows = matrix.astype(float)
    largest = np.abs(rows).max(1, keepdims=True)
    unit = np.ldexp(1.0, np.where(largest > 0, np.frexp(largest)[1], 0) - 23)
    most = 2.0**23 - 1
    return bool((found == np.clip(np.round(rows / unit), -most, most) * unit).all())


@each_target
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.usefixtures("however_far")
def test_weights_are_the_nearest_multiples(target: Target, kind: Callable[..., Array]) -> None:
    rng = np.random.default_rng(7)
    for number, shape in enumerate(sizes(target.vector)):
        matrix = np.asarray(kind(rng, shape), np.float32)
        survey = surveyed(matrix, target, number % 2 + 1)
        assert survey.parts.coding == "fixed"
        assert survey.possible
        found = narrow.unpack(survey.pack(matrix), survey.parts, target, 1)
        assert is_rounded(found, matrix), shape
        again = surveyed(found, target)
        np.testing.assert_array_equal(narrow.unpack(again.pack(found), again.parts, target, 1), found)


@each_target
def test_errors_of_weights_between_multiples_have_no_sign(target: Target) -> None:
    rng = np.random.default_rng(2)
    matrix = np.asarray(rng.integers(-(2**21), 2**21, (4, 4096)) * 2 + 1, np.float32)  # odd halves of the unit
    matrix[:, 0] = 2.0**23  # whose row's unit is 2
    survey = surveyed(matrix, target)
    errors = narrow.unpack(survey.pack(matrix), survey.parts, target, 1) - matrix
    assert (np.abs(errors[:, 1:]) == 1).all()
    assert abs(errors[:, 1:].mean()) < 0.05


@each_target
def test_a_weight_takes_24_bits(target: Target) -> None:
    matrix = normal(np.random.default_rng(0), (512, 512))
    packed = surveyed(matrix, target, 2).pack(matrix)
    assert 24 / 32 <= packed.nbytes / matrix.nbytes < 24.3 / 32


@each_target
def test_what_would_change_too_much_is_kept_without_loss(target: Target) -> None:
    rng = np.random.default_rng(1)
    plain = normal(rng, (33, 1000))
    assert surveyed(plain, target).parts.coding == "fixed"
    far = plain.copy()
    far[32, 999] = 100.0  # one row of weights that are small beside its largest
    tiny = plain * np.float32(2.0 ** (fixed.LOWEST - 8))
    for matrix in (far, tiny, huge(rng, plain.shape)):  # squares of huge ones are infinite
        survey = surveyed(matrix, target)
        assert survey.parts.coding == "lossless"
        assert survey.possible
        found = narrow.unpack(survey.pack(matrix), survey.parts, target, 1)
        np.testing.assert_array_equal(found.view(np.uint32), matrix.view(np.uint32))


@pytest.mark.parametrize("alone", [True, False])
def test_other_formats_are_made_of_the_weights_that_layers_compute_with(alone: bool) -> None:
    """Whether the memory of the constant was used again or not; the caller's own array stays as it is."""
    target, shape = host_target(), (303, 1001)
    w = normal(np.random.default_rng(1), shape)
    constant = large_empty(shape, w.dtype)
    constant[...] = w
    weights = Weights({"w": constant}, target.vector)
    start = constant.ctypes.data
    if alone:
        del constant
    weights.consuming = True
    narrowed = weights.narrowed("w", target, 2, exact=False)
    weights.consuming = False
    assert narrowed is not None
    parts, packed = narrowed
    assert parts.bits == 24
    assert (packed.ctypes.data == start) == alone
    if not alone:
        np.testing.assert_array_equal(constant, w)
    assert weights.nbytes == packed.nbytes < 0.76 * w.nbytes
    found = weights.array("w")
    assert is_rounded(found, w)
    plain = Weights({"w": found}, target.vector).get("w", "direct", (*shape, 1, 1))
    np.testing.assert_array_equal(weights.get("w", "direct", (*shape, 1, 1)), plain)
    assert weights.narrowed("w", target, 1, exact=False) is narrowed
