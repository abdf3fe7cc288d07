"""Heterogeneous convolution, HetConv (arXiv 1903.04120), on row-major tensors.

Filter f has a full kernel on the channels of its residue modulo the part P, and one tap, the centre, on the others. A
tile sums filters of one residue, P apart, so that all of them share their channels. It is a direct convolution on
planes (`kernels.planar`, whose strips of padded input it uses) with two sums instead of one:

    acc[out][vector] += scratch[channel of the residue][offset of tap + vector] * w[channel][tap][out]
    acc[out][vector] += scratch[other channel][offset of the centre + vector] * w[channel][out]

No channel is moved: neighbours of one residue are P planes apart in the strip and in the output. Weights are packed
``[tile][channel of the residue][tap][outs]``, then ``[other channel][outs]``.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import I64, Int, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels import planar
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.pieces import PIECE

ARGUMENTS = Arguments(
    # tiles: a row of TILE_COLUMNS an output tile; singles: for each residue the places of the other channels' centres
    # in scratch. The others as in `kernels.planar`.
    "x w bias y scratch taps tiles singles slices rows cols",
    # work: item -> (image, part of the output tiles, strip of slices, strip of rows)
    "parts slice_strips strip_slices strips strip_rows grid_slices grid_rows grid_cols out_slices out_rows out_cols "
    "x_image x_channel x_slice x_row y_image y_filter y_channel y_slice "
    "channels stage_slices slice_step stage_rows row_step pitch plane slice channel "
    "col_step col_low body_start body_stop k_tiles part_tiles phase_rows phase_cols out_at out_plane scratch_thread "
    "kernel_taps next_own",
)
TILE_COLUMNS = (
    6  # first filter, first weight, first own channel's place in scratch, own channels, singles' row, singles
)


@dataclass(frozen=True)
class HetTile:
    """What is baked into one kernel: the tile of `kernels.planar`, neither tall nor transposed."""

    planes: planar.PlanarTile

    @property
    def key(self) -> str:
        return f"het-{self!r}"

    def name(self, target: Target) -> str:
        return self.planes.name(target).replace("planar", "het")


@dataclass(frozen=True, slots=True)
class HetSum(planar.Sum):
    """What a tile sums: besides the taps of its own channels the single taps of the others."""

    first_own: Int
    own: Int
    singles: ir.Value
    others: Int


def emit(tile: HetTile, target: Target) -> ir.Module:
    """The kernel's module."""
    planes = tile.planes
    k = Kernel(target, element=planes.element)
    a = ARGUMENTS.read(k)
    scratch = k.advance(a.scratch, k.thread * a.scratch_thread)
    results = k.advance(scratch, a.out_at)
    with k.loop(k.begin, k.end) as item:
        strip, rest = item % a.strips, item // a.strips
        slice_strip, rest = rest % a.slice_strips, rest // a.slice_strips
        part, image = rest % a.parts, rest // a.parts
        top = k.smaller(strip * a.strip_rows, a.grid_rows - a.strip_rows)
        front = k.smaller(slice_strip * a.strip_slices, a.grid_slices - a.strip_slices)
        planar.stage(k, a, planes, k.advance(a.x, image * a.x_image), scratch, front, top)
        start = part * a.part_tiles
        with k.loop(start, k.minimum(start + a.part_tiles, a.k_tiles)) as k_tile:
            row = k_tile * TILE_COLUMNS
            out, w_at, first_own, own, singles, others = (k.load_int(a.tiles, row + at) for at in range(TILE_COLUMNS))
            y = k.advance(a.y, image * a.y_image + out * a.y_filter)
            with k.loop(0, a.strip_slices) as place:
                what = HetSum(
                    k.advance(scratch, place * a.slice_step * a.slice),
                    k.advance(a.w, w_at),
                    a.taps,
                    a.kernel_taps,
                    k.advance(a.bias, k_tile * planes.outs),
                    first_own,
                    own,
                    k.b.gep(a.singles, [singles.value], source_etype=I64),
                    others,
                )
                y_slice = k.advance(y, (front + place) * a.y_slice)
                planar.sum_strip(k, a, planes, what, results, y_slice, top, _sum_tile)
                if planes.staged_output:
                    planar.leave(k, a, planes, results, y_slice, top)
    return k.finish()


def _sum_tile(k: Kernel, a: Reader, tile: planar.PlanarTile, what: HetSum, corner: Int) -> list[list[ir.Value]]:
    """The sums ``[out][vector]``, epilogue applied."""
    begun = planar.Begun.of(k, tile, what.bias)
    sums, totals = begun.sums, begun.totals
    weights = k.variable(what.w)
    start = k.advance(what.scratch, corner)
    here = k.variable(k.advance(start, what.first_own))
    with k.loop(0, what.own):
        x = here.get()
        with k.loop(0, what.taps) as tap:
            planar.add_tap(k, a, tile, k.advance(x, k.load_int(what.offsets, tap)), weights, sums)
        here.set(k.advance(x, a.next_own))
        if totals:
            totals.count(what.taps)

    def add_singles(first: Integer, last: Integer) -> None:
        with k.loop(first, last) as other:
            planar.add_tap(k, a, tile, k.advance(start, k.load_int(what.singles, other)), weights, sums)

    if totals:
        with k.loop(0, what.others, PIECE) as first:
            totals.add()
            add_singles(first, k.smaller(first + PIECE, what.others))
    else:
        add_singles(0, what.others)
    return begun.finished(k, tile)
