"""Objects are put into memory as LLVM's linker would put them; what is not understood is left to it."""

from __future__ import annotations

import ctypes
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir

from convwright.codegen import elf, jit
from convwright.codegen.target import host_target

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="ELF objects of x86-64 are loaded"
)

I64, F32, F64 = ir.IntType(64), ir.FloatType(), ir.DoubleType()
TABLE = [3, 1, 4, 1, 5, 9, 2, 6]


def module(write: Callable[[ir.Module, ir.IRBuilder, ir.Value], ir.Value]) -> ir.Module:
    """`kernel(x)`, 64-bit integers, that returns what `write` writes."""
    whole = ir.Module()
    function = ir.Function(whole, ir.FunctionType(I64, [I64]), "kernel")
    function.attributes.add("nounwind")  # as kernels have it: no tables for exceptions
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(write(whole, builder, function.args[0]))
    return whole


def constants(whole: ir.Module, builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """A table, read at x, and constants of two sizes that LLVM keeps in sections of their own."""
    kind = ir.ArrayType(I64, len(TABLE))
    table = ir.GlobalVariable(whole, kind, "table")
    table.global_constant, table.linkage, table.initializer = True, "internal", ir.Constant(kind, TABLE)
    entry = builder.load(builder.gep(table, [ir.Constant(I64, 0), x], inbounds=True))
    floats = builder.fmul(builder.uitofp(entry, F32), ir.Constant(F32, 2.5))
    doubles = builder.fmul(builder.fpext(floats, F64), ir.Constant(F64, 1.1))
    return builder.fptosi(doubles, I64)


def calls(whole: ir.Module, builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Two calls of one C function and one of another."""
    absolute = ir.Function(whole, ir.FunctionType(I64, [I64]), "labs")
    process = ir.Function(whole, ir.FunctionType(ir.IntType(32), []), "getpid")
    first = builder.call(absolute, [x])
    second = builder.call(absolute, [builder.sub(x, ir.Constant(I64, 10))])
    return builder.add(builder.mul(first, second), builder.zext(builder.call(process, []), I64))


def counter(whole: ir.Module, builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """What can be written is left to LLVM."""
    count = ir.GlobalVariable(whole, I64, "count")
    count.linkage, count.initializer = "internal", ir.Constant(I64, 7)
    total = builder.add(builder.load(count), x)
    builder.store(total, count)
    return total


def compiled(write: Callable[[ir.Module, ir.IRBuilder, ir.Value], ir.Value]) -> bytes:
    payload: bytes = jit._compile("test-elf", lambda: module(write), host_target()).payload
    return payload


def call(address: int, x: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(x))


@pytest.mark.parametrize("write", [constants, calls])
def test_kernels_do_what_they_do_where_llvm_links_them(
    write: Callable[[ir.Module, ir.IRBuilder, ir.Value], ir.Value],
) -> None:
    data = compiled(write)
    (address,) = elf.load([data])
    assert address is not None
    assert address % 64 == 0
    linked = jit._link(data)
    assert [call(address, x) for x in range(8)] == [call(linked, x) for x in range(8)]
    if write is constants:
        assert [call(address, x) for x in range(8)] == [math.floor(entry * 2.5 * 1.1) for entry in TABLE]


def test_many_objects_in_one_mapping_that_cannot_be_written() -> None:
    kinds = [compiled(constants), compiled(calls), compiled(constants)]
    addresses = [address for address in elf.load(kinds) if address is not None]
    assert len(addresses) == 3
    assert addresses == sorted(addresses)
    assert addresses[-1] - addresses[0] < 2000
    assert call(addresses[0], 5) == call(addresses[2], 5) == math.floor(9 * 2.5 * 1.1)
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if any(first <= address < last for address in addresses):
            assert line.split()[1] == "r-xp"


def test_what_is_not_understood_is_linked_by_llvm() -> None:
    """One that cannot be loaded here does not keep others from being loaded."""
    written, known = compiled(counter), compiled(constants)
    first, second = elf.load([written, known])
    assert first is None
    assert second is not None
    left, right = jit._load([written, known])
    assert [call(left, 1), call(left, 1)] == [8, 9]
    assert call(right, 0) == call(second, 0)


def missing(whole: ir.Module, builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return builder.call(ir.Function(whole, ir.FunctionType(I64, [I64]), "no_such_function_anywhere"), [x])


def test_a_function_that_the_process_lacks() -> None:
    assert elf.load([compiled(missing)]) == [None]


def test_what_is_no_object() -> None:
    assert elf.load([]) == []
    assert elf.load([b"", b"\x7fELF", bytes(1000), b"\xcf\xfa\xed\xfe" + bytes(1000)]) == [None] * 4


def test_damaged_objects_are_refused_or_stay_within_their_bytes() -> None:
    """Never an exception, never an address outside what was loaded. The cache's checksum comes before this."""
    data = compiled(constants)
    rng = np.random.default_rng(3)
    for size in range(0, len(data), 16):
        elf.load([data[:size]])
    refused = 0
    for _ in range(1000):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(damaged.size)] ^= np.uint8(1 << rng.integers(8))
        image = elf._image(damaged.tobytes())
        refused += image is None
    assert refused > 50
