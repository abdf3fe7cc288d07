"""Whether the machine was ours while something was timed, and whether it was the same machine all the time.

The first is the processor time that others took meanwhile. The second is about what a guest cannot see. On a shared
host there are spells of seconds to minutes in which one core reads what the other has written at half the usual speed,
as cores do that share no third-level cache, while neither is slower by itself; presumably the host has moved one of
them. All runtimes are slower on two threads then, those that divide a layer into equal parts up to twofold, others by a
quarter, so that such spells change the ratios too.

Linux alone tells; elsewhere nobody is seen, and every moment is like every other.
"""

import os
import time
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np

_PROC = Path("/proc")


class Others:
    """Counts from its making on.

    >>> Others().cores() >= 0
    True
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter(), _all(), _ours()

    def cores(self) -> float:
        """How many cores other processes, and other guests of the host, kept busy on average since the beginning."""
        begin, everything, ours = self._begin
        seconds = time.perf_counter() - begin
        foreign = (_all() - everything) - (_ours() - ours)
        return max(0.0, foreign) / max(seconds, 1e-3) / os.sysconf("SC_CLK_TCK")


class Calm:
    """Whether two cores are now as near to each other as at best since its making; takes 3 ms.

    - `threads`: of what is timed; where it is one, how near the cores are does not matter.

    >>> Calm(1)()
    True
    """

    SLOWER = 1.3  # times the best that was seen: above the noise, below what it is to tell

    def __init__(self, threads: int) -> None:
        self._matters = threads > 1 and len(_cores()) > 1
        self._best = float("inf")
        self._sent, self._received = np.zeros((2, 1 << 16), np.float32)

    def __call__(self) -> bool:
        if not self._matters:
            return True
        seconds = median(self._transferred() for _ in range(24))
        self._best = min(self._best, seconds)
        return seconds <= self.SLOWER * self._best

    def _transferred(self) -> float:
        """Seconds to read on one core what another has just written, 256 KB."""
        cores = _cores()
        try:
            os.sched_setaffinity(0, {max(cores)})
            self._sent += 1
            os.sched_setaffinity(0, {min(cores)})
            begin = time.perf_counter()
            np.copyto(self._received, self._sent)
            return time.perf_counter() - begin
        finally:
            os.sched_setaffinity(0, cores)


@cache
def calm_on(threads: int) -> Calm:
    """The one of this process for so many threads: kept from race to race, because what it saw at best is what it goes
    by."""
    return Calm(threads)


def _cores() -> set[int]:
    """The cores that this thread may use; none where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _all() -> int:
    """Ticks in which a core was not idle, stolen ones included (proc(5), /proc/stat)."""
    try:
        fields = [int(field) for field in (_PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return 0
    return sum(fields) - sum(fields[3:5])  # idle and iowait


def _ours() -> int:
    """Ticks of this process and its descendants, those that have ended included."""
    ticks, parents = {}, {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))  # its own and those of children it has waited for
    total = 0
    for pid in ticks:
        ancestor = pid
        while ancestor != os.getpid() and ancestor in parents:
            ancestor = parents[ancestor]
        total += ticks[pid] if ancestor == os.getpid() else 0
    return total
