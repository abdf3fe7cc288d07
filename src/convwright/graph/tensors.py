"""ONNX tensors to NumPy arrays, from the model or from files beside it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.wire import Cut, read_into
from convwright.large_arrays import LARGE, large_empty

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


def element_type(code: int, what: str) -> np.dtype[Any]:
    """The NumPy type of TensorProto.DataType `code`; `what` names the tensor in the error."""
    dtype = DTYPES.get(code)
    if dtype is None:
        from onnx import TensorProto

        known = dict(zip(TensorProto.DataType.values(), TensorProto.DataType.keys(), strict=True))
        raise ConvwrightError(f"{what} has element type {known.get(code, 'unknown')} ({code}), which is not supported")
    return dtype


def array_of(tensor: Any, folder: Path | None, cut: Cut) -> np.ndarray[Any, Any]:
    """The array of an onnx.TensorProto, which holds nothing of the message.

    - `folder`: where external data lies.
    - `cut`: the contents of large tensors; each goes to the first that asks for it.
    """
    from onnx import TensorProto, numpy_helper

    what = f"tensor {tensor.name!r}"
    dtype = element_type(tensor.data_type, what)
    dims = list(tensor.dims)
    if any(size < 0 for size in dims):
        raise ConvwrightError(f"{what} has a negative dimension: {dims}")
    count = math.prod(dims)
    if count * dtype.itemsize >= 1 << 62 or max(dims, default=0) >= 1 << 62 or len(dims) > 32:
        raise ConvwrightError(f"{what} has impossible dimensions: {dims}")
    if tensor.HasField("segment"):
        raise ConvwrightError(f"{what} is stored in segments, which is not supported")
    if tensor.data_location == TensorProto.EXTERNAL:
        return _outside(tensor, dtype, folder, what)
    raw = cut.get(tensor.raw_data) if len(tensor.raw_data) < LARGE else None
    try:
        if raw is not None and dtype.kind != "O":
            return raw.view(dtype).reshape(dims)
        array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
    except ValueError as error:
        raise ConvwrightError(f"{what} of shape {dims} and type {dtype} {_lack(tensor, raw, dtype, count)}") from error
    return array


def _lack(tensor: Any, raw: np.ndarray[Any, Any] | None, dtype: np.dtype[Any], count: int) -> str:
    """What an array of `count` elements needs, and what the tensor has, `raw` where its bytes were cut out."""
    from onnx import helper

    if tensor.HasField("raw_data"):
        return f"needs {count * dtype.itemsize} bytes, the file has {len(tensor.raw_data) if raw is None else raw.size}"
    stored = getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))
    return f"needs {count} elements, the file has {len(stored) // (2 if dtype.kind == 'c' else 1)}"


def _outside(tensor: Any, dtype: np.dtype[Any], folder: Path | None, what: str) -> np.ndarray[Any, Any]:
    """The array of a tensor in an external file.

    The onnx package's own function for this refuses every link, also those that stay within the folder, and reads to
    the end of the file where no length is given.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ConvwrightError(f"{what} lies in external file {location!r}, but the model has no folder to look in")
    if dtype.kind == "O":
        raise ConvwrightError(f"{what} of strings cannot lie in an external file ({location!r})")
    path = _inside(folder, location, what)
    dims = list(tensor.dims)
    count = math.prod(dims)
    needed = count * dtype.itemsize
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries.get("length") or needed)
    except ValueError as error:
        raise ConvwrightError(f"{what}: offset and length of external data are not numbers") from error
    if length != needed:
        raise ConvwrightError(f"{what} of shape {dims} needs {needed} bytes, its external data has {length}")
    try:
        size = path.stat().st_size
        if offset < 0 or offset + needed > size:
            raise ConvwrightError(f"{what} needs bytes {offset} to {offset + needed} of {location!r}, which has {size}")
        with open(path, "rb") as file:
            file.seek(offset)
            array = large_empty(tuple(dims), dtype) if needed >= LARGE else np.empty(dims, dtype)
            read_into(array, file)
            return array
    except OSError as error:
        raise ConvwrightError(f"{what}: cannot read external file {str(path)!r}: {error.strerror}") from error


def _inside(folder: Path, location: Any, what: str) -> Path:
    """The external file, refused when it lies outside the model's folder."""
    if not location or not isinstance(location, str) or "\0" in location:
        raise ConvwrightError(f"{what}: external data has no usable location: {location!r}")
    root = folder.resolve()
    path = (root / location).resolve()
    if os.path.isabs(location) or not path.is_relative_to(root):
        raise ConvwrightError(f"{what}: external file {location!r} lies outside the model's folder")
    if not path.is_file():
        raise ConvwrightError(f"{what}: external file {str(path)!r} is missing or not a file")
    return path
