"""What the lowerings of integer convolutions share: a layer's operands, window, zero points and scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convwright.graph import Node
from convwright.graph.shape_rules.windows import axis_list, window_padding
from convwright.kernels.words import ROUND_BITS
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.values import Ref, Value
from convwright.spec import ConvSpec


@dataclass(frozen=True, slots=True)
class Operands:
    """The names of a node's inputs by what they are, "" where there is none."""

    x: str
    w: str
    x_zero: str
    w_zero: str
    x_scale: str = ""
    w_scale: str = ""
    y_scale: str = ""
    y_zero: str = ""
    bias: str = ""


def operands(node: Node) -> Operands:
    """Of a ConvInteger or a QLinearConv node."""
    names = [node.input(place) for place in range(9)]
    if node.op == "ConvInteger":
        return Operands(*names[:4])
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = names
    return Operands(x, w, x_zero, w_zero, x_scale, w_scale, y_scale, y_zero, bias)


def spec_of(node: Node, size: tuple[int, ...], weight_shape: tuple[int, ...]) -> ConvSpec:
    """The convolution of a node, for inputs of this spatial size."""
    rank = len(size)
    stride, dilation = axis_list(node, "strides", rank, 1), axis_list(node, "dilations", rank, 1)
    groups = node.get("group", 1)
    return ConvSpec(
        weight_shape[1] * groups,
        weight_shape[0],
        weight_shape[2:],
        stride=stride,
        dilation=dilation,
        padding=window_padding(node, size, weight_shape[2:], stride, dilation),
        groups=groups,
        bias=False,
    )


@dataclass(frozen=True, slots=True)
class Window:
    """A convolution over three spatial axes, the first ones of size 1 where it has fewer."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    size: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def padded(self) -> tuple[int, ...]:
        """The size with the padding that windows reach."""
        sizes = []
        for axis in range(3):
            reach = (self.out[axis] - 1) * self.stride[axis] + (self.kernel[axis] - 1) * self.dilation[axis] + 1
            sizes.append(max(reach, self.before[axis] + self.size[axis]))
        return tuple(sizes)


def window_of(spec: ConvSpec, size: tuple[int, ...]) -> Window:
    missing = 3 - spec.rank
    ones, zeros = (1,) * missing, (0,) * missing
    return Window(
        ones + spec.kernel, ones + spec.stride, ones + spec.dilation,
        zeros + tuple(low for low, _ in spec.pads(size)), ones + tuple(size), ones + spec.output_size(size),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class IntegerLayer:
    """One layer, its operands found.

    - `centred`: the weights minus their zero point, 16 bits, ``[K, C, kd, kh, kw]``.
    - `form`: of the words that kernels use ("bytes" where the CPU has instructions for them and `centred` fits 8 bits).
    """

    layer: Layer
    names: Operands
    spec: ConvSpec
    window: Window
    x: Value
    zero: Value | None
    centred: np.ndarray
    form: str

    @property
    def own_in(self) -> int:
        """Input channels of a group."""
        return self.spec.in_channels // self.spec.groups

    @property
    def own_out(self) -> int:
        """Output channels of a group."""
        return self.spec.out_channels // self.spec.groups

    @property
    def signed(self) -> bool:
        return self.x.dtype == np.int8

    @property
    def requantised(self) -> bool:
        return self.layer.op == "QLinearConv"

    @property
    def macs(self) -> int:
        return self.spec.macs(self.x.shape[2:], self.x.n)

    def reads(self, *values: Value) -> list[Value]:
        """The values, and the input's zero point where there is one."""
        return [*values] if self.zero is None else [*values, self.zero]

    def derived(self, b: Builder, what: str, make: Callable[[], np.ndarray]) -> Ref:
        """What is computed from the weights and their zero points, once a model."""
        key = (what, self.names.w_zero, self.form, self.spec.groups)
        return b.static(b.weights.derived(self.names.w, key, lambda _: make()))

    def zero_ref(self, b: Builder) -> Ref:
        """The byte of the input's zero point."""
        return b.static(np.zeros(4, np.uint8)) if self.zero is None else self.zero.ref

    def sums(self) -> np.ndarray:
        """Of the weights of each output channel; they wrap as all sums do."""
        return self.centred.astype(np.int64).sum(axis=(1, 2, 3, 4)).astype(np.int32)

    def bias(self, b: Builder) -> np.ndarray:
        """int32, zeros where the layer has none."""
        bias = b.constant(self.names.bias) if self.names.bias else None
        return np.zeros(self.spec.out_channels, np.int32) if bias is None else bias.astype(np.int32).reshape(-1)

    def channel_arguments(self, b: Builder, arrange: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        """What kernels know of each output channel, in the order that they want: bias, sum of weights, scale, limits.

        The limits are those of the 8 bits of the output, as seen from its zero point.
        """
        arguments: dict[str, Any] = {
            "start": self.derived(b, f"bias {self.names.bias}", lambda: arrange(self.bias(b))),
            "w_sums": self.derived(b, "sums of weights", lambda: arrange(self.sums())),
            "zero": self.zero_ref(b),
        }
        if not self.requantised:
            return arguments | {"scales": 0, "limits": 0, "y_offset": 0}
        names = (self.names.x_scale, self.names.w_scale, self.names.y_scale)
        x_scale, w_scale, y_scale = (np.asarray(b.constant(name), np.float32).reshape(-1) for name in names)
        # In float32, in this order, as onnxruntime.
        scales = np.broadcast_to(x_scale * w_scale / y_scale, (self.spec.out_channels,))
        zero = int(np.asarray(b.constant(self.names.y_zero)).reshape(-1)[0]) if self.names.y_zero else 0
        info = np.iinfo(b.types[self.layer.output].dtype)
        limits = np.array([info.min - zero, info.max - zero], np.float32)
        scales_ref, limits_ref = b.static(arrange(scales)), b.static(limits)
        return arguments | {"scales": scales_ref, "limits": limits_ref, "y_offset": zero - ROUND_BITS}


def integer_layer(b: Builder, layer: Layer) -> IntegerLayer:
    """The layer as kernels see it; its input becomes a plain array."""
    names = operands(layer.node)
    x, weight = b.plain(names.x), b.constant(names.w)
    assert weight is not None
    spec = spec_of(layer.node, x.shape[2:], weight.shape)
    centred = _centred(weight, b.constant(names.w_zero) if names.w_zero else None)
    form = "bytes" if b.target.has_vnni and centred.min() >= -128 and centred.max() <= 127 else "halves"
    zero = b.plain(names.x_zero) if names.x_zero else None
    return IntegerLayer(layer, names, spec, window_of(spec, x.shape[2:]), x, zero, centred, form)


def _centred(weight: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """``w - zero point``, of 16 bits, ``[K, C, kd, kh, kw]``."""
    wide = weight.astype(np.int16)
    if zero is not None:
        wide = wide - zero.astype(np.int16).reshape(-1, *(1,) * (weight.ndim - 1))
    return wide.reshape(*weight.shape[:2], *(1,) * (5 - weight.ndim), *weight.shape[2:])
