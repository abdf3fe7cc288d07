"""Winograd's transforms: matrices of few small numbers times vectors that are in registers.

Each lane of the vectors is a transform of its own. What matrices of opposite points have in common is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from llvmlite import ir

from convwright.codegen.lang import Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels.cook_toom import Matrix


def both_ways(
    k: Kernel, high: Matrix, wide: Matrix, load: Callable[[Integer, Integer], ir.Value],
    store: Callable[[Integer, Sequence[ir.Value]], None], room: ir.Value, together: int = 1,
) -> None:  # fmt: skip
    """high d wide^T of d = load(row, col), stored row by row: columns first, then rows.

    Where the vectors of d are `in_registers`, both ways are written out. Else one column or row is there
    at a time, and what comes between them in ``room``. ``store`` is called for ``together`` rows in turn,
    so that it may keep one for the next.
    """
    rows, cols, between = len(high[0]), len(wide[0]), len(high)
    if rows == 1:
        store(0, combine(k, wide, [load(0, col) for col in range(cols)]))
    elif cols == 1:
        for row, vector in enumerate(combine(k, high, [load(row, 0) for row in range(rows)])):
            store(row, [vector])
    elif in_registers(rows, cols, k.target):
        columns = [combine(k, high, [load(row, col) for row in range(rows)]) for col in range(cols)]
        for row in range(between):
            store(row, combine(k, wide, [column[row] for column in columns]))
    else:
        with k.loop(0, cols) as col:
            col = k.opaque_int(col)
            to = k.advance(room, col * k.v)
            for row, vector in enumerate(combine(k, high, [load(row, col) for row in range(rows)])):
                k.store(vector, to, row * cols * k.v)
        with k.loop(0, between, together) as number:
            number = k.opaque_int(number)
            for now in (number + ahead for ahead in range(together)):
                at = k.advance(room, now * (cols * k.v))
                store(now, combine(k, wide, [k.load(at, col * k.v) for col in range(cols)]))


def in_registers(rows: int, cols: int, target: Target) -> bool:
    """Whether the vectors of a transform of two ways stay in registers between the two: few are spilled."""
    return min(rows, cols) == 1 or rows * cols <= target.registers * 5 // 4


def combine(k: Kernel, matrix: Matrix, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """matrix times a column of vectors. Rows of opposite points share their even and their odd part; columns of
    opposite points are added and subtracted first."""
    pairs, plan = _plan(matrix)
    vectors = list(vectors)
    for at in pairs:
        first, second = vectors[at : at + 2]
        vectors[at : at + 2] = k.add(first, second), k.sub(first, second)
    results: list[ir.Value] = []
    for rows, parts in plan:
        if rows == 1:
            results.append(_row(k, parts[0], vectors))
        else:
            even, odd = (_row(k, part, vectors) for part in parts)
            results += [k.add(even, odd), k.sub(even, odd)]
    return results


Row = tuple[float, ...]
RowPlan = tuple[tuple[int, tuple[Row, ...]], ...]
"""Rows one by one, or two by two as (2, (their half sum, their half difference))."""


@lru_cache(maxsize=256)
def _plan(matrix: Matrix) -> tuple[tuple[int, ...], RowPlan]:
    """The columns that take the sum of themselves and the next one, which takes the difference; and the rows of what
    the matrix then is."""
    # In floats, which hold the entries and their halves exactly: fractions took 15 ms of a network's plan.
    exact = tuple(tuple(map(float, row)) for row in matrix)
    pairs, rows = _paired_columns(exact)
    alone, together = _row_plan(exact), _row_plan(rows)
    if 2 * len(pairs) + _operations(together) < _operations(alone):
        return pairs, together
    return (), alone


def _paired_columns(matrix: tuple[Row, ...]) -> tuple[tuple[int, ...], tuple[Row, ...]]:
    """Neighbouring columns whose entries are equal or opposite in every row."""
    columns, pairs, at = list(zip(*matrix, strict=True)), [], 0
    while at + 1 < len(columns):
        left, right = columns[at : at + 2]
        if all(abs(a) == abs(b) for a, b in zip(left, right, strict=True)) and left != right and any(left):
            columns[at] = tuple(a if a == b else 0.0 for a, b in zip(left, right, strict=True))
            columns[at + 1] = tuple(a if a != b else 0.0 for a, b in zip(left, right, strict=True))
            pairs.append(at)
            at += 1
        at += 1
    return tuple(pairs), tuple(zip(*columns, strict=True))


def _row_plan(matrix: tuple[Row, ...]) -> RowPlan:
    plan: list[tuple[int, tuple[Row, ...]]] = []
    at = 0
    while at < len(matrix):
        pair = matrix[at : at + 2]
        even, odd = (tuple((a + s * b) / 2 for a, b in zip(pair[0], pair[-1], strict=True)) for s in (1, -1))
        if len(pair) == 2 and _terms(even) + _terms(odd) + 2 < _terms(pair[0]) + _terms(pair[1]):
            plan.append((2, (even, odd)))
            at += 2
        else:
            plan.append((1, (pair[0],)))
            at += 1
    return tuple(plan)


def operations(matrix: Matrix) -> int:
    """Arithmetic instructions of `combine`."""
    pairs, plan = _plan(matrix)
    return 2 * len(pairs) + _operations(plan)


def _operations(plan: RowPlan) -> int:
    return sum(sum(map(_terms, parts)) + (2 if rows == 2 else 0) for rows, parts in plan)


def _terms(row: Row) -> int:
    """Instructions of `_row`: one a term, but for a first one without a factor."""
    return sum(entry != 0 for entry in row) - (1 in row)


def _row(k: Kernel, row: Row, vectors: Sequence[ir.Value]) -> ir.Value:
    """A linear combination; the terms without a factor come first."""
    terms = [(entry, vector) for entry, vector in zip(row, vectors, strict=True) if entry]
    terms.sort(key=lambda term: (term[0] != 1, abs(term[0]) != 1))
    total: ir.Value = None
    for entry, vector in terms:
        if total is None:
            total = vector if entry == 1 else k.mul(vector, k.splat(float(entry)))
        elif entry == 1:
            total = k.add(total, vector)
        elif entry == -1:
            total = k.sub(total, vector)
        else:
            total = k.fma(vector, k.splat(float(entry)), total)
    return total
