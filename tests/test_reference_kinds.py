"""The reference of the kinds that are made of convolutions agrees with PyTorch, and with what each kind stands for."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from convwright.errors import ConvwrightError
from convwright.reference import (
    channel_shuffle,
    conv,
    het_conv,
    mix_conv,
    separable_conv,
    shuffled_conv,
    spatial_conv,
)
from convwright.spec import (
    PADDING_MODES,
    ConvSpec,
    HetSpec,
    MixSpec,
    PaddingLike,
    SeparableSpec,
    ShuffledSpec,
    SpatialSpec,
)
from tests.torch_convolutions import arrays, torch_conv

Array = NDArray[Any]
Random = random.Random
Case = tuple[Any, Array, Any, Array | None, Callable[[], Array]]


def plain_spec(pick: Random, rank: int, channels: int, kernel: Sequence[int], groups: int = 1) -> ConvSpec:
    """A standard or grouped convolution, another number on every axis, mostly fitting inputs of 4 to 7."""
    pairs = [(pick.randint(0, 2), pick.randint(0, 2)) for _ in range(rank)]
    paddings: list[PaddingLike] = ["same", "same_lower", "valid", pairs]
    return ConvSpec(
        channels,
        groups * pick.choice([1, 2, 3, 5]),
        kernel,
        stride=[pick.choice([1, 1, 2, 4]) for _ in range(rank)],
        dilation=[pick.choice([1, 1, 2]) for _ in range(rank)],
        padding=pick.choice(paddings),
        groups=groups,
        bias=pick.random() < 0.5,
        padding_mode=pick.choice(PADDING_MODES),
        flip=pick.random() < 0.3,
    )


def input_of(pick: Random, spec: Any, channels: int) -> Array:
    batch = pick.choice([(), (1,), (2,)])
    size = [pick.randint(4, 7) for _ in range(spec.rank)]
    return np.random.default_rng(pick.randrange(2**31)).standard_normal((*batch, channels, *size))


def normal(pick: Random, *shape: int) -> Array:
    return np.random.default_rng(pick.randrange(2**31)).standard_normal(shape)


def chained(pick: Random, spec: SeparableSpec | SpatialSpec) -> Case:
    x = input_of(pick, spec, spec.conv.in_channels)
    weights = [normal(pick, *stage.weight_shape) for stage in spec.stages]
    bias = normal(pick, spec.conv.out_channels) if spec.conv.bias else None
    first, last = spec.stages

    def by_torch() -> Array:
        return torch_conv(torch_conv(x, weights[0], None, first), weights[1], bias, last)

    return spec, x, weights, bias, by_torch


def separable(pick: Random) -> Case:
    rank = pick.choice([1, 2, 3])
    plain = plain_spec(pick, rank, pick.choice([1, 2, 3]), [pick.choice([1, 2, 3]) for _ in range(rank)])
    return chained(pick, SeparableSpec(plain, multiplier=pick.choice([1, 1, 2, 3])))


def spatial(pick: Random) -> Case:
    rank = pick.choice([2, 3])
    plain = plain_spec(pick, rank, pick.choice([1, 2, 3]), [pick.choice([1, 2, 3, 5]) for _ in range(rank)])
    return chained(pick, SpatialSpec(plain, middle_channels=pick.choice([None, 1, 4])))


def mix(pick: Random) -> Case:
    """PyTorch's answer is one depthwise convolution by the largest kernel, with the smaller ones at its centre."""
    rank, kernels = pick.choice([1, 2, 3]), pick.sample([1, 3, 5, 7], pick.choice([1, 2, 3]))
    spec = MixSpec(
        pick.choice([4, 6, 7]),
        kernels,
        rank=rank,
        split=pick.choice(["equal", "exponential"]),
        stride=[pick.choice([1, 1, 2]) for _ in range(rank)],
        dilation=[pick.choice([1, 1, 2]) for _ in range(rank)],
        padding="half",
        bias=pick.random() < 0.5,
    )
    x = input_of(pick, spec, spec.channels)
    weights = [normal(pick, *part.weight_shape) for part in spec.parts]
    bias, largest = normal(pick, spec.channels) if spec.bias else None, max(kernels)
    whole = np.concatenate(
        [
            np.pad(w, ((0, 0), (0, 0), *[((largest - k) // 2,) * 2] * rank))
            for w, k in zip(weights, kernels, strict=True)
        ]
    )
    one = ConvSpec.of_weight(
        whole.shape,
        stride=spec.stride,
        dilation=spec.dilation,
        padding=[d * (largest // 2) for d in spec.dilation],
        groups=spec.channels,
        bias=spec.bias,
    )
    return spec, x, weights, bias, lambda: torch_conv(x, whole, bias, one)


def het(pick: Random) -> Case:
    """PyTorch's answer is the dense convolution by a weight with zeros."""
    rank, channels = pick.choice([1, 2, 3]), pick.choice([1, 2, 4, 5])
    plain = plain_spec(pick, rank, channels, [pick.choice([1, 3, 5]) for _ in range(rank)])
    spec = HetSpec(plain, pick.randint(1, channels))
    x, weight = input_of(pick, spec, channels), normal(pick, *spec.weight_shape)
    bias = normal(pick, plain.out_channels) if plain.bias else None
    return spec, x, weight, bias, lambda: torch_conv(x, np.where(read_by(spec), weight, 0), bias, plain)


def read_by(spec: HetSpec) -> Array:
    """Which weights a het convolution reads."""
    filters, channels = np.ogrid[: spec.conv.out_channels, : spec.conv.in_channels]
    read = np.zeros(spec.weight_shape, bool)
    read[(channels - filters) % spec.part == 0] = True
    centre: tuple[Any, ...] = (..., *(size // 2 for size in spec.conv.kernel))
    read[centre] = True
    return read


def shuffled(pick: Random) -> Case:
    rank, groups = pick.choice([1, 2, 3]), pick.choice([1, 2, 3])
    spec = ShuffledSpec(plain_spec(pick, rank, groups * pick.choice([1, 2]), (1,) * rank, groups))
    x, weight = input_of(pick, spec, spec.conv.in_channels), normal(pick, *spec.weight_shape)
    bias = normal(pick, spec.conv.out_channels) if spec.conv.bias else None

    def by_torch() -> Array:
        y = torch.from_numpy(torch_conv(x, weight, bias, spec.conv))
        batched = y.reshape(-1, *y.shape[-rank - 1 :])
        return F.channel_shuffle(batched, groups).reshape(y.shape).numpy()

    return spec, x, weight, bias, by_torch


KINDS: list[tuple[Callable[..., Array], Callable[[Random], Case]]] = [
    (separable_conv, separable),
    (spatial_conv, spatial),
    (mix_conv, mix),
    (het_conv, het),
    (shuffled_conv, shuffled),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0].__name__)
def test_random_specs_agree_with_torch(kind: tuple[Callable[..., Array], Callable[[Random], Case]]) -> None:
    compute, case = kind
    fits = 0
    for seed in range(150):
        spec, x, weights, bias, by_torch = case(random.Random(seed))
        try:
            expected = by_torch()
        except (RuntimeError, ValueError, ConvwrightError):
            with pytest.raises(ConvwrightError):
                compute(x, weights, bias, spec)
            continue
        got = compute(x, weights, bias, spec)
        assert got.dtype == np.float64
        assert got.shape[-spec.rank :] == spec.output_size(x.shape[-spec.rank :])
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11, err_msg=f"seed {seed}: {spec} on {x.shape}")
        fits += 1
    assert fits > 75


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_separable_convolution_is_the_standard_one_by_products_of_its_weights(multiplier: int) -> None:
    """K[n, m] = sum over r of pointwise[n, m * multiplier + r] * depthwise[m * multiplier + r]."""
    plain = ConvSpec(3, 4, (3, 2), stride=(2, 1), padding=1)
    spec = SeparableSpec(plain, multiplier)
    x, dense, bias = arrays(plain, (6, 5))
    generator = np.random.default_rng(1)
    depthwise, pointwise = (generator.standard_normal(stage.weight_shape) for stage in spec.stages)
    split = pointwise.reshape(4, 3, multiplier), depthwise.reshape(3, multiplier, 3, 2)
    dense = np.einsum("nmr,mrij->nmij", *split)
    got = separable_conv(x, (depthwise, pointwise), bias, spec)
    np.testing.assert_allclose(got, conv(x, dense, bias, plain), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 3), (3, 3, 3), (2, 3, 5)])
def test_a_spatial_convolution_is_the_standard_one_by_outer_products(kernel: tuple[int, ...]) -> None:
    """3 + 3 parameters where 3 x 3 has 9."""
    plain = ConvSpec(1, 1, kernel, padding=1, stride=tuple(range(1, len(kernel) + 1)), bias=False)
    spec = SpatialSpec(plain)
    x, _, _ = arrays(plain, (7, 6, 5)[: len(kernel)])
    first, last = (np.random.default_rng(i).standard_normal(stage.weight_shape) for i, stage in enumerate(spec.stages))
    got = spatial_conv(x, (first, last), None, spec)
    np.testing.assert_allclose(got, conv(x, first * last, None, plain), rtol=0, atol=1e-12)
    if kernel == (3, 3):
        assert (first.size + last.size, plain.parameters) == (6, 9)


@pytest.mark.parametrize("padding", ["same", "same_lower"])
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_parts_are_each_padded_for_their_own_kernel(padding: str, stride: int) -> None:
    spec = MixSpec(7, (3, 4, 6), stride=stride, padding=padding, bias=True)
    generator = np.random.default_rng(5)
    x, bias = generator.standard_normal((2, 7, 6, 9)), generator.standard_normal(7)
    weights = [generator.standard_normal(part.weight_shape) for part in spec.parts]
    got = mix_conv(x, weights, bias, spec)
    first = 0
    for weight, part in zip(weights, spec.parts, strict=True):
        here = slice(first, first + part.out_channels)
        np.testing.assert_allclose(got[:, here], torch_conv(x[:, here], weight, bias[here], part), rtol=0, atol=1e-12)
        first = here.stop
    assert first == 7


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("part", [1, 2, 4, 8])
def test_het_is_grouped_plus_pointwise_after_a_permutation(part: int, flip: bool) -> None:
    """Filters of one residue share their full channels: sorted by residue, they are the groups of one convolution."""
    dense = ConvSpec(8, 16, (3, 5), padding=(1, 2), bias=False, flip=flip)
    x, weight, _ = arrays(dense, (5, 6))
    residue = np.argsort(np.arange(16) % part, kind="stable"), np.argsort(np.arange(8) % part, kind="stable")
    shared = (np.arange(8) - np.arange(16)[:, None]) % part == 0
    sorted_full = weight[residue[0]][:, residue[1]].reshape(part, 16 // part, part, 8 // part, 3, 5)
    grouped = np.concatenate([sorted_full[group, :, group] for group in range(part)])
    full = conv(x[:, residue[1]], grouped, None, replace(dense, groups=part))
    pointwise = np.where(shared, 0, weight[:, :, 1, 2])[..., None, None]
    one = conv(x, pointwise, None, ConvSpec(8, 16, (1, 1), bias=False))
    expected = full[:, np.argsort(residue[0])] + one
    np.testing.assert_allclose(het_conv(x, weight, None, HetSpec(dense, part)), expected, rtol=0, atol=1e-12)


def test_het_of_part_1_is_standard_and_reads_nothing_that_its_kind_leaves_out() -> None:
    dense = ConvSpec(5, 3, (3, 3), padding=1)
    x, weight, bias = arrays(dense, (5, 4))
    np.testing.assert_allclose(het_conv(x, weight, bias, HetSpec(dense, 1)), conv(x, weight, bias, dense), atol=1e-13)
    for part in (2, 3, 5):
        spec = HetSpec(dense, part)
        read = read_by(spec)
        assert read.sum() == spec.taps < weight.size
        assert np.isfinite(het_conv(x, np.where(read, weight, math.nan), bias, spec)).all()
    # A NaN of the input reaches what its taps meet: everything around it where the kernel is full, one place elsewhere.
    x[:, 4, 2, 2] = math.nan
    spoilt = np.isnan(het_conv(x, weight, bias, HetSpec(dense, 5)))
    assert spoilt.sum(axis=(2, 3)).tolist() == [[1, 1, 1]] * 2
    spoilt = np.isnan(het_conv(x, weight, bias, HetSpec(dense, 2)))
    assert spoilt.sum(axis=(2, 3)).tolist() == [[9, 1, 9]] * 2


@pytest.mark.parametrize(("channels", "groups"), [(6, 1), (6, 2), (6, 3), (6, 6), (1, 1), (12, 3)])
def test_channel_shuffle(channels: int, groups: int) -> None:
    x = np.random.default_rng(2).standard_normal((2, channels, 3, 4))
    got = channel_shuffle(x, groups)
    np.testing.assert_array_equal(got, F.channel_shuffle(torch.from_numpy(x), groups))
    order = ShuffledSpec(ConvSpec(channels, channels, (1, 1), groups=groups)).permutation
    np.testing.assert_array_equal(got, x[:, order])
    np.testing.assert_array_equal(channel_shuffle(x[0], groups, axis=-3), got[0])
    np.testing.assert_array_equal(channel_shuffle(got, channels // groups), x)


def test_channels_that_groups_do_not_divide_are_not_shuffled() -> None:
    for groups, message in [
        (4, "6 channels are not divisible by groups 4"),
        (0, "6 channels are not divisible by groups 0"),
    ]:
        with pytest.raises(ConvwrightError, match=message):
            channel_shuffle(np.ones((1, 6, 2)), groups)
    with pytest.raises(ConvwrightError, match=r"an input of shape \(6,\) has no axis 1"):
        channel_shuffle(np.ones(6), 2)


def test_filtering_then_combining() -> None:
    """A standard convolution filters every channel on its own, then sums over the channels."""
    spec = ConvSpec(3, 2, (3, 2), bias=False)
    x, weight, _ = arrays(spec, (5, 6))
    one = ConvSpec(1, 1, (3, 2), bias=False)
    filtered = [[conv(x[:, [c]], weight[[k]][:, [c]], None, one) for c in range(3)] for k in range(2)]
    combined = np.concatenate([np.sum(each, axis=0) for each in filtered], axis=1)
    np.testing.assert_allclose(conv(x, weight, None, spec), combined, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [((4,), (3,)), ((4, 3), (2, 3)), ((3, 4, 2), (2, 1, 2))])
def test_true_convolution_commutes_in_every_rank(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Of one channel, over the full range; with channels, one after another associates: (x * a) * b = x * (a * b)."""
    generator = np.random.default_rng(3)
    a, b = (generator.standard_normal((1, *size)) for size in sizes)

    def full(x: Array, weight: Array) -> Array:
        pads = [n - 1 for n in weight.shape[2:]]
        return conv(x, weight, None, ConvSpec.of_weight(weight.shape, padding=pads, flip=True, bias=False))

    np.testing.assert_allclose(full(a, b[None]), full(b, a[None]), rtol=0, atol=1e-13)
    x, first, second = (
        generator.standard_normal((c, d, *size))
        for c, d, size in [(2, 3, sizes[0]), (4, 3, sizes[1]), (5, 4, sizes[1])]
    )
    # The product of the weights: the second convolves the first, whose input channels play the batch.
    both = np.swapaxes(full(np.swapaxes(first, 0, 1), second), 0, 1)
    np.testing.assert_allclose(full(full(x, first), second), full(x, both), rtol=0, atol=1e-12)


SEPARABLE = SeparableSpec(ConvSpec(2, 3, (3,)))
MIX = MixSpec(3, (3, 5), rank=1)
HET = HetSpec(ConvSpec(2, 3, (3,)), 2)


@pytest.mark.parametrize(
    ("compute", "x", "weights", "bias", "message"),
    [
        (separable_conv, (3, 5), [(2, 1, 3), (3, 2, 1)], 3, "the input must be (N, 2, W) or (2, W), got (3, 5)"),
        (separable_conv, (2, 5), [(2, 1, 3)], 3, "weights must be 2 arrays, one a convolution, got 1"),
        (separable_conv, (2, 5), [(1, 2, 3), (3, 2, 1)], 3, "the weight must have shape (2, 1, 3), got (1, 2, 3)"),
        (separable_conv, (2, 5), [(2, 1, 3), (3, 2, 1)], 2, "the bias must have shape (3,), got (2,)"),
        (separable_conv, (2, 2), [(2, 1, 3), (3, 2, 1)], 3, "more than the padded input (2,)"),
        (mix_conv, (2, 5), [(2, 1, 3), (1, 1, 5)], 3, "the input must be (N, 3, W) or (3, W), got (2, 5)"),
        (mix_conv, (3, 5), [(2, 1, 3)], 3, "weights must be 2 arrays, one a convolution, got 1"),
        (mix_conv, (3, 5), [(2, 1, 3), (1, 1, 3)], 3, "the weight must have shape (1, 1, 5), got (1, 1, 3)"),
        (mix_conv, (3, 5), [(2, 1, 3), (1, 1, 5)], 2, "the bias must have shape (3,), got (2,)"),
        (mix_conv, (3, 5), [(2, 1, 3), (1, 1, 5)], None, "the spec says bias=True, got no bias"),
        (het_conv, (2, 5), (3, 2, 1), 3, "the weight must have shape (3, 2, 3), got (3, 2, 1)"),
        (het_conv, (3, 5), (3, 2, 3), 3, "the input must be (N, 2, W) or (2, W), got (3, 5)"),
        (het_conv, (2, 5), (3, 2, 3), 1, "the bias must have shape (3,), got (1,)"),
        (het_conv, (2, 2), (3, 2, 3), 3, "more than the padded input (2,)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    compute: Callable[..., Array], x: tuple[int, ...], weights: Any, bias: int | None, message: str
) -> None:
    spec = {separable_conv: SEPARABLE, mix_conv: MIX, het_conv: HET}[compute]
    given = [np.ones(shape) for shape in weights] if isinstance(weights, list) else np.ones(weights)
    with pytest.raises(ConvwrightError) as refused:
        compute(np.ones(x), given, None if bias is None else np.ones(bias), spec)
    assert message in str(refused.value)
