"""The reference of integer convolution: exact, and requantised as ONNX defines it."""

import itertools
import random
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from convwright.errors import ConvwrightError
from convwright.reference import conv_integer, qlinear_conv
from convwright.spec import ConvSpec, IntegerSpec

Array = NDArray[Any]
LIMITS = {False: (0, 255), True: (-128, 127)}


def integers(shape: tuple[int, ...], signed: bool, seed: int) -> Array:
    low, high = LIMITS[signed]
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.int8 if signed else np.uint8)


def random_case(seed: int) -> tuple[IntegerSpec, Array, Array]:
    """A spec with its input and weight: another number on every axis, every sign, one zero point or one a channel."""
    pick = random.Random(seed)
    rank, groups = 1 + seed % 3, pick.choice([1, 1, 2, 3])
    conv = ConvSpec(
        groups * pick.choice([1, 2, 3]),
        groups * pick.choice([1, 2]),
        [pick.choice([1, 2, 3]) for _ in range(rank)],
        stride=[pick.choice([1, 2, 4]) for _ in range(rank)],
        dilation=[pick.choice([1, 2]) for _ in range(rank)],
        padding=[(pick.randint(0, 2), pick.randint(0, 2)) for _ in range(rank)],
        groups=groups,
        bias=pick.random() < 0.5,
    )
    signed_input, signed_weight = pick.random() < 0.3, pick.random() < 0.7
    points = [pick.randint(*LIMITS[signed_weight]) for _ in range(conv.out_channels if pick.random() < 0.5 else 1)]
    spec = IntegerSpec(
        conv,
        pick.randint(*LIMITS[signed_input]),
        points,
        input_signed=signed_input,
        weight_signed=signed_weight,
    )
    size = [pick.randint(5, 7) for _ in range(rank)]
    x = integers((2, conv.in_channels, *size), signed_input, seed)
    return spec, x, integers(conv.weight_shape, signed_weight, seed + 1)


def by_definition(x: Array, weight: Array, spec: IntegerSpec) -> Array:
    """One image, one product at a time, in Python's integers; padding holds the zero point and so adds nothing."""
    conv, size = spec.conv, x.shape[1:]
    out = np.zeros(conv.output_shape(x.shape), object)
    points = spec.weight_zero_point * (1 if len(spec.weight_zero_point) > 1 else conv.out_channels)
    each_in, each_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    for k, c in itertools.product(range(conv.out_channels), range(each_in)):
        channel = k // each_out * each_in + c
        for at, tap in itertools.product(np.ndindex(*out.shape[1:]), np.ndindex(*conv.kernel)):
            meets = zip(at, conv.stride, tap, conv.dilation, conv.pads(size), strict=True)
            there = tuple(i * s + t * d - low for i, s, t, d, (low, _) in meets)
            if all(0 <= place < length for place, length in zip(there, size, strict=True)):
                product = (int(x[(channel, *there)]) - spec.input_zero_point) * (int(weight[(k, c, *tap)]) - points[k])
                out[(k, *at)] += product
    return out


def onnx_attributes(spec: IntegerSpec, size: tuple[int, ...]) -> dict[str, Any]:
    pads = spec.conv.pads(size)
    return {
        "kernel_shape": spec.conv.kernel,
        "strides": spec.conv.stride,
        "dilations": spec.conv.dilation,
        "pads": [*(low for low, _ in pads), *(high for _, high in pads)],
        "group": spec.conv.groups,
    }


def points_of(spec: IntegerSpec) -> Array:
    """The weight's zero points as ONNX takes them: no axis where there is one for all."""
    points = np.array(spec.weight_zero_point, np.int8 if spec.weight_signed else np.uint8)
    return points[0] if len(points) == 1 else points


@pytest.mark.parametrize("seed", range(24))
def test_sums_written_out(seed: int) -> None:
    spec, x, weight = random_case(seed)
    got = conv_integer(x[0], weight, spec)
    assert got.dtype == np.int32
    assert got.tolist() == by_definition(x[0], weight, spec).tolist()
    np.testing.assert_array_equal(conv_integer(x, weight, spec)[0], got)


@pytest.mark.parametrize("block", range(4))
def test_onnx_gives_the_same_sums(block: int) -> None:
    """Zero points a channel in 2-D alone: onnx.reference spreads them over two spatial axes, whatever the rank."""
    compared = 0
    for seed in range(block * 50, block * 50 + 50):
        spec, x, weight = random_case(seed)
        points = points_of(spec)
        if points.ndim and spec.rank != 2:
            continue
        node = helper.make_node("ConvInteger", ["x", "w", "xz", "wz"], ["y"], **onnx_attributes(spec, x.shape[2:]))
        feeds = {"x": x, "w": weight, "xz": np.array(spec.input_zero_point, x.dtype), "wz": points}
        (expected,) = ReferenceEvaluator(node).run(None, feeds)
        np.testing.assert_array_equal(conv_integer(x, weight, spec), expected, err_msg=f"seed {seed}: {spec}")
        compared += 1
    assert compared > 25


@pytest.mark.parametrize("signed", [False, True])
def test_the_largest_sums_are_exact(signed: bool) -> None:
    """Every product as large as it gets; 255 * 128 twice is more than a saturating 16-bit sum holds."""
    low, high = LIMITS[signed]
    conv = ConvSpec(300, 2, (3, 3), bias=False)
    spec = IntegerSpec(conv, high, input_signed=signed)
    x, weight = np.full((300, 3, 3), low), np.full(conv.weight_shape, -128)
    weight[1] = 127
    got = conv_integer(x, weight, spec)
    assert got.tolist() == [[[spec.accumulator_bound]], [[-255 * 127 * 2700]]]


def test_padding_holds_the_zero_point() -> None:
    spec = IntegerSpec(ConvSpec(1, 1, (3,), padding=1), input_zero_point=100, weight_zero_point=1)
    x = np.full((1, 1, 4), 100, np.uint8)
    assert conv_integer(x, np.array([[[5, 6, 7]]]), spec).tolist() == [[[0, 0, 0, 0]]]


def test_flip_reverses_the_kernel() -> None:
    spec, x, weight = random_case(2)
    conv = spec.conv
    flipped = ConvSpec(
        conv.in_channels,
        conv.out_channels,
        conv.kernel,
        stride=conv.stride,
        dilation=conv.dilation,
        padding=conv.padding,
        groups=conv.groups,
        flip=True,
    )
    options = {"input_signed": spec.input_signed, "weight_signed": spec.weight_signed}
    turned = IntegerSpec(flipped, spec.input_zero_point, spec.weight_zero_point, **options)
    np.testing.assert_array_equal(
        conv_integer(x, np.flip(weight, tuple(range(2, weight.ndim))), turned), conv_integer(x, weight, spec)
    )


def scales_of(spec: IntegerSpec, signed: bool, seed: int) -> dict[str, Any]:
    """Scales and a zero point that spread most outputs over the range, in float32 as ONNX has them."""
    generator = np.random.default_rng(seed)
    count = spec.conv.out_channels if seed % 2 else 1
    weight_scale = generator.uniform(0.001, 0.01, count).astype(np.float32)
    spread = np.sqrt(np.prod(spec.weight_shape[1:])) * 150 * 75
    return {
        "input_scale": np.float32(0.02),
        "weight_scale": weight_scale if count > 1 else weight_scale[0],
        "output_scale": np.float32(0.02 * 0.005 * spread / 60),
        "output_zero_point": int(generator.integers(*LIMITS[signed], endpoint=True)),
        "output_signed": signed,
    }


def onnx_model(
    spec: IntegerSpec, x: Array, weight: Array, bias: Array | None, scales: dict[str, Any]
) -> tuple[Any, Any]:
    """QLinearConv as a model with constants, and its feed."""
    signed = scales["output_signed"]
    constants: dict[str, Any] = {
        "xs": np.float32(scales["input_scale"]),
        "xz": np.array(spec.input_zero_point, x.dtype),
        "w": weight,
        "ws": np.asarray(scales["weight_scale"], np.float32),
        "wz": points_of(spec),
        "ys": np.float32(scales["output_scale"]),
        "yz": np.array(scales["output_zero_point"], np.int8 if signed else np.uint8),
    }
    if bias is not None:
        constants["b"] = bias.astype(np.int32)
    type_in = TensorProto.INT8 if spec.input_signed else TensorProto.UINT8
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", ["x", *constants], ["y"], **onnx_attributes(spec, x.shape[2:]))],
        "requantised",
        [helper.make_tensor_value_info("x", type_in, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT8 if signed else TensorProto.UINT8, None)],
        [
            helper.make_tensor(
                name, helper.np_dtype_to_tensor_dtype(np.asarray(value).dtype), np.shape(value), np.ravel(value)
            )
            for name, value in constants.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), {"x": x}


def bias_of(spec: IntegerSpec, seed: int) -> Array | None:
    return np.random.default_rng(seed).integers(-5000, 5000, spec.conv.out_channels) if spec.conv.bias else None


def clear_of_halves(spec: IntegerSpec, x: Array, weight: Array, bias: Array | None, scales: dict[str, Any]) -> Array:
    """Where float32 arithmetic cannot come to another integer."""
    over_channels = (-1, *(1,) * spec.rank)
    sums = conv_integer(x, weight, spec) + (0 if bias is None else bias.reshape(over_channels))
    scale = np.asarray(scales["weight_scale"], np.float64).reshape(over_channels)
    values = sums * scale * (float(scales["input_scale"]) / float(scales["output_scale"]))
    return np.asarray(np.abs(values % 1 - 0.5) > 1e-6 * np.abs(values) + 1e-6)


@pytest.mark.parametrize("block", range(3))
def test_onnx_requantises_alike_except_at_halves(block: int) -> None:
    """onnx.reference holds the multiplier in float32, and spreads scales a channel over two spatial axes only."""
    compared = 0
    for seed in range(block * 40, block * 40 + 40):
        spec, x, weight = random_case(seed)
        scales, bias = scales_of(spec, seed % 4 > 1, seed), bias_of(spec, seed)
        if np.ndim(scales["weight_scale"]) and spec.rank != 2:
            continue
        model, feeds = onnx_model(spec, x, weight, bias, scales)
        (expected,) = ReferenceEvaluator(model).run(None, feeds)
        got = qlinear_conv(x, weight, bias, spec, **scales)
        clear = clear_of_halves(spec, x, weight, bias, scales)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got[clear], expected[clear], err_msg=f"seed {seed}: {spec} {scales}")
        compared += int(clear.sum())
    assert compared > 1000


def test_onnx_runtime_requantises_alike_except_at_halves() -> None:
    """It takes unsigned inputs, and weights whose zero points are all the same."""
    compared = 0
    for seed in range(120):
        spec, x, weight = random_case(seed)
        if spec.input_signed or len(set(spec.weight_zero_point)) > 1:
            continue
        scales, bias = scales_of(spec, False, seed), bias_of(spec, seed)
        model, feeds = onnx_model(spec, x, weight, bias, scales)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (expected,) = session.run(None, feeds)
        clear = clear_of_halves(spec, x, weight, bias, scales)
        got = qlinear_conv(x, weight, bias, spec, **scales)
        np.testing.assert_array_equal(got[clear], expected[clear], err_msg=f"seed {seed}: {spec} {scales}")
        compared += int(clear.sum())
    assert compared > 1000


@pytest.mark.parametrize("zero_point", [0, 1, 128])
def test_halves_round_to_even_before_the_zero_point_is_added(zero_point: int) -> None:
    """QuantizeLinear's definition rounds x / scale. ONNX Runtime does so; onnx.reference adds the zero point first,
    which makes another integer of every half where the zero point is odd."""
    spec = IntegerSpec(ConvSpec(1, 1, (1,), bias=False), input_zero_point=4)
    x, weight = np.arange(10, dtype=np.uint8).reshape(1, 1, 10), np.ones((1, 1, 1), np.int8)
    scales: dict[str, Any] = {
        "input_scale": 1.0,
        "weight_scale": 0.5,
        "output_scale": 1.0,
        "output_zero_point": zero_point,
        "output_signed": False,
    }
    got = qlinear_conv(x, weight, None, spec, **scales).ravel()
    halves = [-2, -2, -1, 0, 0, 0, 1, 2, 2, 2]
    assert got.tolist() == [max(value + zero_point, 0) for value in halves]
    model, feeds = onnx_model(spec, x, weight, None, scales)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, feeds)[0].ravel().tolist() == got.tolist()
    other = ReferenceEvaluator(model).run(None, feeds)[0].ravel().tolist()
    assert (other == got.tolist()) is (zero_point % 2 == 0)


def test_outputs_saturate() -> None:
    spec = IntegerSpec(ConvSpec(1, 2, (1,)))
    weight = np.array([[[1]], [[-1]]])
    scales: dict[str, Any] = {"input_scale": 1, "weight_scale": [1, 2], "output_scale": 1}
    for signed, expected in [(False, [[10, 255], [0, 0]]), (True, [[10, 127], [-20, -128]])]:
        got = qlinear_conv([[0, 250]], weight, [10, -10], spec, **scales, output_signed=signed)
        assert got.tolist() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.full((2, 5), 256)}, "the input must be in 0..255, got 256..256"),
        ({"x": np.full((2, 5), -1, np.int8)}, "the input must be in 0..255, got -1..-1"),
        ({"x": np.ones((2, 5))}, "the input must hold integers, got float64"),
        ({"x": np.ones((3, 5), int)}, "the input must be (N, 2, W) or (2, W), got (3, 5)"),
        ({"x": np.ones((2, 2), int)}, "kernel (3,) with dilation (1,) spans (3,), more than the padded input (2,)"),
        ({"weight": np.full((3, 2, 3), 128)}, "the weight must be in -128..127, got 128..128"),
        ({"weight": np.ones((2, 3, 3), int)}, "the weight must have shape (3, 2, 3), got (2, 3, 3)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Array], message: str) -> None:
    given: dict[str, Any] = {"x": np.ones((2, 5), int), "weight": np.ones((3, 2, 3), int)} | change
    spec = IntegerSpec(ConvSpec(2, 3, (3,), bias=False))
    scales: dict[str, Any] = {"input_scale": 1, "weight_scale": 1, "output_scale": 1}
    for call in (
        lambda: conv_integer(**given, spec=spec),
        lambda: qlinear_conv(**given, bias=None, spec=spec, **scales),
    ):
        with pytest.raises(ConvwrightError) as refused:
            call()
        assert str(refused.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": None}, "the spec says bias=True, got no bias"),
        ({"bias": [1, 2]}, "the bias must have shape (3,), got (2,)"),
        ({"bias": [0.5, 1, 2]}, "the bias must hold integers, got float64"),
        ({"bias": [2**31, 0, 0]}, "the bias must be in -2147483648..2147483647, got 0..2147483648"),
        ({"bias": [2**31 - 1, 0, 0]}, "sums with the bias may reach 2147679487, more than 32 bits hold"),
        ({"weight_scale": [1, 2]}, "weight_scale must be one number, or one for each of 3 output channels, got (2,)"),
        ({"weight_scale": [1, 0, 2]}, "weight_scale must be positive and finite, got [1. 0. 2.]"),
        ({"input_scale": -1.0}, "input_scale must be positive and finite, got -1.0"),
        ({"output_scale": float("nan")}, "output_scale must be positive and finite, got nan"),
        ({"output_zero_point": 256}, "output_zero_point 256 is outside 0..255"),
        ({"output_zero_point": 200, "output_signed": True}, "output_zero_point 200 is outside -128..127"),
    ],
)
def test_requantisations_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"bias": [0, 0, 0], "input_scale": 1.0, "weight_scale": 1.0, "output_scale": 1.0} | change
    spec = IntegerSpec(ConvSpec(2, 3, (3,)))
    with pytest.raises(ConvwrightError) as refused:
        qlinear_conv(np.ones((2, 5), int), np.ones((3, 2, 3), int), spec=spec, **given)
    assert str(refused.value) == message
