"""Direct convolution on channel-blocked activations; pointwise and fully connected layers are its special cases.

A register tile of ``rows x cols`` output pixels by ``outs`` vectors of output channels is summed over all input
channels and taps, one broadcast input value and ``outs`` weight vectors at a time:

    acc[pixel][out] += x[channel, pixel * stride + tap * dilation] * w[out][channel, tap]

Sizes, strides, dilation and the number of taps are arguments of the kernel: one kernel serves every layer whose tile,
horizontal stride and epilogue agree. Tiles at the right and bottom edge are moved back inside and compute some pixels
twice, so there is no code for tails. Channels beyond ``in_channels`` in the last block are never read: a NaN in a lane
that means nothing must not reach one that does.

Weights are packed ``[output vector][channel][kh][kw][lane of the input block][v]``, read strictly forwards.

A pointwise kernel may take its channels in any order, from a table of places ("gathered"): behind a channel shuffle
the channels of a group lie far apart, and reading them there costs nothing but the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from convwright.codegen.lang import Int, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.pieces import PIECE, Totals
from convwright.kernels.products import add_products, lower_half, whole_of_half

Masks = list[ir.Value | None]
UNROLL = 4  # channels in one turn of the inner loop

_INTEGERS = (
    # work: item -> (outer half of the output tiles, chunk of pixel tiles, output tile inside the half)
    "tiles_inner tiles chunks chunks_image chunk_tiles pixel_tiles col_tiles out_rows out_cols "
    "x_image x_block x_row x_tap_row x_tap_col channels taps_high taps_wide "
    "w_out y_image y_block y_row wrap_cols r_image r_block r_row ring"
)
ARGUMENTS = Arguments("x w bias y table residual", _INTEGERS)
DEEP_ARGUMENTS = Arguments("x w bias y table residual", f"{_INTEGERS} taps_deep x_tap_deep")
GATHERED_ARGUMENTS = Arguments("x w bias y table residual places", _INTEGERS)  # places: floats from x to each channel

TABLE_COLUMNS = 5  # first input channel, first output block, offset of the weights, first and last + 1 output lane


@dataclass(frozen=True)
class DirectTile:
    """What is baked into one direct kernel.

    rows, cols: output pixels of the register tile; outs: vectors of output channels.
    pixel_step: floats from one output pixel's input to the next one's in a row.
    planar: the input is plain channel planes (first layers), not channel-blocked.
    tap_step: floats between consecutive values of the reduction: the dilation of a planar input, 1 for channels.
    taps: False when the kernel is 1x1.
    wrap: the pixels are one flat row, but rows of the output (and residual) have gaps between them.
    masked: output tiles may cover lanes of another group, which are not stored.
    ring: a tile's channels are whole blocks, which go on with the first block after the last, number ``ring``.
    gathered: the table's first column counts channels in the table of places; only without taps.
    deep: taps of three axes; the images are the slices of one volume.
    half: only the lower half of a tile's last vector counts; the rest of it is stored as anything.
    pieces: sums are added up in pieces (``kernels.pieces``).
    epilogue: activations, and ``("residual",)`` where the residual is added.
    """

    rows: int
    cols: int
    outs: int
    pixel_step: int
    planar: bool = False
    tap_step: int = 1
    taps: bool = True
    wrap: bool = False
    masked: bool = False
    ring: bool = False
    gathered: bool = False
    half: bool = False
    deep: bool = False
    pieces: bool = False
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def unroll(self) -> int:
        """Values of the reduction in one turn of the inner loop.

        Taps of a planar input are unrolled only as far as they read different values: LLVM would keep those that
        several taps share in registers, and spill the sums.
        """
        if not self.planar:
            return UNROLL
        return min(UNROLL, self.pixel_step // self.tap_step) if self.pixel_step % self.tap_step == 0 else 1

    @property
    def key(self) -> str:
        return f"direct-{self!r}"

    @property
    def arguments(self) -> Arguments:
        if self.deep:
            return DEEP_ARGUMENTS
        return GATHERED_ARGUMENTS if self.gathered else ARGUMENTS

    def name(self, target: Target) -> str:
        return f"f32-{'first' if self.planar else 'direct'}-{self.rows * self.cols}x{self.outs}-{target.name}"


def emit(tile: DirectTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = tile.arguments.read(k)
    with k.loop(k.begin, k.end) as item:
        half = item // (a.tiles_inner * a.chunks)
        rest = item % (a.tiles_inner * a.chunks)
        out_tile = half * a.tiles_inner + rest % a.tiles_inner
        chunk = rest // a.tiles_inner
        with k.when(out_tile < a.tiles):
            image, chunk_in_image = chunk // a.chunks_image, chunk % a.chunks_image
            row = [k.load_int(a.table, out_tile * TABLE_COLUMNS + column) for column in range(TABLE_COLUMNS)]
            channel, block, w_offset, lane_begin, lane_end = row
            masks: Masks = [None] * tile.outs
            if tile.masked:
                masks = [k.mask(lane_begin - out * k.v, lane_end - out * k.v) for out in range(tile.outs)]
            w = k.advance(a.w, w_offset)
            bias = k.advance(a.bias, block * k.v)
            x = k.advance(a.x, image * a.x_image)
            y = k.advance(a.y, image * a.y_image + block * a.y_block)
            residual = k.advance(a.residual, image * a.r_image + block * a.r_block)
            first = chunk_in_image * a.chunk_tiles
            last = k.minimum(first + a.chunk_tiles, a.pixel_tiles)
            with k.loop(first, last) as pixel_tile:
                top = k.minimum((pixel_tile // a.col_tiles) * tile.rows, a.out_rows - tile.rows)
                left = k.minimum((pixel_tile % a.col_tiles) * tile.cols, a.out_cols - tile.cols)
                corner = k.advance(x, top * a.x_row + left * tile.pixel_step)
                sums = sum_tile(k, a, tile, corner, w, bias, channel, masks, pixel_tile % UNROLL)
                store_tile(k, a, tile, sums, y, residual, top, left, masks)
    return k.finish()


def sum_tile(
    k: Kernel, a: Reader, tile: DirectTile, corner: ir.Value, w: ir.Value, bias: ir.Value, channel: Int, masks: Masks,
    quarter: Int,
) -> list[list[ir.Value]]:  # fmt: skip
    """The sums ``[pixel][out]`` of one register tile, bias included.

    Meanwhile the weights of the next output tile come from memory to the second-level cache: a ``quarter`` of them with
    each of four pixel tiles, a line for every four that are used. Measured on 7 x 7 pixels with 2048 x 512 weights:
    without this the first pixel tile waits for memory and the layer takes a third longer.
    """

    def biases() -> list[ir.Value]:
        vectors = [k.load(bias, out * k.v, masks[out]) for out in range(tile.outs)]
        return [*vectors[:-1], lower_half(k, vectors[-1])] if tile.half else vectors

    initial = biases()
    if tile.pieces:  # a bias that joins at the end is loaded then: it needs no register meanwhile
        initial = [ir.Constant(vector.type, [0.0] * vector.type.count) for vector in initial]
    sums = [[k.variable(vector) for vector in initial] for _ in range(tile.rows * tile.cols)]
    totals = Totals(k, sums) if tile.pieces else None
    weights = k.variable(w)
    coming = k.variable(k.advance(w, a.w_out * tile.outs + quarter * (a.w_out // (UNROLL * k.v) * k.v)))

    def run(x: ir.Value, count: Integer, first: Integer = 0) -> None:
        """Add ``count`` values of the reduction: they follow each other in the input, ``tap_step`` floats apart, or lie
        where the table of places says from number ``first`` on."""
        x_rows = [k.advance(x, a.x_row * row) for row in range(tile.rows)]
        whole = first + count // tile.unroll * tile.unroll
        with k.loop(first, whole, tile.unroll) as at:
            step(x_rows, at, tile.unroll)
        if tile.unroll > 1:
            with k.loop(whole, first + count) as at:
                step(x_rows, at, 1)
        if totals:
            totals.count(count)

    def step(x_rows: list[ir.Value], at: Int, unroll: int) -> None:
        if tile.gathered:
            places = [k.load_int(a.places, at + ahead) for ahead in range(unroll)]
            starts = [[k.advance(x_row, place) for x_row in x_rows] for place in places]
        else:
            starts = [[k.advance(x_row, at * tile.tap_step) for x_row in x_rows]] * unroll

        def value(pixel: int, ahead: int, starts: list[list[ir.Value]] = starts) -> ir.Value:
            place = (pixel % tile.cols) * tile.pixel_step + (0 if tile.gathered else ahead * tile.tap_step)
            return k.load_scalar(starts[ahead][pixel // tile.cols], place)

        again = None
        if tile.half:
            same = [[k.opaque(start) for start in rows] for rows in starts]
            again = partial(value, starts=same)
        add_products(k, sums, weights, a.w_out, unroll, value, again)
        if unroll == UNROLL:
            for out in range(tile.outs):
                k.prefetch(coming.get(), a.w_out * out, locality=2)
            coming.set(k.advance(coming.get(), k.v))

    if tile.planar:
        with k.loop(channel, channel + a.channels) as plane, k.loop(0, a.taps_high) as tap_row:
            run(k.advance(corner, plane * a.x_block + tap_row * a.x_tap_row), a.taps_wide)
    elif tile.gathered and totals:
        with k.loop(0, a.channels, PIECE) as done:
            run(corner, k.smaller(a.channels - done, PIECE), channel + done)
    elif tile.gathered:
        run(corner, a.channels, channel)
    else:
        start = k.variable(channel)
        remaining = k.variable(a.channels)
        with k.loop(0, (channel % k.v + a.channels + (k.v - 1)) // k.v):
            first = start.get()
            count = k.minimum(k.v - first % k.v, remaining.get())
            number = first // k.v
            if tile.ring:
                number = k.choose(number < a.ring, number, number - a.ring)
            block = k.advance(corner, number * a.x_block + first % k.v)
            if tile.deep:
                with (
                    k.loop(0, a.taps_deep) as tap,
                    k.loop(0, a.taps_high) as tap_row,
                    k.loop(0, a.taps_wide) as tap_col,
                ):
                    run(k.advance(block, tap * a.x_tap_deep + tap_row * a.x_tap_row + tap_col * a.x_tap_col), count)
            elif tile.taps:
                with k.loop(0, a.taps_high) as tap_row, k.loop(0, a.taps_wide) as tap_col:
                    run(k.advance(block, tap_row * a.x_tap_row + tap_col * a.x_tap_col), count)
            else:
                run(block, count)
            start.set(first + count)
            remaining.set(remaining.get() - count)
    if totals:
        final = biases()
        result = [[k.add(*pair) for pair in zip(own, final, strict=True)] for own in totals.finished()]
    else:
        result = [[accumulator.get() for accumulator in accumulators] for accumulators in sums]
    return [[*own[:-1], whole_of_half(k, own[-1])] for own in result] if tile.half else result


def store_tile(
    k: Kernel,
    a: Reader,
    tile: DirectTile,
    sums: list[list[ir.Value]],
    y: ir.Value,
    residual: ir.Value,
    top: Integer,
    left: Integer,
    masks: Masks,
) -> None:
    row = col = Int(k, k.int_value(left))
    if tile.wrap:  # the first pixel's row and column in the output; the others follow one by one
        row, col = row // a.wrap_cols, col % a.wrap_cols
    for pixel, vectors in enumerate(sums):
        if tile.wrap:
            y_at, r_at = row * a.y_row + col * k.v, row * a.r_row + col * k.v
            ended = (col + 1).equals(a.wrap_cols)
            row, col = k.choose(ended, row + 1, row), k.choose(ended, 0, col + 1)
        else:
            down, right = top + pixel // tile.cols, left + pixel % tile.cols
            y_at, r_at = down * a.y_row + right * k.v, down * a.r_row + right * k.v
        for out, vector in enumerate(vectors):
            for operation in tile.epilogue:
                if operation[0] == "residual":
                    vector = k.add(vector, k.load(residual, a.r_block * out + r_at, masks[out]))
                else:
                    vector = apply(k, operation, vector)
            k.store(vector, y, a.y_block * out + y_at, masks[out])
