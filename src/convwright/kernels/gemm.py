"""A matrix product as a convolution by columns needs it: weights times columns, plus bias, activations applied.

``y[plane, out][column] = bias[group][out] + sum of w[group][out][r] * b[plane][r][column] over r``, for every plane:
one group of one image. The columns of a plane are cut into panels of ``cols`` vectors, the rows into tiles of ``outs``
outputs: the sums of a tile by a panel stay in registers. The order of the loops is that of Goto and van de Geijn
(Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008): a block of the reduction, within it the
panels, within those the tiles. So a panel's block is read from the first-level cache, the weights of a block from the
second. Sums of all blocks but the last rest in the output.

A tail of outputs (``rest``) has a tile of its own, and so has a plane's last panel where it is narrower
(``rest_cols``); nothing else is masked. A few columns beyond whole vectors (``spare``: 7 x 7 is three vectors of 16 and
one) need no vector for each output: the tile's outputs are lanes of one vector for each of them. Weights are packed
``[group][tile][r][outs]``. Columns lie in panels ``[panel][r][cols * v]`` where `kernels.im2col` has written them, else
row-major: ``[plane][r][positions]``.

A transposed convolution whose stride is its kernel has one tap for each output: the product's outputs are (channel,
tap), and a tile's neighbouring taps of a row are woven together as they are stored (``weave``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llvmlite import ir

from convwright.codegen.lang import Int, Kernel, Variable
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.pieces import PIECE, Totals
from convwright.kernels.planar import weave

ARGUMENTS = Arguments(
    "w b bias y",
    # work: item -> (run of panels, part of the tiles); `first`: the panel, counted through all planes, that `b` begins
    # with; block: terms of the reduction that are summed at a time
    "first panels_here panels run parts part_tiles k_tiles groups out_channels positions reduction block "
    "y_image y_group y_out "
    # of woven outputs: positions of a row, elements of a row of the output
    "cols y_row",
)


@dataclass(frozen=True)
class GemmTile:
    """What is baked into one kernel.

    outs, cols: the register tile, outputs by vectors of columns. rest: outputs of the last tile of a group.
    rest_cols: vectors of a plane's last panel, the last of them masked; 0 where it is like the others.
    spare: columns of a plane after the whole vectors of its last panel, where it is a few; then nothing is masked.
    weave: (taps of a column, taps of a row) that make a position's outputs one patch of the output; empty: they do not.
    split: a vector of the output may belong to two rows, where outputs are woven.
    pieces: sums are added up in pieces (``kernels.pieces``).
    packed: whether columns lie in panels.
    element: "f32" or "f64". epilogue: activations.
    """

    outs: int
    cols: int
    rest: int
    rest_cols: int
    packed: bool
    element: str = "f32"
    epilogue: tuple[tuple[object, ...], ...] = ()
    spare: int = 0
    weave: tuple[int, ...] = ()
    split: bool = False
    pieces: bool = False

    @property
    def key(self) -> str:
        return f"gemm-{self!r}"

    def name(self, target: Target) -> str:
        return f"{self.element}-gemm-{self.outs}x{self.cols}-{target.name}"


def emit(tile: GemmTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target, element=tile.element)
    a = ARGUMENTS.read(k)
    width = tile.cols * k.v
    with k.loop(k.begin, k.end) as item:
        part, place = item % a.parts, item // a.parts * a.run
        stop = k.minimum(place + a.run, a.panels_here)
        tiles = part * a.part_tiles, k.smaller(part * a.part_tiles + a.part_tiles, a.k_tiles)
        with k.loop(0, a.reduction, a.block) as start, k.loop(place, stop) as here:
            panel = a.first + here
            plane, column = panel // a.panels, panel % a.panels * width
            group = plane % a.groups
            if tile.packed:
                b = k.advance(a.b, (here * a.reduction + start) * width)
            else:
                b = k.advance(a.b, (plane * a.reduction + start) * a.positions + column)
            y = k.advance(a.y, plane // a.groups * a.y_image + group * a.y_group)
            y = y if tile.weave else k.advance(y, column)
            bias = k.advance(a.bias, group * a.out_channels)
            w = k.advance(a.w, (group * a.out_channels) * a.reduction)
            left = a.positions - column
            with k.either(left < (width + tile.spare + 1 if tile.spare else width)) as (last, whole):
                with last:
                    if tile.rest_cols:
                        masks: list[ir.Value | None] = [None] * tile.rest_cols
                        if not tile.spare:
                            masks[-1] = k.mask(0, left - (tile.rest_cols - 1) * k.v)
                        places = _woven_places(k, a, tile, column, tile.rest_cols, left)
                        _tiles(k, a, tile, _Panel(w, b, bias, y, start, masks, tile.spare, places), tiles)
                with whole:
                    places = _woven_places(k, a, tile, column, tile.cols, None)
                    _tiles(k, a, tile, _Panel(w, b, bias, y, start, [None] * tile.cols, 0, places), tiles)
    return k.finish()


@dataclass(frozen=True, slots=True)
class _Panel:
    """One panel of one block of the reduction; ``masks``: the lanes that exist of each of its vectors, None for all;
    ``spare``: columns after them; ``places``: where woven vectors go, under which masks."""

    w: ir.Value
    b: ir.Value
    bias: ir.Value
    y: ir.Value
    start: Int
    masks: list[ir.Value | None]
    spare: int = 0
    places: list[list[tuple[Int, ir.Value | None]]] = field(default_factory=list)


def _tiles(k: Kernel, a: Reader, tile: GemmTile, panel: _Panel, tiles: tuple[Int, Int]) -> None:
    begin, end = tiles
    whole = k.smaller(end, a.k_tiles - 1) if tile.rest < tile.outs else end
    with k.loop(begin, whole) as number:
        _tile(k, a, tile, panel, number * tile.outs, tile.outs)
    if tile.rest < tile.outs:
        with k.when(whole < end):
            _tile(k, a, tile, panel, (a.k_tiles - 1) * tile.outs, tile.rest)


def _tile(k: Kernel, a: Reader, tile: GemmTile, panel: _Panel, out: Int, outs: int) -> None:
    """``outs`` outputs of the panel from ``out`` on."""
    masks = panel.masks
    if tile.weave:
        _woven_tile(k, a, tile, panel, out, outs)
        return
    rows = [k.advance(panel.y, (out + place) * a.y_out) for place in range(outs)]
    sums = [[k.variable(k.splat(0.0)) for _ in masks] for _ in range(outs)]
    spares = [(len(masks) * k.v + place, k.variable(k.splat(0.0))) for place in range(panel.spare)]
    with k.either(panel.start.equals(0)) as (first, later):
        with first:
            for place, accumulators in enumerate(sums):
                initial = k.broadcast(k.load_scalar(panel.bias, out + place))
                for accumulator in accumulators:
                    accumulator.set(initial)
            for _, accumulator in spares:
                accumulator.set(k.load(panel.bias, out, k.mask(0, outs)))
        with later:
            for row, accumulators in zip(rows, sums, strict=True):
                for number, accumulator in enumerate(accumulators):
                    accumulator.set(k.load(row, number * k.v, masks[number]))
            for column, accumulator in spares:
                for lane, row in enumerate(rows):
                    accumulator.set(k.insert(accumulator.get(), k.load_scalar(row, column), lane))
    _add_products(k, a, tile, panel, out, outs, sums, spares)
    with k.either(panel.start + a.block < a.reduction) as (unfinished, finished):
        for branch, epilogue in ((unfinished, ()), (finished, tile.epilogue)):
            with branch:
                for row, accumulators in zip(rows, sums, strict=True):
                    for number, accumulator in enumerate(accumulators):
                        k.store(_applied(k, epilogue, accumulator.get()), row, number * k.v, masks[number])
                for column, accumulator in spares:
                    vector = _applied(k, epilogue, accumulator.get())
                    for lane, row in enumerate(rows):
                        k.store_scalar(k.extract(vector, lane), row, column)


def _add_products(
    k: Kernel, a: Reader, tile: GemmTile, panel: _Panel, out: Int, outs: int, sums: list[list[Variable]],
    spares: list[tuple[int, Variable]],
) -> None:  # fmt: skip
    """Add a block of the reduction to the sums ``[output][vector]`` and to those of the spare columns."""
    length = k.smaller(a.reduction - panel.start, a.block)
    weights = k.variable(k.advance(panel.w, out * a.reduction + panel.start * outs))
    columns = k.variable(panel.b)
    if not tile.pieces:
        _add_terms(k, a, tile, panel, length, weights, columns, sums, spares)
        return
    every = [*sums, [accumulator for _, accumulator in spares]]
    totals = Totals(k, every)
    totals.add()
    with k.loop(0, length, PIECE) as done:
        _add_terms(k, a, tile, panel, k.smaller(length - done, PIECE), weights, columns, sums, spares)
        totals.add()
    for accumulators, vectors in zip(every, totals.finished(), strict=True):
        for accumulator, vector in zip(accumulators, vectors, strict=True):
            accumulator.set(vector)


def _add_terms(
    k: Kernel, a: Reader, tile: GemmTile, panel: _Panel, count: Int, weights: Variable, columns: Variable,
    sums: list[list[Variable]], spares: list[tuple[int, Variable]],
) -> None:  # fmt: skip
    """Add ``count`` terms of the reduction, and move the pointers to weights and columns past them."""
    with k.loop(0, count):
        now, b = weights.get(), columns.get()
        vectors = [k.load(b, number * k.v, None if tile.packed else mask) for number, mask in enumerate(panel.masks)]
        for place, accumulators in enumerate(sums):
            factor = k.broadcast(k.load_scalar(now, place))
            for vector, accumulator in zip(vectors, accumulators, strict=True):
                accumulator.set(k.fma(vector, factor, accumulator.get()))
        for column, accumulator in spares:  # the lanes after the tile's outputs are the next weights: not stored
            factor = k.broadcast(k.load_scalar(b, column))
            accumulator.set(k.fma(k.load(now), factor, accumulator.get()))
        weights.set(k.advance(now, len(sums)))
        columns.set(k.advance(b, tile.cols * k.v if tile.packed else a.positions))


def _woven_places(
    k: Kernel, a: Reader, tile: GemmTile, column: Int, cols: int, left: Int | None
) -> list[list[tuple[Int, ir.Value | None]]]:  # fmt: skip
    """For each woven vector of the panel, one after another: where it is stored, in one piece or in two.

    Position p of the input is the patch at row p // cols, so its outputs in the patch's first row lie at the taps of a
    row times p, and as many rows of the output further as the patches above have more than one. ``left``: positions
    that exist, None for all.
    """
    if not tile.weave:
        return []
    high, wide = tile.weave
    places: list[list[tuple[Int, ir.Value | None]]] = []
    for number in range(cols * wide):
        first = number * k.v // wide  # the vector's first position in the panel
        position = column + first
        at = position * wide
        end = k.v if left is None else (left - first) * wide
        if high == 1:
            places.append([(at, None if left is None else k.mask(0, end))])
            continue
        row, further = position // a.cols, a.y_row * (high - 1)
        at = at + row * further
        if tile.split:
            stop = k.minimum((a.cols - position % a.cols) * wide, k.v)  # lanes of this row
            places.append([(at, k.mask(0, k.minimum(stop, end))), (at + further, k.mask(stop, end))])
        else:
            places.append([(at, None if left is None else k.mask(0, end))])
    return places


def _woven_tile(k: Kernel, a: Reader, tile: GemmTile, panel: _Panel, out: Int, outs: int) -> None:
    """``outs`` outputs of the panel from ``out`` on: whole rows of patches; the reduction is one block."""
    high, wide = tile.weave
    initial = [k.broadcast(k.load_scalar(panel.bias, out + place)) for place in range(outs)]
    sums = [[k.variable(vector) for _ in panel.masks] for vector in initial]
    _add_products(k, a, tile, panel, out, outs, sums, [])
    for first in range(0, outs, wide):
        row = (out + first) // wide
        y = k.advance(panel.y, row // high * a.y_out + row % high * a.y_row)
        for number in range(len(panel.masks)):
            taps = [_applied(k, tile.epilogue, sums[first + tap][number].get()) for tap in range(wide)]
            for vector, pieces in zip(weave(k, taps), panel.places[number * wide :], strict=False):
                for at, mask in pieces:
                    k.store(vector, y, at, mask)


def _applied(k: Kernel, epilogue: tuple[tuple[object, ...], ...], vector: ir.Value) -> ir.Value:
    for operation in epilogue:
        vector = apply(k, operation, vector)
    return vector
