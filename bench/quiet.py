"""Whether the machine was ours while something was timed: the processor time that others took meanwhile.

Linux alone tells; elsewhere nobody is seen.
"""

import os
import time
from pathlib import Path

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
