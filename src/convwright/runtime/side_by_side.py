"""Work in pieces that all cores do at once, where they spend their time outside Python: packing weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from convwright.runtime.machine import cores

_FEWEST = 4  # pieces that are worth to start threads for

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


def side_by_side(work: Callable[[_Piece], _Result], pieces: Iterable[_Piece]) -> list[_Result]:
    """What `work` gives for each piece, in their order; one after another where there is one core, or few pieces.

    >>> side_by_side(abs, [-1, 2, -3])
    [1, 2, 3]
    """
    pieces = list(pieces)
    workers = min(cores(), len(pieces))
    if workers < 2 or len(pieces) < _FEWEST:
        return [work(piece) for piece in pieces]
    with ThreadPoolExecutor(workers, "convwright-pack") as pool:
        return list(pool.map(work, pieces))
