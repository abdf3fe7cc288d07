"""What a kernel's ``args`` hold: a list of names, so that the emitter and the plan agree on the order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from llvmlite import ir

from convwright.codegen.lang import Int, Kernel


class Arguments:
    """An ordered set of 64-bit argument names; those in ``pointers`` are addresses."""

    def __init__(self, pointers: str, integers: str):
        self.pointers = tuple(pointers.split())
        self.names = self.pointers + tuple(integers.split())
        self.index = {name: place for place, name in enumerate(self.names)}

    def pack(self, values: Mapping[str, int]) -> np.ndarray:
        """The array that the kernel reads; every name must have a value."""
        return np.array([values[name] for name in self.names], dtype=np.int64)

    def read(self, k: Kernel) -> Reader:
        return Reader(self, k)


class Reader:
    """Inside a kernel: ``a.x`` is the pointer or integer of that name, loaded once at the kernel's entry."""

    def __init__(self, arguments: Arguments, k: Kernel):
        self._arguments, self._k = arguments, k
        self._loaded: dict[str, Int | ir.Value] = {}

    def __getattr__(self, name: str) -> Int | ir.Value:
        if name not in self._arguments.index:
            raise AttributeError(name)
        if name not in self._loaded:
            place = self._arguments.index[name]
            with self._k.b.goto_entry_block():
                value = self._k.pointer(place) if name in self._arguments.pointers else self._k.arg(place)
            self._loaded[name] = value
        return self._loaded[name]
