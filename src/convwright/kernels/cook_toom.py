"""The Cook-Toom construction of minimal filtering algorithms F(m, r), exactly, in rational numbers.

F(m, r) computes m outputs of an r-tap correlation with m + r - 1 multiplications: y = A^T [(G g) * (B^T d)] (Winograd,
Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv 1509.09308). The m + r - 2 finite points and infinity
are where the polynomials are evaluated; results in floating point depend on them (Barabasz et al., arXiv 1803.10986).

At stride s an output sums s correlations at stride 1, one for each phase of the taps, over every s-th input. Each is an
F(m, r_p) of its own, r_p taps of phase p, and their multiplications stand beside each other: of F(m, 3) at stride 2, m
+ 1 for the first and third tap and m for the second, which 3 m of direct summation become. The three matrices hold all
phases, so that nothing else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

Matrix = tuple[tuple[Fraction, ...], ...]

# The finite points by their number m + r - 2: of the sets of quarters from 1/4 to 4 that are closed under negation, but
# for one point where zero is not among them, the set of least `Filtering.growth`, the geometric mean over r from 2 to 7
# (bench/winograd_points.py --search). Quarters, so that the transforms of inputs and products are exact in float32.
# Measured on random data with 64 channels: the largest error of F(4 x 4, 3 x 3) against float64, relative to the
# largest output, is 1.2e-6 with these points, 3.9e-6 with 0, 1, -1, 2, -2; direct summation 0.7e-6.
_QUARTERS = {
    1: "0", 2: "3 -3", 3: "0 4 -4", 4: "2 -2 5 -5", 5: "0 3 -3 6 -6", 6: "1 -1 3 -3 8 -8", 7: "0 2 -2 4 -4 8 -8",
    8: "1 -1 3 -3 4 -4 10 -10", 9: "0 2 -2 3 -3 5 -5 10 -10", 10: "1 -1 2 -2 4 -4 5 -5 12 -12",
    11: "0 2 -2 3 -3 4 -4 5 -5 12 -12",
}  # fmt: skip
POINTS = {0: (), **{n: tuple(Fraction(int(q), 4) for q in text.split()) for n, text in _QUARTERS.items()}}


@dataclass(frozen=True, slots=True)
class Filtering:
    """The matrices of F(m, r): ``at`` is [m][n], ``g`` [n][r], ``bt`` [n][inputs]; at stride 1 there are n = m + r - 1
    inputs."""

    at: Matrix
    g: Matrix
    bt: Matrix

    def float_g(self) -> np.ndarray:
        return np.array(self.g, dtype=np.float64)

    @property
    def growth(self) -> float:
        """How much larger rounding errors are, relative to the outputs, than those of direct summation.

        For random inputs and weights, the products that an output is a sum of have, squared and added, this factor
        squared times what the r products of a direct sum have; the sum over channels, which is what rounds, is then
        sqrt(r) times shorter. Of two axes, growths multiply.
        """
        at, g, bt = (np.array(matrix, dtype=np.float64) for matrix in (self.at, self.g, self.bt))
        squares = (at**2) @ ((g**2).sum(1) * (bt**2).sum(1))
        return float(squares.max() ** 0.5 / g.shape[1])


@lru_cache(maxsize=64)
def filtering(m: int, r: int, stride: int = 1) -> Filtering:
    """F(m, r) for the points of ``POINTS``, which has them for m + r up to 13, at a stride.

    With s = min(r, stride) phases that have taps, n = s (m - 1) + r multiplications of the (m - 1) stride + r inputs.
    Raises ValueError where there are no points.
    """
    if stride == 1:
        return interpolated(m, r)
    phases = [_phase(m, -(-(r - phase) // stride)) for phase in range(min(r, stride))]
    at: list[list[Fraction]] = [[] for _ in range(m)]
    g, bt = [], []
    for phase, own in enumerate(phases):
        g += [_spread(row, phase, stride, r) for row in own.g]
        bt += [_spread(row, phase, stride, (m - 1) * stride + r) for row in own.bt]
        for whole, row in zip(at, own.at, strict=True):
            whole += row
    return Filtering(_frozen(at), _frozen(g), _frozen(bt))


def _phase(m: int, taps: int) -> Filtering:
    """F(m, taps); a single tap needs no more multiplications than outputs, and no transforms."""
    if taps > 1:
        return interpolated(m, taps)
    identity = _frozen([[Fraction(row == column) for column in range(m)] for row in range(m)])
    return Filtering(identity, ((Fraction(1),),) * m, identity)


def _spread(row: Sequence[Fraction], first: int, step: int, length: int) -> list[Fraction]:
    """Zeros, but for the row's entries from ``first`` on, ``step`` apart."""
    spread = [Fraction(0)] * length
    for index, entry in enumerate(row):
        spread[first + index * step] = entry
    return spread


@lru_cache(maxsize=64)
def interpolated(m: int, r: int, points: tuple[Fraction, ...] | None = None) -> Filtering:
    """F(m, r) at stride 1 for the given finite points, by default those of ``POINTS``.

    The last entry of each row of ``bt`` is 1, which saves the transform of inputs a multiplication a row. Raises
    ValueError for a number of points other than m + r - 2, or points that repeat.
    """
    n = m + r - 1
    chosen = POINTS.get(n - 1, ()) if points is None else points
    if len(chosen) != n - 1 or len(set(chosen)) != n - 1:
        raise ValueError(f"F({m}, {r}) needs {n - 1} different points, got {[str(point) for point in chosen]}")
    at = [[point**row for point in chosen] + [Fraction(row == m - 1)] for row in range(m)]
    g, bt = [], []
    for place, point in enumerate(chosen):
        others = [other for index, other in enumerate(chosen) if index != place]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        g.append([point**column / scale for column in range(r)])
        bt.append([*_from_roots(others), Fraction(0)])
    g.append([Fraction(0)] * (r - 1) + [Fraction(1)])
    bt.append(_from_roots(chosen))
    return Filtering(_frozen(at), _frozen(g), _frozen(bt))


def _from_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        for power, coefficient in enumerate(coefficients):
            shifted[power] -= root * coefficient
        coefficients = shifted
    return coefficients


def _frozen(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)
