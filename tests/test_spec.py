"""Descriptions: normalised once, refused on one line, and counted exactly."""

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction

import numpy as np
import pytest

from convwright.errors import ConvwrightError
from convwright.spec import (
    ConvSpec,
    DeformableSpec,
    HetSpec,
    IntegerSpec,
    MixSpec,
    SeparableSpec,
    ShuffledSpec,
    SpatialSpec,
    Spec,
)


def test_ints_spread_over_the_axes_and_padding_becomes_pairs() -> None:
    spec = ConvSpec(4, 8, [3, 5], stride=2, padding=(1, (0, 2)), dilation=np.int64(1))  # type: ignore[arg-type]
    assert spec == ConvSpec(4, 8, (3, 5), stride=(2, 2), padding=((1, 1), (0, 2)), dilation=(1, 1))
    assert (spec.stride, spec.padding, spec.dilation) == ((2, 2), ((1, 1), (0, 2)), (1, 1))
    assert type(spec.dilation[0]) is int
    assert ConvSpec(4, 8, (3,), padding="valid").padding == ((0, 0),)
    assert ConvSpec(1, 1, (3, 3), padding=(1, 2)).padding == ((1, 1), (2, 2))


def test_a_spec_is_a_value() -> None:
    spec = ConvSpec(4, 8, (3, 3), padding="same", stride=2)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert len({spec, replace(spec), replace(spec, groups=2)}) == 2
    with pytest.raises(FrozenInstanceError):
        spec.groups = 2  # type: ignore[misc]
    assert not hasattr(spec, "__dict__")


def test_importing_specs_imports_no_numpy() -> None:
    code = "import sys, convwright.spec; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_rank_or_a_weight_makes_the_same_spec() -> None:
    spec = ConvSpec(6, 9, (3, 3, 3), groups=3, padding=1)
    assert ConvSpec.of_rank(3, 6, 9, 3, groups=3, padding=1) == spec
    assert ConvSpec.of_weight((9, 2, 3, 3, 3), groups=3, padding=1) == spec
    up = ConvSpec(6, 9, (4,), groups=3, transposed=True)
    assert up.weight_shape == (6, 3, 4)
    assert ConvSpec.of_weight(up.weight_shape, groups=3, transposed=True) == up


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("standard", ConvSpec(1, 4, (3, 3))),
        ("grouped", ConvSpec(4, 4, (1, 1), groups=2)),
        ("depthwise", ConvSpec(4, 12, (3,), groups=4, dilation=2)),
        ("pointwise", ConvSpec(4, 8, (1, 1, 1), stride=2)),
        ("pointwise", ConvSpec(4, 8, (1, 1), dilation=2)),
        ("dilated", ConvSpec(4, 8, (1, 3), dilation=2)),
        ("transposed", ConvSpec(4, 4, (1, 1), groups=4, transposed=True)),
        ("deformable", DeformableSpec(ConvSpec(4, 4, (3, 3)))),
        ("het", HetSpec(ConvSpec(4, 4, (3, 3)), 2)),
        ("mix", MixSpec(4, (3, 5))),
        ("separable", SeparableSpec(ConvSpec(4, 4, (3, 3)))),
        ("spatial", SpatialSpec(ConvSpec(4, 4, (3, 3)))),
        ("shuffled", ShuffledSpec(ConvSpec(4, 4, (1, 1), groups=2))),
        ("integer", IntegerSpec(ConvSpec(4, 4, (3, 3)))),
    ],
)
def test_kinds(kind: str, spec: Spec) -> None:
    assert spec.kind == kind
    assert hash(spec) == hash(pickle.loads(pickle.dumps(spec)))
    size = (9,) * spec.rank
    assert spec.flops(size, 2) == 2 * spec.macs(size, 2) == 4 * spec.macs(size) > 0


def test_same_padding_puts_the_odd_element_where_the_word_says() -> None:
    assert ConvSpec(1, 1, (4, 3), padding="same").padding == ((1, 2), (1, 1))
    assert ConvSpec(1, 1, (4, 3), padding="same_lower").padding == ((2, 1), (1, 1))
    assert ConvSpec(1, 1, (3,), padding="same", dilation=3).padding == ((3, 3),)


@pytest.mark.parametrize("word", ["same", "same_lower"])
def test_same_padding_under_a_stride_waits_for_the_input(word: str) -> None:
    spec = ConvSpec(1, 1, (3, 2), stride=(2, 3), padding=word)
    assert spec.padding == word
    for size in [(7, 7), (8, 8), (1, 1), (9, 10)]:
        expected = tuple(-(-s // stride) for s, stride in zip(size, spec.stride, strict=True))
        assert spec.output_size(size) == spec.resolve(size).output_size(size) == expected
        assert spec.resolve(size).padding == spec.pads(size)
    assert spec.pads((8, 7)) == (((0, 1), (0, 1)) if word == "same" else ((1, 0), (1, 0)))
    with pytest.raises(ConvwrightError, match=r"stride \(2, 3\) depends on the input size"):
        spec.pads()


def test_same_padding_of_a_transposed_convolution_multiplies_by_the_stride() -> None:
    spec = ConvSpec(1, 1, (5, 2), stride=2, padding="same", transposed=True)
    assert spec.padding == ((1, 2), (0, 0))
    assert spec.output_size((7, 6)) == (14, 12)
    with pytest.raises(ConvwrightError, match="of at least the stride"):
        ConvSpec(1, 1, (1,), stride=2, padding="same", transposed=True)
    assert ConvSpec(1, 1, (1,), stride=2, padding="same", transposed=True, output_padding=1).output_size((5,)) == (10,)


def test_worked_sizes() -> None:
    assert ConvSpec(1, 1, (3, 3), transposed=True).output_size((2, 2)) == (4, 4)
    assert ConvSpec(1, 1, (3, 3), transposed=True, stride=2).output_size((2, 2)) == (5, 5)
    assert [ConvSpec(1, 1, (3, 3), dilation=d).effective_kernel for d in (1, 2, 4)] == [(3, 3), (5, 5), (9, 9)]
    assert ConvSpec(1, 1, (1,), stride=5).output_size((11,)) == (3,)
    assert ConvSpec(1, 1, (11,)).output_size((11,)) == (1,)
    assert ConvSpec(3, 2, (3,)).output_shape((0, 3, 5)) == (0, 2, 3)


def test_parameters_and_macs_of_each_kind() -> None:
    standard = ConvSpec(512, 512, (3, 3), padding=1, bias=False)
    assert (standard.macs((14, 14)), standard.parameters) == (462_422_016, 2_359_296)
    separable = SeparableSpec(standard)
    assert (separable.macs((14, 14)), separable.parameters) == (52_283_392, 266_752)
    assert Fraction(separable.parameters, standard.parameters) == Fraction(1, 512) + Fraction(1, 9)
    for groups in (2, 32, 512):
        grouped = replace(standard, groups=groups)
        assert grouped.macs((14, 14)) * groups == standard.macs((14, 14))
        assert grouped.parameters * groups == standard.parameters
    dilated = replace(standard, dilation=(2, 2), padding=((2, 2), (2, 2)))
    assert (dilated.macs((14, 14)), dilated.parameters) == (462_422_016, 2_359_296)
    assert ConvSpec(3, 64, (7, 7)).parameters == (7 * 7 * 3 + 1) * 64
    assert ConvSpec(3, 6, (7, 7), groups=3).parameters == (7 * 7 + 1) * 6


def test_a_transposed_convolution_counts_its_input() -> None:
    spec = ConvSpec(8, 4, (3, 3), stride=2, transposed=True, padding=1, output_padding=1)
    assert spec.output_size((5, 6)) == (10, 12)
    assert spec.macs((5, 6), batch=3) == 3 * 5 * 6 * 3 * 3 * 8 * 4


def test_separable_stages_keep_the_geometry() -> None:
    conv = ConvSpec(6, 10, (3, 5), stride=2, padding="same", dilation=(1, 2))
    spec = SeparableSpec(conv, multiplier=2)
    depthwise, pointwise = spec.stages
    assert (depthwise.kind, depthwise.weight_shape, pointwise.weight_shape) == (
        "depthwise",
        (12, 1, 3, 5),
        (10, 12, 1, 1),
    )
    assert spec.output_size((11, 12)) == conv.output_size((11, 12)) == (6, 6)
    assert spec.parameters == 12 * 15 + 12 * 10 + 10
    assert spec.macs((11, 12)) == 36 * (12 * 15 + 120)


@pytest.mark.parametrize(
    ("conv", "kernels", "size"),
    [
        (ConvSpec(4, 6, (3, 5), stride=(2, 3), padding=(1, (2, 0))), [(3, 1), (1, 5)], (9, 11)),
        (ConvSpec(4, 6, (3, 5), stride=(2, 3), padding="same"), [(3, 1), (1, 5)], (9, 11)),
        (ConvSpec(4, 6, (3, 5, 7), padding=(1, 2, 3), stride=2), [(1, 5, 7), (3, 1, 1)], (5, 8, 9)),
    ],
)
def test_spatial_stages_keep_the_geometry(
    conv: ConvSpec, kernels: list[tuple[int, ...]], size: tuple[int, ...]
) -> None:
    spec = SpatialSpec(conv, middle_channels=5)
    first, last = spec.stages
    assert [first.kernel, last.kernel] == kernels
    assert spec.output_size(size) == conv.output_size(size)
    assert (first.out_channels, last.in_channels, first.bias, last.bias) == (5, 5, False, True)
    assert spec.macs(size) == first.macs(size) + last.macs(first.output_size(size))


def test_a_spatially_separable_three_by_three_has_six_parameters_for_nine() -> None:
    conv = ConvSpec(1, 1, (3, 3), bias=False)
    assert (conv.parameters, SpatialSpec(conv).parameters) == (9, 6)


@pytest.mark.parametrize(("part", "share"), [(p, Fraction(1, p) + (1 - Fraction(1, p)) / 9) for p in (1, 2, 4, 8, 64)])
def test_het_macs_against_standard(part: int, share: Fraction) -> None:
    conv = ConvSpec(64, 128, (3, 3), padding=1, bias=False)
    spec = HetSpec(conv, part)
    assert Fraction(spec.macs((32, 32)), conv.macs((32, 32))) == share
    assert Fraction(spec.parameters, conv.parameters) == share


def test_het_counts_are_exact_where_the_part_divides_nothing() -> None:
    spec = HetSpec(ConvSpec(7, 5, (3, 3)), 3)
    full = [(f, c) for f in range(5) for c in range(7) if (c - f) % 3 == 0]
    assert [(f, c) for f in range(5) for c in spec.full_channels(f)] == full
    assert spec.parameters == len(full) * 9 + (35 - len(full)) + 5
    assert HetSpec(ConvSpec(7, 2, (3, 3)), 7).taps == 2 * 9 + 12


def test_mix_splits_the_channels() -> None:
    assert MixSpec(32, (3, 5, 7, 9)).part_channels == (8, 8, 8, 8)
    assert MixSpec(32, (3, 5, 7, 9), split="exponential").part_channels == (16, 8, 4, 4)
    assert MixSpec(10, (3, 5, 7)).part_channels == (4, 3, 3)
    assert MixSpec(10, (3, 5, 7, 9), split="exponential").part_channels == (5, 3, 1, 1)
    assert MixSpec(3, (5,)).part_channels == (3,)


@pytest.mark.parametrize("padding", ["same", "same_lower", "half"])
def test_mix_parts_agree_on_the_output(padding: str) -> None:
    spec = MixSpec(10, (3, 5, 7), stride=2, padding=padding, bias=False)
    assert {part.kind for part in spec.parts} == {"depthwise"}
    assert {part.output_size((14, 15)) for part in spec.parts} == {spec.output_size((14, 15))} == {(7, 8)}
    assert spec.parameters == 4 * 9 + 3 * 25 + 3 * 49
    assert spec.macs((14, 15)) == 56 * spec.parameters


def test_deformable_shapes() -> None:
    spec = DeformableSpec(ConvSpec(8, 4, (3, 5), stride=2, groups=2), offset_groups=4, modulated=True)
    assert spec.offset_shape((9, 9), batch=2) == (2, 2 * 4 * 15, 4, 3)
    assert spec.mask_shape((9, 9), batch=2) == (2, 4 * 15, 4, 3)
    assert (spec.macs((9, 9)), spec.parameters) == (4 * 3 * 15 * 4 * 4, 15 * 4 * 4 + 4)


def test_a_shuffle_is_the_transpose_of_groups() -> None:
    spec = ShuffledSpec(ConvSpec(8, 12, (1, 1), groups=4, bias=False))
    assert list(spec.permutation) == np.arange(12).reshape(4, 3).T.ravel().tolist()
    assert (spec.parameters, spec.macs((7, 7))) == (24, 24 * 49)


def test_integer_zero_points_and_bound() -> None:
    conv = ConvSpec(2, 3, (3, 3))
    assert IntegerSpec(conv).weight_zero_point == (0,)
    spec = IntegerSpec(conv, 128, [0, -1, 127], input_signed=False)
    assert spec.weight_zero_point == (0, -1, 127)
    assert spec.accumulator_bound == 18 * 128 * 255
    assert IntegerSpec(conv, -128, input_signed=True, weight_signed=False).accumulator_bound == 18 * 255 * 255


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("kernel 3 does not say how many axes", {"kernel": 3}),
        ("1, 2 or 3 spatial axes, got kernel ()", {"kernel": ()}),
        ("1, 2 or 3 spatial axes, got kernel (3, 3, 3, 3)", {"kernel": (3, 3, 3, 3)}),
        ("kernel must be at least 1, got 0", {"kernel": (3, 0)}),
        ("kernel must be an int, got 3.0", {"kernel": (3, 3.0)}),
        ("kernel '33' does not say", {"kernel": "33"}),
        ("in_channels must be at least 1, got 0", {"in_channels": 0}),
        ("out_channels must be at least 1, got -2", {"out_channels": -2}),
        ("in_channels must be an int, got True", {"in_channels": True}),
        ("in_channels must be an int, got '4'", {"in_channels": "4"}),
        ("stride must be at least 1, got 0", {"stride": 0}),
        ("stride must be an int, got False", {"stride": (1, False)}),
        ("stride (1, 2, 3) must have 2 entries", {"stride": (1, 2, 3)}),
        ("dilation must be an int, got 1.5", {"dilation": 1.5}),
        ("dilation must be an int, got None", {"dilation": None}),
        ("padding must be at least 0, got -1", {"padding": (0, (-1, 0))}),
        ("padding (1, 2, 3) must have 2 entries", {"padding": (1, 2, 3)}),
        ("padding ((1, 2, 3), 0) must be ints or (low, high) pairs", {"padding": ((1, 2, 3), 0)}),
        ("padding must be an int, got nan", {"padding": float("nan")}),
        ("'same', 'same_lower' or 'valid', got 'SAME'", {"padding": "SAME"}),
        ("in_channels 4 is not divisible by groups 3", {"groups": 3}),
        ("out_channels 6 is not divisible by groups 4", {"groups": 4}),
        ("groups must be at least 1, got 0", {"groups": 0}),
        ("output_padding (1, 1) is for transposed convolutions only", {"output_padding": 1}),
        ("output_padding (0, 1) must be less than", {"output_padding": (0, 1), "stride": (2, 1), "transposed": True}),
        ("no padding_mode 'reflect', only 'zeros'", {"transposed": True, "padding_mode": "reflect"}),
        ("padding_mode must be one of 'zeros'", {"padding_mode": "constant"}),
        ("transposed must be True or False, got 1", {"transposed": 1}),
        ("bias must be True or False, got None", {"bias": None}),
        ("flip must be True or False, got 'no'", {"flip": "no"}),
        ("stride does not fit in 64 bits: 9223372036854775808", {"stride": 2**63}),
        ("the number of parameters does not fit in 64 bits", {"in_channels": 2**40, "out_channels": 2**40}),
        ("an effective kernel size does not fit in 64 bits", {"kernel": (2**32, 1), "dilation": 2**32}),
    ],
)
def test_what_describes_no_convolution_is_refused_on_one_line(message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ConvwrightError) as refused:
        ConvSpec(**({"in_channels": 4, "out_channels": 6, "kernel": (3, 3)} | arguments))  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("message", "spec", "size"),
    [
        (
            "kernel (3, 3) with dilation (1, 2) spans (3, 5), more than the padded input (6, 4)",
            ConvSpec(1, 1, (3, 3), dilation=(1, 2), padding=((0, 1), (0, 0))),
            (5, 4),
        ),
        ("input size must be at least 1, got 0", ConvSpec(1, 1, (3,), padding=2), (0,)),
        ("input size (5, 5, 5) must have 2 entries", ConvSpec(1, 1, (3, 3)), (5, 5, 5)),
        ("input size must be 2 ints, one an axis, got 5", ConvSpec(1, 1, (3, 3)), 5),
        ("input size must be an int, got 5.0", ConvSpec(1, 1, (3,)), (5.0,)),
        ("leaves nothing of the output of input (2,)", ConvSpec(1, 1, (3,), padding=2, transposed=True), (2,)),
        (
            "too large for padding_mode 'reflect' on input (3,)",
            ConvSpec(1, 1, (3,), padding=3, padding_mode="reflect"),
            (3,),
        ),
        (
            "too large for padding_mode 'circular' on input (2,)",
            ConvSpec(1, 1, (3,), padding=3, padding_mode="circular"),
            (2,),
        ),
        ("output elements does not fit in 64 bits", ConvSpec(1, 1, (1, 1)), (2**32, 2**32)),
    ],
)
def test_inputs_that_do_not_fit_are_refused(message: str, spec: ConvSpec, size: tuple[int, ...]) -> None:
    with pytest.raises(ConvwrightError) as refused:
        spec.output_size(size)
    assert message in str(refused.value)


def test_counts_that_overflow_are_refused() -> None:
    spec = ConvSpec(2**20, 2**20, (1, 1))
    assert spec.macs((2**10, 2**10)) == 2**60
    with pytest.raises(ConvwrightError, match="number of MACs does not fit in 64 bits"):
        spec.macs((2**10, 2**10), batch=8)
    with pytest.raises(ConvwrightError, match="batch must be at least 1, got 0"):
        spec.macs((4, 4), batch=0)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 3, 4, 5), (5, 5), (4, 4, 4), 7])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConvwrightError, match=r"the input must be \(N, 8, H, W\) or \(8, H, W\), got"):
        ConvSpec(8, 8, (3, 3)).output_shape(shape)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3, 3, 3, 3), 5, (4, 0, 3)])
def test_a_weight_of_no_convolution_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConvwrightError, match="weight"):
        ConvSpec.of_weight(shape)


PLAIN = ConvSpec(8, 8, (3, 3))
GROUPED = ConvSpec(8, 8, (3, 3), groups=2)
TRANSPOSED = ConvSpec(8, 8, (3, 3), transposed=True)
LINE = ConvSpec(8, 8, (3,))


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("not divisible by offset_groups 3", lambda: DeformableSpec(PLAIN, 3)),
        ("deformable convolution has 2 spatial axes", lambda: DeformableSpec(LINE)),
        ("cannot be transposed", lambda: DeformableSpec(TRANSPOSED)),
        ("got padding_mode 'reflect' and flip False", lambda: DeformableSpec(replace(PLAIN, padding_mode="reflect"))),
        ("modulated must be True or False, got 2", lambda: DeformableSpec(PLAIN, 1, 2)),  # type: ignore[arg-type]
        ("part 9 is more than in_channels 8", lambda: HetSpec(PLAIN, 9)),
        ("part must be at least 1, got 0", lambda: HetSpec(PLAIN, 0)),
        ("odd kernel sizes, got (2, 3)", lambda: HetSpec(replace(PLAIN, kernel=(2, 3)), 2)),
        ("stands for one of groups 1, got groups 2", lambda: HetSpec(GROUPED, 2)),
        ("stands for one of groups 1, got groups 2", lambda: SeparableSpec(GROUPED)),
        ("multiplier must be an int, got 1.5", lambda: SeparableSpec(PLAIN, 1.5)),  # type: ignore[arg-type]
        ("conv must be a ConvSpec, got 3", lambda: SeparableSpec(3)),  # type: ignore[arg-type]
        ("a spatial convolution needs 2 or 3 axes", lambda: SpatialSpec(LINE)),
        ("middle_channels must be at least 1, got 0", lambda: SpatialSpec(PLAIN, 0)),
        ("pointwise, got kernel (3, 3)", lambda: ShuffledSpec(GROUPED)),
        ("input_zero_point -1 is outside 0..255", lambda: IntegerSpec(PLAIN, -1)),
        ("weight_zero_point 128 is outside -128..127", lambda: IntegerSpec(PLAIN, 0, 128)),
        ("one for each of 8 output channels, got 3", lambda: IntegerSpec(PLAIN, 0, (1, 2, 3))),
        ("more than 32 bits hold", lambda: IntegerSpec(ConvSpec(2**17, 1, (1,)))),
        ("pads with its zero point, got 'reflect'", lambda: IntegerSpec(replace(PLAIN, padding_mode="reflect"))),
        ("3 channels are too few for 4 parts", lambda: MixSpec(3, (3, 5, 7, 9))),
        ("4 channels are too few for 4 parts", lambda: MixSpec(4, (3, 5, 7, 9), split="exponential")),
        ("kernels must be one size for each part", lambda: MixSpec(4, ())),
        ("kernels must be one size for each part", lambda: MixSpec(4, 3)),  # type: ignore[arg-type]
        ("padding 'half' needs odd kernel sizes", lambda: MixSpec(4, (3, 4), padding="half")),
        ("split must be one of 'equal', 'exponential'", lambda: MixSpec(4, (3, 5), split="even")),
        ("got rank 4", lambda: MixSpec(4, (3, 5), rank=4)),
        ("got rank 4", lambda: ConvSpec.of_rank(4, 1, 1, 3)),
    ],
)
def test_what_describes_no_such_kind_is_refused(message: str, make: object) -> None:
    assert callable(make)
    with pytest.raises(ConvwrightError) as refused:
        make()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
