"""Targets: what the CPU can run, the override, and that each generates its own instructions."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from convwright.codegen import target as targets
from convwright.codegen.jit import assembly, compile_kernel
from convwright.codegen.lang import Kernel
from convwright.codegen.target import NAMES, Target, host_target, runs_here, target_named
from convwright.errors import ConvwrightError

on_x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 instruction sets")


@pytest.fixture(autouse=True)
def fresh_choice() -> Iterator[None]:
    """Choices are remembered by the process; the ones made here are forgotten."""
    targets._chosen.cache_clear()
    yield
    targets._chosen.cache_clear()


def multiply_add(target: Target) -> Any:
    k = Kernel(target)
    x, y = k.pointer(0), k.pointer(1)
    with k.loop(k.begin, k.end) as block:
        vector = k.load(x, block * k.v)
        k.store(k.fma(vector, vector, vector), y, block * k.v)
    return k.finish()


def test_the_best_target_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVWRIGHT_ISA", raising=False)
    assert host_target().name == next(name for name in NAMES if runs_here(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_names_a_target(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not runs_here(name):
        pytest.skip(f"no {name} here")
    monkeypatch.setenv("CONVWRIGHT_ISA", name)
    assert host_target() == target_named(name)


def test_an_unknown_target_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVWRIGHT_ISA", "sse9")
    with pytest.raises(ConvwrightError, match=r"^CONVWRIGHT_ISA='sse9': choose one of avx512, avx2, generic$"):
        host_target()
    with pytest.raises(ConvwrightError, match="unknown instruction set 'sse9'"):
        target_named("sse9")


@on_x86
def test_a_target_that_the_cpu_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "host_features", lambda: {"avx2": True, "fma": True, "avx512f": True})
    monkeypatch.setenv("CONVWRIGHT_ISA", "avx512")
    message = r"^CONVWRIGHT_ISA='avx512': this CPU cannot run it \(lacks avx512bw, avx512dq, avx512vl\)$"
    with pytest.raises(ConvwrightError, match=message):
        host_target()
    monkeypatch.delenv("CONVWRIGHT_ISA")
    assert host_target().name == "avx2"
    monkeypatch.setattr(targets, "host_features", dict)
    targets._chosen.cache_clear()
    assert host_target().name == "generic"


@pytest.mark.parametrize("name", NAMES)
def test_code_of_each_target_computes(name: str) -> None:
    if not runs_here(name):
        pytest.skip(f"no {name} here")
    target = target_named(name)
    x = np.linspace(-2, 2, target.vector * 3, dtype=np.float32)
    y = np.zeros_like(x)
    args = np.array([x.ctypes.data, y.ctypes.data], np.int64)
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(
        compile_kernel("test-multiply-add", lambda: multiply_add(target), target)
    )
    run(args.ctypes.data, 0, 3, 0)
    np.testing.assert_allclose(y, x.astype(np.float64) * x + x, rtol=1e-6, atol=1e-6)


@on_x86
@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [("avx512", ("zmm", "vfmadd"), ()), ("avx2", ("ymm", "vfmadd"), ("zmm",)), ("generic", ("xmm",), ("ymm", "vfm"))],
)
def test_instructions_are_those_of_the_target(name: str, present: tuple[str, ...], absent: tuple[str, ...]) -> None:
    text = assembly("test-multiply-add", lambda: multiply_add(target_named(name)), target_named(name))
    assert all(word in text for word in present)
    assert not any(word in text for word in absent)
    # SSE2 has no fused multiply-add: it must not become a call of fmaf.
    assert "fmaf" not in text


def test_targets_describe_their_registers() -> None:
    assert [(target_named(n).vector, target_named(n).has_masks) for n in NAMES] == [(16, True), (8, False), (4, False)]
    assert "-prefer-256-bit" in target_named("avx512").features
