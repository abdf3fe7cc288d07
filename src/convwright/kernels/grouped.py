"""Convolution in groups on channel-blocked activations, for groups that fill a part of a vector, or whole ones.

A dense kernel broadcasts one input value to all lanes; where a vector holds several groups, each lane needs the value
of its own group. Instead of moving inputs into place, the sums are kept apart by how far the output lies from the
input: where ``u`` channels (at most the four of a 128-bit lane) share their inputs, a pixel has ``u`` accumulators,

    acc[d][lane] += x[lane] * w[d][lane],   whose output is lane ``turned(lane, d)``: the d-th behind it, within the u

and at the end, once a tile, ``y = acc[0] + turn(acc[1], 1) + ... + turn(acc[u - 1], u - 1)``. An input vector is loaded
once for ``u`` products, and nothing is permuted in the loop. A group of more than ``u`` channels takes ``u`` of them
at a time (a *source*): where groups are parts of a vector, vectors whose 128-bit lanes have changed places within each
group; where they fill vectors, 128 bits repeated in every lane, which a load does by itself.

Sizes, dilation and the number of taps are arguments. Tiles at the right and bottom edge are moved back inside. No lane
meets the channels of another group, so a NaN in a lane that means nothing stays there.

Weights are packed ``[output vector][input block of the group][kh][kw][source][d][v]``, read strictly forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.pieces import Totals

ARGUMENTS = Arguments(
    "x w bias y residual",
    # work: item -> (image, output vector, chunk of rows of tiles)
    "vectors chunks chunk_tiles row_tiles col_tiles out_rows out_cols group_vectors group_blocks taps_high taps_wide "
    "x_image x_block x_row x_tap_row x_tap_col y_image y_block y_row r_image r_block r_row",
)

_QUAD = 4  # floats of a 128-bit lane, inside which a shuffle needs no table


def turns(shared: int) -> int:
    """Accumulators of a pixel, where ``shared`` lanes of a vector share their inputs."""
    return min(shared, _QUAD)


def sources(shared: int) -> int:
    """Input vectors that are made of one in memory."""
    return shared // turns(shared)


def source_lanes(shared: int, v: int) -> list[list[int]]:
    """``[source][lane]``: the lane of the block in memory that each lane holds."""
    u, s = turns(shared), sources(shared)
    if shared == v:
        return [[source * u + lane % u for lane in range(v)] for source in range(s)]
    return [
        [lane // shared * shared + (lane % shared // u + source) % s * u + lane % u for lane in range(v)]
        for source in range(s)
    ]


def turned(lane: int, by: int, u: int) -> int:
    """The lane that lies ``by`` behind, within runs of ``u``."""
    return lane // u * u + (lane + by) % u


@dataclass(frozen=True)
class GroupedTile:
    """What is baked into one grouped kernel.

    rows, cols: output pixels of the register tile.
    shared: lanes of a vector that share their inputs: the channels of a group, at most a vector.
    held: weights that are held at once; inputs are loaded again for the next ``held``.
    pixel_step: floats from one output pixel's input to the next one's in a row.
    epilogue: activations, and ``("residual",)`` where the residual is added.
    pieces: sums are added up in pieces (``kernels.pieces``).
    """

    rows: int
    cols: int
    shared: int
    held: int
    pixel_step: int
    epilogue: tuple[tuple[object, ...], ...] = ()
    pieces: bool = False

    @property
    def key(self) -> str:
        return f"grouped-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-grouped-{self.rows}x{self.cols}by{self.shared}-{target.name}"


def emit(tile: GroupedTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    u = turns(tile.shared)
    vector_floats = a.group_blocks * a.taps_high * a.taps_wide * (tile.shared * k.v)
    with k.loop(k.begin, k.end) as item:
        image, vector, chunk = item.unravel(a.vectors, a.chunks)
        block = vector // a.group_vectors * a.group_blocks
        x = k.advance(a.x, image * a.x_image + block * a.x_block)
        y = k.advance(a.y, image * a.y_image + vector * a.y_block)
        residual = k.advance(a.residual, image * a.r_image + vector * a.r_block)
        w = k.advance(a.w, vector * vector_floats)
        bias = k.advance(a.bias, vector * k.v)
        first = chunk * a.chunk_tiles
        with (
            k.loop(first, k.minimum(first + a.chunk_tiles, a.row_tiles)) as row_tile,
            k.loop(0, a.col_tiles) as col_tile,
        ):
            top = k.minimum(row_tile * tile.rows, a.out_rows - tile.rows)
            left = k.minimum(col_tile * tile.cols, a.out_cols - tile.cols)
            corner = k.advance(x, top * a.x_row + left * tile.pixel_step)
            sums = _sum_tile(k, a, tile, corner, w, bias, vector_floats + (row_tile + col_tile) % u * k.v)
            _store_tile(k, a, tile, sums, y, residual, Int(k, k.int_value(top)), Int(k, k.int_value(left)))
    return k.finish()


def _sum_tile(
    k: Kernel, a: Reader, tile: GroupedTile, corner: ir.Value, w: ir.Value, bias: ir.Value, coming: Int
) -> list[list[ir.Value]]:
    """The sums ``[pixel][turn]`` of one register tile, the bias in the first turn.

    Meanwhile weights of the next output vector come from memory to the second-level cache: those that lie ``coming``
    floats behind, one turn of every source with each tile.
    """
    u = turns(tile.shared)
    pixels = [(row, col) for row in range(tile.rows) for col in range(tile.cols)]
    first_turn = k.splat(0.0) if tile.pieces else k.load(bias)
    sums = [[k.variable(first_turn if turn == 0 else k.splat(0.0)) for turn in range(u)] for _ in pixels]
    totals = Totals(k, sums) if tile.pieces else None
    weights = k.variable(w)
    with k.loop(0, a.group_blocks) as block, k.loop(0, a.taps_high) as tap_row:
        with k.loop(0, a.taps_wide) as tap_col:
            x = k.advance(corner, block * a.x_block + tap_row * a.x_tap_row + tap_col * a.x_tap_col)
            now = weights.get()
            rows = [k.advance(x, a.x_row * row) for row in range(tile.rows)]
            for source, lanes in enumerate(source_lanes(tile.shared, k.v)):
                for first in range(0, u, tile.held):
                    taken = range(first, min(first + tile.held, u))
                    held = [k.load(now, (source * u + turn) * k.v) for turn in taken]
                    for (row, col), accumulators in zip(pixels, sums, strict=True):
                        value = _value(k, tile, rows[row], col * tile.pixel_step, lanes)
                        for turn, weight in zip(taken, held, strict=True):
                            accumulators[turn].set(k.fma(value, weight, accumulators[turn].get()))
                    rows = [k.opaque(row) for row in rows]  # what the next weights read again is not kept in registers
                k.prefetch(now, coming + source * u * k.v, locality=2)
            weights.set(k.advance(now, tile.shared * k.v))
        if totals:
            totals.count(a.taps_wide * (tile.shared // u))
    if not totals:
        return [[accumulator.get() for accumulator in accumulators] for accumulators in sums]
    added = k.load(bias)  # only now: it needs no register meanwhile
    return [[k.add(first, added), *others] for first, *others in totals.finished()]


def _value(k: Kernel, tile: GroupedTile, x: ir.Value, offset: int, lanes: list[int]) -> ir.Value:
    """The input vector whose lanes are those given of the block at ``x + offset``."""
    if tile.shared == k.v:
        return k.load_repeated(x, offset + lanes[0], turns(tile.shared))
    value = k.load(x, offset)
    return value if lanes == list(range(k.v)) else k.shuffle(value, value, lanes)


def _store_tile(
    k: Kernel, a: Reader, tile: GroupedTile, sums: list[list[ir.Value]], y: ir.Value, residual: ir.Value, top: Int,
    left: Int,
) -> None:  # fmt: skip
    for pixel, accumulators in enumerate(sums):
        down, right = top + pixel // tile.cols, left + pixel % tile.cols
        total = _brought_together(k, accumulators)
        for operation in tile.epilogue:
            if operation[0] == "residual":
                total = k.add(total, k.load(residual, down * a.r_row + right * k.v))
            else:
                total = apply(k, operation, total)
        k.store(total, y, down * a.y_row + right * k.v)


def _brought_together(k: Kernel, accumulators: list[ir.Value]) -> ir.Value:
    """The sum of all, each turned to where its outputs lie: in pairs, as ``turn(b + turn(d, 2), 1)``."""
    u = len(accumulators)
    apart = u // 2
    while apart:
        lanes = [turned(lane, -apart, u) for lane in range(k.v)]
        accumulators = [
            k.add(accumulators[turn], k.shuffle(accumulators[turn + apart], accumulators[turn + apart], lanes))
            for turn in range(apart)
        ]
        apart //= 2
    return accumulators[0]
