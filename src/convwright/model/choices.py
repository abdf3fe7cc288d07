"""The choices of a plan, stored, so that the next process need not look for them again.

Half of the time in which a network of small layers is planned goes into estimates: of every algorithm for a layer, of
every register tile, of every way to cut a run of layers. Those functions (marked with `choice`) depend on nothing but
their arguments and the machine. What they answer while a network is planned is written down as a table, question to
answer, and a later plan of the same network, in another process, finds its answers there. It is therefore the same plan
whether or not there is a table, and a table that lacks an answer costs the time to find it.

Tables lie in the object cache (`codegen.cache`), as pickles: they are believed as machine code is, where nobody else
can have written them and every byte is what was written. They are found by the network, its sizes, the machine, the
versions and the sources of what chooses.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import platform
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import convwright
from convwright.codegen.cache import object_cache
from convwright.codegen.jit import sources_hash
from convwright.codegen.target import Target
from convwright.graph import Graph
from convwright.runtime.machine import adds_beside_multiply_adds, caches, multiply_adds_a_cycle

_Function = TypeVar("_Function", bound=Callable[..., Any])
_ROOMS = ("codegen", "kernels", "model", "runtime", "spec")  # whose sources decide what is chosen
_LEAST_NODES = 8  # of a graph: planning fewer takes no longer than reading a table
_FORMAT = 1


class _Table(threading.local):
    """Of the plan that this thread makes, if any."""

    known: Mapping[Hashable, Any] = {}
    asked: dict[Hashable, Any] | None = None


_table = _Table()


def choice(function: _Function) -> _Function:
    """A function of hashable, picklable arguments that depends on nothing else but the machine: its answers are stored
    with the plans that asked.

    Those that it gets from other choices are not: a plan that has its answer does not ask for them.
    """
    name = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def answer(*question: Hashable) -> Any:
        asked = _table.asked
        if asked is None:
            return function(*question)
        entry = (name, *question)
        if entry not in asked:
            if entry in _table.known:
                asked[entry] = _table.known[entry]
            else:
                _table.asked = None
                try:
                    asked[entry] = function(*question)
                finally:
                    _table.asked = asked
        return asked[entry]

    if hasattr(function, "cache_clear"):
        answer.cache_clear = function.cache_clear  # type: ignore[attr-defined]
    return cast(_Function, answer)


@contextmanager
def stored(graph: Graph, sizes: object, target: Target, settings: object) -> Iterator[None]:
    """While a plan is made in here, choices are taken from the graph's table; new ones are stored at the end.

    - `sizes`: of the graph's inputs.
    - `settings`: what else a plan depends on: threads, numerics.
    """
    cache = object_cache() if len(graph.nodes) >= _LEAST_NODES else None
    if cache is None:
        yield
        return
    key = _key(graph, sizes, target, settings)
    entry = cache.get(key)
    known = {} if entry is None else _read(entry.payload)
    asked: dict[Hashable, Any] = {}
    before = _table.known, _table.asked
    _table.known, _table.asked = known, asked
    try:
        yield
    finally:
        _table.known, _table.asked = before
    if not asked.keys() <= known.keys():
        cache.put(key, pickle.dumps(asked, pickle.HIGHEST_PROTOCOL), bytes(32))


def _read(payload: bytes) -> Mapping[Hashable, Any]:
    """The table; an empty one where the payload is something else."""
    try:
        table = pickle.loads(payload)
    except Exception:  # whatever unpickling something else may raise
        return {}
    return table if isinstance(table, dict) else {}


def _key(graph: Graph, sizes: object, target: Target, settings: object) -> bytes:
    """Networks that share a key lose time, not correctness: the answers in a table hold for their questions."""
    nodes = [(node.op, node.inputs, node.outputs, _plain(node.attributes)) for node in graph.nodes]
    constants = [(name, array.shape) for name, array in graph.constants.items()]
    return hashlib.sha256(repr((_machine(target), nodes, constants, sizes, settings)).encode()).digest()


def _plain(attributes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Those that are no arrays or graphs."""
    return [(name, value) for name, value in attributes.items() if isinstance(value, int | float | str | tuple)]


@functools.cache
def _machine(target: Target) -> str:
    versions = (_FORMAT, convwright.__version__, platform.python_version(), sources_hash(_ROOMS).hex())
    return repr((versions, target, caches(), multiply_adds_a_cycle(target), adds_beside_multiply_adds(target)))
