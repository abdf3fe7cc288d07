"""Direct convolution on row-major tensors: the tables that say what a convolution is to `kernels.planar`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from convwright.codegen.lang import lanes
from convwright.codegen.target import Target
from convwright.kernels import planar
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import direct
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Buffer, Ref
from convwright.spec import ConvSpec
from convwright.spec.checks import Pads

_SCRATCH_BYTES = 384 * 1024  # a strip of the input: with its results a part of the second-level cache
_OUTS = (1, 2, 3, 4, 6, 8)
_FIRST_LEVEL_BYTES = 24 * 1024
_MASKS = 4  # of a row's vectors that are held while rows enter scratch
_TALLEST = 8  # taps of a column that a tall tile holds in registers
_ITEM_CYCLES = 20_000.0  # of work items, where there are enough groups: the item's own cost does not count then


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis as the kernel sees it.

    - `grid`: outputs of one phase. `step`: the distance, in padded inputs, from one to the next.
    - `sources`: for each padded input the element that it holds, -1 for a zero.
    - `phases`: for each phase of a transposed convolution (else one), its taps as (tap, padded input of output 0).
    - `low`: padded inputs before the first element.
    - `reach`: padded inputs from an output's first to its last.

    Output `o` is element `o // len(phases)` of phase `o % len(phases)`.
    """

    grid: int
    step: int
    sources: np.ndarray = field(repr=False, compare=False)
    phases: tuple[tuple[tuple[int, int], ...], ...]
    low: int
    reach: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reach", max((at for taps in self.phases for _, at in taps), default=0))

    def filled(self, run: int) -> Axis:
        """With taps that have no weight (-1) after the last, so that runs of ``run`` taps come out even."""
        (taps,) = self.phases
        missing = -len(taps) % run
        gap = taps[1][1] - taps[0][1] if len(taps) > 1 else 1
        more = tuple((-1, taps[-1][1] + gap * (number + 1)) for number in range(missing))
        sources = np.append(self.sources, np.full(missing * gap, -1, np.int64))
        return replace(self, sources=sources, phases=((*taps, *more),))


def axis_of(spec: ConvSpec, pads: Pads, axis: int, size: int, out: int) -> Axis:
    """One axis of a convolution over `size` elements that gives `out`."""
    stride, dilation, (low, high) = spec.stride[axis], spec.dilation[axis], pads[axis]
    kernel = range(spec.kernel[axis])
    weight_of = [spec.kernel[axis] - 1 - tap if spec.flip else tap for tap in kernel]
    if not spec.transposed:
        taps = tuple((weight_of[tap], tap * dilation) for tap in kernel)
        modes = {"zeros": ("constant", {"constant_values": -1}), "reflect": ("reflect", {}), "replicate": ("edge", {})}
        mode, options = modes.get(spec.padding_mode, ("wrap", {}))
        sources = np.pad(np.arange(size), (low, high), mode=mode, **options)  # type: ignore[call-overload]
        return Axis(out, stride, sources[: (out - 1) * stride + taps[-1][1] + 1], (taps,), low)
    # Output q * stride + phase is the sum over the taps for which (phase + low - tap * dilation) / stride is whole, of
    # the input that many elements after q.
    ahead = [[(weight_of[tap], (phase + low - tap * dilation) // stride) for tap in kernel
              if (phase + low - tap * dilation) % stride == 0] for phase in range(stride)]  # fmt: skip
    first = min(place for taps in ahead for _, place in taps)
    phases = tuple(tuple((tap, place - first) for tap, place in taps) for taps in ahead)
    grid = -(-out // stride)
    reach = max(place for taps in phases for _, place in taps)
    sources = np.arange(grid + reach) + first
    sources[(sources < 0) | (sources >= size)] = -1
    return Axis(grid, 1, sources, phases, -first)


@dataclass(frozen=True, slots=True)
class Form:
    """A problem as the kernel sees it: three axes, channels of a group, and the tile with its strip."""

    axes: tuple[Axis, Axis, Axis]
    groups: int
    channels: int
    out_channels: int
    tile: planar.PlanarTile
    v: int
    strip_slices: int = 1
    strip_rows: int = 1
    parts: int = 1
    chunk_groups: int = 1
    cycles: float = 0.0

    @property
    def pitch(self) -> int:
        """Elements of a row of one phase in scratch."""
        wide = self.axes[2]
        return wide.grid + wide.reach // wide.step

    @property
    def phase_rows(self) -> int:
        """Rows of one phase of a strip in scratch."""
        high = self.axes[1]
        return self.strip_rows + high.reach // high.step

    @property
    def plane(self) -> int:
        return self.phase_rows * self.pitch + self.v  # a row's last vector may spill

    @property
    def stage_slices(self) -> int:
        """Slices of a strip in scratch."""
        deep = self.axes[0]
        return (self.strip_slices - 1) * deep.step + deep.reach + 1

    @property
    def slice(self) -> int:
        return self.axes[1].step * self.axes[2].step * self.plane

    @property
    def channel(self) -> int:
        return self.stage_slices * self.slice

    @property
    def out_plane(self) -> int:
        """Elements of one phase of one channel's results in scratch."""
        slack = (self.tile.cols + 1) * self.v  # a flat strip's last tile, and reading a row's end, go beyond
        return self.strip_rows * self.pitch + slack if self.tile.staged_output else 0

    @property
    def out_at(self) -> int:
        """Where results begin; before them a flat tile reads beyond the strip."""
        return self.channels * self.channel + (self.tile.cols + 1) * self.v

    @property
    def scratch(self) -> int:
        """Elements of scratch of one thread, in whole cache lines."""
        phases = len(self.axes[1].phases) * len(self.axes[2].phases)
        total = self.out_at + phases * self.tile.outs * self.out_plane + self.v
        return -(-total // 16) * 16


def joined(p: Problem) -> Problem:
    """The same problem over one axis where each output is made of the input in its place, so that all are one row."""
    spec = p.spec
    apart = math.prod((*spec.kernel, *spec.stride)) > 1 or any(map(any, (*spec.pads(p.size), spec.output_padding)))
    if spec.rank == 1 or apart:
        return p
    one = ConvSpec(
        spec.in_channels, spec.out_channels, (1,), groups=spec.groups, bias=spec.bias, transposed=spec.transposed
    )
    return replace(p, spec=one, size=(math.prod(p.size),))


@lru_cache(maxsize=1024)
def form_of(p: Problem) -> Form:
    """The tile and strip of least estimated time; of a problem that is ``joined``."""
    spec = p.spec
    pads, out_size = spec.pads(p.size), p.out_size
    own = [axis_of(spec, pads, axis, p.size[axis], out_size[axis]) for axis in range(spec.rank)]
    single = Axis(1, 1, np.zeros(1, np.int64), (((0, 0),),), 0)
    deep, high, wide = (*[single] * (3 - spec.rank), *own)
    channels, out_channels = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    v = lanes(p.target, p.element)
    common: dict[str, Any] = {
        "in_step": wide.step if wide.step <= planar.MOST_STEPS else 0,
        "out_step": len(wide.phases) if len(wide.phases) <= planar.MOST_STEPS else 0,
        "zeros": spec.padding_mode == "zeros",
        "transposed": spec.transposed,
        "element": p.element,
    }
    single_tap = math.prod(spec.kernel) == 1 and not spec.transposed  # of whose phases most have none
    best, least = None, (math.inf, 1, 1)
    pieces = -(-(wide.grid + wide.reach // wide.step) // v)
    if not (common["zeros"] and 0 < pieces * common["in_step"] <= _MASKS):
        pieces = 0
    for run in _runs(spec, high):
        rows_axis = high.filled(run) if run else high
        column = tuple((at % high.step, at // high.step) for _, at in rows_axis.phases[0][:run]) if run else ()
        for outs, rows, cols, flat in _tiles(p.target, v, out_channels, high.grid, wide.grid, run):
            partial = not flat and cols * v > wide.grid
            tile = planar.PlanarTile(
                outs, rows, cols, flat, column=column, partial=partial, pieces=pieces,
                single=single_tap and not run, **common,
            )  # fmt: skip
            form = Form((deep, rows_axis, wide), spec.groups, channels, out_channels, tile, v)
            for cut in _strips(p, form):
                found = _estimate(p, cut) if cut.strip_rows >= rows else least
                if found[0] < least[0]:
                    best, least = cut, found
    assert best is not None
    cycles, parts, chunk_groups = least
    return replace(best, cycles=cycles, parts=parts, chunk_groups=chunk_groups)


def _runs(spec: ConvSpec, high: Axis) -> list[int]:
    """Taps of a column that a tall tile may take at once; 0: no tall tile."""
    taps = len(high.phases[0])
    if spec.transposed or taps == 1 or spec.out_channels // spec.groups > 2:
        return [0]
    if taps <= _TALLEST:
        return [0, taps]
    whole = [run for run in range(4, _TALLEST + 1) if run * spec.dilation[-2] % high.step == 0]
    return [0, *sorted(whole, key=lambda run: (-taps % run, -run))[:2]]


def _tiles(
    target: Target, v: int, out_channels: int, high: int, wide: int, run: int
) -> list[tuple[int, int, int, bool]]:
    """(outs, rows, cols, flat) of the register tiles worth considering."""
    found = []
    full = -(-wide // v)
    for outs in _OUTS:
        if outs > out_channels:
            break
        free = target.registers - outs * max(1, run) - (2 if target.has_fma else 3)  # factors, an input, a product
        most = max(1, min(free // outs, 24 if run else 16))
        if not run:
            found += [(outs, 1, cols, True) for cols in sorted({1, 2, 3, 4, 6, most // 2 or 1, most}) if cols <= most]
        for rows in range(1, min(high, most, 8 if run else 4) + 1):
            cols = min(most // rows, full)
            found += [(outs, rows, width, False) for width in sorted({cols, -(-full // -(-full // cols))})]
    return found


def _strips(p: Problem, form: Form) -> Iterator[Form]:
    """With as many rows, then slices, as fit the budget, or a few rows less; the threads' shares alike."""
    deep, high, wide = form.axes
    width = np.dtype(p.dtype).itemsize
    row = form.channels * wide.step * form.pitch * high.step * width
    result_row = len(wide.phases) * len(high.phases) * form.tile.outs * form.pitch * width * form.tile.staged_output
    fits = max(1, _SCRATCH_BYTES // (row * (deep.reach + 1) + result_row) - high.reach // high.step)
    strips = -(-high.grid // min(fits, high.grid))
    others = p.batch * form.groups * deep.grid
    if others < 4 * p.threads:
        strips = min(high.grid, -(-strips // p.threads) * p.threads)
    step = p.threads if others < 4 * p.threads else 1
    for count in sorted({min(strips + more * step, high.grid) for more in range(3 if form.tile.flat else 1)}):
        cut = replace(form, strip_rows=-(-high.grid // count))
        fits = max(1, (_SCRATCH_BYTES - result_row * cut.strip_rows) // (cut.channels * cut.slice * width))
        slices = max(1, min(deep.grid, (fits - deep.reach - 1) // deep.step + 1))
        while slices > 1 and p.batch * form.groups * count * -(-deep.grid // slices) < 4 * p.threads:
            slices -= 1
        yield cut if slices == 1 else replace(cut, strip_slices=-(-deep.grid // -(-deep.grid // slices)))


def _estimate(p: Problem, form: Form) -> tuple[float, int, int]:
    """The estimated cycles on each thread, two multiply-adds a cycle; and the division of the work: `parts` and
    `chunk_groups`."""
    tile, v, (deep, high, wide) = form.tile, form.v, form.axes
    vectors = tile.rows * tile.cols
    k_tiles = -(-form.out_channels // tile.outs)
    if tile.flat:
        pieces = -(-((form.strip_rows - 1) * form.pitch + wide.grid) // (tile.cols * v))
    else:
        pieces = -(-form.strip_rows // tile.rows) * -(-wide.grid // (tile.cols * v))
    phases = len(high.phases) * len(wide.phases)
    taps = math.prod(sum(map(len, axis.phases)) / len(axis.phases) for axis in form.axes)
    run = len(tile.column) or 1
    inputs = tile.cols * len({(plane, row + out) for plane, row in tile.column for out in range(tile.rows)}) or vectors
    far = form.channels * form.channel * np.dtype(p.dtype).itemsize > _FIRST_LEVEL_BYTES
    load = 1.4 if far else 0.9  # cycles of a vector that two lines share, from the second-level cache or the first
    multiply_adds, loads = vectors * tile.outs * run / 2, inputs * load + tile.outs * run * 0.5
    step = max(multiply_adds, loads, 4.0 if vectors * tile.outs < 8 else 0.0) + 1.0
    sums = pieces * phases * (form.channels * taps / run * step + 2.0 * vectors * tile.outs + 20.0)
    leave = form.strip_rows * phases * (2.0 * -(-wide.grid // v) + 12.0) * tile.outs if tile.staged_output else 0.0
    stage_rows = (form.strip_rows - 1) * high.step + high.reach + 1
    pieces_of_row = -(-form.pitch // v) * wide.step
    stage_row = (2.0 if tile.pieces else 3.5) * pieces_of_row * max(1, wide.step - 1) + 8.0
    if not tile.in_step or not tile.zeros:
        stage_row += 3.0 * (form.pitch * wide.step if not tile.in_step else wide.reach + v)
    stage = form.channels * form.stage_slices * stage_rows * stage_row
    slices = form.strip_slices * len(deep.phases)
    others = p.batch * -(-deep.grid // form.strip_slices) * -(-high.grid // form.strip_rows)
    best = (math.inf, 1, 1)
    for parts in sorted({1, min(p.threads, k_tiles)}):
        group = stage + -(-k_tiles // parts) * slices * (sums + leave) + 15.0
        items = others * parts
        chunk = max(1, min(int(_ITEM_CYCLES // group), form.groups * items // (4 * p.threads)))
        items *= -(-form.groups // chunk)
        cycles = -(-items // p.threads) * (min(chunk, form.groups) * group + 150.0)
        best = min(best, (cycles, parts, chunk))
    return best


# -- the algorithm's row -----------------------------------------------------------------------------------------------


def _why_not(p: Problem) -> str | None:
    if p.residual:
        return "adds no residual"
    return None


def _cycles(p: Problem) -> float:
    return form_of(joined(p)).cycles


def _least_cycles(p: Problem) -> float:
    """Of the multiply-adds alone; those of a transposed convolution that meet no output are not subtracted."""
    return 0.0 if p.spec.transposed else p.macs / (2 * lanes(p.target, p.element) * p.threads)


def _workspace(p: Problem) -> int:
    return p.threads * form_of(joined(p)).scratch * np.dtype(p.dtype).itemsize


def _error_bound(p: Problem) -> float:
    """The taps of a channel stay together."""
    return direct.error_in_pieces(p, direct.terms_of(p) // (p.spec.in_channels // p.spec.groups))


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    p = joined(p)
    form, spec, node = form_of(p), p.spec, layer.node
    deep, high, wide = form.axes
    x, y = b.plain(node.inputs[0]), b.new_plain(layer.output)
    tile = replace(
        form.tile, in_pieces=direct.in_pieces(p.numerics, direct.terms_of(p), p.element), epilogue=layer.epilogue
    )
    phases, taps, places = tables(form)
    key = ("planar", tile.outs, len(tile.column), spec)
    packed = b.weights.derived(
        node.inputs[1],
        key,
        lambda weight: _pack(weight, p, form, places),
        lambda packed: _unpack(packed, p, form, places),
    )
    bias = b.constant(node.input(2)) if node.input(2) else np.zeros(spec.out_channels, p.dtype)
    body_start, body_stop = body(form, p.size[-1])
    cols = np.full(form.pitch * wide.step, -1, np.int64)
    cols[: min(len(wide.sources), len(cols))] = wide.sources[: len(cols)]
    size, out_size = (1, 1, *p.size)[-3:], (1, 1, *p.out_size)[-3:]
    plane = math.prod(out_size)
    strips, slice_strips = -(-high.grid // form.strip_rows), -(-deep.grid // form.strip_slices)
    k_tiles = -(-form.out_channels // tile.outs)
    chunks = -(-form.groups // form.chunk_groups)
    scratch_thread = form.scratch
    scratch = Buffer(x.dtype.itemsize * scratch_thread * b.threads)
    arguments = {
        "x": x.ref, "w": b.static(packed), "bias": b.static(np.ascontiguousarray(bias, p.dtype)), "y": y.ref,
        "scratch": Ref(scratch), "taps": b.static(taps), "phases": b.static(phases),
        "slices": b.static(deep.sources), "rows": b.static(high.sources),
        "cols": b.static(cols),
        "groups": form.groups, "chunk_groups": form.chunk_groups, "chunks": chunks, "parts": form.parts,
        "slice_strips": slice_strips, "strip_slices": form.strip_slices, "strips": strips,
        "strip_rows": form.strip_rows, "grid_rows": high.grid, "grid_cols": wide.grid,
        "grid_slices": deep.grid, "out_slices": out_size[0],
        "out_rows": out_size[1], "out_cols": out_size[2],
        "x_image": x.image or spec.in_channels * math.prod(size), "x_channel": math.prod(size),
        "x_slice": size[1] * size[2], "x_row": size[2],
        "y_image": y.image or spec.out_channels * plane,
        "y_group": plane if p.shuffle else form.out_channels * plane,
        "y_channel": plane * form.groups if p.shuffle else plane,
        "y_slice": out_size[1] * out_size[2],
        "channels": form.channels, "out_channels": form.out_channels,
        "stage_slices": form.stage_slices, "slice_step": deep.step,
        "stage_rows": (form.strip_rows - 1) * high.step + high.reach + 1, "row_step": high.step,
        "pitch": form.pitch, "plane": form.plane, "slice": form.slice, "channel": form.channel,
        "col_step": wide.step, "col_low": wide.low, "body_start": body_start, "body_stop": body_stop,
        "k_tiles": k_tiles, "part_tiles": -(-k_tiles // form.parts),
        "phase_slices": len(deep.phases), "phase_rows": len(high.phases), "phase_cols": len(wide.phases),
        "out_at": form.out_at, "out_plane": form.out_plane, "scratch_thread": scratch_thread,
    }  # fmt: skip
    items = p.batch * chunks * form.parts * slice_strips * strips
    shape = "flat" if tile.flat else "tall" if tile.column else "rows"
    why = f"on planes: {tile.outs} channels by {tile.rows}x{tile.cols} vectors, {shape}"
    b.step(tile.name(b.target), planar, tile, arguments, items, [x], [y], why, p.macs)
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))


def body(form: Form, size: int) -> tuple[int, int]:
    """Where the whole vectors of a row begin and end that hold elements of the input alone."""
    wide, v = form.axes[2], form.v
    if not form.tile.in_step:
        return 0, 0
    start = -(-max(0, wide.low) // wide.step)
    if form.tile.zeros:
        start = -(-start // v) * v
    count = max(0, min(form.pitch, (size + wide.low) // wide.step) - start) // v
    return (start, start + count * v) if count else (0, 0)


def tables(form: Form) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The table of phases, that of taps, and for each phase the (depth, height, width) of its weights.

    A tall tile's taps are columns: the table has the first tap of each.
    """
    (deep, high, wide), outs, run = form.axes, form.tile.outs, len(form.tile.column) or 1
    tiles = -(-form.out_channels // outs)
    phases: list[tuple[int, int, int]] = []
    taps: list[int] = []
    places, w_at = [], 0
    for d_taps, h_taps, w_taps in product(deep.phases, high.phases, wide.phases):
        columns = [h_taps[first : first + run] for first in range(0, len(h_taps), run)]
        of_phase = list(product(d_taps, columns, w_taps))
        phases.append((len(of_phase), len(taps), w_at))
        for (_, slot), ((_, row), *_), (_, col) in of_phase:
            plane = row % high.step * wide.step + col % wide.step
            taps.append(slot * form.slice + plane * form.plane + row // high.step * form.pitch + col // wide.step)
        of_taps = [(d, h, w) for (d, _), column, (w, _) in of_phase for h, _ in column]
        places.append(np.array(of_taps, np.int64).reshape(-1, 3))
        w_at += form.groups * tiles * form.channels * len(of_taps) * outs
    return np.array(phases, np.int64), np.array([*taps, 0], np.int64), places


def _by_group(weight: np.ndarray, p: Problem) -> np.ndarray:
    """A view ``[G][K/G][C/G][depth][height][width]`` of weights in row-major order."""
    shaped = weight.reshape(p.spec.groups, -1, weight.shape[1], *(1, 1, *p.spec.kernel)[-3:])
    return shaped.swapaxes(1, 2) if p.spec.transposed else shaped


def _outs_of_tiles(form: Form) -> np.ndarray:
    """``[tile][outs]``: a group's output channels, the last tile moved back inside."""
    outs = form.tile.outs
    starts = [min(tile * outs, form.out_channels - outs) for tile in range(-(-form.out_channels // outs))]
    return np.array([range(start, start + outs) for start in starts])


def _pack(weight: np.ndarray, p: Problem, form: Form, places: list[np.ndarray]) -> np.ndarray:
    """``[phase][group][tile of outs][channel][tap][outs]``, one after another."""
    shaped, chosen, packed = _by_group(weight, p), _outs_of_tiles(form), []
    for of_phase in places:
        part = shaped[:, :, :, of_phase[:, 0], of_phase[:, 1], of_phase[:, 2]]  # [G][K/G][C/G][taps]
        part = np.where(of_phase[:, 1] < 0, 0, part)
        packed.append(part[:, chosen].transpose(0, 1, 3, 4, 2).reshape(-1))
    return np.concatenate([*packed, np.zeros(1)]).astype(p.dtype)


def _unpack(packed: np.ndarray, p: Problem, form: Form, places: list[np.ndarray]) -> np.ndarray:
    """The weights in row-major order, of what ``_pack`` gave."""
    weight = np.empty(p.spec.weight_shape, packed.dtype)
    shaped, chosen, at = _by_group(weight, p), _outs_of_tiles(form), 0
    for of_phase in places:
        shape = (form.groups, *chosen.shape[:1], form.channels, len(of_phase), form.tile.outs)
        part = packed[at : at + math.prod(shape)].reshape(shape).transpose(0, 1, 4, 2, 3)
        at += math.prod(shape)
        real = np.flatnonzero(of_phase[:, 1] >= 0)
        for tile, outs in enumerate(chosen):
            for tap in real:
                depth, row, col = of_phase[tap]
                shaped[:, outs[0] : outs[-1] + 1, :, depth, row, col] = part[:, tile, :, :, tap]
    return weight


ROW = Algorithm(
    "direct", "planes", False, _why_not, _cycles, direct.multiplications, _workspace, _error_bound, _lower,
    shuffles=True, least_cycles=_least_cycles,
)  # fmt: skip
