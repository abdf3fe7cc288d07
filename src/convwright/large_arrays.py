"""Large arrays in memory of their own: it goes back to the system with its last holder, or serves him again.

What malloc gets back it may keep: after a block of some megabytes has been freed, glibc takes even large ones from its
heap, which does not shrink while anything lies above them.
"""

from __future__ import annotations

import math
import mmap
import sys
from functools import cache
from typing import Any

import numpy as np

LARGE = 16 << 10
"""Bytes from which on memory of its own, in whole pages, is worth it for an array."""

_WORTH_HUGE_PAGES = 4 << 20
"""Bytes from which on an array is in huge pages where there are any, which one core reads faster."""

_ROOM = 32
"""One part in so many more is mapped than the array has; what is never touched takes no memory."""


def large_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array, C-contiguous, of zeros so far, that begins a page. Raises MemoryError where there is no such room."""
    nbytes = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, max(nbytes + nbytes // _ROOM, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{nbytes} bytes") from error
    if nbytes >= _WORTH_HUGE_PAGES and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:nbytes].view(dtype).reshape(shape)


def standing_in(array: np.ndarray) -> np.ndarray:
    """Zeros of the array's shape and type, which take no memory."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def taken(holder: dict[str, np.ndarray], name: str, room: int) -> np.ndarray | None:
    """The memory of an array of ``large_empty`` that ``holder`` alone holds under ``name``: ``room`` bytes to write on.

    None, and nothing changed, where anybody else holds the array or a view of its memory, or the memory has less room.
    Else zeros stand in ``holder`` in the array's place, and its content still stands in the memory.
    """
    if _references(holder, name) != _references_of_one_holder():
        return None
    array = holder[name]
    memory = _memory_of(array)
    if memory is None or memory.size < room:
        return None
    holder[name] = standing_in(array)
    return memory[:room]


def give_back(memory: np.ndarray, used: np.ndarray) -> np.ndarray:
    """``used``, the first bytes of what ``taken`` gave; the whole pages after them go back to the system."""
    start = -(-used.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    owner: Any = memory.base
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if start < memory.nbytes and hasattr(mmap, "MADV_DONTNEED"):
        owner.obj.madvise(mmap.MADV_DONTNEED, start)
    return used


def _references(holder: dict[str, np.ndarray], name: str) -> tuple[int, int]:
    """To an array, and to the memory that it lies in, while ``holder`` holds it."""
    array = holder[name]
    memory = _memory_of(array)
    return sys.getrefcount(array), sys.getrefcount(memory)


@cache
def _references_of_one_holder() -> tuple[int, int]:
    """Counted, not written down: which of a function's own uses count differs between versions of Python."""
    return _references({"": large_empty((1,), np.dtype(np.float32))}, "")


def _memory_of(array: np.ndarray) -> np.ndarray | None:
    """The bytes of a mapping in which the array lies row by row, from the beginning on; None for other arrays."""
    memory: Any = array.base
    owner: Any = getattr(memory, "base", None)
    if not isinstance(memory, np.ndarray) or not isinstance(owner, memoryview) or not isinstance(owner.obj, mmap.mmap):
        return None
    return memory if array.flags.c_contiguous and array.ctypes.data == memory.ctypes.data else None
