"""Receptive fields: how much of the input each value of a network depends on, and where it lies.

Along each axis, output i depends on inputs from `i * stride - padding` to `i * stride - padding + size - 1`, whose
middle, the centre, is `-padding + i * stride + (size - 1) / 2` (A. Araujo, W. Norris, J. Sim, Computing Receptive
Fields of Convolutional Neural Networks, Distill 2019). Where several paths meet, the field holds all of them.

Fields go on beyond the input's ends, as the padding does; what is read through an axis's whole extent (global pools,
fully connected layers, reshapes that mix an axis) ends with the input. Padding that repeats the input (reflection,
clamped resizes) is counted as if it were outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from convwright.cost.reach import IDENTITY, Interval, Rational, Reach, plain
from convwright.cost.reach_rules import RULES, read_all, spec_taps
from convwright.cost.seen import Along, Seen, clip, elements
from convwright.cost.subject import input_shapes
from convwright.errors import ConvwrightError
from convwright.graph.graph import INTERNAL, Graph, Node
from convwright.graph.shape_rules.scope import Scope
from convwright.graph.shapes import Inferred, infer
from convwright.spec import ConvSpec, Spec
from convwright.spec.composed import Chain, Over


@dataclass(frozen=True, slots=True)
class AxisField:
    """The receptive field along one axis.

    - `size`: elements of the input from the first to the last that an output depends on. After a transposed convolution
      or a resize, outputs of different phases may see differently many: the most.
    - `stride`: how far the field moves from one output to the next; a fraction after a transposed convolution or a
      resize, 0 where every output sees the same.
    - `padding`: how far the field of output 0 begins before the input. With phases, of the phase that sees most, which
      makes `-padding + i * stride` the beginning for every output i of it.
    - `reach`: exactly what each output depends on, phase by phase.

    >>> field = AxisField.of(Reach(2, ((-1, 1),)))
    >>> field.size, field.stride, field.padding, field.centre(), field.centre(3)
    (3, 2, 1, 0, 6)
    """

    size: int
    stride: Rational
    padding: Rational
    reach: Reach

    @classmethod
    def of(cls, reach: Reach) -> AxisField:
        largest = reach.largest()
        ends: Interval | None = None if largest is None else largest[1]
        return cls(elements(ends), plain(reach.stride), 0 if ends is None else plain(-ends[0]), reach)

    def centre(self, index: int = 0) -> Rational:
        """The middle of the field of output `index`: `-padding + index * stride + (size - 1) / 2`."""
        return plain(-self.padding + index * self.stride + Fraction(self.size - 1, 2))

    def interval(self, index: int) -> Interval | None:
        """The first and the last input that output `index` depends on, wherever the input ends; None: on none."""
        return self.reach.at(index)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; fractions as strings, `"1/2"`."""
        number = {key: _json(getattr(self, key)) for key in ("size", "stride", "padding")}
        return {**number, "centre": _json(self.centre())}


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """What a value depends on of an input, along each spatial axis of that input.

    - `input`: the input's name.
    - `axes`: one `AxisField` a spatial axis.
    - `local`: the same without the paths that see a whole extent (the gate of squeeze-and-excitation, a normalisation
      over space), where there are such paths beside others; otherwise None.
    - `remarks`: what limits the numbers, one sentence each.
    - `disagreements`: where paths meet that have different strides or centres; the field holds them all.
    """

    input: str
    axes: tuple[AxisField, ...]
    local: tuple[AxisField, ...] | None = None
    remarks: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def stride(self) -> tuple[Rational, ...]:
        return tuple(axis.stride for axis in self.axes)

    @property
    def padding(self) -> tuple[Rational, ...]:
        return tuple(axis.padding for axis in self.axes)

    @property
    def centre(self) -> tuple[Rational, ...]:
        """The middle of the field of output 0."""
        return tuple(axis.centre() for axis in self.axes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "input": self.input,
            "axes": [axis.to_dict() for axis in self.axes],
            "local": None if self.local is None else [axis.to_dict() for axis in self.local],
            "remarks": list(self.remarks),
            "disagreements": list(self.disagreements),
        }

    def __str__(self) -> str:
        one = {
            name: " x ".join(str(n) for n in getattr(self, name)) for name in ("size", "stride", "padding", "centre")
        }
        return "{size} (stride {stride}, padding {padding}, centre {centre})".format(**one)


def _json(value: Rational) -> int | str:
    return value if isinstance(value, int) else str(value)


def receptive_field(spec: Spec | Iterable[Spec], input_size: Sequence[int] | None = None) -> ReceptiveField:
    """The receptive field of one convolution, or of several one after another.

    - `spec`: a `ConvSpec`, one of the kinds described over it, or a sequence of them, first to last.
    - `input_size`: one int an axis, needed only where a padding `"same"` depends on it.

    Raises `ConvwrightError` for specs of different numbers of axes.

    >>> from convwright.spec import ConvSpec
    >>> conv = ConvSpec(1, 1, (3,), padding=1)
    >>> str(receptive_field([conv, conv]))
    '5 (stride 1, padding 2, centre 0)'
    >>> [receptive_field([ConvSpec(1, 1, (3,), dilation=d) for d in (1, 2, 4)][:n]).size for n in (1, 2, 3)]
    [(3,), (7,), (15,)]
    >>> str(receptive_field(ConvSpec(1, 1, (4,), stride=2, padding=1, transposed=True)))
    '2 (stride 1/2, padding 1, centre -1/2)'
    """
    specs = [spec] if isinstance(spec, Spec) else list(spec)
    if not specs or not all(isinstance(one, Spec) for one in specs):
        raise ConvwrightError("a receptive field needs a spec, or a sequence of them")
    rank = specs[0].rank
    reaches = [IDENTITY] * rank
    remarks: list[str] = []
    size = None if input_size is None else tuple(input_size)
    for one in specs:
        if one.rank != rank:
            raise ConvwrightError(f"specs over {rank} and {one.rank} spatial axes cannot follow each other")
        if one.kind == "deformable":
            remarks.append("learned offsets move the taps without bound; the field is that of the undeformed kernel")
        for conv in _stages(one):
            parts = [spec_taps(part, size) for part in conv]
            after = [[reach.compose(taps) for reach, taps in zip(reaches, part, strict=True)] for part in parts]
            reaches = after[0]
            for others in after[1:]:
                reaches = [first.join(second) for first, second in zip(reaches, others, strict=True)]
            size = None if size is None else conv[0].output_size(size)
    return ReceptiveField("input", tuple(map(AxisField.of, reaches)), remarks=tuple(remarks))


def _stages(spec: Spec) -> list[list[ConvSpec]]:
    """The convolutions of a spec one after another, each a list of those side by side."""
    if isinstance(spec, ConvSpec):
        return [[spec]]
    if isinstance(spec, Chain):
        return [[stage] for stage in spec.stages]
    if isinstance(spec, Over):
        return [[spec.conv]]
    parts: Sequence[ConvSpec] | None = getattr(spec, "parts", None)
    if parts is None:
        raise ConvwrightError(f"nothing is known of the receptive field of a {spec.kind} convolution")
    return [list(parts)]


class Walk:
    """What the rules of operators see while values are followed from one input."""

    def __init__(self, graph: Graph, inferred: Inferred, input: str) -> None:
        self.inferred = inferred
        self.scope = Scope(graph.constants, graph.opset)
        self.scope.values, self.scope.constants = inferred.values, inferred.constants
        shape = self.shape(input)
        self.spatial = _spatial(graph, input, len(shape))
        axes = tuple(Along(place, IDENTITY) for place in self.spatial)
        self.seen = {input: Seen(axes, tuple(shape[place] for place in self.spatial))}
        for node in graph.nodes:
            self._follow(node)

    def _follow(self, node: Node) -> None:
        if node.op in ("Shape", "Size") or not any(name in self.seen for name in self.reads(node)):
            return
        if all(not out or out in self.inferred.constants for out in node.outputs):
            return
        rule = RULES.get(node.op) if node.domain in ("", INTERNAL) else None
        if rule is None:
            remark = f"{node}: what it reads is not known; the whole input is assumed"
            results = read_all(self, node, str(node), remark)
        else:
            results = rule(self, node)
        for out, seen in zip(node.outputs, results, strict=False):
            if out and seen is not None:
                self.seen[out] = seen

    def shape(self, name: str) -> tuple[int, ...]:
        return self.inferred.values[name].shape  # type: ignore[return-value]  # concrete once inferred

    def out_shape(self, node: Node) -> tuple[int, ...]:
        return self.shape(next(out for out in node.outputs if out))

    def first(self, node: Node) -> Seen | None:
        return self.seen.get(node.inputs[0]) if node.inputs else None

    def axes(self, node: Node, place: int) -> Sequence[int] | None:
        """The axes that an input holds; None where it is omitted."""
        return self.scope.integers(node, place, "axes") if node.input(place) else None

    def reads(self, node: Node) -> list[str]:
        """What a node reads, subgraphs included."""
        names = [name for name in node.inputs if name]
        for value in node.attributes.values():
            if isinstance(value, Graph):
                for inner in value.nodes:
                    names += [name for name in self.reads(inner) if name in self.seen]
        return names


def _spatial(graph: Graph, input: str, rank: int) -> tuple[int, ...]:
    """The input's spatial axes: the third and later; of an input that is transposed first, what comes to lie there."""
    orders = {tuple(node.get("perm") or ()) if node.op == "Transpose" else () for node in graph.nodes
              if input in node.inputs and node.op not in ("Shape", "Size")}  # fmt: skip
    order = orders.pop() if len(orders) == 1 else ()
    return tuple(sorted(order[2:])) if order else tuple(range(2, rank))


def receptive_fields(
    graph: Graph,
    shapes: Mapping[str, Iterable[int]] | None = None,
    inferred: Inferred | None = None,
    *,
    input: str | None = None,
) -> dict[str, ReceptiveField]:
    """The receptive field of every value that depends on an input with spatial axes, by the value's name.

    - `shapes`: by input name; inputs whose declared shape is concrete may be left out, and a first axis that is open
      is a batch of 1.
    - `inferred`: what `infer` found for these shapes, where the caller has it already.
    - `input`: the input whose elements are counted. Unless given, each value's field is that of the first input with
      spatial axes that it depends on, and a remark names the others.

    Raises `ConvwrightError` where sizes are missing or do not fit, and where no input has spatial axes.

    >>> from convwright.graph import Graph, Node, ValueInfo
    >>> import numpy as np
    >>> nodes = [Node("Conv", ["x", "w"], ["y"], {"strides": (2, 1), "pads": (1, 0, 1, 0)})]
    >>> info = ValueInfo(np.dtype(np.float32), (1, 1, 8, 8))
    >>> graph = Graph("example", {"x": info}, ["y"], nodes, {"w": np.ones((1, 1, 3, 5), np.float32)})
    >>> print(receptive_fields(graph)["y"])
    3 x 5 (stride 2 x 1, padding 1 x 0, centre 0 x 2)
    """
    if inferred is None:
        inferred = infer(graph, input_shapes(graph, shapes))
    candidates = [name for name in graph.inputs if inferred.values[name].rank >= 3]
    if input is not None:
        if input not in candidates:
            raise ConvwrightError(f"no input {input!r} with spatial axes; those of the graph are {candidates}")
        candidates = [input]
    if not candidates:
        raise ConvwrightError(f"no input of graph {graph.name!r} has spatial axes: {list(graph.inputs)}")
    result: dict[str, ReceptiveField] = {}
    for name in candidates:
        fields: dict[int, ReceptiveField] = {}  # many values, activations first, see what their input sees
        seen_by = Walk(graph, inferred, name).seen
        for value, seen in seen_by.items():
            if value not in result:
                if id(seen) not in fields:
                    fields[id(seen)] = _field(name, seen)
                result[value] = fields[id(seen)]
            else:
                found = result[value]
                remark = f"depends on input {name!r} too; the field is that on {found.input!r}"
                result[value] = ReceptiveField(
                    found.input, found.axes, found.local, (*found.remarks, remark), found.disagreements
                )
    return result


def _field(input: str, seen: Seen) -> ReceptiveField:
    axes, local, through = [], [], []
    for along, size in zip(seen.axes, seen.sizes, strict=True):
        moving = None if along.local is None else AxisField.of(along.local)
        if along.whole is None:
            axes.append(moving or AxisField.of(Reach(0, (None,))))
        else:
            ends = along.whole
            if moving is not None and along.local is not None:
                through.append(along.through)
                inside = clip(_everything(along.local, size), size)
                ends = ends if inside is None else (min(ends[0], inside[0]), max(ends[1], inside[1]))
            axes.append(AxisField.of(Reach(0, (ends,))))
        local.append(moving or axes[-1])
    remarks = seen.remarks
    if not all(axis.reach.exact for axis in (*axes, *local)):
        remarks = (*remarks, "the field may be larger than what is seen: paths or phases that differ are held by one")
    if not through:
        return ReceptiveField(input, tuple(axes), None, remarks, seen.disagreements)
    field = ReceptiveField(input, tuple(local))
    remark = f"sees the whole extent through {through[0]}; without such paths the field is {field}"
    return ReceptiveField(input, tuple(axes), tuple(local), (*remarks, remark), seen.disagreements)


def _everything(reach: Reach, size: int) -> Interval | None:
    """What a moving field passes over, at most: the whole input unless it stands still."""
    return reach.at(0) if reach.stride == 0 else (0, size - 1)
