"""Products in pairs (Winograd's inner product): errors where inputs and weights differ in size, and the packed weights.

What is multiplied is a sum of an input and a weight, so digits are lost where the two are of different size. Powers of
two for each pixel, input channel and output channel keep errors within the row's bound.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import convwright as cw
from convwright.codegen.target import Target
from convwright.graph import Node
from convwright.kernels import paired
from convwright.model.lower import paired_weights
from convwright.model.weights import Weights
from tests.convolutions import Random
from tests.kernels import each_target
from tests.plans import graph_of, planned
from tests.sweeps import check_each, on_targets
from tests.test_paired import bound_of

PIXELS, OUT_CHANNELS = 27, 33
TINIEST = 2.0**-126  # of the numbers that are not denormal
Floats = NDArray[np.float32]


def result(x: Floats, w: Floats, target: Target, bias: Floats | None = None) -> Floats:
    """Of inputs `[C, pixels]` and weights `[K, C]`: outputs `[K, pixels]`."""
    inputs = {"x": np.ascontiguousarray(x[None, :, None])}
    constants = {"w": np.ascontiguousarray(w[..., None, None])} | ({} if bias is None else {"b": bias})
    attributes = {"kernel_shape": (1, 1), "algorithm": "paired"}
    nodes = [Node("Identity", ["x"], ["i"]), Node("Conv", ["i", *constants], ["y"], attributes)]
    plan = planned(graph_of(nodes, inputs, ["y"], constants), target, 2, numerics="default")
    assert plan.tiles(paired)
    answer: Floats = plan.run(inputs)["y"][0, :, 0]
    return answer


def exact(x: NDArray[Any], w: NDArray[Any]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = w.astype(np.float64) @ x.astype(np.float64)
    return product


def normal(rng: Random, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def one_in(values: Floats, factor: float) -> Floats:
    """Ones along the first axis, but for the fourth."""
    column = np.ones((len(values), 1), np.float32)
    column[3] = factor
    return column


def spread(rng: Random, count: int, orders: float) -> Floats:
    return (10 ** rng.uniform(-orders, orders, (count, 1))).astype(np.float32)


Draw = Callable[[Random, Floats, Floats], tuple[NDArray[Any], NDArray[Any]]]

CASES: dict[str, Draw] = {
    "inputs of one size": lambda rng, x, w: (x, w),
    "no negative inputs": lambda rng, x, w: (np.maximum(x, 0), w),
    "one input in twenty": lambda rng, x, w: (x * (rng.random(x.shape) < 0.05), w),
    "one channel of each pixel": lambda rng, x, w: (x * (np.arange(len(x))[:, None] == np.arange(PIXELS) * 3 % 72), w),
    "one pair of each pixel": lambda rng, x, w: (x * (np.arange(len(x))[:, None] // 2 == np.arange(PIXELS)), w),
    "inputs with a mean": lambda rng, x, w: (1 + 0.1 * x, w),
    "inputs and weights with a mean": lambda rng, x, w: (1 + 0.1 * x, 1 + 0.1 * w),
    "a large channel, usual weights": lambda rng, x, w: (x * one_in(x, 1e3), w),
    "a large channel, small weights": lambda rng, x, w: (x * one_in(x, 1e3), w / one_in(x, 1e3).T),
    "a small channel, large weights": lambda rng, x, w: (x / one_in(x, 1e3), w * one_in(x, 1e3).T),
    "usual inputs, large weights of a channel": lambda rng, x, w: (x, w * one_in(x, 1e3).T),
    "usual inputs, small weights of a channel": lambda rng, x, w: (x, w / one_in(x, 1e3).T),
    "unlike channels, usual weights": lambda rng, x, w: (x * spread(rng, len(x), 3), w),
    "usual inputs, weights of unlike channels": lambda rng, x, w: (x, w * spread(rng, len(x), 3).T),
    "unlike channels, weights that make up for it": lambda rng, x, w: (
        x * (scale := spread(rng, len(x), 6)),
        w / scale.T,
    ),
    "large inputs": lambda rng, x, w: (x * 1e30, w),
    "small inputs": lambda rng, x, w: (x * 1e-30, w),
    "the largest inputs": lambda rng, x, w: (np.clip(x, -2, 2) * 1.7e38, w * 1e-3),
    "large weights": lambda rng, x, w: (x, w * 1e30),
    "small weights": lambda rng, x, w: (x, w * 1e-30),
    "small inputs, large weights": lambda rng, x, w: (x * 1e-36, w * 1e36),
    "large inputs, small weights": lambda rng, x, w: (x * 1e36, w * 1e-36),
}


@each_target
@pytest.mark.parametrize("channels", [72, 512])
@pytest.mark.parametrize("name", CASES)
def test_errors_stay_within_the_bound(target: Target, channels: int, name: str) -> None:
    rng = np.random.default_rng(channels)
    arrays = CASES[name](rng, normal(rng, channels, PIXELS), normal(rng, OUT_CHANNELS, channels))
    x, w = (array.astype(np.float32) for array in arrays)
    y, expected = result(x, w, target), exact(x, w)
    assert np.abs(y - expected).max() <= bound_of(channels) * np.abs(expected).max()


def drawn(seed: int) -> tuple[Floats, Floats]:
    """Inputs `[C, pixels]` and weights `[K, C]` of random distributions: with a mean, sparse, with heavy tails, of
    unlike channels, pixels and output channels, weights whose sum is zero."""
    rng = np.random.default_rng(seed)
    channels, outputs = int(rng.choice((8, 16, 72, 256, 1024))), int(rng.choice((1, 4, 16, 33)))
    x = rng.standard_normal((channels, PIXELS))
    w = rng.standard_normal((outputs, channels))

    def sizes(shape: tuple[int, int], orders: float) -> NDArray[np.float64]:
        return np.asarray(10 ** (rng.standard_normal(shape) * rng.uniform(0, orders)))

    def does(probability: float) -> bool:
        return bool(rng.random() < probability)

    x = np.maximum(x, 0) if does(0.3) else x
    x = 1 + x * 10 ** rng.uniform(-2, 0) if does(0.3) else x
    w = 1 + w * 10 ** rng.uniform(-2, 0) if does(0.2) else w
    w = w - w.mean(1, keepdims=True) if does(0.2) else w
    x = x * (rng.random(x.shape) < rng.uniform(0.02, 1)) if does(0.3) else x
    w = w * (rng.random(w.shape) < rng.uniform(0.02, 1)) if does(0.3) else w
    x = x * sizes((channels, 1), 2) if does(0.4) else x
    w = w * sizes((1, channels), 2) if does(0.4) else w
    x = x * sizes(x.shape, 1) if does(0.2) else x
    w = w * sizes(w.shape, 1) if does(0.2) else w
    x = x * sizes((1, PIXELS), 3) if does(0.2) else x
    w = w * sizes((outputs, 1), 3) if does(0.2) else w
    return x.astype(np.float32), w.astype(np.float32)


@on_targets(100, full=(3000, 1000))
def test_random_distributions(target: Target, seeds: range) -> None:
    """Where the largest inputs meet no weights, or terms cancel, digits are lost of what the product of the norms of a
    pixel's inputs and an output's weights lets expect, both as they are scaled (Brent, 1970)."""

    def check(arrays: tuple[Floats, Floats]) -> None:
        x, w = arrays
        y, expected = result(x, w, target), exact(x, w)
        v = target.vector
        scales = np.abs(
            paired_weights.parts_of(paired_weights.pack(w, target, 1, []), w.shape, v).channel_scales[: len(x)]
        )
        of_pixels = np.linalg.norm(x.astype(np.float64) * scales[:, None], axis=0)
        norms = np.linalg.norm(w / scales.astype(np.float64), axis=1).max() * of_pixels.max() / np.sqrt(len(x))
        assert np.abs(y - expected).max() <= bound_of(len(x)) * max(np.abs(expected).max(), norms)

    check_each(seeds, drawn, check)


@each_target
def test_each_pixel_and_each_output_channel_has_a_bound_of_its_own(target: Target) -> None:
    rng = np.random.default_rng(1)
    x, w = normal(rng, 72, PIXELS), normal(rng, OUT_CHANNELS, 72)
    x *= spread(rng, PIXELS, 12).T
    w *= spread(rng, OUT_CHANNELS, 12)
    y, expected = result(x, w, target), exact(x, w)
    sizes = np.sqrt(exact(x**2, w.astype(np.float64) ** 2))  # of which an output is a few times at most
    assert np.abs((y - expected) / sizes).max() <= 3 * bound_of(72)


@each_target
@pytest.mark.parametrize("where", ["inputs", "weights"])
def test_denormal_numbers_count_as_the_tiniest_that_are_not(target: Target, where: str) -> None:
    rng = np.random.default_rng(2)
    x, w = normal(rng, 72, PIXELS), normal(rng, OUT_CHANNELS, 72)
    tiny = [array * np.float32(1e-40) if where == name else array for name, array in (("inputs", x), ("weights", w))]
    allowed = bound_of(72) * np.abs(exact(x, w)).max() * TINIEST
    assert np.abs(result(tiny[0], tiny[1], target) - exact(tiny[0], tiny[1])).max() <= allowed


@each_target
def test_pixels_of_zeros_and_outputs_without_weights_are_the_bias(target: Target) -> None:
    """To the last bit, beside others in the same tile."""
    rng = np.random.default_rng(3)
    x, w, bias = normal(rng, 72, PIXELS), normal(rng, OUT_CHANNELS, 72), normal(rng, OUT_CHANNELS)
    x[:, 5:7] = 0
    w[16], w[32] = 0, -0.0
    y = result(x, w, target, bias)
    np.testing.assert_array_equal(y[[16, 32]], np.broadcast_to(bias[[16, 32], None], (2, PIXELS)))
    np.testing.assert_array_equal(y[:, 5:7], np.broadcast_to(bias[:, None], (OUT_CHANNELS, 2)))
    assert not result(x, w, target)[:, 5:7].any()
    expected = exact(x, w) + bias[:, None]
    assert np.abs(y - expected).max() <= bound_of(72) * np.abs(expected).max()
    np.testing.assert_array_equal(result(x, 0 * w, target, bias), np.broadcast_to(bias[:, None], y.shape))


@each_target
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_reach_the_outputs_of_their_pixel_alone(target: Target, value: float) -> None:
    """An infinity may become NaN: where that matters there is numerics="strict"."""
    rng = np.random.default_rng(4)
    x, w = normal(rng, 40, PIXELS), normal(rng, OUT_CHANNELS, 40)
    clean = result(x, w, target)
    for channel, pixel in ((0, 0), (7, 3), (15, 11), (16, 26), (39, 25)):
        broken = x.copy()
        broken[channel, pixel] = value
        y = result(broken, w, target)
        assert not np.isfinite(y[:, pixel]).any()
        np.testing.assert_array_equal(np.delete(y, pixel, axis=1), np.delete(clean, pixel, axis=1))


@each_target
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_reaches_its_output_channel_alone(target: Target, value: float) -> None:
    rng = np.random.default_rng(5)
    x, w = normal(rng, 40, PIXELS), normal(rng, OUT_CHANNELS, 40)
    w[16, 9] = value
    w[17, 10:14] = 0  # an infinity meets a zero in the other lanes' sums of products of weights
    y, others = result(x, w, target), np.arange(OUT_CHANNELS) != 16
    assert not np.isfinite(y[16]).any()
    expected = exact(x, w[others])
    assert np.abs(y[others] - expected).max() <= bound_of(40) * np.abs(expected).max()


# -- the weights -------------------------------------------------------------------------------------------------------

WEIGHTS: dict[str, Callable[[Random, Floats], NDArray[Any]]] = {
    "of one size": lambda rng, w: w,
    "of all sizes": lambda rng, w: np.sign(w) * 10 ** rng.uniform(-45, 38, w.shape),
    "of outputs of all sizes": lambda rng, w: np.clip(w, -2, 2) * spread(rng, len(w), 37),
    "of channels of all sizes": lambda rng, w: np.clip(w, -2, 2) * spread(rng, w.shape[1], 37).T,
    "small beside large": lambda rng, w: np.where(rng.random(w.shape) < 0.5, 1e30, 1e-38) * w,
    "denormal": lambda rng, w: w * 1e-42,
    "a denormal output": lambda rng, w: w * one_in(w, 1e-41),
    "a denormal channel": lambda rng, w: w * one_in(w.T, 1e-41).T,
    "zeros": lambda rng, w: 0 * w,
    "zeros and minus zeros among others": lambda rng, w: np.copysign(np.where(rng.random(w.shape) < 0.5, w, 0), w),
    "outputs and channels of zeros": lambda rng, w: w * (one_in(w, 0) * one_in(w.T, 0).T),
    "infinities": lambda rng, w: np.where(rng.random(w.shape) < 0.05, np.copysign(np.inf, w), w),
    "nothing but infinities": lambda rng, w: np.copysign(np.inf, w),
    "the largest": lambda rng, w: np.copysign(np.finfo(np.float32).max, w),
}


def drawn_weights(name: str, outputs: int, products: int) -> Floats:
    rng = np.random.default_rng(outputs + products)
    weights: Floats = WEIGHTS[name](rng, normal(rng, outputs, products)).astype(np.float32)
    return weights


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.int32), np.ascontiguousarray(b).view(np.int32))


@each_target
@pytest.mark.parametrize("name", WEIGHTS)
def test_packed_weights_give_the_weights_back(target: Target, name: str) -> None:
    v = target.vector
    for outputs, products in ((5, 8), (v, 16), (2 * v + 1, 72), (33, 4096)):
        weights, lost = drawn_weights(name, outputs, products), paired_weights.Lost()
        made = paired_weights.pack(weights.copy(), target, 2, lost)
        assert made.ctypes.data % 64 == 0
        same_bits(paired_weights.unpack(made, weights.shape, v, lost), weights)
        parts = paired_weights.parts_of(made, (outputs, products), v)
        assert not parts.weights[-1, :, outputs - (len(parts.weights) - 1) * v :].any()
        assert not parts.out_scales[outputs:].any()
        assert not parts.channel_scales[products:].any()


@each_target
def test_released_constants_come_back(target: Target) -> None:
    """In the order of a convolution's weights, taps behind channels."""
    v = target.vector
    for name in ("of one size", "of all sizes", "outputs and channels of zeros"):
        constant = drawn_weights(name, 4 * v + 1, 2 * v * 6 * 8).reshape(-1, 16 * v, 2, 3)
        weights = Weights({"w": constant.copy()}, v)
        b: Any = SimpleNamespace(weights=weights, target=target, team=2, v=v)
        paired_weights.packed(b, "w", constant.shape)
        weights.release()
        assert not weights.constants["w"].any()
        same_bits(weights.array("w"), constant)
        same_bits(weights.unpacked()["w"], constant)


def test_a_pickled_model_computes_the_same() -> None:
    rng = np.random.default_rng(0)
    for name in ("of one size", "small beside large"):
        x = normal(rng, 1, 72, 7, 6)
        constants = {"w": drawn_weights(name, 130, 72)[..., None, None]}
        attributes = {"kernel_shape": (1, 1), "algorithm": "paired"}
        model = cw.compile(graph_of([Node("Conv", ["x", "w"], ["y"], attributes)], {"x": x}, ["y"], constants))
        y = model(x)
        same_bits(pickle.loads(pickle.dumps(model))(x), y)
        expected = np.einsum("kc,nchw->nkhw", constants["w"][..., 0, 0].astype(float), x)
        assert np.abs(y - expected).max() <= bound_of(72) * np.abs(expected).max()
