"""What tests of integer convolutions share: cases, targets, and the exact results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright.codegen.target import NAMES, Target, runs_here, target_named
from convwright.graph import Node
from convwright.model.lower import integer_channels, integer_planes
from convwright.model.lower.integer_layer import IntegerLayer
from convwright.model.tiles import Shape
from convwright.reference import conv_integer
from convwright.spec import ConvSpec, IntegerSpec
from tests.plans import Arrays, graph_of, planned

Random = np.random.Generator
Ints = NDArray[Any]

_targets = [(name, target_named(name), runs_here(name)) for name in NAMES]
if target_named("avx512").has_vnni:
    _targets.append(("avx512-without-vnni", replace(target_named("avx512"), has_vnni=False), True))


def targets_here() -> list[Target]:
    """The targets that this CPU can run."""
    return [target for _, target, here in _targets if here]


on_each_target = pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, id=name, marks=[] if here else [pytest.mark.skip(f"no {name} here")])
        for name, target, here in _targets
    ],
)


def sums(x: Ints, w: Ints, spec: ConvSpec, x_zero: Ints, w_zero: Ints) -> Ints:
    """The exact sums, in int64."""
    exact = IntegerSpec(
        spec, int(x_zero.reshape(-1)[0]), [int(zero) for zero in w_zero.reshape(-1)],
        input_signed=x.dtype == np.int8, weight_signed=w.dtype == np.int8,
    )  # fmt: skip
    return conv_integer(x, w, exact).astype(np.int64)


def requantised(total: Ints, scales: Ints, y_zero: Ints) -> Ints:
    """As onnxruntime does it, where the reference has float64: one float32 product, limits, rounding half to even."""
    info = np.iinfo(y_zero.dtype)
    zero = int(y_zero.reshape(-1)[0])
    value = total.astype(np.int32).astype(np.float32) * scales.reshape(-1, *(1,) * (total.ndim - 2))
    value = np.clip(value, np.float32(info.min - zero), np.float32(info.max - zero))
    return (np.rint(value).astype(np.int64) + zero).astype(y_zero.dtype)


@dataclass
class Case:
    """One integer convolution with its types, zero points, and how it is cut."""

    spec: ConvSpec
    size: tuple[int, ...]
    batch: int = 1
    x_type: Any = np.uint8
    w_type: Any = np.int8
    x_zero: bool = True
    w_zero: str = ""  # "", "one", "each", or "extreme": weights minus it do not fit 8 bits
    dynamic: bool = False  # the input's zero point is an input too
    y_type: Any = None  # of a QLinearConv
    bias: bool = False
    threads: int = 1
    at_end: bool = True
    scratch: int | None = None
    family: str | None = None
    tile: tuple[int, int, int] | None = None
    seed: int = 0
    _arrays: tuple[Arrays, Arrays] | None = field(default=None, repr=False)

    def arrays(self) -> tuple[Arrays, Arrays]:
        """Inputs and constants."""
        rng = np.random.default_rng(self.seed)
        spec = self.spec

        def any_of(dtype: Any, shape: tuple[int, ...]) -> Ints:
            info = np.iinfo(dtype)
            values = rng.integers(info.min, info.max + 1, shape)
            extremes = rng.choice([info.min, info.max], shape)
            return np.asarray(np.where(rng.random(shape) < 0.3, extremes, values), dtype)

        inputs = {"x": any_of(self.x_type, (self.batch, spec.in_channels, *self.size))}
        constants = {"w": any_of(self.w_type, spec.weight_shape)}
        middle = 128 if self.w_type is np.uint8 else 0
        if self.x_zero or self.dynamic:
            (inputs if self.dynamic else constants)["xz"] = any_of(self.x_type, (1,) if self.seed // 2 % 2 else ())
        shape = (spec.out_channels,) if self.w_zero == "each" else ()
        if self.w_zero == "extreme":
            constants["wz"] = any_of(self.w_type, (spec.out_channels,))
        elif self.w_zero:
            constants["wz"] = np.full(shape, middle, self.w_type)
        elif self.y_type is not None:
            constants["wz"] = np.zeros((), self.w_type)
        if self.y_type is not None:
            if "xz" not in {**inputs, **constants}:
                constants["xz"] = np.zeros((), self.x_type)
            spread = 1.5 * np.sqrt(np.prod(spec.weight_shape[1:])) * 74 * 74
            constants["xs"] = np.float32(0.02) * np.ones((), np.float32)
            each = spec.out_channels if rng.random() < 0.6 else 1
            constants["ws"] = rng.uniform(0.5, 2, each).astype(np.float32)
            constants["ys"] = np.float32(0.02 * spread / 128) * np.ones((), np.float32)
            constants["yz"] = any_of(self.y_type, ())
            if self.bias:
                limit = int(spread)
                constants["b"] = rng.integers(-limit, limit + 1, spec.out_channels).astype(np.int32)
        return inputs, constants

    def node(self, names: set[str]) -> Node:
        def have(name: str) -> str:
            return name if name in names else ""

        pads = self.spec.pads(self.size)
        attributes = {
            "strides": list(self.spec.stride),
            "dilations": list(self.spec.dilation),
            "group": self.spec.groups,
            "pads": [low for low, _ in pads] + [high for _, high in pads],
        }
        if self.y_type is None:
            return Node("ConvInteger", ["x", "w", have("xz"), have("wz")], ["y"], attributes)
        inputs = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", have("b")]
        return Node("QLinearConv", inputs, ["y"], attributes)

    def expected(self, inputs: Arrays, constants: Arrays) -> Ints:
        given = {**inputs, **constants}
        x_zero = given.get("xz", np.zeros(1, self.x_type))
        w_zero = given.get("wz", np.zeros(1, self.w_type))
        total = sums(given["x"], given["w"], self.spec, x_zero, w_zero)
        if self.y_type is None:
            return total.astype(np.int32)
        if "b" in given:
            total += given["b"].reshape(-1, *(1,) * (total.ndim - 2))
        return requantised(total, given["xs"] * given["ws"] / given["ys"], given["yz"])

    def check(self, target: Target) -> None:
        inputs, constants = self.arrays()
        graph = graph_of([self.node({*inputs, *constants})], inputs, ["y"], constants)
        with _forced(self):
            plan = planned(graph, target, self.threads)
        assert all(step.family is not None for step in plan.steps), self
        found = plan.run(inputs, at_end=self.at_end)["y"]
        wanted = self.expected(inputs, constants)
        assert found.dtype == wanted.dtype, self
        assert np.array_equal(found, wanted), (self, np.argwhere(found != wanted)[:5])


@contextmanager
def _forced(case: Case) -> Iterator[None]:
    """Another kernel, another register tile, and other room for sums, than the plan would choose."""
    scratch = case.scratch or integer_channels._SCRATCH_BYTES
    estimates = {integer_channels: 1.0, integer_planes: 2.0 if case.family == "channels" else 0.0}
    tile = case.tile

    def choose_shape(rows: int, cols: int, vectors: int, *_: Any) -> Shape:
        assert tile is not None
        return Shape(min(tile[0], rows), min(tile[1], cols), min(tile[2], vectors), 0.0)

    def choose_planes(b: Any, layer: IntegerLayer) -> integer_planes.Tile:
        assert tile is not None
        pixels = layer.window.out[1] * layer.window.out[2]
        return integer_planes.Tile(min(tile[2], layer.own_out), max(1, min(tile[1], pixels // b.v)), 0.0)

    with ExitStack() as stack:
        stack.enter_context(patch.object(integer_channels, "_SCRATCH_BYTES", scratch))
        if case.family is not None:
            for family, cycles in estimates.items():
                stack.enter_context(patch.object(family, "estimate", lambda *_, cycles=cycles: cycles))
        if tile is not None:
            stack.enter_context(patch.object(integer_channels, "choose_tile", choose_shape))
            stack.enter_context(patch.object(integer_planes, "_tile", choose_planes))
        yield


def random_spec(rng: Random, v: int) -> tuple[ConvSpec, tuple[int, ...]]:
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    edges = [1, 2, 3, 4, 5, 7, v, 2 * v - 1, 2 * v + 1, 4 * v - 1, 4 * v, 4 * v + 1]
    groups = int(rng.choice([1, 1, 1, 2, 3, 5]))
    own_in = int(rng.choice(edges if groups == 1 else edges[:8]))
    own_out = int(rng.choice([1, 2, 3, v - 1, v, v + 1, 2 * v + 3] if groups == 1 else [1, 2, v // 2, v - 1, v + 1]))
    if rng.random() < 0.15:  # depthwise, with a channel multiplier
        groups, own_in, own_out = int(rng.choice([1, 3, v, v + 1])), 1, int(rng.integers(1, 3))
    most = 5 if rank < 3 else 3
    kernel = tuple(int(rng.integers(1, most + 1)) for _ in range(rank))
    stride = tuple(int(rng.choice([1, 1, 2, 3])) for _ in range(rank))
    dilation = tuple(int(rng.choice([1, 1, 1, 2, 3])) for _ in range(rank))
    widest = 0 if rng.random() < 0.3 else 3
    padding = tuple((int(low), int(high)) for low, high in rng.integers(0, widest + 1, (rank, 2)))
    spec = ConvSpec(
        groups * own_in, groups * own_out, kernel,
        stride=stride, dilation=dilation, padding=padding, groups=groups, bias=False,
    )  # fmt: skip
    longest = 40 if rank == 1 else 20 if rank == 2 else 7
    size = []
    for span, (low, high) in zip(spec.effective_kernel, padding, strict=True):
        size.append(int(rng.integers(max(1, span - low - high), max(1, span - low - high) + longest)))
    return spec, tuple(size)


def random_case(seed: int, target: Target) -> Case:
    """A ConvInteger where the seed is even, a QLinearConv where it is odd."""
    rng = np.random.default_rng(seed)
    spec, size = random_spec(rng, target.vector)
    byte = [np.uint8, np.int8]
    tile = (int(rng.integers(1, 4)), int(rng.integers(1, 7)), int(rng.integers(1, 3)))
    return Case(
        spec, size,
        batch=int(rng.integers(1, 3)),
        x_type=byte[int(rng.integers(2))],
        w_type=byte[int(rng.integers(2))],
        x_zero=bool(rng.random() < 0.8),
        w_zero=str(rng.choice(["", "one", "each", "extreme"])),
        dynamic=bool(rng.random() < 0.2),
        y_type=byte[int(rng.integers(2))] if seed % 2 else None,
        bias=bool(rng.random() < 0.6),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        scratch=int(rng.choice([256, 4096])) if rng.random() < 0.4 else None,
        family=[None, "channels", "planes"][int(rng.integers(3))],
        tile=tile if rng.random() < 0.3 else None,
        seed=seed,
    )  # fmt: skip


SPECS: dict[str, Any] = {
    "one channel": lambda v: (ConvSpec(1, 1, (3, 3), padding=1), (9, 14)),
    "one output channel": lambda v: (ConvSpec(4 * v + 1, 1, (3, 3), padding=1), (9, 14)),
    "first layer": lambda v: (ConvSpec(3, v, (7, 7), stride=2, padding=3), (29, 31)),
    "depthwise": lambda v: (ConvSpec(v + 1, v + 1, (3, 3), padding=1, groups=v + 1), (9, 2 * v + 3)),
    "depthwise, stride 2": lambda v: (ConvSpec(3, 6, (3, 5), stride=2, padding=2, groups=3), (9, 4 * v + 1)),
    "small groups": lambda v: (ConvSpec(12, 9, (3, 3), padding=1, groups=3, dilation=2), (7, 2 * v)),
    "stride larger than the kernel": lambda v: (ConvSpec(v + 1, v, (2, 2), stride=(5, 3)), (11, 13)),
    "everything different on every axis": lambda v: (
        ConvSpec(v - 1, v + 1, (2, 5), stride=(3, 1), dilation=(1, 3), padding=((0, 3), (4, 1))),
        (8, 17),
    ),
    "the kernel covers the input": lambda v: (ConvSpec(v + 1, 2 * v + 3, (5, 7)), (5, 7)),
    "padding beyond the kernel": lambda v: (ConvSpec(3, 2, (2, 2), padding=5), (3, 4)),
    "one long axis": lambda v: (ConvSpec(v + 1, v - 1, (7,), stride=2, padding=3, dilation=2), (3000,)),
    "three axes": lambda v: (ConvSpec(5, v + 1, (3, 2, 3), stride=(2, 1, 1), padding=(2, 1, 0)), (4, 5, 7)),
}
