"""A convolution at one input size on one machine: what algorithms are chosen by, and what a row of their table says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from convwright.codegen.target import Target
from convwright.errors import ConvwrightError
from convwright.graph.convolutions import spec_of
from convwright.spec import ConvSpec

if TYPE_CHECKING:
    from convwright.model.builder import Builder
    from convwright.model.fuse import Layer
    from convwright.model.values import Halo

OPERATORS = frozenset({"Conv", "ConvTranspose", "Convolution"})
"""The operators that are a `ConvSpec`. `Convolution` is internal and carries its spec as the attribute `spec`: it can
have what ONNX's lack (padding modes, flip)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One convolution to be computed.

    - `spec`: the convolution, its padding in pairs.
    - `size`: the spatial size of the input; `batch`: the number of images.
    - `dtype`: of the tensors, float32 or float64.
    - `target`, `threads`, `numerics`: as in `compile`.
    - `plain_input`, `plain_output`: whether the neighbours hold these tensors row-major, so that channel blocks cost
      a conversion.
    - `residual`: whether a tensor is added to the output.
    - `shuffle`: the groups of a channel shuffle of the output; 0: none.
    - `algorithm`: the name that the caller asks for, "auto" where any will do.
    - `in_order`: whether the input's channels lie in an order of the plan's own (`lower.regroup`).
    - `in_lanes`: whether the output's do, where each group begins a vector.
    """

    spec: ConvSpec
    size: tuple[int, ...]
    batch: int
    dtype: np.dtype
    target: Target
    threads: int
    numerics: str = "default"
    plain_input: bool = False
    plain_output: bool = False
    residual: bool = False
    shuffle: int = 0
    algorithm: str = "auto"
    in_order: bool = False
    in_lanes: bool = False

    @property
    def out_size(self) -> tuple[int, ...]:
        return self.spec.output_size(self.size)

    @property
    def element(self) -> str:
        """What kernels call the data type: "f32" or "f64"."""
        return "f64" if self.dtype == np.float64 else "f32"

    @property
    def by_group(self) -> bool:
        """Whether a shuffle, if there is one, is of the convolution's own groups: channel c of group g, of G groups, is
        output c G + g."""
        return self.shuffle in (0, self.spec.groups)

    @property
    def macs(self) -> int:
        """Of all images."""
        return self.spec.macs(self.size, self.batch)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way to compute a convolution.

    - `name`: what users choose by: "direct", "paired", "im2col", "winograd", "fft". `variant`: what tells rows of a
      name apart.
    - `blocked`: whether it reads and writes channel blocks, its input inside a halo; else plain row-major tensors.
    - `why_not`: why it cannot compute a problem, in a sentence; None where it can.
    - `cycles`: estimated time in cycles of a core on each of the threads, conversions of layouts left out.
    - `multiplications`: how many it does, on all lanes that count.
    - `workspace`: bytes of scratch memory beyond input, weights and output.
    - `error_bound`: of the largest output value in float32, what a result may differ from the exact sum by.
    - `lower`: adds the layer's steps to a plan.
    - `halo`: zeros that it wants around a blocked input, where they are not the convolution's padding.
    - `shuffles`: whether it stores output channels in the order of a shuffle of the convolution's own groups.
    - `least_cycles`: what `cycles` cannot be below, where finding them takes long: a row that cannot win need not be
      estimated.
    """

    name: str
    variant: str
    blocked: bool
    why_not: Callable[[Problem], str | None]
    cycles: Callable[[Problem], float]
    multiplications: Callable[[Problem], int]
    workspace: Callable[[Problem], int]
    error_bound: Callable[[Problem], float]
    lower: Callable[[Builder, Layer, Problem], None]
    halo: Callable[[Problem], Halo] | None = None
    shuffles: bool = False
    least_cycles: Callable[[Problem], float] | None = None


def problem_of(b: Builder, layer: Layer) -> Problem:
    """What the layer asks for, found once a plan. Raises ConvwrightError as `spec_of`."""
    if id(layer) not in b.problems:
        b.problems[id(layer)] = _problem_of(b, layer)
    return b.problems[id(layer)]


def _problem_of(b: Builder, layer: Layer) -> Problem:
    node = layer.node
    shape = b.shape(node.inputs[0])
    return Problem(
        spec_of(node, shape, b.graph.constants[node.inputs[1]].shape),
        shape[2:],
        shape[0],
        b.types[node.inputs[0]].dtype,
        b.target,
        b.threads,
        b.numerics,
        plain_input=node.inputs[0] in b.graph.inputs,
        plain_output=layer.output in b.graph.outputs,
        residual=bool(layer.residual),
        shuffle=layer.shuffle,
        algorithm=node.attributes.get("algorithm", "auto"),
    )


def choose(rows: tuple[Algorithm, ...], problem: Problem, cost: Callable[[Algorithm, Problem], float]) -> Algorithm:
    """The row of least cost among those that can and that the caller's wish admits.

    A wish names an algorithm, alone or with an option after a hyphen: a row's variant ("direct-planes"), or what the
    rows of that name read themselves ("winograd-4x4"). Raises ConvwrightError where no row can, with each one's reason.
    """
    wish, _, option = problem.algorithm.partition("-")
    wanted = [row for row in rows if wish in ("auto", row.name)]
    wanted = [row for row in wanted if row.variant == option] or wanted
    if not wanted:
        names = ", ".join(dict.fromkeys(row.name for row in rows))
        raise ConvwrightError(f"algorithm {problem.algorithm!r} is unknown: choose auto or one of {names}")
    reasons = {f"{row.name} {row.variant}".strip(): row.why_not(problem) for row in wanted}
    able = [row for row, reason in zip(wanted, reasons.values(), strict=True) if reason is None]
    if not able:
        raise ConvwrightError("no algorithm: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    bounds = [(row.least_cycles(problem) if row.least_cycles else 0.0, row) for row in able]
    best, lowest = able[0], math.inf
    for least, row in sorted(bounds, key=lambda bound: bound[0]):
        if least < lowest and (found := cost(row, problem)) < lowest:
            best, lowest = row, found
    return best
