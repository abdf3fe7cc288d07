"""Convolutions of three spatial axes on channel blocks, ``[N][blocks][D][H][W][v]``.

To a kernel that knows two axes, the slices of a volume are a batch of planes. What lies in slices beside an output's
own is a tap further: an offset, like a tap of the other axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import Geometry, geometry_of
from convwright.model.lower import channels, direct
from convwright.model.problem import Algorithm, Problem
from convwright.model.tiles import choose_tile
from convwright.model.values import Halo, Ref, Value
from convwright.model.weights import entries_of
from convwright.spec import ConvSpec


def halo_of(p: Problem, reach: Sequence[int] = (0, 0)) -> Halo:
    """Zeros around the input: those of the windows. ``reach``: padded rows and columns that are read at least."""
    spec = p.spec
    before, behind = [], []
    for size, (low, _), out, stride, span, least in zip(
        p.size, spec.pads(p.size), p.out_size, spec.stride, spec.effective_kernel, (0, *reach), strict=True
    ):
        before.append(low)
        behind.append(max(0, max((out - 1) * stride + span, least) - low - size))
    return before[1], before[2], behind[1], behind[2], before[0], behind[0]


def first_window(b: Builder, x: Value, spec: ConvSpec) -> Ref:
    """The address of the first input that the first window reads, padding included."""
    (front, _), (top, _), (left, _) = spec.pads(x.shape[2:])
    return Ref(x.buffer, x.offset - 4 * (front * x.slice + top * x.row + left * b.v))


# -- direct summation --------------------------------------------------------------------------------------------------


def _why_not(p: Problem) -> str | None:
    return direct.why_not(p, deep=True)


def _pointwise(p: Problem) -> bool:
    """Whether slices are as independent as rows."""
    spec = p.spec
    return max(spec.kernel) == 1 and max(spec.stride) == 1 and not any(map(any, spec.pads(p.size)))


@dataclass(frozen=True, slots=True)
class Windows:
    """A layer as a kernel on planes takes it.

    `x`, `y`, `residual`: the slices of an image as a batch, `x` those that the first taps of the output's slices read;
    or whole volumes, their slices one below the other. `geometry`: of these planes. `deep`: as in `direct.add`.
    """

    geometry: Geometry
    x: Value
    y: Value
    residual: Value | None
    deep: tuple[int, int]


def windows(b: Builder, layer: Layer, p: Problem) -> Iterator[Windows]:
    """The layer's tensors, image by image, or all at once where slices are as independent as rows."""
    spec, g = p.spec, geometry_of(p)
    x = channels.with_halo(b, layer.node.inputs[0], halo_of(p))
    residual = b.blocked(layer.residual) if layer.residual else None
    y = b.new_blocked(layer.output)
    if _pointwise(p) and all(value is None or value.even for value in (x, y, residual)):
        yield Windows(replace(g, size=x.size, out_size=y.size), x, y, residual, (1, 0))
        return
    front = spec.pads(p.size)[0][0]
    for image in range(p.batch):
        first = x.plane_batch(image)
        first = replace(
            first, shape=(p.out_size[0], *first.shape[1:]), offset=first.offset - 4 * front * x.slice,
            image=x.slice * spec.stride[0],
        )  # fmt: skip
        added = None if residual is None else residual.plane_batch(image)
        yield Windows(g, first, y.plane_batch(image), added, (spec.kernel[0], x.slice * spec.dilation[0]))


def _cycles(p: Problem) -> float:
    """As `direct.cycles`, of all slices."""
    g, v = geometry_of(p), p.target.vector
    entries = entries_of(g.out_channels, g.groups, v)
    reduction = g.own_channels * p.spec.kernel[0] * g.kernel[0] * g.kernel[1]
    vectors = min(direct.vectors_a_group(entries))
    half = g.groups == 1 and direct.ends_in_half(g.out_channels, p.target)
    rows, cols, images = *g.out_size, p.batch * p.out_size[0]
    if _pointwise(p):
        rows, cols, images = 1, rows * cols * p.out_size[0], p.batch
    compute = choose_tile(rows, cols, vectors, len(entries) // vectors, reduction, p.target, half).cycles * images
    memory = 4 * reduction * len(entries) * v / direct.MEMORY_BYTES_A_CYCLE
    return (max(compute, memory) + 0.3 * min(compute, memory)) / p.threads


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    for window in windows(b, layer, p):
        direct.add(b, layer, window.geometry, window.x, window.y, window.residual, deep=window.deep)


ROW = Algorithm(
    "direct", "volumes", True, _why_not, _cycles, direct.multiplications, direct.no_workspace, direct.error_in_pieces,
    _lower, halo_of,
)  # fmt: skip
