"""A graph without its weights: enough for everything that asks for shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convwright.graph.graph import Graph, ValueInfo

_SMALL = 1024
"""Constants of at most this many elements are kept: shapes may depend on them."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A graph with its small constants, and the types of the others. Takes little memory, pickled too."""

    graph: Graph
    missing: dict[str, ValueInfo]

    def whole(self) -> Graph:
        """The graph with zeros, which take no memory, in place of the large constants."""
        graph = self.graph.copy()
        for name, info in self.missing.items():
            graph.constants[name] = np.broadcast_to(np.zeros((), info.dtype), info.shape)  # type: ignore[arg-type]
        return graph


def outline(graph: Graph) -> Outline:
    copy = graph.copy()
    large = {name: array for name, array in copy.constants.items() if array.size > _SMALL and array.dtype != object}
    for name in large:
        del copy.constants[name]
    return Outline(copy, {name: ValueInfo(array.dtype, array.shape) for name, array in large.items()})
