"""Direct convolution of 8-bit integers with exact 32-bit sums; lanes are output pixels.

For few output channels a group, depthwise convolutions above all, and for first layers. The input is what
``kernels.integer_rows`` makes: an output plane is one row of pixels, and a tap of the kernel's column is an offset in
it. A register tile is ``outs`` output channels by ``cols`` vectors of pixels; each weight word is broadcast. The output
is NCHW: sums are stored where they belong. Tiles at the end of the plane are moved back inside.

Weights are packed ``[output channel][depth tap][kh][word]``.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.words import (
    I8,
    add_word,
    advance_bytes,
    load_byte,
    load_word,
    requantise,
    zero_of_bytes,
)

ARGUMENTS = Arguments(
    "x w start w_sums scales limits zero y taps",
    # work: item -> (image, output plane of depth, group, chunk of pixels, tile of output channels)
    "out_depths groups chunks chunk_pixels pixels out_tiles own_out x_image x_depth x_group x_word x_tap_depth "
    "words taps_deep taps_high w_out y_image y_channel y_depth y_offset",
)


@dataclass(frozen=True)
class PlanesTile:
    """What is baked into one kernel.

    outs: output channels of the register tile; cols: vectors of pixels.
    form: of the words, "bytes" or "halves"; signed: the input is int8 (its zero point is read here).
    requantised: the output has 8 bits; else it is the 32-bit sums. narrow: a plane is smaller than a vector.
    """

    outs: int
    cols: int
    form: str
    signed: bool
    requantised: bool
    narrow: bool = False

    @property
    def key(self) -> str:
        return f"integer-planes-{self!r}"

    def name(self, target: Target) -> str:
        kind = "s8" if self.signed else "u8"
        instruction = "vnni" if target.has_vnni else "words"
        return f"{kind}-{instruction}-planes-{self.outs}x{self.cols}-{target.name}"


def emit(tile: PlanesTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    size = 1 if tile.requantised else 4
    with k.loop(k.begin, k.end) as item:
        out_tile, rest = item % a.out_tiles, item // a.out_tiles
        chunk, rest = rest % a.chunks, rest // a.chunks
        group, rest = rest % a.groups, rest // a.groups
        depth, image = rest % a.out_depths, rest // a.out_depths
        channel = group * a.own_out + k.minimum(out_tile * tile.outs, a.own_out - tile.outs)
        x = k.advance(a.x, image * a.x_image + depth * a.x_depth + group * a.x_group)
        to = image * a.y_image + channel * a.y_channel + depth * a.y_depth
        y = advance_bytes(k, a.y, to * size)
        initial = _initial(k, a, tile, channel)
        first = chunk * a.chunk_pixels
        last = k.minimum(first + a.chunk_pixels, a.pixels)
        with k.loop(first, last, tile.cols * k.v) as wanted:
            pixel = wanted if tile.narrow else k.smaller(wanted, a.pixels - tile.cols * k.v)
            sums = _sum_tile(k, a, tile, k.advance(x, pixel), k.advance(a.w, channel * a.w_out), initial)
            for out, totals in enumerate(sums):
                if tile.requantised:
                    totals = _scaled(k, a, totals, channel + out)
                where = advance_bytes(k, y, (a.y_channel * out + pixel) * size)
                _store(k, a, tile, totals, where)
    return k.finish()


def _initial(k: Kernel, a: Reader, tile: PlanesTile, channel: Int) -> list[ir.Value]:
    """Bias and correction for the input's zero point of each output channel."""
    initial = [load_word(k, a.start, channel + out) for out in range(tile.outs)]
    if tile.form == "halves":
        return initial
    zero = zero_of_bytes(k, tile.signed, load_byte(k, a.zero, tile.signed))
    return [k.b.sub(each, k.b.mul(zero, load_word(k, a.w_sums, channel + out))) for out, each in enumerate(initial)]


def _sum_tile(
    k: Kernel, a: Reader, tile: PlanesTile, x: ir.Value, w: ir.Value, initial: list[ir.Value]
) -> list[list[ir.Value]]:
    """The sums ``[out][vector of pixels]`` of one register tile."""
    sums = [[k.variable(first) for _ in range(tile.cols)] for first in initial]
    weights = k.variable(w)
    with k.loop(0, a.taps_deep) as tap_deep, k.loop(0, a.taps_high) as tap_row:
        plane = k.advance(x, tap_deep * a.x_tap_depth + k.load_int(a.taps, tap_row))
        with k.loop(0, a.words) as word:
            now = weights.get()
            source = k.advance(plane, word * a.x_word)
            vectors = [k.load_ints(source, col * k.v) for col in range(tile.cols)]
            for out, accumulators in enumerate(sums):
                weight = load_word(k, now, a.w_out * out)
                for vector, accumulator in zip(vectors, accumulators, strict=True):
                    accumulator.set(add_word(k, tile.form, accumulator.get(), vector, weight))
            weights.set(k.advance(now, 1))
    return [[accumulator.get() for accumulator in accumulators] for accumulators in sums]


def _scaled(k: Kernel, a: Reader, totals: list[ir.Value], channel: Int) -> list[ir.Value]:
    low, high, scale = (k.broadcast(k.load_scalar(*at)) for at in ((a.limits, 0), (a.limits, 1), (a.scales, channel)))
    return [requantise(k, total, scale, low, high, k.int_broadcast(a.y_offset)) for total in totals]


def _store(k: Kernel, a: Reader, tile: PlanesTile, totals: list[ir.Value], y: ir.Value) -> None:
    """Neighbouring vectors of pixels of one channel."""
    if tile.narrow:
        for lane in range(k.v):
            with k.when(k.b.not_(a.pixels < lane + 1)):
                value = k.extract(totals[0], lane)
                if tile.requantised:
                    k.b.store(k.b.trunc(value, I8), advance_bytes(k, y, lane), align=1)
                else:
                    k.b.store(value, k.advance(y, lane), align=4)
    elif tile.requantised:
        # Pairs of vectors: LLVM would store one by an instruction that truncates on the way, which is slow on Zen 4.
        for start in range(0, len(totals), 2):
            pair = totals[start : start + 2]
            together = k.shuffle(pair[0], pair[-1], range(k.v * len(pair)))
            narrow = k.b.trunc(together, ir.VectorType(I8, k.v * len(pair)))
            k.b.store(narrow, advance_bytes(k, y, start * k.v), align=1)
    else:
        for col, total in enumerate(totals):
            k.b.store(total, k.advance(y, col * k.v), align=4)
