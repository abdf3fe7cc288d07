"""Walking along a row of floats a vector at a time, the rest of the row under a lane mask; and square transposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from convwright.codegen.lang import Int, Integer, Kernel


def along(k: Kernel, start: Integer, stop: Integer, body: Callable[[Int, ir.Value | None], None]) -> None:
    """Call ``body(offset, mask)`` for every vector of the floats ``start <= offset < stop``.

    The mask is None where the whole vector lies inside.
    """
    stop = Int(k, k.int_value(stop))
    count = stop - start
    whole = stop - count % k.v
    with k.loop(start, whole, k.v) as offset:
        body(offset, None)
    with k.when(whole < stop):
        body(whole, k.mask(0, stop - whole))


def copy(k: Kernel, x: ir.Value, y: ir.Value, count: Integer) -> None:
    """Copy ``count`` floats."""
    along(k, 0, count, lambda offset, mask: k.store(k.load(x, offset, mask), y, offset, mask))


def fill(k: Kernel, value: ir.Value, y: ir.Value, start: Integer, stop: Integer) -> None:
    """Store the vector ``value`` over the floats ``start <= offset < stop``; all its lanes are alike."""
    along(k, start, stop, lambda offset, mask: k.store(value, y, offset, mask))


def transpose(k: Kernel, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """The columns of a ``v x v`` matrix given as its ``v`` rows.

    Pairs of rows are interleaved inside 128-bit lanes (unpcklps, unpcklpd), then whole 128-bit lanes change places:
    every shuffle is one instruction on the targets that have vectors of that width.
    """
    groups = []
    for first in range(0, k.v, 4):
        a, b, c, d = rows[first : first + 4]
        low_ab, high_ab = _interleave(k, a, b, (0, 1)), _interleave(k, a, b, (2, 3))
        low_cd, high_cd = _interleave(k, c, d, (0, 1)), _interleave(k, c, d, (2, 3))
        groups.append([_pairs(k, *halves, at) for halves in ((low_ab, low_cd), (high_ab, high_cd)) for at in (0, 2)])
    # groups[g][c] holds, in its 128-bit lane q, column 4q + c of rows 4g .. 4g + 3
    columns: list[ir.Value] = [None] * k.v
    for place in range(4):
        if k.v == 4:
            columns[place] = groups[0][place]
        elif k.v == 8:
            a, b = groups[0][place], groups[1][place]
            columns[place], columns[4 + place] = _quads(k, a, b, (0, 2)), _quads(k, a, b, (1, 3))
        else:
            a, b, c, d = (group[place] for group in groups)
            for high in (0, 1):
                half = (2 * high, 2 * high + 1, 2 * high + 4, 2 * high + 5)
                top, bottom = _quads(k, a, b, half), _quads(k, c, d, half)
                columns[8 * high + place] = _quads(k, top, bottom, (0, 2, 4, 6))
                columns[8 * high + 4 + place] = _quads(k, top, bottom, (1, 3, 5, 7))
    return columns


def _interleave(k: Kernel, a: ir.Value, b: ir.Value, lanes: tuple[int, int]) -> ir.Value:
    """Of every four floats the two named by ``lanes``, of ``a`` and ``b`` in turn."""
    order = [base + lane + side for base in range(0, k.v, 4) for lane in lanes for side in (0, k.v)]
    return k.shuffle(a, b, order)


def _pairs(k: Kernel, a: ir.Value, b: ir.Value, at: int) -> ir.Value:
    """Of every four floats the two from ``at`` on, first of ``a``, then of ``b``."""
    order = [base + at + lane + side for base in range(0, k.v, 4) for side in (0, k.v) for lane in (0, 1)]
    return k.shuffle(a, b, order)


def _quads(k: Kernel, a: ir.Value, b: ir.Value, quads: Sequence[int]) -> ir.Value:
    """Quarters of four floats, counted through ``a`` and on through ``b``."""
    return k.shuffle(a, b, [4 * quad + lane for quad in quads for lane in range(4)])
