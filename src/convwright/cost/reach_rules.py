"""What each operator's outputs depend on of its inputs: one function a family of operators.

Operators are those of https://onnx.ai/onnx/operators and the internal ones. Who has no rule here is assumed to read all
of its inputs' extent, and a remark says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING

from convwright.cost.reach import Taps, transposed_taps, window_taps
from convwright.cost.resize import resize_taps
from convwright.cost.seen import Seen, join
from convwright.graph.graph import Node, names
from convwright.graph.shape_rules.movement import pad_widths, slice_ranges, split_sizes
from convwright.graph.shape_rules.windows import axis_list, transpose_padding, window_padding

if TYPE_CHECKING:
    from convwright.cost.receptive_field import Walk

Rule = Callable[["Walk", Node], "list[Seen | None]"]


def read_all(walk: Walk, node: Node, why: str, remark: str = "") -> list[Seen | None]:
    """Every output depends on the whole extent of every input, as far as each sees."""
    result: Seen | None = None
    for name in walk.reads(node):
        seen = walk.seen.get(name)
        if seen is not None:
            seen = seen.whole_over(None, walk.shape(name), why)
            result = seen if result is None else join(result, seen, (), str(node))
    if result is not None and remark:
        result = result.noting(remark)
    return [result] * len(node.outputs)


# -- windows -----------------------------------------------------------------------------------------------------------


def _window(walk: Walk, node: Node) -> list[Seen | None]:
    """Conv, ConvInteger, QLinearConv and the pools."""
    seen = walk.first(node)
    if seen is None:
        return _others(walk, node, None)
    size = walk.shape(node.inputs[0])[2:]
    rank = len(size)
    weights = {"QLinearConv": 3}.get(node.op, 1)
    pool = node.op.endswith("Pool")
    kernel = axis_list(node, "kernel_shape", rank, 1) if pool else walk.shape(node.inputs[weights])[2:]
    stride, dilation = axis_list(node, "strides", rank, 1), axis_list(node, "dilations", rank, 1)
    pads = window_padding(node, size, kernel, stride, dilation)
    taps = {2 + a: window_taps(kernel[a], stride[a], dilation[a], pads[a][0]) for a in range(rank)}
    after = seen.through(taps)
    if node.op == "DeformConv":
        after = after.noting(
            f"{node}: learned offsets move its taps without bound; the field is that of the undeformed kernel"
        )
    return _others(walk, node, after)


def _others(walk: Walk, node: Node, after: Seen | None) -> list[Seen | None]:
    """Joins what comes in by other inputs than the first: offsets and masks element by element, weights as a whole."""
    for place, name in enumerate(node.inputs[1:], 1):
        other = walk.seen.get(name)
        if other is not None:
            if node.op != "DeformConv" or place not in (2, 4):
                other = other.whole_over(None, walk.shape(name), f"computed weights of {node}")
            after = other if after is None else join(after, other, walk.out_shape(node), str(node))
    return [after] * len(node.outputs)


def _conv_transpose(walk: Walk, node: Node) -> list[Seen | None]:
    seen = walk.first(node)
    if seen is None:
        return _others(walk, node, None)
    size, kernel = walk.shape(node.inputs[0])[2:], walk.shape(node.inputs[1])[2:]
    rank = len(size)
    stride, dilation = axis_list(node, "strides", rank, 1), axis_list(node, "dilations", rank, 1)
    pads = transpose_padding(node, size, kernel)
    taps = {2 + a: transposed_taps(kernel[a], stride[a], dilation[a], pads[a][0]) for a in range(rank)}
    return _others(walk, node, seen.through(taps))


def _convolution(walk: Walk, node: Node) -> list[Seen | None]:
    """Internal: the spec, or the specs of all parts, stand in an attribute."""
    seen = walk.first(node)
    if seen is None:
        return _others(walk, node, None)
    size = walk.shape(node.inputs[0])[2:]
    result: Seen | None = None
    for spec in node.get("parts") or (getattr(node.attributes["spec"], "conv", node.attributes["spec"]),):
        after = seen.through({2 + axis: taps for axis, taps in enumerate(spec_taps(spec, size))})
        result = after if result is None else join(result, after, walk.out_shape(node), str(node))
    return _others(walk, node, result)


def spec_taps(spec: object, size: Sequence[int] | None) -> list[Taps]:
    """The taps of a `ConvSpec` along each of its axes."""
    pads = spec.pads(size)  # type: ignore[attr-defined]
    each = zip(spec.kernel, spec.stride, spec.dilation, pads, strict=True)  # type: ignore[attr-defined]
    taps = transposed_taps if spec.transposed else window_taps  # type: ignore[attr-defined]
    return [taps(kernel, stride, dilation, low) for kernel, stride, dilation, (low, _) in each]


def _global_pool(walk: Walk, node: Node) -> list[Seen | None]:
    shape = walk.shape(node.inputs[0])
    seen = walk.first(node)
    return [seen and seen.whole_over(range(2, len(shape)), shape, str(node))]


# -- element by element ------------------------------------------------------------------------------------------------


def _elementwise(walk: Walk, node: Node) -> list[Seen | None]:
    """Inputs broadcast against each other; an axis of size 1 that is spread no longer moves."""
    shape = walk.out_shape(node)
    result: Seen | None = None
    for name in node.inputs:
        seen = walk.seen.get(name)
        if seen is None or seen is result:
            continue
        own = walk.shape(name)
        lead = len(shape) - len(own)
        if lead < 0:
            continue
        if own != shape:
            for place, size in enumerate(own):
                if size == 1 and shape[place + lead] != 1:
                    seen = seen.fixed(place)
            if lead:
                seen = seen.moved({place: place + lead for place in range(len(own))})
        result = seen if result is None else join(result, seen, shape, str(node))
    return [result] * len(node.outputs)


def _along_axes(axes: Callable[[Walk, Node, int], set[int]]) -> Rule:
    """Outputs of the input's shape, each of which reads all of some axes: softmax, normalisation over space."""

    def rule(walk: Walk, node: Node) -> list[Seen | None]:
        seen, shape = walk.first(node), walk.shape(node.inputs[0])
        if seen is None:
            return _elementwise(walk, node)
        whole = seen.whole_over(axes(walk, node, len(shape)), shape, str(node))
        return [whole if whole == seen else join(seen, whole, shape, str(node))] * len(node.outputs)

    return rule


def _softmax_axes(walk: Walk, node: Node, rank: int) -> set[int]:
    return {node.get("axis", -1) % rank}


# -- movement ----------------------------------------------------------------------------------------------------------


def _concat(walk: Walk, node: Node) -> list[Seen | None]:
    shape = walk.out_shape(node)
    axis = node.get("axis", 0) % len(shape)
    result: Seen | None = None
    for name in node.inputs:
        seen = walk.seen.get(name)
        if seen is None:
            continue
        if any(along.place == axis and along.local is not None for along in seen.axes):
            seen = seen.whole_over([axis], walk.shape(name), f"{node} along space")
        result = seen if result is None else join(result, seen, shape, str(node))
    return [result]


def _transpose(walk: Walk, node: Node) -> list[Seen | None]:
    seen, rank = walk.first(node), len(walk.shape(node.inputs[0]))
    order = node.get("perm") or tuple(range(rank))[::-1]
    return [seen and seen.moved({old: new for new, old in enumerate(order)})]


def _reshape(walk: Walk, node: Node) -> list[Seen | None]:
    """Axes that keep their size and what lies before them are followed; others are mixed."""
    before, after = walk.shape(node.inputs[0]), walk.out_shape(node)
    seen = walk.first(node)
    if seen is None:
        return [None]
    places = {}
    ends = {(prod(after[:axis]), after[axis]): axis for axis in range(len(after)) if after[axis] != 1}
    for place, size in enumerate(before):
        if size == 1:
            seen = seen.fixed(place)
        elif (new := ends.get((prod(before[:place]), size))) is not None:
            places[place] = new
    mixed = [place for place, size in enumerate(before) if size != 1 and place not in places]
    return [seen.whole_over(mixed, before, str(node)).moved(places)]


def _slice(walk: Walk, node: Node) -> list[Seen | None]:
    seen = walk.first(node)
    ranges = slice_ranges(walk.scope, node)
    return [seen and seen.through({a: Taps(step, ((start,),)) for a, (start, _, step) in enumerate(ranges)})]


def _split(walk: Walk, node: Node) -> list[Seen | None]:
    seen = walk.first(node)
    axis = node.get("axis", 0) % len(walk.shape(node.inputs[0]))
    start, results = 0, []
    for size in split_sizes(walk.scope, node):
        results.append(seen and seen.through({axis: Taps(1, ((start,),))}))
        start += size
    return results


def _pad(walk: Walk, node: Node) -> list[Seen | None]:
    seen = walk.first(node)
    widths = pad_widths(walk.scope, node)
    return [seen and seen.through({axis: Taps(1, ((-low,),)) for axis, (low, _) in enumerate(widths)})]


def _resize(walk: Walk, node: Node) -> list[Seen | None]:
    seen = walk.first(node)
    if seen is None:
        return [None]
    taps = resize_taps(walk.scope, node, walk.shape(node.inputs[0]), walk.out_shape(node))
    if taps is None:
        return read_all(walk, node, str(node), f"{node}: crops by coordinates; the whole input is assumed")
    return [seen.through(taps)]


def _blocks(walk: Walk, node: Node) -> list[Seen | None]:
    seen, size = walk.first(node), node.get("blocksize", 1)
    if node.op == "SpaceToDepth":
        taps = window_taps(size, size, 1, 0)
    else:
        taps = transposed_taps(size, size, 1, 0)
    return [seen and seen.through({2: taps, 3: taps})]


def _drop_axes(walk: Walk, node: Node, seen: Seen | None, gone: set[int], rank: int) -> Seen | None:
    """After axes are gone over which nothing moves any more."""
    if seen is None:
        return None
    for place in gone:
        seen = seen.fixed(place)
    rest = [place for place in range(rank) if place not in gone]
    return seen.moved({old: new for new, old in enumerate(rest)})


def _squeeze(walk: Walk, node: Node) -> list[Seen | None]:
    shape = walk.shape(node.inputs[0])
    axes = walk.axes(node, 1)
    gone = {axis for axis, size in enumerate(shape) if size == 1} if axes is None else {a % len(shape) for a in axes}
    return [_drop_axes(walk, node, walk.first(node), gone, len(shape))]


def _unsqueeze(walk: Walk, node: Node) -> list[Seen | None]:
    seen, rank = walk.first(node), len(walk.out_shape(node))
    new = {axis % rank for axis in walk.axes(node, 1) or ()}
    rest = [place for place in range(rank) if place not in new]
    return [seen and seen.moved(dict(enumerate(rest)))]


def _reduce(walk: Walk, node: Node) -> list[Seen | None]:
    shape, seen = walk.shape(node.inputs[0]), walk.first(node)
    axes = node.get("axes") or walk.axes(node, 1)
    if node.op in ("ArgMax", "ArgMin"):
        axes = (node.get("axis", 0),)
    if not axes:
        if node.get("noop_with_empty_axes", 0):
            return [seen]
        axes = range(len(shape))
    gone = {axis % len(shape) for axis in axes}
    if seen is not None:
        seen = seen.whole_over(gone, shape, str(node))
    return [seen if node.get("keepdims", 1) else _drop_axes(walk, node, seen, gone, len(shape))]


def _gather(walk: Walk, node: Node) -> list[Seen | None]:
    """Picks by index: the picked axis is mixed, those after it move by the rank of the indices."""
    seen, shape = walk.first(node), walk.shape(node.inputs[0])
    if seen is None or node.inputs[1] in walk.seen:
        return read_all(walk, node, str(node))
    axis, more = node.get("axis", 0) % len(shape), len(walk.shape(node.inputs[1])) - 1
    seen = seen.whole_over([axis], shape, str(node))
    return [seen.moved({place: place if place < axis else place + more for place in range(len(shape))})]


def _matmul(walk: Walk, node: Node) -> list[Seen | None]:
    """The summed axis is mixed, the others stay."""
    shape = walk.out_shape(node)
    result: Seen | None = None
    for place, name in enumerate(node.inputs):
        seen = walk.seen.get(name)
        if seen is None:
            continue
        own = walk.shape(name)
        if place < 2:
            summed = len(own) - 1 if (place == 0) != bool(node.get("transA" if place == 0 else "transB", 0)) else None
            summed = max(len(own) - 2, 0) if summed is None else summed
            seen = seen.whole_over([summed], own, str(node))
            if node.op == "Gemm" or len(own) < 2:
                seen = seen.whole_over(None, own, str(node))
        lead = max(len(shape) - len(own), 0)
        seen = seen.moved({axis: axis + lead for axis in range(len(own))})
        result = seen if result is None else join(result, seen, shape, str(node))
    return [result]


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "ConvTranspose": _conv_transpose,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _matmul,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Softmax": _along_axes(_softmax_axes),
    "LogSoftmax": _along_axes(_softmax_axes),
    "Hardmax": _along_axes(_softmax_axes),
    "LpNormalization": _along_axes(_softmax_axes),
    "InstanceNormalization": _along_axes(lambda walk, node, rank: set(range(2, rank))),
    "GroupNormalization": _along_axes(lambda walk, node, rank: set(range(1, rank))),
    "LayerNormalization": _along_axes(lambda walk, node, rank: set(range(node.get("axis", -1) % rank, rank))),
    "RMSNormalization": _along_axes(lambda walk, node, rank: set(range(node.get("axis", -1) % rank, rank))),
    "MeanVarianceNormalization": _along_axes(
        lambda walk, node, rank: {axis % rank for axis in node.get("axes") or (0, 2, 3)}
    ),
}
for _rule, _operators in (
    (_window, "Conv ConvInteger QLinearConv DeformConv MaxPool AveragePool LpPool"),
    (_convolution, "Convolution HetConvolution MixConvolution"),
    (_global_pool, "GlobalAveragePool GlobalMaxPool GlobalLpPool"),
    (_blocks, "DepthToSpace SpaceToDepth"),
    (_reduce, "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin"),
    (_reduce, "ReduceProd ReduceSum ReduceSumSquare"),
    (
        _elementwise,
        (
            "Abs Acos Acosh Add And Asin Asinh Atan Atanh BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr "
            "BitwiseXor Cast CastLike Ceil Celu ChannelShuffle Clip Cos Cosh DequantizeLinear Div Dropout Elu Equal "
            "Erf Exp Expand Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LRN LeakyRelu "
            "Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear Reciprocal Relu Round "
            "Selu Shrink Sigmoid Sign Silu Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu "
            "Where Xor"
        ),
    ),
):
    RULES |= dict.fromkeys(names(_operators), _rule)
