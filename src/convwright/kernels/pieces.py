"""Long sums in pieces: what registers have summed from zero is added, now and then, to totals in memory.

A sum of n random terms in float32, one after another, is off by about the root of n / 2 roundings of the result. Where
pieces of p are summed apart and then added up, it is the root of (p + n / p) / 2 (blocked summation; N. J. Higham, The
Accuracy of Floating Point Summation, SIAM J. Sci. Comput. 14(4), 1993): a fifth for 4608 terms, a ninth for 25088. With
28 sums in registers the totals cost a load and a store of each for ``PIECE`` products: 2 % of the time by count.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from convwright.codegen.lang import I64, PTR, Integer, Kernel, Variable

PIECE = 128  # products, at least; half of it: a tenth less error of 4608 terms, at twice the cost


def long(terms: int) -> bool:
    """Whether a sum of so many terms gains by pieces."""
    return terms > PIECE


def longest(terms: float, piece: float = PIECE) -> float:
    """Of how many terms one after another a sum has the errors that one in pieces of ``piece`` has."""
    return min(terms, piece + terms / piece)


class Totals:
    """Totals beside ``sums``, which are zero at first, on the stack."""

    def __init__(self, k: Kernel, sums: Sequence[Sequence[Variable]]):
        self._k, self._sums = k, sums
        self._done = k.variable(0)
        self._room = _room(k, sum(map(len, sums)))
        for number in range(len(self._every())):
            k.store(k.splat(0.0), self._room, number * k.v)

    def count(self, products: Integer) -> None:
        """Note that so many products have been added to each sum; it is a piece when there are ``PIECE``."""
        self._done.set(self._done.get() + products)
        with self._k.when(self._done.get() >= PIECE):
            self.add()
            self._done.set(0)

    def add(self) -> None:
        """Add the sums to the totals, and go on with sums of zero."""
        k = self._k
        for number, accumulator in enumerate(self._every()):
            kind = accumulator.get().type
            k.store(self._total(number, accumulator), self._room, number * k.v)
            accumulator.set(ir.Constant(kind, [0.0] * kind.count))

    def finished(self) -> list[list[ir.Value]]:
        """The sums and totals together."""
        every = iter([self._total(number, accumulator) for number, accumulator in enumerate(self._every())])
        return [[next(every) for _ in accumulators] for accumulators in self._sums]

    def _every(self) -> list[Variable]:
        return [accumulator for accumulators in self._sums for accumulator in accumulators]

    def _total(self, number: int, accumulator: Variable) -> ir.Value:
        k, now = self._k, accumulator.get()
        where = k.advance(self._room, number * k.v)
        return k.add(k.b.load(where, typ=now.type, align=k.width), now)


def _room(k: Kernel, vectors: int) -> ir.Value:
    """Memory for so many vectors on the stack, each in one cache line.

    A stack that LLVM aligns takes a register for its frame: then its scheduler, short of addresses, loads far ahead and
    spills sums.
    """
    with k.b.goto_entry_block():
        bytes_of_vector = k.v * k.width
        first = k.b.alloca(ir.ArrayType(k.scalar_type, (vectors + 1) * k.v))
        start = k.b.add(k.b.ptrtoint(first, I64), k.int_value(bytes_of_vector - 1))
        return k.b.inttoptr(k.b.and_(start, k.int_value(-bytes_of_vector)), PTR)
