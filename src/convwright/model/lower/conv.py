"""Convolutions: which algorithm computes a layer."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from convwright.errors import ConvwrightError
from convwright.model.builder import Builder
from convwright.model.choices import choice
from convwright.model.fuse import Layer
from convwright.model.geometry import geometry_of
from convwright.model.lower import (
    channels,
    depthwise,
    depthwise_planes,
    direct,
    fft,
    grouped,
    im2col,
    paired,
    paired_transposed,
    planar,
    subpixel,
    transposed,
    volumes,
    winograd,
    winograd_planes,
)
from convwright.model.problem import Algorithm, Problem, choose, problem_of
from convwright.model.values import Halo
from convwright.runtime.machine import caches

ROWS: tuple[Algorithm, ...] = (
    direct.ROW,
    paired.ROW,
    paired_transposed.ROW,
    grouped.ROW,
    depthwise.ROW,
    depthwise_planes.ROW,
    winograd.ROW,
    winograd.DEEP,
    winograd_planes.ROW,
    volumes.ROW,
    transposed.ROW,
    subpixel.ROW,
    planar.ROW,
    im2col.ROW,
    fft.ROW,
)

# Of a vector that changes between row-major and channel blocks, where the tensor fits the second-level cache or not.
_CONVERSION_CYCLES, _FAR_CONVERSION_CYCLES = 1.0, 3.0
_MEETING_CYCLES = 2000.0  # of a further step: the threads wait for each other, and read what the other has written
_SHUFFLE_CYCLES = 10.0  # of a vector whose lanes come from several channel blocks


def conversion_cycles(row: Algorithm, p: Problem) -> float:
    """Estimated cycles, on each thread, of the changes of layout that this row makes necessary."""
    cycles, steps = 0.0, 0
    if p.plain_input == row.blocked and not _reads_planes(row, p):
        cycles += _conversion(p, p.spec.in_channels * math.prod(p.size))
        steps += 1
    outputs = p.spec.out_channels * math.prod(p.out_size)
    if p.plain_output == row.blocked:
        cycles += _conversion(p, outputs)
        steps += 1
    if p.shuffle and not shuffles(row, p):
        # Where blocks become row-major, the shuffle is in the addresses.
        if not (row.blocked and p.plain_output):
            cycles += outputs * p.batch / p.target.vector * _SHUFFLE_CYCLES
            steps += 1
        if not row.blocked:
            cycles += _conversion(p, outputs) * (2 if p.plain_output else 1)
            steps += 2 if p.plain_output else 1
    return cycles / p.threads + (steps * _MEETING_CYCLES if p.threads > 1 else 0.0)


def _reads_planes(row: Algorithm, p: Problem) -> bool:
    """Whether a row that writes channel blocks reads its input as plain planes."""
    return row is winograd_planes.ROW or (row is direct.ROW and direct.reads_planes(p))


def _conversion(p: Problem, elements: int) -> float:
    far = elements * p.batch * np.dtype(p.dtype).itemsize > caches().l2
    return elements * p.batch / p.target.vector * (_FAR_CONVERSION_CYCLES if far else _CONVERSION_CYCLES)


def shuffles(row: Algorithm, p: Problem) -> bool:
    """Whether the row's steps do the shuffle that the problem asks for."""
    return row.shuffles and p.by_group and not p.spec.transposed


def cost(row: Algorithm, p: Problem) -> float:
    """Estimated cycles on each thread, conversions of layout included."""
    return row.cycles(p) + conversion_cycles(row, p)


def algorithm_of(p: Problem) -> Algorithm:
    """The row that computes the problem: the cheapest by estimate, or the one asked for."""
    return ROWS[_row_of(p)]


@choice
@lru_cache(maxsize=4096)
def _row_of(p: Problem) -> int:
    """The place of the problem's row.

    Between neighbours in channel blocks what works on blocks is not compared with the rest, but for windows in groups
    that leave lanes of the blocks empty: of 3, 6 or 12 channels planes gain more than two conversions cost. Of three
    axes, groups of several channels have kernels of their own on planes alone.
    """
    rows = ROWS
    if p.algorithm == "auto" and not (p.plain_input or p.plain_output):
        rows = tuple(row for row in ROWS if row.blocked and row.why_not(p) is None) or ROWS
        if p.spec.rank == 3 and p.spec.groups > 1 and depthwise.ROW.why_not(p) is not None:
            rows = ROWS
        elif rows is not ROWS and _wastes_lanes(p):
            rows += (planar.ROW,)
    return ROWS.index(choose(rows, p, cost))


def _wastes_lanes(p: Problem) -> bool:
    spec, v = p.spec, p.target.vector
    groups = 1 < spec.groups < spec.in_channels and math.prod(spec.kernel) > 1
    return groups and bool(spec.in_channels // spec.groups % v or spec.out_channels // spec.groups % v)


def can_lower(b: Builder, layer: Layer) -> bool:
    node = layer.node
    names = [name for name in node.inputs[1:] if name]
    if not all(name in b.graph.constants for name in names) or 0 in (*b.shape(node.inputs[0]), *b.shape(layer.output)):
        return False
    try:
        algorithm_of(problem_of(b, layer))
    except ConvwrightError:
        if node.attributes.get("algorithm", "auto") != "auto":
            raise
        return False
    return True


def needs_halo(b: Builder, layer: Layer) -> dict[str, Halo]:
    """Zeros that the layer wants around its input."""
    p = problem_of(b, layer)
    row = algorithm_of(p)
    if not row.blocked or _reads_planes(row, p):
        return {}
    return {layer.node.inputs[0]: row.halo(p) if row.halo else geometry_of(p).halo}


def lower(b: Builder, layer: Layer) -> None:
    p = problem_of(b, layer)
    row = algorithm_of(p)
    if not p.shuffle or shuffles(row, p):
        row.lower(b, layer, p)
        return
    inner = replace(layer, output=layer.node.outputs[0], shuffle=0)
    row.lower(b, inner, replace(p, shuffle=0))
    channels.shuffle(b, inner.output, layer.output, p.shuffle)
