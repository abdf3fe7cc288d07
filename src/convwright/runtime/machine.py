"""What this machine is: cores, caches, instruction set, and how fast it can go at best.

The ceilings are measured, with kernels generated like any other: a chain of fused multiply-adds that touches no memory,
and a sum over a buffer that no cache holds (S. Williams et al., Roofline, CACM 52(4), 2009).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

import convwright
from convwright.codegen.jit import compile_kernel
from convwright.codegen.lang import Kernel
from convwright.codegen.target import Target, host_target

_ROOT = Path("/")
_LIBRARIES = ("numpy", "llvmlite", "onnx")

# -- cores -------------------------------------------------------------------------------------------------------------


def cores(root: Path = _ROOT) -> int:
    """Cores this process may keep busy: those of its affinity mask, or the whole cores of its cgroup's quota if fewer.

    `root` stands in for the root of the file system.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        count = os.cpu_count() or 1
    # Rounded down: a team that spins on more cores than its quota is stopped for the rest of each period.
    return max(1, min(count, int(_quota(root))))


def _quota(root: Path) -> float:
    """Cores' worth of time that the cgroups of this process allow; those above it count too."""
    smallest = float("inf")
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = f"{line}::".split(":")[:3]
        if not controllers:  # version 2
            mount, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            mount, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        group = Path(path.strip().lstrip("/"))
        for level in (group, *group.parents):
            smallest = min(smallest, read(mount / level))
    return min(smallest, 1e9)


def _quota_v2(group: Path) -> float:
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    return _ratio(quota, period)


def _quota_v1(group: Path) -> float:
    return _ratio(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float:
    """`quota / period` where both are positive numbers; no limit where they are "max", -1 or absent."""
    try:
        time_allowed, of = int(quota), int(period)
    except ValueError:
        return float("inf")
    return time_allowed / of if time_allowed > 0 and of > 0 else float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# -- caches ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caches:
    """Bytes of the first-level data cache, the second and the third level as one core sees them; 0 without a third."""

    l1d: int
    l2: int
    l3: int


_TYPICAL = Caches(32 << 10, 512 << 10, 8 << 20)


@functools.cache
def caches(root: Path = _ROOT) -> Caches:
    """The caches of the first core this process may use; typical sizes where the system does not tell.

    `root` stands in for the root of the file system.
    """
    try:
        core = min(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        core = 0
    found: dict[int, int] = {}
    for index in (root / f"sys/devices/system/cpu/cpu{core}/cache").glob("index*"):
        level, size = _text(index / "level").strip(), _bytes(_text(index / "size").strip())
        if _text(index / "type").strip() != "Instruction" and level.isdigit() and size:
            found[int(level)] = size
    if not found:
        return _TYPICAL
    return Caches(found.get(1, _TYPICAL.l1d), found.get(2, _TYPICAL.l2), found.get(3, 0))


def _bytes(size: str) -> int:
    """ "48K" -> 49152."""
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1:].upper(), 1)
    digits = size.rstrip("KMGkmg")
    return int(digits) * scale if digits.isdigit() else 0


# -- arithmetic --------------------------------------------------------------------------------------------------------

_HALVED = ("znver4",)  # execute instructions of 512 bits in two halves


@functools.cache
def multiply_adds_a_cycle(target: Target) -> int:
    """Vectors of `target` that a core of this machine multiplies and adds in a cycle, as far as is known: 2, or 1."""
    return 1 if target.vector == 16 and llvm.get_host_cpu_name() in _HALVED else 2


# -- description -------------------------------------------------------------------------------------------------------


def describe() -> dict[str, Any]:
    """CPU, instruction set, cores, caches, system and versions: what a report needs to be understood later."""
    target, sizes = host_target(), caches()
    return {
        "cpu": _cpu_model(),
        "isa": target.name,
        "llvm_cpu": llvm.get_host_cpu_name(),
        "cores": cores(),
        "l1d_bytes": sizes.l1d,
        "l2_bytes": sizes.l2,
        "l3_bytes": sizes.l3,
        "os": platform.platform(),
        "python": platform.python_version(),
        "convwright": convwright.__version__,
        "llvm": ".".join(map(str, llvm.llvm_version_info)),
        **{name: _version(name) for name in _LIBRARIES},
    }


def _cpu_model() -> str:
    for line in _text(_ROOT / "proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- ceilings ----------------------------------------------------------------------------------------------------------

_signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)

_FMA_REPEATS, _READ_REPEATS = 15, 12
_FMA_SECONDS = 0.004  # of one measurement: short, to fit between interruptions
# Two multiply-adds a cycle of four or five cycles' latency need ten sums that do not wait for each other.
_CHAINS = {32: 24, 16: 12}
_READ_SUMS = 8
# A third level larger than that is shared with many other cores; 64 to 512 MiB read at the same speed, and touching
# fresh memory is what takes the time.
_LARGEST_BUFFER = 128 << 20


def _build_fma(target: Target) -> Any:
    """args: factor vectors a, b; result. Each item is one multiply-add for every chain."""
    k = Kernel(target)
    a, b = k.load(k.pointer(0), 0), k.load(k.pointer(0), k.v)
    sums = [k.variable(k.load(k.pointer(0), k.v * (2 + chain))) for chain in range(_CHAINS[target.registers])]
    with k.loop(k.begin, k.end):
        for total in sums:
            total.set(k.fma(total.get(), a, b))
    for chain, total in enumerate(sums):
        k.store(total.get(), k.pointer(1), k.v * chain)
    return k.finish()


def _build_read(target: Target) -> Any:
    """args: buffer; result. Each item is `_READ_SUMS` vectors, added to as many sums."""
    k = Kernel(target)
    sums = [k.variable(k.splat(0.0)) for _ in range(_READ_SUMS)]
    with k.loop(k.begin, k.end) as item:
        for part, total in enumerate(sums):
            total.set(k.add(total.get(), k.load(k.pointer(0), (item * _READ_SUMS + part) * k.v)))
    for part, total in enumerate(sums):
        k.store(total.get(), k.pointer(1), k.v * part)
    return k.finish()


@functools.cache
def ceilings(threads: int) -> tuple[float, float]:
    """What `threads` threads together reach at best: float32 operations a second, and bytes a second read from memory.

    A multiply-add is two operations. Takes under a second and is remembered by the process. The best of several
    measurements, not their median: what other programs take away does not lower a ceiling.
    """
    target = host_target()
    return _fma_ceiling(target, threads), _read_ceiling(target, threads)


@functools.cache
def cycle_seconds() -> float:
    """What estimates of kernels call a cycle of a core: the time of two vectors of multiply-adds, measured.

    A CPU that does one such vector in each of its own cycles, as Zen 4 with AVX-512, has cycles twice as long here.
    """
    target = host_target()
    return 2 * 2 * target.vector / _fma_ceiling(target, 1)


def _fma_ceiling(target: Target, threads: int) -> float:
    chains = _CHAINS[target.registers]
    run = _signature(compile_kernel("ceiling-fma", lambda: _build_fma(target), target))
    # total = total * 0.5 + 0.5 stays at 1: no overflow, and no denormals, which are slow.
    factors = np.full(target.vector * (2 + chains), 1.0, np.float32)
    factors[: 2 * target.vector] = 0.5
    results = [np.zeros(target.vector * chains, np.float32) for _ in range(threads)]
    args = [np.array([factors.ctypes.data, result.ctypes.data], np.int64) for result in results]

    items = 10_000

    def multiply(thread: int) -> None:
        run(args[thread].ctypes.data, 0, items, thread)

    starts, ends = _times(multiply, 1, _FMA_REPEATS)
    items = max(items, int(items * _FMA_SECONDS / (ends - starts).min()))
    starts, ends = _times(multiply, threads, _FMA_REPEATS)
    # Cores do not share their arithmetic: each thread's own best counts, whenever it was.
    seconds = (ends - starts).min(axis=0)
    return float((2.0 * items * chains * target.vector / seconds).sum())


def _read_ceiling(target: Target, threads: int) -> float:
    run = _signature(compile_kernel("ceiling-read", lambda: _build_read(target), target))
    item_floats = target.vector * _READ_SUMS
    items = _buffer_bytes() // 4 // item_floats // threads * threads
    buffer = np.empty(items * item_floats, np.float32)
    share = items // threads
    results = [np.zeros(item_floats, np.float32) for _ in range(threads)]
    args = [np.array([buffer.ctypes.data, result.ctypes.data], np.int64) for result in results]

    def fill(thread: int) -> None:
        buffer[thread * share * item_floats :][: share * item_floats].fill(0.0)

    def read(thread: int) -> None:
        run(args[thread].ctypes.data, thread * share, (thread + 1) * share, thread)

    # Pages never written are all the same page of zeros: the buffer is filled, by the threads that read it.
    _times(fill, threads, 1)
    starts, ends = _times(read, threads, _READ_REPEATS)
    return float(buffer.nbytes / (ends.max(axis=1) - starts.min(axis=1)).min())


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
