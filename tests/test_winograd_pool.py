"""Winograd convolutions that store the largest of each 2 x 2 outputs: against float64, between unreadable pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright import reference
from convwright.codegen.target import Target
from convwright.graph import Node
from convwright.kernels import pool, winograd
from convwright.spec import ConvSpec
from tests.kernels import each_target
from tests.plans import Planned, graph_of, planned

Floats = NDArray[Any]
HALVES: dict[str, Any] = {"kernel_shape": (2, 2), "strides": (2, 2)}


def plan_of(
    spec: ConvSpec, arrays: dict[str, Floats], target: Target, algorithm: str = "winograd-4x4", threads: int = 1,
    window: dict[str, Any] = HALVES, outputs: tuple[str, ...] = ("y",),
) -> Planned:  # fmt: skip
    """Convolution, sum with a residual, Relu, max pool."""
    low, high = zip(*spec.pads(arrays["x"].shape[2:]), strict=True)
    attributes = {
        "kernel_shape": spec.kernel, "strides": spec.stride, "pads": (*low, *high), "algorithm": algorithm
    }  # fmt: skip
    nodes = [
        Node("Conv", ["x", "w", "b"], ["c"], attributes),
        Node("Add", ["c", "r"], ["s"], {}),
        Node("Relu", ["s"], ["t"], {}),
        Node("MaxPool", ["t"], ["y"], window),
    ]
    inputs = {name: arrays[name] for name in ("x", "r")}
    constants = {name: arrays[name] for name in ("w", "b")}
    return planned(graph_of(nodes, inputs, list(outputs), constants), target, threads, numerics="default")


def arrays_of(spec: ConvSpec, size: tuple[int, int], batch: int = 1) -> dict[str, Floats]:
    rng = np.random.default_rng(sum(size))
    shapes = {
        "x": (batch, spec.in_channels, *size), "w": (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel),
        "b": (spec.out_channels,), "r": (batch, spec.out_channels, *spec.output_size(size)),
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def expected(spec: ConvSpec, arrays: dict[str, Floats]) -> Floats:
    """In float64; the largest of four with a NaN is NaN."""
    full = np.maximum(reference.conv(arrays["x"], arrays["w"], arrays["b"], spec) + arrays["r"].astype(float), 0)
    high, wide = (length // 2 * 2 for length in full.shape[2:])
    full = full[:, :, :high, :wide]
    pooled: Floats = full.reshape(*full.shape[:2], high // 2, 2, wide // 2, 2).max((3, 5))
    return pooled


def check(
    spec: ConvSpec, size: tuple[int, int], target: Target, algorithm: str = "winograd-4x4", batch: int = 1,
    threads: int = 1,
) -> None:  # fmt: skip
    arrays = arrays_of(spec, size, batch)
    wanted = expected(spec, arrays)
    for at_end in (True, False):
        plan = plan_of(spec, arrays, target, algorithm, threads)
        (tile,) = plan.tiles(winograd)
        assert tile.pooled
        assert not plan.tiles(pool)
        (step,) = (step for step in plan.steps if step.family is winograd)
        assert step.why.endswith("pooled 2x2")
        result = plan.run({"x": arrays["x"], "r": arrays["r"]}, at_end=at_end)["y"]
        assert result.shape == wanted.shape
        np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@each_target
@pytest.mark.parametrize("size", [(4, 4), (5, 5), (6, 9), (8, 8), (7, 14), (11, 18)])
def test_sizes_around_the_tile(target: Target, size: tuple[int, int]) -> None:
    for channels, outs in ((3, 1), (target.vector, 2 * target.vector + 1)):
        check(ConvSpec(channels, outs, (3, 3), padding=1), size, target)


@each_target
@pytest.mark.parametrize("algorithm", ["winograd-2x2", "winograd-4x2", "winograd-6x6"])
def test_other_tiles(target: Target, algorithm: str) -> None:
    check(ConvSpec(5, target.vector + 1, (3, 3), padding=1), (13, 10), target, algorithm)


@each_target
def test_strides_batches_and_threads(target: Target) -> None:
    check(ConvSpec(5, 7, (3, 3), stride=2, padding=1), (23, 16), target, batch=2)
    check(ConvSpec(5, 7, (3, 2), padding=((0, 1), (2, 0))), (13, 9), target, batch=3, threads=3)


@each_target
def test_a_nan_is_the_largest_of_its_window_and_of_no_other(target: Target) -> None:
    spec = ConvSpec(3, target.vector + 1, (3, 3), padding=1)
    arrays = arrays_of(spec, (9, 10))
    for channel, (row, col) in enumerate([(0, 0), (2, 5), (5, 2), (7, 9)]):
        arrays["r"][0, channel, row, col] = np.nan
    arrays["b"][4] = np.nan
    result = plan_of(spec, arrays, target).run({"x": arrays["x"], "r": arrays["r"]})["y"]
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected(spec, arrays)))
    assert np.isnan(result).any()


@each_target
def test_what_else_keeps_its_pool(target: Target) -> None:
    spec = ConvSpec(3, 5, (3, 3), padding=1)
    arrays = arrays_of(spec, (9, 9))
    windows: list[dict[str, Any]] = [
        {"ceil_mode": 1}, {"pads": (1, 1, 1, 1)}, {"strides": (1, 1)}, {"kernel_shape": (3, 3)},
        {"auto_pad": "SAME_UPPER"}, {"dilations": (2, 2)},
    ]  # fmt: skip
    for plan in (
        *(plan_of(spec, arrays, target, window=HALVES | window) for window in windows),
        plan_of(spec, arrays, target, "direct"),
        plan_of(spec, arrays, target, "winograd-3x3"),
        plan_of(spec, arrays, target, outputs=("y", "t")),
    ):
        assert plan.tiles(pool)
        assert not any(tile.pooled for tile in plan.tiles(winograd))
