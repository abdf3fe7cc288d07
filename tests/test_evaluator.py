"""The evaluator's convolutions: ONNX's own reference says what they mean, in float64 and in both layouts of float32."""

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from convwright.cli.race import deviation
from convwright.reference import conv
from convwright.spec import ConvSpec
from convwright.torch.evaluate import Evaluator

TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["row-major", "channels-last"])


def network(operator: str, inputs: dict[str, np.ndarray], constants: dict[str, Any], names: str, **options: Any) -> Any:
    """A model of one node: `names` are its inputs in order, of which those in `constants` are in the file."""
    node = helper.make_node(operator, names.split(), ["y"], **options)
    values = [helper.make_tensor_value_info(n, TYPES[str(a.dtype)], list(a.shape)) for n, a in inputs.items()]
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    output = helper.make_empty_tensor_value_info("y")
    kind = {"ConvInteger": TensorProto.INT32, "QLinearConv": TensorProto.UINT8}.get(operator, TensorProto.FLOAT)
    output.type.tensor_type.elem_type = kind
    graph = helper.make_graph([node], "one", values, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(model: Any, inputs: dict[str, np.ndarray], channels_last: bool, tolerance: float = 2e-6) -> None:
    expected = ReferenceEvaluator(model).run(None, inputs)
    wide = Evaluator(model)(inputs)["y"]
    narrow = Evaluator(model, dtype=torch.float32, channels_last=channels_last)(inputs)["y"]
    assert wide.dtype == (np.float64 if expected[0].dtype == np.float32 else expected[0].dtype)
    assert narrow.dtype == expected[0].dtype
    assert narrow.flags.c_contiguous
    assert wide.shape == narrow.shape == expected[0].shape
    assert deviation([wide], expected) < tolerance
    assert deviation([narrow], expected) < tolerance


@LAYOUTS
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions(rank: int, groups: int, channels_last: bool) -> None:
    inputs = {"x": normal(0, 2, 4, *(9, 8, 7)[:rank])}
    constants = {"w": normal(1, 8, 4 // groups, *(3, 2, 3)[:rank]), "b": normal(2, 8)}
    options: dict[str, Any] = {
        "group": groups, "strides": (2, 1, 2)[:rank], "dilations": (1, 2, 1)[:rank],
        "pads": [*(1, 0, 2)[:rank], *(1, 0, 2)[:rank]],
    }  # fmt: skip
    check(network("Conv", inputs, constants, "x w b", **options), inputs, channels_last)


@LAYOUTS
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions(rank: int, groups: int, channels_last: bool) -> None:
    """onnx.reference cannot do grouped ones, so the definition in float64 is the oracle."""
    options: dict[str, Any] = {"stride": (2, 3, 1)[:rank], "padding": (1, 0, 1)[:rank], "dilation": (1, 1, 2)[:rank]}
    extra = (1, 2, 0)[:rank]
    spec = ConvSpec(4, 6, (4, 3, 2)[:rank], groups=groups, transposed=True, output_padding=extra, **options)
    x, weight, bias = normal(0, 2, 4, *(5, 6, 4)[:rank]), normal(1, *spec.weight_shape), normal(2, 6)
    model = network(
        "ConvTranspose", {"x": x}, {"w": weight, "b": bias}, "x w b", group=groups, strides=spec.stride,
        dilations=spec.dilation, pads=[*options["padding"], *options["padding"]], output_padding=extra,
    )  # fmt: skip
    expected = [conv(x, weight, bias, spec)]
    assert deviation([Evaluator(model)({"x": x})["y"]], expected) < 1e-12
    narrow = Evaluator(model, dtype=torch.float32, channels_last=channels_last)({"x": x})["y"]
    assert narrow.flags.c_contiguous
    assert deviation([narrow], expected) < 2e-6


@LAYOUTS
def test_a_weight_that_changes_from_call_to_call(channels_last: bool) -> None:
    first = {"x": normal(0, 1, 2, 9), "w": normal(1, 3, 2, 3)}
    model = network("Conv", first, {}, "x w")
    evaluator = Evaluator(model, dtype=torch.float32, channels_last=channels_last)
    for inputs in first, first | {"w": normal(2, 3, 2, 3)}:
        assert deviation([evaluator(inputs)["y"]], ReferenceEvaluator(model).run(None, inputs)) < 2e-6


@LAYOUTS
@pytest.mark.parametrize(("groups", "parts"), [(1, 1), (2, 1), (1, 2), (2, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_deformable_convolutions(groups: int, parts: int, masked: bool, channels_last: bool) -> None:
    rows, cols = 3, 5  # of the output: 7 x 6 by 3 x 2, stride (2, 1), padding (0, 1), dilation (1, 3)
    inputs = {"x": normal(0, 2, 4, 7, 6), "o": 2 * normal(1, 2, parts * 12, rows, cols)}
    names = "x w o b"
    if masked:
        inputs["m"] = np.abs(normal(2, 2, parts * 6, rows, cols))
        names += " m"
    constants = {"w": normal(3, 6, 4 // groups, 3, 2), "b": normal(4, 6)}
    model = network(
        "DeformConv", inputs, constants, names,
        group=groups, offset_group=parts, strides=(2, 1), pads=(0, 1, 0, 1), dilations=(1, 3), kernel_shape=(3, 2),
    )  # fmt: skip
    check(model, inputs, channels_last, 2e-5)  # places between -1 and 1 are of float32, too


def integers(seed: int, low: int, high: int, dtype: type, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


@pytest.mark.parametrize("zero", [0, 128, 255])
@pytest.mark.parametrize("groups", [1, 2])
def test_integer_sums_are_exact(zero: int, groups: int) -> None:
    inputs = {"x": integers(0, 0, 256, np.uint8, 1, 4, 7, 6)}
    weight = integers(1, -128, 128, np.int8, 6, 4 // groups, 3, 3)
    constants = {"w": weight, "xz": np.uint8(zero), "wz": np.int8(3)}
    model = network("ConvInteger", inputs, constants, "x w xz wz", group=groups, pads=[1] * 4)
    y = Evaluator(model)(inputs)["y"]
    spec = ConvSpec(4, 6, (3, 3), padding=1, groups=groups, bias=False)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, conv(inputs["x"].astype(float) - zero, weight.astype(float) - 3, None, spec))


def test_requantised_convolutions() -> None:
    inputs = {"x": integers(0, 0, 256, np.uint8, 1, 4, 7, 6)}
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(120), "w": integers(1, -127, 128, np.int8, 6, 2, 3, 3),
        "ws": np.linspace(0.005, 0.02, 6, dtype=np.float32), "wz": np.zeros(6, np.int8), "ys": np.float32(0.1),
        "yz": np.uint8(100), "b": integers(2, -500, 500, np.int32, 6),
    }  # fmt: skip
    model = network("QLinearConv", inputs, constants, "x xs xz w ws wz ys yz b", group=2, pads=[1] * 4, strides=[1, 2])
    expected = ReferenceEvaluator(model).run(None, inputs)
    y = Evaluator(model)(inputs)["y"]
    assert y.dtype == np.uint8
    assert deviation([y], expected) < 1.5 / 255  # a value halfway between two may go either way
