"""Convolutions at stride 1 through Winograd's algorithm, where that is expected to be faster."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import winograd
from convwright.kernels.cook_toom import POINTS, filtering
from convwright.kernels.winograd import Axis, notation, operations, places_of
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import geometry_of
from convwright.model.lower import channels, direct, volumes
from convwright.model.problem import Algorithm, Problem
from convwright.model.tiles import most_pixels, step_cycles
from convwright.model.values import Buffer, Halo, Ref, Value, blocks_of
from convwright.runtime.machine import caches, multiply_adds_a_cycle

_MEMORY_BYTES_A_CYCLE = 5.5  # measured read bandwidth of one core at its clock
_CACHE_BYTES_A_CYCLE = 11.0  # read from the third level
_VOLUME_CYCLES = 3.0  # to pack or unpack a vector of a volume
_INSTRUCTIONS_A_CYCLE = 2.4  # of transforms: loads, stores, arithmetic
WORTH = 0.85  # the estimated time, as a part of direct summation's, below which the larger weights are worth it
ERROR = 1.2e-5
"""The largest `error_bound` of what is chosen without being named. Errors measured are 0.2 to 0.6 of the bound
(bench/winograd_points.py), so that they stay below the 1e-5 of the largest output that numerics="default" allows."""

_OUTPUTS = (2, 3, 4, 6)  # m to choose from
_LARGEST = max(POINTS) + 1  # m + r - 1
_UNIT = (1, 1, 1)


@dataclass(frozen=True, slots=True)
class Form:
    """A problem as the kernel sees it: the taps of one axis join the sum, two are transformed.

    - `high`, `wide`: m and r of the transformed axes, (1, 1) where there is none.
    - `phases`: dilation of these axes; `out_size`: their outputs.
    - `deep_taps`, `deep_step`, `out_slices`: taps, dilation and outputs of the axis that joins the sum.
    - `joined`: which axis that is, counted from the last: 2 is depth, 1 the rows, 0 the columns.
    """

    high: Axis
    wide: Axis
    phases: tuple[int, int]
    out_size: tuple[int, int]
    deep_taps: int = 1
    deep_step: int = 1
    out_slices: int = 1
    joined: int = 2

    @property
    def growth(self) -> float:
        """Of rounding errors, against direct summation."""
        return max(1.0, filtering(*self.high).growth * filtering(*self.wide).growth)

    @property
    def places(self) -> int:
        return places_of(self.high, self.wide)

    @property
    def tiles(self) -> int:
        """Of one slice."""
        counts = [
            sum(-(-rows // m) for rows in _rows_of_phases(out, phases))
            for out, phases, (m, _) in zip(self.out_size, self.phases, (self.high, self.wide), strict=True)
        ]
        return counts[0] * counts[1]

    @property
    def reach(self) -> list[int]:
        """Padded inputs that are read along each of the transformed axes."""
        reach = []
        for out, phases, (m, r) in zip(self.out_size, self.phases, (self.high, self.wide), strict=True):
            rows = _rows_of_phases(out, phases)
            reach.append(max(phase + (max(count, m) + r - 2) * phases + 1 for phase, count in enumerate(rows)))
        return reach


def _rows_of_phases(out: int, phases: int) -> list[int]:
    """The outputs of each phase; where there are more phases than outputs, only those that have one."""
    return [-(-(out - phase) // phases) for phase in range(min(phases, out))]


@dataclass(frozen=True, slots=True)
class Cut:
    """How the work is divided: see ``kernels.winograd``. ``cycles``: estimated, on each of the threads."""

    form: Form
    tiles: int
    outs: int
    strip: int
    strips: int
    chunk: int = 1
    parts: int = 1
    cycles: float = 0.0

    @property
    def chunks(self) -> int:
        return -(-self.form.out_slices // self.chunk)

    @property
    def in_slices(self) -> int:
        return self.chunk + (self.form.deep_taps - 1) * self.form.deep_step


# -- what can be computed, and how -------------------------------------------------------------------------------------


def why_not(p: Problem) -> str | None:
    """Why Winograd's algorithm cannot compute this problem; None where it can."""
    spec = p.spec
    if p.element != "f32":
        return f"its channel blocks hold float32, not {p.dtype}"
    if spec.transposed:
        return "transposed"
    if spec.flip or spec.padding_mode != "zeros":
        return f"flip {spec.flip}, padding_mode {spec.padding_mode!r}"
    if p.numerics == "strict":
        return "numerics is strict"
    if max(spec.stride) > 1:
        return f"stride {spec.stride}: outputs that are not neighbours share no products"
    if spec.groups > 1 and (spec.in_channels // spec.groups % p.target.vector or
                            spec.out_channels // spec.groups % p.target.vector):  # fmt: skip
        own = f"{spec.in_channels} to {spec.out_channels} channels in {spec.groups} groups"
        return f"{own}: groups must fill vectors of {p.target.vector} channels"
    forms = forms_of(p)
    return forms if isinstance(forms, str) else None


@lru_cache(maxsize=4096)
def forms_of(p: Problem) -> tuple[Form, ...] | str:
    """The forms that a problem may take: those named, or those whose errors stay small; a sentence if there is none."""
    spec = p.spec
    kernel, out, dilation = ((*_UNIT, *axes)[-3:] for axes in (spec.kernel, p.out_size, spec.dilation))
    most = [-(-out[axis] // dilation[axis]) if kernel[axis] > 1 else 1 for axis in (1, 2)]  # outputs of a phase
    wish, _, option = p.algorithm.partition("-")
    if wish == "winograd" and option:
        named = _named(option, spec.kernel)
        if isinstance(named, str):
            return named
        if any(m > limit for m, limit in zip(named, most, strict=True)):
            return f"the output {p.out_size}, or one of its phases, is smaller than a tile of {option}"
        form = _form(kernel, out, dilation, named, spec.rank)
        return (form,) if isinstance(form, Form) else form
    found: dict[Form, None] = {}
    for m in _OUTPUTS:
        form = _form(kernel, out, dilation, (min(m, most[0]), min(m, most[1])), spec.rank)
        if isinstance(form, Form) and form.growth * direct.error_of_sum(p) <= max(ERROR, direct.error_of_sum(p)):
            found[form] = None
    shape = f"kernel {spec.kernel} with dilation {spec.dilation} and output {p.out_size}"
    return tuple(found) or f"{shape}: no tile saves multiplications within the error allowed"


def _named(option: str, kernel: tuple[int, ...]) -> tuple[int, int] | str:
    """m of the last two axes from "4x4" or "2"; a sentence where that says something else."""
    parts = option.split("x")
    if not all(part.isdecimal() and int(part) for part in parts):
        return f"winograd-{option}: name the outputs of a tile, as in winograd-4x4"
    sizes = [int(part) for part in parts]
    taps = (1, *kernel)[-2:]
    if len(sizes) == 1:
        return tuple(sizes[0] if r > 1 else 1 for r in taps)  # type: ignore[return-value]
    if len(sizes) > len(kernel) or any(size > 1 for size in sizes[:-2]):
        return f"winograd-{option}: a kernel {kernel} has tiles of {min(len(kernel), 2)} axes"
    return tuple(m if r > 1 else 1 for m, r in zip(sizes[-2:], taps, strict=True))  # type: ignore[return-value]


def _form(
    kernel: tuple[int, ...], out: tuple[int, ...], dilation: tuple[int, ...], m: tuple[int, int], rank: int
) -> Form | str:
    """The form with m outputs on each axis, one of them summed where m is 1; a sentence where there is none."""
    summed = [axis for axis in (1, 2) if m[axis - 1] == 1 and kernel[axis] > 1]
    if max(m) == 1:
        return f"kernel {kernel[3 - rank :]}: tiles of one output save nothing"
    if rank == 3 and summed:
        return "of three axes depth alone can be summed directly"
    axes: list[Axis] = [(m[axis - 1], kernel[axis]) for axis in (1, 2)]
    if max(map(sum, axes)) - 1 > _LARGEST:
        return f"{notation(*axes)}: no points for tiles of more than {_LARGEST} inputs"
    joined = summed[0] if summed else 0
    phases, size = list(dilation[1:]), list(out[1:])
    for axis in (1, 2):
        if kernel[axis] == 1 or axis == joined:
            phases[axis - 1] = 1
        if axis == joined:
            axes[axis - 1], size[axis - 1] = (1, 1), 1
    return Form(
        axes[0], axes[1], (phases[0], phases[1]), (size[0], size[1]),
        kernel[joined], dilation[joined], out[joined], 2 - joined,
    )  # fmt: skip


# -- how the work is cut -----------------------------------------------------------------------------------------------


def strip_bytes() -> int:
    """Room for the transformed inputs of an item: half of the second-level cache."""
    return caches().l2 // 2


@lru_cache(maxsize=4096)
def cut(p: Problem) -> Cut:
    """The form and the division of the work with the least estimated time."""
    forms = forms_of(p)
    assert not isinstance(forms, str)
    return min((found for form in forms for found in cuts(p, form)), key=lambda found: found.cycles)


def cuts(p: Problem, form: Form) -> list[Cut]:
    v, spec = p.target.vector, p.spec
    blocks, vectors = (blocks_of(number // spec.groups, v) for number in (spec.in_channels, spec.out_channels))
    found, all_tiles = [], form.tiles
    for chunk in {-(-form.out_slices // pieces) for pieces in (1, 2, 4)}:
        in_slices = chunk + (form.deep_taps - 1) * form.deep_step
        largest = max(1, strip_bytes() // (4 * form.places * v * blocks * in_slices))
        others = -(-form.out_slices // chunk) * p.batch * spec.groups
        fewest = -(-all_tiles // largest)
        for strips in {fewest, -(-fewest * others // p.threads) * p.threads // others or 1}:
            strip = -(-all_tiles // min(strips, all_tiles))
            tiles, outs = _register_tile(chunk * strip, vectors, p.target)
            for parts in {1, min(p.threads, -(-vectors // outs))}:
                made = Cut(form, tiles, outs, strip, -(-all_tiles // strip), chunk, parts)
                found.append(replace(made, cycles=_estimate(p, made, blocks, vectors)))
    return found


def _register_tile(count: int, vectors: int, target: Target) -> tuple[int, int]:
    """Tiles and vectors that are summed together, the turns over ``count`` tiles even."""
    best, least = (1, 1), float("inf")
    for outs in (outs for outs in (1, 2, 4) if outs <= vectors):
        turns = -(-count // most_pixels(outs, target))
        tiles = -(-count // turns)
        cycles = turns * -(-vectors // outs) * step_cycles(tiles, outs)
        if cycles < least:
            best, least = (tiles, outs), cycles
    return best


@lru_cache(maxsize=256)
def _transform_cycles(high: Axis, wide: Axis) -> tuple[float, float]:
    """Of one vector of a tile: inputs, and outputs."""
    found = []
    for name in ("bt", "at"):
        first, second = (getattr(filtering(*axis), name) for axis in (high, wide))
        rows, cols, after = len(first[0]), len(second[0]), len(first)
        instructions = cols * operations(first) + after * operations(second) + rows * cols + after * len(second)
        found.append(instructions / _INSTRUCTIONS_A_CYCLE)
    return found[0], found[1]


def _estimate(p: Problem, c: Cut, blocks: int, vectors: int) -> float:
    form, spec = c.form, p.spec
    reduction = spec.in_channels // spec.groups * form.deep_taps
    outputs, turns = c.chunk * c.strip, -(-vectors // c.outs)
    products = form.places * -(-outputs // c.tiles) * turns / c.parts
    products *= reduction * step_cycles(c.tiles, c.outs) + 2 * c.tiles * c.outs
    in_cycles, out_cycles = _transform_cycles(form.high, form.wide)
    item = products + c.in_slices * c.strip * blocks * in_cycles + outputs * vectors / c.parts * out_cycles
    share = -(-c.strips * c.chunks * p.batch * spec.groups * c.parts // p.threads)
    # The weights come from memory once for all threads that read them at the same time, else from the third level.
    weight_bytes = 4 * form.places * reduction * vectors * p.target.vector
    memory = weight_bytes * spec.groups / p.threads / _MEMORY_BYTES_A_CYCLE
    memory = max(memory, share * weight_bytes / c.parts / _CACHE_BYTES_A_CYCLE)
    slowness = 2.0 / multiply_adds_a_cycle(p.target)  # against what `step_cycles`, and other algorithms, count on
    compute = share * item * slowness
    return (max(compute, memory) + 0.3 * min(compute, memory)) / slowness  # they overlap, not wholly


# -- the algorithm's rows ----------------------------------------------------------------------------------------------


def _cycles(p: Problem) -> float:
    return cut(p).cycles / WORTH


def _multiplications(p: Problem) -> int:
    form, spec = cut(p).form, p.spec
    products = spec.in_channels * form.deep_taps * spec.out_channels // spec.groups
    return p.batch * form.out_slices * form.tiles * form.places * products


def scratch_floats(p: Problem, c: Cut) -> int:
    v = p.target.vector
    blocks = blocks_of(p.spec.in_channels // p.spec.groups, v)
    return winograd.scratch_floats(c.form.places, c.in_slices * c.strip, blocks, c.chunk * c.strip, c.outs, v)


def _workspace(p: Problem) -> int:
    return 4 * p.threads * scratch_floats(p, cut(p))


def _error_bound(p: Problem) -> float:
    """`Filtering.growth` of both axes times the bound of a direct sum."""
    return cut(p).form.growth * direct.error_of_sum(p)


def _tiles(form: Form, x: tuple[int, int], y: tuple[int, int], residual: tuple[int, int]) -> np.ndarray:
    """The kernel's table; x, y and residual: floats from one row to the next, and from one column to the next."""
    corners = []
    for out, phases, (m, _) in zip(form.out_size, form.phases, (form.high, form.wide), strict=True):
        axis = []
        for phase, count in enumerate(_rows_of_phases(out, phases)):
            wanted = np.arange(0, count, m)
            start = np.maximum(0, np.minimum(wanted, count - m))
            bits = (1 << np.minimum(m, count - start)) - (1 << wanted - start)
            axis.append(np.stack([phase + start * phases, bits], 1))
        corners.append(np.concatenate(axis))
    rows, cols = corners[0][:, None], corners[1][None]
    table = np.empty((len(corners[0]), len(corners[1]), winograd.TILE_COLUMNS), np.int64)
    for column, (row_floats, col_floats) in enumerate((x, y, residual)):
        table[..., column] = rows[..., 0] * row_floats + cols[..., 0] * col_floats
    table[..., 3], table[..., 4] = rows[..., 1], cols[..., 1]
    return table.reshape(-1, winograd.TILE_COLUMNS)


def _strides(form: Form, value: Value | None, slice_stride: int, v: int) -> tuple[int, int, int]:
    """Floats from one slice, row and column to the next; those of an axis that joins the sum are a slice's."""
    if value is None:
        return 0, 0, 0
    match form.joined:
        case 0:
            return v, value.row, 0
        case 1:
            return value.row, 0, v
        case _:
            return slice_stride, value.row, v


def halo_of(p: Problem) -> Halo:
    """Zeros that the layer wants around its input: of the windows, and where tiles are larger than the output."""
    g, form = geometry_of(p), cut(p).form
    top, left, *ends = g.halo
    for axis in (0, 1):
        if form.joined != 1 - axis:
            ends[axis] = max(ends[axis], form.reach[axis] - g.padding[axis][0] - g.size[axis])
    return top, left, ends[0], ends[1]


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    x = channels.with_halo(b, layer.node.inputs[0], halo_of(p))
    residual = b.blocked(layer.residual) if layer.residual else None
    y = b.new_blocked(layer.output)
    add_step(b, layer, p, b.inside(x, geometry_of(p)), (x, 0), (y, 0), residual)


def _lower_deep(b: Builder, layer: Layer, p: Problem) -> None:
    x, x_slice = volumes.packed(b, b.plain(layer.node.inputs[0]), p.spec, p.out_size, cut(p).form.reach)
    y, y_slice = volumes.room(b, (p.batch, p.spec.out_channels, *p.out_size))
    add_step(b, layer, p, Ref(x.buffer), (x, x_slice), (y, y_slice))
    volumes.unpack(b, y, y_slice, b.new_plain(layer.output))


@dataclass(frozen=True, slots=True)
class Part:
    """A step that writes a part of its layer's output (see ``lower.transposed``).

    - `key`, `kernel`: what tells its weights apart, and how they are taken from the layer's.
    - `y`: its first output; `step`: rows and columns from one output to the next.
    - `scratch`: shared by all parts; `scratch_thread`: its floats for one thread.
    - `phases`: how many output channels each of the layer's has become.
    """

    key: tuple[int, ...]
    kernel: Callable[[np.ndarray], np.ndarray]
    y: Ref
    step: tuple[int, int]
    scratch: Buffer
    scratch_thread: int
    phases: int = 1


def add_step(
    b: Builder, layer: Layer, p: Problem, at: Ref, x: tuple[Value, int], y: tuple[Value, int],
    residual: Value | None = None, part: Part | None = None, c: Cut | None = None,
) -> None:  # fmt: skip
    """The kernel's step; `at`: the first input of the first window; x and y with the floats of a depth slice."""
    c, spec, v = c or cut(p), p.spec, b.v
    form = c.form
    own = spec.in_channels // spec.groups
    blocks, vectors = blocks_of(own, v), blocks_of(spec.out_channels // spec.groups, v)
    weight_shape = (spec.out_channels, own, form.deep_taps, form.high[1], form.wide[1])

    def transformed(weight: np.ndarray) -> np.ndarray:
        own_kernel = part.kernel(weight) if part else weight
        return winograd.transform_weights(_joined(own_kernel, form, weight_shape), v, form.high, form.wide)

    key = ("winograd", form.high, form.wide, form.joined, *(part.key if part else ()))
    packed = b.weights.derived(layer.node.inputs[1], key, transformed)
    bias = b.weights.bias(layer.node.input(2), spec.out_channels, part.phases if part else 1)
    scratch_thread = part.scratch_thread if part else scratch_floats(p, c)
    scratch = part.scratch if part else Buffer(4 * scratch_thread * b.threads)
    tile = winograd.WinogradTile(form.high, form.wide, c.tiles, c.outs, layer.epilogue)
    x_strides, y_strides = _strides(form, *x, v), _strides(form, *y, v)
    if part:
        y_strides = (y_strides[0], y_strides[1] * part.step[0], y_strides[2] * part.step[1])
    r_strides = _strides(form, residual, 0, v)
    turns = -(-vectors // c.outs)
    arguments = {
        "x": at, "u": b.static(packed), "bias": b.static(bias), "y": part.y if part else y[0].ref,
        "residual": residual.ref if residual else 0, "scratch": Ref(scratch),
        "tiles": b.static(_tiles(form, x_strides[1:], y_strides[1:], r_strides[1:])),
        "parts": c.parts, "part_turns": -(-turns // c.parts), "vectors": vectors, "images": p.batch,
        "chunks": c.chunks, "chunk_slices": c.chunk, "strips": c.strips, "strip": c.strip, "all_tiles": form.tiles,
        "out_slices": form.out_slices, "in_slices": c.in_slices, "deep_taps": form.deep_taps,
        "deep_step": form.deep_step, "blocks": blocks, "channels": own,
        "x_image": x[0].image, "x_block": x[0].block, "u_out": form.places * form.deep_taps * own * v,
        "y_image": y[0].image, "y_block": y[0].block,
        "r_image": residual.image if residual else 0, "r_block": residual.block if residual else 0,
        "scratch_thread": scratch_thread,
    }  # fmt: skip
    for name, strides in (("x", x_strides), ("y", y_strides), ("r", r_strides)):
        arguments[f"{name}_slice"] = strides[0]
        arguments[f"{name}_row"], arguments[f"{name}_col"] = strides[1] * form.phases[0], strides[2] * form.phases[1]
    what = f"Winograd {notation(form.high, form.wide)}" + f" and {form.deep_taps} taps" * (form.deep_taps > 1)
    why = f"{what}: {c.strips} strips of {c.strip} tiles, {c.tiles} tiles by {c.outs} vectors"
    reads = [x[0], residual] if residual else [x[0]]
    items = spec.groups * c.parts * p.batch * c.chunks * c.strips
    b.step(tile.name(b.target), winograd, tile, arguments, items, reads, [y[0]], why, p.macs)
    tag = f"part {part.key}" if part else "inside"
    touches = [(*touch[:4], tag if touch[3] else touch[4]) for touch in b.steps[-1].touches]
    b.steps[-1].touches = [*touches, (scratch, 0, scratch.nbytes, True, tag)]


def _joined(weight: np.ndarray, form: Form, shape: tuple[int, ...]) -> np.ndarray:
    """The weights as ``[K, C, taps that join the sum, r_h, r_w]``."""
    if form.joined == 0:
        weight = weight.reshape(*weight.shape[:2], -1, weight.shape[-1]).swapaxes(-1, -2)
    return weight.reshape(shape)


def _why_not_flat(p: Problem) -> str | None:
    return "a row of its own has three axes" if p.spec.rank == 3 else why_not(p)


def _why_not_deep(p: Problem) -> str | None:
    if p.spec.rank < 3:
        return "for three axes"
    return "adds no residual" if p.residual else why_not(p)


def _deep_cycles(p: Problem) -> float:
    """Packing and unpacking included: tensors of three axes are plain."""
    spec, v = p.spec, p.target.vector
    vectors = blocks_of(spec.in_channels, v) * math.prod(p.size) + blocks_of(spec.out_channels, v) * math.prod(
        p.out_size
    )
    return _cycles(p) + _VOLUME_CYCLES * p.batch * vectors / p.threads


ROW = Algorithm(
    "winograd", "1-D and 2-D", True, _why_not_flat, _cycles, _multiplications, _workspace, _error_bound, _lower, halo_of
)
DEEP = Algorithm(
    "winograd", "3-D", False, _why_not_deep, _deep_cycles, _multiplications, _workspace, _error_bound, _lower_deep
)
