"""A linked program: the table of steps, the arena, and where the caller's arrays go in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convwright.codegen.jit import compile_many
from convwright.codegen.target import Target, host_target
from convwright.runtime.memory import zeroed
from convwright.runtime.region import STEP_COLUMNS
from convwright.runtime.team import Team, kernels_of_team


class Arena:
    """Zeroed memory for a model's intermediate tensors; grows to what its largest program needs."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.address = 0
        self._view: np.ndarray | None = None

    def reserve(self, nbytes: int) -> None:
        if nbytes <= self.nbytes:
            return
        self.release()
        self._view = zeroed(nbytes)
        self.nbytes, self.address = nbytes, self._view.ctypes.data

    def release(self) -> None:
        self.nbytes = self.address = 0
        self._view = None

    def view(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not count:
            return np.empty(shape, dtype)
        assert self._view is not None
        return self._view[offset : offset + count].view(dtype).reshape(shape)


@dataclass(slots=True)
class Segment:
    """Steps that run in one parallel region, or one Python step."""

    first: int
    count: int
    python: Callable[..., None] | None = None
    operands: tuple[Any, ...] = ()


@dataclass(slots=True)
class StepInfo:
    """What reports say of one step; `runner_up` tells the best of the ways that were not taken."""

    layer: str
    op: str
    kernel: str
    why: str
    macs: int
    nbytes: int
    runner_up: Callable[[], str] | None = None


class Program:
    """One network at one set of shapes. Not thread-safe: its model calls it under a lock."""

    def __init__(
        self, table: np.ndarray, flat: np.ndarray, slots: dict[str, list[tuple[int, int, int]]], arena_bytes: int,
        liveness_bound: int, outputs: list[tuple[str, np.dtype, tuple[int, ...]]], segments: list[Segment],
        infos: list[StepInfo], threads: int, keep: Sequence[Any],
    ):  # fmt: skip
        self.table, self.arena_bytes, self.liveness_bound = table, arena_bytes, liveness_bound
        self.outputs, self.infos, self.segments, self.threads = outputs, infos, segments, threads
        self._flat, self._keep = flat, keep
        self._inputs, self._outputs = slots["input"], slots["output"]
        arena = slots["arena"]
        self._arena_places = np.array([place for place, _, _ in arena], np.int64)
        self._arena_offsets = np.array([offset for _, _, offset in arena], np.int64)
        self._base = 0

    def bind(
        self, arena: Arena, inputs: Sequence[np.ndarray], results: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Point the arguments at the arena and at the caller's arrays; returns the output arrays, new ones if None."""
        if arena.address != self._base:
            self._flat[self._arena_places] = self._arena_offsets + arena.address
            self._base = arena.address
        if results is None:
            results = [np.empty(shape, dtype) for _, dtype, shape in self.outputs]
        addresses = [array.__array_interface__["data"][0] for array in inputs]
        for place, index, offset in self._inputs:
            self._flat[place] = addresses[index] + offset
        addresses = [array.__array_interface__["data"][0] for array in results]
        for place, index, offset in self._outputs:
            self._flat[place] = addresses[index] + offset
        return list(results)

    def run(
        self, team: Team, arena: Arena, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """One inference, into `outputs` where they are given; the caller holds the team's lock."""
        results = self.bind(arena, inputs, outputs)
        for segment in self.segments:
            if segment.python is None:
                team.run(self.table, segment.first, segment.count)
            else:
                segment.python(*(_array(operand, arena, inputs, results) for operand in segment.operands))
        return results

    def answer(self, results: Sequence[np.ndarray]) -> Any:
        """What a call gives back: the one output's array, or several by name."""
        if len(results) == 1:
            return results[0]
        return {name: result for (name, _, _), result in zip(self.outputs, results, strict=True)}

    def time_steps(self, team: Team, arena: Arena, inputs: Sequence[np.ndarray]) -> list[float]:
        """One inference with a barrier after every step; seconds of each."""
        results = self.bind(arena, inputs)
        seconds: list[float] = []
        for segment in self.segments:
            if segment.python is None:
                seconds += team.run_timed(self.table, segment.first, segment.count)
            else:
                start = time.perf_counter()
                segment.python(*(_array(operand, arena, inputs, results) for operand in segment.operands))
                seconds.append(time.perf_counter() - start)
        return seconds


def _array(
    operand: tuple[Any, ...], arena: Arena, inputs: Sequence[np.ndarray], results: list[np.ndarray]
) -> np.ndarray:
    """The array that an operand of a Python step names."""
    kind, index, offset, shape, dtype, array = operand
    if kind == "arena":
        return arena.view(offset, shape, dtype)
    if kind == "static":
        return array.reshape(shape)
    return (inputs if kind == "input" else results)[index].reshape(shape)


def link(
    steps: Sequence[Any], barriers: Sequence[bool], arena_bytes: int, liveness_bound: int,
    outputs: list[tuple[str, np.dtype, tuple[int, ...]]], target: Target, threads: int,
    keep: Sequence[Any],
) -> Program:  # fmt: skip
    """Compile the steps' kernels and lay out their arguments.

    A step has ``family`` (a module of ``kernels``), ``tile``, ``arguments`` (integers and references into buffers) and
    ``items``, or ``python`` and its operands. The arguments of its ``calls`` lie one after another, its template.
    """
    # The team's own kernels beside the steps': a process that compiles a single layer's has two cores for them too.
    team = kernels_of_team(threads) if target == host_target() else []
    addresses = iter(compile_many([*team, *kernels_of(steps, target)], target)[len(team) :])
    table = np.zeros((len(steps), STEP_COLUMNS), np.int64)
    slots: dict[str, list[tuple[int, int, int]]] = {"arena": [], "input": [], "output": []}
    flat: list[int] = []
    starts: list[int] = []
    segments: list[Segment] = []
    infos: list[StepInfo] = []
    templates: list[tuple[int, int]] = []  # place of an argument that points to other arguments, and their place
    tables: list[np.ndarray] = []

    def lay_out(step: Any, **known: int) -> int:
        """Append the step's arguments; returns their number."""
        names = _arguments(step).names
        for name in names:
            value = known.get(name, step.arguments.get(name))
            if isinstance(value, int | np.integer):
                flat.append(int(value))
                continue
            buffer = value.buffer
            if buffer.kind == "static":
                flat.append(buffer.array.ctypes.data + value.nbytes)
            else:
                slots[buffer.kind].append((len(flat), buffer.index, buffer.place + value.nbytes))
                flat.append(0)
        return len(names)

    for number, step in enumerate(steps):
        starts.append(len(flat))
        layer = step.layer
        nbytes = sum(high - low for _, low, high, _, _ in step.touches)
        infos.append(
            StepInfo(
                layer.name if layer else "", layer.op if layer else "", step.name, step.why, step.macs, nbytes,
                step.runner_up,
            )
        )  # fmt: skip
        if step.python is not None:
            operands = []
            for ref, (shape, dtype) in zip(step.arguments.values(), step.tile, strict=True):
                buffer = ref.buffer
                operands.append((buffer.kind, buffer.index, buffer.place + ref.nbytes, shape, dtype, buffer.array))
            segments.append(Segment(number, 1, step.python, tuple(operands)))
            continue
        address = next(addresses)
        if step.calls:
            calls = np.array([(next(addresses), lay_out(call), call.items) for call in step.calls], np.int64)
            tables.append(calls)
            templates.append((len(flat) + _arguments(step).index["template"], starts[number]))
            starts[number] = len(flat)
            lay_out(step, calls=calls.ctypes.data, template=0)
        else:
            lay_out(step)
        table[number] = (address, starts[number], step.items, int(barriers[number]))
        if segments and segments[-1].python is None:
            segments[-1].count += 1
        else:
            segments.append(Segment(number, 1))
    arguments = np.array(flat, np.int64)
    table[:, 1] = arguments.ctypes.data + 8 * np.array(starts, np.int64)
    for place, template in templates:
        arguments[place] = arguments.ctypes.data + 8 * template
    return Program(
        table,
        arguments,
        slots,
        arena_bytes,
        liveness_bound,
        outputs,
        segments,
        infos,
        threads,
        (arguments, tables, keep),
    )


def kernels_of(steps: Sequence[Any], target: Target) -> list[tuple[str, Callable[[], Any]]]:
    """The steps' kernels in order, as `compile_many` takes them."""
    native = [kernel for step in steps if step.python is None for kernel in (step, *step.calls)]
    return [_emitter(step.family, step.tile, target) for step in native]


def _arguments(step: Any) -> Any:
    own = getattr(step.tile, "arguments", None)
    return own if own is not None else step.family.ARGUMENTS


def _emitter(family: Any, tile: Any, target: Target) -> tuple[str, Callable[[], Any]]:
    return tile.key, lambda: family.emit(tile, target)
