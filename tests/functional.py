"""What tests of the functions of arrays share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import convwright as cw

Array = np.ndarray[Any, Any]
TOLERANCE = {np.float32: 3e-6, np.float64: 1e-14}


def normal(seed: int, *shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def close(actual: Array, expected: Array, dtype: Any) -> None:
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max(initial=0) <= TOLERANCE[dtype] * max(1.0, np.abs(expected).max(initial=0))


def refused(function: Callable[[], Any], *words: str) -> None:
    with pytest.raises(cw.ConvwrightError) as raised:
        function()
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
