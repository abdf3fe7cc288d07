"""Convolution by fast Fourier transforms against float64: tiles of every size, planes and lines, every kind."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from convwright.codegen.jit import compile_kernel
from convwright.codegen.lang import Kernel, lanes
from convwright.codegen.target import NAMES, Target, host_target, target_named
from convwright.errors import ConvwrightError
from convwright.kernels import fft
from convwright.kernels.arguments import Arguments
from convwright.kernels.fft_codelets import RADICES, Numbers, backward, forward, frequencies, roots
from convwright.model.lower import fft as lowering
from convwright.model.lower.conv import algorithm_of
from convwright.model.problem import Problem
from convwright.spec import PADDING_MODES, ConvSpec
from tests.forced import ROUNDING, Case, random_case
from tests.guard import guarded_bytes
from tests.kernels import _signature, each_target
from tests.sweeps import check_each, on_targets
from tests.test_spills import share_of_spills


def problem(case: Case, target: Target) -> Problem:
    dtype = np.dtype(np.float64 if case.element == "f64" else np.float32)
    return Problem(
        case.spec.resolve(case.size), case.size, case.batch, dtype, target, case.threads, algorithm="fft"
    )  # fmt: skip


def check(case: Case, target: Target) -> Any:
    """The error is within what the row says."""
    plan, error = case.error(target)
    assert plan.tiles(fft), plan.steps
    assert error <= lowering.ROW.error_bound(problem(case, target)), case
    return plan.tiles(fft)[0]


def applicable(seed: int, target: Target) -> Case:
    """The first random case from this seed on that transforms can compute."""
    for later in itertools.count():
        case = random_case("fft", seed + 100_000 * later, target)
        if lowering.ROW.why_not(problem(case, target)) is None:
            return case
    raise AssertionError


@on_targets(30)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: applicable(seed, target), lambda case: check(case, target))


@each_target
@pytest.mark.parametrize("element", ["f32", "f64"])
@pytest.mark.parametrize("length", list(RADICES))
def test_transforms_are_numpys(target: Target, element: str, length: int) -> None:
    v = lanes(target, element)
    dtype: Any = np.dtype(np.float64 if element == "f64" else np.float32)
    arguments = Arguments("x y table", "unused")

    def emit() -> Any:
        k = Kernel(target, element=element)
        a = arguments.read(k)

        def numbers(pointer: Any) -> Numbers:
            def store(at: Any, value: Any) -> None:
                for part in (0, 1):
                    k.store(value[part], pointer, at * (2 * k.v) + part * k.v)

            return Numbers(lambda at: (k.load(pointer, at * (2 * k.v)), k.load(pointer, at * (2 * k.v) + k.v)), store)

        x, y = numbers(a.x), numbers(a.y)
        forward(k, length, x, y.store, a.table)
        backward(k, length, y.load, x, a.table)
        return k.finish()

    address = compile_kernel(f"test-transform-{length}-{element}", emit, target)
    nbytes = 2 * length * v * dtype.itemsize
    x, y = (guarded_bytes(nbytes).view(dtype).reshape(length, 2, v) for _ in range(2))
    table = guarded_bytes(len(roots(length)) * dtype.itemsize).view(dtype)
    table[:] = roots(length)
    rng = np.random.default_rng(length)
    x[:] = before = rng.standard_normal(x.shape).astype(dtype)
    packed = arguments.pack({"x": x.ctypes.data, "y": y.ctypes.data, "table": table.ctypes.data, "unused": 0})
    _signature(address)(packed.ctypes.data, 0, 1, 0)
    expected = np.fft.fft(before[:, 0].astype(float) + 1j * before[:, 1], axis=0)[frequencies(length)]
    rounding = 16 * ROUNDING[element] * float(np.sqrt(length))
    np.testing.assert_allclose(y[:, 0] + 1j * y[:, 1], expected, rtol=0, atol=rounding * np.abs(expected).max())
    np.testing.assert_allclose(x / length, before, rtol=0, atol=rounding)


@each_target
@pytest.mark.parametrize(("kernel", "size"), [
    ((15, 15), (33, 33)), ((16, 17), (31, 20)), ((1, 31), (5, 70)), ((31, 1), (70, 5)), ((64, 3), (64, 9)),
    ((31, 31), (64, 64)), ((100, 2), (101, 40)), ((255,), (260,)), ((257,), (900,)), ((700,), (1300,)),
    ((3, 9, 9), (4, 20, 21)), ((1, 1), (1, 1)), ((3, 5), (3, 5)),
])  # fmt: skip
def test_kernels_about_as_large_as_a_tile(target: Target, kernel: tuple[int, ...], size: tuple[int, ...]) -> None:
    check(Case("fft", ConvSpec(2, 2, kernel, groups=2), size, threads=2), target)


@each_target
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_padding_is_filled_in_while_tiles_are_read(target: Target, mode: str) -> None:
    spec = ConvSpec(2, 3, (7, 5), padding=((3, 5), (2, 6)), stride=(1, 2), padding_mode=mode)
    check(Case("fft", spec, (17, 37), batch=2), target)
    check(Case("fft", ConvSpec(1, 1, (21,), padding=((11, 9),), padding_mode=mode), (300,)), target)


@each_target
def test_strides_are_terms_of_the_sum(target: Target) -> None:
    for stride in itertools.product((1, 2, 3), (1, 2, 5, 8)):
        check(Case("fft", ConvSpec(2, 3, (9, 7), stride=stride, padding=3), (31, 40), threads=2), target)


def test_absent_tiles_channels_and_parts() -> None:
    """Odd numbers of tiles, output channels that tiles do not divide, more threads than items."""
    for outs, batch, threads in ((1, 1, 3), (3, 3, 2), (5, 1, 4), (9, 5, 1)):
        check(Case("fft", ConvSpec(5, outs, (5, 5), padding=2), (24, 24), batch, threads=threads), host_target())


def test_depthwise_layers_of_large_kernels_are_chosen_by_themselves() -> None:
    spec = ConvSpec(64, 64, (31, 31), padding=15, groups=64)
    p = Problem(spec, (64, 64), 1, np.dtype(np.float32), host_target(), 2, plain_input=True, plain_output=True)
    assert algorithm_of(p) is lowering.ROW
    assert lowering.ROW.multiplications(p) < p.macs / 15


def test_workspace_is_what_the_row_says() -> None:
    case = Case("fft", ConvSpec(6, 7, (9, 9), padding=4), (40, 41), threads=2)
    (step,) = case.plan(*case.arrays(), host_target()).steps
    assert lowering.ROW.workspace(problem(case, host_target())) == step.arguments["scratch"].buffer.nbytes


@pytest.mark.parametrize(("spec", "size", "reason"), [
    (ConvSpec(1, 1, (3,), transposed=True, stride=2), (9,), r"transposed with stride \(2,\)"),
    (ConvSpec(1, 1, (9,), stride=9), (90,), r"stride \(9,\): at most 8"),
    (ConvSpec(1, 1, (1, 300, 300)), (1, 300, 300), r"kernel \(1, 300, 300\) .* larger than a tile of 256"),
    (ConvSpec(1024, 1024, (9, 9)), (30, 30), "transformed weights take"),
])  # fmt: skip
def test_what_it_cannot_do(spec: ConvSpec, size: tuple[int, ...], reason: str) -> None:
    case = Case("fft", spec, size)
    inputs: Any = {"x": np.zeros((1, spec.in_channels, *size), np.float32)}
    constants: Any = {"w": np.zeros(spec.weight_shape, np.float32), "b": np.zeros(spec.out_channels, np.float32)}
    with pytest.raises(ConvwrightError, match=reason):
        case.plan(inputs, constants, host_target())


@pytest.mark.parametrize("target", [pytest.param(target_named(name), id=name) for name in NAMES])
def test_butterflies_and_products_stay_in_registers(target: Target) -> None:
    """With 16 registers, butterflies of 8 complex numbers cannot."""
    if not target.is_x86:
        pytest.skip("reads x86 assembly")
    outs, pairs = (2, 4) if target.registers >= 32 else (1, 2)
    for tile in (fft.FftTile(64, 64, False, 1, 1, single=True), fft.FftTile(16, 32, True, outs, pairs)):
        share = share_of_spills(fft.emit, tile, target)
        assert share <= (0 if target.registers >= 32 else 0.3), (tile, share)
