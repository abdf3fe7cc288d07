"""Elementary functions on vectors of float32, to about two units in the last place; NaN and infinities as IEEE says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llvmlite import ir

from convwright.codegen.lang import Kernel

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 in two parts, so that n * high is exact
_ROUND = 12582912.0  # 1.5 * 2**23: adding and taking it away rounds to the nearest integer, without SSE4.1
_SMALLEST_NORMAL = 2.0**-126


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


def expm1(k: Kernel, x: ir.Value) -> ir.Value:
    """e**x - 1, accurate where x is small: with q = e**r - 1 it is 2**n q + (2**n - 1), halved to not overflow."""
    bounded = k.min(k.max(x, k.splat(-30.0)), k.splat(89.0))
    n = k.sub(k.add(k.mul(bounded, k.splat(_LOG2_E)), k.splat(_ROUND)), k.splat(_ROUND))
    r = k.fma(n, k.splat(-_LN2_HIGH), bounded)
    r = k.fma(n, k.splat(-_LN2_LOW), r)
    p = polynomial(k, r, [1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2])
    q = k.fma(k.mul(p, r), r, r)
    half = _power_of_two(k, k.b.sub(k.b.fptosi(n, k.int_vector_type), k.splat_int(1)))
    result = k.fma(half, q, k.sub(half, k.splat(0.5)))
    return k.add(result, result)


def log(k: Kernel, x: ir.Value) -> ir.Value:
    """Natural logarithm; -inf at 0, NaN below."""
    subnormal = k.b.fcmp_ordered("<", x, k.splat(_SMALLEST_NORMAL))
    result = _log_of_normal(k, k.select(subnormal, k.mul(x, k.splat(2.0**23)), x))
    result = k.select(subnormal, k.sub(result, k.splat(23 * math.log(2.0))), result)
    result = k.select(k.b.fcmp_unordered(">=", x, k.splat(math.inf)), x, result)
    result = k.select(k.b.fcmp_ordered("==", x, k.splat(0.0)), k.splat(-math.inf), result)
    return k.select(k.b.fcmp_ordered("<", x, k.splat(0.0)), k.splat(math.nan), result)


def _log_of_normal(k: Kernel, x: ir.Value) -> ir.Value:
    """x = 2**e (1 + z) with 1 + z between sqrt(1/2) and sqrt(2); the polynomial in z is that of Cephes' logf."""
    root_half = 0x3F3504F3  # the bits of sqrt(1/2)
    above = k.b.sub(k.b.bitcast(x, k.int_vector_type), k.splat_int(root_half))
    e = k.b.sitofp(k.b.ashr(above, k.splat_int(23)), k.vector_type)
    mantissa = k.b.add(k.b.and_(above, k.splat_int(0x7FFFFF)), k.splat_int(root_half))
    z = k.sub(k.b.bitcast(mantissa, k.vector_type), k.splat(1.0))
    square = k.mul(z, z)
    p = polynomial(
        k,
        z,
        [
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ],
    )
    rest = k.fma(e, k.splat(_LN2_LOW), k.mul(k.mul(p, z), square))
    rest = k.fma(square, k.splat(-0.5), rest)
    return k.fma(e, k.splat(_LN2_HIGH), k.add(z, rest))


def log1p(k: Kernel, x: ir.Value) -> ir.Value:
    """log(1 + x) for x >= 0, finite: what 1 + x rounds away comes back as the first term of its series."""
    y = k.add(k.splat(1.0), x)
    lost = k.sub(x, k.sub(y, k.splat(1.0)))
    return k.add(_log_of_normal(k, y), k.div(lost, y))


def erf(k: Kernel, x: ir.Value) -> ir.Value:
    """x + x p(x**2) below 1, 1 - e**(x q(x) - x) above, odd, exactly 1 from 4 on.

    Both polynomials are least-squares fits of degree 6 on 2000 Chebyshev nodes, weighted by what their error does to
    the result's relative error, and reweighted 60 times by the error that remains (Lawson): of erf(x) / x - 1 over x**2
    in 0..1, weight x / erf(x); of log(erfc(x)) / x over x in 1..4, weight x erfc(x) / erf(x).
    """
    size = k.unary("fabs", x)
    p = polynomial(
        k,
        k.mul(x, x),
        [
            7.85385428e-5,
            -8.0101914e-4,
            5.18832742e-3,
            -2.68538118e-2,
            1.12835851e-1,
            -3.76126258e-1,
            1.28379166e-1,
        ],
    )
    small = k.fma(p, size, size)
    q = polynomial(
        k,
        size,
        [
            -1.39624441e-5,
            3.50592048e-4,
            -3.75747691e-3,
            2.40100688e-2,
            -1.06530866e-1,
            -6.34969531e-1,
            -1.2869434e-1,
        ],
    )
    large = k.sub(k.splat(1.0), exp(k, k.fma(q, size, negative(k, size))))
    return copysign(k, k.select(k.b.fcmp_ordered(">", size, k.splat(1.0)), large, small), x)


def copysign(k: Kernel, size: ir.Value, sign: ir.Value) -> ir.Value:
    """``size``, which is not negative, with the sign of ``sign``."""
    bit = k.b.and_(k.b.bitcast(sign, k.int_vector_type), k.splat_int(-(2**31)))
    return k.b.bitcast(k.b.or_(k.b.bitcast(size, k.int_vector_type), bit), k.vector_type)


def round_even(k: Kernel, x: ir.Value) -> ir.Value:
    """The nearest integer, of two the even one; -0 and what rounds to it stay -0."""
    if _has_rounding(k):
        return k.unary("roundeven", x)
    size = k.unary("fabs", x)
    rounded = k.sub(k.add(size, k.splat(2.0**23)), k.splat(2.0**23))
    return k.select(k.b.fcmp_ordered("<", size, k.splat(2.0**23)), copysign(k, rounded, x), x)


def floor(k: Kernel, x: ir.Value) -> ir.Value:
    """The largest integer that is not larger."""
    if _has_rounding(k):
        return k.unary("floor", x)
    rounded = round_even(k, x)
    return k.select(k.b.fcmp_ordered(">", rounded, x), k.sub(rounded, k.splat(1.0)), rounded)


def ceil(k: Kernel, x: ir.Value) -> ir.Value:
    """The smallest integer that is not smaller."""
    if _has_rounding(k):
        return k.unary("ceil", x)
    return negative(k, floor(k, negative(k, x)))


def negative(k: Kernel, x: ir.Value) -> ir.Value:
    """-x, with -0 for 0."""
    return k.sub(k.splat(-0.0), x)


def _has_rounding(k: Kernel) -> bool:
    """Whether rounding is an instruction, as where fused multiply-add is. Else LLVM would call libm, lane by lane."""
    return k.target.has_fma


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
    small = k.fma(k.mul(p, square), size, size)
    tail = k.div(k.splat(2.0), k.add(exp(k, k.add(size, size)), k.splat(1.0)))
    large = k.sub(k.splat(1.0), tail)
    return copysign(k, k.select(k.b.fcmp_ordered("<", size, k.splat(0.625)), small, large), x)
