"""From a module in LLVM IR to the address of machine code."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm

from convwright.codegen.target import Target, machine, new_machine

Build = Callable[[], Any]

_lock = threading.RLock()
_addresses: dict[tuple[Target, str], int] = {}
_engines: list[Any] = []


def _optimised(build: Build, target: Target) -> Any:
    text = str(build())
    module = llvm.parse_assembly(text)
    tm = machine(target)
    module.triple = tm.triple
    module.data_layout = str(tm.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.slp_vectorization = False
    options.loop_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    builder = llvm.create_pass_builder(tm, options)
    builder.getModulePassManager().run(module, builder)
    return module


def _load(objects: bytes, target: Target) -> int:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), new_machine(target))
    image = llvm.ObjectFileRef.from_data(objects)
    engine.add_object_file(image)
    engine.finalize_object()
    _engines.append((engine, image))
    return int(engine.get_function_address("kernel"))


def compile_kernel(key: str, build: Build, target: Target) -> int:
    """Address of the function `kernel` of the module that `build()` returns."""
    with _lock:
        address = _addresses.get((target, key))
        if address is None:
            address = _load(machine(target).emit_object(_optimised(build, target)), target)
            _addresses[target, key] = address
        return address


def compile_many(kernels: list[tuple[str, Build]], target: Target) -> list[int]:
    """Addresses of several kernels, in order."""
    return [compile_kernel(key, build, target) for key, build in kernels]


def assembly(key: str, build: Build, target: Target) -> str:
    """Assembly text of the kernel."""
    with _lock:
        return str(machine(target).emit_assembly(_optimised(build, target)))
