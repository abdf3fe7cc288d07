"""What every function checks its arrays with, and how arguments become keys."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.spec.checks import is_sequence

Array = np.ndarray[Any, Any]

REAL = (np.dtype(np.float32), np.dtype(np.float64))


class _Refused:
    """An argument that no description takes. It equals nothing, so that no remembered call is taken for it."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def frozen(value: Any) -> Any:
    """An int, a word, or tuples of them, as a hashable value that equals no other argument's.

    1.0 and True equal 1 for Python and are no stride: what is neither int, word nor sequence comes back as something
    that the descriptions refuse, showing the value.

    >>> frozen([1, (2, np.int64(3))]), frozen("same"), frozen(1.0)
    ((1, (2, 3)), 'same', 1.0)
    """
    kind = type(value)
    if kind is int or kind is str:
        return value
    if kind is tuple and all(type(entry) is int for entry in value):
        return value
    if isinstance(value, np.ndarray) and not value.ndim:
        value = value[()]
    if isinstance(value, np.integer):
        return operator.index(value)
    if is_sequence(value):
        return tuple(frozen(entry) for entry in value)
    return _Refused(value)


def frozen_bool(value: Any) -> Any:
    """True or False; anything else comes back as something that the descriptions refuse."""
    return value if value is True or value is False else _Refused(value)


def array_of(name: str, value: Any) -> Array:
    """The argument as an array. Raises ConvwrightError for what is none."""
    if type(value) is np.ndarray:
        return value
    try:
        array = np.asarray(value)
    except Exception as error:  # nested lists of several lengths, or whatever an `__array__` method raises
        raise ConvwrightError(f"{name} is no array: {' '.join(str(error).split())}") from error
    return array


def check_real(names: Sequence[str], arrays: Sequence[Array | None]) -> None:
    """All float32 or all float64. Raises ConvwrightError naming every type otherwise."""
    first = arrays[0]
    assert first is not None
    if first.dtype in REAL and all(array is None or array.dtype == first.dtype for array in arrays):
        return
    given = ", ".join(f"{name} {array.dtype}" for name, array in zip(names, arrays, strict=True) if array is not None)
    raise ConvwrightError(f"arrays must be all float32 or all float64, got {given}")


def ready(array: Array) -> Array:
    """The array as kernels read it: contiguous and aligned; a copy where it is not."""
    if array.flags.c_contiguous and array.flags.aligned:
        return array
    return np.require(array, requirements=("C", "A")).reshape(array.shape)


def checked_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The array that the caller wants the result in. Raises ConvwrightError where it cannot hold it."""
    if not isinstance(out, np.ndarray):
        raise ConvwrightError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.shape != shape or out.dtype != dtype:
        raise ConvwrightError(f"out must be {dtype} of shape {shape}, got {out.dtype} of shape {out.shape}")
    if not out.flags.writeable:
        raise ConvwrightError(f"out of shape {out.shape} is read-only")
    if out.size and any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.strides, strict=True)):
        raise ConvwrightError(f"out of shape {out.shape} has strides {out.strides}: its elements share memory")
    return out
