"""Local response normalisation over the middle axis of a planar ``[outer][channels][inner]`` float32 array.

``y = x / (bias + alpha / size * s) ** beta``, where ``s`` sums the squares of the ``size`` channels around x's own at
the same place, those beyond the ends left out (Krizhevsky, Sutskever, Hinton: ImageNet classification with deep
convolutional neural networks, 2012, section 3.3; ONNX's LRN divides alpha by the size, the paper does not).

The vectors run along ``inner``. Each sum is taken anew: a running sum would save loads, of which there are few beside
the roots and the division, and would carry a NaN or an infinity on to channels whose windows do not hold it. Squares
overflow from 1.8e19 on.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen import vmath
from convwright.codegen.lang import Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments
from convwright.kernels.spans import along

ARGUMENTS = Arguments(
    "x y",
    # work: item -> (outer, channel)
    # before, after: how many channels of a window precede its own and how many follow
    "channels inner before after",
)


@dataclass(frozen=True)
class Lrn:
    """What is baked into one kernel: the formula's constants, ``alpha`` divided by the window's size already."""

    scale: float
    beta: float
    bias: float

    @property
    def key(self) -> str:
        return f"lrn-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-lrn-{target.name}"


def emit(config: Lrn, target: Target) -> ir.Module:
    """The kernel's module; ``y`` must not overlap ``x``, whose channels are read several times."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    with k.loop(k.begin, k.end) as item:
        channel = item % a.channels
        x, y = k.advance(a.x, item * a.inner), k.advance(a.y, item * a.inner)
        first = 0 - k.smaller(channel, a.before)
        last = k.smaller(a.channels - channel - 1, a.after)

        def normalise(place: Int, mask: ir.Value | None) -> None:
            total = k.variable(k.splat(0.0))
            with k.loop(first, last + 1) as step:
                value = k.load(x, step * a.inner + place, mask)
                total.set(k.fma(value, value, total.get()))
            base = k.fma(total.get(), k.splat(config.scale), k.splat(config.bias))
            k.store(_divided(k, k.load(x, place, mask), base, config.beta), y, place, mask)

        along(k, 0, a.inner, normalise)
    return k.finish()


def _divided(k: Kernel, x: ir.Value, base: ir.Value, beta: float) -> ir.Value:
    """``x / base ** beta``: by roots for the powers that have them, else to a few ``beta log(base)`` last places."""
    if beta == 1.0:
        return k.div(x, base)
    if beta in (0.5, 0.75):
        root = k.unary("sqrt", base)
        return k.div(x, root if beta == 0.5 else k.mul(root, k.unary("sqrt", root)))
    return k.mul(x, vmath.exp(k, k.mul(vmath.log(k, base), k.splat(-beta))))
