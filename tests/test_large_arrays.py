"""Memory of an array is given away only where nobody else can see it."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from convwright.large_arrays import LARGE, large_empty, standing_in, taken

SHAPE = (33, LARGE // 16)
ROOM = 34 * LARGE // 4


def numbered(shape: tuple[int, ...] = SHAPE, dtype: str = "f4") -> np.ndarray:
    array = large_empty(shape, np.dtype(dtype))
    array[...] = np.arange(array.size).reshape(shape) % 251
    return array


@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "?", "f2", "c8"])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7, 1), (1 << 20,)])
def test_an_array_of_zeros_at_the_beginning_of_a_page(shape: tuple[int, ...], dtype: str) -> None:
    array = large_empty(shape, np.dtype(dtype))
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert not array.any()
    assert array.ctypes.data % 4096 == 0
    array[...] = 1
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array)), np.ones(shape, dtype))


def test_what_fits_no_memory() -> None:
    for count in (1 << 46, 1 << 62, 1 << 70):
        with pytest.raises(MemoryError):
            large_empty((count,), np.dtype(np.uint8))


@pytest.mark.parametrize("seen", [lambda array: array, lambda array: array.reshape(-1), lambda array: array.view("u1")])
def test_memory_that_nobody_else_holds_is_taken_with_what_stands_in_it(seen: Callable[[Any], Any]) -> None:
    holder = {"before": np.ones(1), "w": seen(numbered()), "after": np.ones(1)}
    shape = holder["w"].shape
    memory = taken(holder, "w", ROOM)
    assert memory is not None
    assert memory.size == ROOM
    assert memory.flags.writeable
    np.testing.assert_array_equal(memory[: 33 * LARGE // 4].view("f4").reshape(SHAPE), numbered())
    assert list(holder) == ["before", "w", "after"]
    assert holder["w"].shape == shape
    assert not holder["w"].any()
    assert taken(holder, "w", ROOM) is None  # nobody takes what only stands in


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array,
        lambda array: array[:1],
        lambda array: array.reshape(-1)[5:6],
        lambda array: array.T,
        lambda array: array.view(np.uint8),
        lambda array: memoryview(array),
        lambda array: array.base,
        lambda array: {"graph": array},
        lambda array: np.broadcast_to(array, (2, *array.shape)),
        lambda array: lambda: array,
    ],
)  # fmt: skip
def test_memory_that_anybody_sees_stays(hold: Callable[[Any], Any]) -> None:
    array = numbered()
    holder = {"w": array}
    other = hold(array)
    del array
    mine = id(holder["w"])
    assert taken(holder, "w", ROOM) is None
    assert id(holder["w"]) == mine
    np.testing.assert_array_equal(holder["w"], numbered())
    del other
    gc.collect()
    assert taken(holder, "w", ROOM) is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.ones(SHAPE, np.float32),
        lambda: np.ones((34, *SHAPE[1:]), np.float32)[:33],
        lambda: np.frombuffer(bytearray(LARGE * 16), np.float32),
        lambda: numbered().T,
        lambda: numbered()[1:],
        lambda: numbered()[::2],
        lambda: numbered()[:, :5],
        lambda: standing_in(numbered()),
    ],
)
def test_other_memory_is_never_taken(make: Callable[[], np.ndarray]) -> None:
    """Memory that others may know of by its address, and arrays that are not the whole of theirs, row by row."""
    holder = {"w": make()}
    assert taken(holder, "w", 64) is None
    np.testing.assert_array_equal(holder["w"], make())


def test_memory_with_less_room_stays() -> None:
    holder = {"w": numbered()}
    assert taken(holder, "w", 40 * LARGE // 4) is None
    np.testing.assert_array_equal(holder["w"], numbered())
