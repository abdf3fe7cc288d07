"""The inner step of every dense kernel: broadcast input values times vectors of weights, added to a tile of sums."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from convwright.codegen.lang import Integer, Kernel, Variable

Sums = list[list[Variable]]
"""Accumulators ``[pixel][out]``; ``out`` counts vectors of output channels."""


def add_products(
    k: Kernel, sums: Sums, weights: Variable, w_out: Integer, unroll: int, value: Callable[[int, int], ir.Value]
) -> None:
    """``sums[pixel][out] += value(pixel, i) * weights[out][i]`` for ``i`` from 0 to ``unroll - 1``.

    - ``weights``: pointer to vectors that follow each other, those of ``out`` from ``out * w_out`` floats on; moved
      past what was used.
    - ``value``: the scalar input of a pixel.
    """
    now = weights.get()
    for ahead in range(unroll):
        vectors = [k.load(k.advance(now, w_out * out), ahead * k.v) for out in range(len(sums[0]))]
        for pixel, accumulators in enumerate(sums):
            broadcast = k.broadcast(value(pixel, ahead))
            for vector, accumulator in zip(vectors, accumulators, strict=True):
                accumulator.set(k.fma(broadcast, vector, accumulator.get()))
    weights.set(k.advance(now, unroll * k.v))
