"""Direct convolution on row-major tensors: the tables that say what a convolution is to `kernels.planar`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product

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

_SCRATCH_BYTES = 256 * 1024  # a strip of the input: with its results a part of the second-level cache
_OUTS = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis as the kernel sees it.

    - `grid`: outputs of one phase. `step`: the distance, in padded inputs, from one to the next.
    - `sources`: for each padded input the element that it holds, -1 for a zero.
    - `phases`: for each phase of a transposed convolution (else one), its taps as (tap, padded input of output 0).
    - `shift`: output `o` is element `(o + shift) // phases` of phase `(o + shift) % phases`.
    """

    grid: int
    step: int
    sources: np.ndarray = field(repr=False, compare=False)
    phases: tuple[tuple[tuple[int, int], ...], ...]
    shift: int

    @property
    def reach(self) -> int:
        """Padded inputs from an output's first to its last."""
        return max((at for taps in self.phases for _, at in taps), default=0)


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
        return Axis(out, stride, sources[: (out - 1) * stride + taps[-1][1] + 1], (taps,), 0)
    first, last = low // stride, (out - 1 + low) // stride  # positions of the undivided grid where outputs lie
    steps = [[(weight_of[t], t * dilation // stride) for t in kernel if t * dilation % stride == phase]
             for phase in range(stride)]  # fmt: skip
    most = max(back for taps in steps for _, back in taps)
    phases = tuple(tuple((tap, most - back) for tap, back in taps) for taps in steps)
    grid = last - first + 1
    sources = np.arange(grid + most) - most + first
    sources[(sources < 0) | (sources >= size)] = -1
    return Axis(grid, 1, sources, phases, low % stride)


@dataclass(frozen=True, slots=True)
class Form:
    """A problem as the kernel sees it: three axes, channels of a group, and the tile with its strip."""

    axes: tuple[Axis, Axis, Axis]
    groups: int
    channels: int
    out_channels: int
    tile: planar.PlanarTile
    strip_rows: int
    parts: int
    cycles: float

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
        return self.phase_rows * self.pitch

    @property
    def slots(self) -> int:
        return max(len(taps) for taps in self.axes[0].phases)

    @property
    def slice(self) -> int:
        return self.axes[1].step * self.axes[2].step * self.plane

    @property
    def channel(self) -> int:
        return self.slots * self.slice

    def out_plane(self, v: int) -> int:
        """Elements of one phase of one channel's results in scratch."""
        slack = (self.tile.cols + 1) * v  # a flat strip's last tile, and reading a row's end, go beyond
        return self.strip_rows * self.pitch + slack if self.tile.staged_output else 0

    def out_at(self, v: int) -> int:
        """Where results begin; before them a flat tile reads beyond the strip."""
        return self.channels * self.channel + (self.tile.cols + 1) * v

    def scratch(self, v: int) -> int:
        """Elements of scratch of one thread, in whole cache lines."""
        phases = len(self.axes[1].phases) * len(self.axes[2].phases)
        total = self.out_at(v) + phases * self.tile.outs * self.out_plane(v) + v
        return -(-total // 16) * 16


@lru_cache(maxsize=1024)
def form_of(p: Problem) -> Form:
    """The tile and strip of least estimated time."""
    spec = p.spec
    pads, out_size = spec.pads(p.size), p.out_size
    own = [axis_of(spec, pads, axis, p.size[axis], out_size[axis]) for axis in range(spec.rank)]
    single = Axis(1, 1, np.zeros(1, np.int64), (((0, 0),),), 0)
    deep, high, wide = (*[single] * (3 - spec.rank), *own)
    channels, out_channels = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    v = lanes(p.target, p.element)
    axes = (deep, high, wide)
    in_step = wide.step if wide.step <= planar.MOST_STEPS else 0
    out_step = len(wide.phases) if len(wide.phases) <= planar.MOST_STEPS else 0
    # Phases of a transposed convolution may have no tap at all.
    one_tap = all(len(taps) == 1 for axis in axes for taps in axis.phases)
    best: Form | None = None
    for outs, rows, cols, flat in _tiles(p.target, v, out_channels, high.grid, wide.grid):
        tile = planar.PlanarTile(outs, rows, cols, flat, in_step, out_step, one_tap, spec.transposed, p.element)
        draft = Form(axes, spec.groups, channels, out_channels, tile, 1, 1, 0.0)
        strip = _strip_rows(p, draft)
        if not flat and strip < rows:
            continue
        for parts in _parts(p, draft, strip):
            found = _estimate(p, Form(axes, spec.groups, channels, out_channels, tile, strip, parts, 0.0), v)
            if best is None or found.cycles < best.cycles:
                best = found
    assert best is not None
    return best


def _tiles(target: Target, v: int, out_channels: int, high: int, wide: int) -> list[tuple[int, int, int, bool]]:
    """(outs, rows, cols, flat) of the register tiles worth considering."""
    found = []
    for outs in _OUTS:
        if outs > out_channels:
            break
        free = target.registers - outs - (2 if target.has_fma else 3)  # factors, an input, a product
        most = max(1, min(free // outs, 16))
        found += [(outs, 1, cols, True) for cols in range(1, most + 1)]
        for rows in range(1, min(high, most, 4) + 1):
            found += [(outs, rows, cols, False) for cols in range(1, min(most // rows, wide // v) + 1)]
    return found


def _strip_rows(p: Problem, form: Form) -> int:
    """Rows that fit the budget, evened out so that the threads' shares are alike."""
    high = form.axes[1]
    width = np.dtype(p.dtype).itemsize
    row = form.channels * form.slots * form.axes[2].step * form.pitch * high.step * width
    row += len(form.axes[2].phases) * len(high.phases) * form.tile.outs * form.pitch * width * form.tile.staged_output
    fits = max(1, _SCRATCH_BYTES // row - high.reach // high.step)
    others = p.batch * form.groups * (p.out_size[0] if p.spec.rank == 3 else 1)
    strips = -(-high.grid // min(fits, high.grid))
    if others < 4 * p.threads:
        strips = min(high.grid, -(-strips // p.threads) * p.threads)
    return -(-high.grid // strips)


def _parts(p: Problem, form: Form, strip: int) -> set[int]:
    """Into how many parts the output channels of a group may be cut."""
    tiles = -(-form.out_channels // form.tile.outs)
    return {1, min(p.threads, tiles)}


def _estimate(p: Problem, form: Form, v: int) -> Form:
    """The form with its estimated cycles on each thread."""
    tile, (deep, high, wide) = form.tile, form.axes
    vectors = tile.rows * tile.cols
    k_tiles = -(-form.out_channels // tile.outs)
    if tile.flat:
        pieces = -(-((form.strip_rows - 1) * form.pitch + wide.grid) // (tile.cols * v))
    else:
        pieces = -(-form.strip_rows // tile.rows) * -(-wide.grid // (tile.cols * v))
    phases = len(high.phases) * len(wide.phases)
    taps = math.prod(p.spec.kernel) / (phases * len(deep.phases))
    multiply_adds, loads = vectors * tile.outs, vectors * 1.5 + tile.outs * 0.5
    step = max(multiply_adds, loads, 4.0 if multiply_adds < 8 else 0.0) / 1.0 + 1.0
    sums = pieces * phases * (form.channels * taps * step + 3.0 * vectors * tile.outs + 25.0)
    leave = form.strip_rows * phases * (2.0 * -(-wide.grid // v) + 12.0) * tile.outs if tile.staged_output else 0.0
    stage_rows = (form.strip_rows - 1) * high.step + high.reach + 1
    pitch = form.pitch
    stage_row = 2.5 * -(-pitch // v) * wide.step + 20.0 + (2.0 * pitch * wide.step if not tile.in_step else 0.0)
    stage_row += 2.5 * (pitch - min(pitch, len(wide.sources) // wide.step)) + 3.0 * wide.reach / wide.step
    stage = form.channels * form.slots * stage_rows * stage_row
    strips = -(-high.grid // form.strip_rows)
    slices = p.out_size[0] if p.spec.rank == 3 else 1
    items = p.batch * form.groups * slices * strips * form.parts
    share = -(-items // p.threads)
    cycles = share * (stage + -(-k_tiles // form.parts) * (sums + leave) + 150.0)
    return replace(form, cycles=cycles)


# -- the algorithm's row -----------------------------------------------------------------------------------------------


def _why_not(p: Problem) -> str | None:
    if p.residual:
        return "adds no residual"
    return None


def _cycles(p: Problem) -> float:
    return form_of(p).cycles


def _workspace(p: Problem) -> int:
    return p.threads * form_of(p).scratch(lanes(p.target, p.element)) * np.dtype(p.dtype).itemsize


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    form, spec, node = form_of(p), p.spec, layer.node
    v = lanes(p.target, p.element)
    deep, high, wide = form.axes
    x, y = b.plain(node.inputs[0]), b.new_plain(layer.output)
    tile = replace(form.tile, epilogue=layer.epilogue)
    phases, taps, places = _tables(form)
    key = ("planar", tile.outs, spec)
    packed = b.weights.derived(node.inputs[1], key, lambda weight: _pack(weight, p, form, places))
    bias = b.constant(node.input(2)) if node.input(2) else np.zeros(spec.out_channels, p.dtype)
    body_start, body_stop = _body(wide, form.pitch)
    cols = np.full(form.pitch * wide.step, -1, np.int64)
    cols[: min(len(wide.sources), len(cols))] = wide.sources[: len(cols)]
    size, out_size = (1, 1, *p.size)[-3:], (1, 1, *p.out_size)[-3:]
    strips = -(-high.grid // form.strip_rows)
    k_tiles = -(-form.out_channels // tile.outs)
    scratch_thread = form.scratch(v)
    scratch = Buffer(x.dtype.itemsize * scratch_thread * b.threads)
    arguments = {
        "x": x.ref, "w": b.static(packed), "bias": b.static(np.ascontiguousarray(bias, p.dtype)), "y": y.ref,
        "scratch": Ref(scratch), "taps": b.static(taps), "phases": b.static(phases),
        "slices": b.static(_slices(deep, out_size[0], form.slots)), "rows": b.static(high.sources),
        "cols": b.static(cols),
        "groups": form.groups, "parts": form.parts, "out_slices": out_size[0], "strips": strips,
        "strip_rows": form.strip_rows, "grid_rows": high.grid, "grid_cols": wide.grid,
        "out_rows": out_size[1], "out_cols": out_size[2],
        "x_image": spec.in_channels * math.prod(size), "x_channel": math.prod(size),
        "x_slice": size[1] * size[2], "x_row": size[2],
        "y_image": spec.out_channels * math.prod(out_size), "y_channel": math.prod(out_size),
        "y_slice": out_size[1] * out_size[2],
        "channels": form.channels, "out_channels": form.out_channels, "slots": form.slots,
        "stage_rows": (form.strip_rows - 1) * high.step + high.reach + 1, "row_step": high.step,
        "pitch": form.pitch, "plane": form.plane, "slice": form.slice, "channel": form.channel,
        "col_step": wide.step, "body_start": body_start, "body_stop": body_stop,
        "k_tiles": k_tiles, "part_tiles": -(-k_tiles // form.parts),
        "phase_rows": len(high.phases), "phase_cols": len(wide.phases),
        "row_shift": high.shift, "col_shift": wide.shift,
        "out_at": form.out_at(v), "out_plane": form.out_plane(v), "scratch_thread": scratch_thread,
    }  # fmt: skip
    items = p.batch * form.groups * form.parts * out_size[0] * strips
    why = f"on planes: {tile.outs} channels by {tile.rows * tile.cols} vectors{', flat' * tile.flat}"
    b.step(tile.name(b.target), planar, tile, arguments, items, [x], [y], why, p.macs)
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))


def _body(wide: Axis, pitch: int) -> tuple[int, int]:
    """The places of a row, first and last + 1, whose padded inputs all phases read one after another."""
    sources = wide.sources
    inside = np.zeros(pitch, bool)
    for place in range(pitch):
        own = sources[place * wide.step : (place + 1) * wide.step]
        inside[place] = len(own) == wide.step and own[0] >= 0 and bool((np.diff(own) == 1).all())
    starts = sources[:: wide.step]
    best, start = (0, 0), 0
    for place in range(pitch + 1):
        goes_on = place < pitch and inside[place] and (place == start or starts[place] == starts[place - 1] + wide.step)
        if not goes_on:
            best = max(best, (start, place), key=lambda pair: pair[1] - pair[0])
            start = place if place < pitch and inside[place] else place + 1
    return best


def _slices(deep: Axis, out: int, slots: int) -> np.ndarray:
    """A row an output slice: its phase, then the source of each of its taps, -1 for zeros and where there is none."""
    table = np.full((out, 1 + slots), -1, np.int64)
    for slice_number in range(out):
        place, phase = divmod(slice_number + deep.shift, len(deep.phases))
        table[slice_number, 0] = phase
        for slot, (_, at) in enumerate(deep.phases[phase]):
            table[slice_number, 1 + slot] = deep.sources[place * deep.step + at]
    return table


def _tables(form: Form) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The table of phases, that of taps, and for each phase the (depth, height, width) of its taps in the weights."""
    (deep, high, wide), outs = form.axes, form.tile.outs
    tiles = -(-form.out_channels // outs)
    phases: list[tuple[int, int, int]] = []
    taps: list[int] = []
    places, w_at = [], 0
    for d_taps, h_taps, w_taps in product(deep.phases, high.phases, wide.phases):
        of_phase = list(product(enumerate(d_taps), h_taps, w_taps))
        phases.append((len(of_phase), len(taps), w_at))
        for (slot, _), (_, row), (_, col) in of_phase:
            plane = row % high.step * wide.step + col % wide.step
            taps.append(slot * form.slice + plane * form.plane + row // high.step * form.pitch + col // wide.step)
        places.append(np.array([(d, h, w) for (_, (d, _)), (h, _), (w, _) in of_phase], np.int64).reshape(-1, 3))
        w_at += form.groups * tiles * form.channels * len(of_phase) * outs
    return np.array(phases, np.int64), np.array([*taps, 0], np.int64), places


def _pack(weight: np.ndarray, p: Problem, form: Form, places: list[np.ndarray]) -> np.ndarray:
    """``[phase][group][tile of outs][channel][tap][outs]``, one after another."""
    outs, groups = form.tile.outs, form.groups
    shaped = weight.reshape(groups, -1, weight.shape[1], *(1, 1, *p.spec.kernel)[-3:])
    if p.spec.transposed:  # [G][C/G][K/G] to [G][K/G][C/G]
        shaped = shaped.swapaxes(1, 2)
    starts = [min(tile * outs, form.out_channels - outs) for tile in range(-(-form.out_channels // outs))]
    chosen = np.array([range(start, start + outs) for start in starts])
    packed = []
    for of_phase in places:
        part = shaped[:, :, :, of_phase[:, 0], of_phase[:, 1], of_phase[:, 2]]  # [G][K/G][C/G][taps]
        packed.append(part[:, chosen].transpose(0, 1, 3, 4, 2).reshape(-1))
    return np.concatenate([*packed, np.zeros(1)]).astype(p.dtype)


ROW = Algorithm(
    "direct", "planes", False, _why_not, _cycles, direct.multiplications, _workspace, direct.error_of_sum, _lower
)
