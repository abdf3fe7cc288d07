"""Memory that starts on a cache line: a vector that two lines share takes two loads."""

from __future__ import annotations

import numpy as np

ALIGNMENT = 64  # bytes


def aligned_empty(count: int) -> np.ndarray:
    """``count`` float32, not initialised, the first on a cache line."""
    raw = np.empty(count * 4 + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * 4].view(np.float32)
