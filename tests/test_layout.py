"""Layout conversions and borders move every value to its place and touch nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from convwright.codegen.target import Target
from convwright.graph import Graph
from convwright.graph.shapes import Inferred
from convwright.kernels import halo, layout
from convwright.model.builder import Builder
from convwright.model.values import blocked_tensor
from convwright.model.weights import Weights
from tests.guard import guarded, guarded_bytes, guarded_empty
from tests.kernels import call, each_target

NO_BORDER = {"top": 0, "bottom": 0, "left": 0, "right": 0}


def sizes(target: Target) -> list[tuple[int, int, int, int]]:
    """Images, channels, rows and columns at the boundaries of a vector."""
    v = target.vector
    channels = [1, 3, 4, v - 1, v, v + 1, 2 * v, 2 * v + 3]
    cols = [*range(1, 10), v - 1, v, v + 1, 2 * v + 5]
    cases = [(1, c, 2, w) for c in channels for w in (1, v - 1, v + 1)]
    return cases + [(2, c, 3, w) for c in (3, v + 1) for w in cols]


def blocked(x: np.ndarray, v: int) -> np.ndarray:
    """``[N][C][H][W]`` to ``[N][ceil(C/v)][H][W][v]``, zeros past the last channel."""
    images, channels, rows, cols = x.shape
    blocks = -(-channels // v)
    full = np.zeros((images, blocks * v, rows, cols), np.float32)
    full[:, :channels] = x
    return np.ascontiguousarray(full.reshape(images, blocks, v, rows, cols).transpose(0, 1, 3, 4, 2))


@each_target
@pytest.mark.parametrize("end", [True, False])
def test_pack_and_unpack_are_the_blocked_layout_and_its_inverse(target: Target, end: bool) -> None:
    rng = np.random.default_rng(0)
    v = target.vector
    for images, channels, rows, cols in sizes(target):
        x = guarded(rng.standard_normal((images, channels, rows, cols), dtype=np.float32), at_end=end)
        want = blocked(x, v)
        blocks = want.shape[1]
        y = guarded_empty(want.size, at_end=end)
        planar = {"image": channels * rows * cols, "plane": rows * cols, "row": cols}
        block = {"image": blocks * rows * cols * v, "plane": rows * cols * v, "row": cols * v}
        work = {"planes": blocks, "chunks": rows, "chunk_rows": 1, "rows": rows, "cols": cols, "places": 0, **NO_BORDER}
        items = images * blocks * rows

        def strides(side: str, values: dict[str, int]) -> dict[str, int]:
            return {f"{side}_{name}": value for name, value in values.items()}

        values = {"x": x.ctypes.data, "y": y.ctypes.data, **work, **strides("x", planar), **strides("y", block)}
        config = layout.conversion("pack", channels, cols, target)
        call(config, layout.emit, layout.ARGUMENTS, values, items, target, ranges=3)
        np.testing.assert_array_equal(y.reshape(want.shape), want)

        y.reshape(want.shape)[:, -1, ..., channels - (blocks - 1) * v :] = np.nan  # lanes that mean nothing
        back = guarded_empty(x.size, at_end=end)
        values = {"x": y.ctypes.data, "y": back.ctypes.data, **work, **strides("x", block), **strides("y", planar)}
        config = layout.conversion("unpack", channels, cols, target)
        call(config, layout.emit, layout.ARGUMENTS, values, items, target, ranges=2)
        np.testing.assert_array_equal(back.reshape(x.shape), x)

        order = rng.permutation(channels)
        table = guarded_bytes(8 * channels, at_end=end).view(np.int64)
        table[:] = order * rows * cols
        config = layout.conversion("unpack", channels, cols, target, placed=True)
        call(config, layout.emit, layout.ARGUMENTS, {**values, "places": table.ctypes.data}, items, target, ranges=2)
        np.testing.assert_array_equal(back.reshape(x.shape)[:, order], x)

        values = {"x": x.ctypes.data, "y": y.ctypes.data, **work, **strides("x", planar), **strides("y", block)}
        config = layout.conversion("pack", channels, cols, target, placed=True)
        call(config, layout.emit, layout.ARGUMENTS, {**values, "places": table.ctypes.data}, items, target, ranges=2)
        np.testing.assert_array_equal(y.reshape(want.shape), blocked(x[:, order], v))


@each_target
@pytest.mark.parametrize("border", [(0, 0, 0, 0), (1, 1, 1, 1), (3, 2, 0, 17), (0, 1, 2, 0)])
def test_pad_copies_the_image_and_zeroes_the_border(target: Target, border: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(1)
    top, bottom, left, right = border
    for images, channels, rows, cols in sizes(target):
        x = guarded(rng.standard_normal((images, channels, rows, cols), dtype=np.float32))
        want = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        y = guarded_empty(want.size).reshape(want.shape)
        height, width = want.shape[2:]
        values = (
            {"x": x.ctypes.data, "y": y.ctypes.data + 4 * (top * width + left), "planes": channels, "chunks": 2}
            | {"chunk_rows": -(-height // 2), "rows": rows, "cols": cols}
            | {"x_image": channels * rows * cols, "x_plane": rows * cols, "x_row": cols}
            | {"y_image": channels * height * width, "y_plane": height * width, "y_row": width}
            | {"top": top, "bottom": bottom, "left": left, "right": right, "places": 0}
        )
        call(layout.Layout("pad"), layout.emit, layout.ARGUMENTS, values, images * channels * 2, target, ranges=3)
        np.testing.assert_array_equal(y, want)


@each_target
@pytest.mark.parametrize("border", [(0, 0, 0, 0), (1, 1, 1, 1), (3, 0, 2, 5), (0, 2, 1, 0), (0, 0, 1, 0)])
def test_halo_zeroes_the_border_and_keeps_the_image(target: Target, border: tuple[int, int, int, int]) -> None:
    """Each plane of a tensor lies inside zeros, some of which are another plane's too, and is as it was."""
    rng = np.random.default_rng(2)
    v, (top, left, bottom, right) = target.vector, border
    for images, blocks, rows, cols in [
        (1, 1, 1, 1),
        (2, 3, 4, 5),
        (1, 2, 16 - max(top, bottom), 16 - max(left, right)),
    ]:
        x = rng.standard_normal((images, blocks, rows, cols, v), dtype=np.float32)
        y = blocked_tensor((images, blocks * v, rows, cols), border, v)
        memory = guarded_empty(y.buffer.nbytes // 4)
        strides = [4 * step for step in (y.image, y.block, y.row, v, 1)]
        as_strided(memory[y.offset // 4 :], x.shape, strides)[...] = x
        builder = Builder(Graph("", {}, [], [], {}), Inferred({}, {}), Weights({}, v), target, 1, [])
        builder.fill_halo(y)
        for step in builder.steps:
            values = step.arguments | {"y": memory.ctypes.data + y.offset}
            call(step.tile, halo.emit, halo.ARGUMENTS, values, step.items, target, ranges=2)
        want = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right), (0, 0)))
        corner = memory[y.offset // 4 - top * y.row - left * v :]
        np.testing.assert_array_equal(as_strided(corner, want.shape, strides), want)
