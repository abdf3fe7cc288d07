"""Softmax and log-softmax over the middle axis of a planar ``[outer][n][inner]`` float32 array.

Three passes: the largest value, the sum of the exponentials of the differences from it, the division. The vectors run
along ``n`` where ``inner`` is 1, otherwise along ``inner``. A NaN, or an infinite largest value, makes its whole line
NaN, as ``exp(x - max) / sum`` has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen import vmath
from convwright.codegen.lang import Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.spans import along

ARGUMENTS = Arguments(
    "x y",
    # work: item -> outer ("row"), or (outer, vector of inner); x_step, y_step: from one element of n to the next
    "n inner inner_vectors x_outer x_step y_outer y_step",
)


@dataclass(frozen=True)
class Softmax:
    """What is baked into one kernel.

    log: the logarithm of the softmax.
    row: ``inner`` is 1 and both steps are 1.
    """

    log: bool
    row: bool

    @property
    def key(self) -> str:
        return f"softmax-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-{'log' if self.log else ''}softmax-{'row' if self.row else 'col'}-{target.name}"


def emit(config: Softmax, target: Target) -> ir.Module:
    """The kernel's module; ``y`` may be ``x``."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    with k.loop(k.begin, k.end) as item:
        if config.row:
            _row(k, a, config, k.advance(a.x, item * a.x_outer), k.advance(a.y, item * a.y_outer))
        else:
            outer, first = item // a.inner_vectors, item % a.inner_vectors * k.v
            x = k.advance(a.x, outer * a.x_outer + first)
            y = k.advance(a.y, outer * a.y_outer + first)
            remaining = a.inner - first
            with k.either(remaining >= k.v) as (whole, partial):
                with whole:
                    _columns(k, a, config, x, y, None)
                with partial:
                    _columns(k, a, config, x, y, k.mask(0, remaining))
    return k.finish()


def _row(k: Kernel, a: Reader, config: Softmax, x: ir.Value, y: ir.Value) -> None:
    """One contiguous line."""
    largest = k.variable(k.splat(-math.inf))
    total = k.variable(k.splat(0.0))

    def find(place: Int, mask: ir.Value | None) -> None:
        value = k.load(x, place, mask)
        if mask is not None:
            value = k.select(mask, value, k.splat(-math.inf))
        largest.set(k.max(largest.get(), value))

    def add(place: Int, mask: ir.Value | None) -> None:
        value = vmath.exp(k, k.sub(k.load(x, place, mask), top))
        if not config.log:
            k.store(value, y, place, mask)
        total.set(k.add(total.get(), value if mask is None else k.select(mask, value, k.splat(0.0))))

    def divide(place: Int, mask: ir.Value | None) -> None:
        k.store(_result(k, config, k.load(x if config.log else y, place, mask), top, scale), y, place, mask)

    along(k, 0, a.n, find)
    top = _across(k, largest.get(), k.max)
    along(k, 0, a.n, add)
    scale = _scale(k, config, _across(k, total.get(), k.add))
    along(k, 0, a.n, divide)


def _columns(k: Kernel, a: Reader, config: Softmax, x: ir.Value, y: ir.Value, mask: ir.Value | None) -> None:
    """A vector of neighbouring lines."""
    largest = k.variable(k.splat(-math.inf))
    total = k.variable(k.splat(0.0))
    with k.loop(0, a.n) as place:
        largest.set(k.max(largest.get(), k.load(x, place * a.x_step, mask)))
    top = largest.get()
    with k.loop(0, a.n) as place:
        value = vmath.exp(k, k.sub(k.load(x, place * a.x_step, mask), top))
        if not config.log:
            k.store(value, y, place * a.y_step, mask)
        total.set(k.add(total.get(), value))
    scale = _scale(k, config, total.get())
    with k.loop(0, a.n) as place:
        value = k.load(x, place * a.x_step, mask) if config.log else k.load(y, place * a.y_step, mask)
        k.store(_result(k, config, value, top, scale), y, place * a.y_step, mask)


def _scale(k: Kernel, config: Softmax, total: ir.Value) -> ir.Value:
    return vmath.log(k, total) if config.log else k.div(k.splat(1.0), total)


def _result(k: Kernel, config: Softmax, value: ir.Value, top: ir.Value, scale: ir.Value) -> ir.Value:
    """From an input (log) or its exponential to the output."""
    return k.sub(k.sub(value, top), scale) if config.log else k.mul(value, scale)


def _across(k: Kernel, vector: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """All lanes combined, in every lane."""
    distance = k.v // 2
    while distance:
        vector = combine(vector, k.shuffle(vector, vector, [lane ^ distance for lane in range(k.v)]))
        distance //= 2
    return vector
