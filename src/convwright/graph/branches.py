"""Operators that run a subgraph: an If whose condition is known becomes the branch it takes, others are refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.facts import Facts
from convwright.graph.graph import Graph, Node, sort_nodes
from convwright.graph.opset import normalise


def settle_branches(graph: Graph) -> Graph:
    """The graph without subgraphs, changed in place; ConvwrightError for those that only the data can decide."""
    inlined = 0
    while True:
        node = next((node for node in graph.nodes if _holds_graph(node)), None)
        if node is None:
            break
        if node.op != "If" or node.domain:
            raise ConvwrightError(f"{node}: operators that run a subgraph are not supported")
        condition = graph.constants.get(node.inputs[0]) if node.inputs else None
        if condition is None and node.inputs:
            condition = Facts(graph).content(node.inputs[0])
        if condition is None or condition.size != 1:
            raise ConvwrightError(f"{node}: its condition depends on the data, which is not supported")
        _inline(graph, node, _branch(node, condition), f"branch{inlined}/")
        inlined += 1
    if inlined:
        graph.nodes = sort_nodes(graph.nodes, [*graph.inputs, *graph.constants])
        graph.validate()
    return graph


def _holds_graph(node: Node) -> bool:
    return any(isinstance(value, Graph) for value in node.attributes.values())


def _branch(node: Node, condition: np.ndarray[Any, Any]) -> Graph:
    which = "then_branch" if condition.reshape(-1)[0] else "else_branch"
    branch = node.get(which)
    if not isinstance(branch, Graph) or len(branch.outputs) != len(node.outputs):
        raise ConvwrightError(f"{node}: its {which} is missing or has other outputs than the node")
    return normalise(branch)


def _inline(graph: Graph, node: Node, branch: Graph, prefix: str) -> None:
    """Put the branch's nodes in the place of the If; inner names get a prefix, outer ones stay."""
    taken = set(graph.names())
    while any(name.startswith(prefix) for name in taken):
        prefix = "_" + prefix
    names = {name: prefix + name for name in branch.names()}
    tail = []
    made = {out for inner in branch.nodes for out in inner.outputs}
    for inner, outer in zip(branch.outputs, node.outputs, strict=True):
        if inner in made and names[inner].startswith(prefix):
            names[inner] = outer
        else:
            tail.append(Node("Identity", [names.get(inner, inner)], [outer]))
    for name, array in branch.constants.items():
        graph.constants[names[name]] = array
    for inner_node in branch.nodes:
        inner_node.inputs = [names.get(name, name) for name in inner_node.inputs]
        inner_node.outputs = [names.get(name, name) for name in inner_node.outputs]
    position = next(index for index, other in enumerate(graph.nodes) if other is node)
    graph.nodes[position : position + 1] = [*branch.nodes, *tail]
