"""Products in pairs (`kernels.paired`) of groups of which each reads all channels but its own, at one pixel: what is
pointwise in a heterogeneous convolution.

A strip's pixels are copied and scaled once for the filters of all groups. What a group reads is a ring of blocks, those
behind its own and then the first ones, so the first groups' blocks are copied behind the last ones' again: then each
ring lies in one piece. Of the sums of a1 a2 over all channels, each group's own are taken away.

Scratch of one thread, in floats: the strip, ``[tile][blocks and again the first ones][pixel][v]``; then for each tile
and group the sums of its pixels' a1 a2; then what pixels' outputs are multiplied by; then the sums over all channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import I64, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.paired import PIXEL_COLUMNS, PairedTile, Weights, multiply, restore, start_of, vectors_of
from convwright.kernels.paired_inputs import ONE, TOGETHER, Inputs, add_own_products, of_lanes, prepare

ARGUMENTS = Arguments(
    # as in `kernels.paired`; weights, squares and scales of outputs are those of one group after another, channels in
    # the order of the group's ring
    "x w bias y scratch pixels places channel_scales squares out_scales",
    # work: item -> (part of the output vectors, image, strip of pixels); part_turns: how many times `outs` vectors make
    # a part; blocks: of all groups; others: blocks that a group reads; again: blocks that are copied twice
    "part_turns vectors images strips strip all_pixels blocks others again groups group_blocks group_vectors "
    "x_image w_out y_image y_block scratch_thread",
)


@dataclass(frozen=True)
class RingTile:
    """What is baked into one kernel.

    `tiles`, `outs`: pixels and output vectors that are summed in registers together; the latter divide a group's.
    """

    tiles: int
    outs: int

    @property
    def key(self) -> str:
        return f"paired-ring-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-paired-ring-{self.tiles}x{self.outs}-{target.name}"

    @property
    def product(self) -> PairedTile:
        return PairedTile(self.tiles, self.outs)


def copied_twice(groups: int, group_blocks: int) -> int:
    """Blocks behind the last group's: the last ring but one begins with the last group's blocks."""
    return (groups - 2) * group_blocks


def scratch_floats(strip: int, tile: RingTile, groups: int, group_blocks: int, v: int) -> int:
    """Floats of scratch that one thread needs for a strip of pixels."""
    blocks = groups * group_blocks + copied_twice(groups, group_blocks)
    numbers = vectors_of(tile.product, v) * (groups + 1)
    return (-(-strip // tile.tiles) * (tile.tiles * blocks + numbers) + 1) * v


def emit(tile: RingTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    turns = (a.strip + (tile.tiles - 1)) // tile.tiles
    room = k.advance(a.scratch, k.thread * a.scratch_thread)
    tile_floats = (a.blocks + a.again) * (tile.tiles * k.v)
    numbers = vectors_of(tile.product, k.v) * k.v
    sums = k.advance(room, turns * tile_floats)
    factors = k.advance(sums, turns * a.groups * numbers)
    of_all = k.advance(factors, turns * numbers)
    a_channel = k.div(ir.Constant(k.scalar_type, 1.0), k.b.sitofp((a.blocks * k.v).value, k.scalar_type))
    with k.loop(k.begin, k.end) as item:
        part, image, strip = item.unravel(a.images, a.strips)
        first = k.smaller(strip * a.strip, a.all_pixels - a.strip)
        pixels = k.b.gep(a.pixels, [(first * PIXEL_COLUMNS).value], source_etype=I64)
        inputs = Inputs(a.places, a.channel_scales, a.blocks)
        weights = Weights(a.w, a.w_out, a.squares, a.others)
        x, y = k.advance(a.x, image * a.x_image), k.advance(a.y, image * a.y_image)
        likely = k.variable(k.splat_int(ONE))
        with k.loop(0, turns) as turn:
            own = k.b.gep(pixels, [(start_of(k, a, tile.tiles, turn) * PIXEL_COLUMNS).value], source_etype=I64)
            together = min(TOGETHER, tile.tiles)
            with k.loop(0, tile.tiles, together) as wanted:
                pixel = k.smaller(wanted, tile.tiles - together)
                places = [k.load_int(own, (pixel + number) * PIXEL_COLUMNS) for number in range(together)]
                to = k.advance(room, turn * tile_floats + pixel * k.v)
                back = k.advance(factors, turn * numbers + pixel)
                prepare(k, inputs, x, places, a_channel, likely, to, tile.tiles, of_all, back)
                of_rings = k.advance(sums, turn * a.groups * numbers + pixel)
                _make_rings(k, a, to, together, tile.tiles, of_all, of_rings, numbers)
        start = part * a.part_turns * tile.outs
        stop = k.minimum(start + a.part_turns * tile.outs, a.vectors)
        with k.loop(start, stop, tile.outs) as out, k.loop(0, turns) as turn:
            own = k.b.gep(pixels, [(start_of(k, a, tile.tiles, turn) * PIXEL_COLUMNS).value], source_etype=I64)
            group = out // a.group_vectors
            ring = (group + 1) % a.groups * a.group_blocks
            at = k.advance(room, turn * tile_floats + ring * (tile.tiles * k.v))
            of_ring = k.advance(sums, (turn * a.groups + group) * numbers)
            total = multiply(k, weights, tile.product, at, of_ring, out, turn % 4)
            y_at = k.advance(y, out * a.y_block)

            def store(results: list[list[ir.Value]], to: ir.Value = y_at, pixels: ir.Value = own) -> None:
                for pixel, vectors in enumerate(results):
                    place = k.load_int(pixels, pixel * PIXEL_COLUMNS + 1)
                    for number, vector in enumerate(vectors):
                        k.store(vector, to, a.y_block * number + place)

            restore(k, a, k.advance(factors, turn * numbers), out, total, store)
    return k.finish()


def _make_rings(
    k: Kernel, a: Reader, to: ir.Value, pixels: int, apart: int, of_all: ir.Value, of_rings: ir.Value, numbers: int
) -> None:
    """Of some pixels that were copied, sum each ring's a1 a2, and copy once more what begins the first rings.

    - ``to``: ``[block][pixel][v]``, blocks ``apart`` pixels from each other.
    - ``of_all``: the sums over all channels; ``of_rings``: where those of each group's ring go, ``numbers`` apart.
    """
    all_sums = [k.load_scalar(of_all, pixel) for pixel in range(pixels)]
    with k.loop(0, a.groups) as group:
        totals = [k.variable(k.splat(0.0)) for _ in range(pixels)]
        with k.loop(group * a.group_blocks, (group + 1) * a.group_blocks) as block:
            for pixel, total in enumerate(totals):
                total.set(add_own_products(k, total.get(), k.load(to, block * (apart * k.v) + pixel * k.v)))
        own = of_lanes(k, [total.get() for total in totals], k.add)
        for pixel, of_pixel in enumerate(all_sums):
            k.store_scalar(k.b.fsub(of_pixel, k.extract(own, pixel)), of_rings, group * numbers + pixel)
    with k.loop(0, a.again) as block:
        for pixel in range(pixels):
            place = block * (apart * k.v) + pixel * k.v
            k.store(k.load(to, place), to, place + a.blocks * (apart * k.v))
