"""The ONNX files of bench/kinds.py: one operator, or the few that write out a kind which ONNX has no operator for.

Weights are random from a fixed seed, scaled so that outputs are about 1; every convolution has a bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from convwright.graph import Graph, Node, ValueInfo
from convwright.graph.graph import INTERNAL
from convwright.spec import ConvSpec, DeformableSpec, HetSpec, IntegerSpec, MixSpec, ShuffledSpec

OPSET = 19  # the first with DeformConv
SEED = 0
Shape = Sequence[int]
Constants = dict[str, np.ndarray]


def model_of(
    nodes: list[Any], inputs: dict[str, Shape], y: Shape, constants: Constants, types: Mapping[str, int] | None = None
) -> Any:
    """A model with the output `y`; `types` of values other than float32, by name."""

    def value(name: str, shape: Shape) -> Any:
        return helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), list(shape))

    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    values = [value(name, shape) for name, shape in inputs.items()]
    graph = helper.make_graph(nodes, "case", values, [value("y", y)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def random_inputs(model: Any) -> dict[str, np.ndarray]:
    """Normal values for float32; offsets of about two pixels; a mask between 0 and 1; all values of 8-bit types."""
    rng = np.random.default_rng(SEED + 1)
    arrays = {}
    for value in model.graph.input:
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            arrays[value.name] = rng.integers(0, 256, shape, np.uint8)
        elif value.name == "mask":
            arrays[value.name] = rng.uniform(0, 1, shape).astype(np.float32)
        else:
            scale = np.float32(2.0 if value.name == "offset" else 1.0)
            arrays[value.name] = scale * rng.standard_normal(shape, np.float32)
    return arrays


def weights(spec: ConvSpec, suffix: str = "", rng: np.random.Generator | None = None) -> Constants:
    """`w` and `b`, random."""
    rng = rng or np.random.default_rng(SEED)
    terms = np.prod(spec.weight_shape[1:] if not spec.transposed else (spec.weight_shape[0] // spec.groups, 3))
    weight = rng.standard_normal(spec.weight_shape, np.float32) / np.float32(np.sqrt(terms))
    return {f"w{suffix}": weight, f"b{suffix}": rng.standard_normal(spec.out_channels, np.float32)}


def attributes(spec: ConvSpec, size: Shape) -> dict[str, Any]:
    """The attributes of a Conv or ConvTranspose node."""
    ends = spec.pads(size)
    found: dict[str, Any] = {
        "kernel_shape": spec.kernel,
        "strides": spec.stride,
        "dilations": spec.dilation,
        "pads": [low for low, _ in ends] + [high for _, high in ends],
        "group": spec.groups,
    }
    return found | ({"output_padding": spec.output_padding} if spec.transposed else {})


def shapes(spec: ConvSpec, size: Shape) -> tuple[Shape, Shape]:
    """Of input and output, batch 1."""
    x = (1, spec.in_channels, *size)
    return x, spec.output_shape(x)


def conv(spec: ConvSpec, size: Shape) -> Any:
    x, y = shapes(spec, size)
    operator = "ConvTranspose" if spec.transposed else "Conv"
    node = helper.make_node(operator, ["x", "w", "b"], ["y"], "layer", **attributes(spec, size))
    return model_of([node], {"x": x}, y, weights(spec))


def shuffle(x: str, y: str, groups: int, shape: Shape) -> tuple[list[Any], Constants]:
    """Channels (G, C/G) become (C/G, G): the three nodes, and the shapes that they read."""
    channels, size = shape[1], shape[2:]
    axes = [0, 2, 1, *range(3, len(shape) + 1)]
    nodes = [
        helper.make_node("Reshape", [x, f"{y}_split"], [f"{y}_a"]),
        helper.make_node("Transpose", [f"{y}_a"], [f"{y}_b"], perm=axes),
        helper.make_node("Reshape", [f"{y}_b", f"{y}_join"], [y]),
    ]
    split = np.array([shape[0], groups, channels // groups, *size], np.int64)
    return nodes, {f"{y}_split": split, f"{y}_join": np.array(shape, np.int64)}


def shuffled(spec: ShuffledSpec, size: Shape) -> Any:
    x, y = shapes(spec.conv, size)
    nodes, constants = shuffle("t", "y", spec.conv.groups, y)
    node = helper.make_node("Conv", ["x", "w", "b"], ["t"], "layer", **attributes(spec.conv, size))
    return model_of([node, *nodes], {"x": x}, y, weights(spec.conv) | constants)


def het(spec: HetSpec, size: Shape) -> Any:
    """A grouped convolution over channels sorted by residue, plus a 1x1 on the other channels.

    Residues sorted and back again are two channel shuffles.
    """
    x, y = shapes(spec.conv, size)
    rng, part = np.random.default_rng(SEED), spec.part
    grouped = replace(spec.conv, groups=part, bias=False)
    single = ConvSpec(spec.conv.in_channels, spec.conv.out_channels, (1,) * spec.rank, stride=spec.conv.stride)
    constants = weights(single, "1", rng) | {"w": weights(grouped, "", rng)["w"]}
    for residue in range(part):
        constants["w1"][residue::part, residue::part] = 0
    sort, sort_shapes = shuffle("x", "sorted", spec.conv.in_channels // part, x)
    back, back_shapes = shuffle("t", "full", part, y)
    nodes = [
        *sort,
        helper.make_node("Conv", ["sorted", "w"], ["t"], "grouped", **attributes(grouped, size)),
        *back,
        helper.make_node("Conv", ["x", "w1", "b1"], ["rest"], "pointwise", **attributes(single, size)),
        helper.make_node("Add", ["full", "rest"], ["y"]),
    ]
    return model_of(nodes, {"x": x}, y, constants | sort_shapes | back_shapes)


def het_graph(spec: HetSpec, size: Shape) -> Graph:
    """The same function as a 2-D `het`, by convwright's own operator, whose weight is dense with zeros."""
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in het(spec, size).graph.initializer}
    single = written["w1"]
    weight = np.zeros(spec.weight_shape, np.float32)
    rows, cols = spec.conv.kernel
    weight[:, :, rows // 2, cols // 2] = single[:, :, 0, 0]
    for channel in range(spec.conv.out_channels):
        # The groups hold the channels of one residue, filter by filter.
        residue, place = channel % spec.part, channel // spec.part
        row = residue * (spec.conv.out_channels // spec.part) + place
        weight[channel, residue :: spec.part] = written["w"][row]
    node = Node("HetConvolution", ["x", "w", "b"], ["y"], {"spec": spec}, domain=INTERNAL)
    x, _ = shapes(spec.conv, size)
    return graph_of(node, x, {"w": weight, "b": written["b1"]})


def graph_of(node: Node, x: Shape, constants: Constants) -> Graph:
    return Graph("case", {"x": ValueInfo(np.dtype(np.float32), tuple(x))}, ["y"], [node], constants)


def mix(spec: MixSpec, size: Shape) -> Any:
    """Split, a depthwise convolution a part, concatenate."""
    rng = np.random.default_rng(SEED)
    constants: Constants = {"sizes": np.array(spec.part_channels, np.int64)}
    parts, results, convs = [], [], []
    for index, part in enumerate(spec.parts):
        constants |= weights(part, str(index), rng)
        parts.append(f"x{index}")
        results.append(f"y{index}")
        inputs = [parts[-1], f"w{index}", f"b{index}"]
        convs.append(helper.make_node("Conv", inputs, [results[-1]], f"part{index}", **attributes(part, size)))
    nodes = [
        helper.make_node("Split", ["x", "sizes"], parts, axis=1),
        *convs,
        helper.make_node("Concat", results, ["y"], axis=1),
    ]
    x = (1, spec.channels, *size)
    return model_of(nodes, {"x": x}, (1, spec.channels, *spec.output_size(size)), constants)


def mix_graph(spec: MixSpec, size: Shape) -> Graph:
    """The same function as `mix`, by convwright's own operator."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in mix(spec, size).graph.initializer}
    del constants["sizes"]
    count = range(len(spec.parts))
    names = ["x", *(f"w{index}" for index in count), *(f"b{index}" for index in count)]
    node = Node("MixConvolution", names, ["y"], {"parts": spec.parts}, domain=INTERNAL)
    return graph_of(node, (1, spec.channels, *size), constants)


# -- deformable --------------------------------------------------------------------------------------------------------


def deformable(spec: DeformableSpec, size: Shape) -> Any:
    """Version 2, with a mask."""
    x, y = shapes(spec.conv, size)
    options = attributes(spec.conv, size) | {"offset_group": spec.offset_groups}
    node = helper.make_node("DeformConv", ["x", "w", "offset", "b", "mask"], ["y"], "layer", **options)
    inputs = {"x": x, "offset": spec.offset_shape(size), "mask": spec.mask_shape(size)}
    return model_of([node], inputs, y, weights(spec.conv))


def deformable_openvino(spec: DeformableSpec, size: Shape, path: str) -> None:
    """The same in OpenVINO's own format, for it has the operator and does not read ONNX's."""
    import openvino
    from openvino import opset8 as ops

    conv, constants = spec.conv, weights(spec.conv)
    named = {"x": (1, conv.in_channels, *size), "offset": spec.offset_shape(size), "mask": spec.mask_shape(size)}
    inputs = {name: ops.parameter(list(shape), np.float32, name=name) for name, shape in named.items()}
    ends = conv.pads(size)
    low, high = [low for low, _ in ends], [high for _, high in ends]
    y = ops.deformable_convolution(
        inputs["x"], inputs["offset"], ops.constant(constants["w"]), list(conv.stride), low, high, list(conv.dilation),
        mask=inputs["mask"], auto_pad="EXPLICIT", group=conv.groups, deformable_group=spec.offset_groups,
        bilinear_interpolation_pad=True,
    )  # fmt: skip
    y = ops.add(y, ops.constant(constants["b"].reshape(1, -1, 1, 1)))
    y.output(0).get_tensor().set_names({"y"})
    for name, parameter in inputs.items():
        parameter.output(0).get_tensor().set_names({name})
    openvino.save_model(openvino.Model([y], list(inputs.values()), "case"), path, compress_to_fp16=False)


# -- integers ----------------------------------------------------------------------------------------------------------

INPUT_SCALE, OUTPUT_ZERO = 0.02, 128


def integer_weights(spec: IntegerSpec) -> Constants:
    rng, conv = np.random.default_rng(SEED), spec.conv
    return {
        "w": rng.integers(-127, 128, conv.weight_shape, np.int8),
        "x_zero": np.array(spec.input_zero_point, np.uint8),
        "x_scale": np.array(INPUT_SCALE, np.float32),
        "w_zero": np.zeros(conv.out_channels, np.int8),
        "w_scale": rng.uniform(0.005, 0.015, conv.out_channels).astype(np.float32),
        "y_zero": np.array(OUTPUT_ZERO, np.uint8),
        # Outputs have about this many times the deviation of a product: most of the 256 values occur.
        "y_scale": np.array(INPUT_SCALE * 0.01 * 74 * 73 * np.sqrt(np.prod(conv.weight_shape[1:])) / 50, np.float32),
        "b": rng.integers(-1000, 1000, conv.out_channels, np.int32),
    }  # fmt: skip


def conv_integer(spec: IntegerSpec, size: Shape) -> Any:
    x, y = shapes(spec.conv, size)
    constants = {name: array for name, array in integer_weights(spec).items() if name in ("w", "x_zero")}
    node = helper.make_node("ConvInteger", ["x", "w", "x_zero"], ["y"], "layer", **attributes(spec.conv, size))
    return model_of([node], {"x": x}, y, constants, {"x": TensorProto.UINT8, "y": TensorProto.INT32})


def qlinear_conv(spec: IntegerSpec, size: Shape) -> Any:
    x, y = shapes(spec.conv, size)
    inputs = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero", "y_scale", "y_zero", "b"]
    node = helper.make_node("QLinearConv", inputs, ["y"], "layer", **attributes(spec.conv, size))
    return model_of([node], {"x": x}, y, integer_weights(spec), {"x": TensorProto.UINT8, "y": TensorProto.UINT8})


def quantized_around_float(spec: IntegerSpec, size: Shape) -> Any:
    """`qlinear_conv` as a float convolution between conversions, the form in which OpenVINO knows integer layers."""
    x, y = shapes(spec.conv, size)
    constants = integer_weights(spec)
    scale = constants["x_scale"] * constants["w_scale"]
    constants["b"] = constants["b"].astype(np.float32) * scale
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], axis=0),
        helper.make_node("Conv", ["xf", "wf", "b"], ["yf"], "layer", **attributes(spec.conv, size)),
        helper.make_node("QuantizeLinear", ["yf", "y_scale", "y_zero"], ["y"]),
    ]
    return model_of(nodes, {"x": x}, y, constants, {"x": TensorProto.UINT8, "y": TensorProto.UINT8})
