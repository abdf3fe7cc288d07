"""The protobuf wire format: just enough to read ONNX files without holding them in memory twice.

A message is a run of fields, each a tag (number * 8 + wire type) and a payload (https://protobuf.dev/programming-guides/
encoding). Reading it here, rather than through generated classes, lets weights go from the file straight into aligned
arrays, has no 2 GB limit, and saves a warm start the import of onnx (90 ms).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..errors import ConvwrightError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Field = tuple[int, int, Any]


def _broken(what: str) -> ConvwrightError:
    return ConvwrightError(f"not an ONNX model, or a damaged one: {what}")


def varint(buffer: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """The base-128 number at `position`, and the position after it."""
    value = shift = 0
    while position < end:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
        if shift > 63:
            break
    raise _broken("a number runs past its end")


def signed(value: int) -> int:
    """A varint read as a two's complement int64."""
    return value - (1 << 64) if value >> 63 else value


def fields(message: memoryview) -> Iterator[Field]:
    """(field number, wire type, value) of each field: an int for a varint, else a view of the payload's bytes."""
    position, end = 0, len(message)
    while position < end:
        tag = message[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = varint(message, position, end)
        kind = tag & 7
        if kind == BYTES:
            if position < end and message[position] < 0x80:
                size = message[position]
                position += 1
            else:
                size, position = varint(message, position, end)
        elif kind == VARINT:
            value, position = varint(message, position, end)
            yield tag >> 3, kind, value
            continue
        elif kind == FIXED32:
            size = 4
        elif kind == FIXED64:
            size = 8
        else:
            raise _broken(f"wire type {kind} in field {tag >> 3}")
        if size > end - position:
            raise _broken(f"field {tag >> 3} has {size} bytes where {end - position} are left")
        yield tag >> 3, kind, message[position : position + size]
        position += size


def file_fields(file: BinaryIO, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Like `fields`, over bytes `position` to `end` of an open file, without reading payloads.

    Yields (field number, wire type, offset of the payload, its size); a varint's payload is its encoding.
    """
    while position < end:
        file.seek(position)
        head = file.read(min(20, end - position))
        tag, used = varint(head, 0, len(head))
        kind = tag & 7
        if kind == BYTES:
            size, used = varint(head, used, len(head))
        elif kind == VARINT:
            size = varint(head, used, len(head))[1] - used
        elif kind == FIXED32:
            size = 4
        elif kind == FIXED64:
            size = 8
        else:
            raise _broken(f"wire type {kind} in field {tag >> 3}")
        position += used
        if size > end - position:
            raise _broken(f"field {tag >> 3} has {size} bytes where {end - position} are left")
        yield tag >> 3, kind, position, size
        position += size


def read_bytes(file: BinaryIO, position: int, size: int) -> memoryview:
    """Bytes of an open file."""
    target = np.empty(size, np.uint8)
    read_into(file, position, target)
    return target.data


def read_into(file: BinaryIO, position: int, target: np.ndarray[Any, Any]) -> None:
    """Fill a contiguous array with the bytes of an open file from `position` on."""
    view = target.reshape(-1).view(np.uint8).data
    file.seek(position)
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + (1 << 30)])  # type: ignore[attr-defined]
        if not count:
            raise _broken(f"it ends {len(view) - done} bytes early")
        done += count


def packed_varints(payload: memoryview) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A run of varints, as uint64; in NumPy, because old files hold whole weight tensors this way."""
    raw = np.frombuffer(payload, np.uint8)
    if not raw.size:
        return np.zeros(0, np.uint64)
    last = np.flatnonzero(raw < 0x80)
    if not last.size or last[-1] != raw.size - 1:
        raise _broken("a packed number runs past its end")
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 10:
        raise _broken("a packed number runs past its end")
    result = np.zeros(last.size, np.uint64)
    for byte in range(int(length.max())):
        present = length > byte
        result[present] |= (raw[first[present] + byte] & 0x7F).astype(np.uint64) << np.uint64(7 * byte)
    return result
