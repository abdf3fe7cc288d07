"""Calls that have been made before: models of one or two operators, remembered with their weights.

A model is remembered under what its plan depends on: the function, its arguments, shapes and types. It keeps copies of
its constants (weights and biases) of its own; a call takes it where its constants hold the same bytes, NaN and signed
zeros included. Several may stand under one key, for a network calls the same function with many weights. The least
recently used leave when all together hold more than `LIMIT` bytes.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.functional.arrays import Array, checked_out, ready
from convwright.graph import Graph, Node, ValueInfo
from convwright.model import Model
from convwright.runtime.team import check_threads

LIMIT = int(os.environ.get("CONVWRIGHT_REMEMBER_MB", "512")) << 20
"""Bytes of weights and intermediate memory that remembered calls may hold together; at least one call is remembered."""

_OUTPUT = "y"
_SMALL = 4096  # bytes: below, Python compares two strings faster than it calls a function of C
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class Recipe:
    """The operators of a call, from the values named as its arrays to ``y``, and what they give.

    - `shape`: of the result, without the batch.
    - `constants`: arrays that the call's constants become, by name, where the operators read something else.
    """

    nodes: list[Node]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    constants: dict[str, Array] | None = None


@dataclass(slots=True, eq=False)
class _Prepared:
    """A model with copies of its constants, small ones as bytes, which compare faster."""

    model: Model
    constants: tuple[Array | bytes | None, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int

    def holds(self, constants: Sequence[Array | None]) -> bool:
        """Whether these contiguous constants have the bytes of the model's own; shapes and types are known to agree."""
        for own, given in zip(self.constants, constants, strict=True):
            if own is None or given is None:
                continue
            if isinstance(own, bytes):
                if own != given.tobytes():
                    return False
            else:
                here, there = own.__array_interface__["data"][0], given.__array_interface__["data"][0]
                if _memcmp(here, there, own.nbytes):
                    return False
        return True


class _Memory:
    """The remembered calls, a list a key, the most recently used last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: OrderedDict[Hashable, list[_Prepared]] = OrderedDict()
        self.nbytes = 0

    def find(self, key: Hashable, constants: Sequence[Array | None]) -> _Prepared | None:
        with self.lock:
            own = list(self.calls.get(key, ()))
        # Without the lock: comparing large weights takes a while.
        found = next((call for call in reversed(own) if call.holds(constants)), None)
        if found is not None:
            with self.lock:
                if found in self.calls.get(key, ()):
                    self.calls.move_to_end(key)
                    if len(own) > 1:
                        self.calls[key].remove(found)
                        self.calls[key].append(found)
        return found

    def keep(self, key: Hashable, call: _Prepared) -> None:
        with self.lock:
            self.calls.setdefault(key, []).append(call)
            self.calls.move_to_end(key)
            self.nbytes += call.nbytes
            while self.nbytes > LIMIT:
                oldest = next(iter(self.calls))
                if self.calls[oldest][0] is call:
                    break
                self.nbytes -= self.calls[oldest].pop(0).nbytes
                if not self.calls[oldest]:
                    del self.calls[oldest]

    def clear(self) -> None:
        with self.lock:
            self.calls.clear()
            self.nbytes = 0


_memory = _Memory()


def forget() -> None:
    """Release what the functions remember of earlier calls: packed weights, plans and intermediate memory.

    Compiled kernels stay. What is remembered is bounded, by `CONVWRIGHT_REMEMBER_MB` (512 by default).
    """
    _memory.clear()


def run(
    key: tuple[Hashable, ...],
    inputs: dict[str, Array],
    constants: dict[str, Array | None],
    build: Callable[[], Recipe],
    out: Array | None,
    threads: int | None,
    numerics: str,
    batched: bool = True,
) -> Array:
    """The result of a call.

    - `key`: the function and its arguments, hashable.
    - `inputs`: by name, with a batch; `constants`: by name, None where one is left out.
    - `build`: checks shapes and arguments, and says what to compute; called where the call is not remembered.
    - `out`: where the result goes, or None.
    - `batched`: False where the caller's arrays have no batch: the result has none then.
    """
    arrays = [ready(array) for array in inputs.values()]
    fixed = [None if array is None else ready(array) for array in constants.values()]
    whole = (
        key,
        threads,
        type(threads),
        numerics,
        tuple([(array.shape, array.dtype) for array in arrays]),
        tuple([None if array is None else (array.shape, array.dtype) for array in fixed]),
    )
    call = _memory.find(whole, fixed)
    if call is None:
        recipe = build()
        batch = arrays[0].shape[0]
        if batch == 0 or 0 in recipe.shape:
            return _empty((batch, *recipe.shape) if batched else recipe.shape, recipe.dtype, out)
        call = _prepare(recipe, dict(zip(inputs, arrays, strict=True)), constants, threads, numerics)
        _memory.keep(whole, call)
    shape = call.shape if batched else call.shape[1:]
    if out is None:
        return call.model.run_checked(arrays, None)[0].reshape(shape)
    checked_out(out, shape, call.dtype)
    direct = out.flags.c_contiguous and out.flags.aligned
    if direct and not any(np.may_share_memory(out, array) for array in arrays):
        call.model.run_checked(arrays, [out])
    else:
        out[...] = call.model.run_checked(arrays, None)[0].reshape(shape)
    return out


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any], out: Array | None) -> Array:
    return np.empty(shape, dtype) if out is None else checked_out(out, shape, dtype)


def _prepare(
    recipe: Recipe,
    inputs: dict[str, Array],
    constants: dict[str, Array | None],
    threads: int | None,
    numerics: str,
) -> _Prepared:
    if numerics not in ("default", "strict"):
        raise ConvwrightError(f'numerics must be "default" or "strict", not {numerics!r}')
    batch = next(iter(inputs.values())).shape[0]
    shape = (batch, *recipe.shape)
    _check_memory(shape, recipe.dtype)
    copies = {name: None if array is None else np.array(array, order="C") for name, array in constants.items()}
    given = {name: array for name, array in copies.items() if array is not None}
    given = given if recipe.constants is None else recipe.constants
    infos = {name: ValueInfo(array.dtype, array.shape) for name, array in inputs.items()}
    graph = Graph("function", infos, [_OUTPUT], recipe.nodes, given)
    model = Model(graph, check_threads(threads), numerics)
    memory = model.memory()
    nbytes = memory["weights"] + memory["arena"] + sum(array.nbytes for array in copies.values() if array is not None)
    kept = (array.tobytes() if array is not None and array.nbytes <= _SMALL else array for array in copies.values())
    return _Prepared(model, tuple(kept), shape, recipe.dtype, nbytes)


def _check_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse results that this machine cannot hold, before any table is made for them."""
    nbytes = dtype.itemsize
    for size in shape:
        nbytes *= size
    try:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    if nbytes > most:
        raise ConvwrightError(f"the result of shape {shape} takes {nbytes} bytes, more than this machine's memory")


def _after_fork() -> None:
    """In a forked child no other thread is left to release the lock."""
    _memory.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
