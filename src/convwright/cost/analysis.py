"""`cost`: what every layer of a network costs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from convwright.cost.elementwise import READS_PART, VIEWS, elementwise
from convwright.cost.memory import bytes_alive
from convwright.cost.products import PRODUCTS, Count, View
from convwright.cost.report import FIGURES, GROUPINGS, Cost, Layer, NotCounted, group_of
from convwright.cost.subject import graph_of
from convwright.cost.weights import Constants, Weight
from convwright.errors import ConvwrightError
from convwright.graph.graph import INTERNAL, Graph, Node
from convwright.graph.shapes import Inferred, infer
from convwright.spec import Spec

if TYPE_CHECKING:
    from convwright.cost.receptive_field import ReceptiveField
    from convwright.model import Model

Shapes = Mapping[str, Iterable[int]] | Sequence[int]


def cost(
    subject: Graph | Spec | Model | str | os.PathLike[str],
    *,
    shapes: Shapes | None = None,
    input_size: Sequence[int] | None = None,
    batch: int | None = None,
    dtype: str = "float32",
    by: str = "layer",
    sort: str | None = None,
    depth: int | None = None,
) -> Cost:
    """What every layer costs, and the whole: parameters, MACs, elementwise operations, bytes, memory.

    Reads shapes and runs nothing. One MAC is one multiply-accumulate, FLOPs are twice the MACs; docs/cost.md has the
    conventions.

    - `subject`: a `Graph`, a `Model`, an ONNX file's path, or the description of a convolution (`ConvSpec`, ...).
    - `shapes`: of the inputs, by name, or of the only one; of a network, needed where it leaves sizes open.
    - `input_size`: of a convolution, one int an axis; or give `shapes` with batch and channels.
    - `batch`: the first size of every input; 1 by default where the network leaves it open.
    - `dtype`: of a convolution's tensors.
    - `by`: the rows shown: "layer", "kind", "block" (from the names of nodes), or "tree": blocks within blocks.
    - `sort`: a figure, such as "macs", by which rows are sorted, the largest first.
    - `depth`: how many parts of a node's path name a block.

    Raises ConvwrightError for sizes that stay open or do not fit, and for an operator whose output nobody knows.

    >>> import convwright as cw
    >>> table = cw.cost(cw.ConvSpec(512, 512, (3, 3), padding=1, bias=False), input_size=(14, 14))
    >>> table.total.macs, table.total.flops, table.total.parameters
    (462422016, 924844032, 2359296)
    >>> cw.cost(cw.networks.vgg16(seed=None))["features.0"].macs
    86704128
    """
    if by not in GROUPINGS:
        raise ConvwrightError(f"by must be one of {', '.join(map(repr, GROUPINGS))}, got {by!r}")
    if sort is not None and sort not in FIGURES:
        raise ConvwrightError(f"sort must be one of {', '.join(map(repr, FIGURES))}, got {sort!r}")
    graph, given = graph_of(subject, shapes, input_size, batch, dtype)
    types = infer(graph, given)
    fields = _fields(graph, types)
    layers, not_counted = layers_of(graph, types, fields)
    inputs = ", ".join(f"{name} {'x'.join(map(str, types[name].shape))}" for name in graph.inputs)
    title = f"{graph.name or 'network'} ({inputs})"
    found = Cost(title, layers, group_of(("total",), layers), not_counted, by, sort, depth)
    found.rows  # noqa: B018  # an impossible depth is an error here, not when it is printed
    return found


def _fields(graph: Graph, types: Inferred) -> Mapping[str, ReceptiveField]:
    """Receptive fields by value, none where no input has spatial axes."""
    if not any(types[name].rank >= 3 for name in graph.inputs):
        return {}
    from convwright.cost.receptive_field import receptive_fields

    return receptive_fields(graph, inferred=types)


def layers_of(
    graph: Graph, types: Inferred, fields: Mapping[str, ReceptiveField]
) -> tuple[tuple[Layer, ...], tuple[NotCounted, ...]]:
    """The layers of a graph whose values have these types and receptive fields, and what of them is not counted."""
    constants = Constants(graph, types)
    views: dict[str, str] = {}
    nodes = []
    for node in _needed(graph):
        if constants.take(node):
            continue
        if node.op in VIEWS and not node.domain:
            views[node.outputs[0]] = views.get(node.inputs[0], node.inputs[0])
        else:
            nodes.append(node)
    sizes = {name: _nbytes(types, name) for name in types.values if name not in constants.fixed}
    layers, not_counted = [], []
    for node, alive in zip(nodes, bytes_alive(graph, nodes, views, sizes), strict=True):
        count = _count(View(node, types, constants.fixed))
        layer = _layer(node, count, constants.weights(node), sizes, types, alive, fields)
        layers.append(layer)
        if count.reason is not None:
            not_counted.append(NotCounted(layer.name, node.op, count.reason, count.estimate))
    return tuple(layers), tuple(not_counted)


def _needed(graph: Graph) -> list[Node]:
    """The nodes that an output depends on."""
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.outputs if name):
            needed.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _count(view: View) -> Count:
    node = view.node
    found = None
    if node.domain in ("", INTERNAL):
        rule = PRODUCTS.get(node.op)
        found = elementwise(view) if rule is None else rule(view)
    if found is None:
        elements = sum(prod(view.types[name].shape) for name in node.outputs if name)  # type: ignore[arg-type,misc]
        found = Count("not counted", reason="what it does is not known here", estimate=elements)
    return found


def _layer(
    node: Node, count: Count, weights: Mapping[str, Weight], sizes: Mapping[str, int], types: Inferred, alive: int,
    fields: Mapping[str, ReceptiveField],
) -> Layer:  # fmt: skip
    outputs = [name for name in node.outputs if name]
    inputs = tuple(dict.fromkeys(name for name in node.inputs if name in sizes))
    written = sum(sizes.get(name, 0) for name in outputs)
    read = sum(sizes[name] for name in inputs)
    if node.op in READS_PART:
        read = min(read, written)
    held = sum(weight.nbytes for weight in weights.values())
    return Layer(
        parameters=sum(weight.parameters for weight in weights.values()),
        buffers=sum(weight.buffers for weight in weights.values()),
        macs=count.macs,
        elementwise=count.elementwise,
        bytes_weights=held,
        bytes_read=read,
        bytes_activations=written,
        bytes_moved=read + held + written,
        bytes_peak=alive,
        name=node.name or outputs[0],
        op=node.op,
        kind=count.kind,
        inputs=inputs,
        output=outputs[0],
        input_shape=types[inputs[0]].shape if inputs else (),  # type: ignore[arg-type]
        output_shape=types[outputs[0]].shape,  # type: ignore[arg-type]
        receptive_field=fields.get(outputs[0]),
        weights=weights,
    )


def _nbytes(types: Inferred, name: str) -> int:
    info = types[name]
    return prod(info.shape) * info.dtype.itemsize  # type: ignore[arg-type]
