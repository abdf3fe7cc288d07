"""Direct convolution of 8-bit integers on AMX: a tile register holds 16 pixels by 64 channels, or 16 by 16 sums.

The work is cut, and the sums go out, as in ``kernels.integer``; only the sums of a rectangle are made differently. A
register tile is two strips of up to 16 neighbouring pixels by up to two vectors of output channels. For every tap and
block of channels, each strip is one tile (its rows a stride apart in the input), each vector's weights are one tile,
and one instruction multiplies two of them. Sums go to scratch as they are, and there get bias, zero point and scale.

Weights are packed as for ``kernels.integer``, but every block has all its words: those past the last one are zero, so
that what the input has there does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from llvmlite import ir

from convwright.codegen.lang import I64, PTR, Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels import integer
from convwright.kernels.arguments import Reader
from convwright.kernels.words import I8

ARGUMENTS = integer.ARGUMENTS
ROWS = 16  # of a tile register
VECTOR_BYTES = 64


@dataclass(frozen=True)
class AmxTile:
    """What is baked into one kernel.

    rows, spans: strips of pixels, below each other and beside each other, two at most; width: pixels of a strip.
    outs: vectors of output channels, two at most.
    words: of an input pixel; step: words from one output pixel's input to the next one's in a row.
    signed: the input is int8. requantised: the output has 8 bits; else it is the 32-bit sums.
    """

    rows: int
    spans: int
    width: int
    outs: int
    words: int
    step: int
    signed: bool
    requantised: bool
    form: str = "bytes"

    @property
    def cols(self) -> int:
        """Output pixels in a row of the register tile."""
        return self.spans * self.width

    @property
    def strips(self) -> list[tuple[int, int]]:
        """Row and first column of each strip."""
        return [(row, span * self.width) for row in range(self.rows) for span in range(self.spans)]

    @property
    def key(self) -> str:
        return f"integer-amx-{self!r}"

    def name(self, target: Target) -> str:
        return f"{'s8' if self.signed else 'u8'}-amx-{self.rows * self.cols}x{self.outs}-{target.name}"


class TileUnit(Protocol):
    """The eight tile registers: ``kernels`` have this machine's, tests one that computes the same without AMX."""

    def configure(self, k: Kernel, shapes: list[tuple[int, int]]) -> None:
        """Rows and bytes of a row of each register in use; at the kernel's entry."""

    def zero(self, k: Kernel, register: int) -> None: ...

    def load(self, k: Kernel, register: int, pointer: ir.Value, stride: int) -> None:
        """Rows that lie ``stride`` bytes apart."""

    def add_products(self, k: Kernel, total: int, x: int, w: int) -> None:
        """``total[m][n] += sum over i of x[m][i] * w[i / 4][4 n + i % 4]``, bytes of x unsigned, of w signed."""

    def store(self, k: Kernel, register: int, pointer: ir.Value, stride: Int) -> None: ...

    def release(self, k: Kernel) -> None: ...


class Amx:
    """The instructions."""

    def configure(self, k: Kernel, shapes: list[tuple[int, int]]) -> None:
        # Palette 1; bytes of a row from byte 16 on, 16 bits each; rows from byte 48 on.
        config = bytearray(64)
        config[0] = 1
        for register, (rows, row_bytes) in enumerate(shapes):
            config[16 + 2 * register] = row_bytes
            config[48 + register] = rows
        kind = ir.ArrayType(I8, len(config))
        with k.b.goto_entry_block():
            place = k.b.alloca(kind)
        k.b.store(ir.Constant(kind, list(config)), place)
        self._call(k, "ldtilecfg", k.b.bitcast(place, PTR))

    def zero(self, k: Kernel, register: int) -> None:
        self._call(k, "tilezero", I8(register))

    def load(self, k: Kernel, register: int, pointer: ir.Value, stride: int) -> None:
        self._call(k, "tileloadd64", I8(register), pointer, I64(stride))

    def add_products(self, k: Kernel, total: int, x: int, w: int) -> None:
        self._call(k, "tdpbusd", I8(total), I8(x), I8(w))

    def store(self, k: Kernel, register: int, pointer: ir.Value, stride: Int) -> None:
        self._call(k, "tilestored64", I8(register), pointer, stride.value)

    def release(self, k: Kernel) -> None:
        self._call(k, "tilerelease")

    def _call(self, k: Kernel, name: str, *operands: ir.Value) -> None:
        kinds = [operand.type for operand in operands]
        k.b.call(k.intrinsic(f"llvm.x86.{name}", ir.VoidType(), kinds), operands)


def emit(tile: AmxTile, target: Target, unit: TileUnit | None = None) -> ir.Module:
    """The kernel's module; ``unit``: what has the tile registers, the CPU where it is None."""
    unit = unit or Amx()
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    strips, outs = len(tile.strips), tile.outs
    sums = [(tile.width, VECTOR_BYTES)] * (strips * outs)
    unit.configure(k, [*sums, *[(tile.width, 4 * tile.words)] * strips, *[(tile.words, VECTOR_BYTES)] * outs])

    def sum_rectangle(x: ir.Value, w: ir.Value, vector: Int, scratch: ir.Value) -> None:
        with k.loop(0, a.band_rows, tile.rows) as row, k.loop(0, a.span_cols, tile.cols) as col:
            top, left = k.smaller(row, a.band_rows - tile.rows), k.smaller(col, a.span_cols - tile.cols)
            corner = k.advance(x, top * a.x_row + left * tile.step)
            _sum_tile(k, a, tile, unit, corner, w, scratch, top, left)
        _finish(k, a, tile, vector, scratch)

    integer.emit_items(k, a, tile, sum_rectangle)
    unit.release(k)
    return k.finish()


def _sum_tile(
    k: Kernel, a: Reader, tile: AmxTile, unit: TileUnit, corner: ir.Value, w: ir.Value, scratch: ir.Value, top: Int,
    left: Int,
) -> None:  # fmt: skip
    """The sums of one register tile, from nothing to scratch ``[row][col][outs][v]``."""
    strips, outs = tile.strips, range(tile.outs)
    first_x = len(strips) * tile.outs
    first_w = first_x + len(strips)
    for register in range(first_x):
        unit.zero(k, register)
    weights = k.variable(w)
    with k.loop(0, a.taps_deep) as tap_deep, k.loop(0, a.blocks) as block:
        start = k.advance(corner, tap_deep * a.x_tap_depth + block * a.x_block)
        with k.loop(0, a.taps_high) as tap_row, k.loop(0, a.taps_wide) as tap_col:
            source = k.advance(start, tap_row * a.x_tap_row + tap_col * a.x_tap_col)
            now = weights.get()
            for out in outs:
                unit.load(k, first_w + out, k.advance(now, a.w_out * out), VECTOR_BYTES)
            for place, (row, col) in enumerate(strips):
                unit.load(k, first_x + place, k.advance(source, a.x_row * row + col * tile.step), 4 * tile.step)
                for out in outs:
                    unit.add_products(k, place * tile.outs + out, first_x + place, first_w + out)
            weights.set(k.advance(now, tile.words * k.v))
    stride = Int(k, k.int_value(tile.outs * VECTOR_BYTES))
    for place, (row, col) in enumerate(strips):
        pixel = (top + row) * a.span_cols + left + col
        for out in outs:
            where = k.advance(scratch, pixel * (tile.outs * k.v) + out * k.v)
            unit.store(k, place * tile.outs + out, where, stride)


def _finish(k: Kernel, a: Reader, tile: AmxTile, vector: Int, scratch: ir.Value) -> None:
    """Bias, correction for the input's zero point and scale, pixel by pixel, in scratch."""
    initial = integer.initial_sums(k, a, tile, vector)
    finish = integer.scaling(k, a, tile, vector)
    with k.loop(0, a.band_rows * a.span_cols) as pixel:
        for out, first in enumerate(initial):
            where = k.advance(scratch, pixel * (tile.outs * k.v) + out * k.v)
            total = k.b.add(k.load_ints(where), first)
            k.store(k.b.bitcast(finish(total, out), k.vector_type), where)
