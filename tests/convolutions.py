"""Random convolutions for tests of planned layers, and what they should give."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convwright import reference
from convwright.codegen.target import Target
from convwright.graph import Node
from convwright.kernels.activations import ROWS
from convwright.spec import ConvSpec
from tests.plans import Arrays, Planned, graph_of, planned

Random = np.random.Generator
Epilogue = tuple[tuple[Any, ...], ...]
RESIDUAL: tuple[Any, ...] = ("residual",)

# Activations as operators of ONNX, with the constants that they need as attributes.
ACTIVATIONS: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {
    ("relu",): ("Relu", {}),
    ("clip", 0.0, 6.0): ("Clip", {"min": 0.0, "max": 6.0}),
    ("leaky_relu", 0.1): ("LeakyRelu", {"alpha": 0.1}),
    ("sigmoid",): ("Sigmoid", {}),
    ("hard_swish",): ("HardSwish", {}),
    ("tanh",): ("Tanh", {}),
    ("gelu",): ("Gelu", {}),
}
STEEPEST = 1.13  # the largest slope of these: gelu's


@dataclass(frozen=True)
class Case:
    """A convolution with its epilogue, and how it stands in the graph.

    inside: the input is not the graph's own (which layers of few channels read plane by plane).
    halo: a 3x3 convolution follows, which wants zeros around the output.
    algorithm: the one that the convolution is to be computed by; see `asked`.
    """

    spec: ConvSpec
    batch: int
    size: tuple[int, ...]
    epilogue: Epilogue = ()
    inside: bool = True
    halo: bool = False
    threads: int = 1
    at_end: bool = True
    tile: tuple[int, int, int] | None = None
    numerics: str = "strict"
    algorithm: str = ""
    seed: int = field(default=0, compare=False)

    @property
    def asked(self) -> str:
        """The algorithm named, else direct summation on channel blocks, or the plan's choice."""
        if self.algorithm:
            return self.algorithm
        if self.numerics != "strict":
            return "auto"
        depthwise = self.spec.groups == self.spec.in_channels == self.spec.out_channels > 1
        return "direct-depthwise" if depthwise else "direct-blocked"

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.batch, self.spec.out_channels, *self.spec.output_size(self.size))

    def arrays(self) -> tuple[Arrays, Arrays]:
        """The graph's inputs, and its constants."""
        rng = np.random.default_rng(self.seed)

        def normal(*shape: int) -> NDArray[np.float32]:
            return rng.standard_normal(shape).astype(np.float32)

        inputs: Arrays = {"x": normal(self.batch, self.spec.in_channels, *self.size)}
        if RESIDUAL in self.epilogue:
            inputs["r"] = normal(*self.out_shape)
        constants: Arrays = {"w": normal(*self.spec.weight_shape)}
        if self.spec.bias:
            constants["b"] = normal(self.spec.out_channels)
        if self.halo:
            constants["after"] = normal(2, self.spec.out_channels, *(3,) * self.spec.rank)
        return inputs, constants

    def plan(self, inputs: Arrays, constants: Arrays, target: Target) -> Planned:
        spec = self.spec
        low, high = zip(*spec.pads(self.size), strict=True)
        attributes: dict[str, Any] = {
            "kernel_shape": spec.kernel, "strides": spec.stride, "dilations": spec.dilation, "pads": (*low, *high),
            "group": spec.groups, "algorithm": self.asked,
        }  # fmt: skip
        source = "inside" if self.inside else "x"
        nodes = [Node("Identity", ["x"], ["inside"])] if self.inside else []
        nodes.append(Node("Conv", [source, "w", *(["b"] if spec.bias else [])], ["y"], attributes))
        for number, operation in enumerate(self.epilogue):
            name = nodes[-1].outputs[0]
            if operation == RESIDUAL:
                nodes.append(Node("Add", [name, "r"], [f"y{number}"]))
            else:
                op, options = ACTIVATIONS[operation]
                nodes.append(Node(op, [name], [f"y{number}"], dict(options)))
        outputs = [nodes[-1].outputs[0]]
        if self.halo:
            around = {"kernel_shape": (3,) * spec.rank, "pads": (1,) * (2 * spec.rank)}
            nodes.append(Node("Conv", [outputs[0], "after"], ["z"], around))
            outputs.append("z")
        return planned(graph_of(nodes, inputs, outputs, constants), target, self.threads, self.tile, self.numerics)

    def run(self, plan: Planned, inputs: Arrays) -> list[NDArray[Any]]:
        """The convolution's output, and where there is one the output of the convolution that follows."""
        results = plan.run(inputs, at_end=self.at_end)
        return [results[name] for name, _, _ in plan.outputs]

    def expected(self, inputs: Arrays, constants: Arrays) -> tuple[NDArray[np.float64], float]:
        """The output in float64, and how far a result may be from it.

        Rounding errors of a sum behave like a random walk: they are measured against the root of the sum of the squares
        of its terms, of which 2e-6 is allowed up to 256 terms, and beyond that as the root of their number grows.
        """
        spec, (x, w), b = self.spec, (inputs["x"], constants["w"]), constants.get("b")
        y = reference.conv(x, w, b, spec)
        with np.errstate(invalid="ignore"):
            squares = reference.conv(
                x.astype(float) ** 2, w.astype(float) ** 2, None if b is None else b.astype(float) ** 2, spec
            )
        terms = math.prod(spec.weight_shape[1:])
        scale = math.sqrt(np.max(squares, initial=0.0, where=np.isfinite(squares))) + 1.0
        bound = 2e-6 * math.sqrt(max(1.0, terms / 256)) * scale * STEEPEST
        for name, *parameters in self.epilogue:
            with np.errstate(all="ignore"):
                if (name,) == RESIDUAL:
                    y = y + inputs["r"]
                else:
                    row = ROWS[name]
                    y = row.reference(y, *parameters)
        return y, bound

    def check_specials(self, target: Target, rng: Random) -> None:
        """A NaN or an infinity somewhere in the input, and in the residual, goes where the reference sends it."""
        inputs, constants = self.arrays()
        plan = self.plan(inputs, constants, target)
        for value in (np.nan, np.inf, -np.inf):
            for name in inputs:
                changed = {key: array.copy() for key, array in inputs.items()}
                changed[name][tuple(rng.integers(0, changed[name].shape))] = value
                expected, bound = self.expected(changed, constants)
                compare(self.run(plan, changed)[0], expected, bound, (name, value, self))

    def check(self, target: Target) -> None:
        inputs, constants = self.arrays()
        result = self.run(self.plan(inputs, constants, target), inputs)
        expected, bound = self.expected(inputs, constants)
        compare(result[0], expected, bound, self)
        if self.halo:
            after = ConvSpec.of_rank(self.spec.rank, self.spec.out_channels, 2, 3, padding=1, bias=False)
            wanted = reference.conv(result[0], constants["after"], None, after)
            terms = 9 * self.spec.out_channels
            compare(
                result[1],
                wanted,
                2e-6 * math.sqrt(max(1.0, terms / 256)) * math.sqrt(terms) * (1 + np.abs(result[0]).max()),
                self,
            )


def compare(actual: NDArray[Any], expected: NDArray[np.float64], bound: float, case: object) -> None:
    """NaN and infinities in the same places, and elsewhere no further apart than the bound."""
    assert actual.shape == expected.shape, case
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), err_msg=str(case))
    infinite = np.isinf(expected)
    np.testing.assert_array_equal(actual[infinite], expected[infinite], err_msg=str(case))
    finite = np.isfinite(expected)
    error = np.abs(actual[finite] - expected[finite]).max(initial=0.0)
    assert error <= bound, f"{case}: error {error:.3g}, allowed {bound:.3g}"


SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9)
WIDER = (15, 16, 17, 31, 33)


def random_epilogue(rng: Random) -> Epilogue:
    activation = list(ACTIVATIONS)[rng.integers(len(ACTIVATIONS))]
    kinds: list[Epilogue] = [(), (activation,), (RESIDUAL,), (activation, RESIDUAL), (RESIDUAL, activation)]
    return kinds[rng.integers(len(kinds))]


def random_channels(rng: Random, v: int) -> tuple[int, int, int]:
    """Input channels, output channels and groups."""
    edges = [1, 2, 3, v - 1, v, v + 1, 2 * v + 3]
    if rng.random() < 0.55:
        return int(rng.choice(edges)), int(rng.choice(edges)), 1
    groups = int(rng.choice([2, 3, 4, 5]))
    own_in = int(rng.choice([1, 2, 3, v // 2, v - 1, v, v + 1]))  # 1: depthwise with a channel multiplier
    own_out = int(rng.choice([1, 2, 3, v // 2, v - 1, v, v + 1]))
    if own_in == own_out == 1:
        own_out = 2
    return groups * own_in, groups * own_out, groups


def random_window(rng: Random, rank: int, largest: int) -> dict[str, Any]:
    """Kernel, stride, dilation and padding, different on every axis; a quarter pointwise, a quarter of one size."""
    style = rng.integers(4)
    if style == 0:
        kernel: tuple[int, ...] = (1,) * rank
    elif style == 1:
        kernel = (int(rng.integers(1, largest + 1)),) * rank
    else:
        kernel = tuple(int(k) for k in rng.integers(1, largest + 1, rank))
    stride = tuple(int(s) for s in rng.choice([1, 1, 2, 3], rank)) if rng.random() < 0.6 else (1,) * rank
    dilation = tuple(int(d) for d in rng.choice([1, 1, 2, 3], rank)) if rng.random() < 0.4 else (1,) * rank
    padding = tuple((int(low), int(high)) for low, high in rng.integers(0, 4, (rank, 2)))
    if rng.random() < 0.3:
        padding = ((0, 0),) * rank
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}


def random_size(rng: Random, spec: ConvSpec, most: int = 600) -> tuple[int, ...]:
    """An input size with at least one output, and not too many pixels."""
    while True:
        size = tuple(int(rng.choice(SIZES if rng.random() < 0.7 else WIDER)) for _ in range(spec.rank))
        spans = [sum(pad) + n for pad, n in zip(spec.pads(size), size, strict=True)]
        if math.prod(size) <= most and all(s >= e for s, e in zip(spans, spec.effective_kernel, strict=True)):
            return size
        most += 20
