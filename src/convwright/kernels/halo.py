"""Zeros around a channel-blocked tensor: the padding of the next layer, written once into the producer's buffer."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments

# work: item -> (image, block); widths in pixels; y points at the first pixel inside the border
ARGUMENTS = Arguments("y", "blocks rows cols y_image y_block y_row top bottom left right")


@dataclass(frozen=True)
class Halo:
    """Nothing is baked into this kernel."""

    @property
    def key(self) -> str:
        return f"halo-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-halo-{target.vector}-{target.name}"


def emit(halo: Halo, target: Target) -> ir.Module:
    """The kernel's module: rows above and below with their corners, then the ends of every row."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    zero = k.splat(0.0)
    with k.loop(k.begin, k.end) as item:
        y = k.advance(a.y, (item // a.blocks) * a.y_image + (item % a.blocks) * a.y_block - a.left * k.v)
        width = (a.left + a.cols + a.right) * k.v
        bottom = k.advance(y, a.rows * a.y_row)
        for start, rows in ((k.advance(y, 0 - a.top * a.y_row), a.top), (bottom, a.bottom)):
            with k.loop(0, rows) as row, k.loop(0, width, k.v) as place:
                k.store(zero, start, row * a.y_row + place)
        with k.loop(0, a.rows) as row:
            for start, pixels in ((0, a.left), (a.left + a.cols, a.right)):
                with k.loop(0, pixels) as pixel:
                    k.store(zero, y, row * a.y_row + (start + pixel) * k.v)
    return k.finish()
