"""Columns added up where they meet: the last step of a transposed convolution as a matrix product.

The product of the transposed weights and the input is a column matrix, ``[plane][out][tap][input position]``. An output
is the sum of the columns that meet there. It is gathered, not scattered: a work item is a row of the output, and
nothing is written twice. Outputs a stride apart (a phase) read neighbouring positions, so they are summed as vectors,
and phases are woven together at the end (arXiv 1603.07285, 4.3, without the inserted zeros).

Tables list the taps of every phase of an axis: ``*_first[phase]`` to ``*_first[phase + 1]`` of ``*_taps``, pairs of the
tap and of what to add to ``output // stride`` for the padded input that it meets; ``slices`` and ``rows`` give the
input that a padded one is, -1 for none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.planar import weave

ARGUMENTS = Arguments(
    "columns bias y slices rows deep_first deep_taps high_first high_taps wide_first wide_taps",
    # work: item -> (plane, out, slice, row)
    "all_channels out_slices out_rows out_cols slice_step row_step col_step "
    "taps taps_high taps_wide positions x_slice x_row col_low",
)


@dataclass(frozen=True)
class Col2im:
    """What is baked into one kernel.

    step: the horizontal stride, 0 where it is more than `kernels.planar.MOST_STEPS`.
    element: "f32" or "f64". epilogue: activations.
    """

    step: int
    element: str = "f32"
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def key(self) -> str:
        return f"col2im-{self!r}"

    def name(self, target: Target) -> str:
        return f"{self.element}-col2im-s{self.step or 'n'}-{target.name}"


def emit(tile: Col2im, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target, element=tile.element)
    a = ARGUMENTS.read(k)
    with k.loop(k.begin, k.end) as item:
        row, rest = item % a.out_rows, item // a.out_rows
        deep, channel = rest % a.out_slices, rest // a.out_slices
        columns = k.advance(a.columns, channel * a.taps * a.positions)
        y = k.advance(a.y, item * a.out_cols)
        bias = k.broadcast(k.load_scalar(a.bias, channel % a.all_channels))
        line = _Line(columns, bias, deep, row)
        if tile.step:
            quotients = (a.out_cols + (tile.step - 1)) // tile.step
            with k.loop(0, quotients, k.v) as place:
                sums = [_sum(k, a, tile, line, phase, place) for phase in range(tile.step)]
                for number, vector in enumerate(weave(k, sums)):
                    at = place * tile.step + number * k.v
                    with k.when(at < a.out_cols):
                        k.store(vector, y, at, k.mask(0, a.out_cols - at))
        else:
            quotients = (a.out_cols + a.col_step - 1) // a.col_step
            with k.loop(0, a.col_step) as phase, k.loop(0, quotients, k.v) as place:
                vector = _sum(k, a, tile, line, phase, place)
                for lane in range(k.v):
                    at = (place + lane) * a.col_step + phase
                    with k.when(at < a.out_cols):
                        k.store_scalar(k.extract(vector, lane), y, at)
    return k.finish()


@dataclass(frozen=True, slots=True)
class _Line:
    """A row of the output: its channel's columns and bias, its slice and its number."""

    columns: ir.Value
    bias: ir.Value
    deep: Int
    row: Int


def _sum(k: Kernel, a: Reader, tile: Col2im, line: _Line, phase: Integer, place: Int) -> ir.Value:
    """Outputs ``place`` to ``place + v - 1`` of one phase of the row, activations applied."""
    total = k.variable(line.bias)
    with (
        _taps(k, line.deep, a.slice_step, a.deep_first, a.deep_taps, a.slices) as (tap_deep, slice_),
        _taps(k, line.row, a.row_step, a.high_first, a.high_taps, a.rows) as (tap_high, row),
    ):
        first = (tap_deep * a.taps_high + tap_high) * a.taps_wide
        source = slice_ * a.x_slice + row * a.x_row
        start, stop = (k.load_int(a.wide_first, more + phase) for more in (0, 1))
        with k.loop(start, stop) as entry:
            tap, ahead = (k.load_int(a.wide_taps, entry * 2 + column) for column in (0, 1))
            at = place + ahead - a.col_low
            column_row = k.advance(line.columns, (first + tap) * a.positions + source)
            vector = k.load(column_row, at, k.mask(0 - at, a.x_row - at))
            total.set(k.add(total.get(), vector))
    vector = total.get()
    for operation in tile.epilogue:
        vector = apply(k, operation, vector)
    return vector


@contextmanager
def _taps(
    k: Kernel, out: Int, step: Int, firsts: ir.Value, taps: ir.Value, sources: ir.Value
) -> Iterator[tuple[Int, Int]]:
    """The taps that meet output ``out`` of an axis, each with the input that it meets there."""
    phase, place = out % step, out // step
    with k.loop(k.load_int(firsts, phase), k.load_int(firsts, phase + 1)) as entry:
        source = k.load_int(sources, place + k.load_int(taps, entry * 2 + 1))
        with k.when(source >= 0):
            yield k.load_int(taps, entry * 2), source
