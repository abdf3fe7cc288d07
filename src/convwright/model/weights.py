"""Weights in the order in which kernels read them, held once.

Packing depends on the specification and the vector width, never on sizes or tiles: all plans of a model share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convwright.model.values import ALIGNMENT


def aligned_empty(count: int) -> np.ndarray:
    """``count`` float32, the first on a cache line."""
    raw = np.empty(count * 4 + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count * 4].view(np.float32)


@dataclass(frozen=True, slots=True)
class Entry:
    """One vector of output channels of one group: lanes ``low <= lane < high`` of block ``block``."""

    group: int
    block: int
    low: int
    high: int


def entries_of(out_channels: int, groups: int, v: int) -> list[Entry]:
    """The output vectors of a convolution, group by group; a vector that two groups share appears for each of them."""
    if groups == 1:
        return [Entry(0, block, 0, v) for block in range(-(-out_channels // v))]
    own = out_channels // groups
    entries = []
    for group in range(groups):
        start, stop = group * own, (group + 1) * own
        for block in range(start // v, -(-stop // v)):
            entries.append(Entry(group, block, max(start - block * v, 0), min(stop - block * v, v)))
    return entries


def segments_of(first: int, channels: int, v: int) -> list[tuple[int, int]]:
    """(offset, count) of the pieces into which block boundaries cut ``channels`` channels from channel ``first`` on."""
    pieces, at = [], 0
    while at < channels:
        count = min(v - (first + at) % v, channels - at)
        pieces.append((at, count))
        at += count
    return pieces


def _reduction_major(weight: np.ndarray, first: int, v: int) -> np.ndarray:
    """``[K, C, kh, kw]`` to ``[K, R]``, R in the order segment, kh, kw, channel of the segment."""
    out_channels, channels = weight.shape[:2]
    if weight.shape[2] * weight.shape[3] == 1:
        return weight.reshape(out_channels, channels)
    pieces = [
        weight[:, at : at + count].transpose(0, 2, 3, 1).reshape(out_channels, -1)
        for at, count in segments_of(first, channels, v)
    ]
    return np.concatenate(pieces, axis=1) if len(pieces) > 1 else pieces[0]


def pack_direct(weight: np.ndarray, groups: int, v: int) -> np.ndarray:
    """``[K, C/groups, kh, kw]`` to ``[entries][R][v]`` (see ``kernels.direct``)."""
    own_out, own_in = weight.shape[0] // groups, weight.shape[1]
    reduction = own_in * weight.shape[2] * weight.shape[3]
    entries = entries_of(weight.shape[0], groups, v)
    packed = aligned_empty(len(entries) * reduction * v).reshape(len(entries), reduction, v)
    if groups == 1:
        rows = _reduction_major(weight, 0, v)
        whole = weight.shape[0] // v
        packed[:whole].transpose(0, 2, 1)[...] = rows[: whole * v].reshape(whole, v, reduction)
        if whole < len(entries):
            packed[whole] = 0
            packed[whole, :, : weight.shape[0] - whole * v] = rows[whole * v :].T
        return packed
    place = 0
    for group in range(groups):
        rows = _reduction_major(weight[group * own_out : (group + 1) * own_out], group * own_in, v)
        done = 0
        while place < len(entries) and entries[place].group == group:
            entry = entries[place]
            lanes = entry.high - entry.low
            packed[place] = 0
            packed[place, :, entry.low : entry.high] = rows[done : done + lanes].T
            done, place = done + lanes, place + 1
    return packed


def unpack_direct(packed: np.ndarray, shape: tuple[int, ...], groups: int, v: int) -> np.ndarray:
    """The inverse of ``pack_direct``."""
    weight = np.empty(shape, np.float32)
    own_out, own_in, kh, kw = shape[0] // groups, *shape[1:]
    done = 0
    for place, entry in enumerate(entries_of(shape[0], groups, v)):
        lanes = min(entry.high - entry.low, shape[0] - done)
        rows = packed[place, :, entry.low : entry.low + lanes].T
        at = 0
        for start, count in segments_of(entry.group * own_in, own_in, v):
            piece = rows[:, at : at + count * kh * kw].reshape(lanes, kh, kw, count)
            weight[done : done + lanes, start : start + count] = piece.transpose(0, 3, 1, 2)
            at += count * kh * kw
        done += lanes
    return weight


def pack_planar(weight: np.ndarray, v: int) -> np.ndarray:
    """``[K, C, kh, kw]`` to ``[blocks][C kh kw][v]``, for inputs that are plain planes."""
    return pack_direct(weight.reshape(weight.shape[0], -1, 1, 1), 1, v)


def pack_depthwise(weight: np.ndarray, v: int) -> np.ndarray:
    """``[C, 1, kh, kw]`` to ``[blocks][kh kw][v]``."""
    return pack_direct(weight.reshape(weight.shape[0], -1, 1, 1), 1, v)


def pack_channels(values: np.ndarray, v: int) -> np.ndarray:
    """``[C]`` to whole vectors, zeros after the last channel."""
    blocks = -(-values.size // v)
    packed = aligned_empty(blocks * v)
    packed[: values.size] = values.reshape(-1)
    packed[values.size :] = 0
    return packed


class Weights:
    """The packed weights of one model, by constant and format.

    A constant that has been packed is dropped from ``constants`` once no plan can need it unpacked (``release``).
    """

    def __init__(self, constants: dict[str, np.ndarray], v: int):
        self.constants, self.v = constants, v
        self.packed: dict[tuple[str, ...], np.ndarray] = {}

    def get(self, name: str, form: str, groups: int = 1, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The constant in a format: "direct", "planar", "depthwise" or "channels"; ``shape``: seen as that shape."""
        key = (name, form, str(groups), str(shape))
        if key not in self.packed:
            array = self.constants[name].astype(np.float32, copy=False)
            array = array.reshape(shape) if shape else array
            if form == "direct":
                self.packed[key] = pack_direct(array, groups, self.v)
            else:
                self.packed[key] = {"planar": pack_planar, "depthwise": pack_depthwise, "channels": pack_channels}[form](
                    array, self.v
                )
        return self.packed[key]

    def channels(self, values: np.ndarray, key: tuple[str, ...]) -> np.ndarray:
        """Values a channel, packed once under the key."""
        if key not in self.packed:
            self.packed[key] = pack_channels(np.asarray(values, np.float32), self.v)
        return self.packed[key]

    def zeros(self, channels: int) -> np.ndarray:
        """The bias of a layer that has none."""
        return self.channels(np.zeros(channels), ("zeros", str(channels)))

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.packed.values())
