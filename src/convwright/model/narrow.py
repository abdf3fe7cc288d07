"""Matrices of weights in 28 bits a number, without loss, by all threads (`kernels.narrow`).

All that belongs to a matrix lies in one array: the words, the rows' bases, and the rare weights with their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convwright.codegen.jit import compile_kernel
from convwright.codegen.target import Target
from convwright.kernels import narrow
from convwright.runtime.memory import zeroed
from convwright.runtime.team import team_of

MOST_RARE = 1 / 500  # of the weights: a rare one takes 8 bytes and some ten cycles
_ROOM = 1 / 32  # of a vector of rows, for its rare weights
_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts of a packed matrix ``[rows, channels]`` lie: bytes from its start."""

    rows: int
    channels: int
    v: int

    @property
    def vectors(self) -> int:
        """Of rows."""
        return -(-self.rows // self.v)

    @property
    def blocks(self) -> int:
        """Of channels."""
        return -(-self.channels // narrow.BLOCK)

    @property
    def words(self) -> int:
        """Floats of a vector of rows."""
        return self.blocks * narrow.WORDS * self.v

    @property
    def bases(self) -> int:
        return _aligned(4 * self.vectors * self.words)

    @property
    def starts(self) -> int:
        """Of the list of each vector of rows, int64, one more than there are vectors."""
        return _aligned(self.bases + 4 * self.vectors * self.v)

    @property
    def rare(self) -> int:
        return _aligned(self.starts + 8 * (self.vectors + 1))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED) * _ALIGNED


def pack(matrix: NDArray[np.float32], target: Target, threads: int) -> NDArray[np.uint8]:
    """The matrix ``[rows, channels]`` packed; an empty array where that is not worth it: too many rare weights, or an
    infinity or NaN."""
    matrix = np.ascontiguousarray(matrix, np.float32)
    parts = Parts(matrix.shape[0], matrix.shape[1], target.vector)
    room = max(64, int(parts.channels * parts.v * _ROOM))
    counts = np.zeros(parts.vectors, np.int64)
    rare = np.empty((parts.vectors, room), np.int64)  # what is not written takes no memory
    most = int(matrix.size * MOST_RARE)
    packed = zeroed(parts.rare + 8 * most)
    _run(narrow.Packing(), parts, packed, target, threads, matrix, counts, rare)
    if counts.max() > room or counts.sum() > most:
        return np.empty(0, np.uint8)
    starts = packed[parts.starts :][: 8 * (parts.vectors + 1)].view(np.int64)
    np.cumsum(counts, out=starts[1:])
    listed = np.concatenate([own[:count] for own, count in zip(rare, counts, strict=True)])
    end = parts.rare + listed.nbytes
    packed[parts.rare : end] = listed.view(np.uint8)
    return packed[:end]


def unpack(packed: NDArray[np.uint8], shape: tuple[int, int], target: Target, threads: int) -> NDArray[np.float32]:
    """The matrix, to the last bit."""
    parts = Parts(shape[0], shape[1], target.vector)
    matrix = np.empty(shape, np.float32)
    none = np.zeros(1, np.int64)
    _run(narrow.Unpacking(), parts, packed, target, threads, matrix, none, none)
    starts = packed[parts.starts :][: 8 * (parts.vectors + 1)].view(np.int64)
    listed = packed[parts.rare :].view(np.uint32).reshape(-1, 2)
    places = listed[:, 0].astype(np.int64)
    rows = np.repeat(np.arange(parts.vectors), np.diff(starts)) * parts.v + places % parts.v
    real = rows < parts.rows
    matrix.view(np.uint32)[rows[real], places[real] // parts.v] = listed[real, 1]
    return matrix


def _run(
    tile: narrow.Packing | narrow.Unpacking, parts: Parts, packed: NDArray[np.uint8], target: Target, threads: int,
    matrix: NDArray[np.float32], counts: NDArray[np.int64], rare: NDArray[np.int64],
) -> None:  # fmt: skip
    start = packed.ctypes.data
    values = {
        "weights": matrix.ctypes.data, "words": start, "bases": start + parts.bases, "counts": counts.ctypes.data,
        "rare": rare.ctypes.data, "rows": parts.rows, "channels": parts.channels, "blocks": parts.blocks,
        "room": rare.shape[-1],
    }  # fmt: skip
    arguments = narrow.ARGUMENTS.pack(values)
    address = compile_kernel(tile.key, lambda: narrow.emit(tile, target), target)
    table = np.array([[address, arguments.ctypes.data, parts.vectors, 0]], np.int64)
    team = team_of(threads)
    with team.lock:
        team.run(table, 0, 1)
