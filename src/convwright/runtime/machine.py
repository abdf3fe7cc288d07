"""What this machine is: cores, caches, instruction set. How fast it can go at best is measured in `ceilings`."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

import convwright
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


@functools.cache
def adds_beside_multiply_adds(target: Target) -> bool:
    """Whether a core of this machine adds one vector of `target` while it multiplies and adds another, as far as is
    known: additions have pipes of their own, as many as multiply-adds (AMD, Software Optimization Guide for the Zen 4
    Microarchitecture)."""
    return target.vector == 16 and llvm.get_host_cpu_name() in _HALVED


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
