"""Max and average pooling of whole planes, on channel-blocked activations.

The largest value of a plane with a NaN in it is NaN. A mean is summed in short runs, whose sums are added with their
errors: planes of millions of pixels lose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import F32, Integer, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.pool import Watch, family

ARGUMENTS = Arguments("x y", "blocks rows cols x_image x_block x_row y_image y_block")
DEEP_ARGUMENTS = Arguments("x y", " ".join(ARGUMENTS.names[2:]) + " slices x_slice")

VALUES = 8  # combined side by side
LONGEST_RUN = 128  # pixels summed one by one into a partial sum of a mean


@dataclass(frozen=True)
class GlobalPool:
    """Pooling of whole planes: the largest value, or the mean, of every channel.

    deep: of volumes whose slices have gaps between them.
    """

    maximum: bool
    deep: bool = False

    @property
    def key(self) -> str:
        return f"global-pool-{self!r}"

    @property
    def arguments(self) -> Arguments:
        return DEEP_ARGUMENTS if self.deep else ARGUMENTS

    def name(self, target: Target) -> str:
        return f"f32-global_{family(self.maximum)}-{VALUES}x1-{target.name}"


def emit(tile: GlobalPool, target: Target) -> ir.Module:
    """The kernel's module; item -> (image, block)."""
    k = Kernel(target)
    a = tile.arguments.read(k)
    with k.loop(k.begin, k.end) as item:
        image, block = item // a.blocks, item % a.blocks
        x = k.advance(a.x, image * a.x_image + block * a.x_block)
        result = (_largest if tile.maximum else _mean)(k, a, x, tile.deep)
        k.store(result, a.y, image * a.y_image + block * a.y_block)
    return k.finish()


@contextmanager
def _rows(k: Kernel, a: Reader, x: ir.Value, deep: bool) -> Iterator[ir.Value]:
    """Every row of a plane, or of all slices of a volume."""
    if deep:
        with k.loop(0, a.slices) as number, k.loop(0, a.rows) as row:
            yield k.advance(x, number * a.x_slice + row * a.x_row)
    else:
        with k.loop(0, a.rows) as row:
            yield k.advance(x, row * a.x_row)


def _largest(k: Kernel, a: Reader, x: ir.Value, deep: bool) -> ir.Value:
    watch = Watch(k)
    values = [k.variable(k.splat(-math.inf)) for _ in range(VALUES)]
    with _rows(k, a, x, deep) as source:
        _along(k, source, 0, a.cols, values, Kernel.max, watch)
    return k.select(watch.seen(), k.splat(math.nan), _reduce(k, values, Kernel.max))


def _mean(k: Kernel, a: Reader, x: ir.Value, deep: bool) -> ir.Value:
    """Partial sums of short runs, added with the error of every addition carried along (Kahan)."""
    total, lost = k.variable(k.splat(0.0)), k.variable(k.splat(0.0))
    with _rows(k, a, x, deep) as source, k.loop(0, a.cols, LONGEST_RUN) as start:
        values = [k.variable(k.splat(0.0)) for _ in range(VALUES)]
        for value in values:
            value.set(k.splat(0.0))
        _along(k, source, start, k.minimum(start + LONGEST_RUN, a.cols), values, Kernel.add, None)
        before = total.get()
        term = k.sub(_reduce(k, values, Kernel.add), lost.get())
        total.set(k.add(before, term))
        error = k.sub(k.sub(total.get(), before), term)
        # Where the total is infinite its error is NaN, which must not make the next total NaN.
        lost.set(k.select(k.b.fcmp_ordered("ord", error, error), error, k.splat(0.0)))
    pixels = a.rows * a.cols * a.slices if deep else a.rows * a.cols
    count = k.broadcast(k.b.sitofp(k.int_value(pixels), F32))
    return k.div(total.get(), count)


def _along(
    k: Kernel,
    source: ir.Value,
    start: Integer,
    stop: Integer,
    values: list[Variable],
    combine: Callable[[Kernel, ir.Value, ir.Value], ir.Value],
    watch: Watch | None,
) -> None:
    """Combines the vectors ``start <= pixel < stop`` of a row into the values."""

    def step(at: Integer, into: list[Variable]) -> None:
        vectors = [k.load(source, (at + place) * k.v) for place in range(len(into))]
        if watch:
            watch.look(vectors)
        for value, vector in zip(into, vectors, strict=True):
            value.set(combine(k, value.get(), vector))

    whole = start + (stop - start) // len(values) * len(values)
    with k.loop(start, whole, len(values)) as at:
        step(at, values)
    with k.loop(whole, stop) as at:
        step(at, values[:1])


def _reduce(k: Kernel, values: list[Variable], combine: Callable[[Kernel, ir.Value, ir.Value], ir.Value]) -> ir.Value:
    vectors = [value.get() for value in values]
    while len(vectors) > 1:
        vectors = [combine(k, vectors[place], vectors[place + 1]) for place in range(0, len(vectors), 2)]
    return vectors[0]
