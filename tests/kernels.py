"""What kernel tests share: calling a kernel, and channel-blocked tensors with guard pages around them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright.codegen.jit import compile_kernel
from convwright.codegen.target import NAMES, Target, runs_here, target_named
from convwright.kernels.arguments import Arguments
from tests.guard import guarded_empty

_signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)

each_target = pytest.mark.parametrize(
    "target",
    [
        pytest.param(
            target_named(name), id=name, marks=[] if runs_here(name) else [pytest.mark.skip(f"no {name} here")]
        )
        for name in NAMES
    ],
)


def call(
    config: Any,
    emit: Callable[[Any, Target], Any],
    arguments: Arguments,
    values: Mapping[str, int],
    items: int,
    target: Target,
    ranges: int = 1,
) -> None:
    """Does the items ``0 <= item < items`` of a kernel, split over ``ranges`` calls, the last range first."""
    address = compile_kernel(config.key, lambda: emit(config, target), target)
    packed = arguments.pack(values)
    bounds = np.linspace(0, items, ranges + 1).astype(int)
    for thread in reversed(range(ranges)):
        _signature(address)(packed.ctypes.data, int(bounds[thread]), int(bounds[thread + 1]), thread)


@dataclass
class Blocked:
    """A channel-blocked tensor ``[N][ceil(C / v)][H + 2 halo][W + 2 halo][v]``; garbage in the halo and unused lanes.

    The first or last pixel touches an unreadable page where there is no halo.
    """

    buffer: NDArray[np.float32]
    channels: int
    halo: int

    @classmethod
    def empty(cls, shape: tuple[int, ...], v: int, *, halo: int = 0, at_end: bool = True) -> Blocked:
        n, c, h, w = shape
        blocks = -(-c // v)
        full = (n, blocks, h + 2 * halo, w + 2 * halo, v)
        return cls(guarded_empty(int(np.prod(full)), at_end=at_end).reshape(full), c, halo)

    @classmethod
    def of(cls, array: NDArray[Any], v: int, *, halo: int = 0, at_end: bool = True, garbage: float = np.nan) -> Blocked:
        tensor = cls.empty(array.shape, v, halo=halo, at_end=at_end)
        tensor.buffer[:] = garbage
        n, c, h, w = array.shape
        padded = np.full((n, tensor.buffer.shape[1] * v, h, w), garbage, np.float32)
        padded[:, :c] = array
        tensor._inner[:] = padded.reshape(n, -1, v, h, w).transpose(0, 1, 3, 4, 2)
        return tensor

    @property
    def _inner(self) -> NDArray[np.float32]:
        _, _, h, w, _ = self.buffer.shape
        return self.buffer[:, :, self.halo : h - self.halo, self.halo : w - self.halo]

    def array(self) -> NDArray[np.float32]:
        """N x C x H x W."""
        inner = self._inner.transpose(0, 1, 4, 2, 3)
        return inner.reshape(inner.shape[0], -1, *inner.shape[3:])[:, : self.channels]

    def halo_untouched(self) -> bool:
        """Whether the halo still holds the NaN that it was made with."""
        outside = np.ones(self.buffer.shape[2:4], bool)
        _, _, h, w, _ = self.buffer.shape
        outside[self.halo : h - self.halo, self.halo : w - self.halo] = False
        return bool(np.isnan(self.buffer[:, :, outside]).all())

    def arguments(self, name: str) -> dict[str, int]:
        """The pointer and strides called ``name``, ``name_image``, ``name_block`` and ``name_row``."""
        image, block, row = (stride // 4 for stride in self.buffer.strides[:3])
        pointer = self._inner.ctypes.data
        return {name: pointer, f"{name}_image": image, f"{name}_block": block, f"{name}_row": row}
