"""Functions of arrays: against PyTorch and the float64 reference, with every argument, and what they refuse."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import convwright as cw
from convwright import functional, reference
from convwright.functional import prepared
from convwright.model.lower.fallback import SlowOperatorWarning
from convwright.spec import ConvSpec, DeformableSpec, IntegerSpec, SeparableSpec, SpatialSpec
from tests.torch_convolutions import CONV, CONV_TRANSPOSE, random_case, torch_conv

Array = np.ndarray[Any, Any]
TOLERANCE = {np.float32: 3e-6, np.float64: 1e-14}


@pytest.fixture(autouse=True)
def nothing_remembered() -> Any:
    yield
    functional.forget()


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(actual: Array, expected: Array, dtype: Any) -> None:
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max(initial=0) <= TOLERANCE[dtype] * max(1.0, np.abs(expected).max(initial=0))


def call(x: Array, weight: Array, bias: Array | None, spec: ConvSpec, **others: Any) -> Array:
    """The function that computes this spec."""
    options: dict[str, Any] = {
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups,
        "flip": spec.flip, **others,
    }  # fmt: skip
    if spec.transposed:
        return cw.conv_transpose(x, weight, bias, output_padding=spec.output_padding, **options)
    return cw.conv(x, weight, bias, padding_mode=spec.padding_mode, **options)


def check_random(seed: int) -> None:
    spec, size, batch = random_case(seed)
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


@pytest.mark.parametrize("start", range(0, 120, 20))
def test_random_convolutions(start: int) -> None:
    for seed in range(start, start + 20):
        check_random(seed)


@pytest.mark.long
@pytest.mark.parametrize("start", range(1000, 4200, 100))
def test_more_random_convolutions(start: int) -> None:
    for seed in range(start, start + 100):
        check_random(seed)
    functional.forget()


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


def refused(function: Callable[[], Any], *words: str) -> None:
    with pytest.raises(cw.ConvwrightError) as raised:
        function()
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


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
    ({"algorithm": "winograd", "stride": 2}, "no algorithm"),
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


class TestShuffle:
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
