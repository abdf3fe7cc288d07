"""Matrices of weights in 24 bits a number, or in 28 without loss, by all threads (`kernels.narrow`).

All that belongs to a matrix lies in one array: the words, the rows' bases, and the rare weights with their places.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convwright.codegen.jit import compile_kernel
from convwright.codegen.target import Target
from convwright.kernels import fixed, narrow
from convwright.runtime.memory import aligned_empty, zeroed
from convwright.runtime.team import team_of

MOST_ROUNDED = 1e-6
"""What rounding to 24 bits may add to a row, as root mean squares. Rows can be rounded whose largest weight is up to 14
times their root mean square, or 28 times if it is just below a power of two."""

MOST_RARE = 1 / 500  # of the weights: a rare one takes 8 bytes and some ten cycles
_ROOM = 1 / 32  # of a vector of rows, for its rare weights
_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts of a packed matrix ``[rows, channels]`` lie: bytes from its start."""

    rows: int
    channels: int
    v: int
    coding: str

    @property
    def bits(self) -> int:
        """Of a weight."""
        return narrow.CODINGS[self.coding].BITS

    @property
    def vectors(self) -> int:
        """Of rows."""
        return -(-self.rows // self.v)

    @property
    def blocks(self) -> int:
        """Of channels."""
        return -(-self.channels // narrow.CODINGS[self.coding].BLOCK)

    @property
    def words(self) -> int:
        """Floats of a vector of rows."""
        return self.blocks * narrow.CODINGS[self.coding].WORDS * self.v

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


class Survey:
    """What is known of a matrix before it is packed: how it is coded, the bases of its rows, and its rare weights.

    exact: without loss.
    """

    def __init__(self, matrix: NDArray[np.float32], target: Target, threads: int, *, exact: bool):
        matrix = np.ascontiguousarray(matrix, np.float32)
        self.target, self.threads = target, threads
        if exact or not self._fixed(matrix):
            self._lossless(matrix)

    def _fixed(self, matrix: NDArray[np.float32]) -> bool:
        """Whether the matrix can be rounded to 24 bits a weight."""
        self.parts = parts = Parts(matrix.shape[0], matrix.shape[1], self.target.vector, "fixed")
        largest, squares = np.empty((2, parts.vectors * parts.v), np.float32)
        _run("survey", parts, self.target, self.threads, weights=matrix, bases=largest, squares=squares)
        above = np.where(largest > 0, np.frexp(largest)[1], 0)  # of the next power of two above the largest
        self.bases = np.ldexp(np.float32(1), above - 31).view(np.int32)
        self.counts, self.rare = np.zeros(parts.vectors, np.int64), np.zeros(0, np.int64)
        errors = np.where(largest > 0, np.ldexp(1.0, 2 * (above - 23)) / 12 * parts.channels, 0)
        self.possible = bool(
            np.isfinite(squares).all()
            and (above >= fixed.LOWEST).all()
            and (errors <= MOST_ROUNDED**2 * squares.astype(float)).all()
        )
        return self.possible

    def _lossless(self, matrix: NDArray[np.float32]) -> None:
        self.parts = Parts(matrix.shape[0], matrix.shape[1], self.target.vector, "lossless")
        target, threads = self.target, self.threads
        room = max(64, int(self.parts.channels * self.parts.v * _ROOM))
        self.bases = np.empty(self.parts.vectors * self.parts.v, np.int32)
        self.counts = np.zeros(self.parts.vectors, np.int64)
        listed = np.empty((self.parts.vectors, room), np.int64)  # what is not written takes no memory
        _run("survey", self.parts, target, threads, weights=matrix, bases=self.bases, counts=self.counts, rare=listed)
        self.possible = self.counts.max() <= room and self.counts.sum() <= MOST_RARE * matrix.size
        """Whether packing is worth it: few rare weights, and neither an infinity nor NaN."""
        lists = zip(listed, self.counts, strict=True) if self.possible else ()
        self.rare = np.concatenate([np.zeros(0, np.int64), *(own[:count] for own, count in lists)])

    @property
    def nbytes(self) -> int:
        """Of the packed matrix."""
        return self.parts.rare + self.rare.nbytes

    def pack(self, matrix: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The matrix that was surveyed, packed beside where it lies."""
        packed = zeroed(self.nbytes)
        self._words(np.ascontiguousarray(matrix, np.float32), packed, self.parts.words)
        return self._whole(packed)

    def fits_in_place(self, nbytes: int) -> bool:
        """Whether the packed matrix can be written over the plain one, in so much memory."""
        parts = self.parts
        plain = parts.channels * parts.v
        return parts.words <= plain and max(self.nbytes, 4 * ((parts.vectors - 1) * plain + parts.words)) <= nbytes

    def pack_in_place(self, memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The matrix that was surveyed, packed in the memory that it lies in, from the first byte on."""
        parts = self.parts
        plain = parts.channels * parts.v
        matrix = memory[: 4 * parts.rows * parts.channels].view(np.float32)
        self._words(matrix, memory, plain)  # those of each vector of rows where its weights began
        for vector in range(1, parts.vectors):
            to, start = (memory.ctypes.data + 4 * vector * floats for floats in (parts.words, plain))
            ctypes.memmove(to, start, 4 * parts.words)
        return self._whole(memory)

    def _words(self, matrix: NDArray[np.float32], memory: NDArray[np.uint8], stride: int) -> None:
        scratch = aligned_empty(self.threads * self.parts.words)
        arrays: dict[str, NDArray[Any]] = {"weights": matrix, "words": memory, "bases": self.bases, "scratch": scratch}
        _run("pack", self.parts, self.target, self.threads, stride, **arrays)

    def _whole(self, memory: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The memory, whose words are in their place, with what else belongs to the matrix."""
        parts, starts = self.parts, np.zeros(self.parts.vectors + 1, np.int64)
        np.cumsum(self.counts, out=starts[1:])
        memory[4 * parts.vectors * parts.words : self.nbytes] = 0
        for at, array in ((parts.bases, self.bases), (parts.starts, starts), (parts.rare, self.rare)):
            memory[at : at + array.nbytes] = array.view(np.uint8)
        return memory[: self.nbytes]


def unpack(packed: NDArray[np.uint8], parts: Parts, target: Target, threads: int) -> NDArray[np.float32]:
    """The matrix, to the last bit, or as it was rounded."""
    matrix = np.empty((parts.rows, parts.channels), np.float32)
    bases = packed[parts.bases :]
    _run("unpack", parts, target, threads, parts.words, weights=matrix, words=packed, bases=bases)
    starts = packed[parts.starts :][: 8 * (parts.vectors + 1)].view(np.int64)
    listed = packed[parts.rare :].view(np.uint32).reshape(-1, 2)
    places = listed[:, 0].astype(np.int64)
    rows = np.repeat(np.arange(parts.vectors), np.diff(starts)) * parts.v + places % parts.v
    real = rows < parts.rows
    matrix.view(np.uint32)[rows[real], places[real] // parts.v] = listed[real, 1]
    return matrix


def _run(what: str, parts: Parts, target: Target, threads: int, stride: int = 0, **arrays: NDArray[Any]) -> None:
    """Run a kernel by so many threads."""
    tile = narrow.Narrow(what, parts.coding)
    values = dict.fromkeys(narrow.ARGUMENTS.pointers, 0) | {name: array.ctypes.data for name, array in arrays.items()}
    values |= {"rows": parts.rows, "channels": parts.channels, "blocks": parts.blocks, "stride": stride}
    values["room"] = arrays["rare"].shape[1] if "rare" in arrays else 0
    arguments = narrow.ARGUMENTS.pack(values)
    address = compile_kernel(tile.key, lambda: narrow.emit(tile, target), target)
    team_of(threads).run_one(address, arguments, parts.vectors)
