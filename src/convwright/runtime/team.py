"""The team of threads: one parallel region an inference.

Every thread walks the same table of steps, does its share of each step's work items, helps those that are behind, and
meets the others at a barrier where the table asks for one. The threads are native and run generated code only: they
never hold Python's lock. A thread that waits spins for a bounded time and then sleeps in the kernel (futex), so nothing
spins when idle.

The table is an int64 array ``[steps][STEP_COLUMNS]``: address of the kernel, address of its arguments, number of work
items, whether a barrier follows.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from llvmlite import ir
from llvmlite.ir.instructions import StoreAtomicInstr

from convwright.codegen.jit import Build, compile_kernel
from convwright.codegen.lang import I32, I64, PTR, Int, Kernel
from convwright.codegen.target import host_target
from convwright.errors import ConvwrightError
from convwright.runtime.machine import cores
from convwright.runtime.placing import Placing

STEP_COLUMNS = 4
_LINE = 8  # int64 a cache line: each field that threads fight over has a line of its own
_FIELDS = 10
_JOB, _ARRIVED, _PHASE, _SLEEPERS, _STEPS, _COUNT, _THREADS, _SPINS, _STOP, _CURSORS = (
    _LINE * place for place in range(_FIELDS)
)
_PIECES = 4  # into which a thread's share of a step is cut, so that others can take over what it has not begun
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # the process-private operations
_MOST_THREADS = 1024


class _Synchronised(Kernel):
    """A kernel that also has atomics and can sleep."""

    def field(self, shared: ir.Value, place: int) -> ir.Value:
        return self.b.gep(shared, [ir.Constant(I64, place)], source_etype=I64)

    def read(self, address: ir.Value) -> Int:
        return Int(self, self.b.load_atomic(address, "acquire", 8, typ=I64))

    def write(self, value: int | Int, address: ir.Value) -> None:
        # The builder's own method asks an opaque pointer for the type it points to.
        block = self.b.block
        self.b._insert(StoreAtomicInstr(block, self.int_value(value), address, "seq_cst", 8))

    def fetch_add(self, address: ir.Value, amount: int) -> Int:
        return Int(self, self.b.atomic_rmw("add", address, ir.Constant(I64, amount), "seq_cst"))

    def pause(self) -> None:
        if "x86" in platform.machine() or platform.machine() == "AMD64":
            self.b.call(self.intrinsic("llvm.x86.sse2.pause", ir.VoidType(), []), [])
        else:
            self.b.call(self.intrinsic("llvm.aarch64.hint", ir.VoidType(), [I32]), [ir.Constant(I32, 1)])

    def futex(self, address: ir.Value, operation: int, value: Int | int) -> None:
        if _FUTEX is None:  # no futex here: a short sleep in its place
            usleep = self.intrinsic("usleep", I32, [I32])
            if operation == _FUTEX_WAIT:
                self.b.call(usleep, [ir.Constant(I32, 50)])
            return
        if "syscall" not in self._declared:
            kind = ir.FunctionType(I64, [I64], var_arg=True)
            self._declared["syscall"] = ir.Function(self.module, kind, "syscall")
        number, what, zero = (ir.Constant(I64, word) for word in (_FUTEX, operation, 0))
        self.b.call(self._declared["syscall"], [number, address, what, self.int_value(value), zero, zero, zero])

    def wait_while(self, shared: ir.Value, place: int, old: Int) -> None:
        """Until the field is no longer ``old``: spin, then sleep."""
        address = self.field(shared, place)
        spins = self.read(self.field(shared, _SPINS))
        spun = self.variable(0)
        head, body, sleep, spin, done = (self.b.append_basic_block(name) for name in ("w", "wb", "ws", "wp", "wd"))
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(self.read(address).equals(old), body, done)
        self.b.position_at_end(body)
        self.b.cbranch(spun.get() < spins, spin, sleep)
        self.b.position_at_end(spin)
        self.pause()
        spun.set(spun.get() + 1)
        self.b.branch(head)
        self.b.position_at_end(sleep)
        self.fetch_add(self.field(shared, _SLEEPERS), 1)
        self.futex(address, _FUTEX_WAIT, old)
        self.fetch_add(self.field(shared, _SLEEPERS), -1)
        self.b.branch(head)
        self.b.position_at_end(done)

    def announce(self, shared: ir.Value, place: int, value: Int) -> None:
        """Set the field and wake whoever sleeps on it."""
        address = self.field(shared, place)
        self.write(value, address)
        with self.when(Int(self, self.b.sub(ir.Constant(I64, 0), self.read(self.field(shared, _SLEEPERS)).value)) < 0):
            self.futex(address, _FUTEX_WAKE, _MOST_THREADS)

    def barrier(self, shared: ir.Value, threads: Int) -> None:
        phase = self.read(self.field(shared, _PHASE))
        arrived = self.fetch_add(self.field(shared, _ARRIVED), 1) + 1
        with self.either(arrived.equals(threads)) as (last, others):
            with last:
                self.write(0, self.field(shared, _ARRIVED))
                self.announce(shared, _PHASE, phase + 1)
            with others:
                self.wait_while(shared, _PHASE, phase)

    def walk(self, shared: ir.Value, steps: ir.Value, count: Int, thread: Int, times: ir.Value | None = None) -> None:
        """Every step of the table: this thread's share, piece by piece, then pieces of shares not yet finished.

        ``cursors[step][owner]`` says how far an owner's share has been taken, by whomever. Owners set theirs back to
        zero once a barrier has shown that the step is over; the last barrier is there so that no thread finds a cursor
        of the job before. ``times``: the cycle counter at the start and after each step.
        """
        threads = self.read(self.field(shared, _THREADS))
        cursors = self.b.inttoptr(self.read(self.field(shared, _CURSORS)).value, PTR)
        settled = self.variable(0)
        if times is not None:
            self.note_time(times, 0)
        with self.loop(0, count) as step:
            function, arguments, items, meet = (self.load_int(steps, step * STEP_COLUMNS + i) for i in range(4))
            with self.loop(0, threads) as ahead:
                owner = (thread + ahead) % threads
                cursor = self.line(cursors, step * threads + owner)
                self.take(function, arguments, items * owner // threads, items * (owner + 1) // threads, cursor, thread)
            with self.when(self.b.and_((meet * -1) < 0, (threads * -1) < -1)):
                self.barrier(shared, threads)
                with self.loop(settled.get(), step + 1) as over:
                    self.write(0, self.line(cursors, over * threads + thread))
                settled.set(step + 1)
            if times is not None:
                self.note_time(times, step + 1)
        with self.when((threads * -1) < -1):
            self.barrier(shared, threads)
        with self.loop(settled.get(), count) as over:
            self.write(0, self.line(cursors, over * threads + thread))
        with self.when((threads * -1) < -1):
            self.barrier(shared, threads)

    def note_time(self, times: ir.Value, index: Int | int) -> None:
        clock = self.intrinsic("llvm.readcyclecounter", I64, [])
        self.b.store(self.b.call(clock, []), self.b.gep(times, [self.int_value(index)], source_etype=I64))

    def line(self, lines: ir.Value, index: Int) -> ir.Value:
        return self.b.gep(lines, [(index * _LINE).value], source_etype=I64)

    def take(self, function: Int, arguments: Int, begin: Int, end: Int, cursor: ir.Value, thread: Int) -> None:
        """Do pieces of the items ``begin <= item < end`` for as long as there are some."""
        piece = self.maximum((end - begin) // _PIECES, 1)
        head, body, done = (self.b.append_basic_block(name) for name in ("take", "piece", "taken"))
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(begin + self.read(cursor) < end, body, done)  # a look is cheaper than an addition
        self.b.position_at_end(body)
        first = begin + Int(self, self.b.atomic_rmw("add", cursor, self.int_value(piece), "seq_cst"))
        with self.when(first < end):
            self.call(function, self.b.inttoptr(arguments.value, PTR), first, self.minimum(first + piece, end), thread)
        self.b.branch(head)
        self.b.position_at_end(done)


def _build_runner(timed: bool) -> ir.Module:
    """``kernel(shared, steps, count, times)``: post the job, do thread 0's share, return when every thread is done."""
    k = _Synchronised(host_target())
    shared = k.args_pointer
    steps = k.b.inttoptr(k.begin.value, PTR)
    k.write(k.begin, k.field(shared, _STEPS))
    k.write(k.end, k.field(shared, _COUNT))
    with k.when((k.read(k.field(shared, _THREADS)) * -1) < -1):
        k.announce(shared, _JOB, k.read(k.field(shared, _JOB)) + 1)
    times = k.b.inttoptr(k.thread.value, PTR) if timed else None
    k.walk(shared, steps, k.end, Int(k, ir.Constant(I64, 0)), times)
    return k.finish()


def _build_worker() -> ir.Module:
    """``kernel(own)`` with ``own`` = (shared, thread): do a share of every job until told to stop."""
    k = _Synchronised(host_target())
    shared, thread = k.pointer(0), k.arg(1)
    done = k.variable(0)
    again = k.b.append_basic_block("again")
    work = k.b.append_basic_block("work")
    leave = k.b.append_basic_block("leave")
    k.b.branch(again)
    k.b.position_at_end(again)
    k.wait_while(shared, _JOB, done.get())
    done.set(done.get() + 1)
    k.b.cbranch(k.read(k.field(shared, _STOP)).equals(0), work, leave)
    k.b.position_at_end(work)
    steps = k.b.inttoptr(k.read(k.field(shared, _STEPS)).value, PTR)
    k.walk(shared, steps, k.read(k.field(shared, _COUNT)), thread)
    k.b.branch(again)
    k.b.position_at_end(leave)
    return k.finish()


_RUNNER: tuple[str, Build] = "team-runner", lambda: _build_runner(False)
_RUNNER_TIMED: tuple[str, Build] = "team-runner-timed", lambda: _build_runner(True)
_WORKER: tuple[str, Build] = "team-worker", _build_worker
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def kernels_of_team(threads: int) -> list[tuple[str, Build]]:
    """What a team of that size has to have compiled, as `compile_many` takes it."""
    return [_RUNNER, _WORKER] if threads > 1 else [_RUNNER]


class _Cores:
    """The cores that this process may use, lent to teams for a job each, in the order in which they ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = self.free = cores()
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    def take(self, count: int) -> None:
        with self._lock:
            if not self._waiting and self.free >= count:
                self.free -= count
                return
            turn = threading.Lock()
            turn.acquire()
            entry = (count, turn)
            self._waiting.append(entry)
        try:
            turn.acquire()
        except BaseException:  # an interrupted wait gives its place, or what it was just lent, to the next
            with self._lock:
                if entry in self._waiting:
                    self._waiting.remove(entry)
                    count = 0
            self.give(count)
            raise

    def give(self, count: int) -> None:
        with self._lock:
            self.free += count
            while self._waiting and self._waiting[0][0] <= self.free:
                wanted, turn = self._waiting.popleft()
                self.free -= wanted
                turn.release()


class Turn:
    """A team's lock: who holds it has the team, and a core for each of its threads, to themselves.

    Teams of all sizes share the cores, so that two models on different numbers of threads, or the workers of
    `Model.map` beside a call, do not spin against each other. A team of more threads than cores takes them all.
    """

    def __init__(self, threads: int) -> None:
        self._lock = threading.Lock()
        self._threads = threads
        self._lent = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            count = min(self._threads, _cores.count)
            _cores.take(count)
        except BaseException:
            self._lock.release()
            raise
        self._lent = count

    def __exit__(self, *_: object) -> None:
        _cores.give(self._lent)
        self._lock.release()


_cores = _Cores()


class Team:
    """``threads`` threads, the caller's among them. One job at a time; callers queue for it."""

    def __init__(self, threads: int):
        self.threads = threads
        self.lock = Turn(threads)
        self._memory = np.zeros((_FIELDS + 1) * _LINE, np.int64)
        start = -(self._memory.ctypes.data // 8) % _LINE
        self._shared = self._memory[start : start + _FIELDS * _LINE]
        self._shared[_THREADS] = threads
        # About 50 microseconds: on a busy machine longer spinning keeps the thread that is waited for off its core.
        self._shared[_SPINS] = 1_000 if threads <= cores() else 50
        self._address = self._shared.ctypes.data
        self._cursors = np.zeros(0, np.int64)
        self._run = _ENTRY(compile_kernel(*_RUNNER, host_target()))
        self._own = [np.array([self._address, thread], np.int64) for thread in range(1, threads)]
        self._handles: list[ctypes.c_ulong] = []
        if threads > 1:
            worker = compile_kernel(*_WORKER, host_target())
            with _signals_blocked():
                for own in self._own:
                    self._start(worker, own)
        self._placing = Placing(self._handles)

    def _start(self, worker: int, own: np.ndarray) -> None:
        handle = ctypes.c_ulong()
        libc = ctypes.CDLL(None)
        libc.pthread_create.argtypes = [ctypes.c_void_p] * 4
        error = libc.pthread_create(ctypes.addressof(handle), None, worker, own.ctypes.data)
        if error:
            self.stop()
            number, reason = len(self._handles) + 2, os.strerror(error)
            raise ConvwrightError(f"could not start thread {number} of {self.threads}: {reason}")
        self._handles.append(handle)

    def run(self, table: np.ndarray, first: int, count: int) -> None:
        """Walk ``count`` steps of the table from step ``first`` on. The caller holds ``lock``."""
        self._reserve(count)
        self._placing.leave_caller_alone()
        # `table.ctypes.data` is the same and takes a microsecond.
        self._run(self._address, table.__array_interface__["data"][0] + first * STEP_COLUMNS * 8, count, 0)

    def run_timed(self, table: np.ndarray, first: int, count: int) -> list[float]:
        """The same with a barrier after every step; the seconds that each took. The caller holds ``lock``."""
        self._reserve(count)
        apart = table[first : first + count].copy()
        apart[:, STEP_COLUMNS - 1] = 1
        times = np.zeros(count + 1, np.int64)
        run = _ENTRY(compile_kernel(*_RUNNER_TIMED, host_target()))
        self._placing.leave_caller_alone()
        start = time.perf_counter()
        run(self._address, apart.ctypes.data, count, times.ctypes.data)
        seconds = time.perf_counter() - start
        cycles = np.diff(times)
        return [float(share) for share in cycles * (seconds / max(int(cycles.sum()), 1))]

    def _reserve(self, count: int) -> None:
        """Cursors for so many steps, all at zero."""
        if len(self._cursors) < (count * self.threads + 1) * _LINE:
            self._cursors = np.zeros((2 * count * self.threads + 1) * _LINE, np.int64)
            self._shared[_CURSORS] = self._cursors.ctypes.data // 64 * 64 + 64

    def stop(self) -> None:
        """End the threads; the team cannot be used after."""
        self._shared[_STOP] = 1
        self._shared[_JOB] += 1
        libc = ctypes.CDLL(None)
        if _FUTEX is not None:
            libc.syscall(_FUTEX, ctypes.c_void_p(self._address + _JOB * 8), _FUTEX_WAKE, _MOST_THREADS, None, None, 0)
        for handle in self._handles:
            libc.pthread_join(handle, None)
        self._handles.clear()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """New threads inherit the mask: signals stay with Python's own threads."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


_teams: dict[int, Team] = {}
_teams_lock = threading.Lock()


def team_of(threads: int) -> Team:
    """The process's team of that size, made at its first use."""
    with _teams_lock:
        if threads not in _teams:
            _teams[threads] = Team(threads)
        return _teams[threads]


def check_threads(threads: int | None) -> int:
    """The number of threads to use: all the cores this process may use when ``None``."""
    if threads is None:
        return cores()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
        raise ConvwrightError(f"threads must be an integer from 1 to {_MOST_THREADS}, not {threads!r}")
    return threads


def _after_fork() -> None:
    """The child of a fork has none of its parent's threads: it starts with no teams."""
    global _teams_lock, _cores
    _teams_lock = threading.Lock()
    _cores = _Cores()
    _teams.clear()


def _stop_all() -> None:
    for team in _teams.values():
        team.stop()
    _teams.clear()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_stop_all)
