"""What ONNX asks of nodes whatever their operator's meaning: kinds of attributes, and inputs that have to be there.

An attribute's name has one kind in all operators, but for those left out here (`value` is a tensor or a float).
"""

from __future__ import annotations

from convwright.errors import ConvwrightError
from convwright.graph.graph import Node, names

_KINDS: dict[str, type] = {
    **dict.fromkeys(
        names(
            "allowzero align_corners antialias axis batch_axis blocksize ceil_mode count_include_pad end "
            "exclude_outside exclusive fmod group k keepdims largest noop_with_empty_axes num_groups num_outputs p "
            "reverse select_last_index size sorted spatial start storage_order time_axis to training_mode transA "
            "transB upper value_int"
        ),
        int,
    ),
    **dict.fromkeys(names("alpha beta bias cubic_coeff_a epsilon gamma lambd max min momentum value_float"), float),
    **dict.fromkeys(
        names("auto_pad coordinate_transformation_mode direction keep_aspect_ratio_policy mode nearest_mode"), str
    ),
    **dict.fromkeys(
        names("axes dilations ends kernel_shape output_padding output_shape pads perm split starts strides value_ints"),
        tuple,
    ),
}
_SHOWN = {int: "an integer", float: "a float", str: "a string", tuple: "a list of integers"}


_INPUTS: dict[str, int] = {
    **dict.fromkeys(names("Constant Loop RandomNormal RandomUniform SequenceEmpty Optional"), 0),
    **dict.fromkeys(
        names(
            "Add And CastLike Conv ConvTranspose Div Equal Expand Gather Gemm Greater GreaterOrEqual Less LessOrEqual "
            "MatMul Mod Mul Or PRelu Pow Reshape Sub Tile TopK Xor"
        ),
        2,
    ),
    **dict.fromkeys(names("InstanceNormalization Range Where"), 3),
    "BatchNormalization": 5,
}


def check_node(node: Node) -> None:
    """Raise ConvwrightError where a node lacks an input, or has an attribute of another kind than ONNX says."""
    least = _INPUTS.get(node.op, 1)
    if len(node.inputs) < least or not all(node.inputs[:least]):
        raise ConvwrightError(f"{node} has inputs {node.inputs}, it needs at least {least}")
    for name, value in node.attributes.items():
        kind = _KINDS.get(name)
        if kind is None:
            continue
        whole = not isinstance(value, tuple) or all(isinstance(item, int) for item in value)
        if not isinstance(value, kind) or not whole:
            raise ConvwrightError(f"{node}: attribute {name!r} is {value!r:.80}, not {_SHOWN[kind]}")
