"""Convolution as a matrix product: of weights and the input's columns; transposed, of weights and the input, whose
columns are then added up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from convwright.codegen.lang import lanes
from convwright.kernels import col2im, gemm, im2col
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import direct
from convwright.model.lower.planar import Axis, axis_of
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Ref, Value

_BLOCK_BYTES = 192 * 1024  # of a panel, for one block of the reduction: measured, it need not fit the first-level cache
_COLUMN_BYTES = 2 << 20  # of the column matrix that is in memory at a time
_MOST_CHUNKS = 32  # pieces in which it is written and multiplied
_MOST_SPARE = 4  # positions after whole vectors whose outputs are lanes
_RUN_BYTES = 512 * 1024  # of output that a work item goes over again for each block of the reduction
_ITEMS_A_THREAD = 4
_ROWS_AT_ONCE, _PIECE_CYCLES = 64, 10.0  # outputs of a panel beyond which storing each loses its page, or the next line
_CACHE_BYTES_A_CYCLE = 12.0  # what a core reads from the second- and third-level caches


@dataclass(frozen=True, slots=True)
class Product:
    """The matrix product of every plane (a group of an image), and how its work is cut: see `kernels.gemm`.

    - `outs`, `reduction`, `positions`: the sizes of the product.
    - `planes`: how many products there are. `packed`: whether columns are written first.
    - `tile_outs`, `cols`: the register tile. `block`: terms of the reduction summed at a time.
    - `woven`: the outputs of a transposed convolution are stored where they belong; else columns are added up.
    - `spare`: positions after whole vectors, whose outputs are lanes.
    - `chunk`: panels whose columns are in memory at a time, of all planes together.
    - `cycles`: estimated, of the whole product on one core.
    """

    outs: int
    reduction: int
    positions: int
    planes: int
    packed: bool
    tile_outs: int
    cols: int
    block: int
    chunk: int
    v: int
    cycles: float
    spare: int = 0
    woven: bool = False

    @property
    def width(self) -> int:
        return self.cols * self.v

    @property
    def panels(self) -> int:
        """Of one plane."""
        return -(-(self.positions - self.spare) // self.width)

    @property
    def rest_cols(self) -> int:
        """Vectors of a plane's last panel, 0 where it is like the others."""
        left = self.positions - self.spare - (self.panels - 1) * self.width
        return 0 if left == self.width and not self.spare else -(-left // self.v)

    @property
    def tiles(self) -> int:
        return -(-self.outs // self.tile_outs)


def is_pointwise(p: Problem) -> bool:
    """Whether the input is its own column matrix."""
    spec = p.spec
    return math.prod((*spec.kernel, *spec.stride)) == 1 and not any(map(any, spec.pads(p.size)))


def is_woven(p: Problem) -> bool:
    """Whether a transposed convolution has one tap for each output, which the product's kernel can store in place."""
    spec, v = p.spec, lanes(p.target, p.element)
    apart = spec.transposed and spec.kernel == spec.stride and set(spec.dilation) == {1}
    if not apart or spec.rank > 2 or any(map(any, spec.pads(p.size))) or any(spec.output_padding):
        return False
    wide = spec.kernel[-1]
    return v % wide == 0 and (spec.kernel[:-1] in ((), (1,)) or p.size[-1] >= v // wide)


@lru_cache(maxsize=1024)
def product_of(p: Problem) -> Product:
    """The product with the register tile of least estimated time."""
    spec, v, width = p.spec, lanes(p.target, p.element), np.dtype(p.dtype).itemsize
    outs, reduction = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    packed = not spec.transposed and not is_pointwise(p)
    if spec.transposed:
        outs, positions = outs * math.prod(spec.kernel), math.prod(p.size)
    else:
        reduction, positions = reduction * math.prod(spec.kernel), math.prod(p.out_size)
    planes = p.batch * spec.groups
    best: Product | None = None
    woven, step = is_woven(p), 1
    if woven:
        step = spec.kernel[-1]
    over = positions % v
    spares = [0, over] if 0 < over <= _MOST_SPARE and positions > v and not packed and not spec.transposed else [0]
    for spare, cols in product(spares, range(1, min(6, -(-positions // v)) + 1)):
        # Besides the sums: the columns, a factor, and without fused multiply-add a product.
        free = p.target.registers - cols - (1 if p.target.has_fma else 2) - (spare + 1 if spare else 0)
        most = min(max(1, free // cols), v if spare else free)
        if most < step:
            continue
        tile_outs = -(-outs // step // -(-outs // (most // step * step))) * step
        fits = max(1, _BLOCK_BYTES // (cols * v * width)) if not woven else reduction
        block = -(-reduction // -(-reduction // fits))
        vectors = -(-(positions - spare) // v)
        panels = -(-vectors // cols) * planes
        panel_bytes = reduction * cols * v * width
        chunk = max(1, _COLUMN_BYTES // panel_bytes, outs * reduction * width // (2 * panel_bytes))
        chunk = min(panels, max(chunk, -(-panels // _MOST_CHUNKS))) if packed else panels
        blocks = -(-reduction // block)
        last = vectors - (-(-vectors // cols) - 1) * cols
        whole = _panel_cycles(tile_outs, cols, packed, reduction, blocks)
        cycles = (vectors - last) / cols * whole + _panel_cycles(tile_outs, last, packed, reduction, blocks)
        cycles += spare * (reduction * 0.5 + tile_outs * 2.0)
        cycles *= -(-outs // tile_outs) * planes
        if best is None or cycles < best.cycles:
            best = Product(
                outs, reduction, positions, planes, packed, tile_outs, cols, block, chunk, v, cycles, spare, woven
            )  # fmt: skip
    assert best is not None
    return best


def _panel_cycles(outs: int, cols: int, packed: bool, reduction: int, blocks: int) -> float:
    """Estimated cycles of one tile of one panel, two multiply-adds a cycle."""
    multiply_adds, loads = outs * cols / 2, (outs + cols * (1 if packed else 2)) / 2
    step = max(multiply_adds, loads, 4.0 if outs * cols < 8 else 0.0) * 1.04 + 0.5
    return reduction * step + blocks * (1.5 * outs * cols + 4.0 * outs + 20.0)  # the fewer rows, the less a tile costs


def _images_at_a_time(p: Problem) -> int:
    """Of a transposed convolution: images whose columns are in memory."""
    f = product_of(p)
    image = f.outs * f.positions * p.spec.groups * np.dtype(p.dtype).itemsize
    return min(p.batch, max(1, _COLUMN_BYTES // image, -(-p.batch // _MOST_CHUNKS)))


# -- the algorithm's row -----------------------------------------------------------------------------------------------


def _why_not(p: Problem) -> str | None:
    if p.residual:
        return "adds no residual"
    return None


def _workspace(p: Problem) -> int:
    f, width = product_of(p), np.dtype(p.dtype).itemsize
    if p.spec.transposed and not f.woven:
        return _images_at_a_time(p) * p.spec.groups * f.outs * f.positions * width
    return f.chunk * f.reduction * f.width * width if f.packed else 0


def _cycles(p: Problem) -> float:
    f, v = product_of(p), lanes(p.target, p.element)
    columns = 0.0
    if p.spec.transposed and not f.woven:
        taps = f.outs * p.spec.groups * p.batch * f.positions / v
        columns = taps * 6.0 + p.batch * p.spec.out_channels * math.prod(p.out_size) / v * 6.0
    elif f.packed:
        row = min(p.out_size[-1], f.width)
        step = p.spec.stride[-1] if im2col.step_of(p.spec.stride[-1]) else 4 * v
        pieces = f.planes * f.reduction * f.positions / row
        columns = pieces * (8.0 + -(-row // v) * (3.0 + 2.0 * step))
    chunks = -(-f.panels * f.planes // f.chunk)
    return (f.cycles + columns) * (0.95 if not columns else 1.1) / p.threads + chunks * 6000.0


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    f, spec, node = product_of(p), p.spec, layer.node
    x, y = b.plain(node.inputs[0]), b.new_plain(layer.output)
    key = ("gemm", f.tile_outs, spec)
    w = b.static(b.weights.derived(node.inputs[1], key, lambda weight: pack(weight, p, f)))
    bias = b.constant(node.input(2)) if node.input(2) else np.zeros(spec.out_channels)
    bias = np.ascontiguousarray(bias, p.dtype)
    if f.woven:
        ends = (w, x.ref, b.static(np.repeat(bias, math.prod(spec.kernel))), y.ref)
        _multiply(b, p, f, ends, ([x], [y]), (0, f.panels * f.planes), layer.epilogue, p.macs)
    elif spec.transposed:
        _lower_transposed(b, layer, p, f, x, y, w, b.static(bias))
    else:
        _lower_columns(b, layer, p, f, x, y, w, b.static(bias))


def pack(weight: np.ndarray, p: Problem, f: Product) -> np.ndarray:
    """``[group][tile][r][outs]``, one after another; the last tile of a group may have fewer outputs.

    Of a transposed convolution the product's outputs are (output channel, tap). For spare positions the kernel loads
    whole vectors of weights: zeros follow the last.
    """
    spec = p.spec
    if spec.transposed:  # [G][C/G][K/G taps] to [G][K/G taps][C/G]
        turned = np.flip(weight, tuple(range(2, weight.ndim))) if spec.flip and f.woven else weight
        rows = turned.reshape(spec.groups, f.reduction, f.outs).swapaxes(1, 2)
    else:
        turned = np.flip(weight, tuple(range(2, weight.ndim))) if spec.flip else weight
        rows = turned.reshape(spec.groups, f.outs, f.reduction)
    pieces = [
        np.ascontiguousarray(group[start : start + f.tile_outs].T).reshape(-1)
        for group in rows
        for start in range(0, f.outs, f.tile_outs)
    ]
    return np.concatenate([*pieces, np.zeros(f.v, weight.dtype)]).astype(p.dtype, copy=False)


def _cut(p: Problem, f: Product, panels: int, threads: int) -> tuple[int, int]:
    """Panels and tiles of a work item: the threads' shares even, weights and columns read as seldom as can be."""
    width = np.dtype(p.dtype).itemsize
    longest = max(1, _RUN_BYTES // (f.width * f.outs * width)) if f.block < f.reduction else panels
    weights, columns = f.outs * f.reduction * min(p.spec.groups, panels), f.reduction * f.width * panels
    wanted = _ITEMS_A_THREAD * threads
    best: tuple[float, int, int] | None = None
    for parts, share, planes in product(range(1, min(f.tiles, wanted) + 1), (wanted, 2 * wanted), (False, True)):
        part_tiles = -(-f.tiles // parts)
        run = max(1, min(longest, panels // -(-share // parts)))
        if planes and run > f.panels:  # whole planes: a plane's last panel may be narrower
            run -= run % f.panels
        items = -(-panels // run) * -(-f.tiles // part_tiles)
        # A thread that is late gives away items that it has not begun: the smaller they are, the better.
        idle = _unevenness(f, panels, run, part_tiles, threads) * (1 + threads / (8 * items))
        # Columns read once are mostly in the cache of the thread that wrote them; those of a 1 x 1 come ahead of use.
        again = 2 * -(-f.tiles // part_tiles) - 1
        traffic = float(-(-panels // run) * weights + again * columns) * width * (1.0 if f.packed else 0.08)
        pieces = f.outs * panels if part_tiles * f.tile_outs > _ROWS_AT_ONCE else 0
        cycles = idle * (f.outs * columns / f.v + traffic / _CACHE_BYTES_A_CYCLE + pieces * _PIECE_CYCLES)
        if best is None or cycles < best[0]:
            best = cycles, run, part_tiles
    assert best is not None
    return best[1:]


def _unevenness(f: Product, panels: int, run: int, part_tiles: int, threads: int) -> float:
    """The largest of the threads' shares of the work over the mean."""
    of_panel = np.full(panels, float(f.cols))
    if f.rest_cols:
        of_panel[f.panels - 1 :: f.panels] = f.rest_cols
    of_run = np.add.reduceat(of_panel, np.arange(0, panels, run))
    starts = np.arange(0, f.tiles, part_tiles)
    work = np.outer(of_run, np.minimum(part_tiles, f.tiles - starts)).reshape(-1)
    bounds = np.arange(threads + 1) * len(work) // threads
    done = np.append(0.0, np.cumsum(work))[bounds]
    return float(np.diff(done).max() * threads / work.sum())


def _multiply(
    b: Builder, p: Problem, f: Product, ends: tuple[Ref, Ref, Ref, Ref], touched: tuple[list[Value], list[Value]],
    panels: tuple[int, int], epilogue: Any, macs: int,
) -> None:  # fmt: skip
    """The step that multiplies some panels; ``ends``: weights, columns, bias and output."""
    first, here = panels
    tile = gemm.GemmTile(
        f.tile_outs, f.cols, f.outs - (f.tiles - 1) * f.tile_outs, f.rest_cols, f.packed, p.element, epilogue, f.spare,
        (1, *p.spec.kernel)[-2:] if f.woven else (), f.woven and p.size[-1] * p.spec.kernel[-1] % f.v > 0,
        direct.in_pieces(p.numerics, f.reduction, p.element),
    )  # fmt: skip
    shuffled = p.shuffle > 0
    if f.woven:
        image = math.prod(p.out_size)
        place = {"y_image": p.spec.out_channels * image, "y_group": p.spec.out_channels // p.spec.groups * image,
                 "y_out": image, "cols": p.size[-1], "y_row": p.out_size[-1]}  # fmt: skip
    else:
        group = f.outs * f.positions
        place = {"y_image": p.spec.groups * group, "y_group": f.positions if shuffled else group,
                 "y_out": f.positions * p.spec.groups if shuffled else f.positions, "cols": 0, "y_row": 0}  # fmt: skip
    run, part_tiles = _cut(p, f, here, b.threads)
    runs, parts = -(-here // run), -(-f.tiles // part_tiles)
    w, columns, bias, y = ends
    arguments = {
        "w": w, "b": columns, "bias": bias, "y": y, "first": first, "panels_here": here, "panels": f.panels,
        "run": run, "parts": parts, "part_tiles": part_tiles, "k_tiles": f.tiles, "groups": p.spec.groups,
        "out_channels": f.outs, "positions": f.positions, "reduction": f.reduction, "block": f.block,
        **place,
    }  # fmt: skip
    why = f"product of {f.outs} x {f.reduction} x {f.positions}: {f.tile_outs} outputs by {f.cols} vectors"
    b.step(tile.name(b.target), gemm, tile, arguments, runs * parts, *touched, why, macs)


def _lower_columns(
    b: Builder, layer: Layer, p: Problem, f: Product, x: Value, y: Value, w: Ref, bias: Ref
) -> None:  # fmt: skip
    spec, total = p.spec, f.panels * f.planes
    if not f.packed:
        _multiply(b, p, f, (w, x.ref, bias, y.ref), ([x], [y]), (0, total), layer.epilogue, p.macs)
        return
    pads = spec.pads(p.size)
    deep, high, wide = _three(axis_of(spec, pads, axis, p.size[axis], p.out_size[axis]) for axis in range(spec.rank))
    kernel, stride, dilation = ((1, 1, *values)[-3:] for values in (spec.kernel, spec.stride, spec.dilation))
    size, out_size = ((1, 1, *values)[-3:] for values in (p.size, p.out_size))
    columns = b.plain_room((f.chunk * f.reduction * f.width,), p.dtype)
    tile = im2col.Im2col(im2col.step_of(stride[2]), spec.padding_mode == "zeros", p.element)
    channels = spec.in_channels // spec.groups
    common = {
        "x": x.ref, "columns": columns.ref, "panels": f.panels, "channels": channels, "width": f.width,
        "slices": b.static(deep.sources), "rows": b.static(high.sources), "cols": b.static(wide.sources),
        "positions": f.positions, "out_rows": out_size[1], "out_cols": out_size[2],
        "x_channel": math.prod(size), "x_slice": size[1] * size[2], "x_row": size[2],
        "taps_deep": kernel[0], "taps_high": kernel[1], "taps_wide": kernel[2],
        "slice_step": stride[0], "row_step": stride[1], "col_step": stride[2],
        "slice_gap": dilation[0], "row_gap": dilation[1], "col_gap": dilation[2], "col_low": wide.low,
    }  # fmt: skip
    for first in range(0, total, f.chunk):
        here = min(f.chunk, total - first)
        why = f"columns {first * f.width} to {(first + here) * f.width} of {total * f.width}"
        b.step(tile.name(b.target), im2col, tile, {**common, "first": first}, here * channels, [x], [columns], why)
        macs = p.macs * (first + here) // total - p.macs * first // total
        ends = (w, columns.ref, bias, y.ref)
        _multiply(b, p, f, ends, ([columns], [y]), (first, here), layer.epilogue, macs)


def _lower_transposed(
    b: Builder, layer: Layer, p: Problem, f: Product, x: Value, y: Value, w: Ref, bias: Ref
) -> None:  # fmt: skip
    spec, images, width = p.spec, _images_at_a_time(p), np.dtype(p.dtype).itemsize
    pads = spec.pads(p.size)
    deep, high, wide = _three(axis_of(spec, pads, axis, p.size[axis], p.out_size[axis]) for axis in range(spec.rank))
    kernel = (1, 1, *spec.kernel)[-3:]
    size, out_size = ((1, 1, *values)[-3:] for values in (p.size, p.out_size))
    columns = b.plain_room((images * spec.groups * f.outs * f.positions,), p.dtype)
    nothing = b.static(np.zeros(spec.groups * f.outs, p.dtype))
    step = len(wide.phases) if im2col.step_of(len(wide.phases)) else 0
    tile = col2im.Col2im(step, p.element, layer.epilogue)
    tables: dict[str, Any] = {"slices": b.static(deep.sources), "rows": b.static(high.sources)}
    for name, axis in (("deep", deep), ("high", high), ("wide", wide)):
        firsts = np.cumsum([0, *(len(taps) for taps in axis.phases)])
        entries = np.array([pair for taps in axis.phases for pair in taps], np.int64).reshape(-1)
        tables |= {f"{name}_first": b.static(firsts.astype(np.int64)), f"{name}_taps": b.static(entries)}
    common = {
        "columns": columns.ref, "bias": bias, **tables, "all_channels": spec.out_channels,
        "out_slices": out_size[0], "out_rows": out_size[1], "out_cols": out_size[2],
        "slice_step": len(deep.phases), "row_step": len(high.phases), "col_step": len(wide.phases),
        "taps": math.prod(kernel), "taps_high": kernel[1], "taps_wide": kernel[2], "positions": f.positions,
        "x_slice": size[1] * size[2], "x_row": size[2], "col_low": wide.low,
    }  # fmt: skip
    for first in range(0, p.batch, images):
        here = min(images, p.batch - first)
        panels = here * spec.groups * f.panels
        x_image, y_image = (math.prod(value.shape[1:]) * width for value in (x, y))
        ends = (w, Ref(x.buffer, x.offset + first * x_image), nothing, columns.ref)
        _multiply(b, p, f, ends, ([x], [columns]), (0, panels), (), p.macs * here // p.batch)
        items = here * spec.out_channels * out_size[0] * out_size[1]
        arguments = {**common, "y": Ref(y.buffer, y.offset + first * y_image)}
        why = f"columns of {here} images added up"
        b.step(tile.name(b.target), col2im, tile, arguments, items, [columns], [y], why)


def _three(axes: Any) -> tuple[Axis, Axis, Axis]:
    """An axis of one element before those that there are, up to three."""
    own = list(axes)
    single = Axis(1, 1, np.zeros(1, np.int64), (((0, 0),),), 0)
    padded = [single] * (3 - len(own)) + own
    return padded[0], padded[1], padded[2]


ROW = Algorithm(
    "im2col", "gemm", False, _why_not, _cycles, direct.multiplications, _workspace, direct.error_in_pieces, _lower,
    shuffles=True,
)  # fmt: skip
