"""Direct convolution on channel blocks, its special cases first layers and fully connected layers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import direct, pieces
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import Geometry, geometry_of
from convwright.model.lower import channels
from convwright.model.problem import Algorithm, Problem
from convwright.model.tiles import Shape, choose_tile, cut_work
from convwright.model.values import Value, blocks_of, spatial
from convwright.model.weights import Entry, entries_of
from convwright.runtime.machine import multiply_adds_a_cycle

PLANAR_CHANNELS = 4  # inputs of the graph with at most so many channels are read plane by plane
MEMORY_BYTES_A_CYCLE = 5.5  # measured read bandwidth of one core at its clock


def reads_planes(p: Problem) -> bool:
    """Whether the layer reads its input as plain planes: a first layer of few channels."""
    return p.plain_input and p.spec.groups == 1 and p.spec.in_channels <= min(PLANAR_CHANNELS, p.target.vector)


def why_not_blocked(p: Problem, deep: bool = False) -> str | None:
    """Why kernels on channel blocks cannot compute this problem; `deep`: those that take slices as a batch."""
    spec = p.spec
    if deep and spec.rank < 3:
        return "for three axes"
    if p.element != "f32":
        return f"channel blocks hold float32, not {p.dtype}"
    if not deep and spec.rank > 2:
        return f"channel blocks have at most 2 spatial axes, not {spec.rank}"
    if spec.transposed:
        return "transposed"
    if spec.flip or spec.padding_mode != "zeros":
        return f"flip {spec.flip}, padding_mode {spec.padding_mode!r}"
    return None


def why_not(p: Problem, deep: bool = False) -> str | None:
    """Why direct summation on channel blocks cannot compute this problem."""
    reason = why_not_blocked(p, deep)
    if reason is None and geometry_of(p).depthwise:
        return "depthwise layers have a kernel of their own"
    return reason


def cycles(p: Problem) -> float:
    """Estimated: arithmetic and the weights' way from memory, which overlap, not wholly."""
    g, v = geometry_of(p), p.target.vector
    own = g.out_channels // g.groups
    entries = entries_of(g.groups * blocks_of(own, v) * v if p.in_lanes else g.out_channels, g.groups, v)
    reduction = g.own_channels * g.kernel[0] * g.kernel[1]
    vectors = min(vectors_a_group(entries))
    half = (g.groups == 1 or p.in_lanes) and ends_in_half(own, p.target)
    compute = choose_tile(*g.out_size, vectors, len(entries) // vectors, reduction, p.target, half).cycles * p.batch
    memory = 4 * reduction * len(entries) * v / MEMORY_BYTES_A_CYCLE
    return (max(compute, memory) + 0.3 * min(compute, memory)) / p.threads


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    g, name = geometry_of(p), layer.node.inputs[0]
    planar = reads_planes(p)
    x = b.padded_planes(b.plain(name), g.halo) if planar else channels.with_halo(b, name, g.halo)
    residual = b.blocked(layer.residual) if layer.residual else None
    add(b, layer, g, x, b.new_blocked(layer.output), residual, planar=planar)


def multiplications(p: Problem) -> int:
    return p.macs


def no_workspace(p: Problem) -> int:
    return 0


def error_of_sum(p: Problem) -> float:
    """Of a sum in float32 of random terms, against its largest value: measured, it grows with the root of their number
    (`tests.convolutions.Case.expected`)."""
    return _error_of_terms(p, terms_of(p))


def error_in_pieces(p: Problem, piece: int = 0) -> float:
    """As `error_of_sum`, of a kernel that sums in pieces, of at least `piece` products, where numerics are strict."""
    terms = terms_of(p)
    if in_pieces(p.numerics, terms, p.element):
        return _error_of_terms(p, pieces.longest(terms, max(piece, pieces.PIECE)))
    return _error_of_terms(p, terms)


def in_pieces(numerics: str, terms: int, element: str = "f32") -> bool:
    """Whether sums of so many products are added up in pieces (`kernels.pieces`)."""
    return numerics == "strict" and element == "f32" and pieces.long(terms)


def terms_of(p: Problem) -> int:
    """Products of an output."""
    spec = p.spec
    taps = spec.kernel
    if spec.transposed:  # an output meets the taps of one phase of the stride
        steps = [s // math.gcd(s, d) for s, d in zip(spec.stride, spec.dilation, strict=True)]
        taps = tuple(-(-k // step) for k, step in zip(spec.kernel, steps, strict=True))
    return spec.in_channels // spec.groups * math.prod(taps)


def _error_of_terms(p: Problem, terms: float) -> float:
    unit = 2.0**-53 if p.element == "f64" else 2.0**-24
    return 16 * unit * max(1.0, terms / 256) ** 0.5


ROW = Algorithm("direct", "blocked", True, why_not, cycles, multiplications, no_workspace, error_in_pieces, _lower)


def lower_gemm(b: Builder, layer: Layer) -> None:
    """A fully connected layer: a convolution whose kernel covers the whole input; images are the pixels of a column."""
    node = layer.node
    out_channels, features = b.graph.constants[node.inputs[1]].shape
    name = b.flattened.get(node.inputs[0], node.inputs[0])
    shape = b.shape(name)
    size = spatial(shape)
    g = Geometry(out_channels, shape[1], size, (1, 1), ((0, 0), (0, 0)), (1, 1), 1, size, (1, 1))
    assert g.own_channels * size[0] * size[1] == features
    x = b.blocked(name)
    residual = b.blocked(layer.residual) if layer.residual else None
    add(b, layer, g, x, b.new_blocked(layer.output), residual)


def add(
    b: Builder, layer: Layer, g: Geometry, x: Value, y: Value, residual: Value | None, *, planar: bool = False,
    deep: tuple[int, int] = (1, 0),
) -> None:  # fmt: skip
    """Add the step that computes the layer from `x`, which lies in its halo, to `y`.

    `planar`: `x` is row-major, as a first layer reads it. The channels of `x` and `y` lie in the orders that the plan
    has for them (`lower.regroup`). `deep`: taps of a third axis, and the floats from one to the next; then the images
    of `x` are what the first taps of the output's slices read.
    """
    v, node = b.v, layer.node
    pointwise = g.kernel == (1, 1) and deep[0] == 1
    form = "planar" if planar else "direct"
    weight_shape = (g.out_channels, g.own_channels, deep[0] * g.kernel[0], g.kernel[1])
    own, macs = g.out_channels // g.groups, g.macs * deep[0]
    if (order := b.orders.get(layer.output)) is not None:
        packed = b.weights.in_lanes(node.inputs[1], form, weight_shape, g.groups, order)
        bias = b.weights.bias_in_lanes(node.input(2), g.out_channels, order, form)
        g = replace(g, out_channels=order.lanes)
    else:
        packed = b.weights.get(node.inputs[1], form, weight_shape, g.groups)
        bias = b.weights.bias(node.input(2), g.out_channels)

    entries = entries_of(g.out_channels, g.groups, v)
    masked = g.groups > 1 and (g.out_channels // g.groups) % v != 0
    vectors = min(vectors_a_group(entries))
    read = b.orders.get(node.inputs[0])
    gathered = read is not None
    rows, cols = g.out_size
    reduction = packed.shape[1]
    in_parts = in_pieces(b.numerics, reduction)
    half = not masked and ends_in_half(own, b.target)
    half = half and not (in_parts and gathered and vectors > 2)  # LLVM would spill sums
    if g.out_size == (1, 1) and x.n > 1:
        rows = x.n  # the images are the rows: the weights are read once for all of them
    by_image = g.out_size == (1, 1)
    join = pointwise and not planar and g.stride == (1, 1) and x.flat and rows > 1 and not by_image
    wrap = join and not (y.flat and (residual is None or residual.flat))
    if join:
        rows, cols = 1, rows * cols
    shape = choose_tile(rows, cols, vectors, len(entries) // vectors, reduction, b.target, half, b.threads)
    tile = direct.DirectTile(
        shape.rows, shape.cols, shape.outs, g.stride[1] if planar else g.stride[1] * v,
        planar=planar, tap_step=g.dilation[1] if planar else 1, taps=planar or not pointwise,
        wrap=wrap, masked=masked, gathered=gathered, half=shape.half, deep=deep[0] > 1,
        pieces=in_parts, epilogue=layer.epilogue,
    )  # fmt: skip
    table = output_tiles(entries, shape.outs, g.own_channels, reduction, v)
    col_tiles = -(-cols // shape.cols)
    pixel_tiles = col_tiles * -(-rows // shape.rows)
    images = 1 if by_image else x.n
    x_bytes = 4 * g.own_channels * g.groups * g.size[0] * g.size[1] * (x.n if by_image else 1)
    cut = cut_work(len(table), pixel_tiles, images, x_bytes, packed.nbytes, b.threads)
    arguments = {
        "x": b.inside(x, g), "w": b.static(packed), "bias": b.static(bias), "y": y.ref, "table": b.static(table),
        "residual": residual.ref if residual else 0,
        "tiles_inner": cut.tiles_inner, "tiles": len(table), "chunks": cut.chunks_image * images,
        "chunks_image": cut.chunks_image, "chunk_tiles": cut.chunk_tiles, "pixel_tiles": pixel_tiles,
        "col_tiles": col_tiles, "out_rows": rows, "out_cols": cols,
        "x_image": 0 if by_image else x.image, "x_block": x.block,
        "x_row": x.image if by_image else x.row * g.stride[0],
        "x_tap_row": x.row * g.dilation[0], "x_tap_col": g.dilation[1] * v,
        "channels": g.own_channels, "taps_high": g.kernel[0], "taps_wide": g.kernel[1], "w_out": reduction * v,
        "y_image": 0 if by_image else y.image, "y_block": y.block, "y_row": y.image if by_image else y.row,
        "wrap_cols": g.out_size[1],
        "r_image": residual.image if residual and not by_image else 0, "r_block": residual.block if residual else 0,
        "r_row": (residual.image if by_image else residual.row) if residual else 0, "ring": 0,
    }  # fmt: skip
    if tile.deep:
        arguments |= {"taps_deep": deep[0], "x_tap_deep": deep[1]}
    if read is not None:
        arguments["places"] = b.static(read.places // v * x.block + read.places % v)
    why = _why(g, shape, planar, deep[0]) + (", channels where they lie" if gathered else "")
    reads = [x, residual] if residual else [x]
    items = cut.halves * cut.tiles_inner * cut.chunks_image * images
    b.step(tile.name(b.target), direct, tile, arguments, items, reads, [y], why, macs * x.n)


def ends_in_half(channels: int, target: Target) -> bool:
    """Whether the last vector of so many channels is at most half full, on a machine where that halves its products."""
    return multiply_adds_a_cycle(target) == 1 and 0 < channels % target.vector <= target.vector // 2


def _why(g: Geometry, shape: Shape, planar: bool, deep: int) -> str:
    pointwise = g.kernel == (1, 1) and deep == 1
    kind = "few input channels" if planar else "1x1" if pointwise else "dense" if g.groups == 1 else "grouped"
    return f"{kind}: {shape.rows}x{shape.cols} pixels by {shape.outs} vectors"


def vectors_a_group(entries: list[Entry]) -> list[int]:
    counts: dict[int, int] = {}
    for entry in entries:
        counts[entry.group] = counts.get(entry.group, 0) + 1
    return list(counts.values())


def output_tiles(entries: list[Entry], outs: int, own_channels: int, reduction: int, v: int) -> np.ndarray:
    """The output tiles: ``outs`` neighbouring vectors of one group each, the last of a group moved back inside it."""
    rows, place = [], 0
    for count in vectors_a_group(entries):
        for start in range(0, count, outs):
            at = place + min(start, count - outs)
            first, last = entries[at], entries[at + outs - 1]
            high = (last.block - first.block) * v + last.high
            rows.append((first.group * own_channels, first.block, at * reduction * v, first.low, high))
        place += count
    return np.array(rows, np.int64)
