"""Weights packed by `kernels.packing`, on a team of threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convwright.codegen.jit import compile_kernel
from convwright.codegen.target import Target
from convwright.kernels import packing
from convwright.kernels.packing import TOGETHER, Packing
from convwright.runtime.team import team_of

Axes = tuple[int, int]
_ALONE = 1 << 16  # weights up to which one thread packs them before another has woken


@dataclass(frozen=True, slots=True)
class Rows:
    """Weights ``[rows][channels][taps]`` of some groups, rows of one group after another, and who packs them.

    Of several groups each has whole vectors of rows.
    """

    weights: NDArray[np.float32]
    channels: int
    taps: Axes
    groups: int
    target: Target
    threads: int

    @classmethod
    def of(
        cls, weights: NDArray[Any], channels: int, taps: Axes, groups: int, target: Target, threads: int
    ) -> Rows:  # fmt: skip
        return cls(np.ascontiguousarray(weights, np.float32), channels, taps, groups, target, threads)

    @property
    def vectors(self) -> int:
        return -(-len(self.weights) // self.target.vector)

    def shares(self) -> NDArray[np.float64]:
        """``[groups][channels]``: the mean over rows of each channel's part in a row's sum of squares, times the
        channels. What is not finite counts as zero."""
        shares = np.empty((self.vectors, self.channels))
        self._run("shares", (1, 1), shares=shares)
        of_groups: NDArray[np.float64] = shares.reshape(self.groups, -1, self.channels).sum(1)
        return of_groups * self.groups / len(self.weights)

    def scale(
        self, to: NDArray[np.float32], squares: NDArray[np.float32], backs: NDArray[np.float32],
        factors: NDArray[np.float64], counted: NDArray[np.bool_], limit: int,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Pack weights of a single tap as they are; whether some of a row became smaller than normal numbers."""
        lost = np.empty(self.vectors * self.target.vector, np.float32)
        self._run(
            "scale", (1, 1), limit, to=to, squares=squares, backs=backs, factors=_padded(factors), lost=lost,
            wanted=np.array([float(self.channels)]), counted=counted.astype(np.int64),
        )  # fmt: skip
        return lost[: len(self.weights)] > 0

    def transform(
        self, to: NDArray[np.float32], g: tuple[NDArray[np.float64], NDArray[np.float64]], order: NDArray[np.int64],
    ) -> None:  # fmt: skip
        """Pack G g G^T."""
        self._transform(to, g, order, -1)

    def transform_and_scale(
        self, to: NDArray[np.float32], squares: NDArray[np.float32], backs: NDArray[np.float32],
        g: tuple[NDArray[np.float64], NDArray[np.float64]], order: NDArray[np.int64],
        factors: NDArray[np.float64], counted: NDArray[np.bool_], wanted: NDArray[np.float64], limit: int,
    ) -> None:  # fmt: skip
        """Pack G g G^T, brought near to the root mean squares ``wanted`` of each place; channels in this order, and
        factors and counted in it too."""
        self._transform(
            to, g, order, limit, squares=squares, backs=backs, factors=_padded(factors),
            wanted=wanted**2 * self.channels, counted=counted.astype(np.int64),
        )  # fmt: skip

    def _transform(
        self, to: NDArray[np.float32], g: tuple[NDArray[np.float64], NDArray[np.float64]], order: NDArray[np.int64],
        limit: int, **arrays: NDArray[Any],
    ) -> None:  # fmt: skip
        behind = np.full(-len(order) % TOGETHER, self.channels)
        starts = np.append(order, behind) * (self.taps[0] * self.taps[1] * self.target.vector)
        if "factors" not in arrays:
            arrays["factors"] = np.ones(len(starts))
        places = len(g[0]), len(g[1])
        self._run("transform", places, limit, to=to, high=g[0], wide=g[1], order=starts, **arrays)

    def _run(self, what: str, places: Axes, limit: int = 0, **arrays: NDArray[Any]) -> None:
        v, (taps_high, taps_wide), (places_high, places_wide) = self.target.vector, self.taps, places
        scratch_thread = packing.scratch_floats(self.channels, self.taps, places, v)
        threads = self.threads if self.weights.size > _ALONE else 1
        arrays |= {"weights": self.weights, "scratch": np.empty(scratch_thread * threads, np.float32)}
        values = dict.fromkeys(packing.ARGUMENTS.pointers, 0) | {name: one.ctypes.data for name, one in arrays.items()}
        values |= {
            "rows": len(self.weights), "channels": self.channels, "taps_high": taps_high, "taps_wide": taps_wide,
            "places_high": places_high, "places_wide": places_wide, "group_vectors": self.vectors // self.groups,
            "factors_group": -(-self.channels // TOGETHER) * TOGETHER, "limit": limit, "scratch_thread": scratch_thread,
        }  # fmt: skip
        arguments, tile = packing.ARGUMENTS.pack(values), Packing(what)
        address = compile_kernel(tile.key, lambda: packing.emit(tile, self.target), self.target)
        team_of(threads).run_one(address, arguments, self.vectors)


def _padded(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[groups][channels]`` with zeros up to a multiple of `TOGETHER`."""
    padded = np.zeros((len(factors), -(-factors.shape[1] // TOGETHER) * TOGETHER))
    padded[:, : factors.shape[1]] = factors
    return padded
