"""Discrete Fourier transforms of many vectors at once: every lane of a vector is a transform of its own.

Lengths are products of 2, 4 and 8 (J. W. Cooley and J. W. Tukey, Math. Comp. 19(90), 1965). A butterfly of one of these
is straight-line code on registers, its roots of unity constants; between butterflies numbers are multiplied by the
roots of a table. Transforms work in place, and frequencies stay where they come to lie (`frequencies`): products of
spectra do not mind, and the inverse transform, the mirror image of the forward one, takes them from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from convwright.codegen.lang import Int, Kernel
from convwright.kernels.spans import transpose

RADICES: dict[int, tuple[int, ...]] = {
    16: (4, 4), 32: (8, 4), 64: (8, 8), 128: (8, 4, 4), 256: (8, 8, 4),
}  # fmt: skip
"""The lengths that there are, and the butterflies of each, in the order of the forward transform."""

Complex = tuple[ir.Value, ir.Value]

_HALF = math.sqrt(0.5)
_BUTTERFLY_MULTIPLICATIONS = {2: 0, 4: 0, 8: 8}
_BUTTERFLY_OPERATIONS = {2: 4, 4: 16, 8: 56}


@dataclass(frozen=True, slots=True)
class Numbers:
    """Complex vectors that a transform reads and writes by index."""

    load: Callable[[Int], Complex]
    store: Callable[[Int, Complex], None]


def frequencies(length: int) -> np.ndarray:
    """The frequency that lies at each place after a forward transform."""

    def of(radices: tuple[int, ...]) -> list[int]:
        if not radices:
            return [0]
        first, inner = radices[0], of(radices[1:])
        return [phase + first * within for phase in range(first) for within in inner]

    return np.array(of(RADICES[length]))


def roots(length: int) -> np.ndarray:
    """The table of factors between butterflies: ``exp(-2 pi i place phase / length)``, real and imaginary parts in
    turn, for every stage but the last, ``[place][phase]`` from phase 1 on."""
    stages, size = [], length
    for radix in RADICES[length][:-1]:
        turns = np.outer(np.arange(size // radix), np.arange(1, radix)) / size
        stages.append(np.stack([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], axis=-1).reshape(-1))
        size //= radix
    return np.concatenate(stages)


def multiplications(length: int) -> int:
    """Real multiplications of one transform of complex numbers."""
    return _count(length, _BUTTERFLY_MULTIPLICATIONS, 4)


def operations(length: int) -> int:
    """Additions, multiplications and fused multiply-adds of one transform of complex numbers."""
    return _count(length, _BUTTERFLY_OPERATIONS, 4)


def _count(length: int, of_butterfly: dict[int, int], of_product: int) -> int:
    total, size = 0, length
    for number, radix in enumerate(RADICES[length]):
        total += length // radix * of_butterfly[radix]
        if number + 1 < len(RADICES[length]):
            total += length // size * (size // radix) * (radix - 1) * of_product
        size //= radix
    return total


def forward(k: Kernel, length: int, numbers: Numbers, finish: Callable[[Int, Complex], None], table: ir.Value) -> None:
    """Transform ``length`` numbers in place; the last stage hands its results to ``finish(place, value)``."""
    _forward(k, RADICES[length], length, Int(k, k.int_value(0)), numbers, finish, table)


def _forward(
    k: Kernel, radices: tuple[int, ...], length: int, base: Int, numbers: Numbers,
    finish: Callable[[Int, Complex], None], table: ir.Value,
) -> None:  # fmt: skip
    radix, *inner = radices
    step = length // radix
    if not inner:
        values = butterfly(k, [numbers.load(base + number) for number in range(radix)], inverse=False)
        for number, value in enumerate(values):
            finish(base + number, value)
        return
    with k.loop(0, step) as place:
        at = base + place
        values = butterfly(k, [numbers.load(at + step * number) for number in range(radix)], inverse=False)
        factors = k.advance(table, place * (2 * (radix - 1)))
        for phase, value in enumerate(values):
            turned = multiplied(k, value, _factor(k, factors, phase)) if phase else value
            numbers.store(at + step * phase, turned)
    with k.loop(0, radix) as block:
        rest = k.advance(table, step * 2 * (radix - 1))
        _forward(k, tuple(inner), step, base + block * step, numbers, finish, rest)


def backward(k: Kernel, length: int, begin: Callable[[Int], Complex], numbers: Numbers, table: ir.Value) -> None:
    """The inverse of ``forward`` times ``length``, in place; what the first stage reads comes from ``begin(place)``."""
    _backward(k, RADICES[length], length, Int(k, k.int_value(0)), begin, numbers, table)


def _backward(
    k: Kernel, radices: tuple[int, ...], length: int, base: Int, begin: Callable[[Int], Complex], numbers: Numbers,
    table: ir.Value,
) -> None:  # fmt: skip
    radix, *inner = radices
    step = length // radix
    if not inner:
        values = butterfly(k, [begin(base + number) for number in range(radix)], inverse=True)
        for number, value in enumerate(values):
            numbers.store(base + number, value)
        return
    with k.loop(0, radix) as block:
        rest = k.advance(table, step * 2 * (radix - 1))
        _backward(k, tuple(inner), step, base + block * step, begin, numbers, rest)
    with k.loop(0, step) as place:
        at = base + place
        factors = k.advance(table, place * (2 * (radix - 1)))
        values = [numbers.load(at + step * phase) for phase in range(radix)]
        turned = [
            multiplied(k, value, _factor(k, factors, phase), conjugate=True) if phase else value
            for phase, value in enumerate(values)
        ]
        for number, value in enumerate(butterfly(k, turned, inverse=True)):
            numbers.store(at + step * number, value)


def _factor(k: Kernel, factors: ir.Value, phase: int) -> Complex:
    real, imaginary = (k.broadcast(k.load_scalar(factors, 2 * (phase - 1) + part)) for part in (0, 1))
    return real, imaginary


def multiplied(k: Kernel, x: Complex, w: Complex, conjugate: bool = False) -> Complex:
    """``x w``, or ``x`` times the conjugate of ``w``."""
    (xr, xi), (wr, wi) = x, w
    if conjugate:
        return k.fma(xr, wr, k.mul(xi, wi)), k.fma(xi, wr, k.b.fneg(k.mul(xr, wi)))
    return k.fma(xr, wr, k.b.fneg(k.mul(xi, wi))), k.fma(xr, wi, k.mul(xi, wr))


def butterfly(k: Kernel, values: Sequence[Complex], inverse: bool) -> list[Complex]:
    """The discrete Fourier transform of 1, 2, 4 or 8 numbers: even and odd ones apart, then added."""
    count = len(values)
    if count == 1:
        return list(values)
    evens, odds = (butterfly(k, values[first::2], inverse) for first in (0, 1))
    pairs = [
        _add(k, even, odd, place * 8 // count, inverse)
        for place, (even, odd) in enumerate(zip(evens, odds, strict=True))
    ]
    return [sum_ for sum_, _ in pairs] + [difference for _, difference in pairs]


def _add(k: Kernel, even: Complex, odd: Complex, eighths: int, inverse: bool) -> tuple[Complex, Complex]:
    """``even + w odd`` and ``even - w odd``, w the root of unity of so many eighths of a turn."""
    (er, ei), (r, i) = even, odd
    if eighths % 2 == 0:
        if eighths == 0:
            return (k.add(er, r), k.add(ei, i)), (k.sub(er, r), k.sub(ei, i))
        plus, minus = (k.add(er, i), k.sub(ei, r)), (k.sub(er, i), k.add(ei, r))
        return (minus, plus) if inverse else (plus, minus)
    p, q = k.add(r, i), k.sub(r, i)
    half = _HALF
    # w odd, in units of the root of a half: of the forward transform (p, -q) after one eighth, (-q, -p) after three.
    by_eighth = {
        (1, False): (p, 1, q, -1),
        (3, False): (q, -1, p, -1),
        (1, True): (q, 1, p, 1),
        (3, True): (p, -1, q, 1),
    }
    real, real_sign, imaginary, imaginary_sign = by_eighth[eighths, inverse]
    up_r, up_i = k.splat(half * real_sign), k.splat(half * imaginary_sign)
    down_r, down_i = k.splat(-half * real_sign), k.splat(-half * imaginary_sign)
    return (
        (k.fma(real, up_r, er), k.fma(imaginary, up_i, ei)),
        (k.fma(real, down_r, er), k.fma(imaginary, down_i, ei)),
    )  # fmt: skip


def add_product(k: Kernel, total: Complex, x: Complex, w: Complex) -> Complex:
    """``total + x w``."""
    (tr, ti), (xr, xi), (wr, wi) = total, x, w
    real = k.fma(k.b.fneg(xi), wi, k.fma(xr, wr, tr))
    return real, k.fma(xi, wr, k.fma(xr, wi, ti))


def transposed(k: Kernel, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """The columns of a square of vectors given by its rows."""
    if k.v == 2:
        return [k.shuffle(rows[0], rows[1], [lane, 2 + lane]) for lane in (0, 1)]
    return transpose(k, rows)
