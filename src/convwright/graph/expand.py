"""Nodes that ONNX does not have, written out in those it has."""

from __future__ import annotations

import math

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.facts import Facts
from convwright.graph.graph import INTERNAL, Graph, Node
from convwright.graph.names import Names
from convwright.graph.onnx_functions import OPERATORS


def expand(graph: Graph) -> Graph:
    """The graph in ONNX: Silu, ChannelShuffle and limits in a Clip's attributes are what `simplify` made.

    Convolutions of the kinds that `onnx_functions` writes stay.
    """
    if not any(node.domain == INTERNAL or _limited(node) for node in graph.nodes):
        return graph
    expansion = _Expansion(graph.copy())
    for node in expansion.graph.nodes:
        if node.domain == INTERNAL and node.op in OPERATORS:
            expansion.nodes.append(node)
        elif node.domain == INTERNAL:
            rule = {"Silu": expansion.silu, "ChannelShuffle": expansion.channel_shuffle}.get(node.op)
            if rule is None:
                raise ConvwrightError(f"{node}: the operator has no form in ONNX")
            rule(node)
        else:
            if _limited(node):
                expansion.clip(node)
            expansion.nodes.append(node)
    expansion.graph.nodes = expansion.nodes
    return expansion.graph


def _limited(node: Node) -> bool:
    return node.op == "Clip" and not node.domain and len(node.inputs) == 1 and bool(node.attributes)


class _Expansion:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.facts = Facts(graph)
        self.fresh = Names(graph.names()).fresh
        self.nodes: list[Node] = []

    def constant(self, stem: str, array: np.ndarray) -> str:  # type: ignore[type-arg]
        name = self.fresh(stem)
        self.graph.constants[name] = array
        return name

    def add(self, op: str, inputs: list[str], stem: str, **attributes: object) -> str:
        name = self.fresh(stem)
        self.nodes.append(Node(op, inputs, [name], attributes))
        return name

    def clip(self, node: Node) -> None:
        dtype = self.facts.dtype(node.inputs[0]) or np.dtype(np.float32)
        for which in ("min", "max"):
            value = node.attributes.get(which)
            given = value is not None and math.isfinite(value)
            stem = f"{node.outputs[0]}_{which}"
            node.inputs.append(self.constant(stem, np.array(value, dtype)) if given else "")
        while not node.inputs[-1]:
            node.inputs.pop()
        node.attributes = {}

    def silu(self, node: Node) -> None:
        gate = self.add("Sigmoid", node.inputs[:1], f"{node.outputs[0]}_gate")
        self.nodes.append(Node("Mul", [node.inputs[0], gate], list(node.outputs), {}, node.name))

    def channel_shuffle(self, node: Node) -> None:
        """[N, C, ...] -> [N, groups, C / groups, rest] -> swapped -> [N, C, ...], whatever N, C and the rest are."""
        source, result, groups = node.inputs[0], node.outputs[0], node.attributes["groups"]
        shape = self.add("Shape", [source], f"{result}_shape")
        channels = self.add("Shape", [source], f"{result}_channels", start=1, end=2)
        count = self.constant(f"{result}_groups", np.array([groups], np.int64))
        share = self.add("Div", [channels, count], f"{result}_share")
        lead = self.constant(f"{result}_lead", np.array([0, groups], np.int64))
        rest = self.constant(f"{result}_rest", np.array([-1], np.int64))
        split = self.add("Concat", [lead, share, rest], f"{result}_split", axis=0)
        apart = self.add("Reshape", [source, split], f"{result}_apart")
        swapped = self.add("Transpose", [apart], f"{result}_swapped", perm=(0, 2, 1, 3))
        self.nodes.append(Node("Reshape", [swapped, shape], list(node.outputs), {}, node.name))
