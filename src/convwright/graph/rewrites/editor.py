"""A graph under rewriting: who defines and reads what, and what is known of the shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from convwright.graph.facts import Facts, Shape
from convwright.graph.graph import Graph, Node
from convwright.graph.names import Names

Array = np.ndarray[Any, Any]


class Editor:
    """Wraps a graph that may be changed, and keeps its maps right while rewrites change it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.facts = Facts(graph)
        self.outputs = set(graph.outputs)
        self._producer: dict[str, Node] = {}
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            self._link(node)
        self._names = Names(graph.names())

    def _link(self, node: Node) -> None:
        for name in node.outputs:
            if name:
                self._producer[name] = node
        for name in dict.fromkeys(node.inputs):
            if name:
                self._readers.setdefault(name, []).append(node)

    def _unlink(self, node: Node) -> None:
        for name in node.outputs:
            if self._producer.get(name) is node:
                del self._producer[name]
        for name in dict.fromkeys(node.inputs):
            if name:
                self._readers[name] = [reader for reader in self._readers[name] if reader is not node]

    def producer(self, name: str, op: str = "") -> Node | None:
        """The node that defines a value, if it is an `op` (any operator where `op` is empty)."""
        node = self._producer.get(name)
        return node if node is not None and (not op or node.op == op) else None

    def readers(self, name: str) -> list[Node]:
        return self._readers.get(name, [])

    def private(self, name: str) -> bool:
        """Whether one node alone reads the value, and it is not an output."""
        return name not in self.outputs and len(self._readers.get(name, ())) == 1

    def constant(self, name: str) -> Array | None:
        """Contents of a constant, None for other values."""
        return self.graph.constants.get(name) if name else None

    def scalar(self, name: str) -> float | None:
        """Value of a constant of one element that broadcasts without adding axes, None for other values."""
        array = self.constant(name)
        if array is None or array.size != 1 or array.dtype.kind not in "fiu":
            return None
        return float(array.reshape(()))

    def shapes(self, name: str) -> tuple[Shape, ...] | None:
        """The value's shape for each trial of the inputs' shapes (one, where those are fixed); None where unknown."""
        return self.facts.shapes(name)

    def rank(self, name: str) -> int | None:
        shapes = self.shapes(name)
        return None if shapes is None else len(shapes[0])

    def add_constant(self, stem: str, array: Array) -> str:
        """Store a new constant and return its name."""
        name = self.fresh(stem)
        self.graph.constants[name] = array
        return name

    def fresh(self, stem: str) -> str:
        """A name that no value has."""
        return self._names.fresh(stem)

    def change(
        self,
        node: Node,
        *,
        op: str | None = None,
        domain: str = "",
        inputs: list[str] | None = None,
        outputs: list[str] | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """Change parts of a node in place; a new `op` starts with no attributes unless some are given."""
        self._unlink(node)
        if op is not None:
            node.op, node.domain = op, domain
            node.attributes = {}
        if inputs is not None:
            node.inputs = inputs
        if outputs is not None:
            node.outputs = outputs
        if attributes is not None:
            node.attributes = attributes
        self._link(node)

    def insert_before(self, anchor: Node, node: Node) -> None:
        position = next(index for index, other in enumerate(self.graph.nodes) if other is anchor)
        self.graph.nodes.insert(position, node)
        self._names.take(node.outputs)
        self._link(node)

    def remove(self, node: Node) -> None:
        """Take a node out; its outputs must have no readers left."""
        self._unlink(node)
        self.graph.nodes = [other for other in self.graph.nodes if other is not node]

    def keep_only(self, nodes: list[Node]) -> None:
        """Take out all nodes but these."""
        kept = {id(node) for node in nodes}
        for node in self.graph.nodes:
            if id(node) not in kept:
                self._unlink(node)
        self.graph.nodes = nodes

    def take_over(self, producer: Node, node: Node) -> None:
        """`producer` defines what `node`, the only reader of its first output, defined; `node` goes."""
        result = node.outputs[0]
        self.remove(node)
        self.change(producer, outputs=[result, *producer.outputs[1:]])

    def bypass(self, node: Node) -> bool:
        """Take out a node whose first output equals its first input; False where the names do not allow it."""
        source, result = node.inputs[0], node.outputs[0]
        if result not in self.outputs:
            self.redirect(result, source)
            self.remove(node)
            return True
        maker = self._producer.get(source)
        if maker is None or source in self.outputs:
            return False
        # The output's name has to stay, so the input takes it.
        self.remove(node)
        self.change(maker, outputs=[result if name == source else name for name in maker.outputs])
        self.redirect(source, result)
        return True

    def redirect(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`."""
        for reader in list(self.readers(old)):
            self.change(reader, inputs=[new if name == old else name for name in reader.inputs])
