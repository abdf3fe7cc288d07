"""Layers of a plan timed alone: small plans of their own, between neighbours that hold tensors as the network's do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convwright.codegen.jit import compile_many
from convwright.graph import Graph, Node, ValueInfo
from convwright.graph.graph import INTERNAL
from convwright.model import plan
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.problem import problem_of
from convwright.model.weights import Weights
from convwright.runtime.program import Arena, Program, kernels_of
from convwright.runtime.team import Team, team_of
from convwright.spec import ConvSpec

SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 0.05, 3, 100
"""Of one race: how long it lasts, and how often everybody has a turn."""

_BEFORE, _AFTER = "(before)", "(after)"


@dataclass(frozen=True, slots=True)
class Entry:
    """Layers of a plan, each of which alone reads the one before, and how they are to be computed.

    - `algorithms`: of each layer.
    - `lengths`: of the parts that are computed in strips (`lower.strips`); none are where it is empty.
    """

    layers: tuple[Layer, ...]
    algorithms: tuple[str, ...]
    lengths: tuple[int, ...] = ()

    def settle(self, b: Builder) -> None:
        """As a `plan.Tuning`: nodes ask for their algorithms, strips are cut so, and neighbours belong to none."""
        b.apart = {self.layers[0].node.inputs[0], self.layers[-1].output}
        b.cuts[self.layers[-1].output] = self.lengths

    def settle_strips(self, b: Builder, runs: list[list[Layer]]) -> None:
        """All is settled."""


def race(b: Builder, entries: Sequence[Entry]) -> list[float]:
    """Median seconds of each entry's layers, all of the plan `b`, taking turns."""
    plans = [_planned(b, entry) for entry in entries]
    compile_many([kernel for one in plans for kernel in kernels_of(one.steps, b.target)], b.target)
    turns = [Turn.of(one) for one in plans]
    team = team_of(b.threads)
    times: list[list[float]] = [[] for _ in turns]
    with team.lock:
        for turn in turns:
            turn.seconds(team)
        end = time.perf_counter() + SECONDS
        for number in range(MOST_ROUNDS):
            if number >= LEAST_ROUNDS and time.perf_counter() > end:
                break
            for place in range(len(turns)):
                # Whoever begins a round ends the next one: nobody always follows the same neighbour.
                at = (place + number) % len(turns)
                times[at].append(turns[at].seconds(team))
    return [statistics.median(own) for own in times]


def _planned(b: Builder, entry: Entry) -> Builder:
    graph = isolated(b, entry)
    shapes: dict[str, Any] = {name: info.shape for name, info in graph.inputs.items()}
    weights = Weights(graph.constants, b.target.vector)
    return plan.make_plan(graph, shapes, weights, b.target, b.threads, b.numerics, bool(entry.lengths), entry)


@dataclass(frozen=True, slots=True)
class Turn:
    """Layers that can be timed: the steps from `first` to before `last` of their program are their own."""

    program: Program
    arena: Arena
    inputs: list[np.ndarray]
    results: list[np.ndarray]
    first: int
    last: int

    @classmethod
    def of(cls, b: Builder) -> Turn:
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
            if info.macs and info.layer == _BEFORE:
                first = number + 1
            elif info.macs and info.layer == _AFTER:
                last = number
        return cls(program, arena, inputs, results, first, last)

    def seconds(self, team: Team) -> float:
        """Of the layers' own steps; those before run first, so that inputs are where a network would leave them."""
        if self.first:
            team.run(self.program.table, 0, self.first)
        start = time.perf_counter()
        team.run(self.program.table, self.first, self.last - self.first)
        return time.perf_counter() - start


def isolated(b: Builder, entry: Entry) -> Graph:
    """A graph of these layers with all that is fused into them.

    Where their neighbours hold channel blocks, depthwise layers stand before and behind them that read and write them.
    """
    constants: dict[str, np.ndarray] = {}
    inputs: dict[str, ValueInfo] = {}
    before: list[Node] = []
    nodes: list[Node] = []

    def neighbour(name: str, source: str, target: str, shape: tuple[int, ...]) -> Node:
        """A pointwise depthwise layer on channel blocks."""
        own = ConvSpec(shape[1], shape[1], (1,) * (len(shape) - 2), groups=shape[1], bias=False)
        weight = f"{target} {name} weight"
        constants[weight] = np.ones(own.weight_shape, np.float32)
        alone = "direct-volumes" if own.rank == 3 else "direct-blocked"
        attributes = {"spec": own, "algorithm": "direct-depthwise" if shape[1] > 1 else alone}
        return Node("Convolution", [source, weight], [target], attributes, name, INTERNAL)

    own = {layer.output for layer in entry.layers}
    for layer, algorithm in zip(entry.layers, entry.algorithms, strict=True):
        constants |= {name: b.weights.array(name) for name in layer.node.inputs[1:] if name}
        for value in dict.fromkeys((layer.node.inputs[0], layer.residual)):
            if not value or value in own or value in inputs or any(value in node.outputs for node in before):
                continue
            plain = value in b.graph.inputs or not _in_blocks(b, value)
            source = value if plain else f"{value} {_BEFORE}"
            inputs[source] = ValueInfo(b.types[value].dtype, b.shape(value))
            if not plain:
                before.append(neighbour(_BEFORE, source, value, b.shape(value)))
        nodes.append(replace(layer.node, attributes=layer.node.attributes | {"algorithm": algorithm}))
        nodes += layer.fused
    output = entry.layers[-1].output
    if not problem_of(b, entry.layers[-1]).plain_output and _in_blocks(b, output):
        nodes.append(neighbour(_AFTER, output, f"{output} {_AFTER}", b.shape(output)))
        output = nodes[-1].outputs[0]
    return Graph(entry.layers[-1].name, inputs, [output], [*before, *nodes], constants)


def _in_blocks(b: Builder, name: str) -> bool:
    return b.fits_blocks(name) and len(b.shape(name)) > 2
