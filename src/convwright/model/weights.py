"""Weights in the order in which kernels read them, held once.

Packing depends on the specification and the vector width, never on sizes or tiles: all plans of a model share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from convwright.codegen.target import Target
from convwright.large_arrays import give_back, standing_in, taken
from convwright.model import narrow
from convwright.model.values import Order, in_lanes
from convwright.runtime.memory import Pool, aligned_empty

Narrowed = tuple[narrow.Parts, np.ndarray]
_PIECE = 1 << 16  # weights packed at a time: they and what they become fit the second-level cache


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
    entries: list[Entry] = []
    for group in range(groups):
        start, stop = group * own, (group + 1) * own
        blocks = range(start // v, -(-stop // v))
        entries += [Entry(group, block, max(start - block * v, 0), min(stop - block * v, v)) for block in blocks]
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
    out_channels, channels, kh, kw = weight.shape
    if kh * kw == 1:
        return weight.reshape(out_channels, channels)
    if first % v == channels % v == 0:
        by_segment = weight.reshape(out_channels, channels // v, v, kh * kw)
        return by_segment.transpose(0, 1, 3, 2).reshape(out_channels, -1)
    pieces = [
        weight[:, at : at + count].transpose(0, 2, 3, 1).reshape(out_channels, -1)
        for at, count in segments_of(first, channels, v)
    ]
    return np.concatenate(pieces, axis=1) if len(pieces) > 1 else pieces[0]


def pack_direct(weight: np.ndarray, groups: int, v: int, memory: np.ndarray | None = None) -> np.ndarray:
    """``[K, C/groups, kh, kw]`` to ``[entries][R][v]`` of the same type (see ``kernels.direct``).

    ``memory``: bytes to write them to. They may be those that ``weight`` itself stands in, from its first one on, where
    no two groups share a vector (``keeps_place``).
    """
    own_out, own_in = weight.shape[0] // groups, weight.shape[1]
    reduction = own_in * weight.shape[2] * weight.shape[3]
    entries = entries_of(weight.shape[0], groups, v)
    if memory is None:
        memory = aligned_empty(len(entries) * reduction * v * weight.itemsize // 4)
    packed = memory.view(weight.dtype).reshape(len(entries), reduction, v)
    place = 0
    for group in range(groups):
        filters = weight[group * own_out : (group + 1) * own_out]
        if keeps_place(weight.shape[0], groups, v):
            _pack_blocks(filters, packed[place:], group * own_in)
            place += -(-own_out // v)
            continue
        rows = _reduction_major(filters, group * own_in, v)
        done = 0
        while place < len(entries) and entries[place].group == group:
            entry = entries[place]
            lanes = entry.high - entry.low
            packed[place] = 0
            packed[place, :, entry.low : entry.high] = rows[done : done + lanes].T
            done, place = done + lanes, place + 1
    return packed


def keeps_place(out_channels: int, groups: int, v: int) -> bool:
    """Whether v filters that follow each other become one vector's, which takes the same bytes."""
    return groups == 1 or out_channels // groups % v == 0


def _pack_blocks(filters: np.ndarray, packed: np.ndarray, first: int) -> None:
    """Filters of one group, whose input begins at channel ``first``, into whole vectors, a piece after another."""
    reduction, v = packed.shape[1:]
    count = v * max(_PIECE // (reduction * v), 1)
    for start in range(0, len(filters), count):
        rows = _reduction_major(filters[start : start + count], first, v)
        if np.may_share_memory(rows, packed):
            rows = rows.copy()
        whole, rest = divmod(len(rows), v)
        place = packed[start // v :]
        place[:whole].transpose(0, 2, 1)[...] = rows[: whole * v].reshape(whole, v, reduction)
        if rest:
            place[whole] = 0
            place[whole, :, :rest] = rows[whole * v :].T


def unpack_direct(packed: np.ndarray, shape: tuple[int, ...], groups: int, v: int) -> np.ndarray:
    """The inverse of ``pack_direct``."""
    weight = np.empty(shape, np.float32)
    own_in, kh, kw = shape[1:]
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


def pack_spread(weight: np.ndarray, v: int) -> np.ndarray:
    """``[K, C/groups, kh, kw]`` to ``[blocks][kh kw][C/groups][v]`` (see ``kernels.deformable``)."""
    flat = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1, 1, 1)
    return pack_direct(flat, 1, v)


def pack_channels(values: np.ndarray, v: int) -> np.ndarray:
    """``[C]`` to whole vectors, zeros after the last channel."""
    blocks = -(-values.size // v)
    packed = aligned_empty(blocks * v)
    packed[: values.size] = values.reshape(-1)
    packed[values.size :] = 0
    return packed


def _flat(channels: int, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The shape of filters of which each is one row of the reduction."""
    return channels, int(np.prod(shape[1:])), 1, 1


_INVERTIBLE = ("direct", "planar", "depthwise")
_WORTH_A_POOL = 4 << 20  # bytes of constants
_SMALL = 1 << 14  # bytes: constants up to this size stay as they are beside their packed form


class Weights:
    """The packed weights of one model, by constant and format, held once.

    ``release`` drops the row-major form of what has been packed; ``array`` brings it back for the rare reader that asks
    again (another format for another input size, pickling). While ``consuming`` is set, each constant goes as soon as
    it is packed, and one that nobody else holds is packed in the memory that it lies in, so that no two forms of it
    exist at a time. Whoever sets it must drop the weights where packing does not come to its end.
    """

    def __init__(self, constants: dict[str, np.ndarray], v: int):
        self.constants, self.v = constants, v
        nbytes = sum(array.nbytes for array in constants.values())
        self._pool = Pool(2 * nbytes) if nbytes >= _WORTH_A_POOL else None
        self.consuming = False
        self._packed: dict[tuple[str, str, int, tuple[int, ...]], np.ndarray] = {}
        self._vectors: dict[tuple[str, ...], np.ndarray] = {}
        self._derived: dict[tuple[Hashable, ...], np.ndarray] = {}
        self._narrowed: dict[str, Narrowed | None] = {}
        self._restored: dict[str, Callable[[], np.ndarray]] = {}
        self._spare: set[str] = set()
        self._released: set[str] = set()

    def get(self, name: str, form: str, shape: tuple[int, ...], groups: int = 1) -> np.ndarray:
        """The constant seen as ``shape`` and packed: ``form`` is "direct", "planar", "depthwise" or "spread"."""
        key = (name, form, groups, tuple(shape))
        if key not in self._packed:
            with self._memory():
                self._packed[key] = self._pack(name, form, tuple(shape), groups)
            if form in _INVERTIBLE:
                self._give_back(name)
        return self._packed[key]

    def _memory(self) -> AbstractContextManager[None]:
        """Where what is packed meanwhile lies: together, if it is much."""
        return self._pool.serving() if self._pool else nullcontext()

    def _pack(self, name: str, form: str, shape: tuple[int, ...], groups: int) -> np.ndarray:
        if form == "spread":
            return pack_spread(self.array(name).astype(np.float32, copy=False).reshape(shape), self.v)
        if form != "direct":
            shape, groups = _flat(shape[0], shape), 1
        if (memory := self._taken(name, shape, groups)) is not None:
            weight = memory.view(np.float32)[: math.prod(shape)].reshape(shape)
            return pack_direct(weight, groups, self.v, memory)
        return pack_direct(self.array(name).astype(np.float32, copy=False).reshape(shape), groups, self.v)

    def _taken(self, name: str, shape: tuple[int, ...], groups: int) -> np.ndarray | None:
        """The memory of a constant, if it can be packed where it lies, and is this object's alone."""
        array_type = self.constants[name].dtype
        if not self.consuming or name in self._released or array_type != np.float32:
            return None
        if not keeps_place(shape[0], groups, self.v):
            return None
        memory = taken(self.constants, name, self._room(shape))
        if memory is not None:
            self._released.add(name)
        return memory

    def _room(self, shape: tuple[int, ...]) -> int:
        """Bytes of so many filters in whole vectors."""
        return -(-shape[0] // self.v) * self.v * math.prod(shape[1:]) * 4

    def derived(
        self,
        name: str,
        key: tuple[Hashable, ...],
        make: Callable[[np.ndarray], np.ndarray],
        restore: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """What ``make`` gives of the constant in row-major order, kept under ``key``.

        ``restore`` gives the constant back to the last bit; without it the constant stays beside what was made of it.
        """
        if (name, *key) not in self._derived:
            with self._memory():
                self._derived[name, *key] = made = make(self.array(name))
            if restore is not None:
                self._restored.setdefault(name, partial(restore, made))
                self._give_back(name)
        return self._derived[name, *key]

    def narrowed(self, name: str, target: Target, threads: int, *, exact: bool) -> Narrowed | None:
        """The constant, a matrix of float32, in fewer bits a number (`model.narrow`); None where that is not worth it.

        exact: without loss. Otherwise it may be rounded; then `array` gives the rounded one back once the constant has
        been released.
        """
        if name not in self._narrowed:
            survey = narrow.Survey(self.array(name), target, threads, exact=exact)
            self._narrowed[name] = None
            if survey.possible:
                packed = self._pack_narrow(name, survey)
                self._narrowed[name] = survey.parts, packed
                self._restored.setdefault(name, partial(narrow.unpack, packed, survey.parts, target, threads))
                self._give_back(name)
        return self._narrowed[name]

    def _pack_narrow(self, name: str, survey: narrow.Survey) -> np.ndarray:
        shape = self.constants[name].shape
        if survey.fits_in_place(self._room(shape)) and (memory := self._taken(name, shape, 1)) is not None:
            return give_back(memory, survey.pack_in_place(memory))
        return survey.pack(self.array(name))

    def channels(self, key: tuple[str, ...], values: np.ndarray) -> np.ndarray:
        """One value a channel, in whole vectors; packed once under the key."""
        if key not in self._vectors:
            self._vectors[key] = pack_channels(np.asarray(values, np.float32), self.v)
        return self._vectors[key]

    def bias(self, name: str, channels: int, repeats: int = 1) -> np.ndarray:
        """The bias of a layer, zeros where ``name`` is empty; each value ``repeats`` times."""
        if not name:
            return self.channels(("no bias", str(channels)), np.zeros(channels))
        values = np.repeat(self.array(name).reshape(-1), repeats)
        return self.channels((name, "bias", str(channels)), np.broadcast_to(values, (channels,)))

    def in_lanes(self, name: str, form: str, shape: tuple[int, ...], groups: int, order: Order) -> np.ndarray:
        """As ``get``, with filters in the lanes of ``order``: "depthwise" as their input lies, others as it is made."""
        if order.lanes == shape[0] and form != "depthwise":
            return self.get(name, form, shape, groups)
        places = order.made if form == "direct" else order.places
        padded, divided = ((order.lanes, *shape[1:]), groups) if form == "direct" else (_flat(order.lanes, shape), 1)

        def make(array: np.ndarray) -> np.ndarray:
            filters = array.astype(np.float32, copy=False).reshape(shape)
            return pack_direct(in_lanes(filters, places, order.lanes).reshape(padded), divided, self.v)

        def restore(packed: np.ndarray) -> np.ndarray:
            return unpack_direct(packed, padded, divided, self.v)[places].reshape(shape)

        return self.derived(name, (form, order.name), make, restore)

    def bias_in_lanes(self, name: str, channels: int, order: Order, form: str) -> np.ndarray:
        """As ``bias``, in the lanes of ``order`` (see ``in_lanes``)."""
        if not name:
            return self.bias(name, order.lanes)
        values = np.broadcast_to(self.array(name).reshape(-1), (channels,))
        places = order.made if form == "direct" else order.places
        return self.channels((name, form, order.name), in_lanes(values, places, order.lanes))

    def array(self, name: str) -> np.ndarray:
        """The constant in row-major order."""
        if name not in self._released:
            return self.constants[name]
        if name in self._restored:
            return self._restored[name]().reshape(self.constants[name].shape)
        forms = ((key, packed) for key, packed in self._packed.items() if key[0] == name and key[1] in _INVERTIBLE)
        key, packed = next(forms)
        _, form, groups, shape = key
        if form == "direct":
            return unpack_direct(packed, shape, groups, self.v).reshape(self.constants[name].shape)
        flat = (shape[0], int(np.prod(shape[1:])), 1, 1)
        return unpack_direct(packed, flat, 1, self.v).reshape(self.constants[name].shape)

    def _give_back(self, name: str) -> None:
        """The constant is not needed any more: what was made of it can give it back."""
        self._spare.add(name)
        if self.consuming:
            self.release()

    def release(self) -> None:
        """Keep only the packed form of large constants; in ``constants`` an empty shell keeps their shape."""
        for name in self._spare - self._released:
            array = self.constants[name]
            if array.nbytes > _SMALL and (array.dtype == np.float32 or name in self._restored):
                self.constants[name] = standing_in(array)
                self._released.add(name)
        self._spare.clear()

    def unpacked(self) -> dict[str, np.ndarray]:
        """All constants in row-major order."""
        return {name: self.array(name) for name in self.constants}

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as they are held."""
        narrowed = (pair[1] for pair in self._narrowed.values() if pair)
        arrays = (*self._packed.values(), *self._vectors.values(), *self._derived.values(), *narrowed)
        rest = (array for name, array in self.constants.items() if name not in self._released)
        return sum(array.nbytes for array in arrays) + sum(array.nbytes for array in rest)
