"""Products of a few rows with a large matrix: fully connected layers of few images, which take as long as their weights
take to come from memory.

A work item is one vector of outputs. Its weights are one stream that is read strictly forwards, once: `kernels.narrow`
has them in 24 or 28 bits a number, and decoding takes a core less than that saves the memory. Fetching ahead
of the processor's own prefetching made it slower, from 512 to 8192 bytes and into any cache. Several sums are kept
apart for an image, so that products do not wait for each other, and added together after a number of channels; the
layer waits for memory, so that summing in pieces (`kernels.pieces`) costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.narrow import CODINGS, Coding
from convwright.kernels.pieces import PIECE

ARGUMENTS = Arguments(
    "x words bases starts rare bias y",
    # blocks: of channels; starts: of the list of rare weights of each vector of outputs
    "channels blocks x_image y_image y_block",
)

MOST_IMAGES = 8
_SUMS = {32: 8, 16: 2}  # of an image, by the number of registers


@dataclass(frozen=True)
class DenseTile:
    """What is baked into one kernel.

    images: rows of the product. coding: of the weights. rest: channels after the last whole block.
    epilogue: activations.
    """

    images: int
    coding: str
    rest: int
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def key(self) -> str:
        return f"dense-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-dense-{self.images}x1-{target.name}"


def emit(tile: DenseTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    coding = CODINGS[tile.coding]
    whole = a.channels - tile.rest
    with k.loop(k.begin, k.end) as item:
        words = k.variable(k.advance(a.words, item * a.blocks * (coding.WORDS * k.v)))
        base = k.load_ints(a.bases, item * k.v)
        bias = k.load(a.bias, item * k.v)
        apart = min(coding.BLOCK, max(1, _SUMS[target.registers] // tile.images))
        sums = [[k.variable(k.splat(0.0)) for _ in range(apart)] for _ in range(tile.images)]
        totals = [k.variable(k.splat(0.0)) for _ in range(tile.images)]
        with k.loop(0, whole, PIECE // 2 * apart) as start:
            with k.loop(start, k.smaller(start + PIECE // 2 * apart, whole), coding.BLOCK) as channel:
                _add_block(k, a, coding, sums, words, base, channel, coding.BLOCK)
            for own, total in zip(sums, totals, strict=True):
                total.set(k.add(total.get(), _total(k, [each.get() for each in own])))
                for each in own:
                    each.set(k.splat(0.0))
        if tile.rest:
            _add_block(k, a, coding, sums, words, base, whole, tile.rest)
        for image, (own, total) in enumerate(zip(sums, totals, strict=True)):
            vector = k.add(total.get(), _total(k, [each.get() for each in own]))
            if tile.coding == "lossless":
                vector = _add_rare(k, a, item, k.advance(a.x, a.x_image * image), vector)
            vector = k.add(vector, bias)
            for operation in tile.epilogue:
                vector = apply(k, operation, vector)
            k.store(vector, a.y, item * a.y_block + a.y_image * image)
    return k.finish()


def _add_block(
    k: Kernel, a: Reader, coding: Coding, sums: list[list[Variable]], words: Variable, base: ir.Value, channel: Int,
    count: int,
) -> None:  # fmt: skip
    """Add the products of ``count`` channels, and go on to the next block's words."""
    now = words.get()
    vectors = coding.decode(k, [k.load_ints(now, place * k.v) for place in range(coding.WORDS)], base, count)
    for image, own in enumerate(sums):
        x = k.advance(a.x, channel + a.x_image * image)
        for place, vector in enumerate(vectors):
            total = own[place % len(own)]
            total.set(k.fma(k.broadcast(k.load_scalar(x, place)), vector, total.get()))
    words.set(k.advance(now, coding.WORDS * k.v))


def _total(k: Kernel, vectors: list[ir.Value]) -> ir.Value:
    """The sum of the vectors, in pairs."""
    while len(vectors) > 1:
        pairs = [k.add(*vectors[at : at + 2]) for at in range(0, len(vectors) - 1, 2)]
        vectors = pairs + vectors[2 * len(pairs) :]
    return vectors[0]


def _add_rare(k: Kernel, a: Reader, item: Int, x: ir.Value, vector: ir.Value) -> ir.Value:
    """``vector`` with the products of the item's rare weights added, each in its lane."""
    total = k.variable(vector)
    with k.loop(k.load_int(a.starts, item), k.load_int(a.starts, item + 1)) as number:
        place = k.load_int(a.rare, number) % (1 << 32)
        weight = k.broadcast(k.load_scalar(a.rare, number * 2 + 1))
        factor = k.broadcast(k.load_scalar(x, place // k.v))
        here = k.b.icmp_signed("==", k.lane_ids(), k.int_broadcast(place % k.v))
        total.set(k.select(here, k.fma(factor, weight, total.get()), total.get()))
    return total.get()
