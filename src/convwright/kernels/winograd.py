"""Winograd convolution F(4 x 4, 3 x 3): 36 multiplications where direct summation needs 144 (arXiv 1509.09308).

A work item takes a group of 4 x 4 output tiles through all three stages while everything stays in the second-level
cache: it transforms their inputs (V = B^T d B), multiplies them, for each of the 36 places of a tile, by the
transformed weights (M = V U, a matrix product over the input channels), and transforms the products back (A^T M A),
adding bias and epilogue. The products of ``outs`` output vectors are transformed as soon as they are complete.

Tiles at the right and bottom edge are moved back inside, and store only what the tiles before them do not: the same
output computed in two places of a tile is not the same to the last bit. Scratch of one thread, in floats: V as
``[36][channel blocks][group][v]``, then M as ``[36][outs][group][v]``. Weights are packed
``[output vector][36][channel][v]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from llvmlite import ir

from convwright.codegen.lang import Int, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.cook_toom import Matrix, filtering
from convwright.kernels.products import Sums, add_products
from convwright.runtime.memory import aligned_empty

OUTPUT, TAPS = 4, 3
INPUT = OUTPUT + TAPS - 1
PLACES = INPUT * INPUT
UNROLL = 4

ARGUMENTS = Arguments(
    "x u bias y residual scratch",
    # work: item -> (part of the output tiles, image, group of tiles)
    "groups images group tiles tiles_wide vectors part_tiles blocks channels out_rows out_cols "
    "x_image x_block x_row u_out y_image y_block y_row r_image r_block r_row scratch_thread",
)


@dataclass(frozen=True)
class WinogradTile:
    """What is baked into one kernel: the register tile of the products, ``tiles x outs`` vectors, and the epilogue."""

    tiles: int
    outs: int
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def key(self) -> str:
        return f"winograd-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-winograd-{self.tiles}x{self.outs}-{target.name}"


def transform_weights(weight: np.ndarray, v: int) -> np.ndarray:
    """``[K, C, 3, 3]`` to ``[ceil(K/v)][36][C][v]``, on a cache line: G g G^T in float64, rounded once."""
    g = filtering(OUTPUT, TAPS).float_g()
    out_channels, channels = weight.shape[:2]
    spread = np.kron(g, g)  # [36][9]
    vectors = -(-out_channels // v)
    packed = aligned_empty(vectors * PLACES * channels * v).reshape(vectors, PLACES, channels, v)
    packed[-1] = 0
    for vector in range(vectors):
        some = weight[vector * v : (vector + 1) * v].reshape(-1, channels, TAPS * TAPS).astype(np.float64)
        packed[vector, :, :, : len(some)] = (some @ spread.T).transpose(2, 1, 0)
    return packed


def scratch_floats(group: int, blocks: int, outs: int, v: int) -> int:
    """Floats of scratch that one thread needs."""
    return PLACES * group * v * (blocks + outs)


def emit(tile: WinogradTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    inputs = k.advance(a.scratch, k.thread * a.scratch_thread)
    products = k.advance(inputs, a.group * a.blocks * (PLACES * k.v))
    with k.loop(k.begin, k.end) as item:
        of_part = a.groups * a.images
        part, rest = item // of_part, item % of_part
        image, group = rest // a.groups, rest % a.groups
        first = k.smaller(group * a.group, a.tiles - a.group)
        x = k.advance(a.x, image * a.x_image)
        with k.loop(0, a.group) as place:
            top, left = _corner(k, a, first + place)
            at = k.advance(x, top * a.x_row + left * k.v)
            with k.loop(0, a.blocks) as block:
                d = [[k.load(k.advance(at, block * a.x_block + a.x_row * row), col * k.v) for col in range(INPUT)]
                     for row in range(INPUT)]  # fmt: skip
                to = k.advance(inputs, (block * a.group + place) * k.v)
                for row, vectors in enumerate(_both_ways(k, filtering(OUTPUT, TAPS).bt, d)):
                    for col, vector in enumerate(vectors):
                        k.store(vector, to, a.blocks * a.group * (k.v * (row * INPUT + col)))
        start = part * a.part_tiles * tile.outs
        stop = k.minimum(start + a.part_tiles * tile.outs, a.vectors)
        with k.loop(start, stop, tile.outs) as wanted:
            out = k.smaller(wanted, a.vectors - tile.outs)
            _multiply(k, a, tile, inputs, products, k.advance(a.u, out * a.u_out))
            _transform_back(k, a, tile, products, image, first, out)
    return k.finish()


def _corner(k: Kernel, a: Reader, tile: Int) -> tuple[Int, Int]:
    """Row and column of a tile's first output."""
    top = k.smaller(tile // a.tiles_wide * OUTPUT, a.out_rows - OUTPUT)
    left = k.smaller(tile % a.tiles_wide * OUTPUT, a.out_cols - OUTPUT)
    return top, left


def _multiply(
    k: Kernel, a: Reader, tile: WinogradTile, inputs: ir.Value, products: ir.Value, weights: ir.Value
) -> None:
    """M[place][out][tile] = sum over channels of V[place][channel][tile] U[out][place][channel], place by place."""
    turns = (a.group + (tile.tiles - 1)) // tile.tiles
    with k.loop(0, PLACES) as place:
        v_place = k.advance(inputs, place * a.blocks * a.group * k.v)
        u_place = k.advance(weights, place * a.channels * k.v)
        m_place = k.advance(products, place * a.group * (tile.outs * k.v))
        with k.loop(0, turns) as number:
            start = k.minimum(number * tile.tiles, a.group - tile.tiles)
            sums = [[k.variable(k.splat(0.0)) for _ in range(tile.outs)] for _ in range(tile.tiles)]
            now = k.variable(u_place)
            with k.loop(0, a.blocks) as block:
                v_block = k.advance(v_place, (block * a.group + start) * k.v)
                count = k.minimum(a.channels - block * k.v, k.v)
                whole = count // UNROLL * UNROLL
                with k.loop(0, whole, UNROLL) as lane:
                    _step(k, a, tile, sums, now, k.advance(v_block, lane), UNROLL)
                with k.loop(whole, count) as lane:
                    _step(k, a, tile, sums, now, k.advance(v_block, lane), 1)
            for pixel, accumulators in enumerate(sums):
                for out, accumulator in enumerate(accumulators):
                    k.store(accumulator.get(), m_place, (a.group * out + start + pixel) * k.v)


def _step(k: Kernel, a: Reader, tile: WinogradTile, sums: Sums, weights: Variable, x: ir.Value, unroll: int) -> None:
    """Add ``unroll`` channels to the sums; meanwhile the next place's weights come to the second-level cache."""
    now = weights.get()
    add_products(k, sums, weights, a.u_out, unroll, lambda pixel, ahead: k.load_scalar(x, pixel * k.v + ahead))
    if unroll == UNROLL:
        for out in range(tile.outs):
            for line in range(UNROLL):
                k.prefetch(k.advance(now, a.u_out * out), a.channels * k.v + line * k.v, locality=2)


def _transform_back(
    k: Kernel, a: Reader, tile: WinogradTile, products: ir.Value, image: Int, first: Int, out: Int
) -> None:
    y = k.advance(a.y, image * a.y_image + out * a.y_block)
    residual = k.advance(a.residual, image * a.r_image + out * a.r_block)
    with k.loop(0, a.group) as place:
        number = first + place
        top, left = _corner(k, a, number)
        with k.loop(0, tile.outs) as vector_number:
            at = k.advance(products, (a.group * vector_number + place) * k.v)
            stride = a.group * (tile.outs * k.v)
            m = [[k.load(at, stride * (row * INPUT + col)) for col in range(INPUT)] for row in range(INPUT)]
            bias = k.load(a.bias, (out + vector_number) * k.v)
            for row, vectors in enumerate(_both_ways(k, filtering(OUTPUT, TAPS).at, m)):
                with k.when(top + row >= number // a.tiles_wide * OUTPUT):
                    for col, vector in enumerate(vectors):
                        vector = k.add(vector, bias)
                        for operation in tile.epilogue:
                            if operation[0] == "residual":
                                where = a.r_block * vector_number + (top + row) * a.r_row + (left + col) * k.v
                                vector = k.add(vector, k.load(residual, where))
                            else:
                                vector = apply(k, operation, vector)
                        with k.when(left + col >= number % a.tiles_wide * OUTPUT):
                            k.store(vector, y, a.y_block * vector_number + (top + row) * a.y_row + (left + col) * k.v)


def _both_ways(k: Kernel, matrix: Matrix, d: Sequence[Sequence[ir.Value]]) -> list[list[ir.Value]]:
    """matrix d matrix^T: columns first, then rows."""
    columns = [combine(k, matrix, [row[col] for row in d]) for col in range(len(d[0]))]
    return [combine(k, matrix, [column[row] for column in columns]) for row in range(len(matrix))]


def combine(k: Kernel, matrix: Matrix, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """matrix times a column of vectors. Rows of opposite points share their even and their odd part."""
    results: list[ir.Value] = []
    while len(results) < len(matrix):
        pair = matrix[len(results) : len(results) + 2]
        even, odd = ([(a + sign * b) / 2 for a, b in zip(pair[0], pair[-1], strict=True)] for sign in (1, -1))
        if len(pair) == 2 and _cost(even) + _cost(odd) + 2 < _cost(pair[0]) + _cost(pair[1]):
            first, second = _row(k, even, vectors), _row(k, odd, vectors)
            results += [k.add(first, second), k.sub(first, second)]
        else:
            results.append(_row(k, pair[0], vectors))
    return results


def _cost(row: Sequence[Fraction]) -> int:
    return sum(entry != 0 for entry in row)


def _row(k: Kernel, row: Sequence[Fraction], vectors: Sequence[ir.Value]) -> ir.Value:
    """A linear combination; the terms without a factor come first."""
    terms = [(entry, vector) for entry, vector in zip(row, vectors, strict=True) if entry]
    terms.sort(key=lambda term: abs(term[0]) != 1)
    total: ir.Value = None
    for entry, vector in terms:
        if total is None:
            total = vector if entry == 1 else k.mul(vector, k.splat(float(entry)))
        elif entry == 1:
            total = k.add(total, vector)
        elif entry == -1:
            total = k.sub(total, vector)
        else:
            total = k.fma(vector, k.splat(float(entry)), total)
    return total
