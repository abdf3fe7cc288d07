"""Depthwise convolutions of several kernel sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from convwright.errors import ConvwrightError
from convwright.spec.base import Spec
from convwright.spec.checks import (
    AxesLike,
    checked_axes,
    checked_bool,
    checked_choice,
    checked_int,
    checked_rank,
    checked_size,
    is_sequence,
    set_field,
    show,
)
from convwright.spec.conv import ConvSpec


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
        if not is_sequence(kernels) or not tuple(kernels):
            raise ConvwrightError(f"kernels must be one size for each part, got {show(kernels)}")
        rank = checked_rank(checked_int("rank", rank, 1), f"rank {rank}")
        set_field(self, "channels", checked_int("channels", channels, 1))
        set_field(self, "kernels", tuple(checked_int("kernels", size, 1) for size in kernels))
        set_field(self, "rank", rank)
        set_field(self, "split", checked_choice("split", split, ("equal", "exponential")))
        set_field(self, "stride", checked_axes("stride", stride, rank, 1))
        set_field(self, "dilation", checked_axes("dilation", dilation, rank, 1))
        set_field(self, "padding", checked_choice("padding", padding, ("same", "same_lower", "half")))
        set_field(self, "bias", checked_bool("bias", bias))
        if min(self.part_channels) < 1:
            raise ConvwrightError(
                f"{self.channels} channels are too few for {len(self.kernels)} parts of an {split} split"
            )
        if padding == "half" and any(size % 2 == 0 for size in self.kernels):
            raise ConvwrightError(f"padding 'half' needs odd kernel sizes, got {show(self.kernels)}")
        checked_size("the number of parameters", self.parameters)

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
        return checked_size("the number of MACs", sum(part.macs(input_size, batch) for part in self.parts))
