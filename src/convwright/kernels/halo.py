"""Zeros around a channel-blocked tensor: the padding of the next layer, written once into the producer's buffer.

Rows lie so close that the zeros behind one are those before the next, and those below a plane are those above the next:
between the pixels of two rows, and of two planes, is as much as the wider of two sides needs. So all that there is to
write are the gaps behind rows and planes, and what is before the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments

# work: item -> (image, block); y points at the first pixel. Lengths in floats: `lead` before the first pixel of the
# first block, `y_row` from row to row of `width`, `after` behind the last row of each block.
ARGUMENTS = Arguments("y", "blocks rows width y_image y_block y_row lead after")


@dataclass(frozen=True)
class Halo:
    """Nothing is baked into this kernel."""

    @property
    def key(self) -> str:
        return f"halo-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-halo-{target.vector}-{target.name}"


def emit(halo: Halo, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    zero = k.splat(0.0)
    with k.loop(k.begin, k.end) as item:
        with k.when(item.equals(0)), k.loop(0, a.lead, k.v) as place:
            k.store(zero, k.advance(a.y, 0 - a.lead), place)
        y = k.advance(a.y, (item // a.blocks) * a.y_image + (item % a.blocks) * a.y_block)
        with k.loop(0, a.rows - 1) as row, k.loop(a.width, a.y_row, k.v) as place:
            k.store(zero, y, row * a.y_row + place)
        end = k.advance(y, (a.rows - 1) * a.y_row + a.width)
        with k.loop(0, a.after, k.v) as place:
            k.store(zero, end, place)
    return k.finish()
