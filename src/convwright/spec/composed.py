"""What the kinds that are described over a `ConvSpec` have in common."""

from abc import abstractmethod
from collections.abc import Sequence

from convwright.errors import ConvwrightError
from convwright.spec.base import Spec
from convwright.spec.checks import checked_size, show
from convwright.spec.conv import ConvSpec


class Over(Spec):
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


class Chain(Spec):
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
        return checked_size("the number of MACs", total)


def checked_plain(conv: ConvSpec, kind: str, *, rank: int | None = None, grouped: bool = False) -> None:
    """Checks what the kinds described over a convolution ask of it."""
    if not isinstance(conv, ConvSpec):
        raise ConvwrightError(f"conv must be a ConvSpec, got {show(conv)}")
    if conv.transposed:
        raise ConvwrightError(f"a {kind} convolution cannot be transposed")
    if conv.groups > 1 and not grouped:
        raise ConvwrightError(f"a {kind} convolution stands for one of groups 1, got groups {conv.groups}")
    if rank is not None and conv.rank != rank:
        raise ConvwrightError(f"a {kind} convolution has {rank} spatial axes, got kernel {show(conv.kernel)}")
