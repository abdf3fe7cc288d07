"""Convolution as a matrix product against float64: every rank, padding mode and type, transposed or not."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from convwright.codegen.target import NAMES, Target, host_target, target_named
from convwright.kernels import col2im, gemm, im2col
from convwright.matrix import im2col as columns_of
from convwright.model.lower import im2col as lowering
from convwright.model.problem import Problem
from convwright.spec import ConvSpec
from tests.forced import Case, random_case
from tests.kernels import each_target
from tests.test_spills import share_of_spills

FLOAT = np.dtype(np.float32)


def dense(channels: int, outs: int, size: tuple[int, ...], **options: Any) -> Case:
    return Case("im2col", ConvSpec(channels, outs, (3,) * len(size), padding=1), size, **options)


@each_target
def test_random_convolutions(target: Target) -> None:
    for seed in range(40):
        random_case("im2col", seed, target).check(target)


@pytest.mark.long
@each_target
@pytest.mark.parametrize("start", range(1000, 4000, 100))
def test_many_random_convolutions(target: Target, start: int) -> None:
    for seed in range(start, start + 100):
        random_case("im2col", seed, target).check(target)


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
    specs = [(ConvSpec(outs, outs, (3, 3), padding=1), (side, side)) for outs, side in sizes]
    for spec, size in specs:
        f = lowering.product_of(Problem(spec, size, 1, FLOAT, target, 1))
        for packed in (True, False):
            tile = gemm.GemmTile(f.tile_outs, f.cols, f.outs - (f.tiles - 1) * f.tile_outs, f.rest_cols, packed)
            share = share_of_spills(gemm.emit, tile, target, lambda loop: "mulps" in loop or "fmadd" in loop)
            assert share <= (0 if target.registers >= 32 else 0.125), (tile, share)
