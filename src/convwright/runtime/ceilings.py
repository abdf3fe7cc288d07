"""How fast this machine goes at best, measured: multiply-adds of each data type, and bytes from each level of memory.

The kernels are generated like any other: a chain of multiply-adds that touches no memory, and sums, copies and fills of
a buffer that a level of cache holds, or none (S. Williams, A. Waterman, D. Patterson, Roofline, CACM 52(4), 2009). The
best of several measurements counts, not their median: what other programs take away does not lower a ceiling.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from convwright.codegen.jit import compile_kernel
from convwright.codegen.lang import Kernel
from convwright.codegen.target import Target, host_features, host_target
from convwright.runtime import store
from convwright.runtime.machine import caches, describe
from convwright.runtime.memory import aligned_empty

_signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)

_REVISION = 1
"""Of what is measured and how: stored figures of another revision are not used."""

_REPEATS = 15
_SECONDS = 0.004  # of one measurement: short, to fit between interruptions
_MEMORY_REPEATS = 40
# Two multiply-adds a cycle of four or five cycles' latency need ten sums that do not wait for each other.
_CHAINS = {32: 24, 16: 12}
_STREAMS = 8
# A third level larger than that is shared with many other cores; 64 to 512 MiB read at the same speed, and touching
# fresh memory is what takes the time.
_LARGEST_BUFFER = 128 << 20


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What some threads of this machine together reach at best.

    - `threads`: how many.
    - `operations`: a second, by data type: "f32", "f64", and where the CPU has instructions for them "int8"
      (products of 8-bit integers, summed in 32 bits) and "bf16" (summed in float32). A multiply-add is two operations.
    - `read`: bytes a second read from "l1", "l2", "l3" (where it is so much larger that it can be told) and "memory".
    - `write`, `copy`: bytes a second written to memory, and read plus written by a copy in memory; lines that a store
      first has to fetch are not counted.
    """

    threads: int
    operations: dict[str, float]
    read: dict[str, float]
    write: float
    copy: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# -- what is asked for -------------------------------------------------------------------------------------------------


def measured(threads: int, *, remeasure: bool = False) -> Ceilings:
    """All ceilings of `threads` threads: from the store, else measured, in a second or two, and stored.

    Stored figures are those of the same CPU, cores, caches, instruction set and version.
    """
    key = _key(threads)
    if not remeasure:
        found = _checked(store.recall("ceilings", key), threads)
        if found is not None:
            return found
    result = _measure(threads)
    store.remember("ceilings", key, result.to_dict())
    return result


@functools.cache
def ceilings(threads: int) -> tuple[float, float]:
    """What `threads` threads together reach at best: float32 operations a second, and bytes a second read from memory.

    A multiply-add is two operations. Takes under a second and is remembered by the process.
    """
    target = host_target()
    return _operations(target, threads, "f32"), _stream(target, threads, "read", _buffer_bytes())


@functools.cache
def cycle_seconds() -> float:
    """What estimates of kernels call a cycle of a core: the time of two vectors of multiply-adds, measured.

    A CPU that does one such vector in each of its own cycles, as Zen 4 with AVX-512, has cycles twice as long here.
    """
    target = host_target()
    return 2 * 2 * target.vector / _operations(target, 1, "f32")


def _key(threads: int) -> dict[str, Any]:
    told = describe()
    names = ("cpu", "isa", "cores", "l1d_bytes", "l2_bytes", "l3_bytes", "convwright", "llvm")
    return {"threads": threads, "revision": _REVISION} | {name: told[name] for name in names}


def _checked(value: Any, threads: int) -> Ceilings | None:
    """Stored figures, where they are whole."""
    try:
        found = Ceilings(**value)
        rates = [*found.operations.values(), *found.read.values(), found.write, found.copy]
        whole = found.threads == threads and {"f32", "f64"} <= set(found.operations) and "memory" in found.read
        return found if whole and all(rate > 0 for rate in rates) else None
    except (TypeError, AttributeError):
        return None


def _measure(threads: int) -> Ceilings:
    target, sizes = host_target(), caches()
    memory = _buffer_bytes()
    levels = {"l1": threads * sizes.l1d // 2, "l2": threads * sizes.l2 // 2}
    # Beyond all second levels, within half of the third, which other cores use too.
    third = min(sizes.l3 // 2, 8 * threads * sizes.l2)
    if third >= 2 * threads * sizes.l2:
        levels["l3"] = third
    return Ceilings(
        threads,
        {kind: _operations(target, threads, kind) for kind in kinds(target)},
        {name: _stream(target, threads, "read", size) for name, size in (levels | {"memory": memory}).items()},
        _stream(target, threads, "write", memory),
        _stream(target, threads, "copy", memory),
    )


# -- arithmetic --------------------------------------------------------------------------------------------------------

_MACS = {"f32": 1, "f64": 0.5, "int8": 4, "bf16": 2}
"""Multiply-adds of one instruction in each 32 bits of a vector."""


def kinds(target: Target) -> tuple[str, ...]:
    """The data types of which products can be summed by instructions of their own."""
    bf16 = target.name == "avx512" and host_features().get("avx512bf16", False)
    return ("f32", "f64", *(["int8"] if target.has_vnni else []), *(["bf16"] if bf16 else []))


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self))

    def __hash__(self) -> int:
        return hash(type(self))


def _build_products(target: Target, kind: str) -> Any:
    """args: vectors a, b and the initial sums; result. Each item is one multiply-add for every chain."""
    k = Kernel(target, element="f64" if kind == "f64" else "f32")
    vector = k.int_vector_type if kind == "int8" else k.vector_type
    factor = k.int_vector_type if kind in ("int8", "bf16") else k.vector_type
    a, b = (k.b.load(k.advance(k.pointer(0), k.v * place), typ=factor, align=4) for place in (0, 1))
    chains = range(_CHAINS[target.registers])
    starts = (k.b.load(k.advance(k.pointer(0), k.v * (2 + chain)), typ=vector, align=4) for chain in chains)
    sums = [k.variable(start) for start in starts]
    with k.loop(k.begin, k.end):
        for total in sums:
            total.set(_product(k, kind, total.get(), a, b))
    for chain, total in enumerate(sums):
        k.b.store(total.get(), k.advance(k.pointer(1), k.v * chain), align=4)
    return k.finish()


def _product(k: Kernel, kind: str, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    if kind == "int8":
        call = k.intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * k.v}", k.int_vector_type, [k.int_vector_type] * 3)
        return k.b.call(call, [total, a, b])
    if kind == "bf16":
        pairs = ir.VectorType(_BFloat(), 2 * k.v)
        call = k.intrinsic(f"llvm.x86.avx512bf16.dpbf16ps.{32 * k.v}", k.vector_type, [k.vector_type, pairs, pairs])
        return k.b.call(call, [total, k.b.bitcast(a, pairs), k.b.bitcast(b, pairs)])
    return k.fma(total, a, b)


def _operations(target: Target, threads: int, kind: str) -> float:
    """Operations a second of `threads` threads."""
    chains = _CHAINS[target.registers]
    run = _signature(compile_kernel(f"ceiling-{kind}", lambda: _build_products(target, kind), target))
    element = np.dtype(np.float64 if kind == "f64" else np.float32)
    lanes = target.vector * 4 // element.itemsize
    # total = total * 0.5 + 0.5 stays at 1: no overflow, and no denormals, which are slow. Products of zeros else.
    factors = np.zeros(lanes * (2 + chains), element)
    if kind in ("f32", "f64"):
        factors[:] = 1.0
        factors[: 2 * lanes] = 0.5
    results = [np.zeros(lanes * chains, element) for _ in range(threads)]
    args = [np.array([factors.ctypes.data, result.ctypes.data], np.int64) for result in results]

    items = 10_000

    def multiply(thread: int) -> None:
        run(args[thread].ctypes.data, 0, items, thread)

    starts, ends = _times(multiply, 1, _REPEATS)
    items = max(items, int(items * _SECONDS / (ends - starts).min()))
    starts, ends = _times(multiply, threads, _REPEATS)
    # Cores do not share their arithmetic: each thread's own best counts, whenever it was.
    seconds = (ends - starts).min(axis=0)
    return float((2 * _MACS[kind] * items * chains * target.vector / seconds).sum())


# -- memory ------------------------------------------------------------------------------------------------------------


def _build_stream(target: Target, what: str) -> Any:
    """args: buffer, second buffer or result, passes. Each item is `_STREAMS` vectors."""
    k = Kernel(target)
    sums = [k.variable(k.splat(0.0)) for _ in range(_STREAMS)]
    with k.loop(0, k.arg(2)), k.loop(k.begin, k.end) as item:
        for part, total in enumerate(sums):
            place = (item * _STREAMS + part) * k.v
            if what == "write":
                k.store(k.splat(0.0), k.pointer(0), place)
                continue
            value = k.load(k.pointer(0), place)
            if what == "copy":
                k.store(value, k.pointer(1), place)
            else:
                total.set(k.add(total.get(), value))
    if what == "read":
        for part, total in enumerate(sums):
            k.store(total.get(), k.pointer(1), k.v * part)
    return k.finish()


def _stream(target: Target, threads: int, what: str, size: int) -> float:
    """Bytes a second that `threads` threads read, write or copy in `size` bytes, each thread its own share of them."""
    run = _signature(compile_kernel(f"ceiling-{what}", lambda: _build_stream(target, what), target))
    item = target.vector * _STREAMS
    share = max(1, size // 4 // item // threads // (2 if what == "copy" else 1))
    results = [np.zeros(item, np.float32) for _ in range(threads)]
    buffers = [aligned_empty(share * item) for _ in range(threads)]
    others = [aligned_empty(share * item) for _ in range(threads)] if what == "copy" else results
    # Long enough that a thread which waits for the interpreter's lock when it ends does not count.
    passes = max(1, (1 << 26) * threads // size)
    args = [
        np.array([buffer.ctypes.data, other.ctypes.data, passes], np.int64)
        for buffer, other in zip(buffers, others, strict=True)
    ]

    def fill(thread: int) -> None:
        buffers[thread].fill(0.0)
        others[thread].fill(0.0)

    def work(thread: int) -> None:
        run(args[thread].ctypes.data, 0, share, thread)

    # Pages never written are all the same page of zeros: buffers are filled, by the threads that read them.
    _times(fill, threads, 1)
    starts, ends = _times(work, threads, _MEMORY_REPEATS)
    moved = passes * buffers[0].nbytes * (2 if what == "copy" else 1)
    if size <= threads * caches().l2:  # a core's own: each thread's best counts, whenever it was
        return float((moved / (ends - starts).min(axis=0)).sum())
    return float(moved * threads / (ends.max(axis=1) - starts.min(axis=1)).min())


def _buffer_bytes() -> int:
    """More than the caches hold, in so far as memory and patience allow."""
    sizes = caches()
    wanted = max(64 << 20, 8 * sizes.l2, 2 * sizes.l3)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        memory = 2 << 30
    return min(wanted, _LARGEST_BUFFER, memory // 8)


def _times(
    work: Callable[[int], object], threads: int, repeats: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """When each of `threads` threads began and ended `work(thread)`, all at once: two arrays `[repeat][thread]`."""
    together = threading.Barrier(threads)
    starts = np.zeros((repeats, threads))
    ends = np.zeros((repeats, threads))
    failures: list[BaseException] = []

    def body(thread: int) -> None:
        try:
            for repeat in range(repeats):
                together.wait()
                starts[repeat, thread] = time.perf_counter()
                work(thread)
                ends[repeat, thread] = time.perf_counter()
        except BaseException as error:
            failures.append(error)
            together.abort()

    others = [threading.Thread(target=body, args=(thread,)) for thread in range(1, threads)]
    for other in others:
        other.start()
    body(0)
    for other in others:
        other.join()
    if failures:
        raise failures[0]
    return starts, ends
