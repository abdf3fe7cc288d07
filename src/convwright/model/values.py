"""Where tensors live while a network runs: buffers, references into them, and tensors in a layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Halo = tuple[int, ...]
"""Rows above, columns to the left, rows below, columns to the right of a tensor that hold zeros; of a volume also the
slices in front of it and behind it, which may be left out where there are none."""

NO_HALO: Halo = (0, 0, 0, 0)

_SAME_SETS = 1024  # floats: at such distances numbers compete for the same places of a first-level cache


@dataclass(eq=False, slots=True)
class Buffer:
    """A stretch of memory.

    ``kind``: "arena" (placed by liveness), "input" or "output" (the caller's), "static" (constant).
    ``first`` and ``last``: the steps during which an arena buffer is in use. ``index``: which input or output.
    """

    nbytes: int
    kind: str = "arena"
    index: int = 0
    array: np.ndarray | None = None
    first: int = -1
    last: int = -1
    place: int = 0

    def used_at(self, step: int) -> None:
        if self.first < 0:
            self.first = step
        self.last = max(self.last, step)


@dataclass(frozen=True, eq=False, slots=True)
class Order:
    """Where the channels of a blocked tensor lie, if not one after another (``lower.regroup``).

    ``places``: the lane of each channel, counted through all blocks. ``made``: the lanes in the order in which the
    convolution that makes the tensor has them; a shuffle behind it tells them apart. ``lanes``: of the tensor, those
    in which nothing lies included. ``name``: the same for equal orders.
    """

    name: str
    places: NDArray[np.int64]
    made: NDArray[np.int64]
    lanes: int


def in_lanes(values: NDArray[np.float32], places: NDArray[np.int64], lanes: int) -> NDArray[np.float32]:
    """``[C, ...]`` to ``[lanes, ...]``: each channel in its place, zeros where none lies."""
    result = np.zeros((lanes, *values.shape[1:]), values.dtype)
    result[places] = values
    return result


@dataclass(frozen=True, slots=True)
class Ref:
    """The address ``nbytes`` into a buffer."""

    buffer: Buffer
    nbytes: int = 0


@dataclass(eq=False, slots=True)
class Value:
    """A tensor in memory.

    ``shape`` is the tensor's own (ONNX) shape. Blocked tensors are ``[N][blocks][H][W][v]`` inside their halo, with
    strides ``image``, ``block`` and ``row`` in floats; plain ones are row-major without gaps, but
    for a range of another's channels, whose ``image`` is the whole's. ``offset`` is the byte of
    element 0. Volumes, of rank 5, are ``[N][blocks][D][H][W][v]``, with a stride ``slice`` too.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    buffer: Buffer
    blocked: bool
    offset: int = 0
    image: int = 0
    block: int = 0
    row: int = 0
    halo: Halo = NO_HALO
    extent: int = field(default=0)  # bytes from `offset` that a blocked tensor without halo spans (hazard tracking)
    slice: int = 0

    @property
    def ref(self) -> Ref:
        return Ref(self.buffer, self.offset)

    @property
    def n(self) -> int:
        return self.shape[0]

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width; a tensor of rank 3 is one row, one of rank 2 a single pixel, a volume all slices' rows.

        Kernels on planes do a volume as one tall plane where its slices follow each other without a gap: see `planes`.
        """
        assert self.even
        return spatial(self.shape)

    @property
    def even(self) -> bool:
        """Whether the slices of a volume follow each other without a gap."""
        return len(self.shape) < 5 or self.shape[2] == 1 or self.slice == self.shape[3] * self.row

    def plane_batch(self, image: int) -> Value:
        """An image of a blocked volume as a batch: its slices are the images. What has one image has it for all."""
        n, channels, deep, *plane = self.shape
        image %= n
        extent = self.extent - 4 * (n - 1) * self.image
        return replace(
            self, shape=(deep, channels, *plane), offset=self.offset + 4 * image * self.image, image=self.slice,
            halo=self.halo[:4], extent=extent,
        )  # fmt: skip

    def span(self, blocks: int) -> int:
        """Bytes from the first element of a tensor of so many channel blocks to the end of its last row."""
        deep, high, _ = self.shape[2:] if len(self.shape) == 5 else (1, *spatial(self.shape))
        floats = (self.n - 1) * self.image + (blocks - 1) * self.block + (deep - 1) * self.slice + high * self.row
        return 4 * floats

    @property
    def flat(self) -> bool:
        """Whether rows follow each other without a gap."""
        return self.halo[1] == self.halo[3] == 0 and self.even


def blocked_tensor(shape: tuple[int, ...], halo: Halo, v: int) -> Value:
    """A float32 tensor of that shape in channel blocks of `v`, in a buffer of its own.

    The zeros behind a row are those before the next, those below a plane are those above the next, and those behind
    the last slice of a block are those in front of the next block's first.
    """
    deep, high, wide = shape[2:] if len(shape) == 5 else (1, *spatial(shape))
    top, left, bottom, right, front, behind = (*halo, 0, 0)[:6]
    row = (wide + max(left, right)) * v
    plane = (high + max(top, bottom)) * row
    block = (deep + max(front, behind)) * plane
    if any(halo) and block % _SAME_SETS == 0:
        block += v
    blocks = blocks_of(shape[1], v)
    image = blocks * block
    lead = front * plane + top * row + left * v
    value = Value(
        shape, np.dtype(np.float32), Buffer(4 * (lead + shape[0] * image)), True, 4 * lead, image, block, row, halo
    )
    value.slice = plane if len(shape) == 5 else 0
    value.extent = value.span(blocks)
    return value


def spatial(shape: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of ``[N, C]``, ``[N, C, W]`` or ``[N, C, H, W]``; (D H, W) of ``[N, C, D, H, W]``."""
    if len(shape) == 5:
        return shape[2] * shape[3], shape[4]
    if len(shape) == 4:
        return shape[2], shape[3]
    return (1, shape[2]) if len(shape) == 3 else (1, 1)


_Values = TypeVar("_Values", Value, Value | None)


def planes(values: Sequence[_Values]) -> Iterator[list[_Values]]:
    """The same blocked tensors as kernels on planes take them, turn by turn: as they are, or where there are gaps
    between the slices of volumes, image by image, the slices of each as a batch."""
    if all(value is None or value.even for value in values):
        yield list(values)
        return
    images = max(value.n for value in values if value is not None)
    for image in range(images):
        yield [None if value is None else value.plane_batch(image) for value in values]


def blocks_of(channels: int, vector: int) -> int:
    return -(-channels // vector)
