"""How far F(4 x 4, 3 x 3) deviates from float64 with different interpolation points, beside direct summation.

    python bench/winograd_points.py [--channels 64] [--tiles 200] [--seeds 3]

Everything is computed in float32 with NumPy, one term after the other and without fused additions; the filter transform
in float64, rounded once. Printed: the largest error over the largest output, the mean over the seeds. Inputs are
normal, weights normal with variance 1 / (9 channels).
"""

import argparse
from fractions import Fraction

import numpy as np
from rich.console import Console
from rich.table import Table

from convwright.kernels.cook_toom import POINTS, Filtering, filtering

CHOICES = {
    "0, 3/4, -3/4, 3/2, -3/2 (in use)": POINTS[5],
    "0, 1, -1, 2, -2 (classical)": tuple(map(Fraction, (0, 1, -1, 2, -2))),
    "0, 1, -1, 1/2, -1/2": (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-1, 2)),
    "0, 1, -1, 1/2, -2": (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2)),
}


def transformed(matrix: object, x: np.ndarray, axis: int) -> np.ndarray:
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


def by_winograd(f: Filtering, d: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``[tiles, channels, 6, 6]`` and ``[channels, 3, 3]`` to ``[tiles, 4, 4]``."""
    spread = f.float_g()
    u = np.einsum("ij,cjk,lk->cil", spread, g.astype(np.float64), spread).astype(np.float32)
    v = transformed(f.bt, transformed(f.bt, d, 2), 3)
    total = np.zeros((len(d), 6, 6), np.float32)
    for channel in range(d.shape[1]):
        total = total + u[channel] * v[:, channel]
    return transformed(f.at, transformed(f.at, total, 1), 2)


def directly(d: np.ndarray, g: np.ndarray, dtype: type) -> np.ndarray:
    """The same sum in the order channel, row, column, in ``dtype``."""
    d, g = d.astype(dtype), g.astype(dtype)
    total: np.ndarray = np.zeros((len(d), 4, 4), dtype)
    for channel in range(d.shape[1]):
        for row in range(3):
            for col in range(3):
                total = total + g[channel, row, col] * d[:, channel, row : row + 4, col : col + 4]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("channels", 64), ("tiles", 200), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    errors: dict[str, list[float]] = {name: [] for name in (*CHOICES, "direct summation")}
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        d = rng.standard_normal((options.tiles, options.channels, 6, 6)).astype(np.float32)
        g = (rng.standard_normal((options.channels, 3, 3)) / (9 * options.channels) ** 0.5).astype(np.float32)
        exact = directly(d, g, np.float64)
        results = {name: by_winograd(filtering(4, 3, points), d, g) for name, points in CHOICES.items()}
        results["direct summation"] = directly(d, g, np.float32)
        for name, result in results.items():
            errors[name].append(float(np.abs(result - exact).max() / np.abs(exact).max()))
    table = Table(title=f"F(4 x 4, 3 x 3), {options.channels} channels")
    table.add_column("points")
    table.add_column("largest error", justify="right")
    for name, found in errors.items():
        table.add_row(name, f"{np.mean(found):.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
