"""A serialised ONNX model without its large tensors, which are read into memory of their own at once.

The parser needs all of a message's bytes and copies each tensor out of them, and NumPy from there: three times the
weights. So the large `raw_data` are cut out on the way from the file, by the few rules of the wire format
(https://protobuf.dev/programming-guides/encoding): a message is a row of fields, each a tag, which tells number and
form, and what the form says; a message inside a message is its length and its fields.
"""

from __future__ import annotations

import secrets
import sys
from typing import BinaryIO

import numpy as np

from convwright.large_arrays import LARGE, large_empty

Cut = dict[bytes, np.ndarray]
"""The bytes of what was cut out, by what stands in its place."""

# Numbers, from onnx.proto, of the fields that lead to tensors.
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
_INSIDE = {
    "model": {GRAPH: "graph", 25: "function"},
    "graph": {1: "node", INITIALIZER: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
    "tensor": {RAW_DATA: "raw_data"},
}
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_DEEPEST = 50


def without_large_tensors(file: BinaryIO, size: int) -> tuple[bytes, Cut]:
    """A model whose large `raw_data` are replaced by a few bytes each, and what these stand for.

    - `file`: of `size` bytes, at its beginning.

    What does not look like a model comes back whole, for the parser to judge. Raises MemoryError.
    """
    cutter = _Cutter(file)
    try:
        if sys.byteorder == "big":
            raise _UnknownForm
        parts, _ = cutter.message("model", size, 0)
    except _UnknownForm:
        file.seek(0)
        return file.read(size), {}
    return b"".join(parts), cutter.cut


class _UnknownForm(Exception):
    """What follows is not a message, or not one that is understood here."""


class _Cutter:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.cut: Cut = {}
        self.mark = secrets.token_bytes(16)  # no file can hold by accident, or on purpose, what stands for a tensor

    def message(self, kind: str, size: int, depth: int) -> tuple[list[bytes], int]:
        """The message of `size` bytes that comes next, in parts, and their length together."""
        if depth > _DEEPEST:
            raise _UnknownForm
        parts: list[bytes] = []
        left = size
        while left > 0:
            tag, number = self._varint()
            parts.append(tag)
            left -= len(tag)
            form, inside = number & 7, _INSIDE[kind].get(number >> 3)
            if form == _VARINT:
                value, _ = self._varint()
                parts.append(value)
                left -= len(value)
            elif form in (_EIGHT_BYTES, _FOUR_BYTES):
                count = 8 if form == _EIGHT_BYTES else 4
                parts.append(self._bytes(count))
                left -= count
            elif form == _LENGTH:
                length, count = self._varint()
                left -= len(length) + count
                if left < 0:
                    raise _UnknownForm
                parts += self._content(inside if count >= LARGE else None, length, count, depth)
            else:
                raise _UnknownForm
        if left < 0:
            raise _UnknownForm
        return parts, sum(map(len, parts))

    def _content(self, inside: str | None, length: bytes, count: int, depth: int) -> list[bytes]:
        """Length and content of a field of `count` bytes."""
        if inside is None:
            return [length, self._bytes(count)]
        if inside == "raw_data":
            mark = self.mark + len(self.cut).to_bytes(4, "little")
            self.cut[mark] = array = large_empty((count,), np.dtype(np.uint8))
            read_into(array, self.file)
            return [_encoded(len(mark)), mark]
        parts, shorter = self.message(inside, count, depth + 1)
        return [_encoded(shorter), *parts]

    def _bytes(self, count: int) -> bytes:
        found = self.file.read(count)
        if len(found) < count:
            raise _UnknownForm
        return found

    def _varint(self) -> tuple[bytes, int]:
        """A number in groups of seven bits, the lowest first: its bytes, and its value."""
        encoded = b""
        while True:
            byte = self._bytes(1)
            encoded += byte
            if byte[0] < 0x80:
                return encoded, sum((group & 0x7F) << 7 * place for place, group in enumerate(encoded))
            if len(encoded) == 10:
                raise _UnknownForm


def header(field: int, size: int) -> bytes:
    """What comes before the `size` bytes of a message, a text or bytes, in a field of this number."""
    return _encoded(field << 3 | _LENGTH) + _encoded(size)


def _encoded(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups[-1] |= 0x80
        groups.append(value & 0x7F)
    return bytes(groups)


def read_into(array: np.ndarray, file: BinaryIO) -> None:
    """Fill the array, C-contiguous, from the file. Raises ValueError where the file ends before."""
    room = array.reshape(-1).view(np.uint8).data
    while room:
        count = file.readinto(room)  # type: ignore[attr-defined]  # every file that is read here has it
        if not count:
            raise ValueError("the file ended while it was read")
        room = room[count:]
