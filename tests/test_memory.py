"""Where memory starts."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from convwright.runtime import memory


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1 << 20])
def test_floats_start_on_a_cache_line(count: int) -> None:
    array = memory.aligned_empty(count)
    assert array.shape == (count,)
    assert array.dtype == np.float32
    assert array.ctypes.data % memory.ALIGNMENT == 0


@pytest.mark.parametrize("nbytes", [0, 1, 4095, 4097, (256 << 10) - 1, 256 << 10, (2 << 20) + 1])
def test_zeros_can_be_written_to_the_last_byte(nbytes: int) -> None:
    array = memory.zeroed(nbytes)
    assert array.shape == (nbytes,)
    assert not array.any()
    array[...] = 1
    if nbytes:
        assert array.ctypes.data % memory.ALIGNMENT == 0
        assert array[-1] == 1


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages to ask for")
@pytest.mark.parametrize("nbytes", [256 << 10, 3 << 20])
def test_much_memory_starts_on_a_huge_page(nbytes: int) -> None:
    assert memory.zeroed(nbytes).ctypes.data % (2 << 20) == 0
