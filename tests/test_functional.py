"""Convolutions as functions of arrays: against PyTorch and the float64 reference, with every argument."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import convwright as cw
from convwright import functional, reference
from convwright.functional import prepared
from convwright.spec import (
    ConvSpec,
)
from tests.functional import Array, close, normal, refused
from tests.sweeps import check_each, on_host
from tests.torch_convolutions import CONV, CONV_TRANSPOSE, random_case, torch_conv


@pytest.fixture(autouse=True)
def nothing_remembered() -> Any:
    yield
    functional.forget()


def call(x: Array, weight: Array, bias: Array | None, spec: ConvSpec, **others: Any) -> Array:
    """The function that computes this spec."""
    options: dict[str, Any] = {
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups,
        "flip": spec.flip, **others,
    }  # fmt: skip
    if spec.transposed:
        return cw.conv_transpose(x, weight, bias, output_padding=spec.output_padding, **options)
    return cw.conv(x, weight, bias, padding_mode=spec.padding_mode, **options)


Drawn = tuple[ConvSpec, tuple[int, ...], int | None, int]


def drawn_with(seed: int) -> Drawn:
    """A spec that mostly fits its input, the input's size and batch, and the seed."""
    return *random_case(seed), seed


def check_random(drawn: Drawn) -> None:
    """Also what does not fit, which is refused in the words of the reference; and that agrees with PyTorch."""
    spec, size, batch, seed = drawn
    dtype = np.float32 if seed % 3 else np.float64
    lead = () if batch is None else (batch,)
    x = normal(seed, *lead, spec.in_channels, *size, dtype=dtype)
    weight = normal(seed + 1, *spec.weight_shape, dtype=dtype)
    bias = normal(seed + 2, spec.out_channels, dtype=dtype) if spec.bias else None
    refusal = None
    try:
        expected = reference.conv(x, weight, bias, spec)
    except cw.ConvwrightError as error:
        refusal = str(error)
    if refusal is not None:
        refused(lambda: call(x, weight, bias, spec), refusal)
        return
    close(call(x, weight, bias, spec), expected, dtype)
    wide = None if bias is None else bias.astype(np.float64)
    given = torch_conv(x.astype(np.float64), weight.astype(np.float64), wide, spec)
    np.testing.assert_allclose(expected, given, rtol=1e-9, atol=1e-9)


@on_host(120, part=20)
def test_random_convolutions(seeds: range) -> None:
    check_each(seeds, drawn_with, check_random)


class TestPadding:
    x, weight = normal(0, 1, 3, 7, 8), normal(1, 2, 3, 3, 3)

    @pytest.mark.parametrize("padding", [2, [1, 0], ((0, 2), (1, 1)), "valid", "same", np.int64(1), np.array([2, 1])])
    def test_forms(self, padding: Any) -> None:
        stated = padding.tolist() if isinstance(padding, np.ndarray) else padding
        spec = ConvSpec.of_weight(self.weight.shape, padding=stated, bias=False)
        close(
            cw.conv(self.x, self.weight, padding=padding), reference.conv(self.x, self.weight, None, spec), np.float32
        )

    @pytest.mark.parametrize("padding", ["same", "same_lower"])
    @pytest.mark.parametrize("stride", [2, 3])
    def test_same_follows_the_input_size(self, padding: str, stride: int) -> None:
        spec = ConvSpec.of_weight(self.weight.shape, padding=padding, stride=stride, bias=False)
        for high in (5, 6, 7, 8):
            x = normal(high, 1, 3, high, 9)
            result = cw.conv(x, self.weight, padding=padding, stride=stride)
            assert result.shape[2:] == (-(-high // stride), -(-9 // stride))
            close(result, reference.conv(x, self.weight, None, spec), np.float32)

    def test_same_as_torch(self) -> None:
        theirs = F.conv2d(torch.from_numpy(self.x), torch.from_numpy(self.weight), padding="same", dilation=2)
        close(cw.conv(self.x, self.weight, padding="same", dilation=2), theirs.numpy(), np.float32)

    def test_same_transposed(self) -> None:
        weight = normal(2, 3, 2, 4, 3)
        assert cw.conv_transpose(self.x, weight, padding="same", stride=2).shape == (1, 2, 14, 16)


class TestInputs:
    x, weight, bias = normal(0, 2, 4, 6, 9), normal(1, 6, 2, 3, 3), normal(2, 6)
    spec = ConvSpec(4, 6, (3, 3), groups=2)

    def expected(self) -> Array:
        return reference.conv(self.x, self.weight, self.bias, self.spec)

    def test_not_contiguous(self) -> None:
        x = np.ascontiguousarray(self.x.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0)
        weight, bias = np.asfortranarray(self.weight), np.repeat(self.bias, 2)[::2]
        assert not x.flags.c_contiguous
        close(cw.conv(x, weight, bias, groups=2), self.expected(), np.float32)

    def test_negative_strides(self) -> None:
        x = np.ascontiguousarray(self.x[..., ::-1])[..., ::-1]
        close(cw.conv(x, self.weight, self.bias, groups=2), self.expected(), np.float32)

    def test_read_only_and_unaligned(self) -> None:
        raw = np.zeros(self.x.nbytes + 1, np.uint8)
        raw[1:] = self.x.reshape(-1).view(np.uint8)
        x = raw[1:].view(np.float32).reshape(self.x.shape)
        x.flags.writeable = False
        assert not x.flags.aligned
        close(cw.conv(x, self.weight, self.bias, groups=2), self.expected(), np.float32)

    def test_unbatched(self) -> None:
        close(cw.conv(self.x[1], self.weight, self.bias, groups=2), self.expected()[1], np.float32)

    def test_lists(self) -> None:
        lists = (self.x.astype(float).tolist(), self.weight.astype(float).tolist(), self.bias.astype(float).tolist())
        close(cw.conv(*lists, groups=2), self.expected(), np.float64)

    def test_empty_batch(self) -> None:
        assert cw.conv(self.x[:0], self.weight, self.bias, groups=2).shape == (0, 6, 4, 7)
        out = np.empty((0, 6, 4, 7), np.float32)
        assert cw.conv(self.x[:0], self.weight, self.bias, groups=2, out=out) is out
        with pytest.raises(cw.ConvwrightError, match=r"got \(0, 4, 6, 9\)"):
            cw.conv(self.x[:0], self.weight, self.bias)

    def test_not_finite(self) -> None:
        x = self.x.copy()
        x[0, 0, 2, 2], x[1, 3, 0, 0] = np.nan, np.inf
        expected = reference.conv(x, self.weight, self.bias, self.spec)
        actual = cw.conv(x, self.weight, self.bias, groups=2, numerics="strict")
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))

    def test_inputs_stay_as_they_are(self) -> None:
        copies = [array.copy() for array in (self.x, self.weight, self.bias)]
        cw.conv(self.x, self.weight, self.bias, groups=2)
        for array, copy in zip((self.x, self.weight, self.bias), copies, strict=True):
            np.testing.assert_array_equal(array, copy)


class TestOut:
    x, weight = normal(0, 1, 3, 8, 8), normal(1, 3, 3, 3, 3)

    def expected(self) -> Array:
        return cw.conv(self.x, self.weight, padding=1)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_is_filled_and_returned(self, dtype: Any) -> None:
        out = np.full((1, 3, 8, 8), np.nan, dtype)
        result = cw.conv(self.x.astype(dtype), self.weight.astype(dtype), padding=1, out=out)
        assert result is out
        expected = reference.conv(self.x, self.weight, None, ConvSpec(3, 3, (3, 3), padding=1, bias=False))
        assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()

    def test_not_contiguous(self) -> None:
        room = np.full((8, 8, 3, 2), np.nan, np.float32)
        out = room[..., 1].transpose(2, 0, 1)[None]
        assert cw.conv(self.x, self.weight, padding=1, out=out) is out
        np.testing.assert_array_equal(out, self.expected())
        assert np.isnan(room[..., 0]).all()

    def test_unbatched(self) -> None:
        out = np.empty((3, 8, 8), np.float32)
        assert cw.conv(self.x[0], self.weight, padding=1, out=out) is out
        np.testing.assert_array_equal(out, self.expected()[0])

    def test_may_be_the_input(self) -> None:
        x = self.x.copy()
        assert cw.conv(x, self.weight, padding=1, out=x) is x
        np.testing.assert_array_equal(x, self.expected())

    def test_may_overlap_the_input(self) -> None:
        room = np.zeros(2 * self.x.size, np.float32)
        x, out = (room[at : at + self.x.size].reshape(self.x.shape) for at in (0, 5))
        x[...] = self.x
        cw.conv(x, self.weight, padding=1, out=out)
        np.testing.assert_array_equal(out, self.expected())

    def test_may_be_the_weight(self) -> None:
        weight = self.weight.copy()
        x = normal(3, 3, 3, 3, 3)
        expected = cw.conv(x, weight, padding=1)
        cw.conv(x, weight, padding=1, out=weight)
        np.testing.assert_array_equal(weight, expected)

    def test_refused(self) -> None:
        readonly = np.empty((1, 3, 8, 8), np.float32)
        readonly.flags.writeable = False
        shared = np.lib.stride_tricks.as_strided(np.empty(512, np.float32), (1, 3, 8, 8), (0, 0, 32, 4))
        for out, words in (
            (np.empty((1, 3, 8, 7), np.float32), r"float32 of shape \(1, 3, 8, 8\), got .*\(1, 3, 8, 7\)"),
            (np.empty((1, 3, 8, 8)), "must be float32 .* got float64"),
            (readonly, "read-only"),
            (shared, "share memory"),
            ([0.0], "NumPy array, got list"),
        ):
            for _ in range(2):  # remembered or not
                with pytest.raises(cw.ConvwrightError, match=words):
                    cw.conv(self.x, self.weight, padding=1, out=out)  # type: ignore[arg-type]


X, W = normal(0, 1, 4, 6, 6), normal(1, 6, 4, 3, 3)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"stride": 0}, "stride must be at least 1, got 0"),
    ({"stride": (1, -2)}, "stride must be at least 1, got -2"),
    ({"stride": 1.0}, "stride must be an int, got 1.0"),
    ({"stride": True}, "stride must be an int, got True"),
    ({"stride": (1, 2, 3)}, "stride (1, 2, 3) must have 2 entries"),
    ({"dilation": 0}, "dilation must be at least 1, got 0"),
    ({"padding": -1}, "padding must be at least 0, got -1"),
    ({"padding": "full"}, "'full'"),
    ({"padding": (1, 2, 3)}, "padding (1, 2, 3)"),
    ({"groups": 0}, "groups must be at least 1, got 0"),
    ({"groups": 3}, "the input must be (N, 12, H, W)"),
    ({"groups": 4}, "out_channels 6 is not divisible by groups 4"),
    ({"padding_mode": "mirror"}, "'mirror'"),
    ({"padding_mode": "reflect", "padding": 6}, "too large for padding_mode 'reflect'"),
    ({"padding_mode": "circular", "padding": 7}, "too large for padding_mode 'circular'"),
    ({"dilation": 4}, "more than the padded input (6, 6)"),
    ({"flip": 1}, "flip must be True or False, got 1"),
    ({"algorithm": "magic"}, "'magic'"),
    ({"algorithm": "winograd", "stride": 3}, "no algorithm"),
    ({"threads": 0}, "threads must be an integer from 1"),
    ({"numerics": "loose"}, "'loose'"),
    ({"padding": 2**24}, "memory"),
    ({"padding": 2**40}, "64 bits"),
    ({"stride": 2**63}, "64 bits"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_refused_arguments(options: dict[str, Any], words: str) -> None:
    cw.conv(X, W)  # what is remembered must not be taken for what is refused
    refused(lambda: cw.conv(X, W, **options), words)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "words"),
    [
        (normal(0, 1, 3, 6, 6), W, None, "the input must be (N, 4, H, W)"),
        (normal(0, 4, 6), W, None, "got (4, 6)"),
        (normal(0, 1, 1, 4, 6, 6), W, None, "got (1, 1, 4, 6, 6)"),
        (X, normal(0, 6, 4), None, "got (6, 4)"),
        (X, normal(0, 6, 4, 2, 2, 2, 2), None, "a weight's shape"),
        (X, normal(0, 6, 4, 0, 3), None, "weight shape must be at least 1, got 0"),
        (X, W, normal(0, 5), "bias must be 6 values, one an output channel, got shape (5,)"),
        (X, W, normal(0, 6, 1), "(6, 1)"),
        (X, W.astype(np.float64), None, "input float32, weight float64"),
        (X, W, np.zeros(6), "bias float64"),
        (X.astype(np.int32), W.astype(np.int32), None, "input int32, weight int32"),
        (X.astype(np.float16), W.astype(np.float16), None, "float16"),
        (X.astype(">f4"), W, None, ">f4"),
        (X.astype(np.complex64), W, None, "complex64"),
        ([[1.0], [1.0, 2.0]], W, None, "input is no array"),
        (normal(0, 1, 4, 0, 6), W, None, "input size must be at least 1, got 0"),
    ],
)
def test_refused_arrays(x: Any, weight: Any, bias: Any, words: str) -> None:
    refused(lambda: cw.conv(x, weight, bias), words)


def test_what_torch_refuses_is_refused() -> None:
    """Random arguments, many of them wrong: where PyTorch raises, so does `conv`, and the other way round."""
    rng = np.random.default_rng(5)
    agreed = {True: 0, False: 0}
    for _ in range(400):
        rank = int(rng.integers(1, 4))
        transposed = bool(rng.integers(2))
        groups = int(rng.choice([1, 2, 3]))
        x = normal(0, *(2, 6), *(int(n) for n in rng.integers(1, 6, rank)))
        channels = int(rng.choice([6, 6, 6, 6 // groups, 3]))
        weight = normal(
            1, *((channels, 2) if transposed else (6, channels)), *(int(n) for n in rng.integers(1, 4, rank))
        )
        bias = normal(2, 2 * groups if transposed else 6) if rng.random() < 0.8 else normal(2, 5)
        options: dict[str, Any] = {
            "stride": int(rng.choice([0, 1, 1, 2, -1])) if rng.random() < 0.3 else 1,
            "padding": int(rng.choice([0, 1, -1])) if rng.random() < 0.5 else 1,
            "dilation": int(rng.choice([0, 1, 2])) if rng.random() < 0.3 else 1,
            "groups": groups,
        }
        if transposed:
            options["output_padding"] = int(rng.choice([0, 0, 0, 1]))
        functions = CONV_TRANSPOSE if transposed else CONV
        ours = _raises(cw.conv_transpose if transposed else cw.conv, (x, weight, bias), options)
        theirs = _raises(functions[rank], [torch.from_numpy(array) for array in (x, weight, bias)], options)
        assert ours == theirs, (transposed, x.shape, weight.shape, bias.shape, options)
        agreed[ours] += 1
    assert min(agreed.values()) > 50, agreed


def _raises(function: Callable[..., Any], arrays: Any, options: dict[str, Any]) -> bool:
    """Whether there is no result. PyTorch's transposed convolutions may give one without elements."""
    try:
        return 0 in function(*arrays, **options).shape
    except (RuntimeError, ValueError):
        return True


class TestAlgorithms:
    x, weight, bias = normal(0, 1, 16, 12, 12), normal(1, 16, 16, 3, 3), normal(2, 16)

    @pytest.mark.parametrize("algorithm", ["direct", "direct-planes", "direct-blocked", "winograd"])
    def test_each_gives_the_convolution(self, algorithm: str) -> None:
        spec = ConvSpec(16, 16, (3, 3), padding=1)
        expected = reference.conv(self.x, self.weight, self.bias, spec)
        result = cw.conv(self.x, self.weight, self.bias, padding=1, algorithm=algorithm)
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()

    def test_strict_is_direct(self) -> None:
        refused(lambda: cw.conv(self.x, self.weight, algorithm="winograd", numerics="strict"), "strict")

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_threads(self, threads: int) -> None:
        expected = reference.conv(self.x, self.weight, self.bias, ConvSpec(16, 16, (3, 3)))
        result = cw.conv(self.x, self.weight, self.bias, threads=threads)
        assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


class TestRemembered:
    """Calls are remembered by weights, exactly, within bounds, and safely."""

    x, weight = normal(0, 1, 2, 6, 6), normal(1, 3, 2, 3, 3)

    def test_changed_weights_count(self) -> None:
        weight, bias = self.weight.copy(), normal(2, 3)
        for _ in range(3):
            weight[0, 0, 0, 0] += 1
            bias[2] -= 1
            expected = reference.conv(self.x, weight, bias, ConvSpec(2, 3, (3, 3)))
            close(cw.conv(self.x, weight, bias), expected, np.float32)

    def test_equal_weights_are_remembered(self) -> None:
        cw.conv(self.x, self.weight)
        cw.conv(self.x + 1, self.weight.copy())
        cw.conv(self.x, np.asfortranarray(self.weight))
        assert [len(own) for own in prepared._memory.calls.values()] == [1]

    @pytest.mark.parametrize("shape", [(3, 2, 3, 3), (64, 2, 3, 3)])
    def test_nan_and_zero_by_their_bytes(self, shape: tuple[int, ...]) -> None:
        weight = normal(1, *shape)
        weight[0, 0, 0, 0] = np.nan
        cw.conv(self.x, weight)
        cw.conv(self.x, weight.copy())
        assert sum(map(len, prepared._memory.calls.values())) == 1
        weight[-1], other = 0.0, weight.copy()
        other[-1] = -0.0
        for one in (weight, other):
            cw.conv(self.x, one)
        assert sum(map(len, prepared._memory.calls.values())) == 3

    def test_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prepared, "LIMIT", 40_000)
        for seed in range(30):
            weight = normal(seed, 16, 2, 3, 3)
            expected = reference.conv(self.x, weight, None, ConvSpec(2, 16, (3, 3), bias=False))
            close(cw.conv(self.x, weight), expected, np.float32)
            own = [call.nbytes for calls in prepared._memory.calls.values() for call in calls]
            assert prepared._memory.nbytes == sum(own) <= 40_000
        assert len(own) < 30
        cw.conv(normal(0, 1, 2, 60, 60), normal(0, 64, 2, 3, 3))  # larger than the limit: alone
        assert sum(map(len, prepared._memory.calls.values())) == 1

    def test_threads_of_python(self) -> None:
        weights = [normal(seed, 3, 2, 3, 3) for seed in range(4)]
        expected = [reference.conv(self.x, weight, None, ConvSpec(2, 3, (3, 3), bias=False)) for weight in weights]
        failures: list[BaseException] = []

        def work(start: int) -> None:
            try:
                for turn in range(60):
                    at = (start + turn) % 4
                    close(cw.conv(self.x, weights[at]), expected[at], np.float32)
                    if turn % 20 == 19:
                        functional.forget()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    def test_in_a_forked_child(self) -> None:
        expected = cw.conv(self.x, self.weight, threads=1)
        child = os.fork()
        if not child:
            same = np.array_equal(cw.conv(self.x, self.weight, threads=1), expected)
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
