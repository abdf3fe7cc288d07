"""What the operators of the evaluator are given beside their tensors: the node's attributes and its padding."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import onnx
import torch
from torch import Tensor
from torch.nn import functional as F


class NotAlike(Exception):
    """PyTorch has no operator that means the same; the node goes through onnx.reference."""


def not_alike() -> NoReturn:
    raise NotAlike


@dataclass(slots=True)
class Step:
    """A node of the network.

    - `attributes`: of the node.
    - `spent`: the values that nobody reads after it.
    - `dtype`, `channels_last`: the evaluator's.
    - `fixed`: whether all inputs but the first are constants, so that what is made of them may be kept in `kept`.
    """

    node: onnx.NodeProto
    attributes: dict[str, Any]
    spent: list[str]
    dtype: torch.dtype
    channels_last: bool
    fixed: bool
    kept: dict[str, Any] = field(default_factory=dict)

    def axes(self, name: str, rank: int, default: int = 1) -> list[int]:
        """An attribute of one int a spatial axis."""
        return list(self.attributes.get(name, [default] * rank))


def pads(step: Step, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """The padding before and after each spatial axis, `auto_pad` worked out."""
    rank = len(kernel)
    mode = step.attributes.get("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b"VALID"):
        given = step.attributes.get("pads", [0] * 2 * rank) if mode == b"NOTSET" else [0] * 2 * rank
        return list(given[:rank]), list(given[rank:])
    strides, dilations = step.axes("strides", rank), step.axes("dilations", rank)
    low, high = [], []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        low.append(small if mode == b"SAME_UPPER" else large)
        high.append(large if mode == b"SAME_UPPER" else small)
    return low, high


def padded(x: Tensor, low: Sequence[int], high: Sequence[int], value: float = 0.0) -> Tensor:
    pairs = [amount for pair in reversed(list(zip(low, high, strict=True))) for amount in pair]
    return F.pad(x, pairs, value=value)
