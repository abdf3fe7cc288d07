"""What tests of planned layers share: plans that are run step by step between unreadable pages.

A small graph is planned as a model would plan it. Every buffer of the plan (inputs, weights, biases, tables,
intermediate and output tensors) then lies beside an unreadable page. Intermediate memory starts as NaN, and the lanes
beyond a tensor's channels are made NaN before every step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from convwright.codegen.jit import compile_many
from convwright.codegen.target import Target
from convwright.graph import Graph, Node, ValueInfo
from convwright.model import plan
from convwright.model.builder import Builder, Step
from convwright.model.lower import direct
from convwright.model.tiles import Shape
from convwright.model.values import Buffer, Ref, Value, blocks_of, spatial
from convwright.model.weights import Weights
from tests.guard import guarded_bytes

Arrays = dict[str, NDArray[Any]]
_signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def graph_of(nodes: list[Node], inputs: Arrays, outputs: list[str], constants: Arrays) -> Graph:
    infos = {name: ValueInfo(array.dtype, array.shape) for name, array in inputs.items()}
    return Graph("test", infos, outputs, nodes, dict(constants))


@dataclass
class Planned:
    """The steps of one inference, and the values that they compute."""

    builder: Builder
    steps: list[Step]
    outputs: list[tuple[str, np.dtype[Any], tuple[int, ...]]]
    target: Target
    threads: int
    memory: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # of the last run, by the buffer's id

    def kernels(self) -> list[tuple[str, Any]]:
        steps = [kernel for step in self.steps for kernel in (step, *step.calls)]
        return [(step.tile.key, lambda step=step: step.family.emit(step.tile, self.target)) for step in steps]

    def run(self, inputs: Arrays, *, at_end: bool = True) -> Arrays:
        """The outputs; every buffer ends (or begins) at an unreadable page."""
        addresses = iter(compile_many(self.kernels(), self.target))
        memory = self.memory = {}
        names = list(inputs)

        def room(buffer: Buffer) -> NDArray[np.uint8]:
            if id(buffer) not in memory:
                memory[id(buffer)] = guarded_bytes(buffer.nbytes, at_end=at_end)
                contents = inputs[names[buffer.index]] if buffer.kind == "input" else buffer.array
                if contents is not None:
                    memory[id(buffer)][:] = np.ascontiguousarray(contents).reshape(-1).view(np.uint8)
            return memory[id(buffer)]

        def number(value: int | Ref) -> int:
            return room(value.buffer).ctypes.data + value.nbytes if isinstance(value, Ref) else int(value)

        def pack(step: Step, **known: int) -> NDArray[np.int64]:
            assert step.family is not None
            own = getattr(step.tile, "arguments", None) or step.family.ARGUMENTS
            packed: NDArray[np.int64] = own.pack(
                {name: known.get(name) or number(step.arguments[name]) for name in own.names}
            )
            return packed

        results: Arrays = {}
        for step in self.steps:
            self._poison(memory)
            address = next(addresses)
            inner = [pack(call) for call in step.calls]
            rows = [(next(addresses), len(own), call.items) for own, call in zip(inner, step.calls, strict=True)]
            calls, template = np.array(rows, np.int64), np.concatenate([*inner, np.zeros(0, np.int64)])
            packed = pack(step, calls=calls.ctypes.data, template=template.ctypes.data)
            # As the threads do, the last share first: nothing may depend on their order.
            bounds = np.linspace(0, step.items, self.threads + 1).astype(int)
            for thread in reversed(range(self.threads)):
                _signature(address)(packed.ctypes.data, int(bounds[thread]), int(bounds[thread + 1]), thread)
            for buffer, *_ in step.touches:
                if buffer.kind == "output":
                    name, dtype, shape = self.outputs[buffer.index]
                    results[name] = room(buffer).view(dtype).reshape(shape)
        return results

    def _poison(self, memory: Mapping[int, NDArray[np.uint8]]) -> None:
        """NaN in the lanes that mean nothing; the parts of a concatenation leave that to the whole."""
        v = self.target.vector
        for value in self.builder.values.values():
            whole = value.blocked and value.image == value.block * blocks_of(value.channels, v)
            if whole and id(value.buffer) in memory and value.channels % v:
                self._view(value, memory[id(value.buffer)])[:, -1, ..., value.channels % v :] = np.nan
        for name, order in self.builder.orders.items():
            ordered = self.builder.values.get((name, True))
            if ordered is not None and id(ordered.buffer) in memory:
                empty = np.setdiff1d(np.arange(blocks_of(order.lanes, v) * v), order.places)
                self._view(ordered, memory[id(ordered.buffer)])[:, empty // v, ..., empty % v] = np.nan

    def _view(self, value: Value, memory: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``[N][blocks][slices][rows][columns][v]``, without the halo."""
        v = self.target.vector
        deep, high, wide = value.shape[2:] if len(value.shape) == 5 else (1, *spatial(value.shape))
        strides = [4 * step for step in (value.image, value.block, value.slice, value.row, v, 1)]
        shape = (value.n, blocks_of(value.channels, v), deep, high, wide, v)
        return as_strided(memory.view(np.float32)[value.offset // 4 :], shape, strides)

    def tiles(self, family: Any) -> list[Any]:
        """The tiles of the steps of one kernel family."""
        return [step.tile for step in self.steps if step.family is family]


def planned(
    graph: Graph,
    target: Target,
    threads: int = 1,
    tile: tuple[int, int, int] | None = None,
    numerics: str = "strict",
) -> Planned:
    """The graph planned at its inputs' shapes; ``tile``: rows, cols and outs that direct convolutions are to use, where
    the output is as large."""
    made: dict[str, Any] = {}

    class Recorded(Builder):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made["builder"] = self

    def unlinked(steps: Any, barriers: Any, arena: Any, bound: Any, outputs: Any, *_: Any) -> None:
        made["steps"], made["outputs"] = steps, outputs

    shapes: dict[str, Any] = {name: info.shape for name, info in graph.inputs.items()}
    weights = Weights(graph.constants, target.vector)
    with patch.object(plan, "Builder", Recorded), patch.object(plan, "link", unlinked), _forced(tile):
        plan.finished(plan.make_plan(graph, shapes, weights, target, threads, numerics))
    return Planned(made["builder"], made["steps"], made["outputs"], target, threads)


@contextmanager
def _forced(tile: tuple[int, int, int] | None) -> Iterator[None]:
    def choose(rows: int, cols: int, vectors: int, *_: Any) -> Shape:
        assert tile is not None
        return Shape(min(tile[0], rows), min(tile[1], cols), min(tile[2], vectors), 0.0)

    if tile is None:
        yield
    else:
        with patch.object(direct, "choose_tile", choose):
            yield
