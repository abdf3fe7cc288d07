"""What a convolution is: immutable descriptions, N-dimensional, normalised and validated once.

`ConvSpec` is the description that everyone reads: cost, reference, kernels, pictures and messages. The other kinds are
described over it: `SeparableSpec(ConvSpec(...))` is the depthwise separable form of that convolution, and so on.

Conventions: one MAC is one multiply-accumulate and FLOPs are twice the MACs; biases, shuffles, bilinear sampling and
pooling are not MACs. Inputs are N x C x spatial, weights K x C/groups x kernel, outputs N x K x spatial.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, Self, TypedDict, Unpack

from convwright.errors import ConvwrightError

Pads = tuple[tuple[int, int], ...]
SameWord = Literal["same", "same_lower"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
AxesLike = int | Sequence[int]
PaddingLike = int | Sequence[int | Sequence[int]] | str

INT64_MAX = 2**63 - 1
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class ConvOptions(TypedDict, total=False):
    """The keyword arguments of `ConvSpec`, for functions that pass them on."""

    stride: AxesLike
    padding: PaddingLike
    dilation: AxesLike
    groups: int
    transposed: bool
    output_padding: AxesLike
    bias: bool
    padding_mode: str
    flip: bool


class Spec(ABC):
    """What every description answers, whatever its kind."""

    __slots__ = ()

    @property
    @abstractmethod
    def kind(self) -> str:
        """The kind's name in one word."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The number of spatial axes."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The number of learned values, biases included."""

    @abstractmethod
    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output; `input_size` is one int an axis."""

    @abstractmethod
    def macs(self, input_size: Sequence[int], batch: int = 1) -> int:
        """Multiply-accumulates for a batch of inputs of one spatial size."""

    def flops(self, input_size: Sequence[int], batch: int = 1) -> int:
        """Floating-point operations: twice `macs`."""
        return 2 * self.macs(input_size, batch)


@dataclass(frozen=True, slots=True, init=False)
class ConvSpec(Spec):
    """A convolution over 1, 2 or 3 spatial axes.

    - `in_channels`, `out_channels`: C and K.
    - `kernel`: one int an axis; its length is the rank. `ConvSpec.of_rank(2, 3, 64, 7)` spreads an int over the axes.
    - `stride`, `dilation`: an int for every axis, or one an axis.
    - `padding`: an int, one int an axis, one `(low, high)` pair an axis, `"valid"` (none), `"same"` (output size
      `ceil(input / stride)`, an odd element goes at the high end: TensorFlow's SAME, ONNX's SAME_UPPER) or
      `"same_lower"` (it goes at the low end). A transposed convolution crops its output by `padding`; `"same"` then
      means output size `input * stride`.
    - `groups`: channels in this many independent groups; divides C and K.
    - `transposed`: the adjoint of the convolution with the same numbers.
    - `output_padding`: of a transposed convolution, elements added at the high end of each axis.
    - `bias`: whether one value an output channel is added.
    - `padding_mode`: what padding holds: `"zeros"`, `"reflect"`, `"replicate"` or `"circular"`.
    - `flip`: True for the convolution of mathematics, which flips the kernel on every spatial axis; False for the
      cross-correlation that deep learning calls convolution.

    As attributes, `kernel`, `stride`, `dilation` and `output_padding` are tuples, and `padding` is a tuple of
    `(low, high)` pairs. One case stays open: under a stride above 1, `"same"` depends on the input, so `padding` keeps
    the word; `pads(input_size)` gives the pairs in every case, and `resolve(input_size)` a spec that has them.

    Raises `ConvwrightError` for values that describe no convolution, or whose parameters do not count in 64 bits.

    >>> spec = ConvSpec(3, 64, (7, 7), stride=2, padding=3, bias=False)
    >>> spec.kind, spec.weight_shape, spec.output_size((224, 224)), spec.macs((224, 224))
    ('standard', (64, 3, 7, 7), (112, 112), 118013952)
    >>> ConvSpec(4, 6, (3, 3), groups=4)
    Traceback (most recent call last):
    convwright.errors.ConvwrightError: out_channels 6 is not divisible by groups 4
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads | SameWord
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]
    bias: bool
    padding_mode: PaddingMode
    flip: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        *,
        stride: AxesLike = 1,
        padding: PaddingLike = 0,
        dilation: AxesLike = 1,
        groups: int = 1,
        transposed: bool = False,
        output_padding: AxesLike = 0,
        bias: bool = True,
        padding_mode: str = "zeros",
        flip: bool = False,
    ) -> None:
        if not _is_sequence(kernel):
            raise ConvwrightError(
                f"kernel {_show(kernel)} does not say how many axes it has: give one int an axis, or ConvSpec.of_rank"
            )
        kernel = tuple(kernel)
        rank = _rank(len(kernel), f"kernel {_show(kernel)}")
        _set(self, "in_channels", _int("in_channels", in_channels, 1))
        _set(self, "out_channels", _int("out_channels", out_channels, 1))
        _set(self, "kernel", _axes("kernel", kernel, rank, 1))
        _set(self, "stride", _axes("stride", stride, rank, 1))
        _set(self, "dilation", _axes("dilation", dilation, rank, 1))
        _set(self, "groups", _int("groups", groups, 1))
        _set(self, "transposed", _bool("transposed", transposed))
        _set(self, "output_padding", _axes("output_padding", output_padding, rank, 0))
        _set(self, "bias", _bool("bias", bias))
        _set(self, "padding_mode", _choice("padding_mode", padding_mode, PADDING_MODES))
        _set(self, "flip", _bool("flip", flip))
        self._check()
        _set(self, "padding", self._normal_padding(padding))

    @classmethod
    def of_rank(
        cls, rank: int, in_channels: int, out_channels: int, kernel: AxesLike, **options: Unpack[ConvOptions]
    ) -> Self:
        """The spec over `rank` spatial axes; an int `kernel` stands for every axis.

        >>> ConvSpec.of_rank(3, 8, 16, 3, padding=1).weight_shape
        (16, 8, 3, 3, 3)
        """
        rank = _rank(_int("rank", rank, 1), f"rank {rank}")
        return cls(in_channels, out_channels, _axes("kernel", kernel, rank, 1), **options)

    @classmethod
    def of_weight(cls, weight_shape: Sequence[int], **options: Unpack[ConvOptions]) -> Self:
        """The spec whose `weight_shape` is this one: K x C/groups x kernel, transposed C x K/groups x kernel.

        >>> ConvSpec.of_weight((32, 1, 3, 3), groups=32).kind
        'depthwise'
        """
        shape = tuple(weight_shape) if _is_sequence(weight_shape) else ()
        if not 3 <= len(shape) <= 5:
            raise ConvwrightError(
                f"a weight's shape is two channel numbers and 1, 2 or 3 kernel sizes, got {_show(weight_shape)}"
            )
        first, second, *kernel = (_int("weight shape", size, 1) for size in shape)
        second *= _int("groups", options.get("groups", 1), 1)
        channels = (first, second) if options.get("transposed", False) else (second, first)
        return cls(*channels, kernel, **options)

    def _check(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ConvwrightError(f"{name} {getattr(self, name)} is not divisible by groups {self.groups}")
        if not self.transposed and any(self.output_padding):
            raise ConvwrightError(
                f"output_padding {_show(self.output_padding)} is for transposed convolutions only; it must be 0 here"
            )
        if self.transposed and self.padding_mode != "zeros":
            raise ConvwrightError(f"a transposed convolution has no padding_mode {self.padding_mode!r}, only 'zeros'")
        for extra, stride, dilation in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra and extra >= max(stride, dilation):
                raise ConvwrightError(
                    f"output_padding {_show(self.output_padding)} must be less than the stride {_show(self.stride)}"
                    f" or the dilation {_show(self.dilation)} on each axis"
                )
        for span in self.effective_kernel:
            _fits("an effective kernel size", span)
        _fits("the number of parameters", self.parameters)

    def _normal_padding(self, padding: PaddingLike) -> Pads | SameWord:
        if not isinstance(padding, str):
            return _pairs(padding, self.rank)
        if padding == "valid":
            return ((0, 0),) * self.rank
        word: SameWord
        if padding == "same":
            word = "same"
        elif padding == "same_lower":
            word = "same_lower"
        else:
            raise ConvwrightError(f"padding must be ints, pairs, 'same', 'same_lower' or 'valid', got {padding!r}")
        if self.transposed:
            sizes = zip(self.effective_kernel, self.output_padding, self.stride, strict=True)
            totals = [span + extra - stride for span, extra, stride in sizes]
            if min(totals) < 0:
                raise ConvwrightError(
                    f"padding {word!r} of a transposed convolution needs an effective kernel"
                    f" {_show(self.effective_kernel)} plus output_padding {_show(self.output_padding)}"
                    f" of at least the stride {_show(self.stride)}"
                )
            return _split(totals, word)
        if max(self.stride) == 1:
            return _split([span - 1 for span in self.effective_kernel], word)
        return word

    @property
    def rank(self) -> int:
        """The number of spatial axes: 1, 2 or 3."""
        return len(self.kernel)

    @property
    def kind(self) -> str:
        """`transposed`, `depthwise`, `grouped`, `pointwise`, `dilated` or `standard`: the first that holds.

        Depthwise is `groups == in_channels > 1`, with any channel multiplier; pointwise is a kernel of one tap.
        """
        if self.transposed:
            return "transposed"
        if self.groups > 1:
            return "depthwise" if self.groups == self.in_channels else "grouped"
        if prod(self.kernel) == 1:
            return "pointwise"
        return "standard" if self.effective_kernel == self.kernel else "dilated"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """K x C/groups x kernel; of a transposed convolution C x K/groups x kernel."""
        first, second = self.out_channels, self.in_channels
        if self.transposed:
            first, second = second, first
        return (first, second // self.groups, *self.kernel)

    @property
    def effective_kernel(self) -> tuple[int, ...]:
        """The elements that the kernel spans on each axis: `dilation * (kernel - 1) + 1` (arXiv 1603.07285, 5.1).

        >>> [ConvSpec(1, 1, (3,), dilation=d).effective_kernel for d in (1, 2, 4)]
        [(3,), (5,), (9,)]
        """
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def parameters(self) -> int:
        """Weights plus biases: `(prod(k) * C / groups + 1) * K` with bias."""
        return prod(self.weight_shape) + self.bias * self.out_channels

    def pads(self, input_size: Sequence[int] | None = None) -> Pads:
        """The `(low, high)` padding of each axis, of the output if transposed.

        `input_size`, one int an axis, is needed only where `padding` kept its word.

        >>> ConvSpec(1, 1, (3,), stride=2, padding="same").pads((8,))
        ((0, 1),)
        """
        if not isinstance(self.padding, str):
            return self.padding
        if input_size is None:
            raise ConvwrightError(
                f"padding {self.padding!r} with stride {_show(self.stride)} depends on the input size: give it"
            )
        totals = []
        sizes = zip(self._size(input_size), self.effective_kernel, self.stride, strict=True)
        for size, span, stride in sizes:
            outputs = -(-size // stride)
            totals.append(max(0, (outputs - 1) * stride + span - size))
        return _split(totals, self.padding)

    def resolve(self, input_size: Sequence[int]) -> Self:
        """The same convolution with `padding` in pairs, for inputs of this size."""
        return replace(self, padding=self.pads(input_size))

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output.

        Along an axis, with `p` the padding of both ends and `e` the effective kernel: `floor((i + p - e) / s) + 1`
        (relationship 15 of arXiv 1603.07285), and transposed `s * (i - 1) + output_padding + e - p` (relationship 14).

        Raises `ConvwrightError` for a kernel larger than the padded input, for an output without elements, and for
        padding that would reflect or wrap an input more than once.

        >>> ConvSpec(1, 1, (3, 3), transposed=True).output_size((2, 2))
        (4, 4)
        >>> ConvSpec(1, 1, (3, 3), stride=2, transposed=True).output_size((2, 2))
        (5, 5)
        """
        size = self._size(input_size)
        pads = self.pads(size)
        outputs = []
        for axis in range(self.rank):
            stride, span, both = self.stride[axis], self.effective_kernel[axis], sum(pads[axis])
            if self.transposed:
                outputs.append(stride * (size[axis] - 1) + self.output_padding[axis] + span - both)
            else:
                outputs.append((size[axis] + both - span) // stride + 1)
        if min(outputs) < 1:
            if self.transposed:
                raise ConvwrightError(f"padding {_show(pads)} leaves nothing of the output of input {_show(size)}")
            padded = tuple(i + low + high for i, (low, high) in zip(size, pads, strict=True))
            raise ConvwrightError(
                f"kernel {_show(self.kernel)} with dilation {_show(self.dilation)} spans"
                f" {_show(self.effective_kernel)}, more than the padded input {_show(padded)}"
            )
        limit = {"reflect": -1, "circular": 0}.get(self.padding_mode)
        if limit is not None and any(max(pair) > i + limit for i, pair in zip(size, pads, strict=True)):
            raise ConvwrightError(
                f"padding {_show(pads)} is too large for padding_mode {self.padding_mode!r} on input {_show(size)}"
            )
        _fits("the number of output elements", self.out_channels * prod(outputs))
        return tuple(outputs)

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the output for an input N x C x spatial, or C x spatial without a batch.

        >>> ConvSpec(3, 8, (3, 3), padding=1).output_shape((2, 3, 5, 5))
        (2, 8, 5, 5)
        """
        shape = tuple(input_shape) if _is_sequence(input_shape) else ()
        if len(shape) not in (self.rank + 1, self.rank + 2) or shape[-self.rank - 1] != self.in_channels:
            axes = ", ".join(("D", "H", "W")[-self.rank :])
            raise ConvwrightError(
                f"the input must be (N, {self.in_channels}, {axes}) or ({self.in_channels}, {axes}),"
                f" got {_show(input_shape)}"
            )
        return (*shape[: -self.rank - 1], self.out_channels, *self.output_size(shape[-self.rank :]))

    def macs(self, input_size: Sequence[int], batch: int = 1) -> int:
        """Multiply-accumulates: `batch * prod(out) * prod(k) * C * K / groups`; transposed, `prod(in)` for `prod(out)`.

        >>> ConvSpec(512, 512, (3, 3), padding=1).macs((14, 14))
        462422016
        """
        positions = self.output_size(input_size)
        if self.transposed:
            positions = self._size(input_size)
        return _fits("the number of MACs", _int("batch", batch, 1) * prod(positions) * prod(self.weight_shape))

    def _size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        if not _is_sequence(input_size):
            raise ConvwrightError(f"input size must be {self.rank} ints, one an axis, got {_show(input_size)}")
        return _axes("input size", input_size, self.rank, 1)


class _Over(Spec):
    """A description over a `ConvSpec`, with its output size and, unless said otherwise, its counts."""

    __slots__ = ()
    conv: ConvSpec

    @property
    def rank(self) -> int:
        return self.conv.rank

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The weight's shape: that of `conv`."""
        return self.conv.weight_shape

    @property
    def parameters(self) -> int:
        return self.conv.parameters

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        return self.conv.output_size(input_size)

    def macs(self, input_size: Sequence[int], batch: int = 1) -> int:
        return self.conv.macs(input_size, batch)


class _Chain(Spec):
    """Convolutions one after another."""

    __slots__ = ()
    conv: ConvSpec

    @property
    @abstractmethod
    def stages(self) -> tuple[ConvSpec, ...]:
        """The convolutions, first to last."""

    @property
    def rank(self) -> int:
        return self.conv.rank

    @property
    def parameters(self) -> int:
        return sum(stage.parameters for stage in self.stages)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        for stage in self.stages:
            input_size = stage.output_size(input_size)
        return tuple(input_size)

    def macs(self, input_size: Sequence[int], batch: int = 1) -> int:
        total = 0
        for stage in self.stages:
            total += stage.macs(input_size, batch)
            input_size = stage.output_size(input_size)
        return _fits("the number of MACs", total)


@dataclass(frozen=True, slots=True)
class DeformableSpec(_Over):
    """A deformable convolution (arXiv 1703.06211; with `modulated`, its second version, arXiv 1811.11168).

    - `conv`: 2-D, not transposed, padded with zeros; may be grouped.
    - `offset_groups`: the input channels in this many groups, each with its own offsets.
    - `modulated`: whether a mask scales each sample.

    Counts are those of `conv`: bilinear sampling is elementwise work, and the layer that predicts offsets is another.

    >>> spec = DeformableSpec(ConvSpec(8, 4, (3, 3), padding=1), offset_groups=2, modulated=True)
    >>> spec.offset_shape((5, 6)), spec.mask_shape((5, 6))
    ((1, 36, 5, 6), (1, 18, 5, 6))
    """

    conv: ConvSpec
    offset_groups: int = 1
    modulated: bool = False

    def __post_init__(self) -> None:
        _plain(self.conv, self.kind, rank=2, grouped=True)
        _set(self, "offset_groups", _int("offset_groups", self.offset_groups, 1))
        _set(self, "modulated", _bool("modulated", self.modulated))
        if self.conv.in_channels % self.offset_groups:
            raise ConvwrightError(
                f"in_channels {self.conv.in_channels} is not divisible by offset_groups {self.offset_groups}"
            )
        if self.conv.padding_mode != "zeros" or self.conv.flip:
            raise ConvwrightError(
                "a deformable convolution samples zeros outside and flips nothing,"
                f" got padding_mode {self.conv.padding_mode!r} and flip {self.conv.flip}"
            )

    @property
    def kind(self) -> str:
        return "deformable"

    def offset_shape(self, input_size: Sequence[int], batch: int = 1) -> tuple[int, ...]:
        """`N, 2 * offset_groups * kh * kw, Ho, Wo`, the pair of each tap in (dy, dx) order."""
        batch, channels, *size = self.mask_shape(input_size, batch)
        return (batch, 2 * channels, *size)

    def mask_shape(self, input_size: Sequence[int], batch: int = 1) -> tuple[int, ...]:
        """`N, offset_groups * kh * kw, Ho, Wo`: the shape of the mask of a modulated convolution."""
        channels = self.offset_groups * prod(self.conv.kernel)
        return (_int("batch", batch, 1), channels, *self.output_size(input_size))


@dataclass(frozen=True, slots=True)
class HetSpec(_Over):
    """A heterogeneous convolution, HetConv (arXiv 1903.04120).

    Filter f has full kernels on the channels c with `(c - f) mod part == 0`, and 1x1 kernels, at the centre, on the
    others. Against standard, MACs are `1/P + (1 - 1/P) / prod(k)` where the part P divides the channels; counts here
    are exact for every P.

    - `conv`: the standard convolution that it lightens; odd kernel sizes.
    - `part`: P, from 1 (standard) to the number of input channels.

    >>> spec = HetSpec(ConvSpec(64, 64, (3, 3), padding=1, bias=False), part=4)
    >>> spec.parameters / spec.conv.parameters == 1 / 4 + (1 - 1 / 4) / 9
    True
    """

    conv: ConvSpec
    part: int

    def __post_init__(self) -> None:
        _plain(self.conv, self.kind)
        _set(self, "part", _int("part", self.part, 1))
        if self.part > self.conv.in_channels:
            raise ConvwrightError(f"part {self.part} is more than in_channels {self.conv.in_channels}")
        if any(size % 2 == 0 for size in self.conv.kernel):
            raise ConvwrightError(f"a het convolution needs odd kernel sizes, got {_show(self.conv.kernel)}")

    @property
    def kind(self) -> str:
        return "het"

    def full_channels(self, out_channel: int) -> range:
        """The input channels on which the filter of this output channel has a full kernel."""
        return range(out_channel % self.part, self.conv.in_channels, self.part)

    @property
    def taps(self) -> int:
        """The number of weights: full kernels plus single ones."""
        filters = self.conv.out_channels
        full = sum(
            len(self.full_channels(residue)) * len(range(residue, filters, self.part))
            for residue in range(min(self.part, filters))
        )
        return full * prod(self.conv.kernel) + self.conv.in_channels * filters - full

    @property
    def parameters(self) -> int:
        return self.taps + self.conv.bias * self.conv.out_channels

    def macs(self, input_size: Sequence[int], batch: int = 1) -> int:
        positions = _int("batch", batch, 1) * prod(self.output_size(input_size))
        return _fits("the number of MACs", positions * self.taps)


@dataclass(frozen=True, slots=True)
class SeparableSpec(_Chain):
    """A depthwise separable convolution: depthwise, then pointwise (arXiv 1704.04861).

    Against standard, MACs are `1/K + 1/prod(k)` with multiplier 1. A bias belongs to the pointwise stage: one before it
    would be absorbed by it.

    - `conv`: the standard convolution that it stands for.
    - `multiplier`: the output channels of the depthwise stage for each input channel.

    >>> spec = SeparableSpec(ConvSpec(512, 512, (3, 3), padding=1, bias=False))
    >>> spec.macs((14, 14)), spec.parameters
    (52283392, 266752)
    """

    conv: ConvSpec
    multiplier: int = 1

    def __post_init__(self) -> None:
        _plain(self.conv, self.kind)
        _set(self, "multiplier", _int("multiplier", self.multiplier, 1))
        _fits("the number of parameters", self.parameters)

    @property
    def kind(self) -> str:
        return "separable"

    @property
    def stages(self) -> tuple[ConvSpec, ...]:
        """The depthwise and the pointwise convolution."""
        channels = self.conv.in_channels
        middle = channels * self.multiplier
        depthwise = replace(self.conv, out_channels=middle, groups=channels, bias=False)
        return depthwise, ConvSpec(middle, self.conv.out_channels, (1,) * self.rank, bias=self.conv.bias)


@dataclass(frozen=True, slots=True)
class SpatialSpec(_Chain):
    """A spatially separable convolution: 2-D (k, 1) then (1, k); 3-D (1, k, k) then (k, 1, 1) (arXiv 1711.11248).

    Each stage takes stride, padding and dilation on the axes where its kernel lies; a bias belongs to the last.

    - `conv`: the standard convolution that it stands for, 2-D or 3-D.
    - `middle_channels`: the channels between the stages; `out_channels` unless given.

    >>> spec = SpatialSpec(ConvSpec(1, 1, (3, 3), bias=False))
    >>> spec.conv.parameters, spec.parameters, [stage.kernel for stage in spec.stages]
    (9, 6, [(3, 1), (1, 3)])
    """

    conv: ConvSpec
    middle_channels: int | None = None

    def __post_init__(self) -> None:
        _plain(self.conv, self.kind)
        if self.rank == 1:
            raise ConvwrightError(f"a spatial convolution needs 2 or 3 axes, got kernel {_show(self.conv.kernel)}")
        middle = self.conv.out_channels if self.middle_channels is None else self.middle_channels
        _set(self, "middle_channels", _int("middle_channels", middle, 1))
        _fits("the number of parameters", self.parameters)

    @property
    def kind(self) -> str:
        return "spatial"

    @property
    def stages(self) -> tuple[ConvSpec, ...]:
        """The two convolutions, first to last."""
        conv = self.conv
        middle = conv.out_channels if self.middle_channels is None else self.middle_channels
        first = self._on_axes((True, False) if self.rank == 2 else (False, True, True))
        last = self._on_axes((False, True) if self.rank == 2 else (True, False, False))
        return replace(first, out_channels=middle, bias=False), replace(last, in_channels=middle)

    def _on_axes(self, here: tuple[bool, ...]) -> ConvSpec:
        conv = self.conv
        padding = conv.padding
        if not isinstance(padding, str):
            padding = tuple(pair if on else (0, 0) for pair, on in zip(padding, here, strict=True))
        return replace(
            conv,
            kernel=_where(here, conv.kernel),
            stride=_where(here, conv.stride),
            dilation=_where(here, conv.dilation),
            padding=padding,
        )


@dataclass(frozen=True, slots=True)
class ShuffledSpec(_Over):
    """A grouped pointwise convolution, then a channel shuffle `(G, K/G) -> (K/G, G)` (arXiv 1707.01083).

    - `conv`: the grouped pointwise convolution.

    >>> ShuffledSpec(ConvSpec(6, 6, (1, 1), groups=3)).permutation
    (0, 2, 4, 1, 3, 5)
    """

    conv: ConvSpec

    def __post_init__(self) -> None:
        _plain(self.conv, self.kind, grouped=True)
        if prod(self.conv.kernel) != 1:
            raise ConvwrightError(f"a shuffled convolution is pointwise, got kernel {_show(self.conv.kernel)}")

    @property
    def kind(self) -> str:
        return "shuffled"

    @property
    def permutation(self) -> tuple[int, ...]:
        """For each output channel, the channel of the convolution that it takes."""
        each = self.conv.out_channels // self.conv.groups
        return tuple(group * each + index for index in range(each) for group in range(self.conv.groups))


@dataclass(frozen=True, slots=True, init=False)
class IntegerSpec(_Over):
    """An integer convolution: 8-bit input and weights with zero points, exact 32-bit sums (arXiv 1712.05877).

    The result is the sum of `(x - input_zero_point) * (w - weight_zero_point)`; padding holds the input's zero point.

    - `conv`: the convolution, not transposed, padded with zeros.
    - `input_zero_point`: one int in the input's range.
    - `weight_zero_point`: an int, or one an output channel; as an attribute a tuple of 1 or K ints.
    - `input_signed`, `weight_signed`: int8 if True, uint8 if False.

    Raises `ConvwrightError` where the largest possible sum does not fit in 32 bits.

    >>> IntegerSpec(ConvSpec(64, 64, (3, 3)), input_zero_point=128).accumulator_bound
    9437184
    """

    conv: ConvSpec
    input_zero_point: int
    weight_zero_point: tuple[int, ...]
    input_signed: bool
    weight_signed: bool

    def __init__(
        self,
        conv: ConvSpec,
        input_zero_point: int = 0,
        weight_zero_point: AxesLike = 0,
        *,
        input_signed: bool = False,
        weight_signed: bool = True,
    ) -> None:
        _plain(conv, self.kind, grouped=True)
        if conv.padding_mode != "zeros":
            raise ConvwrightError(f"an integer convolution pads with its zero point, got {conv.padding_mode!r}")
        points = tuple(weight_zero_point) if isinstance(weight_zero_point, Iterable) else (weight_zero_point,)
        if len(points) not in (1, conv.out_channels):
            raise ConvwrightError(
                f"weight_zero_point must be one int, or one for each of {conv.out_channels} output channels,"
                f" got {len(points)}"
            )
        _set(self, "conv", conv)
        _set(self, "input_signed", _bool("input_signed", input_signed))
        _set(self, "weight_signed", _bool("weight_signed", weight_signed))
        _set(self, "input_zero_point", _zero_point("input_zero_point", input_zero_point, input_signed))
        points = tuple(_zero_point("weight_zero_point", point, weight_signed) for point in points)
        _set(self, "weight_zero_point", points)
        if self.accumulator_bound > 2**31 - 1:
            raise ConvwrightError(
                f"sums over {prod(conv.weight_shape[1:])} products may reach {self.accumulator_bound},"
                " more than 32 bits hold"
            )

    @property
    def kind(self) -> str:
        return "integer"

    @property
    def accumulator_bound(self) -> int:
        """The largest magnitude that a sum can have."""
        largest_input = _reach(self.input_zero_point, self.input_signed)
        largest_weight = max(_reach(point, self.weight_signed) for point in self.weight_zero_point)
        return prod(self.conv.weight_shape[1:]) * largest_input * largest_weight


@dataclass(frozen=True, slots=True, init=False)
class MixSpec(Spec):
    """A depthwise convolution with another kernel size for each part of the channels, MixConv (arXiv 1907.09595).

    - `channels`: in and out.
    - `kernels`: the kernel size of each part, the same on every axis.
    - `rank`: the number of spatial axes.
    - `split`: `"equal"` (the first part takes the rest) or `"exponential"` (each part about half of what is left).
    - `stride`, `dilation`, `bias`: as in `ConvSpec`, for every part.
    - `padding`: `"same"` or `"same_lower"` as in `ConvSpec`, or `"half"`: `dilation * (k - 1) / 2` at both ends, for
      odd kernels (half padding of arXiv 1603.07285, 2.3).

    >>> MixSpec(32, (3, 5, 7, 9), split="exponential").part_channels
    (16, 8, 4, 4)
    """

    channels: int
    kernels: tuple[int, ...]
    rank: int
    split: Literal["equal", "exponential"]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Literal["same", "same_lower", "half"]
    bias: bool

    def __init__(
        self,
        channels: int,
        kernels: Sequence[int],
        *,
        rank: int = 2,
        split: str = "equal",
        stride: AxesLike = 1,
        dilation: AxesLike = 1,
        padding: str = "same",
        bias: bool = True,
    ) -> None:
        if not _is_sequence(kernels) or not tuple(kernels):
            raise ConvwrightError(f"kernels must be one size for each part, got {_show(kernels)}")
        rank = _rank(_int("rank", rank, 1), f"rank {rank}")
        _set(self, "channels", _int("channels", channels, 1))
        _set(self, "kernels", tuple(_int("kernels", size, 1) for size in kernels))
        _set(self, "rank", rank)
        _set(self, "split", _choice("split", split, ("equal", "exponential")))
        _set(self, "stride", _axes("stride", stride, rank, 1))
        _set(self, "dilation", _axes("dilation", dilation, rank, 1))
        _set(self, "padding", _choice("padding", padding, ("same", "same_lower", "half")))
        _set(self, "bias", _bool("bias", bias))
        if min(self.part_channels) < 1:
            raise ConvwrightError(
                f"{self.channels} channels are too few for {len(self.kernels)} parts of an {split} split"
            )
        if padding == "half" and any(size % 2 == 0 for size in self.kernels):
            raise ConvwrightError(f"padding 'half' needs odd kernel sizes, got {_show(self.kernels)}")
        _fits("the number of parameters", self.parameters)

    @property
    def kind(self) -> str:
        return "mix"

    @property
    def part_channels(self) -> tuple[int, ...]:
        """The number of channels of each part, in the order of `kernels`."""
        count = len(self.kernels)
        if self.split == "equal":
            each = self.channels // count
            return (self.channels - each * (count - 1), *[each] * (count - 1)) if each else (0,)
        parts, left = [], self.channels
        for _ in range(count - 1):
            parts.append((left + 1) // 2)
            left -= parts[-1]
        return (*parts, left)

    @property
    def parts(self) -> tuple[ConvSpec, ...]:
        """The depthwise convolution of each part, in the order of the channels."""
        return tuple(
            ConvSpec(
                channels,
                channels,
                (size,) * self.rank,
                stride=self.stride,
                padding=[d * (size - 1) // 2 for d in self.dilation] if self.padding == "half" else self.padding,
                dilation=self.dilation,
                groups=channels,
                bias=self.bias,
            )
            for channels, size in zip(self.part_channels, self.kernels, strict=True)
        )

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        return self.parts[0].output_size(input_size)

    def macs(self, input_size: Sequence[int], batch: int = 1) -> int:
        return _fits("the number of MACs", sum(part.macs(input_size, batch) for part in self.parts))


def _set(spec: Spec, name: str, value: object) -> None:
    object.__setattr__(spec, name, value)


def _show(value: object) -> str:
    """A value on one line, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def _is_sequence(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | dict | set | frozenset)


def _int(name: str, value: object, minimum: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConvwrightError(f"{name} must be an int, got {_show(value)}") from None
    if number < minimum:
        raise ConvwrightError(f"{name} must be at least {minimum}, got {number}")
    return _fits(name, number)


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConvwrightError(f"{name} must be True or False, got {_show(value)}")
    return value


def _choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ConvwrightError(f"{name} must be one of {', '.join(map(repr, choices))}, got {_show(value)}")
    return value


def _rank(rank: int, where: str) -> int:
    if rank not in (1, 2, 3):
        raise ConvwrightError(f"a convolution has 1, 2 or 3 spatial axes, got {where}")
    return rank


def _axes(name: str, value: AxesLike, rank: int, minimum: int) -> tuple[int, ...]:
    entries = tuple(value) if _is_sequence(value) else (value,) * rank  # type: ignore[arg-type]
    if len(entries) != rank:
        raise ConvwrightError(f"{name} {_show(value)} must have {rank} entries, one a spatial axis")
    return tuple(_int(name, entry, minimum) for entry in entries)


def _pairs(padding: int | Sequence[int | Sequence[int]], rank: int) -> Pads:
    entries = tuple(padding) if _is_sequence(padding) else (padding,) * rank  # type: ignore[arg-type]
    if len(entries) != rank:
        raise ConvwrightError(f"padding {_show(padding)} must have {rank} entries, one a spatial axis")
    pairs = [tuple(entry) if _is_sequence(entry) else (entry, entry) for entry in entries]  # type: ignore[arg-type]
    if any(len(pair) != 2 for pair in pairs):
        raise ConvwrightError(f"padding {_show(padding)} must be ints or (low, high) pairs")
    return tuple((_int("padding", low, 0), _int("padding", high, 0)) for low, high in pairs)


def _split(totals: Sequence[int], word: str) -> Pads:
    """Each total in two halves; an odd element goes to the high end for "same", to the low end for "same_lower"."""
    halves = [(total // 2, total - total // 2) for total in totals]
    return tuple((high, low) if word == "same_lower" else (low, high) for low, high in halves)


def _where(here: tuple[bool, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value if on else 1 for value, on in zip(values, here, strict=True))


def _fits(what: str, number: int) -> int:
    if number > INT64_MAX:
        raise ConvwrightError(f"{what} does not fit in 64 bits: {number}")
    return number


def _plain(conv: ConvSpec, kind: str, *, rank: int | None = None, grouped: bool = False) -> None:
    """Checks what the kinds described over a convolution ask of it."""
    if not isinstance(conv, ConvSpec):
        raise ConvwrightError(f"conv must be a ConvSpec, got {_show(conv)}")
    if conv.transposed:
        raise ConvwrightError(f"a {kind} convolution cannot be transposed")
    if conv.groups > 1 and not grouped:
        raise ConvwrightError(f"a {kind} convolution stands for one of groups 1, got groups {conv.groups}")
    if rank is not None and conv.rank != rank:
        raise ConvwrightError(f"a {kind} convolution has {rank} spatial axes, got kernel {_show(conv.kernel)}")


def _zero_point(name: str, value: object, signed: bool) -> int:
    low, high = (-128, 127) if signed else (0, 255)
    number = _int(name, value, -INT64_MAX)
    if not low <= number <= high:
        raise ConvwrightError(f"{name} {number} is outside {low}..{high}")
    return number


def _reach(zero_point: int, signed: bool) -> int:
    low, high = (-128, 127) if signed else (0, 255)
    return max(zero_point - low, high - zero_point)
