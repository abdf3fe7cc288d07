"""ONNX tensors to NumPy arrays, from bytes in memory, from the model's file, or from files beside it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ConvwrightError
from . import wire

DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    4: np.dtype(np.uint16),
    5: np.dtype(np.int16),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    8: np.dtype(object),
    9: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
    12: np.dtype(np.uint32),
    13: np.dtype(np.uint64),
    14: np.dtype(np.complex64),
    15: np.dtype(np.complex128),
}
"""Element types that NumPy has, by their number in TensorProto.DataType."""

CODES = {dtype: code for code, dtype in DTYPES.items()}

_OTHERS = {
    0: "UNDEFINED",
    16: "BFLOAT16",
    17: "FLOAT8E4M3FN",
    18: "FLOAT8E4M3FNUZ",
    19: "FLOAT8E5M2",
    20: "FLOAT8E5M2FNUZ",
    21: "UINT4",
    22: "INT4",
    23: "FLOAT4E2M1",
    24: "FLOAT8E8M0",
    25: "UINT2",
    26: "INT2",
}

_TYPED = {4: np.float32, 10: np.float64}
_LARGE = 1 << 16
"""Tensors of more bytes than this are read straight into their arrays."""


def element_type(code: int, what: str) -> np.dtype[Any]:
    """The NumPy type of TensorProto.DataType `code`; `what` names the tensor in the error."""
    dtype = DTYPES.get(code)
    if dtype is None:
        raise ConvwrightError(
            f"{what} has element type {_OTHERS.get(code, 'unknown')} ({code}), which is not supported"
        )
    return dtype


class Tensor:
    """The fields of one TensorProto, and its array once they are all there."""

    __slots__ = ("code", "dims", "doc", "external", "located_outside", "name", "numbers", "raw", "strings", "typed")

    def __init__(self) -> None:
        self.dims: list[int] = []
        self.code = 0
        self.name = ""
        self.external: dict[str, str] = {}
        self.located_outside = False
        self.raw: Any = None
        self.typed: list[tuple[int, memoryview]] = []
        self.numbers: list[np.ndarray[Any, Any]] = []
        self.strings: list[bytes] = []

    def field(self, number: int, kind: int, value: Any) -> None:
        """Take one field of the message in."""
        packed = kind == wire.BYTES
        if number == 1:
            self.dims += map(wire.signed, wire.packed_varints(value).tolist() if packed else [value])
        elif number == 2 and kind == wire.VARINT:
            self.code = value
        elif number == 8 and packed:
            self.name = str(value, "utf-8")
        elif number == 9 and packed:
            self.raw = value
        elif number in _TYPED and kind != wire.VARINT:
            self.typed.append((number, value))
        elif number in (5, 7, 11):
            self.numbers.append(wire.packed_varints(value) if packed else np.array([value], np.uint64))
        elif number == 6 and packed:
            self.strings.append(bytes(value))
        elif number == 13 and packed:
            entry = {part: str(text, "utf-8") for part, kind, text in wire.fields(value) if kind == wire.BYTES}
            self.external[entry.get(1, "")] = entry.get(2, "")
        elif number == 14 and kind == wire.VARINT:
            self.located_outside = value == 1
        elif number == 3:
            raise ConvwrightError(f"tensor {self.name!r} is stored in segments, which is not supported")

    def array(self, folder: Path | None) -> np.ndarray[Any, Any]:
        """The tensor as an aligned array of its own; `folder` is where external data lies."""
        what = f"tensor {self.name!r}"
        dtype = element_type(self.code, what)
        if any(size < 0 for size in self.dims):
            raise ConvwrightError(f"{what} has a negative dimension: {self.dims}")
        count = math.prod(self.dims)
        if count * max(dtype.itemsize, 1) >= 1 << 62 or max(self.dims, default=0) >= 1 << 62 or len(self.dims) > 32:
            raise ConvwrightError(f"{what} has impossible dimensions: {self.dims}")
        if self.located_outside:
            flat = self._outside(dtype, count, folder, what)
        elif dtype.kind == "O":
            flat = np.empty(len(self.strings), object)
            flat[:] = [text.decode("utf-8", "replace") for text in self.strings]
        elif self.raw is not None:
            if len(self.raw) != count * dtype.itemsize:
                raise ConvwrightError(
                    f"{what} of shape {self.dims} and type {dtype} needs {count * dtype.itemsize} bytes, "
                    f"the file has {len(self.raw)}"
                )
            if isinstance(self.raw, FilePart):
                flat = np.empty(count, dtype)
                self.raw.read_into(flat)
            else:
                flat = np.frombuffer(bytes(self.raw), dtype)
        elif self.typed:
            whole = np.concatenate([np.frombuffer(view, _TYPED[number]) for number, view in self.typed])
            flat = whole.view(dtype) if dtype.kind == "c" else whole.astype(dtype, copy=False)
        elif self.numbers:
            whole = np.concatenate(self.numbers)
            flat = whole.astype(np.uint16).view(dtype) if dtype == np.float16 else _narrow(whole, dtype)
        else:
            flat = np.zeros(0, dtype)
        if flat.size != count:
            raise ConvwrightError(f"{what} of shape {self.dims} needs {count} elements, the file has {flat.size}")
        try:
            return flat.reshape(self.dims)
        except ValueError as error:
            raise ConvwrightError(f"{what} has impossible dimensions: {self.dims}") from error

    def _outside(self, dtype: np.dtype[Any], count: int, folder: Path | None, what: str) -> np.ndarray[Any, Any]:
        location = self.external.get("location", "")
        if folder is None:
            raise ConvwrightError(f"{what} lies in external file {location!r}, but the model has no folder to look in")
        if dtype.kind == "O":
            raise ConvwrightError(f"{what} of strings cannot lie in an external file ({location!r})")
        path = _inside(folder, location, what)
        try:
            offset = int(self.external.get("offset") or 0)
            needed = count * dtype.itemsize
            length = int(self.external.get("length") or needed)
        except ValueError as error:
            raise ConvwrightError(f"{what}: offset and length of external data are not numbers") from error
        if length != needed:
            raise ConvwrightError(f"{what} of shape {self.dims} needs {needed} bytes, its external data has {length}")
        try:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if offset < 0 or offset + needed > size:
                    raise ConvwrightError(
                        f"{what} needs bytes {offset} to {offset + needed} of {location!r}, which has {size}"
                    )
                flat = np.empty(count, dtype)
                wire.read_into(file, offset, flat)
        except OSError as error:
            raise ConvwrightError(f"{what}: cannot read external file {str(path)!r}: {error.strerror}") from error
        return flat


class FilePart:
    """A stretch of an open file that has not been read."""

    __slots__ = ("file", "position", "size")

    def __init__(self, file: BinaryIO, position: int, size: int) -> None:
        self.file, self.position, self.size = file, position, size

    def __len__(self) -> int:
        return self.size

    def read_into(self, target: np.ndarray[Any, Any]) -> None:
        wire.read_into(self.file, self.position, target)


def tensor_from_bytes(message: memoryview) -> Tensor:
    """The tensor in a TensorProto message held in memory."""
    tensor = Tensor()
    for number, kind, value in wire.fields(message):
        tensor.field(number, kind, value)
    return tensor


def tensor_from_file(file: BinaryIO, position: int, size: int) -> Tensor:
    """The tensor in a TensorProto message of an open file; large raw data is left there until `array` asks for it."""
    if size <= _LARGE:
        return tensor_from_bytes(wire.read_bytes(file, position, size))
    tensor = Tensor()
    for number, kind, offset, length in wire.file_fields(file, position, position + size):
        if number == 9 and kind == wire.BYTES:
            tensor.raw = FilePart(file, offset, length)
            continue
        value: Any = wire.read_bytes(file, offset, length)
        if kind == wire.VARINT:
            value = wire.varint(value, 0, length)[0]
        tensor.field(number, kind, value)
    return tensor


def _narrow(whole: np.ndarray[Any, np.dtype[np.uint64]], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return whole.astype(bool) if dtype.kind == "b" else whole.view(np.int64).astype(dtype)


def _inside(folder: Path, location: str, what: str) -> Path:
    """The external file, refused when it lies outside the model's folder."""
    if not location or "\0" in location:
        raise ConvwrightError(f"{what}: external data has no usable location: {location!r}")
    root = folder.resolve()
    path = (root / location).resolve()
    if os.path.isabs(location) or not path.is_relative_to(root):
        raise ConvwrightError(f"{what}: external file {location!r} lies outside the model's folder")
    if not path.is_file():
        raise ConvwrightError(f"{what}: external file {str(path)!r} is missing or not a file")
    return path
