"""Where a team's threads may run: not on the core of the thread that calls them.

A thread that wakes up is often put on the core of whoever woke it, and stays there for as long as a whole inference:
two threads that compute then share a core beside one that idles, and a call after a pause takes twice as long as one
right after another (`python bench/latency.py FOLDER` compares the two).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

_BITS = 1024  # of a set of cores, as the C library declares it


class Placing:
    """Keeps threads (POSIX handles) off the core on which the caller runs, for as long as there are cores enough."""

    def __init__(self, handles: Sequence[ctypes.c_ulong]) -> None:
        self._handles = handles
        self._home = -1
        self._get_core = None
        if sys.platform == "linux" and handles:
            libc = ctypes.CDLL(None)
            self._get_core, self._set_affinity = libc.sched_getcpu, libc.pthread_setaffinity_np
            self._get_core.argtypes = []
            self._set_affinity.argtypes = [ctypes.c_ulong, ctypes.c_size_t, ctypes.c_char_p]

    def leave_caller_alone(self) -> None:
        """Move the threads elsewhere if the caller runs on another core than last time (a third of a microsecond)."""
        if self._get_core is None:
            return
        home = self._get_core()
        if home == self._home:
            return
        self._home = home
        allowed = os.sched_getaffinity(0)
        if len(allowed) > len(self._handles) and max(allowed) < _BITS:
            cores = sum(1 << core for core in allowed - {home}).to_bytes(_BITS // 8, sys.byteorder)
            for handle in self._handles:
                self._set_affinity(handle, len(cores), cores)
