"""The least memory that activations need, over the nodes in the order in which they stand.

A value is alive from the node that makes it to the last that reads it, a graph's input from the beginning, an output
to the end. While a node runs, its inputs and outputs and everything that is still needed lie in memory together:
nothing is computed in place. Views (reshapes, identities) are the memory that they look at. Weights are not
activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from convwright.graph.graph import Graph, Node


@dataclass(slots=True)
class Lives:
    """Where each buffer begins and ends to live, as places in the order of nodes."""

    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)


def bytes_alive(
    graph: Graph, nodes: Sequence[Node], views: Mapping[str, str], sizes: Mapping[str, int]
) -> list[int]:  # fmt: skip
    """Bytes of activations alive while each of the nodes runs.

    - `nodes`: those that run, in order.
    - `views`: for a value that is another's memory, that other.
    - `sizes`: bytes of every value that is an activation; others take none.
    """
    lives = Lives(first=dict.fromkeys(graph.inputs, 0))
    for place, node in enumerate(nodes):
        for name in node.outputs:
            if name:
                lives.first[name] = lives.last[name] = place
        for name in node.inputs:
            source = views.get(name, name)
            if source in lives.first:
                lives.last[source] = place
    for name in graph.outputs:
        source = views.get(name, name)
        if source in lives.first:
            lives.last[source] = len(nodes) - 1
    change = [0] * (len(nodes) + 1)
    for name, last in lives.last.items():
        size = sizes.get(name, 0)
        change[lives.first[name]] += size
        change[last + 1] -= size
    alive, now = [], 0
    for step in change[:-1]:
        now += step
        alive.append(now)
    return alive
