"""Kinds that are made of convolutions, and the channel shuffle between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.functional.arrays import Array, array_of, check_real, frozen, frozen_bool
from convwright.functional.convolution import check_bias, convolution
from convwright.functional.prepared import Recipe, run
from convwright.graph import Node
from convwright.graph.graph import INTERNAL
from convwright.spec import AxesLike, ConvSpec, HetSpec, PaddingLike, SeparableSpec, SpatialSpec
from convwright.spec.checks import checked_int, is_sequence, show


def separable_conv(
    x: Any,
    depthwise_weight: Any,
    pointwise_weight: Any,
    bias: Any = None,
    *,
    stride: AxesLike = 1,
    padding: PaddingLike = 0,
    dilation: AxesLike = 1,
    padding_mode: str = "zeros",
    flip: bool = False,
    out: Array | None = None,
    threads: int | None = None,
    numerics: str = "default",
) -> Array:
    """A depthwise, then a pointwise convolution (arXiv 1704.04861); see `SeparableSpec`.

    - `x`: N x C x spatial, or C x spatial.
    - `depthwise_weight`: rC x 1 x kernel, r filters a channel.
    - `pointwise_weight`: K x rC x 1 ... 1.
    - `bias`: K values, or None.

    The other arguments are the depthwise stage's, as in `conv`. Returns N x K x spatial, or K x spatial.

    >>> import numpy as np
    >>> x = np.ones((1, 2, 4), np.float32)
    >>> separable_conv(x, np.ones((2, 1, 3), np.float32), np.ones((1, 2, 1), np.float32))
    array([[[6., 6.]]], dtype=float32)
    """

    def spec(channels: int, first: tuple[int, ...], second: tuple[int, ...], **options: Any) -> SeparableSpec:
        if first[0] % channels:
            raise ConvwrightError(
                f"depthwise_weight of shape {first} needs a multiple of the input's {channels} channels as filters"
            )
        return SeparableSpec(ConvSpec(channels, second[0], first[2:], **options), first[0] // channels)

    names = ("depthwise_weight", "pointwise_weight")
    weights = (depthwise_weight, pointwise_weight)
    options = (frozen(stride), frozen(padding), frozen(dilation), frozen(padding_mode), frozen_bool(flip))
    return _chain("separable_conv", spec, x, names, weights, bias, options, out, threads, numerics)


def spatial_conv(
    x: Any,
    first_weight: Any,
    second_weight: Any,
    bias: Any = None,
    *,
    stride: AxesLike = 1,
    padding: PaddingLike = 0,
    dilation: AxesLike = 1,
    padding_mode: str = "zeros",
    flip: bool = False,
    out: Array | None = None,
    threads: int | None = None,
    numerics: str = "default",
) -> Array:
    """A k x 1, then a 1 x k convolution; in 3-D a (1, k, k), then a (k, 1, 1) one; see `SpatialSpec`.

    - `x`: N x C x spatial, or C x spatial, of 2 or 3 axes.
    - `first_weight`: M x C x k x 1, or M x C x 1 x k x k.
    - `second_weight`: K x M x 1 x k, or K x M x k x 1 x 1.
    - `bias`: K values, or None; added last.
    - `stride`, `padding`, `dilation`: of the whole; each stage takes those of the axes where its kernel lies.

    The other arguments as in `conv`. Returns N x K x spatial, or K x spatial.

    >>> import numpy as np
    >>> x = np.ones((1, 1, 3, 3), np.float32)
    >>> spatial_conv(x, np.ones((1, 1, 3, 1), np.float32), np.ones((1, 1, 1, 3), np.float32))
    array([[[[9.]]]], dtype=float32)
    """

    def spec(channels: int, first: tuple[int, ...], second: tuple[int, ...], **options: Any) -> SpatialSpec:
        kernel = (first[2], second[3]) if len(first) == 4 else (second[2], *first[3:])
        return SpatialSpec(ConvSpec(channels, second[0], kernel, **options), first[0])

    names = ("first_weight", "second_weight")
    options = (frozen(stride), frozen(padding), frozen(dilation), frozen(padding_mode), frozen_bool(flip))
    weights = (first_weight, second_weight)
    if np.ndim(first_weight) == 3:
        raise ConvwrightError(f"a spatial convolution needs 2 or 3 axes, got first_weight {np.shape(first_weight)}")
    return _chain("spatial_conv", spec, x, names, weights, bias, options, out, threads, numerics)


def _chain(
    name: str, spec_of: Any, x: Any, names: tuple[str, str], weights: tuple[Any, Any], bias: Any,
    options: tuple[Any, ...], out: Array | None, threads: int | None, numerics: str,
) -> Array:  # fmt: skip
    """Two convolutions, one after the other."""
    x = array_of("input", x)
    first, second = (array_of(one, weight) for one, weight in zip(names, weights, strict=True))
    bias = None if bias is None else array_of("bias", bias)
    check_real(("input", *names, "bias"), (x, first, second, bias))

    def build() -> Recipe:
        rank = first.ndim - 2
        if not 1 <= rank <= 3 or second.ndim != first.ndim or 0 in (*first.shape, *second.shape):
            raise ConvwrightError(
                f"{names[0]} of shape {first.shape} and {names[1]} of shape {second.shape} do not fit"
            )
        if x.ndim not in (rank + 1, rank + 2) or not x.shape[-rank - 1]:
            raise ConvwrightError(f"input of shape {x.shape} with {names[0]} of shape {first.shape}: axes do not agree")
        keys = ("stride", "padding", "dilation", "padding_mode", "flip")
        given = dict(zip(keys, options, strict=True))
        spec = spec_of(x.shape[-rank - 1], first.shape, second.shape, **given, bias=bias is not None)
        stages = spec.stages
        for one, weight, stage in zip(names, (first, second), stages, strict=True):
            if weight.shape != stage.weight_shape:
                raise ConvwrightError(f"{one} must be of shape {stage.weight_shape}, got {weight.shape}")
        check_bias(bias, stages[1])
        middle = stages[0].output_shape(x.shape)
        nodes = [
            convolution(stages[0], "x", "first", "", "middle"),
            convolution(stages[1], "middle", "second", "b" * stages[1].bias, "y"),
        ]
        return Recipe(nodes, stages[1].output_shape(middle)[-rank - 1 :], x.dtype)

    batched = x.ndim != first.ndim - 1
    inputs = {"x": x if batched else x.reshape(1, *x.shape)}
    constants = {"first": first, "second": second, "b": bias}
    return run((name, options), inputs, constants, build, out, threads, numerics, batched)


def mix_conv(
    x: Any,
    weights: Sequence[Any],
    bias: Any = None,
    *,
    stride: AxesLike = 1,
    padding: str = "same",
    dilation: AxesLike = 1,
    out: Array | None = None,
    threads: int | None = None,
    numerics: str = "default",
) -> Array:
    """A depthwise convolution with another kernel size for each part of the channels, MixConv (arXiv 1907.09595).

    - `x`: N x C x spatial, or C x spatial.
    - `weights`: one a part, Cp x 1 x kernel; the Cp of all parts sum to C.
    - `bias`: C values, or None.
    - `padding`: `"same"` or `"same_lower"` as in `conv`, or `"half"`: `dilation * (k - 1) / 2` at both ends, for odd
      kernels.

    The other arguments as in `conv`. Returns N x C x spatial, or C x spatial: one pass over the channels, whose
    parts do not wait for each other. Raises `ConvwrightError` for arrays and arguments that do not fit each other.

    >>> import numpy as np
    >>> x = np.ones((1, 3, 5), np.float32)
    >>> mix_conv(x, [np.ones((2, 1, 1), np.float32), np.ones((1, 1, 3), np.float32)])
    array([[[1., 1., 1., 1., 1.],
            [1., 1., 1., 1., 1.],
            [2., 3., 3., 3., 2.]]], dtype=float32)
    """
    x = array_of("input", x)
    if not is_sequence(weights) or not len(weights):
        raise ConvwrightError(f"weights must be one array a part, got {show(weights)}")
    arrays = [array_of(f"weight {number}", weight) for number, weight in enumerate(weights)]
    bias = None if bias is None else array_of("bias", bias)
    names = [f"w{number}" for number in range(len(arrays))]
    check_real(("input", *names, "bias"), (x, *arrays, bias))
    options = (frozen(stride), frozen(padding), frozen(dilation))
    rank = arrays[0].ndim - 2

    def build() -> Recipe:
        if any(weight.ndim != arrays[0].ndim for weight in arrays):
            raise ConvwrightError(f"weights of shapes {[weight.shape for weight in arrays]} differ in their axes")
        parts = [_mix_part(weight.shape, bias is not None, *options) for weight in arrays]
        total = sum(part.in_channels for part in parts)
        # All parts as one convolution, to check the input and the bias against.
        whole = ConvSpec.of_rank(rank, total, total, 1, groups=total, bias=bias is not None)
        whole.output_shape(x.shape)
        check_bias(bias, whole)
        sizes = [part.output_size(x.shape[-rank:]) for part in parts]
        if any(size != sizes[0] for size in sizes):
            raise ConvwrightError(f"padding {padding!r} gives the parts outputs of sizes {sizes}")
        ends = np.cumsum([part.out_channels for part in parts])
        constants = {name: np.array(weight, order="C") for name, weight in zip(names, arrays, strict=True)}
        inputs = ["x", *names]
        if bias is not None:
            biases = np.split(np.array(bias), ends[:-1])
            constants |= {f"b{number}": piece for number, piece in enumerate(biases)}
            inputs += [f"b{number}" for number in range(len(parts))]
        node = Node("MixConvolution", inputs, ["y"], {"parts": tuple(parts)}, domain=INTERNAL)
        return Recipe([node], (total, *sizes[0]), x.dtype, constants)

    batched = x.ndim != rank + 1
    inputs = {"x": x if batched else x.reshape(1, *x.shape)}
    constants = {**dict(zip(names, arrays, strict=True)), "b": bias}
    return run(("mix_conv", options), inputs, constants, build, out, threads, numerics, batched)


def _mix_part(shape: tuple[int, ...], bias: bool, stride: Any, padding: Any, dilation: Any) -> ConvSpec:
    if len(shape) < 3 or shape[1] != 1:
        raise ConvwrightError(f"each weight must be of shape Cp x 1 x kernel, got {shape}")
    if not isinstance(padding, str) or padding not in ("same", "same_lower", "half"):
        raise ConvwrightError(f"padding must be 'same', 'same_lower' or 'half', got {show(padding)}")
    if padding == "half":
        if any(size % 2 == 0 for size in shape[2:]):
            raise ConvwrightError(f"padding 'half' needs odd kernel sizes, got {shape[2:]}")
        plain = ConvSpec.of_weight(shape, dilation=dilation, groups=shape[0])
        padding = [span // 2 for span in plain.effective_kernel]
    return ConvSpec.of_weight(shape, stride=stride, padding=padding, dilation=dilation, groups=shape[0], bias=bias)


def het_conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    part: int,
    stride: AxesLike = 1,
    padding: PaddingLike = 0,
    dilation: AxesLike = 1,
    padding_mode: str = "zeros",
    flip: bool = False,
    out: Array | None = None,
    threads: int | None = None,
    numerics: str = "default",
) -> Array:
    """A heterogeneous convolution, HetConv (arXiv 1903.04120): only where `(c - f) mod part == 0` is a kernel full.

    - `x`: N x C x spatial, or C x spatial.
    - `weight`: K x C x kernel, dense, of odd sizes; of the other channels' kernels only the centre is read.
    - `bias`: K values, or None.
    - `part`: from 1, a standard convolution, to C; it need not divide C or K.

    The other arguments as in `conv`. Returns N x K x spatial, or K x spatial. Raises `ConvwrightError` for arrays and
    arguments that do not fit each other.

    >>> import numpy as np
    >>> x = np.ones((1, 2, 5), np.float32)
    >>> het_conv(x, np.ones((2, 2, 3), np.float32), part=2)
    array([[[4., 4., 4.],
            [4., 4., 4.]]], dtype=float32)
    """
    x, weight = array_of("input", x), array_of("weight", weight)
    bias = None if bias is None else array_of("bias", bias)
    check_real(("input", "weight", "bias"), (x, weight, bias))
    options = (
        frozen(stride), frozen(padding), frozen(dilation), frozen(padding_mode), frozen_bool(flip), frozen(part),
    )  # fmt: skip

    def build() -> Recipe:
        conv = ConvSpec.of_weight(
            weight.shape, stride=options[0], padding=options[1], dilation=options[2], padding_mode=options[3],
            flip=options[4], bias=bias is not None,
        )  # fmt: skip
        spec = HetSpec(conv, options[5])
        shape = conv.output_shape(x.shape)[-conv.rank - 1 :]
        check_bias(bias, conv)
        names = ["x", "w", "b"] if conv.bias else ["x", "w"]
        return Recipe([Node("HetConvolution", names, ["y"], {"spec": spec}, domain=INTERNAL)], shape, x.dtype)

    batched = x.ndim != weight.ndim - 1
    inputs = {"x": x if batched else x.reshape(1, *x.shape)}
    return run(("het_conv", options), inputs, {"w": weight, "b": bias}, build, out, threads, numerics, batched)


def channel_shuffle(x: Any, groups: int, *, out: Array | None = None, threads: int | None = None) -> Array:
    """The channels, G groups of C/G, in the order of C/G groups of G (arXiv 1707.01083, 3.1).

    - `x`: N x C x any axes, of any type.
    - `groups`: G, which divides C.

    Returns an array like `x`. Raises `ConvwrightError` where G does not divide C.

    >>> import numpy as np
    >>> channel_shuffle(np.arange(6).reshape(1, 6, 1), 3).ravel()
    array([0, 2, 4, 1, 3, 5])
    """
    x = array_of("input", x)
    groups = checked_int("groups", groups, 1)
    if x.ndim < 2 or x.shape[1] % groups:
        raise ConvwrightError(
            f"input of shape {x.shape} has no channels, on its second axis, that groups {groups} divide"
        )
    batch, channels = x.shape[:2]
    if not x.size:
        return run(("empty", groups), {"x": x}, {}, lambda: Recipe([], x.shape[1:], x.dtype), out, threads, "default")
    split = x.reshape(batch, groups, channels // groups, -1)
    word = _WORDS.get(x.dtype.itemsize)
    if word is None or x.dtype.hasobject:  # kernels move elements of 4 and of 8 bytes
        shuffled = split.swapaxes(1, 2).reshape(x.shape)
        return shuffled if out is None else _copied(shuffled, out)
    shape = (channels // groups, groups, split.shape[3])
    node = Node("Transpose", ["x"], ["y"], {"perm": (0, 2, 1, 3)})
    inputs = {"x": np.ascontiguousarray(split).view(word)}
    result = run(
        ("channel_shuffle",), inputs, {}, lambda: Recipe([node], shape, np.dtype(word)), None, threads, "default"
    )
    shuffled = result.view(x.dtype).reshape(x.shape)
    return shuffled if out is None else _copied(shuffled, out)


_WORDS = {4: np.int32, 8: np.int64}


def _copied(result: Array, out: Array) -> Array:
    from convwright.functional.arrays import checked_out

    checked_out(out, result.shape, result.dtype)[...] = result
    return out
