"""Packing weights: the kernels against float64, every buffer beside an unreadable page; and their work shared out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright.codegen.target import Target
from convwright.kernels import packing
from convwright.kernels.cook_toom import filtering
from convwright.kernels.packing import TOGETHER, Packing
from convwright.model.packing import Rows
from tests.guard import guarded_bytes
from tests.kernels import call, each_target

SHAPES = [(1, 1, 1), (3, 2, 2), (15, 5, 1), (16, 16, 1), (17, 31, 1), (32, 33, 2), (33, 8, 1)]
"""Rows and channels for 16 lanes, and groups; for fewer lanes, as many rows less."""


def beside(array: Any, at_end: bool) -> NDArray[Any]:
    array = np.ascontiguousarray(array)
    copy: NDArray[Any] = guarded_bytes(array.nbytes, at_end=at_end).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def room(at_end: bool, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return beside(np.full(shape, np.nan, dtype), at_end)


def vectors_of(weights: NDArray[Any], v: int) -> NDArray[np.float64]:
    """``[K, C, ...]`` to ``[ceil(K / v), C, ..., v]``."""
    vectors = -(-len(weights) // v)
    rows = np.zeros((vectors * v, *weights.shape[1:]))
    rows[: len(weights)] = weights
    lanes_last: NDArray[np.float64] = np.moveaxis(rows.reshape(vectors, v, *weights.shape[1:]), 1, -1)
    return lanes_last


def powers(rng: np.random.Generator, most: int, *shape: int) -> NDArray[np.float64]:
    drawn: NDArray[np.float64] = np.ldexp(rng.choice([-1.0, 1.0], shape), rng.integers(-most, most + 1, shape))
    return drawn


def pack(
    what: str, target: Target, weights: NDArray[np.float32], groups: int, at_end: bool, limit: int, axes: Any,
    factors: Any, order: Any, counted: Any, wanted: Any,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """What the kernel makes of weights ``[K, C, r_h, r_w]``."""
    v, (outputs, channels, *taps) = target.vector, weights.shape
    g = [filtering(*axis).float_g() for axis in axes]
    places, vectors = len(g[0]) * len(g[1]), -(-outputs // v)
    behind = -channels % TOGETHER
    scratch = packing.scratch_floats(channels, (taps[0], taps[1]), (len(g[0]), len(g[1])), v)
    arrays = {
        "weights": beside(weights, at_end), "to": room(at_end, vectors, places, channels, v),
        "order": beside(np.append(order, np.full(behind, channels)) * (taps[0] * taps[1] * v), at_end),
        "factors": beside(np.pad(factors, ((0, 0), (0, behind))), at_end), "counted": beside(counted, at_end),
        "high": beside(g[0], at_end), "wide": beside(g[1], at_end), "wanted": beside(np.array(wanted, float), at_end),
        "squares": room(at_end, vectors, places, v), "backs": room(at_end, vectors, places, v),
        "lost": room(at_end, vectors, v), "shares": room(at_end, vectors, channels, dtype=np.float64),
        "scratch": room(at_end, 2, scratch),
    }  # fmt: skip
    values = {name: array.ctypes.data for name, array in arrays.items()} | {
        "rows": outputs, "channels": channels, "taps_high": taps[0], "taps_wide": taps[1], "places_high": len(g[0]),
        "places_wide": len(g[1]), "group_vectors": vectors // groups, "factors_group": channels + behind,
        "limit": limit, "scratch_thread": scratch,
    }  # fmt: skip
    call(Packing(what), packing.emit, packing.ARGUMENTS, values, vectors, target, min(2, vectors))
    return arrays


def check_scaled(made: dict[str, NDArray[Any]], plain: NDArray[np.float64], limit: int, wanted: Any) -> None:
    """Of the transformed weights ``[vector][place][channel][v]`` times their factors in float64, in order."""
    sums = np.square(plain).sum(2)
    backs = made["backs"].astype(np.float64)
    exponents = np.frexp(backs)[1] - 1
    assert (np.frexp(backs[sums > 0])[0] == 0.5).all()
    assert not backs[sums == 0].any()
    with np.errstate(divide="ignore"):
        exact = np.clip(-np.log2(np.asarray(wanted)[:, None] / sums) / 2, -limit, limit)
    assert (np.abs(exponents - exact)[sums > 0] <= 0.5 + 1e-9).all()
    np.testing.assert_allclose(made["to"] * backs[:, :, None], plain, rtol=2**-24 * 1.01, atol=1e-13 * plain.max())
    lanes_without = np.broadcast_to((sums == 0)[:, :, None], made["to"].shape)
    assert not made["to"][lanes_without].any()
    u = made["to"].astype(np.float64)
    products = (u[:, :, :-1] * u[:, :, 1:] * (made["counted"][1:, None] > 0)).sum(2)
    sizes = np.abs(u[:, :, :-1] * u[:, :, 1:]).sum(2).max() if u.shape[2] > 1 else 1
    with np.errstate(over="ignore"):
        products = products.astype(np.float32)
    np.testing.assert_allclose(made["squares"], -products, rtol=2**-23, atol=1e-14 * sizes)


@each_target
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    "axes", [((4, 3), (4, 3)), ((1, 1), (4, 7)), ((3, 5), (2, 3)), ((4, 3, 2), (2, 1)), ((1, 1), (1, 1))]
)
def test_transformed_and_scaled(target: Target, at_end: bool, axes: Any) -> None:
    v, rng = target.vector, np.random.default_rng(0)
    g = [filtering(*axis).float_g() for axis in axes]
    places = len(g[0]) * len(g[1])
    for outputs, channels, groups in SHAPES:
        outputs = 2 * v if groups > 1 else max(1, outputs + v - 16)
        weights = rng.standard_normal((outputs, channels, axes[0][1], axes[1][1])).astype(np.float32)
        weights[-1, : channels // 2] = 0
        factors, order = powers(rng, 9, groups, channels), rng.permutation(channels)
        counted, wanted = rng.integers(0, 2, channels), channels * np.exp2(rng.uniform(-9, 9, places))
        made = pack("transform", target, weights, groups, at_end, 60, axes, factors, order, counted, wanted)
        transformed = np.einsum("ai,kcij,bj->kabc", g[0], weights.astype(float), g[1]).reshape(outputs, places, -1)
        of_rows = np.repeat(factors, outputs // groups, 0)[:, None]
        check_scaled(made, vectors_of(transformed[..., order] * of_rows, v), 60, wanted)
        plain = pack("transform", target, weights, groups, at_end, -1, axes, factors, order, counted, wanted)
        np.testing.assert_allclose(
            plain["to"], vectors_of(transformed[..., order], v), rtol=2**-24 * 1.01, atol=1e-14
        )  # fmt: skip
        assert np.isnan(plain["squares"]).all()


@each_target
@pytest.mark.parametrize("at_end", [False, True])
def test_scaled(target: Target, at_end: bool) -> None:
    v, rng = target.vector, np.random.default_rng(1)
    for outputs, channels, groups in SHAPES:
        outputs = 2 * v if groups > 1 else max(1, outputs + v - 16)
        weights = rng.standard_normal((outputs, channels, 1, 1)).astype(np.float32)
        weights *= np.exp2(rng.uniform(-30, 30, (outputs, 1, 1, 1))).astype(np.float32)
        weights[outputs // 2] *= 2.0**30
        weights[outputs // 2, 0] *= 2.0**-130
        weights[-1] = 0
        factors, order = powers(rng, 9, groups, channels), np.arange(channels)
        counted, wanted = rng.integers(0, 2, channels), [channels]
        for limit in (126, 3):
            made = pack("scale", target, weights, groups, at_end, limit, ((1, 1),) * 2, factors, order, counted, wanted)
            of_rows = np.repeat(factors, outputs // groups, 0)[:, None]
            scaled = weights[:, :, 0].transpose(0, 2, 1) * of_rows
            check_scaled(made, vectors_of(scaled, v), limit, wanted)
            told = scaled != 0
            small = (np.abs(made["to"].transpose(0, 3, 1, 2).reshape(-1, channels)[:outputs]) < 2.0**-126)[:, None]
            np.testing.assert_array_equal(made["lost"].ravel()[:outputs] > 0, (small & told).any((1, 2)))


@each_target
@pytest.mark.parametrize("at_end", [False, True])
def test_shares(target: Target, at_end: bool) -> None:
    v, rng = target.vector, np.random.default_rng(2)
    for taps in ((1, 1), (3, 2)):
        for outputs, channels, _ in SHAPES:
            weights = rng.standard_normal((outputs, channels, *taps)).astype(np.float32)
            weights *= np.exp2(rng.uniform(-60, 60, (outputs, channels, 1, 1))).astype(np.float32)
            weights[0, 0, 0, 0], weights[-1, -1, -1, -1] = np.inf, np.nan
            made = pack(
                "shares", target, weights, 1, at_end, 0, ((1, taps[0]), (1, taps[1])), np.ones((1, channels)),
                np.arange(channels), np.zeros(channels, np.int64), [1.0] * len(filtering(1, taps[0]).g) * taps[1],
            )  # fmt: skip
            squares = np.square(weights, dtype=np.float64)
            squares[~np.isfinite(squares)] = 0
            of_rows = squares.sum((2, 3))
            totals = of_rows.sum(1, keepdims=True)
            own = vectors_of(of_rows * channels / np.where(totals > 0, totals, 1), v).sum(2)
            np.testing.assert_allclose(made["shares"], own, rtol=1e-12)


@each_target
def test_threads_and_groups_share_the_work(target: Target) -> None:
    """The same bits, whoever packs them, and each group as if it were alone."""
    v, rng = target.vector, np.random.default_rng(3)
    groups, outputs, channels = 2, 6 * v, 9
    weights = rng.standard_normal((outputs, channels)).astype(np.float32)
    weights *= np.exp2(rng.uniform(-9, 9, (1, channels))).astype(np.float32)
    factors, counted = powers(rng, 3, groups, channels), np.arange(channels) % 2 > 0

    def packed(rows: NDArray[Any], groups: int, factors: Any, threads: int) -> list[NDArray[Any]]:
        own = Rows.of(rows, channels, (1, 1), groups, target, threads)
        to, squares, backs = (np.empty((own.vectors, count, v), np.float32) for count in (channels, 1, 1))
        own.scale(to, squares, backs, factors, counted, 126)
        return [to, squares, backs, own.shares()]

    whole = packed(weights, groups, factors, 3)
    again = packed(weights, groups, factors, 1)
    halves = [packed(rows, 1, own[None], 2) for rows, own in zip(np.split(weights, 2), factors, strict=True)]
    for one, other, *parts in zip(whole, again, *halves, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one, np.concatenate(parts))
