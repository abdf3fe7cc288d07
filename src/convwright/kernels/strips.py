"""Several layers in turn on a strip of rows, so that what passes between them stays in a core's own cache.

A work item is a strip of one image: the kernels of the layers are called one after another, each with its own arguments
moved to the strip. What lies between two of them is scratch memory of the thread. The kernels are those that compute
whole layers; this one only knows where their arguments lie:

    argument[word] = template[word] + offsets[item][word] + thread * shares[word]
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import I64, PTR, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments

ARGUMENTS = Arguments("calls template offsets shares", "count words")

CALL_COLUMNS = 3  # address of the kernel, number of its arguments, its work items
MOST_WORDS = 256
"""Of all calls' arguments together."""


@dataclass(frozen=True)
class Strips:
    """Nothing is baked in: one kernel serves every chain of layers."""

    @property
    def key(self) -> str:
        return f"strips-{self!r}"


def emit(tile: Strips, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    with k.b.goto_entry_block():
        own = k.b.bitcast(k.b.alloca(I64, MOST_WORDS), PTR)
    with k.loop(k.begin, k.end) as item:
        with k.loop(0, a.words) as word:
            moved = k.load_int(a.offsets, item * a.words + word) + k.thread * k.load_int(a.shares, word)
            k.store_int(k.load_int(a.template, word) + moved, own, word)
        first = k.variable(0)
        with k.loop(0, a.count) as call:
            address, words, items = (k.load_int(a.calls, call * CALL_COLUMNS + column) for column in range(3))
            start = first.get()
            k.call(address, k.b.gep(own, [start.value], source_etype=I64), 0, items, k.thread)
            first.set(start + words)
    return k.finish()
