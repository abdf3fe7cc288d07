"""Activations, one row each: how a vector is computed. Fused into the kernel that produces the tensor, or run alone.

An activation is a hashable tuple: its name, then its parameters, as in ``("leaky_relu", 0.1)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from convwright.codegen import vmath
from convwright.codegen.lang import Kernel

Activation = tuple[Any, ...]


def _relu(k: Kernel, x: ir.Value) -> ir.Value:
    return k.max(x, k.splat(0.0))


def _clip(k: Kernel, x: ir.Value, low: float, high: float) -> ir.Value:
    return k.min(k.max(x, k.splat(low)), k.splat(high))


def _leaky_relu(k: Kernel, x: ir.Value, slope: float) -> ir.Value:
    return k.select(k.b.fcmp_ordered("<", x, k.splat(0.0)), k.mul(x, k.splat(slope)), x)


def _hard_sigmoid(k: Kernel, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    return _clip(k, k.fma(x, k.splat(alpha), k.splat(beta)), 0.0, 1.0)


def _hard_swish(k: Kernel, x: ir.Value) -> ir.Value:
    return k.mul(x, _hard_sigmoid(k, x, 1 / 6, 0.5))


def _silu(k: Kernel, x: ir.Value) -> ir.Value:
    return k.mul(x, vmath.sigmoid(k, x))


ROWS: dict[str, Callable[..., ir.Value]] = {
    "relu": _relu,
    "clip": _clip,
    "leaky_relu": _leaky_relu,
    "hard_sigmoid": _hard_sigmoid,
    "hard_swish": _hard_swish,
    "silu": _silu,
    "sigmoid": vmath.sigmoid,
    "tanh": vmath.tanh,
}


def apply(k: Kernel, activation: Activation, x: ir.Value) -> ir.Value:
    return ROWS[activation[0]](k, x, *activation[1:])
