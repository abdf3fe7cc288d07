"""Memory that starts on a cache line, since a vector that two lines share takes two loads, or on a huge page."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

ALIGNMENT = 64  # bytes
_HUGE_PAGE = 2 << 20
_WORTH_A_HUGE_PAGE = 256 << 10  # bytes from which on memory starts on a huge page


class Pool:
    """Memory in huge pages for arrays that live as long as each other: one after another, each from a cache line on.

    Weights of many megabytes in pages of 4 KB, wherever they lie, miss the TLB, and evict each other from caches that
    would hold them.

    chunk: bytes that are mapped at a time; what is never touched takes no memory, but for the rest of a huge page.
    """

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._memory = np.empty(0, np.uint8)
        self._used = 0

    def empty(self, nbytes: int) -> np.ndarray:
        """Bytes, not initialised by anyone."""
        if self._used + nbytes > self._memory.size:
            self._memory, self._used = zeroed(max(nbytes, self._chunk)), 0
        start = self._used
        self._used = start + -(-nbytes // ALIGNMENT) * ALIGNMENT
        return self._memory[start : start + nbytes]

    @contextmanager
    def serving(self) -> Iterator[None]:
        """What ``aligned_empty`` gives meanwhile, in this thread, lies here."""
        before = _serving.set(self)
        try:
            yield
        finally:
            _serving.reset(before)


_serving: ContextVar[Pool | None] = ContextVar("pool", default=None)


def aligned_empty(count: int) -> np.ndarray:
    """``count`` float32, not initialised, the first on a cache line."""
    if (pool := _serving.get()) is not None:
        return pool.empty(count * 4).view(np.float32)
    raw = np.empty(count * 4 + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * 4].view(np.float32)


def zeroed(nbytes: int) -> np.ndarray:
    """Bytes of zeros in a mapping of their own, in huge pages where they are many and the system has them.

    In pages of 4 KB that lie anywhere, what would fit the second-level cache evicts itself, and tens of streams of
    stores, as transforms write them, miss the TLB.
    """
    if nbytes < _WORTH_A_HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(_anonymous(max(nbytes, mmap.PAGESIZE)), np.uint8)[:nbytes]
    whole = -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE
    memory = _anonymous(whole + _HUGE_PAGE)  # what is never touched takes no memory
    memory.madvise(mmap.MADV_HUGEPAGE)
    view = np.frombuffer(memory, np.uint8)
    start = -view.ctypes.data % _HUGE_PAGE
    return view[start : start + nbytes]


def _anonymous(nbytes: int) -> mmap.mmap:
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
