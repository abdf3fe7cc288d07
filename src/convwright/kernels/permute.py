"""Strided copies of planar arrays (transpose, slice, flip, expand, pad, concatenate), and filling with a constant.

An array of up to six axes is copied element by element, ``y[sum i * y_stride] = x[sum i * x_stride]``. Strides may be
zero or negative on the side of ``x``. The plan describes both sides as NumPy would (a transpose, a slice or an expanded
array is a view with other strides); ``strided_copy`` drops and merges axes and chooses the loop. Padding is a fill,
then a copy into the inside; concatenation is one copy an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from convwright.codegen.lang import F32, I64, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.spans import copy, fill, transpose

ARGUMENTS = Arguments(
    "x y",
    # work: item -> (n0, n1, n2, n3, chunk of n4, chunk of n5)
    "n1 n2 n3 n4 n5 row_chunks chunk_rows col_chunks chunk_cols x0 x1 x2 x3 x4 x5 y0 y1 y2 y3 y4 y5",
)
FILL_ARGUMENTS = Arguments("y", "bits words chunk_words")  # item: a chunk; words are of four bytes

RANK = 6
ITEM_ELEMENTS = 4096  # about as many elements are one work item


@dataclass(frozen=True)
class StridedCopy:
    """What is baked into one copy; ``strided_copy`` makes it.

    kind: "row" (both sides contiguous along the last axis), "repeat" (one value along it), "transpose" (``x``
    contiguous along the axis before the last, ``y`` along the last) or "scalar".
    itemsize: bytes of an element, 4 or 8.
    rows: length of the axis before the last where it is shorter than a vector ("transpose"), else 0.
    narrow: the last axis is shorter than a vector ("transpose").
    """

    kind: str
    itemsize: int = 4
    rows: int = 0
    narrow: bool = False

    @property
    def key(self) -> str:
        return f"permute-{self!r}"

    def name(self, target: Target) -> str:
        return f"{'f32' if self.itemsize == 4 else 'i64'}-{self.kind}-{self.rows or target.vector}-{target.name}"


@dataclass(frozen=True)
class Fill:
    """Nothing is baked into this kernel."""

    @property
    def key(self) -> str:
        return f"fill-{self!r}"

    @property
    def arguments(self) -> Arguments:
        return FILL_ARGUMENTS

    def name(self, target: Target) -> str:
        return f"f32-fill-{target.vector}-{target.name}"


def strided_copy(
    shape: Sequence[int], x_strides: Sequence[int], y_strides: Sequence[int], target: Target, itemsize: int = 4
) -> tuple[StridedCopy, dict[str, int], int]:
    """The kernel, its arguments but for the pointers, and the number of work items.

    ``shape`` is that of what is copied; strides are in elements, those of ``y`` positive. No size may be 0. Pointers
    are to the element of index 0 along every axis, so a flipped axis starts at its end.

    Raises ValueError where more than six axes remain after merging.
    """
    axes = [(n, sx, sy) for n, sx, sy in zip(shape, x_strides, y_strides, strict=True) if n != 1]
    axes.sort(key=lambda axis: -axis[2])
    merged: list[tuple[int, int, int]] = []
    for n, sx, sy in axes:
        if merged and merged[-1][1] == sx * n and merged[-1][2] == sy * n:
            merged[-1] = (merged[-1][0] * n, sx, sy)
        else:
            merged.append((n, sx, sy))
    if len(merged) > RANK:
        raise ValueError(
            f"a copy of {len(merged)} axes, sizes {list(shape)}, strides {list(x_strides)}: at most {RANK}"
        )
    merged = [(1, 0, 0)] * (RANK - len(merged)) + merged
    *_, (last, last_x, last_y) = merged
    crossing = next((axis for axis in merged[:-1] if axis[1] == 1), None)
    if last == 1 or (last_x, last_y) == (1, 1):
        words = itemsize // 4  # contiguous elements of any size are so many words
        merged = [(n, sx * words, sy * words) for n, sx, sy in merged[:-1]] + [(last * words, 1, 1)]
        config = StridedCopy("row")
    elif itemsize == 4 and (last_x, last_y) == (0, 1):
        config = StridedCopy("repeat")
    elif itemsize == 4 and last_y == 1 and crossing:
        merged.remove(crossing)
        merged.insert(RANK - 2, crossing)
        config = StridedCopy("transpose", 4, crossing[0] if crossing[0] < target.vector else 0, last < target.vector)
    else:
        config = StridedCopy("scalar", itemsize)
    sizes = [n for n, _, _ in merged]
    values = {f"n{axis}": sizes[axis] for axis in range(1, RANK)}
    values |= {f"x{axis}": merged[axis][1] for axis in range(RANK)} | {
        f"y{axis}": merged[axis][2] for axis in range(RANK)
    }
    step = 64 if config.kind == "transpose" else 1
    chunk_cols = min(sizes[5], 256 if config.kind == "transpose" else ITEM_ELEMENTS)
    chunk_rows = max(1, ITEM_ELEMENTS // chunk_cols // step) * step
    values |= {"chunk_cols": chunk_cols, "col_chunks": -(-sizes[5] // chunk_cols)}
    values |= {"chunk_rows": chunk_rows, "row_chunks": -(-sizes[4] // chunk_rows)}
    items = int(np.prod(sizes[:4])) * values["row_chunks"] * values["col_chunks"]
    return config, values, items


def fill_arguments(value: np.generic, count: int) -> tuple[dict[str, int], int]:
    """The arguments of ``emit_fill`` but for the pointer, and the work items: ``count`` times a 4 or 8-byte value."""
    data = value.tobytes()
    words = len(data) // 4 * count
    bits = int.from_bytes(data * (8 // len(data)), "little", signed=True)
    return {"bits": bits, "words": words, "chunk_words": ITEM_ELEMENTS}, -(-words // ITEM_ELEMENTS)


def emit(config: StridedCopy | Fill, target: Target) -> ir.Module:
    """The copy's module, or the fill's."""
    if isinstance(config, Fill):
        return emit_fill(config, target)
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    with k.loop(k.begin, k.end) as item:
        col_chunk, rest = item % a.col_chunks, item // a.col_chunks
        row_chunk, rest = rest % a.row_chunks, rest // a.row_chunks
        x, y = a.x, a.y
        for axis in (3, 2, 1, 0):
            index = rest % getattr(a, f"n{axis}") if axis else rest
            rest = rest // getattr(a, f"n{axis}") if axis else rest
            x = _advance(k, config, x, index * getattr(a, f"x{axis}"))
            y = _advance(k, config, y, index * getattr(a, f"y{axis}"))
        rows = row_chunk * a.chunk_rows, k.minimum((row_chunk + 1) * a.chunk_rows, a.n4)
        cols = col_chunk * a.chunk_cols, k.minimum((col_chunk + 1) * a.chunk_cols, a.n5)
        if config.kind == "transpose":
            _transpose(k, a, config, x, y, rows, cols)
        else:
            with k.loop(*rows) as row:
                _row(k, a, config, x, y, row, cols)
    return k.finish()


def _advance(k: Kernel, config: StridedCopy, pointer: ir.Value, elements: Integer) -> ir.Value:
    return k.advance(pointer, elements * (config.itemsize // 4))


def _row(
    k: Kernel, a: Reader, config: StridedCopy, x: ir.Value, y: ir.Value, row: Integer, cols: tuple[Integer, Integer]
) -> None:
    """Elements ``cols[0] <= col < cols[1]`` of one row."""
    x, y = _advance(k, config, x, row * a.x4), _advance(k, config, y, row * a.y4)
    first, last = cols
    if config.kind == "row":
        copy(k, k.advance(x, first), k.advance(y, first), last - first)
    elif config.kind == "repeat":
        fill(k, k.broadcast(k.load_scalar(x)), y, first, last)
    else:
        kind = F32 if config.itemsize == 4 else I64
        with k.loop(first, last) as col:
            value = k.b.load(_advance(k, config, x, col * a.x5), typ=kind, align=4)
            k.b.store(value, _advance(k, config, y, col * a.y5), align=4)


def _transpose(
    k: Kernel,
    a: Reader,
    config: StridedCopy,
    x: ir.Value,
    y: ir.Value,
    rows: tuple[Integer, Integer],
    cols: tuple[Integer, Integer],
) -> None:
    """Tiles of ``v x v``; those at the end of an axis are moved back inside and store some elements twice."""
    lanes = config.rows or k.v
    x_mask = k.mask(0, lanes) if config.rows else None
    y_mask = k.mask(0, a.n5) if config.narrow else None
    with k.loop(*rows, k.v) as row, k.loop(*cols, k.v) as col:
        top = row if config.rows else k.minimum(row, a.n4 - k.v)
        left = col if config.narrow else k.minimum(col, a.n5 - k.v)
        x_tile, y_tile = k.advance(x, top), k.advance(y, left)
        vectors = []
        for step in range(k.v):
            at = k.minimum(step, a.n5 - 1) if config.narrow else left + step
            vectors.append(k.load(x_tile, at * a.x5, x_mask))
        for lane, vector in enumerate(transpose(k, vectors)[:lanes]):
            k.store(vector, y_tile, (top + lane) * a.y4, y_mask)


def emit_fill(config: Fill, target: Target) -> ir.Module:
    """The module of a constant fill."""
    k = Kernel(target)
    a = FILL_ARGUMENTS.read(k)
    pairs = ir.VectorType(I64, k.v // 2)
    first = k.b.insert_element(ir.Constant(pairs, ir.Undefined), a.bits.value, ir.Constant(I64, 0))
    value = k.b.bitcast(k.shuffle(first, first, [0] * (k.v // 2)), k.vector_type)
    with k.loop(k.begin, k.end) as item:
        start = item * a.chunk_words
        fill(k, value, a.y, start, k.minimum(start + a.chunk_words, a.words))
    return k.finish()
