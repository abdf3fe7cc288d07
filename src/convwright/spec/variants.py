"""Kinds that are one convolution with a change: deformable, het, shuffled, integer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from convwright.errors import ConvwrightError
from convwright.spec.checks import INT64_MAX, AxesLike, checked_bool, checked_int, checked_size, set_field, show
from convwright.spec.composed import Over, checked_plain
from convwright.spec.conv import ConvSpec


@dataclass(frozen=True, slots=True)
class DeformableSpec(Over):
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
        checked_plain(self.conv, self.kind, rank=2, grouped=True)
        set_field(self, "offset_groups", checked_int("offset_groups", self.offset_groups, 1))
        set_field(self, "modulated", checked_bool("modulated", self.modulated))
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
        return (checked_int("batch", batch, 1), channels, *self.output_size(input_size))


@dataclass(frozen=True, slots=True)
class HetSpec(Over):
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
        checked_plain(self.conv, self.kind)
        set_field(self, "part", checked_int("part", self.part, 1))
        if self.part > self.conv.in_channels:
            raise ConvwrightError(f"part {self.part} is more than in_channels {self.conv.in_channels}")
        if any(size % 2 == 0 for size in self.conv.kernel):
            raise ConvwrightError(f"a het convolution needs odd kernel sizes, got {show(self.conv.kernel)}")

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
        positions = checked_int("batch", batch, 1) * prod(self.output_size(input_size))
        return checked_size("the number of MACs", positions * self.taps)


@dataclass(frozen=True, slots=True)
class ShuffledSpec(Over):
    """A grouped pointwise convolution, then a channel shuffle `(G, K/G) -> (K/G, G)` (arXiv 1707.01083).

    - `conv`: the grouped pointwise convolution.

    >>> ShuffledSpec(ConvSpec(6, 6, (1, 1), groups=3)).permutation
    (0, 2, 4, 1, 3, 5)
    """

    conv: ConvSpec

    def __post_init__(self) -> None:
        checked_plain(self.conv, self.kind, grouped=True)
        if prod(self.conv.kernel) != 1:
            raise ConvwrightError(f"a shuffled convolution is pointwise, got kernel {show(self.conv.kernel)}")

    @property
    def kind(self) -> str:
        return "shuffled"

    @property
    def permutation(self) -> tuple[int, ...]:
        """For each output channel, the channel of the convolution that it takes."""
        each = self.conv.out_channels // self.conv.groups
        return tuple(group * each + index for index in range(each) for group in range(self.conv.groups))


@dataclass(frozen=True, slots=True, init=False)
class IntegerSpec(Over):
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
        checked_plain(conv, self.kind, grouped=True)
        if conv.padding_mode != "zeros":
            raise ConvwrightError(f"an integer convolution pads with its zero point, got {conv.padding_mode!r}")
        points = tuple(weight_zero_point) if isinstance(weight_zero_point, Iterable) else (weight_zero_point,)
        if len(points) not in (1, conv.out_channels):
            raise ConvwrightError(
                f"weight_zero_point must be one int, or one for each of {conv.out_channels} output channels,"
                f" got {len(points)}"
            )
        set_field(self, "conv", conv)
        set_field(self, "input_signed", checked_bool("input_signed", input_signed))
        set_field(self, "weight_signed", checked_bool("weight_signed", weight_signed))
        set_field(self, "input_zero_point", _zero_point("input_zero_point", input_zero_point, input_signed))
        points = tuple(_zero_point("weight_zero_point", point, weight_signed) for point in points)
        set_field(self, "weight_zero_point", points)
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


def _zero_point(name: str, value: object, signed: bool) -> int:
    low, high = (-128, 127) if signed else (0, 255)
    number = checked_int(name, value, -INT64_MAX)
    if not low <= number <= high:
        raise ConvwrightError(f"{name} {number} is outside {low}..{high}")
    return number


def _reach(zero_point: int, signed: bool) -> int:
    low, high = (-128, 127) if signed else (0, 255)
    return max(zero_point - low, high - zero_point)
