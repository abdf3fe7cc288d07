"""New names for values and constants that a graph does not have yet."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """The names that are taken; ``fresh`` takes another."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def take(self, names: Iterable[str]) -> None:
        self._taken.update(names)

    def fresh(self, stem: str) -> str:
        """``stem``, or where that is taken ``stem`` with a number."""
        name, number = stem, 0
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name
