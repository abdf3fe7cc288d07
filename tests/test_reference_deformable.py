"""The reference of deformable convolution: against torchvision, onnx, and cases that can be done by hand."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from convwright.errors import ConvwrightError
from convwright.reference import conv, deform_conv
from convwright.spec import ConvSpec, DeformableSpec

Array = NDArray[Any]
GOLDEN = Path(__file__).with_name("golden") / "deform_conv.npz"


def golden() -> Iterator[tuple[DeformableSpec, dict[str, Array | None], Array]]:
    """Specs, arguments and torchvision's answers; `golden/make_deform_conv.py` says how they were made."""
    with np.load(GOLDEN) as file:
        for index in range(sum(name.startswith("options") for name in file.files)):
            options = [int(value) for value in file[f"options{index}"]]
            names = ("x", "offset", "weight", "bias", "mask")
            given = {name: file.get(name + str(index)) for name in names}
            conv_spec = ConvSpec.of_weight(
                file[f"weight{index}"].shape,
                stride=options[:2],
                padding=options[2:4],
                dilation=options[4:6],
                groups=options[6],
                bias=given["bias"] is not None,
            )
            yield DeformableSpec(conv_spec, options[7], given["mask"] is not None), given, file[f"y{index}"]


def arguments(spec: DeformableSpec, size: tuple[int, int], batch: int = 2, seed: int = 0) -> dict[str, Array | None]:
    generator = np.random.default_rng(seed)
    return {
        "x": generator.standard_normal((batch, spec.conv.in_channels, *size)),
        "offset": 2 * generator.standard_normal(spec.offset_shape(size, batch)),
        "weight": generator.standard_normal(spec.weight_shape),
        "bias": generator.standard_normal(spec.conv.out_channels) if spec.conv.bias else None,
        "mask": generator.random(spec.mask_shape(size, batch)) if spec.modulated else None,
    }


def run(spec: DeformableSpec, given: dict[str, Array | None]) -> Array:
    return deform_conv(**given, spec=spec)  # type: ignore[arg-type]


def test_torchvision_gives_the_same() -> None:
    cases = list(golden())
    assert len(cases) == 7
    for spec, given, expected in cases:
        got = run(spec, given)
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13, err_msg=str(spec))


SPECS = [
    DeformableSpec(ConvSpec(1, 1, (3, 3), padding=1)),
    DeformableSpec(ConvSpec(2, 3, (2, 3), stride=(1, 2), padding=[(1, 0), (2, 1)], bias=False), modulated=True),
    DeformableSpec(ConvSpec(4, 4, (3, 1), dilation=(2, 3), padding=(2, 1), groups=2), 2, modulated=True),
    DeformableSpec(ConvSpec(4, 8, (3, 3), stride=3, padding=1, groups=4), 4),
]


@pytest.mark.parametrize("spec", SPECS)
def test_onnx_gives_the_same(spec: DeformableSpec) -> None:
    """Within 1e-5: onnx.reference holds places in float32, and it divides by the size less 1, hence sizes above 1."""
    given, plain = arguments(spec, (6, 5)), spec.conv
    pads = spec.conv.pads((6, 5))
    feeds = {name: value for name, value in given.items() if value is not None}
    node = helper.make_node(
        "DeformConv",
        [name if name in feeds else "" for name in ("x", "weight", "offset", "bias", "mask")],
        ["y"],
        strides=plain.stride,
        dilations=plain.dilation,
        pads=[*(low for low, _ in pads), *(high for _, high in pads)],
        group=plain.groups,
        offset_group=spec.offset_groups,
    )
    (expected,) = ReferenceEvaluator(node).run(None, feeds)
    np.testing.assert_allclose(run(spec, given), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_without_offsets_it_is_the_convolution(spec: DeformableSpec) -> None:
    given = arguments(spec, (6, 5))
    given["offset"] = np.zeros(spec.offset_shape((6, 5), 2))
    if spec.modulated:
        given["mask"] = np.ones(spec.mask_shape((6, 5), 2))
    x, weight, bias = given["x"], given["weight"], given["bias"]
    assert x is not None
    assert weight is not None
    np.testing.assert_allclose(run(spec, given), conv(x, weight, bias, spec.conv), rtol=0, atol=1e-13)


@pytest.mark.parametrize("spec", SPECS)
def test_an_input_without_a_batch_gives_an_output_without(spec: DeformableSpec) -> None:
    given = arguments(spec, (6, 5), batch=1)
    alone = {
        name: value[0] if name in ("x", "offset", "mask") and value is not None else value
        for name, value in given.items()
    }
    np.testing.assert_array_equal(run(spec, alone), run(spec, given)[0])


def sampled(x: Array, dy: Array | float, dx: Array | float) -> Array:
    """The input, read by a kernel of one tap at every place moved by (dy, dx)."""
    spec = DeformableSpec(ConvSpec(1, 1, (1, 1), bias=False))
    offset = np.stack(np.broadcast_arrays(np.zeros(x.shape) + dy, dx))
    return deform_conv(x[None], offset, np.ones((1, 1, 1, 1)), None, spec).reshape(x.shape)


def test_offsets_move_rows_first_then_columns() -> None:
    x = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(sampled(x, 1, 0), [[4, 5, 6, 7], [8, 9, 10, 11], [0, 0, 0, 0]])
    np.testing.assert_array_equal(sampled(x, 0, -1), [[0, 0, 1, 2], [0, 4, 5, 6], [0, 8, 9, 10]])
    # Between four elements: 0, 1, 4 and 5 at (1/4, 1/2).
    assert sampled(x, 0.25, 0.5)[0, 0] == 0.75 * (0 + 1) / 2 + 0.25 * (4 + 5) / 2


def test_each_tap_has_its_own_pair_of_channels() -> None:
    """Channel 2t of the offsets moves tap t's row, channel 2t + 1 its column; the next offset group follows."""
    x, weight = np.arange(18.0).reshape(2, 3, 3), np.ones((1, 2, 1, 2))
    spec = DeformableSpec(ConvSpec(2, 1, (1, 2), bias=False), offset_groups=2)
    still = deform_conv(x, np.zeros((8, 3, 2)), weight, None, spec)
    for channel, (element, moved) in enumerate([(0, 3), (0, 1), (1, 4), (1, 2), (9, 12), (9, 10), (10, 13), (10, 11)]):
        offset = np.zeros((8, 3, 2))
        offset[channel, 0, 0] = 1
        change = deform_conv(x, offset, weight, None, spec) - still
        assert change[0, 0, 0] == moved - element
        assert np.count_nonzero(change) == 1


def test_a_border_fades_to_zero_over_one_element() -> None:
    x = np.full((1, 3), 8.0)
    for dx, expected in [(-0.25, 6), (-0.5, 4), (-1, 0), (-1.5, 0), (-1e300, 0), (-math.inf, 0), (math.inf, 0)]:
        assert sampled(x, 0, dx)[0, 0] == expected
        assert sampled(x, 0, -dx)[0, 2] == expected
    assert sampled(x, -0.5, -0.5)[0, 0] == 2
    np.testing.assert_array_equal(sampled(np.full((1, 3), math.inf), 0, -1.0)[0], [0, math.nan, math.nan])


def test_nan_offsets_give_nan_where_they_stand_and_nowhere_else() -> None:
    for dy, dx in [(math.nan, 0.0), (0.0, math.nan), (math.nan, math.nan)]:
        there = np.zeros((3, 4))
        there[1, 2] = 1
        got = sampled(np.ones((3, 4)), np.where(there, dy, 0.0), np.where(there, dx, 0.0))
        np.testing.assert_array_equal(got, np.where(there, math.nan, 1.0))


def test_a_mask_scales_each_sample() -> None:
    spec = SPECS[2]
    given = arguments(spec, (6, 5))
    mask = given["mask"]
    assert mask is not None
    whole = run(spec, given | {"bias": np.zeros(4)})
    parts = [
        run(spec, given | {"bias": np.zeros(4), "mask": mask * (np.arange(6) == tap).reshape(-1, 1, 1)})
        for tap in range(6)
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=0, atol=1e-13)
    plain = DeformableSpec(spec.conv, 2)
    np.testing.assert_array_equal(run(spec, given | {"mask": np.ones_like(mask)}), run(plain, given | {"mask": None}))


def test_an_empty_batch_gives_an_empty_batch() -> None:
    spec = SPECS[2]
    given = arguments(spec, (6, 5))
    empty = {
        name: value[:0] if name in ("x", "offset", "mask") and value is not None else value
        for name, value in given.items()
    }
    assert run(spec, empty).shape == (0, 4, *spec.output_size((6, 5)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": np.zeros((2, 12, 6, 4))}, "the offset must have shape (2, 12, 6, 7), got (2, 12, 6, 4)"),
        ({"offset": np.zeros((2, 6, 6, 7))}, "the offset must have shape (2, 12, 6, 7), got (2, 6, 6, 7)"),
        ({"offset": np.zeros((1, 12, 6, 7))}, "the offset must have shape (2, 12, 6, 7), got (1, 12, 6, 7)"),
        ({"offset": np.zeros((12, 6, 7))}, "the offset must have shape (2, 12, 6, 7), got (12, 6, 7)"),
        ({"mask": np.zeros((2, 3, 6, 7))}, "the mask must have shape (2, 6, 6, 7), got (2, 3, 6, 7)"),
        ({"mask": None}, "the spec says modulated=True, got no mask"),
        ({"weight": np.zeros((4, 4, 3, 1))}, "the weight must have shape (4, 2, 3, 1), got (4, 4, 3, 1)"),
        ({"bias": np.zeros(3)}, "the bias must have shape (4,), got (3,)"),
        ({"bias": None}, "the spec says bias=True, got no bias"),
        ({"x": np.zeros((2, 3, 6, 5))}, "the input must be (N, 4, H, W) or (4, H, W), got (2, 3, 6, 5)"),
        ({"offset": np.zeros((2, 12, 6, 7), complex)}, "the offset must hold real numbers, got complex128"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvwrightError) as refused:
        run(SPECS[2], arguments(SPECS[2], (6, 5)) | change)
    assert str(refused.value) == message


def test_a_mask_that_the_spec_does_not_have_is_refused() -> None:
    with pytest.raises(ConvwrightError, match="modulated=False, got a mask"):
        run(SPECS[0], arguments(SPECS[0], (6, 5)) | {"mask": np.ones((2, 9, 6, 5))})


def test_a_kernel_larger_than_the_input_is_refused() -> None:
    spec = DeformableSpec(ConvSpec(1, 1, (3, 3), bias=False))
    with pytest.raises(ConvwrightError, match="more than the padded input"):
        deform_conv(np.ones((1, 2, 5)), np.zeros((18, 1, 3)), np.ones((1, 1, 3, 3)), None, spec)
