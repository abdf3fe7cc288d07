"""Products of a Winograd convolution by Winograd's inner product, which takes additions for multiplications.

    a1 b1 + a2 b2 = (a1 + b2) (a2 + b1) - a1 a2 - b1 b2

(S. Winograd, A new algorithm for inner product, IEEE Trans. Computers C-17, 1968, equation 2). The last two terms,
summed over all pairs, belong to a tile and to an output channel alone. Two additions and one multiply-add stand for two
multiply-adds, which gains where a core adds while it multiplies. Five pairs of eight are summed so and three as they
are, so that neither adders nor multipliers wait for the other.

Rounding errors are those of the sums of squares of a and b, not of the products (R. P. Brent, Algorithms for matrix
multiplication, 1970): both must be of one size. So a tile's inputs are multiplied by a power of two, which the largest
of them decides, before they are transformed; weights by one for each place and output channel when they are packed, so
that they are what transformed inputs usually are. Input channels have one more, by which weights are divided. And to
keep the sums of a1 a2 small, where all inputs are positive, every other pair has its second factors negated.

A pair is the same lane of two channel blocks, the first and the second, the third and the fourth: a1 a2 of all lanes
are one product of vectors. What is left over, less than two blocks, is summed as it is. Channels are summed in pieces
of some blocks, which are added up in M.

Weights are packed as `kernels.winograd` says, but for the order of channels: those of a pair follow each other. Scratch
behind M: for each place and tile the sum of its a1 a2; then for each tile what its outputs are multiplied by.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
from llvmlite import ir

from convwright.codegen.lang import I32, Int, Integer, Kernel, Variable
from convwright.kernels.arguments import Reader
from convwright.kernels.paired_inputs import IN_PAIRS
from convwright.kernels.products import Sums, add_pair, add_products

UNROLL = 8  # pairs, of which `IN_PAIRS` become one product; divides the lanes of a block, or they divide it
# Lanes whose instructions alternate, tile by tile, so that the core's scheduler reaches additions and multiply-adds.
# Lane by lane, VGG16's layers of 256 channels took 2 % more in tiles of 14 x 1, 6 % in tiles of 11 x 2.
_TOGETHER = ((0, 1), (2,), (3, 4), (5,), (6, 7))
APART = 20
"""The largest exponent of an input channel's scale."""
LARGEST = 1.0
"""From it on, and below twice as much, is the largest input of a tile after scaling."""


def is_pair(lane: int | np.ndarray) -> np.ndarray:
    """Whether the products of a lane of two blocks become one."""
    return np.isin(np.asarray(lane) % UNROLL, IN_PAIRS)


def scratch_floats(places: int, tiles: int, v: int) -> int:
    """Floats of scratch that one thread needs behind M."""
    return -(-(places + 1) * tiles // v) * v


@dataclass(frozen=True)
class Scaling:
    """Pointers: to the sums of a1 a2 ``[place][tile]``, what outputs are multiplied by ``[tile]``, and the scales of an
    item's input channels."""

    squares: ir.Value
    backs: ir.Value
    channel_scales: ir.Value


def scaling(k: Kernel, a: Reader, places: int, behind: ir.Value, tiles: Int, group: Int) -> Scaling:
    return Scaling(behind, k.advance(behind, tiles * places), k.advance(a.channel_scales, group * a.blocks * k.v))


# -- inputs ------------------------------------------------------------------------------------------------------------


def scale_tile(k: Kernel, a: Reader, s: Scaling, x: ir.Value, size: tuple[int, int], number: Int) -> None:
    """Keep what the outputs of a tile are multiplied by, the inverse of what its inputs are, those of all slices alike.

    ``size``: the tile's rows and columns of inputs. NaN where one is an infinity or NaN.
    """
    rows, cols = size
    largest = k.variable(k.splat_int(0))

    def look(d: ir.Value, block: Int, mask: ir.Value | None = None) -> None:
        own = k.variable(k.splat_int(0))
        with k.loop(0, rows) as row:  # written out, LLVM would load all of them at once, and spill some
            line = k.advance(d, a.x_row * row)
            total = own.get()
            for col in range(cols):
                total = k.larger(total, _size(k, k.load(line, a.x_col * col, mask)))
            own.set(total)
        scaled = k.mul(k.b.bitcast(own.get(), k.vector_type), k.load(s.channel_scales, block * k.v))
        largest.set(k.larger(largest.get(), _size(k, scaled)))

    with k.loop(0, a.in_slices) as slice_:
        slice_ = k.opaque_int(slice_)
        at = k.advance(x, k.load_int(a.slices, slice_))
        with k.loop(0, a.channels // k.v) as block:
            block = k.opaque_int(block)
            look(k.advance(at, block * a.x_block), block)
        with k.loop(a.channels // k.v, a.blocks) as block:
            look(k.advance(at, block * a.x_block), block, k.mask(0, a.channels % k.v))
    exponent = k.b.lshr(k.reduced(largest.get(), k.larger), ir.Constant(I32, 23))
    back = _back(k, exponent)
    with k.loop(0, a.in_slices) as slice_:
        k.store_scalar(back, s.backs, slice_ * a.strip + number)


def scale_of(k: Kernel, s: Scaling, number: Int) -> ir.Value:
    """What all inputs of a tile are multiplied by, in every lane: of zeros 1, of NaN anything."""
    bits = k.b.bitcast(k.load_scalar(s.backs, number), I32)
    inverse = k.b.sub(ir.Constant(I32, 254 << 23), bits)
    scale = k.b.select(k.b.icmp_signed("==", bits, ir.Constant(I32, 0)), ir.Constant(I32, 127 << 23), inverse)
    return k.broadcast(k.b.bitcast(scale, k.scalar_type))


def _size(k: Kernel, vector: ir.Value) -> ir.Value:
    """Absolute values as integers, which have the order of the floats, infinities and NaN above them."""
    return k.b.and_(k.b.bitcast(vector, k.int_vector_type), k.splat_int(0x7FFFFFFF))


def _back(k: Kernel, exponent: ir.Value) -> ir.Value:
    """The inverse of the power of two that brings numbers of this biased exponent to `LARGEST`, or nearer to it where
    they are so small that this power times a channel's scale would overflow; zero for zeros. NaN where the exponent
    says infinity or NaN."""

    def number(bits: int) -> ir.Constant:
        return ir.Constant(I32, bits)

    power = k.b.select(k.b.icmp_signed("<", exponent, number(APART + 1)), number(APART + 1), exponent)
    power = k.b.select(k.b.icmp_signed(">", power, number(253)), number(253), power)
    back = k.b.shl(power, number(23))
    back = k.b.select(k.b.icmp_signed("==", exponent, number(0)), number(0), back)
    back = k.b.select(k.b.icmp_signed("==", exponent, number(255)), number(0x7FC00000), back)
    return k.b.bitcast(back, k.scalar_type)


def sum_squares(
    k: Kernel, a: Reader, s: Scaling, places: int, inputs: ir.Value, v_place: Int, tiles: Int, number: Int
) -> None:
    """Sum a1 a2 of one tile at each place; ``inputs``: V of ``tiles`` tiles, its places ``v_place`` floats apart."""
    counted = ir.Constant(k.vector_type, is_pair(np.arange(k.v)).astype(float).tolist())
    block_stride = tiles * k.v
    with k.loop(0, places) as place:
        place = k.opaque_int(place)
        total = k.variable(k.splat(0.0))
        at = k.variable(k.advance(inputs, place * v_place + number * k.v))
        with k.loop(0, a.pair_blocks):
            now = at.get()
            total.set(k.fma(k.load(now), k.load(now, block_stride), total.get()))
            at.set(k.advance(now, block_stride * 2))
        k.store_scalar(k.reduced(k.mul(total.get(), counted), k.add), s.squares, place * tiles + number)


def sum_taps(k: Kernel, a: Reader, s: Scaling, places: int, in_tiles: Int, out_tiles: Int) -> None:
    """Where slices join the sum, put the sums of a1 a2 of all taps of an output tile in place of those of input tiles.

    The first tap's lie where the output tile's number says, the others' behind: those that are overwritten are not read
    again.
    """
    with k.loop(0, places) as place, k.loop(0, out_tiles, k.v) as first:
        first = k.opaque_int(first)
        mask = k.mask(0, k.minimum(out_tiles - first, k.v))
        own = k.advance(s.squares, place * in_tiles + first)
        total = k.variable(k.splat(0.0))
        with k.loop(0, a.deep_taps) as tap:
            total.set(k.add(total.get(), k.load(own, k.load_int(a.taps, tap) // k.v, mask)))
        k.store(total.get(), own, 0, mask)


# -- products ----------------------------------------------------------------------------------------------------------


def multiply(
    k: Kernel, a: Reader, s: Scaling, places: int, size: tuple[int, int], inputs: ir.Value, products: ir.Value,
    place: Int, vector: Int, in_tiles: Int, out_tiles: Int, ahead: Int,
) -> None:  # fmt: skip
    """M[out][tile] of one place, of the output vectors from ``vector`` on; ``size``: tiles and vectors in registers;
    ``inputs``: V of the place."""
    many, outs = size
    place = k.opaque_int(place)
    turns = (out_tiles + (many - 1)) // many
    u_place, block_stride = a.deep_taps * a.channels * k.v, in_tiles * k.v
    pieces = (a.pair_blocks + (a.pair_piece - 1)) // a.pair_piece
    of_place = k.advance(a.u, vector * a.u_out + place * u_place)
    squares = k.advance(s.squares, place * in_tiles)
    own = [(vector + out) * (places * k.v) + place * k.v for out in range(outs)]
    with k.loop(0, turns) as turn:
        start = k.minimum(turn * many, out_tiles - many)
        with k.loop(0, pieces) as piece:
            first = piece * a.pair_piece
            stop = k.minimum(first + a.pair_piece, a.pair_blocks)
            sums = [[k.variable(k.splat(0.0)) for _ in range(outs)] for _ in range(many)]
            with k.loop(0, a.deep_taps) as tap:
                weights = k.variable(k.advance(of_place, (tap * a.channels + first * (2 * k.v)) * k.v))
                at_first = k.load_int(a.taps, tap) + start * k.v + first * (block_stride * 2)
                x = k.variable(k.advance(inputs, at_first))
                with k.loop(first, stop):
                    with k.loop(0, k.v, UNROLL) if k.v > UNROLL else nullcontext(0) as lane:
                        at = x.get() if isinstance(lane, int) else k.advance(x.get(), k.opaque_int(lane))
                        _add_pairs(k, sums, weights, a.u_out, at, block_stride, ahead)
                    x.set(k.advance(x.get(), block_stride * 2))
                with k.when(k.b.icmp_signed("==", k.int_value(stop), a.pair_blocks.value)):
                    _add_rest(k, a, sums, weights, x, block_stride)
            to = k.advance(products, start * k.v)
            _store(k, a, sums, own, k.advance(squares, start), to, out_tiles * k.v, piece)


def _add_pairs(
    k: Kernel, sums: Sums, weights: Variable, w_out: Integer, x: ir.Value, block_stride: Integer, later: Integer
) -> None:
    """Add some lanes of the block at ``x`` and of the next; meanwhile weights that are ``later`` are fetched.

    Inputs are operands in memory of every instruction: to broadcast one into a register would take a pipe's cycle.
    """
    outs = len(sums[0])
    now = weights.get()
    firsts = [k.opaque(x) for _ in range(outs)]
    seconds = [k.opaque(k.advance(x, block_stride)) for _ in range(outs)]
    lanes = min(UNROLL, k.v)
    for group in ([lane for lane in group if lane < lanes] for group in _TOGETHER if group[0] < lanes):
        # LLVM's scheduler would load the weights of more lanes at once, and spill sums.
        k.b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)
        b1, b2 = (
            [[k.load(k.advance(now, w_out * out), (2 * lane + which) * k.v) for out in range(outs)] for lane in group]
            for which in (0, 1)
        )
        for pixel, own in enumerate(sums):
            for lane, v1, v2 in zip(group, b1, b2, strict=True):
                for out, one in enumerate(own):
                    first = pixel * k.v + lane
                    if is_pair(lane):
                        add_pair(k, one, (firsts[out], first), (seconds[out], first), v1[out], v2[out])
                    else:
                        a1, a2 = (k.broadcast(k.load_scalar(at[out], first)) for at in (firsts, seconds))
                        one.set(k.fma(a2, v2[out], k.fma(a1, v1[out], one.get())))
        for out, which in itertools.product(range(outs), range(2 * group[0], 2 * group[-1] + 2)):
            k.prefetch(k.advance(now, w_out * out), later + which * k.v, locality=2)
    weights.set(k.advance(now, 2 * lanes * k.v))


def _add_rest(k: Kernel, a: Reader, sums: Sums, weights: Variable, x: Variable, block_stride: Integer) -> None:
    """Add the channels behind the last pair of blocks."""
    with k.loop(a.pair_blocks * 2, a.blocks) as block:
        with k.loop(0, k.minimum(a.channels - block * k.v, k.v)) as lane:
            at = k.advance(x.get(), k.opaque_int(lane))
            add_products(k, sums, weights, a.u_out, 1, partial(_input, k, at))
        x.set(k.advance(x.get(), block_stride))


def _input(k: Kernel, at: ir.Value, pixel: int, ahead: int) -> ir.Value:
    return k.load_scalar(at, pixel * k.v + ahead)


def _store(
    k: Kernel, a: Reader, sums: Sums, own: Sequence[Int], squares: ir.Value, to: ir.Value, out_stride: Int, piece: Int
) -> None:
    """Write the sums of the first piece, less those of a1 a2 and b1 b2, and add those of the others; at their size."""
    backs = [k.load(a.backs, at) for at in own]
    each = [(pixel, out, out_stride * out + pixel * k.v) for pixel in range(len(sums)) for out in range(len(own))]
    with k.either(piece.equals(0)) as (then, otherwise):
        with then:
            of_outs = [k.load(a.squares, at) for at in own]
            of_tiles = [k.broadcast(k.load_scalar(squares, pixel)) for pixel in range(len(sums))]
            for pixel, out, place in each:
                total = k.add(sums[pixel][out].get(), k.sub(of_outs[out], of_tiles[pixel]))
                k.store(k.mul(total, backs[out]), to, place)
        with otherwise:
            for pixel, out, place in each:
                k.store(k.fma(sums[pixel][out].get(), backs[out], k.load(to, place)), to, place)
