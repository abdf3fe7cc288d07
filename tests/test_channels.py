"""Channel choices equal NumPy's indexing, and channels that are not chosen stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from convwright.codegen.target import Target, target_named
from convwright.kernels import channels
from tests.kernels import Blocked, call, each_target


def choose(x: Blocked, y: Blocked, table: Sequence[int], target: Target) -> channels.Channels:
    """Run the kernel that the table asks for, rows in two chunks."""
    images, rows, cols = (x.array().shape[axis] for axis in (0, 2, 3))
    source, destination = x.arguments("x"), y.arguments("y")
    choice = channels.choose(table, source.pop("x_block"), target)
    destination["y"] += 4 * choice.first_block * destination["y_block"]
    tables = {"offsets": choice.offsets.ctypes.data, "lanes": choice.lanes.ctypes.data, "blocks": choice.blocks}
    work = {"chunks": 2, "chunk_rows": -(-rows // 2), "rows": rows, "cols": cols}
    values = {**source, **destination, **tables, **work}
    call(choice.config, channels.emit, channels.ARGUMENTS, values, images * choice.blocks * 2, target, ranges=3)
    return choice.config


def random(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


@each_target
@pytest.mark.parametrize("halo", [0, 1])
def test_a_slice_of_channels(target: Target, halo: int) -> None:
    v = target.vector
    for count in (1, v - 1, v, v + 1, 2 * v + 3):
        for first in (0, 1, v - 1, v, v + 2):
            x = random((2, first + count + 1, 3, 5))
            y = Blocked.empty((2, count, 3, 5), v, halo=halo)
            config = choose(Blocked.of(x, v, halo=halo), y, range(first, first + count), target)
            np.testing.assert_array_equal(y.array(), x[:, first : first + count])
            assert (config.kind == "copy") == (first % v == 0)
            assert y.halo_untouched()


@each_target
def test_concatenation_fills_a_block_from_several_inputs(target: Target) -> None:
    v = target.vector
    for sizes in [(1, 1, 1), (v - 1, v + 1), (3, 2 * v, v, 5), (v, v), (2 * v + 3, 1, v - 4 or 1)]:
        parts = [random((2, size, 2, 3)) + index for index, size in enumerate(sizes)]
        total = sum(sizes)
        y = Blocked.empty((2, total, 2, 3), v)
        y.buffer[:] = 0.0
        start = 0
        for part in parts:
            table = np.full(total, -1)
            table[start : start + part.shape[1]] = np.arange(part.shape[1])
            choose(Blocked.of(part, v), y, table.tolist(), target)
            start += part.shape[1]
        np.testing.assert_array_equal(y.array(), np.concatenate(parts, axis=1))


@each_target
@pytest.mark.parametrize("at_end", [True, False])
def test_channel_shuffles_and_any_other_order(target: Target, at_end: bool) -> None:
    v = target.vector
    rng = np.random.default_rng(0)
    orders = [
        np.arange(groups * each).reshape(groups, each).T.ravel() for groups in (2, 3, 4, 8) for each in (5, 2 * v)
    ]
    orders += [rng.permutation(10 * v + 3), rng.integers(0, 5, 3 * v), np.zeros(v + 1, int)]
    for order in orders:
        x = random((1, int(order.max()) + 1, 3, 2))
        y = Blocked.empty((1, len(order), 3, 2), v, at_end=at_end)
        choose(Blocked.of(x, v, at_end=at_end), y, order.tolist(), target)
        np.testing.assert_array_equal(y.array(), x[:, order])


@each_target
def test_lanes_without_a_channel_are_kept(target: Target) -> None:
    rng = np.random.default_rng(1)
    v = target.vector
    for many in (1, 2, 12):
        x, before = random((1, many * v, 2, 2)), random((1, 3 * v + 1, 2, 2))
        table = rng.integers(0, many * v, 3 * v + 1)
        table[rng.random(len(table)) < 0.3] = -1
        table[v : 2 * v] = -1
        y = Blocked.of(before, v)
        choose(Blocked.of(x, v), y, table.tolist(), target)
        np.testing.assert_array_equal(y.array(), np.where((table >= 0)[:, None, None], x[:, table], before))


def test_choosing_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no channel"):
        channels.choose([-1, -1], 16, target_named("generic"))
