"""Between row-major tensors and channel blocks by gathers, for vectors of any element.

``kernels.layout`` transposes float32 in registers and is several times as fast; this is for float64, where the layers
between the conversions matter more.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.spans import along, fill

ARGUMENTS = Arguments(
    "x y",
    # work: item -> (image, block); a block's images are ``image`` elements apart, its pixels follow each other
    "blocks channels pixels image block lead",
)


@dataclass(frozen=True)
class Interleave:
    """What is baked into one kernel.

    kind: "pack" (row-major to blocks, and zeros over ``lead`` elements in front of each block) or "unpack".
    element: "f32" or "f64".
    """

    kind: str
    element: str

    @property
    def key(self) -> str:
        return f"interleave-{self!r}"

    def name(self, target: Target) -> str:
        return f"{self.element}-{self.kind}-{target.vector}-{target.name}"


def emit(config: Interleave, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target, element=config.element)
    a = ARGUMENTS.read(k)
    with k.loop(k.begin, k.end) as item:
        image, block = item // a.blocks, item % a.blocks
        channel = block * k.v
        count = k.smaller(a.channels - channel, k.v)
        plane, blocked = (image * a.channels + channel) * a.pixels, image * a.image + block * a.block
        if config.kind == "pack":
            _pack(k, a, k.advance(a.x, plane), k.advance(a.y, blocked), count)
        else:
            _unpack(k, a, k.advance(a.x, blocked), k.advance(a.y, plane), count)
    return k.finish()


def _pack(k: Kernel, a: Reader, x: ir.Value, y: ir.Value, count: Int) -> None:
    fill(k, k.splat(0.0), k.advance(y, 0 - a.lead), 0, a.lead)
    places = k.b.mul(k.lane_ids(), k.int_broadcast(a.pixels))
    mask = k.mask(0, count)
    with k.loop(0, a.pixels) as pixel:
        k.store(k.gather(k.advance(x, pixel), places, mask), y, pixel * k.v)


def _unpack(k: Kernel, a: Reader, x: ir.Value, y: ir.Value, count: Int) -> None:
    places = k.b.mul(k.lane_ids(), k.splat_int(k.v))
    with k.loop(0, count) as channel:
        source, plane = k.advance(x, channel), k.advance(y, channel * a.pixels)

        def move(pixel: Int, mask: ir.Value | None, source: ir.Value = source, plane: ir.Value = plane) -> None:
            k.store(k.gather(k.advance(source, pixel * k.v), places, mask), plane, pixel, mask)

        along(k, 0, a.pixels, move)
