"""Local response normalisation against float64, and where NaN and infinities must show."""

from __future__ import annotations

import numpy as np
import pytest

from convwright.codegen.target import Target
from convwright.kernels import lrn
from tests.guard import guarded, guarded_empty
from tests.kernels import call, each_target

# alpha / size, beta, bias: AlexNet's, the other powers that have roots, and powers that go through logarithms.
CONSTANTS = [(1e-4, 0.75, 2.0), (0.3, 0.5, 1.0), (0.5, 1.0, 0.1), (0.2, 0.6, 1.0), (0.1, 2.0, 3.0)]


def run(x: np.ndarray, size: int, config: lrn.Lrn, target: Target, at_end: bool = True) -> np.ndarray:
    """The kernel on ``[outer][channels][inner]``."""
    outer, channels, inner = x.shape
    x = guarded(x, at_end=at_end)
    y = guarded_empty(x.size, at_end=at_end).reshape(x.shape)
    values = {"x": x.ctypes.data, "y": y.ctypes.data, "channels": channels, "inner": inner}
    values |= {"before": (size - 1) // 2, "after": size // 2}
    call(config, lrn.emit, lrn.ARGUMENTS, values, outer * channels, target, ranges=2)
    return y


def oracle(x: np.ndarray, size: int, config: lrn.Lrn) -> np.ndarray:
    """From the definition, channel by channel, in float64."""
    x = x.astype(np.float64)
    y = np.empty_like(x)
    for channel in range(x.shape[1]):
        window = x[:, max(0, channel - (size - 1) // 2) : channel + size // 2 + 1]
        with np.errstate(invalid="ignore"):
            y[:, channel] = x[:, channel] / (config.bias + config.scale * (window**2).sum(axis=1)) ** config.beta
    return y


@each_target
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("at_end", [True, False])
def test_every_shape(target: Target, constants: tuple[float, float, float], at_end: bool) -> None:
    rng = np.random.default_rng(0)
    config = lrn.Lrn(*constants)
    v = target.vector
    for channels in (1, 2, 5, 12):
        for inner in (1, v - 1, v, v + 1, 3 * v + 2):
            for size in (1, 2, 3, 4, 5, channels + 1, 2 * channels + 7):
                x = rng.normal(0, 10, (2, channels, inner)).astype(np.float32)
                np.testing.assert_allclose(run(x, size, config, target, at_end), oracle(x, size, config), rtol=3e-6)


@each_target
@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("size", [3, 4])
def test_nan_and_infinities_reach_the_channels_whose_windows_hold_them(
    target: Target, constants: tuple[float, float, float], size: int
) -> None:
    config = lrn.Lrn(*constants)
    for special in (np.nan, np.inf, -np.inf):
        for place in (0, 4, 8):
            x = np.random.default_rng(1).standard_normal((2, 9, 21)).astype(np.float32)
            x[1, place, 20] = special
            np.testing.assert_allclose(run(x, size, config, target), oracle(x, size, config), rtol=3e-6)


@each_target
@pytest.mark.parametrize("beta", [0.5, 0.6, 0.75, 1.0])
def test_nothing_over_nothing_is_nan(target: Target, beta: float) -> None:
    """Zeros without a bias: 0 / 0 ** beta."""
    assert np.isnan(run(np.zeros((1, 3, 5), np.float32), 3, lrn.Lrn(0.5, beta, 0.0), target)).all()
