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


def test_a_pool_serves_what_is_made_meanwhile() -> None:
    pool = memory.Pool(1 << 20)
    with pool.serving():
        few, many = memory.aligned_empty(3), memory.aligned_empty((80 << 20) // 4)
        with memory.Pool(4096).serving():
            other = memory.aligned_empty(5)
        last = memory.aligned_empty(7)
    plain = memory.aligned_empty(7)
    arrays = [few, many, other, last, plain]
    for number, array in enumerate(arrays):
        array[...] = number
    assert [set(array[:9].tolist()) for array in arrays] == [{0.0}, {1.0}, {2.0}, {3.0}, {4.0}]
    assert all(array.ctypes.data % memory.ALIGNMENT == 0 for array in arrays)


def test_a_pool_lays_arrays_side_by_side() -> None:
    pool = memory.Pool(4096)
    first, second = pool.empty(65), pool.empty(1)
    assert second.ctypes.data - first.ctypes.data == 2 * memory.ALIGNMENT
