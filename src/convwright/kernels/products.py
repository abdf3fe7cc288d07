"""The inner step of every dense kernel: broadcast input values times vectors of weights, added to a tile of sums."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from convwright.codegen.lang import PTR, Integer, Kernel, Variable

Sums = list[list[Variable]]
"""Accumulators ``[pixel][out]``; ``out`` counts vectors of output channels."""


def add_products(
    k: Kernel,
    sums: Sums,
    weights: Variable,
    w_out: Integer,
    unroll: int,
    value: Callable[[int, int], ir.Value],
    again: Callable[[int, int], ir.Value] | None = None,
) -> None:
    """``sums[pixel][out] += value(pixel, i) * weights[out][i]`` for ``i`` from 0 to ``unroll - 1``.

    - ``weights``: pointer to vectors that follow each other, those of ``out`` from ``out * w_out`` floats on; moved
      past what was used.
    - ``value``: the scalar input of a pixel.
    - ``again``: where the sums of a pixel's last vector are the lower half of one: the same scalar, loaded another
      time. Half a broadcast would do, but LLVM then broadcasts to a half first, and that to the whole.
    """
    now = weights.get()
    for ahead in range(unroll):
        if again:  # its scheduler would load the weights of several steps at once, and spill sums
            k.b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)
        vectors = [k.load(k.advance(now, w_out * out), ahead * k.v) for out in range(len(sums[0]))]
        if again:
            vectors[-1] = lower_half(k, vectors[-1])
        for pixel, accumulators in enumerate(sums):
            factors = [k.broadcast(value(pixel, ahead))] * len(accumulators)
            if again:
                factors[-1] = lower_half(k, k.broadcast(again(pixel, ahead)))
            for factor, vector, accumulator in zip(factors, vectors, accumulators, strict=True):
                accumulator.set(k.fma(factor, vector, accumulator.get()))
    weights.set(k.advance(now, unroll * k.v))


# One instruction after another: LLVM's scheduler would bring several sums' additions forward, and spill sums.
_PAIR = "vaddps {}($4){{1to{}}}, $7, $1\n\tvaddps {}($5){{1to{}}}, $6, $2\n\tvfmadd231ps $1, $2, $0"


def add_pair(
    k: Kernel, total: Variable, a1: tuple[ir.Value, int], a2: tuple[ir.Value, int], b1: ir.Value, b2: ir.Value
) -> None:
    """``total += (a1 + b2) * (a2 + b1)``, one product for two (see `kernels.paired`).

    - ``a1``, ``a2``: where a scalar lies: a pointer, and floats from there on.
    - ``b1``, ``b2``: vectors of weights; as ``total``, whole ones or lower halves.
    """
    if not keeps_pairs_together(k):
        first, second = (k.broadcast(k.load_scalar(*place)) for place in (a1, a2))
        if b1.type.count < k.v:
            first, second = lower_half(k, first), lower_half(k, second)
        total.set(k.fma(k.add(first, b2), k.add(second, b1), total.get()))
        return
    vector = b1.type
    kind = ir.FunctionType(ir.LiteralStructType([vector] * 3), [vector, PTR, PTR, vector, vector])
    text = _PAIR.format(a1[1] * k.width, vector.count, a2[1] * k.width, vector.count)
    operands = [total.get(), a1[0], a2[0], b1, b2]
    results = k.b.asm(kind, text, "=v,=&v,=&v,0,r,r,v,v,~{memory}", operands, True)
    total.set(k.b.extract_value(results, 0))


def keeps_pairs_together(k: Kernel) -> bool:
    """Whether `add_pair` is three instructions that stay where they are written, of two registers besides its own."""
    return k.target.is_x86 and k.v == 16


def lower_half(k: Kernel, vector: ir.Value) -> ir.Value:
    """The first half of a vector's lanes."""
    return k.shuffle(vector, vector, range(k.v // 2))


def whole_of_half(k: Kernel, half: ir.Value) -> ir.Value:
    """A vector whose first half is this; its other lanes hold anything."""
    return k.shuffle(half, ir.Constant(half.type, ir.Undefined), range(k.v))
