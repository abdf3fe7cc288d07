"""Kinds that are made of convolutions, and the channel shuffle between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.functional.arrays import Array, array_of, check_real, frozen, frozen_bool
from convwright.functional.convolution import check_bias, convolution
from convwright.functional.prepared import Recipe, run
from convwright.graph import Node
from convwright.spec import AxesLike, ConvSpec, PaddingLike, SeparableSpec, SpatialSpec
from convwright.spec.checks import checked_int


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
