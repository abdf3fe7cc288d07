"""A graph's nodes become layers: what one kernel computes, activations and residual additions included."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph import Graph, Node
from convwright.graph.convolutions import spec_of
from convwright.graph.shapes import Inferred
from convwright.model.problem import OPERATORS

# The operators that kernels fuse others into, at these ranks.
_PRODUCERS = {
    "Conv": (3, 4, 5), "ConvTranspose": (3, 4, 5), "Convolution": (3, 4, 5), "HetConvolution": (3, 4, 5),
    "MixConvolution": (3, 4, 5),
    "DeformConv": (4,), "Gemm": (2,),
}  # fmt: skip
_WEIGHTS = {"DeformConv": (1, 3)}  # which inputs must be constant, where it is not all but the first


@dataclass(slots=True)
class Layer:
    """One kernel's work.

    - ``node``: the operator that gives the layer its kind and its attributes.
    - ``output``: the value that the layer defines (the last fused operator's, where something is fused).
    - ``epilogue``: what is applied to each element before it is stored, in order (see ``kernels.activations``).
    - ``residual``: name of the value that is added, "" where there is none.
    - ``shuffle``: the groups of a channel shuffle of what the node and the epilogue give, 0 where there is none.
    - ``pooled``: whether the output is the largest of each 2 x 2 of what all that gives (``lower.pool.fuse``).
    """

    node: Node
    output: str
    epilogue: tuple[tuple[Any, ...], ...] = ()
    residual: str = ""
    shuffle: int = 0
    pooled: bool = False
    fused: list[Node] = field(default_factory=list)

    @property
    def op(self) -> str:
        return self.node.op

    @property
    def name(self) -> str:
        return self.node.name or self.output

    @property
    def reads(self) -> list[str]:
        names = [name for name in self.node.inputs if name]
        return [*names, self.residual] if self.residual else names


def activation_of(node: Node) -> tuple[Any, ...] | None:
    """The activation that the node applies to its first input, or None where it is not one."""
    get = node.attributes.get
    match node.op:
        case "Relu":
            return ("relu",)
        case "Clip" if len([name for name in node.inputs if name]) == 1:
            return ("clip", float(get("min", float("-inf"))), float(get("max", float("inf"))))
        case "LeakyRelu":
            return ("leaky_relu", float(get("alpha", 0.01)))
        case "HardSigmoid":
            return ("hard_sigmoid", float(get("alpha", 0.2)), float(get("beta", 0.5)))
        case "Gelu":
            return ("gelu_tanh",) if get("approximate", "none") == "tanh" else ("gelu",)
        case "Elu" | "Celu":
            return (node.op.lower(), float(get("alpha", 1.0)))
        case "Selu":
            return (
                "selu",
                float(get("alpha", 1.67326319217681884765625)),
                float(get("gamma", 1.05070102214813232421875)),
            )
        case "ThresholdedRelu":
            return ("thresholded_relu", float(get("alpha", 1.0)))
        case _:
            simple = _SIMPLE.get(node.op)
            return (simple,) if simple else None


_SIMPLE = {
    "Sigmoid": "sigmoid",
    "Silu": "silu",
    "HardSwish": "hard_swish",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Mish": "mish",
    "Erf": "erf",
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Abs": "abs",
    "Neg": "neg",
    "Reciprocal": "reciprocal",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
}


def layers_of(graph: Graph, types: Inferred, known: frozenset[str] | set[str] = frozenset()) -> list[Layer]:
    """The graph's layers in an order in which they can run.

    ``known``: names of activations that kernels have; others are left as layers of their own. A layer into which
    something was fused stands where the last fused operator stood, so that all it reads is there.
    """
    readers = graph.consumers()
    outputs = set(graph.outputs)
    layers: list[Layer | None] = []
    place: dict[str, int] = {}  # value -> index of the layer that defines it

    def can_take(name: str) -> Layer | None:
        """The layer defining `name`, if it may go on to the only operator that reads it."""
        if name in outputs or len(readers.get(name, ())) != 1 or name not in place:
            return None
        layer = layers[place[name]]
        return layer if layer is not None and _has_kernel(graph, types, layer) else None

    def move(layer: Layer, node: Node) -> None:
        layers[place.pop(layer.output)] = None
        layer.output = node.outputs[0]
        layer.fused.append(node)
        place[layer.output] = len(layers)
        layers.append(layer)

    for node in graph.nodes:
        if all(not name or name in types.constants for name in node.outputs):
            continue
        activation = activation_of(node)
        if activation is not None and activation[0] in known:
            layer = can_take(node.inputs[0])
            if layer is not None:
                layer.epilogue += (activation,)
                move(layer, node)
                continue
        if node.op == "ChannelShuffle" and len(types[node.inputs[0]].shape) in (3, 4):
            layer = can_take(node.inputs[0])
            if layer is not None and layer.op in OPERATORS and not layer.residual and not layer.shuffle:
                layer.shuffle = node.attributes["groups"]
                move(layer, node)
                continue
        if node.op == "Add" and not node.domain:
            pair = _residual_pair(node, can_take, place, types)
            if pair is not None:
                layer, other = pair
                layer.residual = other
                layer.epilogue += (("residual",),)
                move(layer, node)
                continue
        layer = Layer(node, node.outputs[0])
        for name in node.outputs:
            place[name] = len(layers)
        layers.append(layer)
    return [layer for layer in layers if layer is not None]


def _has_kernel(graph: Graph, types: Inferred, layer: Layer) -> bool:
    """Whether a kernel will do the layer: what runs through onnx.reference takes nothing with it."""
    ranks = _PRODUCERS.get(layer.op, ())
    x, y = types[layer.node.inputs[0]], types[layer.output]
    weights = _WEIGHTS.get(layer.op, range(1, len(layer.node.inputs)))
    known = all(layer.node.input(at) in graph.constants for at in weights if layer.node.input(at))
    if known and layer.op in OPERATORS:
        try:
            spec_of(layer.node, x.shape, types[layer.node.inputs[1]].shape)  # type: ignore[arg-type]
        except ConvwrightError:
            return False
    return known and x.dtype == np.float32 and len(x.shape) in ranks and 0 not in x.shape and 0 not in y.shape


def _residual_pair(node: Node, can_take: Any, place: dict[str, int], types: Inferred) -> tuple[Layer, str] | None:
    """Which of the sum's two layers takes the addition (the later one), and the value that it adds."""
    first, second = node.inputs
    if first == second or types[first].shape != types[second].shape or len(types[first].shape) not in (3, 4, 5):
        return None
    for name, other in sorted(((first, second), (second, first)), key=lambda pair: -place.get(pair[0], -1)):
        layer = can_take(name)
        if layer is None or layer.op not in ("Conv", "Gemm"):
            continue
        if not layer.residual and not layer.shuffle and other not in types.constants:
            return layer, other
    return None
