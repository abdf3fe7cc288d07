"""From a simplified graph and concrete shapes to a program: layouts, padding, steps, memory, barriers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import numpy as np

from convwright.codegen.target import Target
from convwright.graph import Graph
from convwright.graph.shapes import infer
from convwright.kernels.activations import ROWS as ACTIVATIONS
from convwright.model import lower
from convwright.model.builder import Builder, Step, aligned
from convwright.model.fuse import Layer, layers_of
from convwright.model.lower import channels, conv, deformable, dense, pool, regroup, strips
from convwright.model.lower.ways import runner_up
from convwright.model.problem import problem_of
from convwright.model.trim import trim
from convwright.model.values import NO_HALO, Buffer
from convwright.model.weights import Weights
from convwright.runtime.program import Program, link


class Tuning(Protocol):
    """Who makes choices for a plan, before it is made by estimates: of algorithms, and of layers computed in strips."""

    def settle(self, b: Builder) -> None: ...

    def settle_strips(self, b: Builder, runs: list[list[Layer]]) -> None: ...


def make_plan(
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    weights: Weights,
    target: Target,
    threads: int,
    numerics: str = "default",
    in_strips: bool = True,
    tune: Tuning | None = None,
) -> Builder:
    """Plan one inference of the graph at these input shapes: nothing is compiled yet, no buffer has a place.

    - ``in_strips``: whether layers may be computed together, strip by strip.
    - ``tune``: called before any choice is made, to make some of them (``model.tune``).
    """
    types = infer(graph, shapes)
    layers = layers_of(graph, types, set(ACTIVATIONS))
    trim(graph, types, weights, layers)
    b = Builder(graph, types, weights, target, threads, layers, numerics)
    if tune is not None:
        tune.settle(b)
    regroup.settle(b, _readers(b))
    pool.fuse(b, _readers(b))
    rows = _prepare(b)
    for index, name in enumerate(graph.inputs):
        dtype = types[name].dtype
        room = Buffer(dtype.itemsize * math.prod(b.shape(name)), "input", index)
        b.values[name, False] = b.plain_room(b.shape(name), dtype, room)
    if in_strips and tune is not None:
        tune.settle_strips(b, strips.runs(b, _readers(b)))
    chains = {id(chain[-1]): chain for chain in (strips.chains(b, _readers(b)) if in_strips else ())}
    inside = {id(layer) for chain in chains.values() for layer in chain[:-1]}
    for layer, row in zip(layers, rows, strict=True):
        b.layer, first = layer, len(b.steps)
        if id(layer) in chains:
            strips.lower(b, chains[id(layer)])
            problems = [problem_of(b, one) for one in chains[id(layer)]]
            b.steps[-1].runner_up = partial(strips.runner_up, problems, b.measured.get(id(layer)))
        elif id(layer) not in inside:
            row.lower(b, layer)
        if row.lower is conv.lower:
            for step in b.steps[first:]:
                if step.macs and step.runner_up is None:
                    step.runner_up = partial(runner_up, problem_of(b, layer), b.measured.get(id(layer)))
    b.layer = None
    for name in graph.outputs:
        _hand_over(b, name)
    return b


def finished(b: Builder) -> Program:
    """The program of a plan, what it needs compiled.

    Where there is too little work to be worth waking other threads, the program uses one.
    """
    arena, bound = _place(b.steps)
    barriers = _barriers(b.steps)
    outputs = [(name, b.types[name].dtype, b.shape(name)) for name in b.graph.outputs]
    return link(b.steps, barriers, arena, bound, outputs, b.target, 1 if _small(b.steps) else b.threads, b.tables)


def _small(steps: list[Step]) -> bool:
    """Whether all the work takes about as long as waking a thread that sleeps (measured: 50 to 200 microseconds).

    A single step is mostly a layer that is called again and again, whose threads have not gone to sleep yet: there it
    is worth it from about 20 microseconds of one thread on.
    """
    macs = sum(step.macs for step in steps)
    nbytes = sum(high - low for step in steps for _, low, high, _, _ in step.touches)
    if len(steps) == 1:
        return macs < 800_000 and nbytes < 500_000
    return macs < 4_000_000 and nbytes < 1_000_000


def _prepare(b: Builder) -> list[lower.Row]:
    """What has to be known before the first step: flattened inputs, concatenations in place, halos."""
    producers = {name: layer for layer in b.layers for name in layer.node.outputs if name}
    producers |= {layer.output: layer for layer in b.layers}
    readers = _readers(b)
    rows = [lower.row_of(b, layer) for layer in b.layers]
    row_by_output = {layer.output: row for layer, row in zip(b.layers, rows, strict=True)}
    for layer in b.layers:
        name = layer.node.inputs[0] if layer.node.inputs else ""
        if layer.op != "Flatten" or layer.node.attributes.get("axis", 1) != 1 or layer.output in b.graph.outputs:
            continue
        all_gemm = all(row_by_output[reader.output].lower is dense.lower for reader in readers[layer.output])
        if all_gemm and b.fits_blocks(name) and 2 < len(b.shape(name)) < 5:
            b.flattened[layer.output] = name
    for layer, row in zip(b.layers, rows, strict=True):
        if row.lower is channels.lower_concat:
            b.parents |= channels.concatenations(b, layer, producers)
    for layer, row in reversed(list(zip(b.layers, rows, strict=True))):
        wants = {}
        if row.lower is conv.lower:
            wants = conv.needs_halo(b, layer)
        elif row.lower is deformable.lower:
            wants = deformable.needs_halo(layer)
        elif row.lower in (channels.lower_split, channels.lower_slice):
            wants = channels.wants_halo(b, layer)
        for name, halo in wants.items():
            b.halos[name] = channels.merged(b.halos.get(name, NO_HALO), halo)
    for name, (whole, _) in b.parents.items():
        b.halos[whole] = channels.merged(b.halos.get(whole, NO_HALO), b.halos.get(name, NO_HALO))
    return rows


def _readers(b: Builder) -> dict[str, list[Layer]]:
    """The layers that read each value, once for every time that they do."""
    readers: dict[str, list[Layer]] = defaultdict(list)
    for layer in b.layers:
        for name in layer.reads:
            readers[name].append(layer)
    return readers


def _hand_over(b: Builder, name: str) -> None:
    """See that a graph output ends up in the caller's array."""
    value = b.plain(name)
    if value.buffer.kind == "output" and b.graph.outputs[value.buffer.index] == name:
        return
    room = b.plain_room(value.shape, value.dtype, Buffer(value.buffer.nbytes, "output", b.graph.outputs.index(name)))

    def copy(source: np.ndarray, target: np.ndarray) -> None:
        target[...] = source

    b.python_step("copy", copy, [value], [room])
    b.steps[-1].why = "an output that is another value's memory"


def _place(steps: list[Step]) -> tuple[int, int]:
    """Give every arena buffer a place; returns the arena's size and the largest sum of buffers alive at one step."""
    buffers: dict[int, Buffer] = {}
    for number, step in enumerate(steps):
        for buffer, *_ in step.touches:
            if buffer.kind == "arena":
                buffer.used_at(number)
                buffers[id(buffer)] = buffer
    alive = np.zeros(len(steps) + 1, np.int64)
    for buffer in buffers.values():
        alive[buffer.first] += buffer.nbytes
        alive[buffer.last + 1 :][:1] -= buffer.nbytes
    placed: list[Buffer] = []
    size = 0
    for buffer in sorted(buffers.values(), key=lambda one: (-one.nbytes, one.first)):
        taken = sorted(
            (other.place, other.place + aligned(other.nbytes))
            for other in placed
            if other.first <= buffer.last and buffer.first <= other.last
        )
        at = 0
        for start, end in taken:
            if at + aligned(buffer.nbytes) <= start:
                break
            at = max(at, end)
        buffer.place = at
        placed.append(buffer)
        size = max(size, at + aligned(buffer.nbytes))
    return size, int(np.cumsum(alive).max(initial=0))


def _barriers(steps: list[Step]) -> list[bool]:
    """Whether the threads meet after each step: where the next step touches what another thread may still be at."""
    result = [False] * len(steps)
    recent: list[tuple[object, int, int, bool, str]] = []
    for number, step in enumerate(steps):
        here = [_absolute(*touch) for touch in step.touches]
        if step.python is not None or any(_clash(old, new) for old in recent for new in here):
            if number:
                result[number - 1] = True
            recent = []
        recent += here
        if step.python is not None:
            recent = []
    return result


def _absolute(buffer: Buffer, low: int, high: int, written: bool, tag: str) -> tuple[object, int, int, bool, str]:
    if buffer.kind == "arena":
        return "arena", buffer.place + low, buffer.place + high, written, f"{tag} {id(buffer)}"
    return id(buffer), low, high, written, tag


def _clash(old: tuple[object, int, int, bool, str], new: tuple[object, int, int, bool, str]) -> bool:
    if old[0] != new[0] or not (old[3] or new[3]) or old[1] >= new[2] or new[1] >= old[2]:
        return False
    if old[3] and new[3]:
        old_tag, _, old_buffer = old[4].partition(" ")
        new_tag, _, new_buffer = new[4].partition(" ")
        return not (old_buffer == new_buffer and old_tag != new_tag)
    return True
