"""Matrices of float32 weights in fewer bits, as fully connected layers read them: packing and unpacking.

Two codings: `kernels.lossless`, 28 bits a weight, and `kernels.fixed`, 24 bits, which rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llvmlite import ir

from convwright.codegen.lang import Int, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels import fixed, lossless
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.spans import copy, transpose


class Coding(Protocol):
    """A module: ``BLOCK`` channels of a vector of rows are coded together in ``WORDS`` vectors of words of 32 bits."""

    BLOCK: int
    WORDS: int
    BITS: int

    def encode(self, k: Kernel, weights: list[ir.Value], base: ir.Value) -> list[ir.Value]: ...

    def decode(self, k: Kernel, words: list[ir.Value], base: ir.Value, count: int = ...) -> list[ir.Value]: ...

    def survey(self, k: Kernel, a: Reader, item: Int, rows: list[ir.Value]) -> None: ...


CODINGS: dict[str, Coding] = {"lossless": lossless, "fixed": fixed}

ARGUMENTS = Arguments("weights words bases squares counts rare scratch", "rows channels blocks room stride")
"""Of all kernels here, whose work items are vectors of rows.

- weights ``[rows][channels]``; bases ``[vector of rows][v]``, 32 bits each, what a row's weights are coded relative to;
- words ``[vector of rows][block][WORDS][v]``, the vectors of rows ``stride`` floats apart;
- squares ``[vector of rows][v]``: sums of squares ("fixed");
- counts ``[vector of rows]`` of rare weights, int64; rare ``[vector of rows][room]``, the first ``room`` of each,
  int64: the weight's bits above 32 bits that are channel * v + lane ("lossless");
- scratch: room for one vector of rows' words for each thread.
"""


@dataclass(frozen=True)
class Narrow:
    """What a kernel does.

    - "survey": find what packing needs to know. Lanes beyond the last row repeat it.
    - "pack": make the words, of a vector of rows at a time, so that they may lie where its weights begin.
    - "unpack": from words and bases to weights; rare ones are left out.
    """

    what: str
    coding: str

    @property
    def key(self) -> str:
        return f"narrow-{self.what}-{self.coding}"


def emit(tile: Narrow, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    coding = CODINGS[tile.coding]
    with k.loop(k.begin, k.end) as item:
        if tile.what == "survey":
            coding.survey(k, a, item, _rows(k, a, item))
        else:
            {"pack": _pack, "unpack": _unpack}[tile.what](k, a, item, coding)
    return k.finish()


def _rows(k: Kernel, a: Reader, item: Int) -> list[ir.Value]:
    last = a.rows - 1
    return [k.advance(a.weights, k.minimum(item * k.v + lane, last) * a.channels) for lane in range(k.v)]


def _pack(k: Kernel, a: Reader, item: Int, coding: Coding) -> None:
    rows, base = _rows(k, a, item), k.load_ints(a.bases, item * k.v)
    size = a.blocks * (coding.WORDS * k.v)
    scratch = k.advance(a.scratch, k.thread * size)

    def block(first: Int, load: Callable[[ir.Value, Integer], ir.Value]) -> None:
        columns = _columns(k, rows, first, load, max(k.v, coding.BLOCK))
        for at in range(0, len(columns), coding.BLOCK):
            with k.when(first + at < a.channels):
                to = k.advance(scratch, (first + at) // coding.BLOCK * (coding.WORDS * k.v))
                for place, word in enumerate(coding.encode(k, columns[at : at + coding.BLOCK], base)):
                    k.store(k.b.bitcast(word, k.vector_type), to, place * k.v)

    _over(k, a, coding, block)
    copy(k, scratch, k.advance(a.words, item * a.stride), size)


def _over(
    k: Kernel, a: Reader, coding: Coding, body: Callable[[Int, Callable[[ir.Value, Integer], ir.Value]], None]
) -> None:
    """``body(first channel, load)`` for the channels of whole blocks and of whole vectors at a time; ``load`` reads a
    vector of a row and gives zeros beyond the last channel."""
    step = max(k.v, coding.BLOCK)
    whole = a.channels - a.channels % step
    with k.loop(0, whole, step) as first:
        body(first, lambda row, at: k.load(row, at))
    with k.when(whole < a.channels):
        body(whole, lambda row, at: k.load(row, at, k.mask(0, a.channels - at)))


def _columns(
    k: Kernel, rows: list[ir.Value], first: Int, load: Callable[[ir.Value, Integer], ir.Value], count: int
) -> list[ir.Value]:
    """The bits of ``count`` of the rows' weights, channel by channel from ``first`` on, rows as lanes."""
    columns = []
    for at in range(0, count, k.v):
        columns += transpose(k, [load(row, first + at) for row in rows])
    return [k.b.bitcast(column, k.int_vector_type) for column in columns]


def _unpack(k: Kernel, a: Reader, item: Int, coding: Coding) -> None:
    words, base = k.advance(a.words, item * a.stride), k.load_ints(a.bases, item * k.v)
    first_row = item * k.v

    def block(first: Int, mask: Callable[[Integer], ir.Value | None]) -> None:
        vectors: list[ir.Value] = []
        for at in range(0, max(k.v, coding.BLOCK), coding.BLOCK):
            number = k.minimum((first + at) // coding.BLOCK, a.blocks - 1)
            coded = k.advance(words, number * (coding.WORDS * k.v))
            vectors += coding.decode(k, [k.load_ints(coded, place * k.v) for place in range(coding.WORDS)], base)
        for at in range(0, len(vectors), k.v):
            for lane, row in enumerate(transpose(k, vectors[at : at + k.v])):
                with k.when(first_row + lane < a.rows):
                    k.store(row, k.advance(a.weights, (first_row + lane) * a.channels), first + at, mask(first + at))

    step = max(k.v, coding.BLOCK)
    whole = a.channels - a.channels % step
    with k.loop(0, whole, step) as first:
        block(first, lambda at: None)
    with k.when(whole < a.channels):
        block(whole, lambda at: k.mask(0, a.channels - at))
