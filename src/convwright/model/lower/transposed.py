"""Transposed convolutions on channel blocks: each phase of the stride is a convolution of its own, through Winograd's
algorithm.

Output ``q * stride + phase`` sums the taps that meet the phase over the inputs around ``q`` (arXiv 1603.07285, 4.3): at
stride 1, with about ``kernel / stride`` taps, and outputs that are ``stride`` pixels apart. A phase of one tap is a
pointwise convolution, which the same kernel computes with tiles of one output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np

from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import channels, direct, planar, winograd, winograd_cut, winograd_forms
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Buffer, Halo, Ref
from convwright.spec import ConvSpec

_STEP_CYCLES = 2000.0  # of one step beyond its work: tables, a start that is not warm


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of both axes.

    - `place`: its number on each axis.
    - `taps`: the layer's taps that meet it, in the order of the inputs that they read.
    - `first`: the input, from 0 on or before it, that the first output's first tap reads.
    - `problem`: the convolution of the inputs that it reads, zeros included; `cut`: how it is computed.
    """

    place: tuple[int, int]
    taps: tuple[tuple[int, ...], tuple[int, ...]]
    first: tuple[int, int]
    problem: Problem
    cut: winograd_cut.Cut


def axes_of(p: Problem) -> list[planar.Axis]:
    """Rows and columns; of a 1-D problem one row."""
    own = [planar.axis_of(p.spec, p.spec.pads(p.size), axis, p.size[axis], p.out_size[axis])
           for axis in range(p.spec.rank)]  # fmt: skip
    return [planar.axis_of(ConvSpec(1, 1, (1,)), ((0, 0),), 0, 1, 1), *own][-2:]


def why_not_phases(p: Problem) -> str | None:
    """Why the phases of a transposed convolution cannot be steps, or channels, of their own."""
    if not p.spec.transposed:
        return "not transposed"
    if p.spec.rank == 3:
        return "of at most two axes"
    return "adds no residual" if p.residual else None


def _why_not(p: Problem) -> str | None:
    spec = p.spec
    reason = why_not_phases(p)
    if reason is not None:
        return reason
    if max(spec.stride) == 1:
        return "at stride 1 there is one phase: a convolution of its own"
    if max(spec.dilation) > 1:
        return f"dilation {spec.dilation}: the taps of a phase are not neighbours"
    if any(kernel < stride for kernel, stride in zip(spec.kernel, spec.stride, strict=True)):
        return f"kernel {spec.kernel} is smaller than the stride {spec.stride}: some phases have no tap"
    if p.algorithm.partition("-")[2] not in ("", "transposed"):
        return f"{p.algorithm}: the phases choose their own tiles"
    if any(out < stride for out, stride in zip(p.out_size, spec.stride, strict=True)):
        return f"output {p.out_size} is smaller than the stride {spec.stride}"
    if spec.kernel == spec.stride:
        return f"kernel {spec.kernel} is as large as the stride: no phase has more than one tap"
    found = phases_of(p)
    return found if isinstance(found, str) else None


@lru_cache(maxsize=1024)
def phases_of(p: Problem) -> tuple[Phase, ...] | str:
    """All phases, or why one of them cannot be computed."""
    spec, axes = p.spec, axes_of(p)
    strides, outs = (1, *spec.stride)[-2:], (1, *p.out_size)[-2:]
    found = []
    for place in product(range(strides[0]), range(strides[1])):
        by_input = [sorted(axis.phases[number], key=lambda tap: tap[1])
                    for axis, number in zip(axes, place, strict=True)]  # fmt: skip
        kernel = tuple(len(taps) for taps in by_input)
        size = [-(-(out - number) // stride) + taps - 1
                for out, number, stride, taps in zip(outs, place, strides, kernel, strict=True)]  # fmt: skip
        own = ConvSpec(spec.in_channels, spec.out_channels, kernel, groups=spec.groups, bias=spec.bias)
        problem = replace(p, spec=own, size=tuple(size), algorithm="auto")
        reason = None if max(kernel) == 1 else winograd.why_not(problem)
        if reason is not None:
            return f"phase {place} of the stride: {reason}"
        forms = winograd_forms.forms_of(problem) if max(kernel) > 1 else (_pointwise(problem),)
        assert not isinstance(forms, str)
        cut = min((winograd_cut.cut_of(problem, form) for form in forms), key=lambda one: one.cycles)
        taps = tuple(tuple(tap for tap, _ in axis) for axis in by_input)
        first = tuple(axis_taps[0][1] - axis.low for axis, axis_taps in zip(axes, by_input, strict=True))
        found.append(Phase(place, taps, first, problem, cut))  # type: ignore[arg-type]  # both are pairs
    return tuple(found)


def _pointwise(p: Problem) -> winograd_forms.Form:
    high, wide = p.out_size
    return winograd_forms.Form((1, 1), (1, 1), (1, 1), (high, wide))


def halo(p: Problem) -> Halo:
    """Zeros that the phases read around the input."""
    phases = phases_of(p)
    assert not isinstance(phases, str)
    before, after = [], []
    for axis, size in enumerate((1, *p.size)[-2:]):
        before.append(max(0, -min(phase.first[axis] for phase in phases)))
        ends = (phase.first[axis] + phase.problem.size[axis] for phase in phases)
        after.append(max(0, max(ends) - size))
    return before[0], before[1], after[0], after[1]


def _cycles(p: Problem) -> float:
    phases = phases_of(p)
    assert not isinstance(phases, str)
    return sum(phase.cut.cycles + _STEP_CYCLES for phase in phases) / winograd.WORTH


def _multiplications(p: Problem) -> int:
    phases = phases_of(p)
    assert not isinstance(phases, str)
    each = p.spec.in_channels * p.spec.out_channels // p.spec.groups
    return p.batch * sum(phase.cut.form.tiles * phase.cut.form.places for phase in phases) * each


def _scratch_thread(p: Problem) -> int:
    phases = phases_of(p)
    assert not isinstance(phases, str)
    return max(winograd_cut.scratch_floats(phase.problem, phase.cut) for phase in phases)


def _error_bound(p: Problem) -> float:
    phases = phases_of(p)
    assert not isinstance(phases, str)
    bounds = (winograd.error_bound(phase.problem, phase.cut) for phase in phases)
    return max(max(phase.cut.form.growth for phase in phases) * direct.error_of_sum(p), *bounds)


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    phases = phases_of(p)
    assert not isinstance(phases, str)
    x = channels.with_halo(b, layer.node.inputs[0], halo(p))
    y = b.new_blocked(layer.output)
    scratch_thread = _scratch_thread(p)
    scratch = Buffer(4 * scratch_thread * b.threads)
    down, right = (1, *p.spec.stride)[-2:]
    for phase in phases:

        def kernel(weight: np.ndarray, phase: Phase = phase) -> np.ndarray:
            """The phase's own ``[K, C/groups, r_h, r_w]`` of ``[C, K/groups, kernel]``."""
            own = weight.reshape(p.spec.groups, -1, weight.shape[1], *(1, *p.spec.kernel)[-2:]).swapaxes(1, 2)
            own = own[:, :, :, list(phase.taps[0])][..., list(phase.taps[1])]
            return own.reshape(p.spec.out_channels, -1, *own.shape[3:])

        at = Ref(x.buffer, x.offset + 4 * (phase.first[0] * x.row + phase.first[1] * b.v))
        first = Ref(y.buffer, y.offset + 4 * (phase.place[0] * y.row + phase.place[1] * b.v))
        part = winograd.Part(phase.place, kernel, first, (down, right), scratch, scratch_thread)
        winograd.add_step(b, layer, phase.problem, at, (x, 0), (y, 0), part=part, c=phase.cut)


ROW = Algorithm(
    "winograd", "transposed", True, _why_not, _cycles, _multiplications,
    lambda p: 4 * p.threads * _scratch_thread(p), _error_bound, _lower, halo,
)  # fmt: skip
