"""The Cook-Toom construction: exact in rational numbers, and how large its rounding errors are."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright.kernels.cook_toom import POINTS, Matrix, filtering, interpolated

THIRDS = tuple(Fraction(*pair) for pair in ((0, 1), (1, 3), (-1, 3), (2, 1), (-5, 2), (7, 4)))
ALGORITHMS: list[tuple[int, int, tuple[Fraction, ...] | None]] = [
    (4, 3, None), (2, 3, None), (3, 2, None), (2, 5, None), (1, 4, None), (5, 2, None), (3, 4, None),
    (2, 2, THIRDS[:2]), (3, 3, THIRDS[1:5]), (4, 3, THIRDS[:5]), (4, 4, THIRDS), (6, 2, THIRDS), (1, 1, ()),
    (4, 3, tuple(map(Fraction, (0, 1, -1, 2, -2)))), (6, 3, None), (4, 5, None), (4, 7, None), (6, 7, None),
    (7, 6, None),
]  # fmt: skip


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize(("m", "r", "points"), ALGORITHMS)
def test_filtering_is_correlation_exactly(m: int, r: int, points: tuple[Fraction, ...] | None) -> None:
    made = interpolated(m, r, points)
    rng = np.random.default_rng(m * 10 + r)
    n = m + r - 1
    sizes = [(len(matrix), {len(row) for row in matrix}) for matrix in (made.at, made.g, made.bt)]
    assert sizes == [(m, {n}), (n, {r}), (n, {n})]
    for _ in range(5):
        d, g = ([Fraction(int(number)) for number in rng.integers(-99, 100, size)] for size in (n, r))
        products = [a * b for a, b in zip(times(made.g, g), times(made.bt, d), strict=True)]
        assert times(made.at, products) == [sum(d[i + tap] * g[tap] for tap in range(r)) for i in range(m)]


STRIDED = [(4, 3, 2), (7, 3, 2), (2, 2, 2), (3, 5, 2), (3, 5, 3), (2, 7, 4), (1, 3, 2), (4, 4, 3), (3, 2, 5), (1, 1, 2)]


@pytest.mark.parametrize(("m", "r", "stride"), STRIDED)
def test_strided_filtering_is_correlation_exactly(m: int, r: int, stride: int) -> None:
    made = filtering(m, r, stride)
    rng = np.random.default_rng(m * 10 + r)
    inputs, n = (m - 1) * stride + r, (m - 1) * min(r, stride) + r
    sizes = [(len(matrix), {len(row) for row in matrix}) for matrix in (made.at, made.g, made.bt)]
    assert sizes == [(m, {n}), (n, {r}), (n, {inputs})]
    for _ in range(5):
        d, g = ([Fraction(int(number)) for number in rng.integers(-99, 100, size)] for size in (inputs, r))
        products = [a * b for a, b in zip(times(made.g, g), times(made.bt, d), strict=True)]
        assert times(made.at, products) == [sum(d[i * stride + tap] * g[tap] for tap in range(r)) for i in range(m)]


@pytest.mark.parametrize(("m", "r", "points"), ALGORITHMS)
def test_a_factor_of_each_transformed_input_is_one(m: int, r: int, points: tuple[Fraction, ...] | None) -> None:
    for row in interpolated(m, r, points).bt:
        assert [entry for entry in row if entry][-1] == 1


@pytest.mark.parametrize(
    ("m", "r", "points"),
    [(4, 3, (0, 1, -1, 2)), (4, 3, (0, 1, -1, 2, -2, 3)), (4, 3, (0, 1, -1, 2, 1)), (2, 3, ()), (7, 8, None)],
)
def test_wrong_points_are_named(m: int, r: int, points: tuple[int, ...] | None) -> None:
    wanted = None if points is None else tuple(map(Fraction, points))
    named = re.escape(f"F({m}, {r}) needs {m + r - 2} different points, got {[str(point) for point in points or ()]}")
    with pytest.raises(ValueError, match=named):
        interpolated(m, r, wanted)


@pytest.mark.parametrize(("m", "r"), [(2, 3), (3, 3), (4, 3), (6, 3), (2, 5), (4, 5), (4, 7), (6, 7)])
def test_default_points_are_exact_in_float32(m: int, r: int) -> None:
    assert set(map(len, POINTS.values())) == set(POINTS)
    made = filtering(m, r)
    for row in (*made.at, *made.bt):
        assert all(Fraction(float(np.float32(float(entry)))) == entry for entry in row)


@pytest.mark.parametrize(("m", "r"), [(1, 1), (2, 1)])
def test_growth_of_what_is_not_mixed(m: int, r: int) -> None:
    assert filtering(m, r).growth == 1.0


def by_float32(m: int, r: int, d: NDArray[np.float32], g: NDArray[np.float32]) -> NDArray[np.float32]:
    """F(m, r) of ``[samples, channels, n]`` and ``[channels, r]`` with every step rounded."""
    made = filtering(m, r)
    at, bt = (np.array(matrix, float).astype(np.float32) for matrix in (made.at, made.bt))
    u = (g.astype(float) @ made.float_g().T).astype(np.float32)
    total = np.zeros((len(d), m + r - 1), np.float32)
    for channel in range(d.shape[1]):
        total += u[channel] * (d[:, channel] @ bt.T)
    return total @ at.T


@pytest.mark.parametrize("r", [3, 5, 7])
def test_growth_orders_measured_errors(r: int) -> None:
    """Errors of larger tiles, whose growth is at least twice as large, are larger; and none is beyond its growth."""
    rng = np.random.default_rng(r)
    channels = 64
    g = rng.standard_normal((channels, r)).astype(np.float32)
    found = []
    for m in (2, 4, 6):
        d = rng.standard_normal((4000, channels, m + r - 1)).astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(d.astype(float), r, axis=2)
        exact = np.einsum("ncmr,cr->nm", windows, g)
        error = np.abs(by_float32(m, r, d, g) - exact).max() / np.abs(exact).max()
        growth = filtering(m, r).growth
        assert error < max(1.0, growth) * 2e-6
        found.append((growth, error))
    assert found == sorted(found)
    assert found[2][1] > 2 * found[0][1]
