"""Convolution as a matrix product against float64: every rank, padding mode and type, transposed or not."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from convwright.codegen.lang import lanes
from convwright.codegen.target import NAMES, Target, host_target, target_named
from convwright.kernels import col2im, gemm, im2col
from convwright.matrix import im2col as columns_of
from convwright.model.lower import im2col as lowering
from convwright.model.problem import Problem
from convwright.spec import ConvSpec
from tests.forced import Case, random_case
from tests.kernels import each_target
from tests.sweeps import HOST, check_each, on_targets
from tests.test_spills import share_of_spills

FLOAT = np.dtype(np.float32)


def dense(channels: int, outs: int, size: tuple[int, ...], **options: Any) -> Case:
    return Case("im2col", ConvSpec(channels, outs, (3,) * len(size), padding=1), size, **options)


@on_targets(40, full=(HOST, HOST))
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case("im2col", seed, target), lambda case: case.check(target))


@each_target
def test_sums_of_a_block_of_the_reduction_go_on_in_the_next(target: Target) -> None:
    for outs in (1, 13, 15, 29):
        with patch.object(lowering, "_BLOCK_BYTES", 900):
            lowering.product_of.cache_clear()
            plan = dense(11, outs, (7, 9), threads=2).check(target)
        lowering.product_of.cache_clear()
        step = plan.steps[-1]
        assert step.arguments["block"] < step.arguments["reduction"]


@each_target
@pytest.mark.parametrize("element", ["f32", "f64"])
def test_positions_after_the_last_vector(target: Target, element: str) -> None:
    """A few have a vector each, with outputs as lanes; from some number on they are a vector under a mask."""
    v = lanes(target, element)
    seen = set()
    for over in range(min(v, 6)):
        for outs, whole in [(1, 1), (v - 1, 3), (2 * v + 3, 2), (17, 7)]:
            spec = ConvSpec(40 * 3, outs * 3, (1,), groups=3, bias=over != 2)
            case = Case(
                "im2col",
                spec,
                (whole * v + over,),
                2,
                element,
                threads=2,
                at_end=over != 1,
                relu=over > 2 and element == "f32",
            )
            seen |= {tile.spare for tile in case.check(target).tiles(gemm)}
        with patch.object(lowering, "_BLOCK_BYTES", 1600):
            lowering.product_of.cache_clear()
            case.check(target)
        lowering.product_of.cache_clear()
    assert seen == set(range(min(v, 5)))


@each_target
def test_a_stride_as_large_as_the_kernel_needs_no_columns(target: Target) -> None:
    """Each output of a transposed convolution then has one tap: the product is stored where it belongs."""
    v = target.vector
    for rank, kernel in [(1, (2,)), (2, (2, 2)), (2, (3, 4)), (2, (2, 1)), (2, (1, 2)), (1, (v,)), (2, (2, v))]:
        for wide in (v // 2, v - 1, 2 * v + 2, 3 * v):
            size = ((3,) * (rank - 1)) + (wide,)
            groups = 3 if wide == v - 1 else 1
            spec = ConvSpec(
                3 * groups, 5 * groups, kernel, stride=kernel, groups=groups, transposed=True, flip=wide == 3 * v
            )
            case = Case("im2col", spec, size, 2, threads=2, at_end=wide >= v, relu=wide > v)
            in_place = rank == 1 or (v % kernel[-1] == 0 and wide * kernel[-1] >= v)
            assert (case.check(target).tiles(col2im) == []) == in_place, case
    for element in ("f32", "f64"):
        spec = ConvSpec(40, 17, (2, 2), stride=2, transposed=True, bias=False)
        case = Case("im2col", spec, (7, 21), 2, element, threads=2)
        with patch.object(lowering, "_BLOCK_BYTES", 1600):
            lowering.product_of.cache_clear()
            assert [step.family for step in case.check(target).steps] == [gemm]
        lowering.product_of.cache_clear()
        assert lowering.ROW.workspace(Problem(spec, (7, 21), 2, np.dtype(np.float32), target, 1)) == 0


@each_target
def test_columns_are_written_and_multiplied_in_pieces(target: Target) -> None:
    with patch.object(lowering, "_COLUMN_BYTES", 4000):
        lowering.product_of.cache_clear()
        case = Case("im2col", ConvSpec(4, 6, (3, 3), padding=1, groups=2), (13, 21), batch=3, threads=2)
        plan = case.check(target)
        transposed = Case("im2col", ConvSpec(4, 6, (3, 3), transposed=True, stride=2, groups=2), (5, 6), batch=3)
        plan_transposed = transposed.check(target)
    lowering.product_of.cache_clear()
    assert len(plan.tiles(im2col)) == len(plan.tiles(gemm)) > 3
    assert len(plan_transposed.tiles(col2im)) == len(plan_transposed.tiles(gemm)) == 3


def test_columns_are_those_of_the_matrix() -> None:
    spec = ConvSpec(3, 4, (3, 2), padding=(1, 0), stride=(1, 2))
    case = Case("im2col", spec, (6, 11))
    inputs, constants = case.arrays()
    plan = case.plan(inputs, constants, host_target())
    plan.run(inputs)
    write = plan.steps[0]
    width, positions = write.arguments["width"], write.arguments["positions"]
    panels = plan.memory[id(write.arguments["columns"].buffer)].view(np.float32).reshape(-1, 18, width)
    written = panels.swapaxes(0, 1).reshape(18, -1)[:, :positions]
    np.testing.assert_array_equal(written, columns_of(inputs["x"][0], spec))


def test_a_pointwise_convolution_needs_no_workspace() -> None:
    case = Case("im2col", ConvSpec(5, 7, (1, 1)), (9, 11), batch=2)
    plan = case.check(host_target())
    assert [step.family for step in plan.steps] == [gemm]
    assert lowering.ROW.workspace(Problem(case.spec, case.size, 2, FLOAT, host_target(), 1)) == 0


@pytest.mark.parametrize("transposed", [False, True])
def test_workspace_is_what_the_row_says(transposed: bool) -> None:
    spec = ConvSpec(16, 32, (3, 3), padding=1, transposed=transposed)
    plan = Case("im2col", spec, (30, 31), batch=2, threads=2).check(host_target())
    buffers = {id(touch[0]): touch[0] for step in plan.steps for touch in step.touches if touch[0].kind == "arena"}
    expected = lowering.ROW.workspace(Problem(spec, (30, 31), 2, FLOAT, host_target(), 2))
    assert sum(buffer.nbytes for buffer in buffers.values()) == expected > 0


@pytest.mark.parametrize("target", [pytest.param(target_named(name), id=name) for name in NAMES])
def test_products_stay_in_registers(target: Target) -> None:
    if not target.is_x86:
        pytest.skip("reads x86 assembly")
    sizes = [(64, 56), (128, 28), (256, 14), (512, 7), (3, 224), (8, 9), (1, 30), (24, 5)]
    specs: list[tuple[ConvSpec, tuple[int, ...]]] = []
    specs += [(ConvSpec(outs, outs, (3, 3), padding=1), (side, side)) for outs, side in sizes]
    specs += [(ConvSpec(96, 96, (1,)), (3 * target.vector + over,)) for over in range(1, min(target.vector, 5))]
    for spec, size in specs:
        f = lowering.product_of(Problem(spec, size, 1, FLOAT, target, 1))
        for packed in (True, False) if f.packed else (False,):
            rest = f.outs - (f.tiles - 1) * f.tile_outs
            tile = gemm.GemmTile(f.tile_outs, f.cols, rest, f.rest_cols, packed, spare=f.spare)
            share = share_of_spills(gemm.emit, tile, target, lambda loop: "mulps" in loop or "fmadd" in loop)
            assert share <= (0 if target.registers >= 32 else 0.125), (tile, share)
