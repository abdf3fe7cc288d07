"""Kinds that are two convolutions one after the other: separable and spatial."""

from dataclasses import dataclass, replace

from convwright.errors import ConvwrightError
from convwright.spec.checks import checked_int, checked_size, set_field, show
from convwright.spec.composed import Chain, checked_plain
from convwright.spec.conv import ConvSpec


@dataclass(frozen=True, slots=True)
class SeparableSpec(Chain):
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
        checked_plain(self.conv, self.kind)
        set_field(self, "multiplier", checked_int("multiplier", self.multiplier, 1))
        checked_size("the number of parameters", self.parameters)

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
class SpatialSpec(Chain):
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
        checked_plain(self.conv, self.kind)
        if self.rank == 1:
            raise ConvwrightError(f"a spatial convolution needs 2 or 3 axes, got kernel {show(self.conv.kernel)}")
        middle = self.conv.out_channels if self.middle_channels is None else self.middle_channels
        set_field(self, "middle_channels", checked_int("middle_channels", middle, 1))
        checked_size("the number of parameters", self.parameters)

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


def _where(here: tuple[bool, ...], values: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value if on else 1 for value, on in zip(values, here, strict=True))
