"""Heterogeneous convolutions: the tables that say what a `HetSpec` is to `kernels.het`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from convwright.graph import Node
from convwright.graph.graph import INTERNAL
from convwright.kernels import het
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import channels, conv, direct, het_blocks, planar, winograd
from convwright.model.problem import Problem
from convwright.model.values import NO_HALO, Buffer, Ref
from convwright.spec import HetSpec


def can_lower(b: Builder, layer: Layer) -> bool:
    known = all(name in b.graph.constants for name in layer.node.inputs[1:] if name)
    return known and 0 not in b.shape(layer.output)


@dataclass(frozen=True, slots=True)
class Tile:
    """Filters of one residue that are summed at once."""

    residue: int
    filters: tuple[int, ...]


@lru_cache(maxsize=256)
def form_of(p: Problem, part: int) -> tuple[planar.Form, tuple[Tile, ...], int]:
    """The form of the sums over planes, the output tiles, and into how many parts they are cut.

    ``p``: the dense convolution.
    """
    by_residue = [range(residue, p.spec.out_channels, part) for residue in range(min(part, p.spec.out_channels))]
    fewest = min(map(len, by_residue))
    # As many filters as the smallest residue has bound a tile; with three at least there are no tall tiles.
    form = planar.form_of(replace(p, spec=replace(p.spec, out_channels=max(3, fewest))))
    outs = min(form.tile.outs, fewest)
    form = replace(form, tile=replace(form.tile, outs=outs, single=False))
    tiles = []
    for residue, filters in enumerate(by_residue):
        for start in range(0, len(filters), outs):
            first = min(start, len(filters) - outs)
            tiles.append(Tile(residue, tuple(filters[first : first + outs])))
    work = p.batch * -(-form.axes[0].grid // form.strip_slices) * -(-form.axes[1].grid // form.strip_rows)
    # The threads' shares are even already where there are many strips; a part stages the whole input again.
    parts = 1 if work % p.threads == 0 or work > 4 * p.threads else min(p.threads, len(tiles))
    return form, tuple(tiles), parts


_WORTH = 0.85  # the estimated time, as a part of the others', below which a dense layer's larger weights are worth it
_STAGING = 0.04  # of a dense layer's time: what the kernel spends besides multiply-adds, measured


def lower(b: Builder, layer: Layer) -> None:
    """The least estimate of: the kernel on planes; by residues on channel blocks; an algorithm of fewer multiplications
    for the dense layer, with zeros where no weight is read."""
    x, spec = layer.node.inputs[0], layer.node.attributes["spec"]
    shape = b.shape(x)
    p = Problem(
        spec.conv.resolve(shape[2:]), shape[2:], shape[0], b.types[x].dtype, b.target, b.threads, b.numerics,
        plain_input=x in b.graph.inputs, plain_output=layer.output in b.graph.outputs,
    )  # fmt: skip
    costs = estimates(p, spec)
    choice = min(costs, key=lambda name: costs[name])
    {"planes": _lower_own, "blocks": het_blocks.lower, "dense": _lower_dense}[choice](b, layer, spec, p)


def estimates(p: Problem, spec: HetSpec) -> dict[str, float]:
    """Cycles on each of the threads, by the way to compute the layer; ``p``: the dense problem."""
    planes = planar.form_of(p).cycles * (spec.macs(p.size) / spec.conv.macs(p.size) + _STAGING)
    found = {"planes": planes + conv.conversion_cycles(planar.ROW, p)}
    if het_blocks.why_not(p, spec.part) is None:
        turned = conv.conversion_cycles(winograd.ROW, replace(p, plain_input=True, plain_output=True))  # once each way
        found["blocks"] = het_blocks.cycles(p, spec.part) + turned
    row = conv.algorithm_of(p)
    # Direct sums would turn an infinite input into NaN where its weight is not read; these two spread it anyway.
    if row.name in ("winograd", "fft"):
        found["dense"] = conv.cost(row, p) / _WORTH
    return found


def _lower_dense(b: Builder, layer: Layer, spec: HetSpec, p: Problem) -> None:
    """A dense convolution whose weights have zeros where none is read."""
    name, weight, *bias = layer.node.inputs
    dense_weight = f"{weight}:part{spec.part}"
    if dense_weight not in b.weights.constants:
        dense = np.where(_read(spec), b.weights.array(weight), 0).astype(p.dtype)
        b.weights.constants[dense_weight] = b.graph.constants[dense_weight] = dense
    b.types.values[dense_weight] = b.types[weight]
    node = Node("Convolution", [name, dense_weight, *bias], [layer.output], {"spec": p.spec}, domain=INTERNAL)
    dense_layer = Layer(node, layer.output, layer.epilogue)
    b.problems[id(dense_layer)] = p
    for value, halo in conv.needs_halo(b, dense_layer).items():
        b.halos[value] = channels.merged(b.halos.get(value, NO_HALO), halo)
    conv.lower(b, dense_layer)
    del b.problems[id(dense_layer)]


def _read(spec: HetSpec) -> np.ndarray:
    """Which of the dense weights are read."""
    read = np.zeros(spec.weight_shape, bool)
    centre: tuple[slice | int, ...] = (slice(None), slice(None), *(size // 2 for size in spec.conv.kernel))
    read[centre] = True
    for residue in range(spec.part):
        read[residue :: spec.part, residue :: spec.part] = True
    return read


def _lower_own(b: Builder, layer: Layer, spec: HetSpec, p: Problem) -> None:
    node = layer.node
    x = b.plain(node.inputs[0])
    dense, size = spec.conv.resolve(x.shape[2:]), x.shape[2:]
    form, tiles, parts = form_of(p, spec.part)
    y = b.new_plain(layer.output)
    deep, high, wide = form.axes
    _, taps, (places,) = planar.tables(form)
    taps = taps[:-1]  # the last is no tap
    centre = np.array([size // 2 for size in (1, 1, *dense.kernel)[-3:]])
    centre_tap = int(np.flatnonzero((places == centre).all(axis=1))[0])
    others = [[c for c in range(dense.in_channels) if c % spec.part != residue] for residue in range(spec.part)]
    singles = np.array(
        [place * form.channel + taps[centre_tap] for residue in others for place in residue] or [0], np.int64
    )
    starts = np.cumsum([0, *map(len, others)])
    rows, w_at = [], 0
    for tile in tiles:
        own = len(range(tile.residue, dense.in_channels, spec.part))
        single = len(others[tile.residue])
        rows.append((tile.filters[0], w_at, tile.residue * form.channel, own, starts[tile.residue], single))
        w_at += (own * len(taps) + single) * form.tile.outs
    bias = b.constant(node.input(2)) if node.input(2) else None
    bias = np.zeros(dense.out_channels, x.dtype) if bias is None else bias
    in_order = [out for tile in tiles for out in tile.filters]
    key = ("het", form.tile.outs, spec)
    packed = b.weights.derived(node.inputs[1], key, lambda weight: _pack(weight, tiles, others, places, centre_tap))
    size, out_size = (1, 1, *size)[-3:], (1, 1, *y.shape[2:])[-3:]
    strips, slice_strips = -(-high.grid // form.strip_rows), -(-deep.grid // form.strip_slices)
    body_start, body_stop = planar.body(form, size[-1])
    cols = np.full(form.pitch * wide.step, -1, np.int64)
    cols[: min(len(wide.sources), len(cols))] = wide.sources[: len(cols)]
    scratch = Buffer(x.dtype.itemsize * form.scratch * b.threads)
    plane = math.prod(out_size)
    arguments = {
        "x": x.ref, "w": b.static(packed), "bias": b.static(np.ascontiguousarray(bias[in_order], x.dtype)), "y": y.ref,
        "scratch": Ref(scratch), "taps": b.static(taps), "tiles": b.static(np.array(rows, np.int64)),
        "singles": b.static(singles), "slices": b.static(deep.sources), "rows": b.static(high.sources),
        "cols": b.static(cols),
        "parts": parts, "slice_strips": slice_strips, "strip_slices": form.strip_slices, "strips": strips,
        "strip_rows": form.strip_rows, "grid_slices": deep.grid, "grid_rows": high.grid, "grid_cols": wide.grid,
        "out_slices": out_size[0], "out_rows": out_size[1], "out_cols": out_size[2],
        "x_image": dense.in_channels * math.prod(size), "x_channel": math.prod(size),
        "x_slice": size[1] * size[2], "x_row": size[2],
        "y_image": dense.out_channels * plane, "y_filter": plane, "y_channel": spec.part * plane,
        "y_slice": out_size[1] * out_size[2],
        "channels": form.channels, "stage_slices": form.stage_slices, "slice_step": deep.step,
        "stage_rows": (form.strip_rows - 1) * high.step + high.reach + 1, "row_step": high.step,
        "pitch": form.pitch, "plane": form.plane, "slice": form.slice, "channel": form.channel,
        "col_step": wide.step, "col_low": wide.low, "body_start": body_start, "body_stop": body_stop,
        "k_tiles": len(tiles), "part_tiles": -(-len(tiles) // parts), "phase_rows": 1, "phase_cols": 1,
        "out_at": form.out_at, "out_plane": form.out_plane, "scratch_thread": form.scratch,
        "kernel_taps": len(taps), "next_own": spec.part * form.channel,
    }  # fmt: skip
    terms = max(own * len(taps) + single for _, _, _, own, _, single in rows)
    in_pieces = direct.in_pieces(p.numerics, terms, p.element)
    kernel = het.HetTile(replace(form.tile, in_pieces=in_pieces, epilogue=layer.epilogue))
    why = f"part {spec.part}: {form.tile.outs} filters by {form.tile.rows}x{form.tile.cols} vectors"
    items = x.n * parts * slice_strips * strips
    b.step(kernel.name(b.target), het, kernel, arguments, items, [x], [y], why, spec.macs(x.shape[2:], x.n))
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))


def _pack(
    weight: np.ndarray, tiles: tuple[Tile, ...], others: list[list[int]], places: np.ndarray, centre: int
) -> np.ndarray:
    """``[tile][channel of the residue][tap][outs]``, then ``[other channel][outs]``."""
    part = len(others)
    shaped = weight.reshape(*weight.shape[:2], *(1,) * (5 - weight.ndim), *weight.shape[2:])
    by_tap = shaped[:, :, places[:, 0], places[:, 1], places[:, 2]]  # [K][C][taps]
    pieces = []
    for tile in tiles:
        chosen = by_tap[list(tile.filters)]
        pieces.append(chosen[:, tile.residue :: part].transpose(1, 2, 0).reshape(-1))
        pieces.append(chosen[:, others[tile.residue], centre].T.reshape(-1))
    return np.concatenate(pieces)
