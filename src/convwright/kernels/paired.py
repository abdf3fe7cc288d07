"""Convolution by Winograd's inner product, which takes additions for half of its multiplications.

Two products of a sum become one (S. Winograd, A new algorithm for inner product, IEEE Trans. Computers C-17, 1968,
equation 2):

    a1 b1 + a2 b2 = (a1 + b2) (a2 + b1) - a1 a2 - b1 b2

The last two terms, summed over all pairs, belong to a pixel alone and to an output channel alone. That is two additions
and one multiply-add for two multiply-adds, which gains where a core adds while it multiplies: Zen 4 does a vector of
each in every cycle. Five pairs of eight are summed in this way and three as they are, 10 additions beside 11
multiply-adds for 16 channels, so that neither has to wait for the other.

Rounding errors are those of the sums, |a|^2 and |b|^2, not of the products |a| |b| (R. P. Brent, Algorithms for matrix
multiplication, 1970): both factors must be of one size. So each pixel's inputs are multiplied by a power of two that
brings their root mean square to 1, while they are copied to scratch memory; and weights when they are packed: by one
for each output channel, and by one for each input channel, which the inputs are divided by. And to keep the sums of
a1 a2 small, where all inputs are positive, every other pair has its second factors negated: ``channel_scales`` holds
these signs too.

A work item copies what a strip of pixels reads, ``tiles`` pixels at a time, as ``[tile][blocks][pixel][v]``, and
multiplies each tile by the weights of ``outs`` output vectors at a time. The blocks are those of the channels, for one
tap after another; tables say where they and the pixels lie. Groups of channels are whole blocks, or, where tables say
of each lane where it lies ("gathered"), begin them: then some pixels' blocks are put together first. Scratch of one
thread, in floats: the strip; then for each pixel the sum of its a1 a2; then what its outputs are multiplied by; then
what was put together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from convwright.codegen.lang import I64, Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.channels import MOST_SOURCES, permuted
from convwright.kernels.paired_inputs import IN_PAIRS, ONE, TOGETHER, Inputs, prepare
from convwright.kernels.products import add_pair, keeps_pairs_together, lower_half, whole_of_half

_POINTERS = (
    # pixels: see PIXEL_COLUMNS; places: floats from a pixel's first input to each of its blocks; channel_scales: of
    # their lanes; squares: minus the sum of each output's b1 b2; out_scales: what brings its sum back to size;
    # out_places: floats from a pixel's first output to each of its vectors, where they are no y_block apart
    "x w bias y residual scratch pixels places channel_scales squares out_scales out_places"
)
_INTEGERS = (
    # work: item -> (part of the output vectors, image, strip of pixels, group of channels): a thread does all groups of
    # its pixels, whose inputs it is likely to have made; vectors and part_turns: of a group, and how many times `outs`
    # vectors make a part; blocks: whole blocks that a pixel reads; x_group and scales_group: floats from a group's
    # inputs and channel scales to the next one's
    "groups part_turns vectors images strips strip all_pixels blocks x_image x_group scales_group w_out y_image "
    "y_block r_image r_block scratch_thread"
)
ARGUMENTS = Arguments(_POINTERS, _INTEGERS)
# sources: floats from x to the blocks that a block of a group is put together of; lanes: as in `kernels.channels`
GATHERED_ARGUMENTS = Arguments(f"{_POINTERS} sources lanes", _INTEGERS)

PIXEL_COLUMNS = 3
"""A pixel's input, output and residual, in floats from the image's first."""

_TOGETHER = ((0, 1), (2,), (4, 3), (5,), (6, 7))  # see `_groups`


@dataclass(frozen=True)
class PairedTile:
    """What is baked into one kernel.

    - `tiles`, `outs`: pixels and output vectors that are summed in registers together.
    - `half`: whether half a block follows the whole ones.
    - `placed`: whether a table says where output vectors lie.
    - `gathered`: where tables say of each lane where it lies, how many blocks one is put together of; 0: all lanes.
    - `halved`: only the lower half of the last output vector counts; the rest of it is stored as anything.
    """

    tiles: int
    outs: int
    half: bool = False
    epilogue: tuple[tuple[object, ...], ...] = ()
    placed: bool = False
    gathered: int | None = None
    halved: bool = False

    @property
    def key(self) -> str:
        return f"paired-{self!r}"

    @property
    def vectors(self) -> float:
        """Of output channels."""
        return self.outs - 0.5 if self.halved else self.outs

    @property
    def arguments(self) -> Arguments:
        return ARGUMENTS if self.gathered is None else GATHERED_ARGUMENTS

    def name(self, target: Target) -> str:
        return f"f32-paired-{self.tiles}x{self.vectors}-{target.name}"


def in_pairs(channels: int, v: int) -> np.ndarray:
    """The first channel of each pair that becomes one product, where vectors have ``v`` lanes."""
    first = np.arange(0, channels, 2)
    return first[np.isin(first % v // 2, IN_PAIRS)]


def gathered_block(tile: PairedTile, v: int) -> int:
    """Floats from one block to the next of what was put together."""
    return min(TOGETHER, tile.tiles) * v


def scratch_floats(strip: int, tiles: int, blocks: int, v: int, gathered: bool = False) -> int:
    """Floats of scratch that one thread needs for a strip of pixels; half a block counts as one."""
    room = -(-strip // tiles) * (tiles * blocks + 2 * -(-tiles // v)) * v
    return room + (min(TOGETHER, tiles) * blocks * v if gathered else 0)


def emit(tile: PairedTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = tile.arguments.read(k)
    turns = (a.strip + (tile.tiles - 1)) // tile.tiles
    room = k.advance(a.scratch, k.thread * a.scratch_thread)
    tile_floats = (a.blocks + int(tile.half)) * (tile.tiles * k.v)
    sums = k.advance(room, turns * tile_floats)
    factors = k.advance(sums, turns * k.v * vectors_of(tile, k.v))
    spare = k.advance(factors, turns * k.v * vectors_of(tile, k.v))
    channels = k.b.sitofp((a.blocks * k.v + (k.v // 2 if tile.half else 0)).value, k.scalar_type)
    a_channel = k.div(ir.Constant(k.scalar_type, 1.0), channels)
    with k.loop(k.begin, k.end) as item:
        part, image, strip, group = item.unravel(a.images, a.strips, a.groups)
        first = k.smaller(strip * a.strip, a.all_pixels - a.strip)
        pixels = k.b.gep(a.pixels, [(first * PIXEL_COLUMNS).value], source_etype=I64)
        x = k.advance(a.x, image * a.x_image + group * a.x_group)
        channel_scales = k.advance(a.channel_scales, group * a.scales_group)
        inputs = Inputs(a.places, channel_scales, a.blocks, tile.half)
        weights = Weights(a.w, a.w_out, a.squares, a.blocks)
        likely = k.variable(k.splat_int(ONE))
        with k.loop(0, turns) as turn:
            own = k.b.gep(pixels, [(start_of(k, a, tile.tiles, turn) * PIXEL_COLUMNS).value], source_etype=I64)
            of_turn = [k.advance(base, turn * (k.v * vectors_of(tile, k.v))) for base in (sums, factors)]
            together = min(TOGETHER, tile.tiles)
            with k.loop(0, tile.tiles, together) as wanted:
                pixel = k.smaller(wanted, tile.tiles - together)
                places = [k.load_int(own, (pixel + number) * PIXEL_COLUMNS) for number in range(together)]
                to = k.advance(room, turn * tile_floats + pixel * k.v)
                of_pixels = [k.advance(base, pixel) for base in of_turn]
                if tile.gathered is None:
                    prepare(k, inputs, x, places, a_channel, likely, to, tile.tiles, *of_pixels)
                else:
                    _gather(k, a, tile, x, places, group, spare)
                    pixels_of = [number * k.v for number in range(together)]
                    prepare(k, inputs, spare, pixels_of, a_channel, likely, to, tile.tiles, *of_pixels)
        y, residual = k.advance(a.y, image * a.y_image), k.advance(a.residual, image * a.r_image)
        start = part * a.part_turns * tile.outs
        stop = k.minimum(start + a.part_turns * tile.outs, a.vectors)
        with k.loop(start, stop, tile.outs) as wanted, k.loop(0, turns) as turn:
            out = group * a.vectors + k.smaller(wanted, a.vectors - tile.outs)
            own = k.b.gep(pixels, [(start_of(k, a, tile.tiles, turn) * PIXEL_COLUMNS).value], source_etype=I64)
            of_turn = [k.advance(base, turn * (k.v * vectors_of(tile, k.v))) for base in (sums, factors)]
            total = multiply(k, weights, tile, k.advance(room, turn * tile_floats), of_turn[0], out, turn % 4)
            _store(k, a, tile, total, y, residual, own, of_turn[1], out)
    return k.finish()


def start_of(k: Kernel, a: Reader, tiles: int, turn: Int) -> Int:
    """The first pixel of a register tile, counted in the strip: the last tile is moved back inside."""
    return k.smaller(turn * tiles, a.strip - tiles)


def vectors_of(tile: PairedTile, v: int) -> int:
    """That hold a number for each pixel of a tile."""
    return -(-tile.tiles // v)


# -- inputs ------------------------------------------------------------------------------------------------------------


def _gather(
    k: Kernel, a: Reader, tile: PairedTile, x: ir.Value, places: Sequence[Int], group: Int, to: ir.Value
) -> None:
    """Put the blocks of some pixels of a group together, ``[block][pixel][v]``."""
    assert tile.gathered is not None
    blocks = a.blocks + int(tile.half)
    with k.loop(0, blocks) as block:
        number = group * blocks + block
        lanes = k.load_ints(a.lanes, number * k.v)
        sources = [k.load_int(a.sources, number * tile.gathered + source) for source in range(tile.gathered)]
        starts = [k.advance(x, source) for source in sources]
        for pixel, place in enumerate(places):
            if not tile.gathered:
                vector = k.gather(k.advance(x, place), lanes)
            elif MOST_SOURCES[k.v]:
                vector = permuted(k, [k.load(start, place) for start in starts], lanes)
            else:
                vector = k.load(starts[0], place)  # a whole block
            k.store(vector, to, block * (len(places) * k.v) + pixel * k.v)


# -- products ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Where weights lie.

    - `w`: ``[output vector][channel][v]``, vectors ``w_out`` floats from each other; channels in so many `blocks`.
    - `squares`: minus the sum of each output's b1 b2.
    """

    w: ir.Value
    w_out: Int
    squares: ir.Value
    blocks: Int


def multiply(
    k: Kernel, a: Weights, tile: PairedTile, room: ir.Value, sums: ir.Value, out: Int, quarter: Int
) -> list[list[ir.Value]]:
    """The sums ``[pixel][out]`` of one register tile; meanwhile a quarter of the next turn's weights is fetched."""

    def as_summed(vector: ir.Value, number: int) -> ir.Value:
        return lower_half(k, vector) if tile.halved and number == tile.outs - 1 else vector

    squares = [as_summed(k.load(a.squares, (out + number) * k.v), number) for number in range(tile.outs)]
    of_pixels = [k.broadcast(k.load_scalar(sums, pixel)) for pixel in range(tile.tiles)]
    total = [
        [k.variable(k.sub(square, as_summed(own, number))) for number, square in enumerate(squares)]
        for own in of_pixels
    ]
    weights = k.variable(k.advance(a.w, out * a.w_out))
    coming = k.variable(k.advance(a.w, (out + tile.outs) * a.w_out + quarter * (a.w_out // (4 * k.v) * k.v)))
    inputs = k.variable(room)
    # Beside half a vector's sums there is no room for the weights of more than one vector.
    summed = [[number] for number in range(tile.outs)] if tile.halved else [list(range(tile.outs))]

    def weights_of(w: ir.Value, number: int, pair: int) -> list[ir.Value]:
        own = k.advance(w, a.w_out * number)
        return [as_summed(k.load(own, (2 * pair + n) * k.v), number) for n in (0, 1)]

    def broadcast(pointer: ir.Value, offset: int) -> ir.Value:
        return k.broadcast(k.load_scalar(pointer, offset))

    def step(channels: int) -> None:
        x, w = inputs.get(), weights.get()
        again = [k.opaque(x) for _ in range(tile.outs)]
        for group in _groups(k, channels // 2):
            for numbers in summed:
                k.b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)
                vectors = {number: [weights_of(w, number, pair) for pair in group] for number in numbers}
                for pixel, number in itertools.product(range(tile.tiles), numbers):
                    one, inputs_of = total[pixel][number], again[number]
                    for pair, (b1, b2) in zip(group, vectors[number], strict=True):
                        first = pixel * k.v + 2 * pair
                        if pair in IN_PAIRS:
                            add_pair(k, one, (inputs_of, first), (inputs_of, first + 1), b1, b2)
                        else:
                            a1, a2 = (as_summed(broadcast(inputs_of, first + n), number) for n in (0, 1))
                            one.set(k.fma(a2, b2, k.fma(a1, b1, one.get())))
            for _ in (pair for pair in group if pair % 2 == 0):
                for o in range(tile.outs):
                    k.prefetch(coming.get(), a.w_out * o, locality=2)
                coming.set(k.advance(coming.get(), k.v))
        weights.set(k.advance(w, channels * k.v))
        inputs.set(k.advance(x, tile.tiles * k.v))

    with k.loop(0, a.blocks):
        step(k.v)
    if tile.half:
        step(k.v // 2)
    sums_of = [[own.get() for own in one] for one in total]
    return [[*own[:-1], whole_of_half(k, own[-1])] for own in sums_of] if tile.halved else sums_of


def _groups(k: Kernel, pairs: int) -> list[list[int]]:
    """Pairs that are summed for one output after another: products as they are beside such as are one of two, so that
    additions and multiply-adds are never far apart. Measured, all weights in the first-level cache: 171 GFLOP/s of 172,
    167 where one pair is summed at a time. The former come first: what is done with a tile's outputs keeps the adders
    busy, and the next tile's first multiply-adds run beside it (a tile with a clip costs 111 cycles, else 130)."""
    together = _TOGETHER if keeps_pairs_together(k) else [(pair,) for pair in range(pairs)]
    return [own for group in together if (own := [pair for pair in group if pair < pairs])]


def restore(
    k: Kernel,
    a: Reader,
    factors: ir.Value,
    out: Int,
    total: list[list[ir.Value]],
    store: Callable[[list[list[ir.Value]]], None],
) -> None:
    """``store`` what a register tile's sums ``[pixel][out]`` become: times the outputs' scales and the pixels' factors,
    and with the bias. Usually all pixels have one factor, so that both are multiplied once."""
    scales, biases = (
        [k.load(base, (out + number) * k.v) for number in range(len(total[0]))] for base in (a.out_scales, a.bias)
    )

    def scaled(factor: ir.Value) -> list[ir.Value]:
        return [k.mul(scale, factor) for scale in scales]

    def finish(sums: list[ir.Value], by: list[ir.Value]) -> list[ir.Value]:
        return [k.fma(*numbers) for numbers in zip(sums, by, biases, strict=True)]

    of_pixels = [k.broadcast(k.load_scalar(factors, pixel)) for pixel in range(len(total))]
    with k.either(_differ(k, factors, len(total))) as (several, one):
        with several:
            store([finish(sums, scaled(factor)) for sums, factor in zip(total, of_pixels, strict=True)])
        with one:
            common = scaled(of_pixels[0])
            store([finish(sums, common) for sums in total])


def _differ(k: Kernel, factors: ir.Value, pixels: int) -> ir.Value:
    """Whether some pixel has another factor than the first one."""
    first = k.broadcast(k.load_scalar(factors))
    unlike = ir.Constant(k.mask_type, [False] * k.v)
    for start in range(0, pixels, k.v):
        own = k.b.fcmp_unordered("!=", k.load(factors, start), first)
        unlike = k.b.or_(
            unlike, k.b.and_(own, ir.Constant(k.mask_type, [start + lane < pixels for lane in range(k.v)]))
        )
    return k.any(unlike)


def _store(
    k: Kernel, a: Reader, tile: PairedTile, total: list[list[ir.Value]], y: ir.Value, residual: ir.Value,
    pixels: ir.Value, factors: ir.Value, out: Int,
) -> None:  # fmt: skip
    if tile.placed:
        places = [k.load_int(a.out_places, out + number) for number in range(tile.outs)]
    else:
        y, places = k.advance(y, out * a.y_block), [a.y_block * number for number in range(tile.outs)]
    residual = k.advance(residual, out * a.r_block)

    def store(results: list[list[ir.Value]]) -> None:
        for pixel, vectors in enumerate(results):
            y_at, r_at = (k.load_int(pixels, pixel * PIXEL_COLUMNS + column) for column in (1, 2))
            for number, vector in enumerate(vectors):
                for operation in tile.epilogue:
                    if operation[0] == "residual":
                        vector = k.add(vector, k.load(residual, a.r_block * number + r_at))
                    else:
                        vector = apply(k, operation, vector)
                k.store(vector, y, places[number] + y_at)

    restore(k, a, factors, out, total, store)
