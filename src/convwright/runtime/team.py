"""The team of threads: one parallel region an inference.

Every thread walks the same table of steps, does its share of each step's work items, helps those that are behind, and
meets the others at a barrier where the table asks for one. The threads are native and run generated code only: they
never hold Python's lock. A thread that waits spins for a bounded time and then sleeps in the kernel (futex), so nothing
spins when idle.

`runtime.region` has the generated code.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from convwright.codegen.jit import Build, compile_kernel
from convwright.codegen.target import host_target
from convwright.errors import ConvwrightError
from convwright.runtime.machine import cores
from convwright.runtime.placing import Placing
from convwright.runtime.region import (
    CURSORS,
    FIELDS,
    FUTEX,
    FUTEX_WAKE,
    JOB,
    LINE,
    MOST_THREADS,
    SPINS,
    STEP_COLUMNS,
    STOP,
    THREADS,
    build_pauses,
    build_runner,
    build_worker,
)

# From the end of a call to the next it takes Python up to 50 microseconds; a worker that sleeps by then joins 25 late.
# On a busy machine longer spinning keeps the thread that is waited for off its core.
SPIN_SECONDS = 75e-6
_RUNNER: tuple[str, Build] = "team-runner", lambda: build_runner(False)
_RUNNER_TIMED: tuple[str, Build] = "team-runner-timed", lambda: build_runner(True)
_WORKER: tuple[str, Build] = "team-worker", build_worker
_PAUSES: tuple[str, Build] = "team-pauses", build_pauses
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def kernels_of_team(threads: int) -> list[tuple[str, Build]]:
    """What a team of that size has to have compiled, as `compile_many` takes it."""
    return [_RUNNER, _WORKER, _PAUSES] if threads > 1 else [_RUNNER]


@cache
def spin_turns() -> int:
    """Turns of waiting that take about `SPIN_SECONDS`: 10 to 50 nanoseconds each, by the processor."""
    return min(max(int(500 * SPIN_SECONDS / max(seconds_of_turns(500), 1e-9)), 500), 20_000)


def seconds_of_turns(turns: int) -> float:
    """The least time of three that so many turns of waiting take."""
    pauses, taken = _ENTRY(compile_kernel(*_PAUSES, host_target())), []
    for _ in range(3):
        start = time.perf_counter()
        pauses(None, 0, turns, 0)
        taken.append(time.perf_counter() - start)
    return min(taken)


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
        self._memory = np.zeros((FIELDS + 1) * LINE, np.int64)
        start = -(self._memory.ctypes.data // 8) % LINE
        self._shared = self._memory[start : start + FIELDS * LINE]
        self._shared[THREADS] = threads
        if threads > 1:
            self._shared[SPINS] = spin_turns() if threads <= cores() else 50
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

    def run_one(self, kernel: int, arguments: np.ndarray, items: int) -> None:
        """Run a kernel by itself, whose address and arguments these are, outside of any plan."""
        with self.lock:
            self.run(np.array([[kernel, arguments.ctypes.data, items, 0]], np.int64), 0, 1)

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
        if len(self._cursors) < (count * self.threads + 1) * LINE:
            self._cursors = np.zeros((2 * count * self.threads + 1) * LINE, np.int64)
            self._shared[CURSORS] = self._cursors.ctypes.data // 64 * 64 + 64

    def stop(self) -> None:
        """End the threads; the team cannot be used after."""
        self._shared[STOP] = 1
        self._shared[JOB] += 1
        libc = ctypes.CDLL(None)
        if FUTEX is not None:
            libc.syscall(FUTEX, ctypes.c_void_p(self._address + JOB * 8), FUTEX_WAKE, MOST_THREADS, None, None, 0)
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
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise ConvwrightError(f"threads must be an integer from 1 to {MOST_THREADS}, not {threads!r}")
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
