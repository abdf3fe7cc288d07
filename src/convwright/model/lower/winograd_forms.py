"""The forms of Winograd's algorithm that a convolution may take: which axes are transformed, with how many outputs a
tile, and which joins the sum; and the errors of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from convwright.kernels.cook_toom import POINTS, filtering
from convwright.kernels.winograd import Axis, notation, places_of, stride_of
from convwright.model.lower import direct
from convwright.model.problem import Problem
from convwright.runtime.machine import adds_beside_multiply_adds
from convwright.spec import ConvSpec

ERROR = 1.2e-5
"""The largest `error_bound` of what is chosen without being named. Errors measured are 0.2 to 0.6 of the bound
(bench/winograd_points.py), so that they stay below the 1e-5 of the largest output that numerics="default" allows."""

# Channels whose products may be summed in pairs before they are added to M (`kernels.winograd_pairs`).
_PIECES = (256, 128, 64, 32)
_PAIRED = 1.15  # of the bound of errors: measured 0.9 to 1.1 times, where both factors are of one size

# m of both axes to choose from. Strided, errors grow less: 5 x 5 and 4 x 7 are often allowed, and 7 divides sizes of
# common networks.
_PLAIN = (*((m, m) for m in (2, 3, 4, 5, 6)), (3, 4), (4, 6), (6, 4))
_STRIDED = ((2, 2), (3, 3), (4, 4), (5, 5), (7, 7), (4, 7), (7, 4))
_LARGEST = max(POINTS) + 1  # m + r - 1


@dataclass(frozen=True, slots=True)
class Form:
    """A problem as the kernel sees it: the taps of one axis join the sum, two are transformed.

    - `high`, `wide`: m and r of the transformed axes, (1, 1) where there is none, and their strides above 1.
    - `phases`: into how many sets the outputs of these axes fall, no two of which share an input; `out_size`: how many
      there are; `stride`: inputs from one output's first to the next one's.
    - `deep_taps`, `deep_step`, `deep_stride`, `out_slices`: taps, dilation, stride and outputs of the axis that joins
      the sum.
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
    stride: tuple[int, int] = (1, 1)
    deep_stride: int = 1

    @property
    def growth(self) -> float:
        """Of rounding errors, against direct summation."""
        return max(1.0, _growth(self.high) * _growth(self.wide))

    @property
    def places(self) -> int:
        return places_of(self.high, self.wide)

    @property
    def weights(self) -> int:
        """Transformed weights from an input channel to an output channel: as many as a tile has multiplications."""
        return self.places * self.deep_taps

    @property
    def tiles(self) -> int:
        """Of one slice."""
        counts = [
            sum(-(-rows // m) for rows in rows_of_phases(out, phases))
            for out, phases, (m, *_) in zip(self.out_size, self.phases, (self.high, self.wide), strict=True)
        ]
        return counts[0] * counts[1]

    @property
    def apart(self) -> tuple[int, int]:
        """Inputs from one pixel of a tile to the next: the dilation, where the axis has taps."""
        high, wide = (
            phases * stride // stride_of(axis)
            for phases, stride, axis in zip(self.phases, self.stride, (self.high, self.wide), strict=True)
        )
        return high, wide

    @property
    def reach(self) -> list[int]:
        """Padded inputs that are read along each of the transformed axes."""
        reach = []
        for axis, (m, r, *_) in enumerate((self.high, self.wide)):
            phases = self.phases[axis]
            last = max(
                phase + (max(count, m) - 1) * phases
                for phase, count in enumerate(rows_of_phases(self.out_size[axis], phases))
            )
            reach.append(last * self.stride[axis] + (r - 1) * self.apart[axis] + 1)
        return reach

    def slices(self, chunk: int) -> tuple[list[int], list[int]]:
        """The input slices that ``chunk`` output slices read, in the order in which their transforms are held, and
        where each tap begins among them: for each output slice it reads one slice further on."""
        held: list[int] = []
        begins = [0] * self.deep_taps
        for phase in range(self.deep_stride):
            starts = {
                tap: tap * self.deep_step
                for tap in range(self.deep_taps)
                if tap * self.deep_step % self.deep_stride == phase
            }
            if starts:
                first, last = min(starts.values()), max(starts.values()) + (chunk - 1) * self.deep_stride
                for tap, start in starts.items():
                    begins[tap] = len(held) + (start - first) // self.deep_stride
                held += range(first, last + 1, self.deep_stride)
        return held, begins


@lru_cache(maxsize=64)
def _growth(axis: Axis) -> float:
    return filtering(*axis).growth


def rows_of_phases(out: int, phases: int) -> list[int]:
    """The outputs of each phase; where there are more phases than outputs, only those that have one."""
    return [-(-(out - phase) // phases) for phase in range(min(phases, out))]


def error_bound(form: Form, p: Problem, piece: int) -> float:
    """Of the largest output, for random inputs and weights: `Form.growth` times the bound of a direct sum.

    - ``piece``: channels whose products are summed in pairs before they are added to M; 0 for all, one by one. A sum in
      pieces rounds like one of as many terms as a piece has and there are pieces.
    """
    if not piece:
        return form.growth * direct.error_of_sum(p)
    channels = p.spec.in_channels // p.spec.groups
    terms = form.high[1] * form.wide[1] * (form.deep_taps * piece + channels / piece - 1)
    return _PAIRED * form.growth * 16 * 2.0**-24 * max(1.0, terms / 256) ** 0.5


def sums_of(form: Form, p: Problem) -> list[int]:
    """How products may be summed with errors as small as is allowed, as ``piece`` of `error_bound`: one by one, and in
    pairs in the largest pieces; none, or for a form that is named those of the smallest errors.

    There are no pairs where less than two blocks of channels could be paired.
    """
    channels = p.spec.in_channels // p.spec.groups
    paired = channels >= 2 * p.target.vector and adds_beside_multiply_adds(p.target)
    pieces = [piece for piece in (channels, *_PIECES) if piece <= channels] if paired else []
    found = [0] if error_bound(form, p, 0) <= max(ERROR, direct.error_of_sum(p)) else []
    found += [piece for piece in pieces if error_bound(form, p, piece) <= ERROR][:1]
    return [0, *pieces[-1:]] if not found and p.algorithm.startswith("winograd-") else found


@lru_cache(maxsize=4096)
def forms_of(p: Problem) -> tuple[Form, ...] | str:
    """The forms that a problem may take: those named, or those whose errors stay small; a sentence if there is none."""
    spec = p.spec
    axes = _axes_of(p)
    most = [-(-axis.out // axis.phases) if axis.saves else 1 for axis in axes[1:]]
    wish, _, option = p.algorithm.partition("-")
    if wish == "winograd" and option:
        named = _named(option, spec.kernel)
        if isinstance(named, str):
            return named
        if any(m > -(-axis.out // axis.phases) for m, axis in zip(named, axes[1:], strict=True)):
            return f"the output {p.out_size}, or one of its phases, is smaller than a tile of {option}"
        form = _form(axes, named, spec)
        return (form,) if isinstance(form, Form) else form
    able: dict[Form, None] = {}
    for high, wide in _PLAIN if max(spec.stride) == 1 else _STRIDED:
        form = _form(axes, (min(high, most[0]), min(wide, most[1])), spec)
        if isinstance(form, Form) and sums_of(form, p):
            able[form] = None
    # More weights are worth it for fewer multiplications alone.
    found: list[Form] = []
    for form in sorted(able, key=lambda form: form.weights):
        if all(form.tiles * form.weights < other.tiles * other.weights for other in found):
            found.append(form)
    shape = f"kernel {spec.kernel} with stride {spec.stride}, dilation {spec.dilation} and output {p.out_size}"
    return tuple(found) or f"{shape}: no tile saves multiplications within the error allowed"


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of a problem.

    - `phases`: of the outputs, that share no input with each other's.
    - `own_stride`: that of the outputs of one phase, counted in inputs that any of them reads.
    """

    taps: int
    stride: int
    dilation: int
    out: int

    @property
    def phases(self) -> int:
        return self.dilation // math.gcd(self.dilation, self.stride) if self.taps > 1 else 1

    @property
    def own_stride(self) -> int:
        return self.stride // math.gcd(self.dilation, self.stride)

    @property
    def saves(self) -> bool:
        """Whether neighbouring outputs have products to share: a phase of the stride has more than one tap."""
        return self.taps > self.own_stride

    def of(self, m: int) -> Axis:
        """The algorithm with m outputs a tile."""
        return (m, self.taps, self.own_stride) if self.taps > 1 and self.own_stride > 1 else (m, self.taps)


def _axes_of(p: Problem) -> list[_Axis]:
    """The last three axes; those that a problem lacks are of size 1."""
    spec = p.spec
    own = (_Axis(*axis) for axis in zip(spec.kernel, spec.stride, spec.dilation, p.out_size, strict=True))
    return [*[_UNIT] * (3 - spec.rank), *own]


_UNIT = _Axis(1, 1, 1, 1)


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


def _form(axes: list[_Axis], m: tuple[int, int], spec: ConvSpec) -> Form | str:
    """The form with m outputs on each axis, one of them summed where m is 1; a sentence where there is none."""
    summed = [axis for axis in (1, 2) if m[axis - 1] == 1 and axes[axis].taps > 1]
    if max(m) == 1:
        return f"kernel {spec.kernel}: tiles of one output save nothing"
    if spec.rank == 3 and summed:
        return "of three axes depth alone can be summed directly"
    for outputs, axis in zip(m, axes[1:], strict=True):
        if outputs > 1 and not axis.saves:
            return f"kernel {spec.kernel} at stride {spec.stride}: no phase of the stride has more than one tap"
        if outputs + -(-axis.taps // axis.own_stride) - 1 > _LARGEST:
            named = notation(axes[1].of(m[0]), axes[2].of(m[1]))
            return f"{named}: no points for tiles of more than {_LARGEST} inputs"
    joined = summed[0] if summed else 0
    high, wide = (_UNIT if number == joined else axes[number] for number in (1, 2))
    deep = axes[joined]
    return Form(
        high.of(m[0]), wide.of(m[1]), (high.phases, wide.phases), (high.out, wide.out),
        deep.taps, deep.dilation, deep.out, 2 - joined, (high.stride, wide.stride), deep.stride,
    )  # fmt: skip
