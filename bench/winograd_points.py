"""How far Winograd's algorithms deviate from float64, with the points in use and others, beside direct summation.

    python bench/winograd_points.py [--channels 64] [--tiles 200] [--seeds 3]
    python bench/winograd_points.py --search 7 [--search 9]

Everything is computed in float32 with NumPy, one term after the other and without fused additions; the filter transform
in float64, rounded once. Printed: how errors grow by `Filtering.growth`; the largest error over the largest output, the
mean over the seeds, and the same of direct summation; the largest of the seeds as a share of the bound that the plan
states, growth times the bound of a direct sum. Inputs are normal, weights normal with a variance of one over the terms.

With --search: the sets of so many points that grow least, the geometric mean over r from 2 to 7, among the sets of
quarters from 1/4 to 4 that are closed under negation, but for one point where zero is not among them. Eleven points
take minutes.
"""

import argparse
import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from convwright.kernels.cook_toom import Filtering, interpolated

Points = tuple[Fraction, ...]
Array = NDArray[Any]

CLASSICAL = tuple(map(Fraction, (0, 1, -1, 2, -2)))
HALVES = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-1, 2))
# (m, r) of rows and columns, and other points than those in use, for both
CHOICES: list[tuple[tuple[int, int], tuple[int, int], Points | None]] = [
    ((2, 3), (2, 3), None), ((3, 3), (3, 3), None), ((4, 3), (4, 3), None), ((4, 3), (4, 3), CLASSICAL),
    ((4, 3), (4, 3), HALVES), ((6, 3), (6, 3), None), ((2, 5), (2, 5), None), ((3, 5), (3, 5), None),
    ((4, 5), (4, 5), None), ((1, 1), (2, 7), None), ((1, 1), (3, 7), None), ((1, 1), (4, 7), None),
    ((1, 1), (6, 7), None), ((1, 1), (4, 3), None), ((1, 1), (6, 3), None),
]  # fmt: skip


def transformed(matrix: object, x: Array, axis: int) -> Array:
    """The rational matrix times ``x`` along one axis, in float32, one term after the other."""
    rows = np.array(matrix, dtype=np.float64).astype(np.float32)
    terms = np.moveaxis(x, axis, 0)
    results = []
    for row in rows:
        total = np.zeros_like(terms[0])
        for factor, term in zip(row, terms, strict=True):
            if factor:
                total = total + factor * term
        results.append(total)
    return np.moveaxis(np.array(results), 0, axis)


def by_winograd(high: Filtering, wide: Filtering, d: Array, g: Array) -> Array:
    """``[tiles, channels, n_h, n_w]`` and ``[channels, r_h, r_w]`` to ``[tiles, m_h, m_w]``."""
    u = np.einsum("ij,cjk,lk->cil", high.float_g(), g.astype(np.float64), wide.float_g()).astype(np.float32)
    v = transformed(wide.bt, transformed(high.bt, d, 2), 3)
    total = np.zeros((len(d), *u.shape[1:]), np.float32)
    for channel in range(d.shape[1]):
        total = total + u[channel] * v[:, channel]
    return transformed(wide.at, transformed(high.at, total, 1), 2)


def directly(d: Array, g: Array, dtype: type) -> Array:
    """The same sum in the order channel, row, column, in ``dtype``."""
    d, g = d.astype(dtype), g.astype(dtype)
    rows, cols = (n - r + 1 for n, r in zip(d.shape[2:], g.shape[1:], strict=True))
    total: Array = np.zeros((len(d), rows, cols), dtype)
    for channel, row, col in np.ndindex(g.shape):
        total = total + g[channel, row, col] * d[:, channel, row : row + rows, col : col + cols]
    return total


def bound(growth: float, terms: int) -> float:
    """What `model.lower.winograd` states: see `model.lower.direct.error_of_sum`."""
    return float(max(1.0, growth) * 16 * 2.0**-24 * max(1.0, terms / 256) ** 0.5)


def measure(options: argparse.Namespace) -> Table:
    table = Table(title=f"{options.channels} channels, {options.seeds} seeds")
    for heading in ("algorithm", "points", "growth", "largest error", "direct", "of the bound"):
        table.add_column(heading, justify="left" if heading in ("algorithm", "points") else "right")
    for high_axis, wide_axis, points in CHOICES:
        high, wide = (interpolated(*axis, points) for axis in (high_axis, wide_axis))
        errors: list[float] = []
        direct_errors: list[float] = []
        terms = options.channels * high_axis[1] * wide_axis[1]
        for seed in range(options.seeds):
            rng = np.random.default_rng(seed)
            size = (len(high.bt), len(wide.bt))
            d = rng.standard_normal((options.tiles, options.channels, *size)).astype(np.float32)
            g = rng.standard_normal((options.channels, high_axis[1], wide_axis[1])) / terms**0.5
            g = g.astype(np.float32)
            exact = directly(d, g, np.float64)
            for found, result in ((errors, by_winograd(high, wide, d, g)), (direct_errors, directly(d, g, np.float32))):
                found.append(float(np.abs(result - exact).max() / np.abs(exact).max()))
        growth = high.growth * wide.growth
        table.add_row(
            f"F({high_axis[0]}x{wide_axis[0]}, {high_axis[1]}x{wide_axis[1]})",
            "in use" if points is None else text(points), f"{growth:.2f}", f"{np.mean(errors):.1e}",
            f"{np.mean(direct_errors):.1e}", f"{max(errors) / bound(growth, terms):.2f}",
        )  # fmt: skip
    return table


def text(points: Points) -> str:
    return " ".join(map(str, points))


def sets(count: int) -> Iterator[Points]:
    quarters = [Fraction(quarter, 4) for quarter in range(1, 17)]
    for zero in (0, 1):
        left = count - zero
        for pairs in itertools.combinations(quarters, left // 2):
            points = (*[Fraction(0)] * zero, *(sign * point for point in pairs for sign in (1, -1)))
            for more in quarters if left % 2 else [None]:
                if more is None:
                    yield points
                elif more not in pairs:
                    yield (*points, more)


def growths(points: Points, splits: list[tuple[int, int]]) -> list[float]:
    """`Filtering.growth` of F(m, r) for several (m, r), in floating point."""
    p = np.array(points, float)
    left = []
    for place, point in enumerate(p):
        others = np.delete(p, place)
        left.append((np.poly(others) ** 2).sum() / np.prod(point - others) ** 2)
    found = []
    for m, r in splits:
        g = (p[:, None] ** (2 * np.arange(r))).sum(1) * left
        squares = (p[:, None] ** (2 * np.arange(m)) * g[:, None]).sum(0)
        squares[-1] += (np.poly(p) ** 2).sum()
        found.append(float(squares.max() ** 0.5) / r)
    return found


def search(count: int) -> Table:
    splits = [(count + 2 - r, r) for r in range(2, 8) if count + 2 - r >= 2] or [(1, count + 1)]
    found = [(growths(points, splits), points) for points in sets(count)]
    found.sort(key=lambda pair: float(np.log(pair[0]).mean()))
    table = Table(title=f"{count} points: growth of F(m, r)")
    table.add_column("points")
    for m, r in splits:
        table.add_column(f"F({m}, {r})", justify="right")
    for figures, points in found[:5]:
        table.add_row(text(points), *(f"{figure:.2f}" for figure in figures))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("channels", 64), ("tiles", 200), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--search", type=int, action="append", choices=range(1, 13), metavar="POINTS")
    options = parser.parse_args()
    if options.search:
        for count in options.search:
            Console().print(search(count))
    else:
        Console().print(measure(options))


if __name__ == "__main__":
    main()
