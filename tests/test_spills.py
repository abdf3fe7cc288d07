"""The innermost loops of the kernels keep their vectors in registers, on every target.

What is counted: in the assembly, instructions with a vector register that touch the stack, in basic blocks that branch
back to themselves. Spills of integers, and of vectors outside the innermost loops (a tile's sums while it is stored,
masks), are allowed: they cost nothing that a measurement shows.

With 32 registers there is none. With 16, LLVM's scheduler sometimes loads ahead for a register more than there is; what
that costs was lost in the noise of tiles of 10 to 14 pixels, so a small share of a loop's vector instructions is let
pass. The maximum pools, which watch for NaN beside their work, have a larger one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convwright.codegen.jit import assembly
from convwright.codegen.target import NAMES, Target, target_named
from convwright.kernels import (
    dense,
    depthwise,
    depthwise_planes,
    direct,
    elementwise,
    global_pool,
    grouped,
    integer,
    integer_layout,
    integer_planes,
    lrn,
    packing,
    paired,
    planar,
    pool,
    winograd,
    winograd_planes,
)
from convwright.kernels.narrow import CODINGS
from convwright.model.lower import depthwise_planes as depthwise_planes_lowering
from convwright.model.lower import grouped as grouped_lowering
from convwright.model.lower import integer_channels, winograd_cut, winograd_pairs
from convwright.model.lower import integer_planes as integer_planes_lowering
from convwright.model.lower import planar as planar_lowering
from convwright.model.lower import winograd_planes as winograd_planes_lowering
from convwright.model.lower.integer_layer import window_of
from convwright.model.problem import Problem
from convwright.model.tiles import choose_tile
from convwright.spec import ConvSpec

pytestmark = pytest.mark.skipif(target_named("generic").registers > 16, reason="reads x86 assembly")
all_targets = pytest.mark.parametrize("target", [pytest.param(target_named(name), id=name) for name in NAMES])

VECTOR = re.compile(r"%[xyz]mm\d")


def innermost_loops(text: str) -> Iterator[list[str]]:
    """The lines of each basic block that branches to itself."""
    name = ""
    block: list[str] = []
    for line in text.splitlines():
        label = re.match(r"(\.L\w+):", line)
        if label:
            name, block = label[1], []
        block.append(line)
        jump = re.match(r"\s+j\w+\s+(\.L\w+)", line)
        if jump and jump[1] == name:
            yield block


def share_of_spills(
    emit: Callable[[Any, Target], Any], tile: Any, target: Target, counts: Callable[[str], object] = bool
) -> float:
    """The largest share of the vector instructions of an innermost loop that touch the stack.

    Only loops whose text, without the lines that touch the stack, satisfies ``counts`` are looked at.
    """
    text = assembly(tile.key, lambda: emit(tile, target), target)
    # %rbp points into the stack only where the function has a frame; else it is a register like others.
    has_frame = re.search(r"movq\s+%rsp, %rbp", text) is not None
    stack = re.compile(r"\(%rsp[,)]|\(%rbp[,)]" if has_frame else r"\(%rsp[,)]")
    loops = [
        [line for line in loop if VECTOR.search(line)]
        for loop in innermost_loops(text)
        if counts("\n".join(line for line in loop if not stack.search(line)))
    ]
    shares = [sum(bool(stack.search(line)) for line in loop) / len(loop) for loop in loops if loop]
    assert shares, f"{tile} has no innermost loop on vectors"
    return max(shares)


def spilling(family: Any, tiles: Iterable[Any], target: Target, allowed: float = 0.125) -> dict[str, float]:
    """The tiles whose loops spill more than is allowed, and how much."""
    allowed = 0.0 if target.registers >= 32 else allowed
    found = {str(tile): share_of_spills(family.emit, tile, target) for tile in tiles}
    return {tile: share for tile, share in found.items() if share > allowed}


# Output size and channels of layers of well-known networks, and the pixels of their pointwise layers in one row.
LAYERS = [
    (112, 112, 64), (56, 56, 64), (28, 28, 128), (14, 14, 256), (7, 7, 512), (1, 12544, 32), (1, 3136, 24),
    (1, 784, 144), (1, 196, 512), (1, 49, 1024), (1, 1, 1000), (8, 1, 1000), (27, 27, 256),
    (13, 13, 384), (17, 17, 192), (8, 8, 320),
    (9, 9, 16), (5, 5, 12), (2, 2, 64), (300, 200, 3), (1, 500, 1),
]  # fmt: skip
MORE_SIZES: list[tuple[int, int]] = [
    *itertools.product(range(1, 10), range(1, 10)),
    *((1, size) for size in range(10, 40)),
    (64, 64),
    (50, 70),
]
MORE_LAYERS = [(rows, cols, channels) for rows, cols in MORE_SIZES for channels in (1, 16, 32, 48, 96, 128)]


def direct_tiles(layers: list[tuple[int, int, int]], target: Target, masked: bool = False) -> list[direct.DirectTile]:
    v = target.vector
    shapes = dict.fromkeys(choose_tile(rows, cols, -(-k // v), 1, 576, target) for rows, cols, k in layers)
    sizes = dict.fromkeys((shape.rows, shape.cols, shape.outs) for shape in shapes)
    tiles = []
    for rows, cols, outs in sizes:
        tiles.append(direct.DirectTile(rows, cols, outs, v))
        tiles.append(direct.DirectTile(rows, cols, outs, 2 * v, taps=False, epilogue=(("residual",), ("silu",))))
        tiles.append(direct.DirectTile(rows, cols, outs, v, deep=True))
        tiles.append(direct.DirectTile(rows, cols, outs, 2, planar=True))
        half = outs <= 3 and v == 16  # others take as long for half a vector
        if half:
            tiles.append(direct.DirectTile(rows, cols, outs, v, half=True))
            tiles.append(direct.DirectTile(rows, cols, outs, 2, planar=True, half=True))
        if rows == 1:  # as pointwise layers are, but for strided ones
            tiles.append(direct.DirectTile(rows, cols, outs, v, taps=False, gathered=True, half=half))
        if masked:
            tiles.append(direct.DirectTile(rows, cols, outs, v, masked=True))
            tiles.append(direct.DirectTile(rows, cols, outs, v, taps=False, ring=True))
    return tiles


@all_targets
def test_direct(target: Target) -> None:
    assert not spilling(direct, direct_tiles(LAYERS, target), target)


@pytest.mark.long
@all_targets
def test_direct_at_many_sizes(target: Target) -> None:
    assert not spilling(direct, direct_tiles(MORE_LAYERS, target, masked=True), target)


def in_pieces(tiles: list[direct.DirectTile]) -> list[direct.DirectTile]:
    """The same, long sums in pieces; channels are not gathered for two and a half vectors of them."""
    return [replace(tile, pieces=True) for tile in tiles if not (tile.gathered and tile.half and tile.outs > 2)]


@all_targets
def test_direct_in_pieces(target: Target) -> None:
    layers = [(28, 28, 128), (7, 7, 512), (1, 196, 512), (1, 49, 1024), (1, 1, 1000), (17, 17, 192), (1, 784, 40)]
    tiles = [tile for tile in direct_tiles(layers, target) if not (tile.planar or tile.deep)]
    assert not spilling(direct, in_pieces(tiles), target)


@pytest.mark.long
@all_targets
def test_direct_in_pieces_at_many_sizes(target: Target) -> None:
    assert not spilling(direct, in_pieces(direct_tiles(LAYERS, target, masked=True)), target)


# Size, input and output channels of the 3x3 layers of VGG and ResNet.
DENSE_3X3 = [
    (224, 64, 64), (112, 64, 128), (112, 128, 128), (56, 128, 256), (56, 256, 256), (28, 256, 512), (28, 512, 512),
    (14, 512, 512), (56, 64, 64), (28, 128, 128), (14, 256, 256), (7, 512, 512),
]  # fmt: skip


@all_targets
def test_dense(target: Target) -> None:
    """Where it is chosen: with vectors of four lanes it is not."""
    if target.name != "generic":
        for coding in CODINGS:
            assert not spilling(dense, [dense.DenseTile(images, coding, 0) for images in range(1, 9)], target)


# Kernel, size and the outputs of a tile of the other Winograd algorithms.
MORE_WINOGRAD = [
    ((3, 3), 33, "2x2"),
    ((3, 3), 28, "6x6"),
    ((5, 5), 27, "4x4"),
    ((1, 7), 17, "1x4"),
    ((7, 1), 17, "6x1"),
]


@all_targets
def test_winograd(target: Target) -> None:
    """The loops that sum products spill nothing where there are 32 registers, transforms little."""
    store = re.compile(r"movu?a?ps\s+%[xyz]mm\d+, [-\w]*\(")
    tiles: dict[winograd.WinogradTile, None] = {}
    problems = [
        (ConvSpec(channels, out_channels, (3, 3), padding=1), size, threads, "4x4")
        for (size, channels, out_channels), threads in itertools.product(DENSE_3X3, (1, 2))
    ]
    problems += [(ConvSpec(96, 64, kernel, padding="same"), size, 2, m) for kernel, size, m in MORE_WINOGRAD]
    problems += [(ConvSpec(96, 64, (3, 3), stride=2, padding=1), 56, 2, m) for m in ("2x2", "4x4", "5x5")]
    for spec, size, threads, m in problems:
        dtype = np.dtype(np.float32)
        problem = Problem(spec, (size, size), 1, dtype, target, threads, algorithm=f"winograd-{m}")
        cut = winograd_cut.cut(problem)
        axes, size_of = (cut.form.high, cut.form.wide), (cut.tiles, cut.outs)
        tiles[winograd.WinogradTile(*axes, *size_of, paired=cut.paired > 0)] = None
        if m in ("4x4", "6x6") and size > 50:
            tiles[winograd.WinogradTile(*axes, *size_of, (("relu",),), True, cut.paired > 0)] = None
    for axes, outs in itertools.product((((4, 3), (4, 3)), ((3, 3), (3, 3)), ((1, 1), (4, 7))), (1, 2)):
        tiles[winograd.WinogradTile(*axes, winograd_pairs.most_tiles(outs, target), outs, paired=True)] = None
    for tile in tiles:
        products = share_of_spills(winograd.emit, tile, target, lambda loop: not store.search(loop))
        few = 0.125 if tile.paired else 0.02  # pairs hold what is added beside two vectors of weights
        assert products <= (0.0 if target.registers >= 32 else few), tile
        assert share_of_spills(winograd.emit, tile, target) <= 0.125, tile


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("tiles", "outs", "halved"),
    [(10, 2, False), (11, 2, False), (22, 1, False), (5, 3, False), (12, 2, True), (8, 3, True), (7, 3, True)],
)
def test_products_in_pairs(tiles: int, outs: int, halved: bool, half: bool) -> None:
    """Of 16 channels 11 multiply-adds and 10 additions for a sum, each with its input from memory in the instruction
    itself, and no value on the stack: 1 in 40 instructions there made whole layers 4 to 7 % slower."""
    target, tile = target_named("avx512"), paired.PairedTile(tiles, outs, half, halved=halved)
    text, sums = assembly(tile.key, lambda: paired.emit(tile, target), target), tiles * outs
    (loop,) = [loop for loop in innermost_loops(text) if "vaddps" in "\n".join(loop)]
    vectors = [line for line in loop if VECTOR.search(line)]
    assert sum("vfmadd" in line for line in vectors) == 11 * sums
    assert sum("vaddps" in line for line in vectors) == 10 * sums
    assert sum("{1to16}" in line for line in vectors) == 16 * tiles * (outs - halved)
    assert sum("{1to8}" in line for line in vectors) == 16 * tiles * halved
    assert not any("vbroadcastss" in line for line in vectors)
    assert not any("(%rsp" in line for line in vectors)


@pytest.mark.parametrize("target", [pytest.param(target_named(name), id=name) for name in ("avx2", "generic")])
@pytest.mark.parametrize(("tiles", "outs"), [(8, 1), (3, 2)])
def test_products_in_pairs_in_few_registers(target: Target, tiles: int, outs: int) -> None:
    tile = paired.PairedTile(tiles, outs)
    additions = re.compile(r"addps")
    assert share_of_spills(paired.emit, tile, target, additions.search) <= 0.03


@all_targets
@pytest.mark.parametrize(("kernel", "stride"), [((7, 7), 2), ((11, 11), 4), ((5, 5), 2), ((3, 3), 1)])
def test_winograd_of_first_layers(target: Target, kernel: tuple[int, int], stride: int) -> None:
    spec = ConvSpec(3, 64, kernel, stride=stride, padding="same" if stride == 1 else 2)
    problem = Problem(spec, (224, 224), 1, np.dtype(np.float32), target, 2, plain_input=True)
    tile = winograd_planes_lowering.cut(problem).tile
    transposes = re.compile(r"unpck")
    products = share_of_spills(winograd_planes.emit, tile, target, lambda loop: not transposes.search(loop))
    assert products <= (0.0 if target.registers >= 32 else 0.02), tile
    # of transforms of up to 31 inputs
    assert share_of_spills(winograd_planes.emit, tile, target) <= (0.125 if target.registers >= 32 else 0.3), tile


# Input channels, output channels, kernel and options of layers that direct summation on planes is for.
ON_PLANES: list[tuple[int, int, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = [
    (64, 64, (3, 3), {"groups": 64, "padding": 1}, (112, 112)),
    (128, 128, (3, 3), {"groups": 128, "padding": 1, "stride": 2}, (56, 56)),
    (256, 256, (5, 5), {"groups": 256, "padding": 2}, (28, 28)),
    (512, 512, (3, 3), {"groups": 512, "padding": 1}, (7, 7)),
    (64, 64, (31, 31), {"groups": 64, "padding": 15}, (56, 56)),
    (64, 64, (31,), {"groups": 64, "padding": 15}, (16000,)),
    (32, 32, (3, 3, 3), {"groups": 32, "padding": 1}, (16, 56, 56)),
    (128, 128, (3, 3), {"groups": 32, "padding": 1}, (56, 56)),
    (512, 512, (3, 3), {"groups": 32, "padding": 1}, (14, 14)),
    (240, 240, (1, 1), {"groups": 3}, (28, 28)),
    (64, 32, (16,), {"stride": 8, "padding": 4, "transposed": True}, (1000,)),
    (128, 64, (3, 3), {"stride": 2, "padding": 1, "output_padding": 1, "transposed": True}, (28, 28)),
    (64, 3, (9, 9), {"stride": 3, "padding": 4, "transposed": True}, (64, 64)),
    (32, 32, (3, 3, 3), {"padding": 1}, (16, 56, 56)),
    (3, 64, (7, 7), {"stride": 2, "padding": 3}, (224, 224)),
    (37, 53, (3, 3), {"padding": 1}, (28, 28)),
]


@all_targets
@pytest.mark.parametrize("element", ["f32", "f64"])
def test_planar(target: Target, element: str) -> None:
    tiles: dict[planar.PlanarTile, None] = {}
    for in_channels, out_channels, kernel, options, size in ON_PLANES:
        spec = ConvSpec(in_channels, out_channels, kernel, **options)
        dtype = np.dtype(np.float32 if element == "f32" else np.float64)
        tiles[planar_lowering.form_of(planar_lowering.joined(Problem(spec, size, 1, dtype, target, 2))).tile] = None
    if element == "f32":
        tiles |= dict.fromkeys(replace(tile, in_pieces=True) for tile in tiles)
    # Rows are woven together outside the sums: what is held there is no sum.
    assert not spilling(planar, tiles, target)


def test_depthwise_planes() -> None:
    """Where it is chosen: masks that are vectors of their own fill other targets' registers."""
    target = target_named("avx512")
    tiles: dict[depthwise_planes.DepthwisePlanesTile, None] = {}
    layers: list[tuple[tuple[int, ...], int, int]] = [
        ((size, size), kernel, 1) for size in (112, 28, 14, 7) for kernel in (3, 5, 7)
    ]
    layers += [((56, 56), 3, 2), ((56, 56), 5, 2), ((56, 56), 3, 3), ((1000,), 3, 1), ((1000,), 3, 2)]
    for size, kernel, stride in (*layers, ((4, 14, 14), 3, 1), ((16, 56, 56), 3, 2)):
        spec = ConvSpec(8, 8, (kernel,) * len(size), stride=stride, padding=kernel // 2, groups=8)
        form = depthwise_planes_lowering.form_of(Problem(spec, size, 1, np.dtype(np.float32), target, 2))
        assert form is not None
        tiles[form.tile] = None
    assert not spilling(depthwise_planes, tiles, target)


@all_targets
def test_depthwise(target: Target) -> None:
    tiles = []
    rows = [
        (1, 1, 1),
        (3, 1, 1),
        (3, 2, 1),
        (3, 1, 2),
        (5, 1, 1),
        (5, 2, 1),
        (7, 1, 1),
        (7, 2, 1),
        (9, 1, 1),
        (31, 1, 1),
    ]
    for width, stride, dilation in rows:
        unrolled = depthwise.fits_registers(width, target)
        cols = sorted({depthwise.choose_cols(size, width if unrolled else 1, target) for size in (112, 56, 28, 14, 7)})
        baked = (width, stride, dilation) if unrolled else (0, stride, 0)
        tiles += [depthwise.DepthwiseTile(size, *baked, unrolled, deep=deep) for size in cols for deep in (False, True)]
    for width, size in ((9, 7), (9, 14), (27, 14), (31, 20), (31, 28)):
        if depthwise.inputs_at_once(size, target) > 1:
            tiles.append(depthwise.DepthwiseTile(size, width, 1, 0, False, True, False, size, width // 2))
    assert not spilling(depthwise, dict.fromkeys(tiles), target)


@all_targets
def test_grouped(target: Target) -> None:
    v = target.vector
    tiles: dict[grouped.GroupedTile, None] = {}
    for shared in sorted({2, 4, v // 2, v}):
        for rows, cols in [(1, 1), (1, 3), (2, 2), (2, 3), (3, 5), (7, 7), (13, 13), (14, 14), (28, 28), (56, 56)]:
            for taps in (1, 9, 25):
                shape = grouped_lowering.choose_tile(rows, cols, taps, shared, target)
                for step in (v, 2 * v):
                    tiles[grouped.GroupedTile(shape.rows, shape.cols, shared, shape.held, step, (("relu",),))] = None
    whole = [replace(tile, pieces=True) for tile in tiles if tile.shared == v]  # sums in parts of vectors are short
    tiles |= dict.fromkeys(whole)
    assert not spilling(grouped, tiles, target)


@all_targets
def test_pool(target: Target) -> None:
    windows = [(2, 2, 1), (3, 2, 1), (3, 1, 1), (5, 1, 1), (1, 2, 1), (3, 1, 2), (13, 1, 1)]
    tiles = [pool.pool_of(kind, *window, False, target) for window in windows for kind in (True, False)]
    tiles += [pool.pool_of(kind, 3, 2, 1, False, target, deep=True) for kind in (True, False)]
    assert not spilling(pool, tiles, target, allowed=0.25)
    whole = [global_pool.GlobalPool(kind) for kind in (True, False)]
    assert not spilling(global_pool, whole, target, allowed=0.25)


@all_targets
def test_elementwise(target: Target) -> None:
    chains: list[elementwise.Expression] = [
        ("add", 0, 1), ("relu", ("add", ("mul", 0, 1), 2)), ("mul", 0, ("sigmoid", 1)),
        ("clip", ("add", 0, 1), 0.0, 6.0), ("hard_swish", 0), ("add", 0, ("mul", 1, 2)),
    ]  # fmt: skip
    operands = (("full", "full", "full"), ("full", "channel", "channel"))
    tiles = [elementwise.Elementwise(chain, kinds) for chain in chains for kinds in operands]
    assert not spilling(elementwise, tiles, target)


@all_targets
@pytest.mark.parametrize("what", ["shares", "scale", "transform"])
def test_packing(target: Target, what: str) -> None:
    assert share_of_spills(packing.emit, packing.Packing(what), target) == 0


@all_targets
def test_lrn(target: Target) -> None:
    assert not spilling(lrn, [lrn.Lrn(1e-4, beta, 2.0) for beta in (0.5, 0.6, 0.75, 1.0)], target)


# Output size, input and output channels, kernel, stride and groups of layers of well-known networks.
INTEGER = [
    (56, 64, 64, 3, 1, 1), (28, 128, 128, 3, 1, 1), (14, 256, 256, 3, 1, 1), (7, 512, 512, 3, 1, 1),
    (14, 256, 256, 1, 1, 1), (56, 64, 256, 1, 1, 1), (28, 128, 128, 3, 2, 1), (7, 512, 2048, 1, 1, 1),
    (112, 3, 64, 7, 2, 1), (112, 3, 32, 3, 2, 1), (56, 144, 144, 3, 1, 144),
    (14, 384, 384, 3, 2, 384), (28, 64, 32, 3, 1, 8),
]  # fmt: skip


@all_targets
def test_integer(target: Target) -> None:
    tiles: dict[Any, dict[Any, None]] = {integer: {}, integer_planes: {}}
    for size, channels, out_channels, kernel, stride, groups in INTEGER:
        spec = ConvSpec(channels, out_channels, (kernel, kernel), stride=stride, padding=kernel // 2, groups=groups)
        layer: Any = SimpleNamespace(
            window=window_of(spec, (size * stride, size * stride)), spec=spec,
            form="bytes" if target.has_vnni else "halves",
            own_in=channels // groups, own_out=out_channels // groups,
        )  # fmt: skip
        b: Any = SimpleNamespace(v=target.vector, target=target)
        words = min(integer_layout.words_of(layer.own_in, layer.form), target.vector)
        shape = integer_channels._shape(b, layer)
        unroll = integer.choose_unroll(words * kernel)
        whole = (shape.rows, shape.cols, shape.outs, words, stride * words, unroll, layer.form, False, True)
        tiles[integer][integer.IntegerTile(*whole)] = None
        planes = integer_planes_lowering._tile(b, layer)
        tiles[integer_planes][integer_planes.PlanesTile(planes.outs, planes.cols, layer.form, False, True)] = None
    product = re.compile(r"vpdp|pmadd")
    for family, some in tiles.items():
        found = {str(tile): share_of_spills(family.emit, tile, target, product.search) for tile in some}
        allowed = 0.0 if target.registers >= 32 else 0.125
        assert not {tile: share for tile, share in found.items() if share > allowed}
