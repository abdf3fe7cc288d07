"""One normal form for every opset: what older versions of an operator said in attributes, newer ones say in inputs.

Each function turns nodes of one operator, as the model's opset has them, into the form of the newest. The numbers are
the opset versions of https://onnx.ai/onnx/operators where the form changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import INTERNAL, Graph, Node, names
from convwright.graph.names import Names

OLDEST = 7
NEWEST_COMMON = 20
"""Graphs carry at least this opset; all normal forms are valid in it, and differ from none that came after."""


class _Normaliser:
    """The graph under way, and names for what is added to it."""

    def __init__(self, graph: Graph) -> None:
        self.opset = graph.opset
        self.constants = graph.constants
        self.fresh = Names(graph.names()).fresh
        floats = [info.dtype for info in graph.inputs.values() if info.dtype.kind == "f"]
        self.float_type = floats[0] if floats else np.dtype(np.float32)
        self.nodes: list[Node] = []

    def constant(self, node: Node, what: str, value: Any, dtype: Any = np.int64) -> str:
        name = self.fresh(f"{node.outputs[0]}_{what}")
        self.constants[name] = np.array(value, dtype)
        return name

    def set_input(self, node: Node, index: int, name: str) -> None:
        node.inputs += [""] * (index + 1 - len(node.inputs))
        node.inputs[index] = name


def normalise(graph: Graph) -> Graph:
    """The graph with its nodes in the newest form; changes it in place."""
    state = _Normaliser(graph)
    for node in graph.nodes:
        rule = None if node.domain else _RULES.get(node.op)
        if rule is not None:
            rule(state, node)
        state.nodes.append(node)
    graph.nodes = state.nodes
    graph.opset = max(graph.opset, NEWEST_COMMON)
    return graph


def _clip(state: _Normaliser, node: Node) -> None:
    if state.opset < 11:
        for index, name in ((1, "min"), (2, "max")):
            if name in node.attributes:
                value = node.attributes.pop(name)
                state.set_input(node, index, state.constant(node, name, value, state.float_type))


def _dropout(state: _Normaliser, node: Node) -> None:
    if len(node.inputs) > 2 and node.inputs[2] and _known(state, node, 2).any():
        raise ConvwrightError(f"{node} drops values also at inference (training_mode is true)")
    node.attributes.clear()
    del node.inputs[1:]


def _batch_normalization(state: _Normaliser, node: Node) -> None:
    if node.get("training_mode"):
        raise ConvwrightError(f"{node} computes statistics at inference (training_mode is 1), which is not supported")
    if not node.get("spatial", 1):
        raise ConvwrightError(f"{node} normalises each element on its own (spatial is 0), which is not supported")
    if len(node.inputs) != 5:
        raise ConvwrightError(f"{node} has {len(node.inputs)} inputs, it needs 5")
    node.attributes = {"epsilon": node.get("epsilon", 1e-5)}
    del node.outputs[1:]


def _axes_to_input(since: int) -> Callable[[_Normaliser, Node], None]:
    def rule(state: _Normaliser, node: Node) -> None:
        if state.opset < since and "axes" in node.attributes:
            state.set_input(node, 1, state.constant(node, "axes", node.attributes.pop("axes")))

    return rule


def _flattened_softmax(state: _Normaliser, node: Node) -> None:
    """Before opset 13, Softmax worked on the input flattened to two axes at `axis` (default 1)."""
    if state.opset >= 13:
        return
    axis = node.attributes.pop("axis", 1)
    source, result = node.inputs[0], node.outputs[0]
    if axis == -1:
        node.attributes["axis"] = -1
        return
    shape, flat, soft = (state.fresh(f"{result}_{what}") for what in ("shape", "flat", "soft"))
    state.nodes.append(Node("Shape", [source], [shape]))
    state.nodes.append(Node("Flatten", [source], [flat], {"axis": axis}))
    state.nodes.append(Node(node.op, [flat], [soft], {"axis": -1}, node.name))
    node.op, node.inputs, node.attributes, node.name = "Reshape", [soft, shape], {}, ""


def _pad(state: _Normaliser, node: Node) -> None:
    if state.opset < 11:
        pads = node.attributes.pop("pads", None)
        if pads is None:
            raise ConvwrightError(f"{node} has no pads")
        value = node.attributes.pop("value", 0.0)
        state.set_input(node, 1, state.constant(node, "pads", pads))
        if node.get("mode", "constant") == "constant" and value:
            state.set_input(node, 2, state.constant(node, "value", value, state.float_type))


def _slice(state: _Normaliser, node: Node) -> None:
    if state.opset < 10:
        starts, ends = (node.attributes.pop(name, None) for name in ("starts", "ends"))
        if starts is None or ends is None:
            raise ConvwrightError(f"{node} has no starts or no ends")
        axes = node.attributes.pop("axes", tuple(range(len(starts))))
        for index, (what, value) in enumerate((("starts", starts), ("ends", ends), ("axes", axes)), 1):
            state.set_input(node, index, state.constant(node, what, value))


def _split(state: _Normaliser, node: Node) -> None:
    if state.opset < 13 and "split" in node.attributes:
        state.set_input(node, 1, state.constant(node, "split", node.attributes.pop("split")))
    if not node.input(1):
        node.attributes.setdefault("num_outputs", len(node.outputs))


def _top_k(state: _Normaliser, node: Node) -> None:
    if state.opset < 10 and "k" in node.attributes:
        state.set_input(node, 1, state.constant(node, "k", [node.attributes.pop("k")]))


def _upsample(state: _Normaliser, node: Node) -> None:
    """Upsample(x, scales), gone since 10, is a Resize with the coordinates of that time."""
    if "scales" in node.attributes:
        state.set_input(node, 1, state.constant(node, "scales", node.attributes.pop("scales"), np.float32))
    _resize_10(node)


def _resize(state: _Normaliser, node: Node) -> None:
    if state.opset < 11:
        _resize_10(node)


def _resize_10(node: Node) -> None:
    if len(node.inputs) != 2:
        raise ConvwrightError(f"{node} has {len(node.inputs)} inputs, it needs 2: x and scales")
    node.op = "Resize"
    node.inputs = [node.inputs[0], "", node.inputs[1]]
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(node.get("mode", "nearest"), node.get("mode", "nearest"))
    node.attributes = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def _dft(state: _Normaliser, node: Node) -> None:
    if state.opset < 20:
        state.set_input(node, 2, state.constant(node, "axis", node.attributes.pop("axis", 1)))


def _grid_sample(state: _Normaliser, node: Node) -> None:
    mode = node.get("mode", "linear")
    node.attributes["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)


def _roi_align(state: _Normaliser, node: Node) -> None:
    if state.opset < 16:
        node.attributes.setdefault("coordinate_transformation_mode", "output_half_pixel")


def _scatter(state: _Normaliser, node: Node) -> None:
    node.op = "ScatterElements"


def _swish(state: _Normaliser, node: Node) -> None:
    if node.get("alpha", 1.0) == 1.0:
        node.op, node.domain, node.attributes = "Silu", INTERNAL, {}


def _known(state: _Normaliser, node: Node, index: int) -> np.ndarray[Any, Any]:
    name = node.input(index)
    if name not in state.constants:
        raise ConvwrightError(f"{node}: input {name!r} has to be a constant")
    return state.constants[name]


_RULES: dict[str, Callable[[_Normaliser, Node], None]] = {
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "DFT": _dft,
    "Dropout": _dropout,
    "GridSample": _grid_sample,
    "Hardmax": _flattened_softmax,
    "LogSoftmax": _flattened_softmax,
    "Pad": _pad,
    "ReduceSum": _axes_to_input(13),
    "Resize": _resize,
    "RoiAlign": _roi_align,
    "Scatter": _scatter,
    "Slice": _slice,
    "Softmax": _flattened_softmax,
    "Split": _split,
    "Squeeze": _axes_to_input(13),
    "Swish": _swish,
    "TopK": _top_k,
    "Unsqueeze": _axes_to_input(13),
    "Upsample": _upsample,
}
_RULES |= dict.fromkeys(
    names("ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare"),
    _axes_to_input(18),
)
