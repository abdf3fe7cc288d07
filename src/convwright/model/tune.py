"""Choices by measurement: of the ways to compute a convolution, which is the fastest on this machine.

Every distinct convolution of a plan is timed alone, between neighbours that hold their tensors as the network's do, in
all ways that are estimated to be near the best. What was found is stored (`runtime.store`) under the machine, the
versions and the layer; what is stored is never measured again, so that a network once tuned gets the same plan always.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from convwright.codegen.jit import compile_many, sources_hash
from convwright.graph import Graph, Node, ValueInfo
from convwright.graph.graph import INTERNAL
from convwright.model import plan
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import conv
from convwright.model.lower.ways import name_of, ways
from convwright.model.problem import OPERATORS, Problem, problem_of
from convwright.model.weights import Weights
from convwright.runtime import store
from convwright.runtime.machine import describe
from convwright.runtime.program import Arena, Program, kernels_of
from convwright.runtime.team import team_of
from convwright.spec import ConvSpec

_REVISION = 1
"""Of what is measured and how: what was stored under another revision is not used."""

_NEAR = 2.5  # times the least estimate: what is estimated to be slower is not measured
_MOST = 6  # ways that are measured
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 0.05, 3, 100  # of measuring one problem, all ways together
_MARGIN = 0.97  # of the estimated best's time: nothing else is taken for a gain as small as the measurement's error

Progress = Callable[[str, float], None]
"""Told what is being measured, and which share of all is done."""

Key = tuple[Problem, tuple[tuple[Any, ...], ...]]


class Tuner:
    """The measured choices of one model; called with a plan, it settles how each of its convolutions is computed."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._found: dict[Key, Mapping[str, float]] = {}  # also where there is no store

    def __call__(self, b: Builder) -> None:
        layers = [layer for layer in b.layers if layer.op in OPERATORS and conv.can_lower(b, layer)]
        wanted: dict[Key, Layer] = {}
        for layer in layers:
            p = problem_of(b, layer)
            if p.algorithm == "auto":
                wanted.setdefault((p, layer.epilogue), layer)
        missing = [key for key in wanted if key not in self._found]
        unknown = []
        for key in missing:
            near = candidates(key[0])
            known = _checked(store.recall("algorithms", _stored_key(key)), near) if len(near) > 1 else {near[0]: 0.0}
            if known is None:
                unknown.append(key)
            else:
                self._found[key] = known
        for number, key in enumerate(unknown):
            if self._progress is not None:
                self._progress(f"timing {_told(key[0])}", number / len(unknown))
            near = candidates(key[0])
            seconds = measured(b, wanted[key], key[0], near)
            # Another process may have been faster, and then it has the say.
            self._found[key] = _checked(store.agree("algorithms", _stored_key(key), seconds), near) or seconds
        if self._progress is not None and unknown:
            self._progress("tuned", 1.0)
        for layer in layers:
            p = problem_of(b, layer)
            seconds_of = self._found.get((p, layer.epilogue))
            if seconds_of is not None:
                b.problems[id(layer)] = replace(p, algorithm=choice(seconds_of))
                b.measured[id(layer)] = seconds_of


def candidates(p: Problem) -> list[str]:
    """The ways that are worth measuring, what is taken without measuring first."""
    estimates = ways(p)
    first = name_of(conv.algorithm_of(p), p)
    near = [name for name, cycles in estimates.items() if name != first and cycles <= _NEAR * min(estimates.values())]
    return [first, *near[: _MOST - 1]]


def choice(seconds: Mapping[str, float]) -> str:
    """The fastest; the first, which is the estimates' choice, unless something is faster by more than the noise."""
    first, best = next(iter(seconds)), min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] < _MARGIN * seconds[first] else first


# -- what is stored ----------------------------------------------------------------------------------------------------


def _stored_key(key: Key) -> dict[str, Any]:
    p, epilogue = key
    problem = {
        "spec": asdict(p.spec), "size": p.size, "batch": p.batch, "dtype": str(p.dtype), "threads": p.threads,
        "numerics": p.numerics, "plain_input": p.plain_input, "plain_output": p.plain_output, "residual": p.residual,
        "shuffle": p.shuffle,
    }  # fmt: skip
    return {"revision": _REVISION, **_machine(), "problem": problem, "epilogue": repr(epilogue)}


@functools.cache
def _machine() -> dict[str, Any]:
    told = describe()
    names = ("cpu", "isa", "cores", "l1d_bytes", "l2_bytes", "l3_bytes", "convwright", "llvm")
    return {name: told[name] for name in names} | {"sources": sources_hash().hex()}


def _checked(value: Any, near: Sequence[str]) -> dict[str, float] | None:
    """Stored seconds, in the order of the ways that they have to be of; None where they are not."""
    if not isinstance(value, dict) or set(value) != set(near):
        return None
    if not all(isinstance(seconds, float) and 0 < seconds < 1e3 for seconds in value.values()):
        return None
    return {name: value[name] for name in near}


def _told(p: Problem) -> str:
    """A problem for the progress bar: "3x3, 64 to 64 channels of 56x56"."""
    kernel, size = ("x".join(map(str, sizes)) for sizes in (p.spec.kernel, p.size))
    return f"{kernel}, {p.spec.in_channels} to {p.spec.out_channels} channels of {size}"


# -- measuring ---------------------------------------------------------------------------------------------------------


def measured(b: Builder, layer: Layer, p: Problem, names: Sequence[str]) -> dict[str, float]:
    """Median seconds of the layer alone, computed in each of these ways, taking turns."""
    plans = []
    for name in names:
        graph = isolated(b, layer, p, name)
        shapes: dict[str, Any] = {value: info.shape for value, info in graph.inputs.items()}
        weights = Weights(graph.constants, b.target.vector)
        plans.append(plan.make_plan(graph, shapes, weights, b.target, b.threads, b.numerics, False))
    compile_many([kernel for one in plans for kernel in kernels_of(one.steps, b.target)], b.target)
    turns = [_Turn.of(one) for one in plans]
    team = team_of(b.threads)
    times: list[list[float]] = [[] for _ in turns]
    with team.lock:
        for turn in turns:
            turn.seconds(team)
        end = time.perf_counter() + _SECONDS
        for number in range(_MOST_ROUNDS):
            if number >= _LEAST_ROUNDS and time.perf_counter() > end:
                break
            for place in range(len(turns)):
                # Whoever begins a round ends the next one: nobody always follows the same neighbour.
                at = (place + number) % len(turns)
                times[at].append(turns[at].seconds(team))
    return {name: statistics.median(own) for name, own in zip(names, times, strict=True)}


@dataclass(frozen=True, slots=True)
class _Turn:
    """A layer that can be timed: the steps from `first` to before `last` of its program are its own."""

    program: Program
    arena: Arena
    inputs: list[np.ndarray]
    results: list[np.ndarray]
    first: int
    last: int

    @classmethod
    def of(cls, b: Builder) -> _Turn:
        program, arena = plan.finished(b), Arena()
        arena.reserve(program.arena_bytes)
        rng = np.random.default_rng(0)
        inputs = [
            rng.standard_normal(info.shape).astype(info.dtype)  # type: ignore[arg-type]  # concrete shapes
            for info in b.graph.inputs.values()
        ]
        results = program.bind(arena, inputs)
        first, last = 0, len(program.infos)
        for number, info in enumerate(program.infos):
            if info.macs and info.layer in _BEFORE:
                first = number + 1
            elif info.macs and info.layer == _AFTER:
                last = number
        return cls(program, arena, inputs, results, first, last)

    def seconds(self, team: Any) -> float:
        """Of the layer's own steps; those before it run first, so that its input is where a network would leave it."""
        if self.first:
            team.run(self.program.table, 0, self.first)
        start = time.perf_counter()
        team.run(self.program.table, self.first, self.last - self.first)
        return time.perf_counter() - start


_BEFORE, _AFTER = ("(before)", "(before, residual)"), "(after)"


def isolated(b: Builder, layer: Layer, p: Problem, algorithm: str) -> Graph:
    """A graph of this layer with all that is fused into it, computed in this way.

    Where its neighbours hold channel blocks, depthwise layers stand before and behind it that read and write them.
    """
    node = replace(layer.node, attributes=layer.node.attributes | {"algorithm": algorithm})
    constants = {name: b.weights.array(name) for name in node.inputs[1:] if name}
    inputs: dict[str, ValueInfo] = {}
    nodes: list[Node] = []

    def neighbour(name: str, source: str, target: str, shape: tuple[int, ...]) -> Node:
        """A pointwise depthwise layer on channel blocks."""
        own = ConvSpec(shape[1], shape[1], (1,) * (len(shape) - 2), groups=shape[1], bias=False)
        constants[f"{name} weight"] = np.ones(own.weight_shape, np.float32)
        attributes = {"spec": own, "algorithm": "direct-depthwise" if shape[1] > 1 else "direct-blocked"}
        return Node("Convolution", [source, f"{name} weight"], [target], attributes, name, INTERNAL)

    def feed(name: str, value: str) -> None:
        plain = value in b.graph.inputs or not _in_blocks(b, value)
        source = value if plain else f"{value} {name}"
        inputs[source] = ValueInfo(b.types[value].dtype, b.shape(value))
        if not plain:
            nodes.append(neighbour(name, source, value, b.shape(value)))

    feed(_BEFORE[0], layer.node.inputs[0])
    if layer.residual and layer.residual != layer.node.inputs[0]:
        feed(_BEFORE[1], layer.residual)
    nodes += [node, *layer.fused]
    output = layer.output
    if not p.plain_output and _in_blocks(b, output):
        nodes.append(neighbour(_AFTER, output, f"{output} {_AFTER}", b.shape(output)))
        output = nodes[-1].outputs[0]
    return Graph(layer.name, inputs, [output], nodes, constants)


def _in_blocks(b: Builder, name: str) -> bool:
    return b.fits_blocks(name) and len(b.shape(name)) > 2
