"""Pooling kernels against float64, on every target, with unreadable pages around every buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convwright import reference
from convwright.codegen.target import Target
from convwright.kernels import global_pool as planes
from convwright.kernels.pool import ARGUMENTS, emit, pool_of
from tests.kernels import Blocked, call, each_target

Pair = tuple[int, int]


def pool(
    x: Any,
    target: Target,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Any,
    dilation: Pair,
    ceil_mode: bool,
    count: bool | None,
    halo: int = 0,
    at_end: bool = True,
    chunk_rows: int = 2,
    garbage: float = np.nan,
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel's output and the reference's; ``count`` is None for max pooling."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    if count is None:
        expected = reference.max_pool(x, kernel, **options)
    else:
        expected = reference.average_pool(x, kernel, **options, count_include_pad=count)
    out = Blocked.empty(expected.shape, target.vector, halo=halo, at_end=at_end)
    source = Blocked.of(x, target.vector, halo=halo, at_end=at_end, garbage=garbage)
    config = pool_of(count is None, kernel[1], stride[1], dilation[1], bool(count), target)
    (pad_top, pad_bottom), (pad_left, pad_right) = padding
    chunks = -(-expected.shape[2] // chunk_rows)
    blocks = out.buffer.shape[1]
    values = {
        **source.arguments("x"),
        **out.arguments("y"),
        "blocks": blocks,
        "chunks": chunks,
        "chunk_rows": chunk_rows,
        "in_rows": x.shape[2],
        "in_cols": x.shape[3],
        "out_rows": expected.shape[2],
        "out_cols": expected.shape[3],
        "taps_high": kernel[0],
        "taps_wide": kernel[1],
        "stride_high": stride[0],
        "stride_wide": stride[1],
        "dilation_high": dilation[0],
        "dilation_wide": dilation[1],
        "pad_top": pad_top,
        "pad_bottom": pad_bottom,
        "pad_left": pad_left,
        "pad_right": pad_right,
    }
    items = len(x) * blocks * chunks
    call(config, emit, ARGUMENTS, values, items, target, ranges=min(items, 3))
    assert out.halo_untouched()
    return out.array(), expected


def same(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


WINDOWS: list[tuple[Pair, Pair, Any, Pair]] = [
    ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    ((3, 3), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    ((2, 1), (3, 2), ((1, 0), (0, 0)), (1, 1)),
    ((2, 3), (3, 4), ((1, 0), (2, 1)), (1, 1)),
    ((3, 2), (1, 2), ((0, 2), (0, 1)), (2, 3)),
    ((5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1)),
    ((4, 13), (1, 1), ((1, 3), (6, 6)), (1, 1)),
    ((3, 31), (1, 5), ((1, 1), (15, 14)), (1, 1)),
]


@each_target
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), WINDOWS)
def test_windows_match_the_reference(target: Target, kernel: Pair, stride: Pair, padding: Any, dilation: Pair) -> None:
    rng = np.random.default_rng(1)
    v = target.vector
    span = [(k - 1) * d + 1 - sum(p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    for case, (h, w) in enumerate([(1, 1), (2, 3), (4, 5), (7, 7), (9, 8), (6, 21), (3, 40)]):
        size = (max(h, span[0]), max(w, span[1]))
        channels = [1, v - 1, v, v + 1, 2 * v + 3][case % 5]
        x = rng.standard_normal((1 + case % 2, channels, *size))
        for count in (None, False, True):
            actual, expected = pool(
                x.astype(np.float32), target, kernel=kernel, stride=stride, padding=padding, dilation=dilation,
                ceil_mode=case % 3 == 1, count=count, halo=case // 2 % 2, at_end=case % 2 == 0,
            )  # fmt: skip
            if count is None:
                np.testing.assert_array_equal(actual, expected.astype(np.float32).astype(np.float64).astype(np.float32))
            else:
                same(actual, expected, 1e-6)


@each_target
@pytest.mark.parametrize("window", [WINDOWS[0], WINDOWS[1], WINDOWS[10]])
def test_a_nan_in_a_window_is_its_largest_value(target: Target, window: tuple[Pair, Pair, Any, Pair]) -> None:
    kernel, stride, padding, dilation = window
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, target.vector + 1, 9, 37)).astype(np.float32)
    for place in range(12):
        x[0, rng.integers(x.shape[1]), rng.integers(9), rng.integers(37)] = [np.nan, -np.nan, np.inf, -np.inf][
            place % 4
        ]
    x[0, 0] = -np.inf
    actual, expected = pool(
        x,
        target,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        ceil_mode=False,
        count=None,
        garbage=0,
    )
    np.testing.assert_array_equal(actual, expected)
    assert np.isnan(expected).any()
    assert not np.isnan(expected).all()


@each_target
@pytest.mark.parametrize("halo", [0, 1])
@pytest.mark.parametrize("maximum", [True, False])
def test_global_pooling_matches_the_reference(target: Target, maximum: bool, halo: int) -> None:
    rng = np.random.default_rng(3)
    v = target.vector
    for case, size in enumerate([(1, 1), (1, 7), (7, 7), (3, 8), (5, 17), (2, 300)]):
        x = rng.standard_normal((2, [1, v - 1, v, v + 1, 2 * v + 3][case % 5], *size)).astype(np.float32)
        if case == 3:
            x[0, 0, 1, 2], x[1, 0, 2, 1], x[1, 0, 0, 0] = np.nan, np.inf, 1
        source = Blocked.of(x, v, halo=halo, at_end=case % 2 == 0)
        same(
            global_pool(source, maximum, target),
            x.astype(np.float64).max((2, 3)) if maximum else x.mean((2, 3), float),
            1e-6,
        )


def global_pool(source: Blocked, maximum: bool, target: Target) -> np.ndarray:
    n, blocks, h, w, v = source.buffer.shape
    h, w = h - 2 * source.halo, w - 2 * source.halo
    out = Blocked.empty((n, source.channels, 1, 1), v)
    values = {**source.arguments("x"), **out.arguments("y"), "blocks": blocks, "rows": h, "cols": w}
    call(planes.GlobalPool(maximum), planes.emit, planes.ARGUMENTS, values, n * blocks, target, ranges=2)
    return out.array()[:, :, 0, 0]


@each_target
def test_the_mean_of_a_large_plane_is_accurate(target: Target) -> None:
    x = np.random.default_rng(4).uniform(0.9, 1.1, (1, target.vector, 300, 400)).astype(np.float32)
    actual = global_pool(Blocked.of(x, target.vector), False, target)
    np.testing.assert_allclose(actual, x.mean((2, 3), float), rtol=3e-7)


@each_target
def test_the_mean_of_a_plane_with_an_infinity_is_infinite(target: Target) -> None:
    x = np.ones((1, 1, 4, 200), np.float32)
    x[0, 0, 1, 3] = np.inf
    assert global_pool(Blocked.of(x, target.vector), False, target)[0, 0] == np.inf
