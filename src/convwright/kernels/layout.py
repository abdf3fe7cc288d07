"""Between planar (NCHW) and channel-blocked activations, and from a planar tensor to a zero-padded one.

A tile is ``v`` pixels of a row by ``v`` channels, transposed in registers. Tiles at the right edge are moved back
inside and store some pixels twice; rows shorter than a vector are read or written under a mask. Rows that follow each
other without a gap on both sides may be joined by the plan into one (``rows = 1, cols = H * W``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.spans import copy, fill, transpose

ARGUMENTS = Arguments(
    # places: what to add for the plane of each channel, where they are in an order of their own
    "x y places",
    # work: item -> (image, chunk of rows, plane); a plane is a block of channels, or a channel where both are planar
    "planes chunks chunk_rows rows cols x_image x_plane x_row y_image y_plane y_row top bottom left right",
)


@dataclass(frozen=True)
class Layout:
    """What is baked into one layout kernel; ``conversion`` makes it.

    kind: "pack" (planar to blocked), "unpack" (blocked to planar) or "pad" (planar to planar with a border of zeros).
    whole: some block has all its channels.
    tail: channels of the last block where it is partial, else 0.
    narrow: rows are shorter than a vector.
    placed: the planar side's plane of a channel is one that a table tells, not the next one.
    """

    kind: str
    whole: bool = True
    tail: int = 0
    narrow: bool = False
    placed: bool = False

    @property
    def key(self) -> str:
        return f"layout-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-{self.kind}-{self.tail or target.vector}x{target.vector}-{target.name}"


def conversion(kind: str, channels: int, cols: int, target: Target, placed: bool = False) -> Layout:
    """The kernel that packs or unpacks ``channels`` channels in rows of ``cols`` pixels."""
    if kind == "pad":
        return Layout(kind)
    return Layout(kind, channels >= target.vector, channels % target.vector, cols < target.vector, placed)


def emit(layout: Layout, target: Target) -> ir.Module:
    """The kernel's module.

    The planar side's ``plane`` stride is a channel's, the blocked side's a block's. ``top bottom left right`` are read
    by "pad" alone, whose rows of work include the border: chunks cover ``top + rows + bottom``.
    """
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    with k.loop(k.begin, k.end) as item:
        image, chunk, plane = item.unravel(a.chunks, a.planes)
        planar = 0 if layout.placed else plane * k.v
        x_plane = planar if layout.kind == "pack" else plane
        y_plane = planar if layout.kind == "unpack" else plane
        x = k.advance(a.x, image * a.x_image + x_plane * a.x_plane)
        y = k.advance(a.y, image * a.y_image + y_plane * a.y_plane)
        rows = a.top + a.rows + a.bottom if layout.kind == "pad" else a.rows
        first = chunk * a.chunk_rows
        last = k.minimum(first + a.chunk_rows, rows)
        if layout.kind == "pad":
            with k.loop(first, last) as row:
                _pad_row(k, a, x, y, row - a.top)
        elif layout.whole and layout.tail:
            with k.either((plane + 1).equals(a.planes)) as (partial, full):
                with partial:
                    _convert_rows(k, a, layout, x, y, first, last, layout.tail, plane)
                with full:
                    _convert_rows(k, a, layout, x, y, first, last, k.v, plane)
        else:
            _convert_rows(k, a, layout, x, y, first, last, layout.tail or k.v, plane)
    return k.finish()


def _pad_row(k: Kernel, a: Reader, x: ir.Value, y: ir.Value, row: Int) -> None:
    """One row of the padded buffer; ``row`` counts from the first row of the image."""
    zero = k.splat(0.0)
    y = k.advance(y, row * a.y_row - a.left)
    inside = k.b.and_(row >= 0, row < a.rows)
    with k.either(inside) as (image, border):
        with image:
            fill(k, zero, y, 0, a.left)
            copy(k, k.advance(x, row * a.x_row), k.advance(y, a.left), a.cols)
            fill(k, zero, k.advance(y, a.left + a.cols), 0, a.right)
        with border:
            fill(k, zero, y, 0, a.left + a.cols + a.right)


def _convert_rows(
    k: Kernel, a: Reader, layout: Layout, x: ir.Value, y: ir.Value, first: Integer, last: Integer, lanes: int,
    plane: Int,
) -> None:  # fmt: skip
    """Rows ``first <= row < last`` of block ``plane``, which has ``lanes`` channels."""

    def tile(x: ir.Value, y: ir.Value, left: Integer, cols: Int | None) -> None:
        packs = layout.kind == "pack"
        if layout.placed:
            planes = [k.load_int(a.places, plane * k.v + lane) for lane in range(lanes)]
        else:
            planes = [(a.x_plane if packs else a.y_plane) * lane for lane in range(lanes)]
        (_pack_tile if packs else _unpack_tile)(k, x, y, left, planes, cols)

    with k.loop(first, last) as row:
        x_row, y_row = k.advance(x, row * a.x_row), k.advance(y, row * a.y_row)
        if layout.narrow:
            tile(x_row, y_row, 0, a.cols)
        else:
            with k.loop(0, a.cols, k.v) as col:
                tile(x_row, y_row, k.minimum(col, a.cols - k.v), None)


def _pack_tile(k: Kernel, x: ir.Value, y: ir.Value, left: Integer, planes: Sequence[Int], cols: Int | None) -> None:
    """``cols`` pixels (None: ``v``) from ``left`` on: rows of channels become pixels; lanes past ``planes`` are 0."""
    mask = None if cols is None else k.mask(0, cols)
    rows = [k.load(x, plane + left, mask) for plane in planes]
    rows += [k.splat(0.0)] * (k.v - len(planes))
    for pixel, vector in enumerate(transpose(k, rows)):
        place = left * k.v + pixel * k.v
        if cols is None or pixel == 0:
            k.store(vector, y, place)
        else:
            with k.when(k.b.not_(cols < pixel + 1)):
                k.store(vector, y, place)


def _unpack_tile(k: Kernel, x: ir.Value, y: ir.Value, left: Integer, planes: Sequence[Int], cols: Int | None) -> None:
    """The way back, channels to ``planes``: pixels past ``cols`` are read from the last one and not stored."""
    mask = None if cols is None else k.mask(0, cols)
    pixels = []
    for pixel in range(k.v):
        at = left + pixel if cols is None else k.minimum(pixel, cols - 1)
        pixels.append(k.load(x, at * k.v))
    for place, vector in zip(planes, transpose(k, pixels), strict=False):
        k.store(vector, y, place + left, mask)
