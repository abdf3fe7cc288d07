"""What every description answers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence


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
