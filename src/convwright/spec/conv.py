"""The convolution that everyone reads, and of which the other kinds are variants."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Literal, Self, TypedDict, Unpack

from convwright.errors import ConvwrightError
from convwright.spec.base import Spec
from convwright.spec.checks import (
    AxesLike,
    PaddingLike,
    Pads,
    checked_axes,
    checked_bool,
    checked_choice,
    checked_int,
    checked_pairs,
    checked_rank,
    checked_size,
    is_sequence,
    set_field,
    show,
)

SameWord = Literal["same", "same_lower"]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

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
        if not is_sequence(kernel):
            raise ConvwrightError(
                f"kernel {show(kernel)} does not say how many axes it has: give one int an axis, or ConvSpec.of_rank"
            )
        kernel = tuple(kernel)
        rank = checked_rank(len(kernel), f"kernel {show(kernel)}")
        set_field(self, "in_channels", checked_int("in_channels", in_channels, 1))
        set_field(self, "out_channels", checked_int("out_channels", out_channels, 1))
        set_field(self, "kernel", checked_axes("kernel", kernel, rank, 1))
        set_field(self, "stride", checked_axes("stride", stride, rank, 1))
        set_field(self, "dilation", checked_axes("dilation", dilation, rank, 1))
        set_field(self, "groups", checked_int("groups", groups, 1))
        set_field(self, "transposed", checked_bool("transposed", transposed))
        set_field(self, "output_padding", checked_axes("output_padding", output_padding, rank, 0))
        set_field(self, "bias", checked_bool("bias", bias))
        set_field(self, "padding_mode", checked_choice("padding_mode", padding_mode, PADDING_MODES))
        set_field(self, "flip", checked_bool("flip", flip))
        self._check()
        set_field(self, "padding", self._normal_padding(padding))

    @classmethod
    def of_rank(
        cls, rank: int, in_channels: int, out_channels: int, kernel: AxesLike, **options: Unpack[ConvOptions]
    ) -> Self:
        """The spec over `rank` spatial axes; an int `kernel` stands for every axis.

        >>> ConvSpec.of_rank(3, 8, 16, 3, padding=1).weight_shape
        (16, 8, 3, 3, 3)
        """
        rank = checked_rank(checked_int("rank", rank, 1), f"rank {rank}")
        return cls(in_channels, out_channels, checked_axes("kernel", kernel, rank, 1), **options)

    @classmethod
    def of_weight(cls, weight_shape: Sequence[int], **options: Unpack[ConvOptions]) -> Self:
        """The spec whose `weight_shape` is this one: K x C/groups x kernel, transposed C x K/groups x kernel.

        >>> ConvSpec.of_weight((32, 1, 3, 3), groups=32).kind
        'depthwise'
        """
        shape = tuple(weight_shape) if is_sequence(weight_shape) else ()
        if not 3 <= len(shape) <= 5:
            raise ConvwrightError(
                f"a weight's shape is two channel numbers and 1, 2 or 3 kernel sizes, got {show(weight_shape)}"
            )
        first, second, *kernel = (checked_int("weight shape", size, 1) for size in shape)
        second *= checked_int("groups", options.get("groups", 1), 1)
        channels = (first, second) if options.get("transposed", False) else (second, first)
        return cls(*channels, kernel, **options)

    def _check(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ConvwrightError(f"{name} {getattr(self, name)} is not divisible by groups {self.groups}")
        if not self.transposed and any(self.output_padding):
            raise ConvwrightError(
                f"output_padding {show(self.output_padding)} is for transposed convolutions only; it must be 0 here"
            )
        if self.transposed and self.padding_mode != "zeros":
            raise ConvwrightError(f"a transposed convolution has no padding_mode {self.padding_mode!r}, only 'zeros'")
        for extra, stride, dilation in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra and extra >= max(stride, dilation):
                raise ConvwrightError(
                    f"output_padding {show(self.output_padding)} must be less than the stride {show(self.stride)}"
                    f" or the dilation {show(self.dilation)} on each axis"
                )
        for span in self.effective_kernel:
            checked_size("an effective kernel size", span)
        checked_size("the number of parameters", self.parameters)

    def _normal_padding(self, padding: PaddingLike) -> Pads | SameWord:
        if not isinstance(padding, str):
            return checked_pairs(padding, self.rank)
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
                    f" {show(self.effective_kernel)} plus output_padding {show(self.output_padding)}"
                    f" of at least the stride {show(self.stride)}"
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
    def receptive_field(self) -> tuple[int, ...]:
        """The most input elements that an output depends on, along each axis.

        The effective kernel; of a transposed convolution an output meets the taps that lie a multiple of the stride
        apart, and the outputs that meet most count.

        >>> ConvSpec(1, 1, (3,), dilation=2).receptive_field
        (5,)
        >>> ConvSpec(1, 1, (4,), stride=2, transposed=True).receptive_field
        (2,)
        """
        if not self.transposed:
            return self.effective_kernel
        sizes = []
        for taps, step, gap in zip(self.kernel, self.stride, self.dilation, strict=True):
            apart = step // gcd(step, gap)
            sizes.append((taps - 1) // apart * apart * gap // step + 1)
        return tuple(sizes)

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
                f"padding {self.padding!r} with stride {show(self.stride)} depends on the input size: give it"
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
                raise ConvwrightError(f"padding {show(pads)} leaves nothing of the output of input {show(size)}")
            padded = tuple(i + low + high for i, (low, high) in zip(size, pads, strict=True))
            raise ConvwrightError(
                f"kernel {show(self.kernel)} with dilation {show(self.dilation)} spans"
                f" {show(self.effective_kernel)}, more than the padded input {show(padded)}"
            )
        limit = {"reflect": -1, "circular": 0}.get(self.padding_mode)
        if limit is not None and any(max(pair) > i + limit for i, pair in zip(size, pads, strict=True)):
            raise ConvwrightError(
                f"padding {show(pads)} is too large for padding_mode {self.padding_mode!r} on input {show(size)}"
            )
        checked_size("the number of output elements", self.out_channels * prod(outputs))
        return tuple(outputs)

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the output for an input N x C x spatial, or C x spatial without a batch.

        >>> ConvSpec(3, 8, (3, 3), padding=1).output_shape((2, 3, 5, 5))
        (2, 8, 5, 5)
        """
        shape = tuple(input_shape) if is_sequence(input_shape) else ()
        if len(shape) not in (self.rank + 1, self.rank + 2) or shape[-self.rank - 1] != self.in_channels:
            axes = ", ".join(("D", "H", "W")[-self.rank :])
            raise ConvwrightError(
                f"the input must be (N, {self.in_channels}, {axes}) or ({self.in_channels}, {axes}),"
                f" got {show(input_shape)}"
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
        return checked_size(
            "the number of MACs", checked_int("batch", batch, 1) * prod(positions) * prod(self.weight_shape)
        )

    def _size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        if not is_sequence(input_size):
            raise ConvwrightError(f"input size must be {self.rank} ints, one an axis, got {show(input_size)}")
        return checked_axes("input size", input_size, self.rank, 1)


def _split(totals: Sequence[int], word: str) -> Pads:
    """Each total in two halves; an odd element goes to the high end for "same", to the low end for "same_lower"."""
    halves = [(total // 2, total - total // 2) for total in totals]
    return tuple((high, low) if word == "same_lower" else (low, high) for low, high in halves)
