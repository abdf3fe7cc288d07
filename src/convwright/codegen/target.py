"""What LLVM is told about the CPU, and what the kernels have to know about it.

Nothing outside this file and the kernels that are about one instruction set names an instruction set: a kernel asks its
`Target` for the vector width, the number of registers and whether masks and fused multiply-add exist.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm

from convwright.errors import ConvwrightError

VARIABLE = "CONVWRIGHT_ISA"
NAMES = ("avx512", "avx2", "generic")

_REQUIRED = {
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"),
    "avx2": ("avx2", "fma"),
    "generic": (),
}


@dataclass(frozen=True)
class Target:
    """One instruction set that kernels are generated for.

    - `name`: "avx512", "avx2" or "generic".
    - `vector`: float32 lanes of one vector register.
    - `registers`: vector registers that exist.
    - `has_fma`: whether a fused multiply-add is one instruction.
    - `has_masks`: whether loads and stores take a lane mask at no cost.
    - `cpu`, `features`: what LLVM is told.
    - `has_vnni`: whether one instruction adds four products of 8-bit integers to each 32-bit lane.
    - `has_amx`: whether there are tile registers with products of 8-bit integers, which this process may use.
    """

    name: str
    vector: int
    registers: int
    has_fma: bool
    has_masks: bool
    cpu: str
    features: str
    has_vnni: bool = False
    has_amx: bool = False

    @property
    def is_x86(self) -> bool:
        """Whether the instructions are x86's."""
        return "neon" not in self.features


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


@functools.cache
def host_features() -> dict[str, bool]:
    """Features of this CPU by LLVM's names; False where LLVM knows the feature and the CPU lacks it."""
    return dict(llvm.get_host_cpu_features())


def runs_here(name: str) -> bool:
    """Whether this CPU can run code for the target called `name`."""
    if name == "generic":
        return True
    return _is_x86() and all(host_features().get(feature, False) for feature in _REQUIRED[name])


_AMX = ("amx-tile", "amx-int8")
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64


@functools.cache
def may_use_amx() -> bool:
    """Whether the CPU has AMX with 8-bit integers and the system, which has to be asked, lets this process use it.

    A process that has been refused, or that runs on another system, goes without.
    """
    if not (_is_x86() and platform.system() == "Linux" and all(host_features().get(name, False) for name in _AMX)):
        return False
    try:
        return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0
    except (OSError, AttributeError):
        return False


@functools.cache
def target_named(name: str) -> Target:
    """The target called `name` ("avx512", "avx2", "generic"), whether or not this CPU can run it.

    Raises ConvwrightError where the name is unknown.
    """
    if name == "avx512":
        # One scheduling model for every CPU, so that the register tiles are the same code everywhere: under Zen 4's own
        # and under Skylake's LLVM spills a vector in the loops of 14 x 2 tiles; ResNet-50 ran no faster on Zen 4.
        # Host features, so that the kernels may use what the CPU has beyond AVX-512 and nothing that it lacks; where it
        # lacks AVX-512 the code can be inspected but not run.
        cpu, features = "skylake-avx512", ""
        if runs_here(name):
            cpu, features = "sapphirerapids", llvm.get_host_cpu_features().flatten() + ","
        # LLVM prefers 256-bit vectors on several AVX-512 CPUs; the kernels are written in 512-bit ones.
        has_vnni = runs_here(name) and host_features().get("avx512vnni", False)
        return Target(name, 16, 32, True, True, cpu, features + "-prefer-256-bit", has_vnni, has_vnni and may_use_amx())
    if name == "avx2":
        return Target(name, 8, 16, True, False, "x86-64-v3", "")
    if name == "generic":
        if platform.machine().lower() in ("aarch64", "arm64"):
            return Target(name, 4, 32, True, False, "generic", "+neon")
        return Target(name, 4, 16, False, False, "x86-64" if _is_x86() else "", "")
    raise ConvwrightError(f"unknown instruction set {name!r}: choose one of {', '.join(NAMES)}")


@functools.cache
def _chosen(wanted: str) -> Target:
    if not wanted:
        return target_named(next(name for name in NAMES if runs_here(name)))
    if wanted not in NAMES:
        raise ConvwrightError(f"{VARIABLE}={wanted!r}: choose one of {', '.join(NAMES)}")
    if not runs_here(wanted):
        lacking = [feature for feature in _REQUIRED[wanted] if not host_features().get(feature, False)]
        raise ConvwrightError(f"{VARIABLE}={wanted!r}: this CPU cannot run it (lacks {', '.join(lacking) or 'x86'})")
    return target_named(wanted)


def host_target() -> Target:
    """The best target that this CPU can run, or the one that the environment variable CONVWRIGHT_ISA names.

    Raises ConvwrightError where the variable names an unknown target or one that this CPU cannot run.
    """
    return _chosen(os.environ.get(VARIABLE, "").strip().lower())


@functools.cache
def _llvm_target() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    return llvm.Target.from_triple(llvm.get_process_triple())


def new_machine(target: Target) -> Any:
    """A new `llvmlite.binding.TargetMachine` for `target`; an execution engine takes ownership of one."""
    return _llvm_target().create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small", jit=True
    )


@functools.cache
def machine(target: Target) -> Any:
    """The `llvmlite.binding.TargetMachine` of `target` that code generation shares."""
    return new_machine(target)
