"""Transposed convolutions to few channels: all phases of the stride as output channels of one convolution at stride 1,
whose channels then become pixels (sub-pixel convolution, arXiv 1609.05158; equal to transposed, arXiv 1609.07009).

The phases together fill vectors of channels that each alone would leave empty. The kernel spans the inputs that any
phase reads; where a phase reads fewer, its weights are zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np

from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import channels, direct, winograd, winograd_cut
from convwright.model.lower.movement import copy_view
from convwright.model.lower.transposed import axes_of, why_not_phases
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Buffer, Halo, Ref
from convwright.spec import ConvSpec

_COPY_CYCLES = 2.0  # an output that becomes a pixel


@dataclass(frozen=True, slots=True)
class Form:
    """The convolution of all phases.

    - `problem`: it, over the inputs that it reads, zeros included.
    - `first`: the input, from 0 on or before it, that the first window begins with.
    - `places`: for each axis and phase, where each of the layer's taps (first) lies in the kernel (second).
    """

    problem: Problem
    first: tuple[int, int]
    places: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]

    @property
    def strides(self) -> tuple[int, int]:
        return len(self.places[0]), len(self.places[1])


def _why_not(p: Problem) -> str | None:
    spec = p.spec
    reason = why_not_phases(p)
    if reason is not None:
        return reason
    if spec.groups > 1:
        return f"groups {spec.groups}: the phases of all groups together would be one group's channels"
    if spec.out_channels >= p.target.vector:
        return f"{spec.out_channels} output channels fill vectors of {p.target.vector} by themselves"
    if max(spec.stride) == 1:
        return "at stride 1 there is one phase"
    if p.algorithm.partition("-")[2] not in ("", "subpixel"):
        return f"{p.algorithm}: the phases choose their own tiles"
    return winograd.why_not(form_of(p).problem)


@lru_cache(maxsize=1024)
def form_of(p: Problem) -> Form:
    spec, axes = p.spec, axes_of(p)
    kernel = [axis.reach + 1 for axis in axes]
    size = [axis.grid + axis.reach for axis in axes]
    outs = spec.out_channels * math.prod(len(axis.phases) for axis in axes)
    own = ConvSpec(spec.in_channels, outs, kernel, bias=spec.bias)
    problem = replace(p, spec=own, size=tuple(size), algorithm="auto", plain_output=False)
    return Form(problem, (-axes[0].low, -axes[1].low), tuple(axis.phases for axis in axes))


def _halo(p: Problem) -> Halo:
    form, (high, wide) = form_of(p), (1, *p.size)[-2:]
    (top, left), size = form.first, form.problem.size
    return max(0, -top), max(0, -left), max(0, top + size[0] - high), max(0, left + size[1] - wide)


def _cycles(p: Problem) -> float:
    copied = p.batch * p.spec.out_channels * math.prod(p.out_size)
    return winograd_cut.cut(form_of(p).problem).cycles / winograd.WORTH + _COPY_CYCLES * copied / p.threads


def _multiplications(p: Problem) -> int:
    form = winograd_cut.cut(form_of(p).problem).form
    own = form_of(p).problem.spec
    return p.batch * form.tiles * form.places * form.deep_taps * own.in_channels * own.out_channels


def _workspace(p: Problem) -> int:
    form = form_of(p)
    results = math.prod((p.batch, form.problem.spec.out_channels, *form.problem.out_size))
    return 4 * (p.threads * winograd_cut.scratch_floats(form.problem, winograd_cut.cut(form.problem)) + 2 * results)


def _error_bound(p: Problem) -> float:
    own = form_of(p).problem
    return max(
        winograd_cut.cut(own).form.growth * direct.error_of_sum(p), winograd.error_bound(own, winograd_cut.cut(own))
    )


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    form, spec, node = form_of(p), p.spec, layer.node
    problem, (down, right) = form.problem, form.strides
    x = channels.with_halo(b, node.inputs[0], _halo(p))
    name = f"{layer.output} by phases"
    results = b.blocked_room((p.batch, problem.spec.out_channels, *problem.out_size))
    b.values[name, True] = results

    def kernel(weight: np.ndarray) -> np.ndarray:
        """``[C, K, kernel]`` to ``[K * phases, C, union of the phases' taps]``."""
        own = weight.reshape(*weight.shape[:2], *(1, *spec.kernel)[-2:])
        packed = np.zeros((spec.out_channels, down, right, spec.in_channels, *problem.spec.kernel), np.float32)
        for i, j in product(range(down), range(right)):
            for (row, to_row), (col, to_col) in product(form.places[0][i], form.places[1][j]):
                packed[:, i, j, :, to_row, to_col] = own[:, :, row, col].T
        return packed.reshape(-1, *packed.shape[3:])

    cut = winograd_cut.cut(problem)
    scratch_thread = winograd_cut.scratch_floats(problem, cut)
    scratch = Buffer(4 * scratch_thread * b.threads)
    at = Ref(x.buffer, x.offset + 4 * (form.first[0] * x.row + form.first[1] * b.v))
    part = winograd.Part((down, right), kernel, results.ref, (1, 1), scratch, scratch_thread, down * right)
    winograd.add_step(b, layer, problem, at, (x, 0), (results, 0), part=part, c=cut)
    planes, y = b.plain(name), b.new_plain(layer.output)
    high, wide = (1, *p.out_size)[-2:]
    grid = problem.out_size
    source = np.empty((p.batch, spec.out_channels, down, right, *grid), np.float32)
    target = np.empty((p.batch, spec.out_channels, high, wide), np.float32)
    image, channel, row, col = target.strides
    for (top, rows, i), (left, cols, j) in product(_pieces(high, down), _pieces(wide, right)):
        from_view = source[:, :, :i, :j, top : top + rows, left : left + cols].transpose(0, 1, 4, 2, 5, 3)
        corner, strides = top * down * row + left * right * col, (image, channel, down * row, row, right * col, col)
        to_view: np.ndarray = np.ndarray(from_view.shape, np.float32, target, corner, strides)  # type: ignore[arg-type]
        copy_view(b, planes, y, from_view, to_view)


def _pieces(size: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first place, places, phases): the places that have all phases, then the one that has not."""
    whole, rest = divmod(size, stride)
    if whole:
        yield 0, whole, stride
    if rest:
        yield whole, 1, rest


ROW = Algorithm(
    "winograd", "subpixel", True, _why_not, _cycles, _multiplications, _workspace, _error_bound, _lower, _halo
)
