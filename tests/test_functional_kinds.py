"""The other kinds of convolution as functions of arrays: against their float64 references, and what they refuse."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import convwright as cw
from convwright import functional, reference
from convwright.codegen.target import host_target
from convwright.model.lower.fallback import SlowOperatorWarning
from convwright.spec import (
    ConvSpec,
    DeformableSpec,
    IntegerSpec,
    SeparableSpec,
    SpatialSpec,
)
from tests import integers
from tests.functional import close, normal, refused
from tests.sweeps import check_each, on_host


@pytest.fixture(autouse=True)
def nothing_remembered() -> Any:
    yield
    functional.forget()


class TestSeparable:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("rank", [1, 2, 3])
    @pytest.mark.parametrize("multiplier", [1, 3])
    def test_two_stages(self, rank: int, multiplier: int, dtype: Any) -> None:
        kernel, size = (3, 2, 5)[:rank], (9, 8, 7)[:rank]
        options: dict[str, Any] = {"stride": (1, 2, 1)[:rank], "padding": 2, "dilation": (2, 1, 1)[:rank], "flip": True}
        conv = ConvSpec(5, 4, kernel, **options)
        spec = SeparableSpec(conv, multiplier)
        x, bias = normal(0, 2, 5, *size, dtype=dtype), normal(3, 4, dtype=dtype)
        weights = [normal(1 + i, *stage.weight_shape, dtype=dtype) for i, stage in enumerate(spec.stages)]
        expected = reference.separable_conv(x, weights, bias, spec)
        close(cw.separable_conv(x, weights[0], weights[1], bias, **options), expected, dtype)
        close(cw.separable_conv(x[0], weights[0], weights[1], bias, **options), expected[0], dtype)

    def test_refused(self) -> None:
        x, pointwise = normal(0, 1, 4, 6, 6), normal(2, 3, 4, 1, 1)
        refused(lambda: cw.separable_conv(x, normal(1, 6, 1, 3, 3), pointwise), "(6, 1, 3, 3)", "4 channels")
        refused(lambda: cw.separable_conv(x, normal(1, 4, 2, 3, 3), pointwise), "(4, 1, 3, 3), got (4, 2, 3, 3)")
        refused(lambda: cw.separable_conv(x, normal(1, 4, 1, 3, 3), normal(2, 3, 5, 1, 1)), "got (3, 5, 1, 1)")
        refused(lambda: cw.separable_conv(x, normal(1, 4, 1, 3, 3), normal(2, 3, 4, 1)), "(3, 4, 1)")
        refused(lambda: cw.separable_conv(x[0, 0], normal(1, 4, 1, 3, 3), pointwise), "(6, 6)")


class TestSpatial:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("rank", [2, 3])
    def test_two_stages(self, rank: int, dtype: Any) -> None:
        kernel, size = (3, 5, 2)[:rank], (7, 9, 6)[:rank]
        options: dict[str, Any] = {"stride": (2, 1, 1)[:rank], "padding": 1, "padding_mode": "replicate"}
        spec = SpatialSpec(ConvSpec(3, 4, kernel, **options), 5)
        x, bias = normal(0, 2, 3, *size, dtype=dtype), normal(3, 4, dtype=dtype)
        weights = [normal(1 + i, *stage.weight_shape, dtype=dtype) for i, stage in enumerate(spec.stages)]
        expected = reference.spatial_conv(x, weights, bias, spec)
        close(cw.spatial_conv(x, weights[0], weights[1], bias, **options), expected, dtype)
        close(cw.spatial_conv(x[1], weights[0], weights[1], bias, **options), expected[1], dtype)

    def test_refused(self) -> None:
        x = normal(0, 1, 4, 6, 6)
        refused(lambda: cw.spatial_conv(x, normal(1, 4, 4, 3, 3), normal(2, 4, 4, 1, 3)), "got (4, 4, 3, 3)")
        refused(lambda: cw.spatial_conv(x, normal(1, 4, 4, 3, 1), normal(2, 4, 3, 1, 3)), "got (4, 3, 1, 3)")
        refused(lambda: cw.spatial_conv(x[0], normal(1, 4, 4, 3), normal(2, 4, 4, 3)), "2 or 3 axes", "(4, 4, 3)")


@dataclass(frozen=True)
class Shuffle:
    """A channel shuffle of random bits; `into`: an array of the caller's, the input itself where it is 2."""

    shape: tuple[int, ...]
    groups: int
    dtype: Any
    into: int
    threads: int | None
    seed: int

    def check(self) -> None:
        rng = np.random.default_rng(self.seed)
        x = np.frombuffer(rng.bytes(prod(self.shape) * np.dtype(self.dtype).itemsize), self.dtype).reshape(self.shape)
        moved = x.reshape(self.shape[0], self.groups, self.shape[1] // self.groups, -1).swapaxes(1, 2)
        expected = moved.reshape(self.shape).tobytes()
        out = x.copy() if self.into else None
        given = out if self.into == 2 and out is not None else x
        result = cw.channel_shuffle(given, self.groups, out=out, threads=self.threads)
        assert out is None or result is out
        assert (result.dtype, result.shape) == (x.dtype, x.shape)
        assert result.tobytes() == expected


def random_shuffle(seed: int) -> Shuffle:
    rng = np.random.default_rng(seed)
    groups, own = (int(n) for n in rng.choice([1, 2, 3, 4, 5, 7, 8, 15, 16, 17], 2))
    size = (int(n) for n in rng.choice([1, 2, 3, 5, 7, 8, 15, 16, 17], rng.integers(0, 4)))
    types = [np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.float16, np.complex64]
    return Shuffle(
        (int(rng.integers(1, 4)), groups * own, *size), groups, types[rng.integers(len(types))],
        int(rng.integers(3)), [None, 1, 2, 3][rng.integers(4)], seed,
    )  # fmt: skip


class TestShuffle:
    @on_host(200)
    def test_random(self, seeds: range) -> None:
        check_each(seeds, random_shuffle, Shuffle.check)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.int64, np.float16, np.complex64])
    @pytest.mark.parametrize("shape", [(2, 12, 5, 7), (1, 12), (3, 12, 4), (1, 24, 2, 3, 5)])
    def test_order(self, shape: tuple[int, ...], dtype: Any) -> None:
        x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        for groups in (1, 2, 3, 12):
            expected = x.reshape(shape[0], groups, shape[1] // groups, -1).swapaxes(1, 2).reshape(shape)
            np.testing.assert_array_equal(cw.channel_shuffle(x, groups), expected)
            out = x.copy()
            assert cw.channel_shuffle(out, groups, out=out) is out
            np.testing.assert_array_equal(out, expected)

    def test_torch(self) -> None:
        x = normal(0, 2, 6, 3, 3)
        theirs = F.channel_shuffle(torch.from_numpy(x), 3)
        np.testing.assert_array_equal(cw.channel_shuffle(x, 3), theirs.numpy())

    def test_empty_and_refused(self) -> None:
        assert cw.channel_shuffle(np.empty((0, 6, 3)), 3).shape == (0, 6, 3)
        refused(lambda: cw.channel_shuffle(normal(0, 1, 6, 3), 4), "(1, 6, 3)", "groups 4")
        refused(lambda: cw.channel_shuffle(normal(0, 1, 6, 3), 0), "groups must be at least 1, got 0")
        refused(lambda: cw.channel_shuffle(normal(0, 6), 2), "(6,)")


class TestDeformable:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 3), (6, 2)])
    @pytest.mark.parametrize("modulated", [False, True])
    def test_samples(self, groups: int, offset_groups: int, modulated: bool, dtype: Any) -> None:
        options: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": groups}
        conv = ConvSpec(6, 6, (3, 2), **options)
        spec = DeformableSpec(conv, offset_groups, modulated)
        x, weight = normal(0, 2, 6, 8, 7, dtype=dtype), normal(1, *conv.weight_shape, dtype=dtype)
        offset, bias = normal(2, *spec.offset_shape((8, 7), 2), dtype=dtype) * dtype(2), normal(3, 6, dtype=dtype)
        mask = np.abs(normal(4, *spec.mask_shape((8, 7), 2), dtype=dtype)) if modulated else None
        expected = reference.deform_conv(x, offset, weight, bias, spec, mask)
        options["offset_groups"] = offset_groups
        with warnings.catch_warnings():
            if dtype == np.float64:
                warnings.simplefilter("ignore", SlowOperatorWarning)
            result = cw.deform_conv(x, offset, weight, bias, mask=mask, **options)
        assert result.dtype == dtype
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()
        if dtype == np.float32:
            one = None if mask is None else mask[1]
            alone = cw.deform_conv(x[1], offset[1], weight, bias, mask=one, **options)
            np.testing.assert_allclose(alone, result[1], rtol=1e-5, atol=1e-5)

    def test_refused(self) -> None:
        x, weight, offset = normal(0, 1, 4, 6, 6), normal(1, 2, 4, 3, 3), normal(2, 1, 18, 4, 4)
        assert cw.deform_conv(x[:0], offset[:0], weight).shape == (0, 2, 4, 4)
        refused(lambda: cw.deform_conv(x, offset, weight, padding=1), "offset must be of shape (1, 18, 6, 6)")
        refused(lambda: cw.deform_conv(x, offset, weight, offset_groups=3), "offset_groups 3")
        refused(lambda: cw.deform_conv(x, offset, weight, mask=offset), "mask must be of shape (1, 9, 4, 4)")
        refused(lambda: cw.deform_conv(x, offset.astype(float), weight), "offset float64")
        refused(lambda: cw.deform_conv(x, offset, normal(1, 2, 4, 3)), "2 spatial axes")
        refused(lambda: cw.deform_conv(x[0], offset, weight), "offset must be of shape (18, 4, 4), got (1, 18, 4, 4)")


@dataclass(frozen=True)
class IntegerCall:
    """A call of `conv_integer`, or of `qlinear_conv` where there is a type of the output, with random integers.

    Scales are powers of two: no product lies next to a half in one precision and beyond it in another.
    """

    spec: IntegerSpec
    size: tuple[int, ...]
    batch: int | None
    y_signed: bool | None
    threads: int | None
    seed: int

    def check(self) -> None:
        rng, conv = np.random.default_rng(self.seed), self.spec.conv
        signed = {True: np.int8, False: np.uint8}
        lead = () if self.batch is None else (self.batch,)
        x = rng.integers(0, 256, (*lead, conv.in_channels, *self.size)).astype(np.uint8)
        x = x.view(signed[self.spec.input_signed])
        w = rng.integers(0, 256, conv.weight_shape).astype(np.uint8).view(signed[self.spec.weight_signed])
        options: dict[str, Any] = {
            "stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups,
            "threads": self.threads,
        }  # fmt: skip
        zeros = self.spec.input_zero_point, np.array(self.spec.weight_zero_point)
        if self.y_signed is None:
            expected: Any = reference.conv_integer(x, w, self.spec)
            result = cw.conv_integer(x, w, input_zero_point=zeros[0], weight_zero_point=zeros[1], **options)
        else:
            x_scale, y_zero = 2.0 ** rng.integers(-4, 1), signed[self.y_signed](rng.integers(0, 100))
            w_scale: Any = 2.0 ** rng.integers(-3, 1, conv.out_channels if rng.random() < 0.5 else ())
            y_scale = 2.0 ** np.round(np.log2(128 * np.sqrt(prod(conv.weight_shape[1:]))))
            bias = rng.integers(-5000, 5000, conv.out_channels).astype(np.int32) if conv.bias else None
            expected = reference.qlinear_conv(
                x, w, bias, self.spec, input_scale=x_scale, weight_scale=w_scale, output_scale=y_scale,
                output_zero_point=int(y_zero), output_signed=self.y_signed,
            )  # fmt: skip
            result = cw.qlinear_conv(x, x_scale, zeros[0], w, w_scale, zeros[1], y_scale, y_zero, bias, **options)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


def random_integers(kind: str, seed: int) -> IntegerCall:
    rng = np.random.default_rng([seed, kind == "qlinear"])
    while True:
        conv, size = integers.random_spec(rng, host_target().vector)
        changes: dict[str, Any] = {"bias": kind == "qlinear" and bool(rng.random() < 0.6)}
        if rng.random() < 0.25:
            changes["padding"] = str(rng.choice(["same", "same_lower", "valid"]))
        signed = [bool(rng.random() < 0.5) for _ in range(3)]
        x_zero, *w_zeros = (int(n) for n in rng.integers(0, 256, 1 + (conv.out_channels if rng.random() < 0.3 else 1)))
        try:
            spec = IntegerSpec(
                replace(conv, **changes), x_zero - 128 * signed[0], [zero - 128 * signed[1] for zero in w_zeros],
                input_signed=signed[0], weight_signed=signed[1],
            )  # fmt: skip
            spec.output_size(size)
        except cw.ConvwrightError:
            continue
        batch, threads = [None, 1, 2][rng.integers(3)], [None, 1, 2, 3][rng.integers(4)]
        return IntegerCall(spec, size, batch, signed[2] if kind == "qlinear" else None, threads, seed)


both_integer_kinds = pytest.mark.parametrize("kind", ["integer", "qlinear"])


@both_integer_kinds
@on_host(100, full=1500)
def test_random_integers(kind: str, seeds: range) -> None:
    check_each(seeds, lambda seed: random_integers(kind, seed), IntegerCall.check)


class TestInteger:
    @pytest.mark.parametrize("seed", range(12))
    def test_exact(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rank, groups = 1 + seed % 3, int(rng.choice([1, 2]))
        x = rng.integers(0, 256, (2, 4 * groups, *(8, 7, 6)[:rank])).astype(np.uint8)
        w = rng.integers(-128, 128, (3 * groups, 4, *(3, 2, 2)[:rank])).astype(np.int8)
        if seed % 2:
            x = (x - 128).astype(np.int8)
        zeros = int(rng.integers(0, 100)), rng.integers(-20, 20, 3 * groups)
        options: dict[str, Any] = {"stride": 2, "padding": 1, "groups": groups}
        conv = ConvSpec.of_weight(w.shape, bias=False, **options)
        spec = IntegerSpec(conv, zeros[0], zeros[1].tolist(), input_signed=bool(seed % 2))
        expected = reference.conv_integer(x, w, spec)
        result = cw.conv_integer(x, w, input_zero_point=zeros[0], weight_zero_point=zeros[1], **options)
        assert result.dtype == np.int32
        np.testing.assert_array_equal(result, expected)
        out = np.empty_like(result[0])
        cw.conv_integer(x[0], w, input_zero_point=zeros[0], weight_zero_point=zeros[1], out=out, **options)
        np.testing.assert_array_equal(out, expected[0])

    def test_weights_and_zero_points_are_remembered_exactly(self) -> None:
        x, w = np.full((1, 1, 3), 5, np.uint8), np.ones((1, 1, 1), np.int8)
        for zero in (0, 1, 2, 1):
            assert cw.conv_integer(x, w, input_zero_point=zero)[0, 0, 0] == 5 - zero
            assert cw.conv_integer(x, w, weight_zero_point=zero)[0, 0, 0] == 5 - 5 * zero

    def test_refused(self) -> None:
        x, w = np.zeros((1, 4, 5), np.uint8), np.zeros((2, 4, 3), np.int8)
        refused(lambda: cw.conv_integer(x.astype(np.int16), w), "int16 and int8")
        refused(lambda: cw.conv_integer(x, w, input_zero_point=256), "input_zero_point 256 is outside 0..255")
        refused(lambda: cw.conv_integer(x, w, weight_zero_point=[0, 1, 2]), "got 3")
        refused(lambda: cw.conv_integer(x, w, input_zero_point=0.5), "0.5")
        refused(lambda: cw.conv_integer(x[:, :3], w), "(1, 3, 5)")
        wide = np.zeros((1, 70_000, 1), np.int8)
        refused(lambda: cw.conv_integer(np.zeros((1, 70_000, 1), np.uint8), wide), "70000 products", "32 bits")


class TestQuantised:
    @pytest.mark.parametrize("signed", [False, True])
    @pytest.mark.parametrize("many", [False, True])
    def test_exact(self, signed: bool, many: bool) -> None:
        rng = np.random.default_rng(signed)
        kind = np.int8 if signed else np.uint8
        x = rng.integers(0, 256, (2, 6, 7, 5)).astype(np.uint8).view(kind)
        w = rng.integers(-128, 128, (4, 3, 3, 2)).astype(np.int8)
        w_scale: Any = np.array([1, 0.5, 2, 0.125], np.float32) if many else np.float32(0.5)
        bias = rng.integers(-500, 500, 4).astype(np.int32)
        conv = ConvSpec(6, 4, (3, 2), padding=1, groups=2)
        spec = IntegerSpec(conv, 3, input_signed=signed)
        # Powers of two: no product lies next to a half in one precision and beyond it in the other.
        expected = reference.qlinear_conv(
            x, w, bias, spec, input_scale=0.25, weight_scale=w_scale, output_scale=64, output_zero_point=9,
            output_signed=signed,
        )  # fmt: skip
        result = cw.qlinear_conv(x, 0.25, 3, w, w_scale, 0, 64.0, kind(9), bias, padding=1, groups=2)
        assert result.dtype == kind
        np.testing.assert_array_equal(result, expected)

    def test_refused(self) -> None:
        x, w = np.zeros((1, 4, 5), np.uint8), np.zeros((2, 4, 3), np.int8)
        refused(lambda: cw.qlinear_conv(x, 0.0, 0, w, 1.0, 0, 1.0, 0), "x_scale must be positive", "0.0")
        refused(lambda: cw.qlinear_conv(x, 1.0, 0, w, [1.0] * 3, 0, 1.0, 0), "w_scale", "(3,)")
        refused(lambda: cw.qlinear_conv(x, 1.0, 0, w, 1.0, 0, np.nan, 0), "y_scale", "nan")
        refused(lambda: cw.qlinear_conv(x, 1.0, 0, w, 1.0, 0, 1.0, 300), "300")
        refused(lambda: cw.qlinear_conv(x, 1.0, 0, w, 1.0, 0, 1.0, 0, np.zeros(2)), "int32, got float64")
        refused(lambda: cw.qlinear_conv(x, 1.0, 0, w, 1.0, 0, 1.0, 0, np.zeros(3, np.int32)), "(3,)")
