"""Random calls of the functions of arrays, of every kind of convolution, against their float64 references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

import convwright as cw
from convwright import reference
from convwright.codegen.lang import lanes
from convwright.codegen.target import host_target
from convwright.errors import ConvwrightError
from convwright.spec import PADDING_MODES, ConvSpec, SeparableSpec, SpatialSpec
from tests.convolutions import Random, random_channels, random_size, random_window
from tests.functional import Array

CONVOLUTIONS = ("standard", "pointwise", "grouped", "depthwise", "dilated", "transposed")
CHAINS = ("separable", "spatial")

# Of the largest output. The default numerics promise 1e-5; direct sums of the lengths drawn here stay within 3e-6.
ALLOWED = {("f32", "default"): 1e-5, ("f32", "strict"): 3e-6, ("f64", "default"): 2e-14, ("f64", "strict"): 2e-14}


@dataclass(frozen=True)
class Call:
    """A call of `conv`, `conv_transpose`, `separable_conv` or `spatial_conv` with random numbers.

    batch: None for an input without one.
    size: the input's, of which "same" padding depends.
    into: whether the result goes into an array of the caller's.
    """

    spec: ConvSpec | SeparableSpec | SpatialSpec
    size: tuple[int, ...]
    batch: int | None
    element: str
    numerics: str
    threads: int | None
    into: bool
    seed: int

    @property
    def conv(self) -> ConvSpec:
        return self.spec if isinstance(self.spec, ConvSpec) else self.spec.conv

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if self.element == "f64" else np.float32)

    def arrays(self) -> tuple[list[Array | None], Array]:
        """The input, the weights and the bias, and what they should give."""
        rng, conv = np.random.default_rng(self.seed), self.conv

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape).astype(self.dtype)

        x = normal(*(() if self.batch is None else (self.batch,)), conv.in_channels, *self.size)
        stages = (conv,) if isinstance(self.spec, ConvSpec) else self.spec.stages
        weights = [normal(*stage.weight_shape) for stage in stages]
        bias = normal(conv.out_channels) if conv.bias else None
        if isinstance(self.spec, ConvSpec):
            expected = reference.conv(x, weights[0], bias, self.spec)
        else:
            expected = REFERENCES[self.spec.kind](x, weights, bias, self.spec)
        return [x, *weights, bias], expected

    def options(self) -> dict[str, Any]:
        """Those of the spec."""
        conv = self.conv
        names = ["stride", "padding", "dilation", "flip", "output_padding" if conv.transposed else "padding_mode"]
        names += ["groups"] * isinstance(self.spec, ConvSpec)
        return {name: getattr(conv, name) for name in names}

    def check(self) -> None:
        given, expected = self.arrays()
        out = np.full(expected.shape, np.nan, self.dtype) if self.into else None
        how = {"out": out, "threads": self.threads, "numerics": self.numerics}
        result = FUNCTIONS[self.spec.kind](*given, **self.options(), **how)
        assert out is None or result is out
        self.compare(result, expected, ALLOWED[self.element, self.numerics] * max(1.0, np.abs(expected).max()))

    def check_algorithms(self) -> None:
        """Each algorithm that `algorithms` finds applicable stays within the error that it states.

        That is of the largest output; of few outputs all may be small by chance, where the root of the largest sum of
        the squares of terms counts.
        """
        assert isinstance(self.spec, ConvSpec)
        given, expected = self.arrays()
        x, weight, bias = (None if array is None else array.astype(float) ** 2 for array in given)
        assert x is not None
        assert weight is not None
        largest = max(np.abs(expected).max(), reference.conv(x, weight, bias, self.spec).max() ** 0.5)
        for row in cw.algorithms(self.spec, self.size, self.batch or 1, dtype=self.dtype.name):
            if row.error_bound is not None:
                result = FUNCTIONS[self.spec.kind](*given, **self.options(), algorithm=row.algorithm)
                self.compare(result, expected, row.error_bound * largest, row.algorithm or "")

    def compare(self, result: Array, expected: Array, allowed: float, algorithm: str = "auto") -> None:
        assert (result.dtype, result.shape) == (self.dtype, expected.shape)
        error = np.abs(result - expected).max()
        assert error <= allowed, f"{algorithm}: error {error:.3g}, allowed {allowed:.3g}"


FUNCTIONS: dict[str, Callable[..., Array]] = {
    **dict.fromkeys(CONVOLUTIONS, cw.conv),
    "transposed": cw.conv_transpose,
    "separable": cw.separable_conv,
    "spatial": cw.spatial_conv,
}
REFERENCES: dict[str, Callable[..., Array]] = {
    "separable": reference.separable_conv,
    "spatial": reference.spatial_conv,
}


def random_call(kind: str, seed: int) -> Call:
    """A call of this kind that fits its arrays: channels around the vector's width, another number on every axis."""
    rng = np.random.default_rng([seed, [*CONVOLUTIONS, *CHAINS].index(kind)])
    element = "f64" if rng.random() < 0.25 else "f32"
    v = lanes(host_target(), element)
    while True:
        try:
            spec = random_spec(kind, rng, v)
            conv = spec if isinstance(spec, ConvSpec) else spec.conv
            size = random_size(rng, conv, 300)
            spec.output_size(size)
        except ConvwrightError:
            continue
        if spec.kind == kind and prod(size) * conv.in_channels <= 20_000:
            break
    return Call(
        spec,
        size,
        batch=[None, 1, 1, 2, 3][rng.integers(5)],
        element=element,
        numerics="strict" if rng.random() < 0.4 else "default",
        threads=[None, 1, 2, 3][rng.integers(4)],
        into=bool(rng.random() < 0.3),
        seed=seed,
    )


def random_spec(kind: str, rng: Random, v: int) -> ConvSpec | SeparableSpec | SpatialSpec:
    """A spec that often is of this kind."""
    rank = int(rng.integers(2 if kind == "spatial" else 1, 4))
    window = random_window(rng, rank, {1: 11, 2: 6, 3: 4}[rank])
    if kind == "pointwise":
        window["kernel"] = (1,) * rank
    if rng.random() < 0.1:
        window["stride"] = tuple(int(s) for s in rng.choice([1, 4, 5, 7], rank))
    options: dict[str, Any] = {"flip": bool(rng.random() < 0.2), "bias": bool(rng.random() < 0.6)}
    if kind == "transposed":
        steps = zip(window["stride"], window["dilation"], strict=True)
        options |= {"transposed": True, "output_padding": [int(rng.integers(0, max(pair))) for pair in steps]}
    else:
        options["padding_mode"] = str(rng.choice(["zeros", *PADDING_MODES]))
        if rng.random() < 0.25:
            window["padding"] = str(rng.choice(["same", "same_lower", "valid"]))
    in_channels, out_channels, groups = random_channels(rng, v)
    if kind == "depthwise":
        in_channels = groups = int(rng.choice([2, 3, v - 1, v, v + 1, 2 * v + 3]))
        out_channels = in_channels * int(rng.choice([1, 1, 1, 2, 3]))
    if kind in CHAINS:
        groups = 1
    conv = ConvSpec(in_channels, out_channels, **window, groups=groups, **options)
    if kind == "separable":
        return SeparableSpec(conv, int(rng.choice([1, 1, 2, 3])))
    if kind == "spatial":
        return SpatialSpec(conv, int(rng.choice([1, 2, 3, v - 1, v, v + 1])))
    return conv
