"""Inference over many inputs: programs of one thread each, side by side, on one set of packed weights.

One inference on T threads meets at a barrier after most steps, and what one core wrote another reads. T inferences on
one thread each do neither, but each takes longer by itself, and their arenas compete for the shared cache.
`bench/throughput.py` measures which finishes more of them.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.runtime.machine import cores
from convwright.runtime.program import Arena, Program
from convwright.runtime.team import Team

Shapes = tuple[tuple[int, ...], ...]
_REMEMBERED_PLANS = 16
_AHEAD = 2  # inputs in flight for each worker: one at work, one that waits, so that a slow consumer keeps nobody idle


class Lane:
    """What one worker needs for itself: its plans, its arena and a team of one thread. Used by one at a time."""

    def __init__(self) -> None:
        self.arena = Arena()
        self._team = Team(1)
        self._programs: OrderedDict[Shapes, Program] = OrderedDict()

    def run(self, arrays: list[np.ndarray], plan: Callable[[Shapes], Program]) -> Any:
        """One inference on checked arrays; `plan` makes the program of shapes that the lane has not met."""
        shapes = tuple(array.shape for array in arrays)
        program = self._programs.get(shapes)
        if program is None:
            program = self._programs[shapes] = plan(shapes)
            if len(self._programs) > _REMEMBERED_PLANS:
                self._programs.popitem(last=False)
        else:
            self._programs.move_to_end(shapes)
        self.arena.reserve(program.arena_bytes)
        with self._team.lock:
            results = program.run(self._team, self.arena, arrays)
        return program.answer(results)


def check_workers(workers: int | None, threads: int) -> int:
    """How many workers to start: a model's number of threads when None, and never more than the cores there are.

    Raises ConvwrightError where it is not a positive integer.
    """
    if workers is None:
        workers = threads
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConvwrightError(f"workers must be a positive integer, not {workers!r}")
    return min(workers, cores())


def arguments_of(item: Any) -> tuple[Any, ...]:
    """The positional arguments that an item stands for: those of a tuple, else the item itself (an array, a dict)."""
    return item if isinstance(item, tuple) else (item,)


def run_ahead(
    infer: Callable[[Lane, Any], Any], iterable: Iterable[Any], workers: int, lanes: list[Lane]
) -> Iterator[Any]:
    """Results of `infer` for each item, in order, computed by `workers` threads while the caller consumes them.

    `lanes` are at rest between iterations: those used here are taken from the list and given back to it.
    """
    own = threading.local()
    used: list[Lane] = []

    def work(item: Any) -> Any:
        lane = getattr(own, "lane", None)
        if lane is None:
            try:
                lane = lanes.pop()
            except IndexError:
                lane = Lane()
            own.lane = lane
            used.append(lane)
        return infer(lane, item)

    process = os.getpid()
    pending: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(workers, "convwright-map")
    try:
        source = iter(iterable)
        failed: BaseException | None = None
        more = True
        while True:
            if os.getpid() != process:
                raise ConvwrightError("an iteration of Model.map cannot go on in a forked process: start a new one")
            while more and len(pending) < _AHEAD * workers:
                try:
                    item = next(source)
                except StopIteration:
                    more = False
                except Exception as error:  # its place is behind the results that are still to come
                    more, failed = False, error
                else:
                    pending.append(pool.submit(work, item))
            if not pending:
                break
            yield pending.popleft().result()
        if failed is not None:
            raise failed
    finally:
        if os.getpid() == process:  # a fork's child has no workers to wait for
            pool.shutdown(wait=True, cancel_futures=True)
            lanes += used
