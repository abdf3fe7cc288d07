"""Activations, one row each: how a vector is computed, and what it should be.

They are fused into the kernel that produces a tensor, or run alone.

An activation is a hashable tuple: its name, then its parameters, as in ``("leaky_relu", 0.1)``. NaN goes through all of
them. At infinity they give what their formula gives in IEEE arithmetic: ``silu(-inf)`` is NaN, as in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from convwright.codegen import vmath
from convwright.codegen.lang import Kernel

Activation = tuple[Any, ...]
Array = NDArray[np.float64]

TINY = 1e-36  # results below this may come out as 0


@dataclass(frozen=True)
class Row:
    """One activation.

    emit: from a vector, and the parameters, to a vector.
    reference: the same on arrays of float64.
    ulps: the largest error, in units of the result's last place.
    absolute: what is added to it, where terms cancel: in units of 1 + |x|, with |x| at most 10.
    examples: parameters to test with.
    """

    emit: Callable[..., ir.Value]
    reference: Callable[..., Array]
    ulps: float = 0.0
    absolute: float = 0.0
    examples: tuple[tuple[float, ...], ...] = ((),)

    def bound(self, x: Array, expected: Array) -> Array:
        """The largest error allowed at ``x``."""
        ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
        return self.ulps * ulp + self.absolute * (1 + np.minimum(np.abs(x), 10)) + TINY * (self.ulps > 0)


def _below(k: Kernel, x: ir.Value, limit: float, then: ir.Value, otherwise: ir.Value) -> ir.Value:
    return k.select(k.b.fcmp_ordered("<", x, k.splat(limit)), then, otherwise)


def _relu(k: Kernel, x: ir.Value) -> ir.Value:
    return k.max(x, k.splat(0.0))


def _clip(k: Kernel, x: ir.Value, low: float, high: float) -> ir.Value:
    return k.min(k.max(x, k.splat(low)), k.splat(high))


def _leaky_relu(k: Kernel, x: ir.Value, slope: float) -> ir.Value:
    return _below(k, x, 0.0, k.mul(x, k.splat(slope)), x)


def _thresholded_relu(k: Kernel, x: ir.Value, threshold: float) -> ir.Value:
    return k.select(k.b.fcmp_ordered("<=", x, k.splat(threshold)), k.splat(0.0), x)


def _hard_sigmoid(k: Kernel, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    return _clip(k, k.fma(x, k.splat(alpha), k.splat(beta)), 0.0, 1.0)


def _hard_swish(k: Kernel, x: ir.Value) -> ir.Value:
    return k.mul(x, _hard_sigmoid(k, x, 1 / 6, 0.5))


def _silu(k: Kernel, x: ir.Value) -> ir.Value:
    return k.mul(x, vmath.sigmoid(k, x))


def _elu(k: Kernel, x: ir.Value, alpha: float) -> ir.Value:
    return _below(k, x, 0.0, k.mul(vmath.expm1(k, x), k.splat(alpha)), x)


def _selu(k: Kernel, x: ir.Value, alpha: float, gamma: float) -> ir.Value:
    return _below(k, x, 0.0, k.mul(vmath.expm1(k, x), k.splat(alpha * gamma)), k.mul(x, k.splat(gamma)))


def _celu(k: Kernel, x: ir.Value, alpha: float) -> ir.Value:
    return _below(k, x, 0.0, k.mul(vmath.expm1(k, k.mul(x, k.splat(1 / alpha))), k.splat(alpha)), x)


def _softplus(k: Kernel, x: ir.Value) -> ir.Value:
    small = vmath.exp(k, vmath.negative(k, k.unary("fabs", x)))
    return k.add(k.max(x, k.splat(0.0)), vmath.log1p(k, small))


def _mish(k: Kernel, x: ir.Value) -> ir.Value:
    """tanh(log(1 + e**x)) = n / (n + 2) with n = e**x (e**x + 2); from 20 on it is 1."""
    e = vmath.exp(k, k.min(x, k.splat(20.0)))
    n = k.mul(e, k.add(e, k.splat(2.0)))
    return k.mul(x, k.div(n, k.add(n, k.splat(2.0))))


def _gelu(k: Kernel, x: ir.Value) -> ir.Value:
    return k.mul(k.mul(x, k.splat(0.5)), k.add(k.splat(1.0), vmath.erf(k, k.mul(x, k.splat(math.sqrt(0.5))))))


def _gelu_tanh(k: Kernel, x: ir.Value) -> ir.Value:
    """(1 + tanh(u)) / 2 is the sigmoid of 2u."""
    twice = 2 * math.sqrt(2 / math.pi)
    cubic = k.fma(k.mul(x, x), k.splat(0.044715 * twice), k.splat(twice))
    return k.mul(x, vmath.sigmoid(k, k.mul(x, cubic)))


def _softsign(k: Kernel, x: ir.Value) -> ir.Value:
    return k.div(x, k.add(k.splat(1.0), k.unary("fabs", x)))


def _reciprocal(k: Kernel, x: ir.Value) -> ir.Value:
    return k.div(k.splat(1.0), x)


def _sqrt(k: Kernel, x: ir.Value) -> ir.Value:
    return k.unary("sqrt", x)


def _abs(k: Kernel, x: ir.Value) -> ir.Value:
    return k.unary("fabs", x)


def _log1p_exp(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


def _erf(x: Array) -> Array:
    return np.array([math.erf(value) for value in x.ravel()]).reshape(x.shape)


def _hard_sigmoid_of(x: Array, alpha: float, beta: float) -> Array:
    return np.clip(alpha * x + beta, 0, 1)


def _elu_of(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(x), x)


ROWS: dict[str, Row] = {
    "relu": Row(_relu, lambda x: np.maximum(x, 0)),
    "clip": Row(_clip, np.clip, examples=((0.0, 6.0), (-1.0, 1.0), (-math.inf, 3.0))),
    "leaky_relu": Row(_leaky_relu, lambda x, slope: np.where(x < 0, slope * x, x), 1, examples=((0.1,), (-2.0,))),
    "thresholded_relu": Row(
        _thresholded_relu, lambda x, threshold: np.where(x <= threshold, 0, x), examples=((1.0,), (-0.5,))
    ),
    "hard_sigmoid": Row(_hard_sigmoid, _hard_sigmoid_of, 1, 1e-7, ((0.2, 0.5), (1 / 6, 0.5))),
    "hard_swish": Row(_hard_swish, lambda x: x * _hard_sigmoid_of(x, 1 / 6, 0.5), 2, 1e-7),
    "sigmoid": Row(vmath.sigmoid, _sigmoid, 2.5),
    "silu": Row(_silu, lambda x: x * _sigmoid(x), 3),
    "tanh": Row(vmath.tanh, np.tanh, 1.5),
    "elu": Row(_elu, _elu_of, 2, examples=((1.0,), (0.3,))),
    "selu": Row(
        _selu,
        lambda x, alpha, gamma: gamma * _elu_of(x, alpha),
        2,
        examples=((1.67326319217681884765625, 1.05070102214813232421875),),
    ),
    "celu": Row(_celu, lambda x, alpha: np.where(x < 0, alpha * np.expm1(x / alpha), x), 2, examples=((1.0,), (0.7,))),
    "softplus": Row(_softplus, _log1p_exp, 2.5),
    "softsign": Row(_softsign, lambda x: x / (1 + np.abs(x)), 2),
    "mish": Row(_mish, lambda x: x * np.tanh(_log1p_exp(x)), 4),
    "gelu": Row(_gelu, lambda x: 0.5 * x * (1 + _erf(x * math.sqrt(0.5))), 4, 2e-7),
    "gelu_tanh": Row(
        _gelu_tanh, lambda x: x * (0.5 + 0.5 * np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), 4, 2e-7
    ),
    "erf": Row(vmath.erf, _erf, 1.5),
    "exp": Row(vmath.exp, np.exp, 1.5),
    "log": Row(vmath.log, np.log, 1),
    "sqrt": Row(_sqrt, np.sqrt, 0.5),
    "abs": Row(_abs, np.abs),
    "neg": Row(vmath.negative, np.negative),
    "reciprocal": Row(_reciprocal, lambda x: 1 / x, 0.5),
    "floor": Row(vmath.floor, np.floor),
    "ceil": Row(vmath.ceil, np.ceil),
    "round": Row(vmath.round_even, np.round),
}


def apply(k: Kernel, activation: Activation, x: ir.Value) -> ir.Value:
    return ROWS[activation[0]].emit(k, x, *activation[1:])
