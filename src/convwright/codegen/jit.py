"""From a kernel's IR to the address of its machine code, by way of the process, the object cache on disk and LLVM.

Measured on one core of a 2 GHz AVX-512 Xeon, for a register tile of 90 KB of IR: 16 ms to write the IR in Python, 3 ms
to parse it, 10 ms for the passes below, 22 ms of code generation; 0.1 ms to load an object with LLVM's linker, and with
`elf.py`, which spares a warm start that linker and its target machine.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import itertools
import os
import pickle
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import llvmlite
import llvmlite.binding as llvm

import convwright
from convwright.codegen import elf
from convwright.codegen.cache import Entry, object_cache
from convwright.codegen.target import Target, host_target, machine, new_machine

Build = Callable[[], Any]

# What LLVM's O1 does to a kernel, at a quarter of its time: variables to registers, loops rotated so that their
# invariants can be hoisted by code generation. The rest of O1 changed the speed of no direct kernel by more than the
# noise (1 %); without the rotation a 3x3 tile lost 8 %.
_PASSES = ("sroa", "simplify_cfg", "instruction_combine", "loop_rotate", "simplify_cfg", "instruction_combine")

# Rooms whose sources decide what a key's module is.
_ROOMS = ("codegen", "kernels", "runtime")

# Fewer kernels than this to compile are not worth starting a process for.
_KERNELS_A_WORKER = 3
_MOST_WORKERS = 8
_PATIENCE_SECONDS = 30.0

_lock = threading.RLock()
_addresses: dict[tuple[Target, str], int] = {}


# A fork while another thread compiles would leave LLVM half-way in the child: fork when nobody compiles.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def compile_kernel(key: str, build: Build, target: Target) -> int:
    """Address of the function `kernel` in the module that `build()` returns.

    - `key`: with the sources of codegen/, kernels/ and runtime/ it determines the module.
    - `build`: makes the module (`llvmlite.ir.Module`); called where neither the process nor the cache has it.
    - `target`: what to generate code for.

    The address stays valid as long as the process. Any thread may call this, and a forked child.
    """
    address = _addresses.get((target, key))
    return compile_many([(key, build)], target)[0] if address is None else address


def compile_many(kernels: Sequence[tuple[str, Build]], target: Target, workers: int | None = None) -> list[int]:
    """Addresses of several kernels, pairs of key and build as for `compile_kernel`, in their order.

    What the cache lacks is compiled by up to `workers` processes at once (default: the cores this process may use).
    Threads would not do: llvmlite lets one at a time into LLVM, and writing IR holds the interpreter.
    """
    with _lock:
        missing = {key: build for key, build in kernels if (target, key) not in _addresses}
        cache = object_cache()
        to_compile: dict[str, Build] = {}
        objects: dict[str, bytes] = {}
        for key, build in missing.items():
            entry = cache.get(_cache_key(key, target)) if cache else None
            if entry is None:
                to_compile[key] = build
            else:
                objects[key] = entry.payload
        for key, compiled in _compile_all(to_compile, target, workers):
            if cache:
                cache.put(_cache_key(key, target), compiled.payload, compiled.ir_hash)
            objects[key] = compiled.payload
        for key, address in zip(objects, _load(list(objects.values())), strict=True):
            _addresses[target, key] = address
        return [_addresses[target, key] for key, _ in kernels]


def assembly(key: str, build: Build, target: Target) -> str:
    """The assembly of the kernel as `compile_kernel` would compile it."""
    with _lock:
        return str(machine(target).emit_assembly(_optimised(key, build, target)[0]))


# -- compiling ---------------------------------------------------------------------------------------------------------


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector, which looks at a module's many thousand live objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _optimised(key: str, build: Build, target: Target) -> tuple[Any, bytes]:
    """The module after the passes, and the SHA-256 of its text before them."""
    with _no_collection():
        text = str(build())
    tm = machine(target)
    try:
        module = llvm.parse_assembly(text, llvm.create_context())
        module.triple = tm.triple
        module.data_layout = _data_layout(target)
        module.verify()
    except RuntimeError as error:
        error.add_note(f"while compiling the kernel {key!r} for {target.name}")
        raise
    builder = llvm.create_pass_builder(tm, _tuning())
    passes = llvm.create_new_function_pass_manager()
    for name in _PASSES:
        getattr(passes, f"add_{name}_pass")()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    return module, hashlib.sha256(text.encode()).digest()


def _tuning() -> Any:
    """Kernels write their vectors and unrolled loops out: LLVM is to keep them as they are."""
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.slp_vectorization = False
    options.loop_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    return options


@functools.cache
def _data_layout(target: Target) -> str:
    return str(machine(target).target_data)


def _compile(key: str, build: Build, target: Target) -> Entry:
    module, ir_hash = _optimised(key, build, target)
    return Entry(machine(target).emit_object(module), ir_hash)


def _compile_all(kernels: dict[str, Build], target: Target, workers: int | None) -> Iterator[tuple[str, Entry]]:
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST_WORKERS)
    workers = min(workers, len(kernels) // _KERNELS_A_WORKER)
    done: dict[str, Entry] = {}
    if workers > 1 and hasattr(os, "memfd_create"):
        machine(target)  # made once, before the workers copy it
        done = _compile_in_workers(kernels, target, workers)
    # What a worker failed at is done again here, where its exception can be seen.
    for key, build in kernels.items():
        yield key, done.get(key) or _compile(key, build, target)


def _compile_in_workers(kernels: dict[str, Build], target: Target, workers: int) -> dict[str, Entry]:
    """What `workers` processes, this one among them, made of the kernels.

    Each takes the next kernel's number from one pipe until that is empty, so that none waits for the slowest. Forked
    processes, because a `build` cannot be sent to another; they leave their results in files in memory.
    """
    keys = list(kernels)
    take, give = os.pipe()
    # No more than a pipe holds; what is left over the caller compiles.
    os.write(give, b"".join(number.to_bytes(2, "little") for number in range(min(len(keys), 1 << 14))))
    os.close(give)
    with ExitStack() as files:
        return _share_out(keys, kernels, target, workers, take, files)


def _share_out(
    keys: list[str], kernels: dict[str, Build], target: Target, workers: int, take: int, files: ExitStack
) -> dict[str, Entry]:
    """Start the workers, work beside them, collect their results; ``files`` closes the latter however this ends."""
    children: list[tuple[int, IO[bytes]]] = []
    deadline = 0.0  # where this process fails or is interrupted, the children end with it
    try:
        for _ in range(workers - 1):
            results: IO[bytes] = files.enter_context(os.fdopen(os.memfd_create("convwright-kernels"), "w+b"))
            with warnings.catch_warnings():
                # Python warns of a fork where other threads run; the child touches none of their state.
                warnings.simplefilter("ignore", DeprecationWarning)
                try:
                    child = os.fork()
                except OSError:  # no more processes allowed
                    break
            if child == 0:
                _work(take, results, keys, kernels, target)
            children.append((child, results))
        done: dict[str, Entry] = {}
        while number := os.read(take, 2):
            key = keys[int.from_bytes(number, "little")]
            done[key] = _compile(key, kernels[key], target)
        deadline = time.monotonic() + _PATIENCE_SECONDS
    finally:
        os.close(take)
        for child, _ in children:
            _wait(child, deadline)
    for _, results in children:
        with suppress(EOFError, pickle.UnpicklingError):
            results.seek(0)
            while True:
                key, payload, ir_hash = pickle.load(results)
                done[key] = Entry(payload, ir_hash)
    return done


def _work(take: int, results: IO[bytes], keys: list[str], kernels: dict[str, Build], target: Target) -> None:
    """A worker's life. It leaves without clean-up: whatever it has belongs to the parent."""
    try:
        gc.disable()
        while number := os.read(take, 2):
            key = keys[int.from_bytes(number, "little")]
            entry = _compile(key, kernels[key], target)
            pickle.dump((key, *entry), results)
            results.flush()
    finally:
        os._exit(0)


def _wait(child: int, deadline: float) -> None:
    """Until the child has ended; one that hangs is killed."""
    while True:
        try:
            if os.waitpid(child, os.WNOHANG)[0]:
                return
        except ChildProcessError:  # the program reaps all children itself
            return
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.0005)


# -- loading -----------------------------------------------------------------------------------------------------------


@functools.cache
def _linker() -> Any:
    """One linker for all objects: 0.1 ms an object, where an execution engine for each took 1.2 ms."""
    # LLVM's older linker, a little quicker, cannot be relied on to keep sections within reach of each other on ARM.
    is_arm = platform.machine().lower() in ("aarch64", "arm64")
    linker = llvm.create_lljit_compiler(new_machine(host_target()), use_jit_link=is_arm)
    # Threads may run kernels until the process ends: the interpreter's shutdown must not unload them.
    linker._owned = True
    return linker


def _load(objects: Sequence[bytes]) -> list[int]:
    """Addresses of the objects' kernels."""
    return [address or _link(data) for data, address in zip(objects, elf.load(objects), strict=True)]


def _link(data: bytes) -> int:
    library = llvm.JITLibraryBuilder().add_object_img(data).add_current_process().export_symbol(elf.ENTRY)
    loaded = library.link(_linker(), f"kernel-{next(_names)}")
    loaded.detach()  # never unloaded
    return int(loaded[elf.ENTRY])


_names = itertools.count()


# -- the key on disk ---------------------------------------------------------------------------------------------------


@functools.cache
def sources_hash(rooms: tuple[str, ...] = _ROOMS) -> bytes:
    """Of the Python files of these rooms; of those that kernels are made by, where none are named: a changed emitter
    must not find what an older one compiled."""
    return hashlib.sha256(b"".join(map(_room_hash, rooms))).digest()


@functools.cache
def _room_hash(room: str) -> bytes:
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for folder, _, names in sorted(os.walk(package / room)):
        for name in sorted(name for name in names if name.endswith(".py")):
            with open(os.path.join(folder, name), "rb") as file:
                content = file.read()
            digest.update(f"{folder.removeprefix(str(package))}/{name} {len(content)}\0".encode())
            digest.update(content)
    return digest.digest()


@functools.cache
def _cache_key_prefix(target: Target) -> bytes:
    versions = (convwright.__version__, llvmlite.__version__, llvm.llvm_version_info)
    return repr((versions, sources_hash().hex(), target, llvm.get_process_triple(), _PASSES)).encode()


def _cache_key(key: str, target: Target) -> bytes:
    return hashlib.sha256(_cache_key_prefix(target) + b"\0" + key.encode()).digest()
