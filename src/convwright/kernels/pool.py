"""Max and average pooling on channel-blocked activations, over windows.

A window is pooled in two steps: down its columns, then along the row of columns, so that neighbouring output pixels
share the columns they overlap in. Windows are clipped to the input: rows by the bounds of a loop, which costs nothing;
columns only at the left and right edge, one pixel at a time. Padding is never read.

The largest value of a window with a NaN in it is NaN. One compare for every two values watches for NaN in a tile, and a
tile that has one is done again pixel by pixel with a maximum that keeps NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import F32, Int, Integer, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader

ARGUMENTS = Arguments(
    "x y",
    # item -> (image, chunk of chunk_rows output rows, block), the block fastest
    "blocks chunks chunk_rows in_rows in_cols out_rows out_cols x_image x_block x_row y_image y_block y_row "
    "taps_high taps_wide stride_high stride_wide dilation_high dilation_wide pad_top pad_bottom pad_left pad_right",
)

# Of volumes: item -> (output slice, chunk, block). The images of y are slices; x is the whole volume.
DEEP_ARGUMENTS = Arguments(
    "x y",
    " ".join(ARGUMENTS.names[2:]) + " in_slices x_slice taps_deep stride_deep dilation_deep pad_front pad_behind",
)

RESERVED_REGISTERS = 4  # what is being loaded, and constants
WATCH_REGISTERS = 3  # what watches for NaN, where there are no mask registers
WIDEST_TILE = 8


@dataclass(frozen=True)
class Pool:
    """What is baked into one pooling kernel.

    maximum: the largest value of each window; else the mean.
    taps_wide, stride_wide, dilation_wide: of a row of the window; all 0 to read them from the arguments.
    count_padding: the mean counts padding (as zeros), though never what lies beyond it (ceil_mode).
    deep: windows of three axes.
    """

    maximum: bool
    taps_wide: int = 0
    stride_wide: int = 0
    dilation_wide: int = 0
    count_padding: bool = False
    deep: bool = False

    @property
    def key(self) -> str:
        return f"pool-{self!r}"

    @property
    def arguments(self) -> Arguments:
        return DEEP_ARGUMENTS if self.deep else ARGUMENTS

    def name(self, target: Target) -> str:
        return f"f32-{family(self.maximum)}-{max(1, self.taps_wide)}x{tile_cols(self, target)}-{target.name}"


def pool_of(
    maximum: bool,
    taps_wide: int,
    stride_wide: int,
    dilation_wide: int,
    count_padding: bool,
    target: Target,
    deep: bool = False,
) -> Pool:
    """The kernel for these windows: specialised on a row of them where its columns fit in registers."""
    count_padding = count_padding and not maximum
    tile = Pool(maximum, taps_wide, stride_wide, dilation_wide, count_padding, deep)
    return tile if tile_cols(tile, target) > 1 else Pool(maximum, count_padding=count_padding, deep=deep)


def tile_cols(tile: Pool, target: Target) -> int:
    """Output pixels done at once; 1 where not even two fit in registers."""
    if not tile.taps_wide:
        return 4
    widths = range(WIDEST_TILE, 1, -1)
    room = target.registers - RESERVED_REGISTERS
    if tile.maximum and not target.has_masks:
        room -= WATCH_REGISTERS
    return next((width for width in widths if len(_columns(tile, width)) <= room), 1)


def emit(tile: Pool, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    _Windows(k, tile, tile.arguments.read(k)).emit()
    return k.finish()


def family(maximum: bool) -> str:
    return "max_pool" if maximum else "average_pool"


def _columns(tile: Pool, width: int) -> list[int]:
    """The input columns, from the tile's first on, in which ``width`` neighbouring windows have taps."""
    taps = range(tile.taps_wide)
    return sorted({pixel * tile.stride_wide + tap * tile.dilation_wide for pixel in range(width) for tap in taps})


class Watch:
    """Notices NaN, two vectors a compare."""

    def __init__(self, k: Kernel):
        self.k = k
        kind = k.mask_type if k.target.has_masks else k.int_vector_type
        self.ordered = [k.variable(ir.Constant(kind, [-1] * k.v)) for _ in range(2)]
        self.turn = 0

    def look(self, vectors: list[ir.Value]) -> None:
        k, self.turn = self.k, 1 - self.turn
        for place in range(0, len(vectors), 2):
            ordered = k.b.fcmp_ordered("ord", vectors[place], vectors[min(place + 1, len(vectors) - 1)])
            if not k.target.has_masks:
                ordered = k.b.sext(ordered, k.int_vector_type)
            chain = self.ordered[(self.turn + place // 2) % 2]
            chain.set(k.b.and_(chain.get(), ordered))

    def seen(self) -> ir.Value:
        """The lanes that have seen NaN."""
        k = self.k
        both = k.b.and_(self.ordered[0].get(), self.ordered[1].get())
        return k.b.icmp_signed("==", both, ir.Constant(both.type, [0] * k.v))

    def seen_anywhere(self) -> ir.Value:
        bits = self.k.b.bitcast(self.seen(), ir.IntType(self.k.v))
        return self.k.b.icmp_signed("!=", bits, ir.Constant(bits.type, 0))


def greater(k: Kernel, a: ir.Value, b: ir.Value) -> ir.Value:
    """The larger; NaN where either is."""
    return k.select(k.b.fcmp_unordered("uno", b, b), b, k.max(a, b))


def _ceil_divide(k: Kernel, a: Int, b: Integer) -> Integer:
    """Quotient rounded up; 0 where ``a`` is negative."""
    return (_larger(k, a, 0) + (b - 1)) // b


def _larger(k: Kernel, a: Integer, b: Integer) -> Int:
    return Int(k, k.int_value(k.maximum(a, b)))


def _smaller(k: Kernel, a: Integer, b: Integer) -> Int:
    return Int(k, k.int_value(k.minimum(a, b)))


class _Windows:
    """The emitter of one windowed pooling kernel."""

    def __init__(self, k: Kernel, tile: Pool, a: Reader):
        self.k, self.tile, self.a = k, tile, a
        baked = bool(tile.taps_wide)
        self.taps: Integer = tile.taps_wide if baked else a.taps_wide
        self.stride: Integer = tile.stride_wide if baked else a.stride_wide
        self.dilation: Integer = tile.dilation_wide if baked else a.dilation_wide
        self.start = k.splat(-math.inf if tile.maximum else 0.0)
        self.combine: Callable[[Kernel, ir.Value, ir.Value], ir.Value]
        self.combine = greater if tile.maximum else Kernel.add

    def emit(self) -> None:
        k, a = self.k, self.a
        with k.loop(k.begin, k.end) as item:
            image, chunk, block = item.unravel(a.chunks, a.blocks)
            if self.tile.deep:
                front, self.slices, counted_slices = self.clip(
                    image * a.stride_deep - a.pad_front, a.in_slices, a.pad_behind, a.taps_deep, a.dilation_deep
                )
                self.x = k.advance(a.x, block * a.x_block + front * a.x_slice)
                self.slice_step = a.dilation_deep * a.x_slice
            else:
                self.x = k.advance(a.x, image * a.x_image + block * a.x_block)
            y = k.advance(a.y, image * a.y_image + block * a.y_block)
            # Output columns begin <= column < end have windows wholly inside the input.
            span = (self.taps - 1) * self.dilation + 1
            begin = _smaller(k, _ceil_divide(k, a.pad_left, self.stride), a.out_cols)
            inside = _ceil_divide(k, a.in_cols + a.pad_left - span + 1, self.stride)
            end = k.maximum(begin, k.minimum(inside, a.out_cols))
            first = chunk * a.chunk_rows
            with k.loop(first, k.minimum(first + a.chunk_rows, a.out_rows)) as row:
                self.y = k.advance(y, row * a.y_row)
                self.top, self.rows, self.counted_rows = self.clip(
                    row * a.stride_high - a.pad_top, a.in_rows, a.pad_bottom, a.taps_high, a.dilation_high
                )
                if self.tile.deep:
                    self.counted_rows = counted_slices * self.counted_rows
                self.row_step = a.dilation_high * a.x_row
                end_here = k.choose(self.rows < 1, begin, end)
                with k.loop(0, begin + a.out_cols - end_here) as edge:
                    self.pixel(k.choose(edge < begin, edge, edge - begin + end_here))
                self.inside(begin, end_here)

    def clip(
        self, start: Int, size: Int, padding: Int, taps: Integer, dilation: Integer
    ) -> tuple[Int, Integer, Integer]:
        """Of the taps of a window that begins at ``start``: the first position inside, how many are, how many count."""
        k = self.k
        skipped = _ceil_divide(k, 0 - start, dilation)
        inside = _larger(k, _smaller(k, _ceil_divide(k, size - start, dilation), taps) - skipped, 0)
        counted = inside
        if self.tile.count_padding:
            counted = _smaller(k, _ceil_divide(k, size + padding - start, dilation), taps)
        return start + skipped * dilation, inside, counted

    @contextmanager
    def each_row(self, corner: ir.Value) -> Iterator[ir.Value]:
        """The rows of a window that are inside the input, from that of its corner on."""
        k = self.k
        if self.tile.deep:
            with k.loop(0, self.slices) as tap_slice, k.loop(0, self.rows) as tap_row:
                yield k.advance(corner, tap_slice * self.slice_step + tap_row * self.row_step)
        else:
            with k.loop(0, self.rows) as tap_row:
                yield k.advance(corner, tap_row * self.row_step)

    def divide(self, total: ir.Value, count: Integer) -> ir.Value:
        number = self.k.b.sitofp(self.k.int_value(count), F32)
        return self.k.div(total, self.k.broadcast(number))

    def pixel(self, col: Int) -> None:
        """One output pixel of any window."""
        k, a = self.k, self.a
        left, cols, counted = self.clip(
            col * self.stride - a.pad_left, a.in_cols, a.pad_right, self.taps, self.dilation
        )
        value = k.variable(self.start)
        corner = k.advance(self.x, self.top * a.x_row + left * k.v)
        with self.each_row(corner) as source, k.loop(0, cols) as tap_col:
            value.set(self.combine(k, value.get(), k.load(source, tap_col * self.dilation * k.v)))
        result = value.get()
        if not self.tile.maximum:
            result = self.divide(result, counted * self.counted_rows)
        k.store(result, self.y, col * k.v)

    def inside(self, begin: Int, end: Int) -> None:
        """The output pixels whose windows have no column outside the input: tiles, the last moved back inside."""
        k, width = self.k, tile_cols(self.tile, self.k.target)
        scale = None
        if not self.tile.maximum:
            scale = self.divide(k.splat(1.0), self.counted_rows * self.taps)
        do_tile = self.baked_tile if self.tile.taps_wide else self.plain_tile

        def tiles(width: int) -> None:
            with k.loop(begin, end, width) as col:
                do_tile(_smaller(k, col, end - width), width, scale)

        with k.either(end - begin >= width) as (then, otherwise):
            with then:
                tiles(width)
            with otherwise:
                narrow = max(1, width // 4)
                with k.either(end - begin >= narrow) as (then, otherwise):
                    with then:
                        tiles(narrow)
                    with otherwise, k.loop(begin, end) as col:
                        self.pixel(col)

    def baked_tile(self, col: Int, width: int, scale: ir.Value | None) -> None:
        k, tile = self.k, self.tile
        columns = _columns(tile, width)
        source = k.advance(self.x, self.top * self.a.x_row + (col * tile.stride_wide - self.a.pad_left) * k.v)
        watch = Watch(k) if tile.maximum else None

        sums: dict[int, Variable] = {}

        def add_row(row: ir.Value, first: bool) -> None:
            # Two columns at a time, as the watch has them: all at once would be more vectors than registers.
            for pair in (columns[place : place + 2] for place in range(0, len(columns), 2)):
                vectors = [k.load(row, column * k.v) for column in pair]
                if watch:
                    watch.look(vectors)
                for column, vector in zip(pair, vectors, strict=True):
                    if first:
                        sums[column] = k.variable(vector)
                    else:
                        sums[column].set(combine(k, sums[column].get(), vector))

        combine = Kernel.max if tile.maximum else Kernel.add
        if tile.deep:
            sums |= {column: k.variable(self.start) for column in columns}
            with self.each_row(source) as row:
                add_row(row, False)
        else:
            add_row(source, True)
            with k.loop(1, self.rows) as tap_row:
                add_row(k.advance(source, tap_row * self.row_step), False)
        down = {column: variable.get() for column, variable in sums.items()}
        for pixel in range(width):
            result = down[pixel * tile.stride_wide]
            for tap in range(1, tile.taps_wide):
                result = combine(k, result, down[pixel * tile.stride_wide + tap * tile.dilation_wide])
            k.store(result if scale is None else k.mul(result, scale), self.y, (col + pixel) * k.v)
        if watch:
            with k.when(watch.seen_anywhere()), k.loop(col, col + width) as again:
                self.pixel(again)

    def plain_tile(self, col: Int, width: int, scale: ir.Value | None) -> None:
        k, a = self.k, self.a
        source = k.advance(self.x, self.top * a.x_row + (col * self.stride - a.pad_left) * k.v)
        values = [k.variable(self.start) for _ in range(width)]
        with self.each_row(source) as row, k.loop(0, self.taps) as tap_col:
            for pixel, value in enumerate(values):
                place = (tap_col * self.dilation + self.stride * pixel) * k.v
                value.set(self.combine(k, value.get(), k.load(row, place)))
        for pixel, value in enumerate(values):
            result = value.get() if scale is None else k.mul(value.get(), scale)
            k.store(result, self.y, (col + pixel) * k.v)
