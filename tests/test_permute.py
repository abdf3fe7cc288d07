"""Strided copies equal NumPy's views; fills reach every element and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convwright.codegen.target import Target, target_named
from convwright.kernels import permute
from tests.guard import guarded_empty
from tests.kernels import call, each_target


def guarded_like(array: np.ndarray, at_end: bool = True) -> np.ndarray:
    """An empty array of that shape and type beside an unreadable page."""
    words = guarded_empty(array.size * array.itemsize // 4, at_end=at_end)
    return words.view(array.dtype).reshape(array.shape)


def guarded_copy(array: np.ndarray) -> np.ndarray:
    result = guarded_like(array)
    result[...] = array
    return result


def copied(view: np.ndarray, target: Target, into: np.ndarray | None = None) -> tuple[np.ndarray, permute.StridedCopy]:
    """The view copied by the kernel, into a new array or the view ``into``."""
    y = guarded_like(view) if into is None else into
    size = view.itemsize
    x_strides, y_strides = ([stride // size for stride in array.strides] for array in (view, y))
    config, values, items = permute.strided_copy(view.shape, x_strides, y_strides, target, size)
    pointers = {"x": view.ctypes.data, "y": y.ctypes.data}
    call(config, permute.emit, permute.ARGUMENTS, {**values, **pointers}, items, target, ranges=3)
    return y, config


@each_target
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_transposes_of_every_order(target: Target, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    v = target.vector
    sizes = [1, 2, 3, v - 1, v, v + 1, 2 * v + 3]
    for rank in range(1, 7):
        for _ in range(12):
            shape = [int(rng.choice(sizes)) if rng.random() < 0.5 or rank < 4 else 2 for _ in range(rank)]
            x = guarded_copy(rng.integers(-(2**40), 2**40, shape).astype(dtype))
            view = x.transpose(rng.permutation(rank))
            y, _ = copied(view, target)
            np.testing.assert_array_equal(y, view)


@each_target
def test_channels_last_images_take_the_transposing_kernel(target: Target) -> None:
    rng = np.random.default_rng(1)
    for shape in [(2, 5, 7, 3), (1, 9, 9, target.vector), (2, 1, 3, 1), (1, 30, 30, 2 * target.vector + 1)]:
        x = guarded_copy(rng.standard_normal(shape, dtype=np.float32))
        view = x.transpose(0, 3, 1, 2)
        y, config = copied(view, target)
        np.testing.assert_array_equal(y, view)
        assert config.kind == ("row" if shape[3] == 1 else "transpose")
        back, _ = copied(y.transpose(0, 2, 3, 1), target)
        np.testing.assert_array_equal(back, x)


@each_target
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_slices_flips_and_expansions(target: Target, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    x = guarded_copy(rng.integers(-9, 9, (3, 1, 2 * target.vector + 5, 17)).astype(dtype))
    views = [x[::2], x[:, :, 1::3, 2:], x[..., ::-1], x[:, :, ::-2, ::-3], x[1:2, :, 3:4, 5:6]]
    views += [np.broadcast_to(x, (3, 4, *x.shape[2:])), np.broadcast_to(x[..., :1], (3, 1, x.shape[2], 33))]
    views += [np.broadcast_to(x[0, 0, 0, :1], (7,)), np.broadcast_to(x[:, :, :1, ::2], (2, 3, 5, 4, 9))]
    for view in views:
        y, _ = copied(view, target)
        np.testing.assert_array_equal(y, view)


@each_target
def test_padding_and_concatenation_write_into_a_part(target: Target) -> None:
    rng = np.random.default_rng(3)
    x = guarded_copy(rng.standard_normal((2, 3, 4, target.vector + 1), dtype=np.float32))
    want = np.pad(x, ((0, 1), (2, 0), (1, 1), (3, 2)), constant_values=7)
    y = guarded_like(want)
    values, items = permute.fill_arguments(np.float32(7), y.size)
    values["y"] = y.ctypes.data
    call(permute.Fill(), permute.emit_fill, permute.FILL_ARGUMENTS, values, items, target)
    copied(x, target, into=y[:2, 2:, 1:-1, 3:-2])
    np.testing.assert_array_equal(y, want)


@each_target
@pytest.mark.parametrize("value", [np.float32(-0.5), np.int64(-(2**50) + 3), np.float32(np.nan)])
def test_fill(target: Target, value: np.generic) -> None:
    for count in (1, target.vector, 2 * target.vector + 3, 2 * permute.ITEM_ELEMENTS + 5):
        y = guarded_like(np.empty(count, value.dtype))
        values, items = permute.fill_arguments(value, count)
        values["y"] = y.ctypes.data
        call(permute.Fill(), permute.emit_fill, permute.FILL_ARGUMENTS, values, items, target, ranges=2)
        np.testing.assert_array_equal(y, np.full(count, value))


def test_too_many_axes_are_an_error() -> None:
    view = np.empty((2,) * 14)[(slice(None),) * 14].transpose([*range(0, 14, 2), *range(1, 14, 2)])
    strides = [stride // 8 for stride in view.strides]
    with pytest.raises(ValueError, match="at most 6"):
        permute.strided_copy(view.shape, strides, [2**i for i in range(13, -1, -1)], target_named("generic"))
