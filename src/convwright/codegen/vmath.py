"""Elementary functions on vectors of float32, to about two units in the last place; NaN and infinities as IEEE says."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from convwright.codegen.lang import Kernel

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 in two parts, so that n * high is exact
_ROUND = 12582912.0  # 1.5 * 2**23: adding and taking it away rounds to the nearest integer, without SSE4.1


def polynomial(k: Kernel, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
    """Horner's rule; the highest power's coefficient first."""
    result = k.splat(coefficients[0])
    for coefficient in coefficients[1:]:
        result = k.fma(result, x, k.splat(coefficient))
    return result


def exp(k: Kernel, x: ir.Value) -> ir.Value:
    """e**x: x = n ln 2 + r, |r| <= ln 2 / 2, a Taylor polynomial in r, then two exact multiplications by powers of two.

    Two, because 2**n itself may overflow or be subnormal where the result does not.
    """
    bounded = k.min(k.max(x, k.splat(-104.0)), k.splat(89.0))
    n = k.sub(k.add(k.mul(bounded, k.splat(_LOG2_E)), k.splat(_ROUND)), k.splat(_ROUND))
    r = k.fma(n, k.splat(-_LN2_HIGH), bounded)
    r = k.fma(n, k.splat(-_LN2_LOW), r)
    p = polynomial(k, r, [1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0])
    exponent = k.b.fptosi(n, k.int_vector_type)
    half = k.b.ashr(exponent, k.splat_int(1))
    rest = k.b.sub(exponent, half)
    return k.mul(k.mul(p, _power_of_two(k, half)), _power_of_two(k, rest))


def _power_of_two(k: Kernel, exponent: ir.Value) -> ir.Value:
    bits = k.b.shl(k.b.add(exponent, k.splat_int(127)), k.splat_int(23))
    return k.b.bitcast(bits, k.vector_type)


def sigmoid(k: Kernel, x: ir.Value) -> ir.Value:
    """1 / (1 + e**-x)."""
    return k.div(k.splat(1.0), k.add(k.splat(1.0), exp(k, k.sub(k.splat(0.0), x))))


def tanh(k: Kernel, x: ir.Value) -> ir.Value:
    """An odd polynomial below 0.625 (coefficients of Cephes' tanhf), 1 - 2 / (e**2|x| + 1) above."""
    size = k.unary("fabs", x)
    square = k.mul(x, x)
    p = polynomial(
        k, square, [-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1]
    )
    small = k.fma(k.mul(p, square), x, x)
    tail = k.div(k.splat(2.0), k.add(exp(k, k.add(size, size)), k.splat(1.0)))
    large = k.sub(k.splat(1.0), tail)
    negative = k.b.fcmp_ordered("<", x, k.splat(0.0))
    large = k.select(negative, k.sub(k.splat(0.0), large), large)
    return k.select(k.b.fcmp_ordered("<", size, k.splat(0.625)), small, large)
