"""A compiled network: callable, picklable, safe to share between threads."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from convwright.codegen.target import host_target
from convwright.errors import ConvwrightError
from convwright.graph import Graph, ValueInfo
from convwright.graph import load as load_graph
from convwright.graph.facts import Facts
from convwright.graph.outline import Outline, outline
from convwright.graph.rewrites import simplify
from convwright.model import choices
from convwright.model.map import Lane, arguments_of, check_workers, run_ahead
from convwright.model.plan import finished, make_plan
from convwright.model.report import Explanation, Profile, StepReport, median, share_of_limit
from convwright.model.tune import Progress, Tuner
from convwright.model.weights import Weights
from convwright.runtime.ceilings import ceilings
from convwright.runtime.program import Arena, Program
from convwright.runtime.team import check_threads, team_of

_REMEMBERED_PLANS = 16


def compile(
    graph: Graph | str | os.PathLike[str],
    *,
    threads: int | None = None,
    numerics: str = "default",
    strips: bool = True,
    tune: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Make a model of a graph or of an ONNX file.

    - ``threads``: how many threads an inference uses; by default all cores that this process may use.
    - ``numerics``: "default", within 1e-5 of the output's largest value, or "strict", within 1e-6 in the networks of
      docs/performance.md: direct summation alone, sums of more than 128 products in pieces that are added up.
    - ``strips``: whether layers that follow each other may be computed together, strip by strip, where that is
      estimated to be quicker; the results are the same to the last bit. False keeps every layer a step of its own,
      which is what a profile layer by layer needs.
    - ``tune``: whether convolutions are computed by the algorithm that is measured to be the fastest here, in place of
      the one that is estimated to be, and strips are cut as measured. What is measured, some hundredths of a second a
      kind of layer, is stored beside the compiled kernels (``CONVWRIGHT_CACHE``) and not measured again; without
      ``tune`` nothing measured is used.
    - ``progress``: called while layers are being measured, with what is measured and the share of all that is done.

    Kernels are compiled, and weights packed, at once where the graph's inputs have fixed shapes, else at the first
    call. A graph that the caller keeps is left as it is, and its weights are held beside the packed ones; those of a
    file are held once.

    Raises ConvwrightError for files, graphs and settings that cannot be used.
    """
    if numerics not in ("default", "strict"):
        raise ConvwrightError(f'numerics must be "default" or "strict", not {numerics!r}')
    if not isinstance(graph, Graph):
        graph = load_graph(graph)
    origin, simplified = outline(graph), simplify(graph)
    del graph  # so that weights which nobody but the model holds can be packed where they lie
    return Model(simplified, check_threads(threads), numerics, origin, strips, tune, progress)


class Model:
    """A network ready to run. ``model(x)`` takes NumPy arrays and returns NumPy arrays.

    Positional arrays go to the inputs in order; keywords or one dict go by name. One output is returned as an array,
    several as a dict by name. Shapes may change from call to call where the graph leaves them open: the plan of each
    shape is made at its first use and remembered.
    """

    def __init__(
        self,
        graph: Graph,
        threads: int,
        numerics: str,
        origin: Outline | None = None,
        strips: bool = True,
        tune: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.threads, self.numerics, self.strips, self.tune = threads, numerics, strips, tune
        self._tuner = Tuner(progress) if tune else None
        self._graph = graph
        self._origin = outline(graph) if origin is None else origin
        self._target = host_target()
        self._weights = Weights(graph.constants, self._target.vector)
        self._programs: OrderedDict[tuple[tuple[int, ...], ...], Program] = OrderedDict()
        self._arena = Arena()
        self._lanes: list[Lane] = []  # of the workers of `map`, at rest
        self._lock = threading.Lock()
        self._closed = False
        _models.add(self)
        shapes = [info.shape for info in graph.inputs.values()]
        if all(isinstance(size, int) for shape in shapes for size in shape):
            self._weights.consuming = True  # a plan that fails here leaves no model
            self._program(tuple(shapes))  # type: ignore[arg-type]  # all sizes are integers
            self._weights.consuming = False

    # -- running -------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arrays = self._arrays(args, kwargs)
        with self._lock:
            program = self._program(tuple(array.shape for array in arrays))
            team = team_of(program.threads)
            with team.lock:
                results = program.run(team, self._arena, arrays)
        return program.answer(results)

    def map(self, iterable: Iterable[Any], *, workers: int | None = None) -> Iterator[Any]:
        """Run on every item of an iterable; the results come in order, as from a call, while later ones are computed.

        For throughput: ``workers`` threads, as many as the model's and never more than there are cores, run one item
        each, on weights held once. A single item takes longer than by a call; ``bench/throughput.py`` measures whether
        more of them are done in a second, and beside batches in one call. Where the process's cores are
        taken at the moment (by a call of a model, another ``map``), they wait for a free one.

        An item is an array, a tuple of arrays (inputs in order) or a dict (by name), each with its batch axis; shapes
        may differ. Items are taken when they are needed, two for each worker ahead of the result that is asked for, so
        that an iterable may be endless; their arrays must not be overwritten until their result has come. An error of
        an item or of the iterable is raised in its place and ends the iteration. Closing the iterator, or dropping
        it, waits for the inferences that have begun.

        Plans for one thread may choose another algorithm for a layer than plans for more, and then pack its weights a
        second time: compile with ``threads=1`` where only ``map`` is used.

        Results equal those of the model compiled with ``threads=1`` bit for bit, however many workers there are; a call
        on more threads may sum in another order.

        Raises ConvwrightError for workers that are not a positive integer, and for a closed model.
        """
        count = check_workers(workers, self.threads)
        self._require_open()
        return run_ahead(self._infer_alone, iterable, count, self._lanes)

    def _infer_alone(self, lane: Lane, item: Any) -> Any:
        """One inference of `map`, on one thread."""
        self._require_open()
        return lane.run(self._arrays(arguments_of(item), {}), self._plan_alone)

    def _plan_alone(self, shapes: tuple[tuple[int, ...], ...]) -> Program:
        with self._lock:
            return self._plan(shapes, 1)

    def run_checked(self, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray] | None) -> list[np.ndarray]:
        """One inference on arrays that nobody checks again: all inputs in order, of the declared types, C-contiguous.

        ``results``: C-contiguous arrays of the outputs' types and sizes, which share no memory with the inputs, to
        write to; new ones are made where it is None.
        """
        with self._lock:
            program = self._program(tuple([array.shape for array in arrays]))
            team = team_of(program.threads)
            with team.lock:
                return program.run(team, self._arena, arrays, results)

    def _arrays(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[np.ndarray]:
        """The inputs in order, checked; copied only where they are not contiguous."""
        names = list(self.inputs)
        if len(args) == 1 and isinstance(args[0], Mapping):
            given = {**args[0], **kwargs}
        else:
            if len(args) > len(names):
                raise ConvwrightError(f"{len(args)} arrays given, the model has {len(names)} inputs: {names}")
            given = dict(zip(names, args, strict=False))
            if twice := [name for name in given if name in kwargs]:
                raise ConvwrightError(f"inputs {twice} are given twice: by place and by name")
            given |= kwargs
        if set(given) != set(names):
            raise ConvwrightError(f"inputs given: {list(given)}; the model's inputs are {names}")
        return [_checked(name, given[name], info) for name, info in self.inputs.items()]

    def _program(self, shapes: tuple[tuple[int, ...], ...]) -> Program:
        """The program for these input shapes, from memory or newly planned. The caller holds the lock."""
        self._require_open()
        program = self._programs.get(shapes)
        if program is None:
            program = self._programs[shapes] = self._plan(shapes, self.threads)
            while len(self._programs) > _REMEMBERED_PLANS:
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(shapes)
        self._arena.reserve(program.arena_bytes)
        return program

    def _plan(self, shapes: tuple[tuple[int, ...], ...], threads: int) -> Program:
        """A new program. The caller holds the lock."""
        self._require_open()
        by_name = dict(zip(self._graph.inputs, shapes, strict=True))
        settings = threads, self.numerics, self.strips
        # Who measures chooses otherwise; and a model of ever other shapes is not to fill the cache.
        worth_storing = self._tuner is None and len(self._programs) < _REMEMBERED_PLANS
        with choices.stored(self._graph, shapes, self._target, settings) if worth_storing else nullcontext():
            plan = make_plan(
                self._graph, by_name, self._weights, self._target, threads, self.numerics, self.strips, self._tuner
            )
        program = finished(plan)
        self._weights.release()
        return program

    def _require_open(self) -> None:
        if self._closed:
            raise ConvwrightError("the model is closed")

    # -- reports -------------------------------------------------------------------------------------------------------

    def profile(self, *args: Any, runs: int = 20, **kwargs: Any) -> Profile:
        """Measure every step: the median of ``runs`` inferences on these inputs (random ones, of batch 1 where it is
        open, where none are given)."""
        return Profile(*self._measure(args, kwargs, runs, None))

    def explain(self, *args: Any, runs: int = 20, **kwargs: Any) -> Explanation:
        """Every step's kernel, why it was chosen, its time, and its share of this machine's measured limits; and, where
        a convolution could have been computed otherwise, the next best way."""
        return Explanation(*self._measure(args, kwargs, runs, ceilings(self.threads)))

    def _measure(self, args: Any, kwargs: Any, runs: int, limits: tuple[float, float] | None) -> tuple[Any, ...]:
        if not isinstance(runs, int) or runs < 1:
            raise ConvwrightError(f"runs must be a positive integer, not {runs!r}")
        arrays = self._arrays(args, kwargs) if args or kwargs else self._random_inputs()
        with self._lock:
            program = self._program(tuple(array.shape for array in arrays))
            team = team_of(program.threads)
            with team.lock:
                program.run(team, self._arena, arrays)
                seconds = median([program.time_steps(team, self._arena, arrays) for _ in range(runs)])
                whole = []
                for _ in range(runs):
                    start = time.perf_counter()
                    program.run(team, self._arena, arrays)
                    whole.append(time.perf_counter() - start)
        steps = tuple(
            StepReport(
                info.layer, info.op, info.kernel, info.why, taken, info.macs, info.nbytes,
                share_of_limit(info.macs, info.nbytes, taken, limits),
                info.runner_up() if limits and info.runner_up else "",
            )
            for info, taken in zip(program.infos, seconds, strict=True)
        )  # fmt: skip
        shapes = ", ".join("x".join(str(size) for size in array.shape) for array in arrays)
        title = f"{self._graph.name or 'model'} ({shapes})"
        return title, program.threads, steps, sorted(whole)[len(whole) // 2], limits

    def _random_inputs(self) -> list[np.ndarray]:
        generator = np.random.default_rng(0)
        arrays = []
        for name, info in self.inputs.items():
            shape = [1 if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(info.shape)]
            if not all(isinstance(size, int) for size in shape):
                raise ConvwrightError(f"input {name!r} is declared as {info}: give an array of the shape to measure")
            arrays.append(generator.standard_normal(shape).astype(info.dtype))  # type: ignore[arg-type]
        return arrays

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> dict[str, ValueInfo]:
        """Type of every input, by name."""
        return self._graph.inputs

    @property
    def outputs(self) -> dict[str, ValueInfo]:
        """Type of every output, by name, as the last planned program has it; before the first, as the graph tells."""
        for program in reversed(self._programs.values()):
            return {name: ValueInfo(dtype, shape) for name, dtype, shape in program.outputs}
        facts = Facts(self._graph)
        types = ((name, facts.dtype(name), facts.open_shape(name)) for name in self._graph.outputs)
        return {name: ValueInfo(dtype or np.dtype(np.float32), shape or ()) for name, dtype, shape in types}

    @property
    def outline(self) -> Graph:
        """The graph that the model was made of, before any rewriting; zeros stand for its large constants."""
        return self._origin.whole()

    def memory(self) -> dict[str, int]:
        """Bytes of the packed weights, of the arenas (those of `map`'s workers at rest too), and the least that the
        tensors alive at one step need."""
        bound = max((program.liveness_bound for program in self._programs.values()), default=0)
        arena = self._arena.nbytes + sum(lane.arena.nbytes for lane in self._lanes)
        return {"weights": self._weights.nbytes, "arena": arena, "liveness_bound": bound}

    def prepare(self, *shapes: tuple[int, ...]) -> None:
        """Plan for inputs of these shapes now, one shape an input, so that the first call with them does not have to.

        Raises ConvwrightError for shapes that the graph does not accept.
        """
        if len(shapes) != len(self.inputs):
            raise ConvwrightError(f"{len(shapes)} shapes given, the model has {len(self.inputs)} inputs")
        with self._lock:
            self._program(tuple(tuple(int(size) for size in shape) for shape in shapes))

    def forget_plans(self) -> None:
        """Drop the plans of all shapes met so far; weights and compiled kernels stay."""
        with self._lock:
            self._programs.clear()
            self._lanes = []  # iterations under way keep the old list, which goes with them

    def close(self) -> None:
        """Release the model's memory; calls after this raise ConvwrightError."""
        with self._lock:
            self._closed = True
            self._programs.clear()
            self._lanes = []  # iterations under way keep the old list, which goes with them
            self._arena.release()
            self._weights = Weights({}, self._target.vector)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: the graph with its weights, and the settings."""
        self._require_open()
        with self._lock:
            graph = self._graph.copy()
            graph.constants = self._weights.unpacked()
        settings = {"threads": self.threads, "numerics": self.numerics, "strips": self.strips, "tune": self.tune}
        return {"graph": graph, "origin": self._origin, **settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(name: str, array: Any, info: ValueInfo) -> np.ndarray:
    """The array as the kernels want it: the declared type, contiguous."""
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise ConvwrightError(f"input {name!r} is no array: {' '.join(str(error).split())}") from error
    if array.dtype != info.dtype:
        raise ConvwrightError(f"input {name!r} has dtype {array.dtype}, the model takes {info.dtype}")
    if array.ndim != len(info.shape):
        raise ConvwrightError(f"input {name!r} has shape {array.shape}, the model takes {info}")
    return np.ascontiguousarray(array).reshape(array.shape)  # rank 0 stays


_models: weakref.WeakSet[Model] = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked child no other thread is left to release a lock that it held."""
    for model in _models:
        model._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
