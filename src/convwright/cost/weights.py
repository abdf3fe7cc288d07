"""Which constants of a graph are parameters, which are buffers, and which are neither.

Parameters are what training learns: weights, biases, and a batch norm's scale and shift, whose running mean and
variance are buffers. Published parameter counts follow this convention. A constant counts by its name: two that hold
the same values are two.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from convwright.cost.elementwise import VIEWS
from convwright.graph.graph import Graph, Node, names
from convwright.graph.shapes import Inferred

WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(names("Conv ConvTranspose Convolution HetConvolution"), (1, 2)),
    **dict.fromkeys(names("BatchNormalization GroupNormalization InstanceNormalization LayerNormalization"), (1, 2)),
    **dict.fromkeys(names("ConvInteger PRelu RMSNormalization"), (1,)),
    **dict.fromkeys(names("MatMul MatMulInteger"), (0, 1)),
    "DeformConv": (1, 3),
    "Gemm": (0, 1, 2),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
}
"""The inputs that are weights where they are constants, of any type and size."""

BUFFERS: dict[str, tuple[int, ...]] = {"BatchNormalization": (3, 4)}

SETTINGS = frozenset(names("Clip DequantizeLinear DynamicQuantizeLinear OneHot Pad QuantizeLinear Range Resize"))
"""Operators whose constants say how they work. Those of all others, but scalars and integers, are weights."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant that a layer reads: how many of its values are learned, how many are not, and its bytes."""

    parameters: int
    buffers: int
    nbytes: int


class Constants:
    """What does not depend on the data, and the constants of the file that it was made of."""

    def __init__(self, graph: Graph, types: Inferred) -> None:
        self.types = types
        self.fixed = {*graph.constants, *types.constants}
        self._roots: dict[str, tuple[str, ...]] = {name: (name,) for name in graph.constants}

    def take(self, node: Node) -> bool:
        """Whether the node reads constants alone; what it makes is then one."""
        if not node.inputs or not all(not name or name in self.fixed for name in node.inputs):
            return all(name in self.types.constants for name in node.outputs if name)
        self.fixed.update(name for name in node.outputs if name)
        for name in node.outputs:
            if name and node.op == "Identity":
                # Exporters give one of these to each parameter that has the values of another.
                self._roots[name] = (name,)
            elif name:
                others = () if node.op in SETTINGS else node.inputs[1:]
                roots = [*self._roots.get(node.input(0), ()), *(root for other in others for root in self._real(other))]
                self._roots[name] = tuple(dict.fromkeys(roots))
        return True

    def weights(self, node: Node) -> dict[str, Weight]:
        """The weights and buffers that a node reads, by name of the constant."""
        if node.op == "HetConvolution":
            return self._het(node)
        places = WEIGHTS.get(node.op)
        if places is None and node.op == "MixConvolution":
            places = tuple(range(1, len(node.inputs)))
        found: dict[str, Weight] = {}
        if places is None:
            for name in () if node.op in SETTINGS or node.op in VIEWS else node.inputs:
                found |= {root: self._weight(root, 1) for root in self._real(name, "fiu" if node.op == "Add" else "f")}
            return found
        for place in places:
            found |= {root: self._weight(root, 1) for root in self._roots.get(node.input(place), ())}
        for place in BUFFERS.get(node.op, ()):
            found |= {root: self._weight(root, 0) for root in self._roots.get(node.input(place), ())}
        return found

    def _het(self, node: Node) -> dict[str, Weight]:
        """The file holds dense weights, of which the zeros are none."""
        spec, dtype = node.attributes["spec"], self.types[node.inputs[0]].dtype
        roots = self._roots.get(node.inputs[1], ())
        found = {root: Weight(spec.taps, 0, spec.taps * dtype.itemsize) for root in roots}
        return found | {root: self._weight(root, 1) for root in self._roots.get(node.input(2), ())}

    def _real(self, name: str, kinds: str = "f") -> tuple[str, ...]:
        """The arrays of floating point (or of other kinds of numbers) among what a value was made of."""
        infos = {root: self.types[root] for root in self._roots.get(name, ())}
        return tuple(root for root, info in infos.items() if info.dtype.kind in kinds and prod(info.shape) > 1)  # type: ignore[arg-type]

    def _weight(self, name: str, learned: int) -> Weight:
        info = self.types[name]
        count: int = prod(info.shape)  # type: ignore[arg-type]
        return Weight(count * learned, count * (1 - learned), count * info.dtype.itemsize)
