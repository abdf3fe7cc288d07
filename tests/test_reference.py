"""The reference agrees with PyTorch in float64, and refuses what PyTorch refuses."""

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from convwright.errors import ConvwrightError
from convwright.reference import average_pool, conv, max_pool
from convwright.spec import PADDING_MODES, ConvSpec
from tests.torch_convolutions import CONV, arrays, random_case, tensors, torch_conv

Array = NDArray[Any]
MAX_POOL: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@pytest.mark.parametrize("block", range(10))
def test_random_specs_agree_with_torch(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        spec, size, batch = random_case(seed)
        x, weight, bias = arrays(spec, size, batch, seed)
        try:
            expected = torch_conv(x, weight, bias, spec)
        except (RuntimeError, ValueError):
            with pytest.raises(ConvwrightError):
                conv(x, weight, bias, spec)
            continue
        got = conv(x, weight, bias, spec)
        assert got.dtype == np.float64
        assert got.shape == expected.shape == spec.output_shape(x.shape)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12, err_msg=f"seed {seed}: {spec} on {x.shape}")


def test_random_specs_are_neither_all_good_nor_all_refused() -> None:
    fits = 0
    for seed in range(1000):
        spec, size, _ = random_case(seed)
        try:
            spec.output_size(size)
            fits += 1
        except ConvwrightError:
            pass
    assert 400 < fits < 900


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups"),
    [((1, 1), 1), ((1, 5), 1), ((5, 1), 1), ((6, 6), 6), ((6, 12), 6), ((6, 4), 2), ((17, 3), 1)],
)
def test_boundary_channels(rank: int, transposed: bool, channels: tuple[int, int], groups: int) -> None:
    for kernel in (1, 3):
        spec = ConvSpec.of_rank(
            rank, *channels, kernel, groups=groups, transposed=transposed, stride=2, padding=kernel // 2
        )
        x, weight, bias = arrays(spec, (5, 4, 3)[:rank])
        np.testing.assert_allclose(conv(x, weight, bias, spec), torch_conv(x, weight, bias, spec), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [(4,), (3, 2), (2, 5, 4)])
def test_same_padding_agrees_with_torch(kernel: tuple[int, ...], dilation: int) -> None:
    spec = ConvSpec(2, 3, kernel, padding="same", dilation=dilation)
    x, weight, bias = arrays(spec, (6, 7, 8)[: len(kernel)])
    expected = CONV[spec.rank](*tensors(x, weight, bias), 1, "same", dilation)
    np.testing.assert_allclose(conv(x, weight, bias, spec), expected, rtol=0, atol=1e-12)


@np.errstate(invalid="ignore")
def by_definition(x: Array, weight: Array, spec: ConvSpec) -> Array:
    """One input, one product at a time, in Python floats; zero padding only."""
    rank, pads = spec.rank, spec.pads(x.shape[1:])
    out = np.zeros(spec.output_shape(x.shape))
    each_in, each_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for k, c in itertools.product(range(spec.out_channels), range(spec.in_channels)):
        if k // each_out != c // each_in:
            continue
        here = (c, k % each_out) if spec.transposed else (k, c % each_in)
        near, far = (x.shape[1:], out.shape[1:]) if spec.transposed else (out.shape[1:], x.shape[1:])
        for at in np.ndindex(*near):
            for tap in np.ndindex(*spec.kernel):
                read = tuple(n - 1 - t for n, t in zip(spec.kernel, tap, strict=True)) if spec.flip else tap
                w = float(weight[(*here, *read)])
                there = tuple(at[a] * spec.stride[a] + tap[a] * spec.dilation[a] - pads[a][0] for a in range(rank))
                inside = all(0 <= t < n for t, n in zip(there, far, strict=True))
                if spec.transposed and inside:
                    out[(k, *there)] += float(x[(c, *at)]) * w
                elif not spec.transposed:
                    out[(k, *at)] += (float(x[(c, *there)]) if inside else 0.0) * w
    return out


@pytest.mark.parametrize("seed", range(12))
def test_the_definition_written_out(seed: int) -> None:
    pick = random.Random(seed)
    rank, transposed, groups = 1 + seed % 3, seed % 2 == 1, pick.choice([1, 2])
    spec = ConvSpec(
        2 * groups,
        groups,
        [pick.choice([1, 2, 3]) for _ in range(rank)],
        stride=[pick.choice([1, 2]) for _ in range(rank)],
        dilation=[pick.choice([1, 2]) for _ in range(rank)],
        padding=[(pick.randint(0, 1), 0) for _ in range(rank)],
        groups=groups,
        transposed=transposed,
        bias=False,
        flip=seed % 4 > 1,
    )
    x, weight, _ = arrays(spec, (5, 5, 5)[:rank], None, seed)
    np.testing.assert_allclose(conv(x, weight, None, spec), by_definition(x, weight, spec), rtol=0, atol=1e-13)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_nan_and_infinity_go_where_arithmetic_takes_them(rank: int, transposed: bool) -> None:
    spec = ConvSpec.of_rank(rank, 3, 4, 3, stride=2, padding=1, bias=False, transposed=transposed)
    x, weight, _ = arrays(spec, (5, 4, 3)[:rank], None, 3)
    values = [math.nan, math.inf, -math.inf, 0.0]
    for array in (x, weight):
        places = np.random.default_rng(4).choice(array.size, array.size // 4, replace=False)
        array.flat[places] = np.resize(values, len(places))
    got, expected = conv(x, weight, None, spec), by_definition(x, weight, spec)
    assert np.isnan(got).any()
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-13)


def test_one_bad_input_element_reaches_only_its_windows() -> None:
    x = np.ones((1, 7))
    x[0, 3] = math.nan
    got = conv(x, np.ones((1, 1, 3)), None, ConvSpec(1, 1, (3,), bias=False))
    assert np.isnan(got[0]).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("seed", range(30))
def test_transposed_is_the_adjoint(seed: int) -> None:
    """<conv(x), y> = <x, transposed(y)>, with the output padding that the stride cut off."""
    pick = random.Random(seed)
    rank = 1 + seed % 3
    groups, stride = pick.choice([1, 2]), [pick.choice([1, 2, 3]) for _ in range(rank)]
    down = ConvSpec(
        2 * groups,
        3 * groups,
        [pick.choice([1, 2, 3]) for _ in range(rank)],
        stride=stride,
        padding=[(pick.randint(0, 1), pick.randint(0, 2)) for _ in range(rank)],
        groups=groups,
        bias=False,
        flip=pick.random() < 0.5,
    )
    x, weight, _ = arrays(down, (6, 5, 4)[:rank], 2, seed)
    out = conv(x, weight, None, down)
    sizes = zip(x.shape[2:], down.pads(), down.kernel, stride, strict=True)
    cut = [(size + low + high - k) % s for size, (low, high), k, s in sizes]
    up = ConvSpec(
        down.out_channels,
        down.in_channels,
        down.kernel,
        stride=stride,
        padding=down.padding,
        groups=groups,
        transposed=True,
        output_padding=cut,
        bias=False,
        flip=down.flip,
    )
    y = np.random.default_rng(seed + 1).standard_normal(out.shape)
    back = conv(y, weight, None, up)
    assert back.shape == x.shape
    assert np.vdot(out, y) == pytest.approx(np.vdot(x, back), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 5)])
def test_transposed_is_a_full_convolution_of_the_input_with_zeros_between(stride: int, size: int) -> None:
    x, weight = np.array([[[1.0, 2.0], [3.0, 4.0]]]), np.arange(9.0).reshape(1, 1, 3, 3)
    got = conv(x, weight, None, ConvSpec(1, 1, (3, 3), stride=stride, transposed=True, bias=False))
    spread = np.zeros((1, 1 + stride, 1 + stride))
    spread[:, ::stride, ::stride] = x
    assert got.shape == (1, size, size)
    np.testing.assert_array_equal(
        got, conv(spread, weight, None, ConvSpec(1, 1, (3, 3), padding=2, flip=True, bias=False))
    )


def test_true_convolution_is_commutative_and_cross_correlation_is_not() -> None:
    a, b = np.array([[1.0, 2.0, 3.0]]), np.array([[4.0, 5.0, 7.0]])
    for flip in (True, False):
        spec = ConvSpec(1, 1, (3,), padding=2, flip=flip, bias=False)
        forth, back = conv(a, b[None], None, spec), conv(b, a[None], None, spec)
        assert (forth.tolist() == back.tolist()) is flip
    np.testing.assert_array_equal(
        conv(a, b[None], None, ConvSpec(1, 1, (3,), padding=2, flip=True, bias=False))[0], np.convolve(a[0], b[0])
    )


@pytest.mark.parametrize(("dilations", "fields"), [((1, 2, 4), [3, 7, 15]), ((1, 1, 1), [3, 5, 7])])
def test_stacked_dilations_see_more(dilations: tuple[int, ...], fields: list[int]) -> None:
    seen, signal = [], np.zeros((1, 31))
    signal[0, 15] = 1
    for dilation in dilations:
        signal = conv(
            signal, np.ones((1, 1, 3)), None, ConvSpec(1, 1, (3,), padding="same", dilation=dilation, bias=False)
        )
        places = np.flatnonzero(signal[0])
        seen.append(int(places[-1] - places[0] + 1))
    assert seen == fields


@pytest.mark.parametrize(("mode", "transposed"), [("zeros", True), *((mode, False) for mode in PADDING_MODES)])
def test_an_empty_batch_gives_an_empty_batch(mode: str, transposed: bool) -> None:
    spec = ConvSpec(2, 3, (3, 3), padding=1, padding_mode=mode, transposed=transposed)
    assert conv(np.zeros((0, 2, 5, 6)), np.ones(spec.weight_shape), np.ones(3), spec).shape == (0, 3, 5, 6)


def test_inputs_of_any_real_type_become_float64() -> None:
    spec = ConvSpec(1, 1, (2,), bias=False)
    for dtype in ("uint8", "int64", "float16", "float32", "bool"):
        got = conv(np.ones((1, 3), dtype), np.ones((1, 1, 2), dtype), None, spec)
        assert got.dtype == np.float64
        assert got.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("message", "x", "weight", "bias"),
    [
        ("the input must be (N, 2, W) or (2, W), got (3, 5)", np.ones((3, 5)), np.ones((3, 2, 3)), np.ones(3)),
        ("the weight must have shape (3, 2, 3), got (2, 3, 3)", np.ones((2, 5)), np.ones((2, 3, 3)), np.ones(3)),
        ("the bias must have shape (3,), got (2,)", np.ones((2, 5)), np.ones((3, 2, 3)), np.ones(2)),
        ("bias=True, got no bias", np.ones((2, 5)), np.ones((3, 2, 3)), None),
        ("the input must hold real numbers, got complex128", np.ones((2, 5), complex), np.ones((3, 2, 3)), np.ones(3)),
        ("input size must be at least 1, got 0", np.ones((2, 0)), np.ones((3, 2, 3)), np.ones(3)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(message: str, x: Array, weight: Array, bias: Array | None) -> None:
    with pytest.raises(ConvwrightError) as refused:
        conv(x, weight, bias, ConvSpec(2, 3, (3,), padding=2))
    assert message in str(refused.value)


def test_a_bias_that_the_spec_does_not_have_is_refused() -> None:
    with pytest.raises(ConvwrightError, match="bias=False, got a bias"):
        conv(np.ones((1, 3)), np.ones((1, 1, 1)), np.ones(1), ConvSpec(1, 1, (1,), bias=False))


def pool_cases() -> list[tuple[tuple[int, ...], dict[str, list[int]], tuple[int, ...]]]:
    """Kernel, options and input size; padding at most half the kernel, as PyTorch asks."""
    cases = []
    for seed in range(90):
        pick = random.Random(seed)
        rank = 1 + seed % 3
        kernel = [pick.choice([1, 2, 3, 4]) for _ in range(rank)]
        options = {
            "stride": [pick.choice([1, 2, 3, 5]) for _ in range(rank)],
            "padding": [pick.randint(0, k // 2) for k in kernel],
        }
        cases.append((tuple(kernel), options, tuple(pick.randint(4, 9) for _ in range(rank))))
    return cases


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pools_agree_with_torch(ceil_mode: bool) -> None:
    for seed, (kernel, options, size) in enumerate(pool_cases()):
        rank, dilation = len(kernel), 1 + seed % 2
        x = np.random.default_rng(seed).standard_normal((2, 3, *size))
        tensor = torch.from_numpy(x)
        for include in (False, True):
            expected = AVERAGE_POOL[rank](tensor, kernel, **options, ceil_mode=ceil_mode, count_include_pad=include)
            got = average_pool(x, kernel, **options, ceil_mode=ceil_mode, count_include_pad=include)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14, err_msg=f"{kernel} {options} {size}")
        try:
            expected = MAX_POOL[rank](tensor, kernel, **options, dilation=dilation, ceil_mode=ceil_mode)
        except RuntimeError:
            with pytest.raises(ConvwrightError):
                max_pool(x, kernel, **options, dilation=dilation, ceil_mode=ceil_mode)
            continue
        got = max_pool(x, kernel, **options, dilation=dilation, ceil_mode=ceil_mode)
        np.testing.assert_array_equal(got, expected, err_msg=f"{kernel} {options} {dilation} {size}")


def test_pools_stride_by_their_kernel_and_take_any_leading_axes() -> None:
    x = np.arange(24.0).reshape(2, 2, 6)
    assert max_pool(x, (3,)).tolist() == x.reshape(2, 2, 2, 3).max(-1).tolist()
    assert average_pool(x[0], (3,)).tolist() == x[0].reshape(2, 2, 3).mean(-1).tolist()


def test_nan_is_the_largest_value_of_its_window() -> None:
    got = max_pool(np.array([1.0, math.nan, 2.0, -math.inf, -math.inf, 5.0]), (2,))
    np.testing.assert_array_equal(got, [math.nan, 2.0, 5.0])
    np.testing.assert_array_equal(max_pool(np.array([-math.inf, -math.inf]), (2,)), [-math.inf])


@pytest.mark.parametrize(
    ("message", "shape", "kernel", "padding"),
    [
        ("windows of padding only", (5,), (2,), 2),
        ("needs 2 spatial axes, got shape (5,)", (5,), (2, 2), 0),
        ("more than the padded input (2,)", (2,), (3,), 0),
    ],
)
def test_pools_that_do_not_fit_are_refused(
    message: str, shape: tuple[int, ...], kernel: tuple[int, ...], padding: int
) -> None:
    for pool in (max_pool, average_pool):
        with pytest.raises(ConvwrightError) as refused:
            pool(np.ones(shape), kernel, padding=padding)
        assert message in str(refused.value)
