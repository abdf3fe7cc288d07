"""Convolutions through Winograd's algorithm, where that is expected to be faster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from convwright.codegen.target import Target
from convwright.kernels import winograd
from convwright.kernels.cook_toom import filtering
from convwright.kernels.winograd import notation
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import geometry_of
from convwright.model.lower import channels, volumes, winograd_cut, winograd_forms, winograd_pairs
from convwright.model.lower.winograd_cut import Cut
from convwright.model.lower.winograd_forms import Form, forms_of, rows_of_phases
from convwright.model.packing import Rows
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Buffer, Halo, Ref, Value, blocks_of
from convwright.runtime.memory import aligned_empty

# Of fewer channels than half a vector, where all the time goes into output transforms and their way to memory. Measured
# inside networks, of the estimate: 3 to 64 channels of 224 x 224 1.6 to 2.5 times on two threads, 7 x 7 at stride 2 1.4
# to 1.8 times on two and 1.0 to 1.3 on one.
_FEW_CHANNELS_ALONE, _FEW_CHANNELS = 1.15, 1.6
WORTH = 0.8  # the estimated time, as a part of direct summation's, below which the larger weights are worth it


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
    if spec.groups > 1 and (spec.in_channels // spec.groups % p.target.vector or
                            spec.out_channels // spec.groups % p.target.vector):  # fmt: skip
        own = f"{spec.in_channels} to {spec.out_channels} channels in {spec.groups} groups"
        return f"{own}: groups must fill vectors of {p.target.vector} channels"
    forms = forms_of(p)
    return forms if isinstance(forms, str) else None


# -- the algorithm's rows ----------------------------------------------------------------------------------------------


def _cycles(p: Problem) -> float:
    found = winograd_cut.cut(p)
    cycles = found.cycles / WORTH + winograd_cut.price(p, found.form)
    if 2 * p.spec.in_channels // p.spec.groups < p.target.vector:
        cycles *= _FEW_CHANNELS if p.threads > 1 else _FEW_CHANNELS_ALONE
    return cycles


def _multiplications(p: Problem) -> int:
    form, spec = winograd_cut.cut(p).form, p.spec
    channels = spec.in_channels // spec.groups
    if winograd_cut.cut(p).paired:
        channels = winograd_pairs.multiplications(channels, p.target.vector)
    return p.batch * form.out_slices * form.tiles * form.places * form.deep_taps * channels * spec.out_channels


def _workspace(p: Problem) -> int:
    return 4 * p.threads * winograd_cut.scratch_floats(p, winograd_cut.cut(p))


def error_bound(p: Problem, c: Cut) -> float:
    return winograd_forms.error_bound(c.form, p, c.paired)


def _error_bound(p: Problem) -> float:
    return error_bound(p, winograd_cut.cut(p))


def _tiles(form: Form, x: tuple[int, int], y: tuple[int, int], residual: tuple[int, int]) -> np.ndarray:
    """The kernel's table; x, y and residual: floats from one row to the next, and from one column to the next."""
    corners = []
    for out, phases, (m, *_) in zip(form.out_size, form.phases, (form.high, form.wide), strict=True):
        axis = []
        for phase, count in enumerate(rows_of_phases(out, phases)):
            wanted = np.arange(0, count, m)
            start = np.maximum(0, np.minimum(wanted, count - m))
            bits = (1 << np.minimum(m, count - start)) - (1 << wanted - start)
            axis.append(np.stack([phase + start * phases, bits], 1))
        corners.append(np.concatenate(axis))
    rows, cols = corners[0][:, None], corners[1][None]
    table = np.empty((len(corners[0]), len(corners[1]), winograd.TILE_COLUMNS), np.int64)
    down, right = form.stride
    for column, (row_floats, col_floats) in enumerate(((x[0] * down, x[1] * right), y, residual)):
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
    g, form = geometry_of(p), winograd_cut.cut(p).form
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


def _halo_of_deep(p: Problem) -> Halo:
    return volumes.halo_of(p, winograd_cut.cut(p).form.reach)


def _lower_deep(b: Builder, layer: Layer, p: Problem) -> None:
    x = channels.with_halo(b, layer.node.inputs[0], _halo_of_deep(p))
    residual = b.blocked(layer.residual) if layer.residual else None
    y = b.new_blocked(layer.output)
    add_step(b, layer, p, volumes.first_window(b, x, p.spec), (x, x.slice), (y, y.slice), residual)


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
    c, spec, v = c or winograd_cut.cut(p), p.spec, b.v
    if layer.pooled:
        c = winograd_cut.pooled(c)
        assert c is not None
    form = c.form
    own = spec.in_channels // spec.groups
    blocks, vectors = blocks_of(own, v), blocks_of(spec.out_channels // spec.groups, v)
    weight_shape = (spec.out_channels, own, form.deep_taps, form.high[1], form.wide[1])

    def transformed(weight: np.ndarray) -> np.ndarray:
        joined = _joined(part.kernel(weight) if part else weight, form, weight_shape)
        if c.paired:
            return winograd_pairs.pack(joined, form, spec.groups, b.target, b.team)
        return transform(joined, form, b.target, b.team)

    key = ("winograd", form.high, form.wide, form.joined, c.paired > 0, *(part.key if part else ()))
    flat = b.weights.derived(layer.node.inputs[1], key, transformed)
    packed = flat
    own_scales: dict[str, Ref | int] = {"squares": 0, "backs": 0, "channel_scales": 0}
    if c.paired:
        parts = winograd_pairs.parts_of(flat, form, spec.out_channels, own, spec.groups, v)
        packed = parts.u
        own_scales = {name: b.static(getattr(parts, name)) for name in own_scales}
    bias = b.weights.bias(layer.node.input(2), spec.out_channels, part.phases if part else 1)
    scratch_thread = part.scratch_thread if part else winograd_cut.scratch_floats(p, c)
    scratch = part.scratch if part else Buffer(4 * scratch_thread * b.threads)
    tile = winograd.WinogradTile(form.high, form.wide, c.tiles, c.outs, layer.epilogue, layer.pooled, c.paired > 0)
    x_strides, y_strides = _strides(form, *x, v), _strides(form, *y, v)
    if part:
        y_strides = (y_strides[0], y_strides[1] * part.step[0], y_strides[2] * part.step[1])
    if layer.pooled:  # in halves: two outputs of the tile are one
        y_strides = (y_strides[0], y_strides[1] // 2, y_strides[2] // 2)
    r_strides = _strides(form, residual, residual.slice if residual else 0, v)
    slices, taps = form.slices(c.chunk)
    turns = -(-vectors // c.outs)
    arguments = {
        "x": at, "u": b.static(packed), "bias": b.static(bias), "y": part.y if part else y[0].ref,
        "residual": residual.ref if residual else 0, "scratch": Ref(scratch),
        "tiles": b.static(_tiles(form, x_strides[1:], y_strides[1:], r_strides[1:])),
        "slices": b.static(np.array(slices, np.int64) * x_strides[0]),
        "taps": b.static(np.array(taps, np.int64) * (c.strip * v)),
        "parts": c.parts, "part_vectors": -(-turns // c.parts) * c.outs, "held": c.held, "vectors": vectors,
        "images": p.batch,
        "chunks": c.chunks, "chunk_slices": c.chunk, "strips": c.strips, "strip": c.strip, "all_tiles": form.tiles,
        "out_slices": form.out_slices, "in_slices": len(slices), "deep_taps": form.deep_taps, "blocks": blocks,
        "channels": own, "pair_blocks": own // (2 * v), "pair_piece": winograd_pairs.blocks_of_piece(c.paired, own, v),
        "x_image": x[0].image, "x_block": x[0].block, "u_out": form.places * form.deep_taps * own * v,
        "y_image": y[0].image, "y_block": y[0].block,
        "r_image": residual.image if residual else 0, "r_block": residual.block if residual else 0,
        "scratch_thread": scratch_thread, **own_scales,
    }  # fmt: skip
    arguments["x_slice"], arguments["y_slice"], arguments["r_slice"] = (
        x_strides[0] * form.deep_stride, y_strides[0], r_strides[0],
    )  # fmt: skip
    for name, strides, (down, right) in (
        ("x", x_strides, form.apart), ("y", y_strides, form.phases), ("r", r_strides, form.phases)
    ):  # fmt: skip
        arguments[f"{name}_row"], arguments[f"{name}_col"] = strides[1] * down, strides[2] * right
    what = f"Winograd {notation(form.high, form.wide)}" + f" and {form.deep_taps} taps" * (form.deep_taps > 1)
    why = f"{what}: {c.strips} strips of {c.strip} tiles, {c.tiles} tiles by {c.outs} vectors"
    why += ", products in pairs" * (c.paired > 0) + ", pooled 2x2" * layer.pooled
    reads = [x[0], residual] if residual else [x[0]]
    items = spec.groups * c.parts * p.batch * c.chunks * c.strips
    b.step(tile.name(b.target), winograd, tile, arguments, items, reads, [y[0]], why, p.macs)
    tag = f"part {part.key}" if part else "inside"
    touches = [(*touch[:4], tag if touch[3] else touch[4]) for touch in b.steps[-1].touches]
    b.steps[-1].touches = [*touches, (scratch, 0, scratch.nbytes, True, tag)]


def transform(weight: np.ndarray, form: Form, target: Target, threads: int) -> np.ndarray:
    """``[K, C, taps, r_h, r_w]`` to ``[ceil(K/v)][n_h n_w][taps][C][v]``: G g G^T, rounded once."""
    outputs, channels, deep, *taps = weight.shape
    rows = Rows.of(weight.reshape(outputs, -1), channels * deep, (taps[0], taps[1]), 1, target, threads)
    packed = aligned_empty(rows.vectors * form.places * channels * deep * target.vector)
    order = np.arange(channels * deep).reshape(channels, deep).T.ravel()
    rows.transform(packed, (filtering(*form.high).float_g(), filtering(*form.wide).float_g()), order)
    return packed.reshape(rows.vectors, form.places, deep, channels, target.vector)


def _joined(weight: np.ndarray, form: Form, shape: tuple[int, ...]) -> np.ndarray:
    """The weights as ``[K, C, taps that join the sum, r_h, r_w]``."""
    if form.joined == 0:
        weight = weight.reshape(*weight.shape[:2], -1, weight.shape[-1]).swapaxes(-1, -2)
    return weight.reshape(shape)


def _why_not_flat(p: Problem) -> str | None:
    return "a row of its own has three axes" if p.spec.rank == 3 else why_not(p)


def _why_not_deep(p: Problem) -> str | None:
    return "for three axes" if p.spec.rank < 3 else why_not(p)


ROW = Algorithm(
    "winograd", "1-D and 2-D", True, _why_not_flat, _cycles, _multiplications, _workspace, _error_bound, _lower, halo_of
)
DEEP = Algorithm(
    "winograd", "3-D", True, _why_not_deep, _cycles, _multiplications, _workspace, _error_bound, _lower_deep,
    _halo_of_deep,
)  # fmt: skip
