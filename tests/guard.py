"""Buffers that end, or begin, exactly at an unreadable page: a kernel that strays by one byte dies there."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROT_NONE = 0
PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)


def guarded_bytes(size: int, *, at_end: bool = True) -> NDArray[np.uint8]:
    """``size`` bytes of all ones (NaN as floats) between two unreadable pages, touching the one behind (``at_end``) or
    before."""
    pages = max(1, -(-size // PAGE))
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages + 1):
        if _libc.mprotect(ctypes.c_void_p(base + page * PAGE), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (pages * PAGE - size if at_end else 0)
    buffer = np.frombuffer(memory, np.uint8, size, offset)
    buffer[:] = 255
    return buffer


def guarded_empty(count: int, *, at_end: bool = True, fill: float = np.nan) -> NDArray[np.float32]:
    """``count`` float32 of ``fill`` between two unreadable pages, touching the one behind (``at_end``) or before."""
    buffer = guarded_bytes(4 * count, at_end=at_end).view(np.float32)
    buffer[:] = fill
    return buffer


def guarded(array: NDArray[Any], *, at_end: bool = True) -> NDArray[np.float32]:
    """A copy of the array, as float32, that touches an unreadable page."""
    copy = guarded_empty(array.size, at_end=at_end).reshape(array.shape)
    copy[...] = array
    return copy
