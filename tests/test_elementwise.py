"""Elementwise kernels against NumPy, on every target, with unreadable pages around every buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convwright.codegen.target import Target
from convwright.kernels.elementwise import Elementwise, Expression, Flat, emit, emit_flat, why_not
from tests.guard import guarded, guarded_empty
from tests.kernels import Blocked, call, each_target

RNG = np.random.default_rng(5)
NUMPY: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "prelu": lambda x, slope: np.where(x < 0, x * slope, x),
    "relu": lambda x: np.where(x < 0, 0, x),
}


def evaluate(expression: Expression, values: list[np.ndarray]) -> Any:
    if isinstance(expression, float):
        return np.float64(expression)
    if isinstance(expression, int):
        return values[expression].astype(np.float64)
    name, first, *rest = expression
    result = evaluate(first, values)
    for other in rest:
        result = NUMPY[name](result, evaluate(other, values))
    return result if rest else NUMPY[name](result)


CHAINS: list[tuple[Expression, tuple[str, ...]]] = [
    (("add", 0, 1), ("full", "full")),
    (("relu", ("add", ("mul", 0, 1), 2)), ("full", "channel", "channel")),
    (("prelu", 0, 1), ("full", "channel")),
    (("mul", ("add", 0, 1), 2), ("full", "pixel", "scalar")),
    (("max", ("min", 0, 1), 2, -0.5), ("full", "full", "channel")),
    (("div", ("sub", 1.5, 0), ("add", ("pow", 1, 2.0), 1.0)), ("full", "full")),
    (("add", ("pow", ("pow", 0, 2.0), 0.5), ("pow", 0, 3.0), ("pow", ("add", ("mul", 0, 0), 1.0), -0.5)), ("full",)),
    (("add", 1, 2), ("full", "channel", "pixel")),
]


@each_target
@pytest.mark.parametrize(("expression", "kinds"), CHAINS)
def test_a_chain_over_blocked_tensors(target: Target, expression: Expression, kinds: tuple[str, ...]) -> None:
    v = target.vector
    config = Elementwise(expression, kinds)
    for case, (rows, cols) in enumerate([(1, 1), (3, 4), (5, 7), (2, 9), (1, 33)]):
        n, c = 1 + case % 2, [1, v - 1, v, v + 1, 2 * v + 3][case]
        at_end, halo = case % 2 == 0, case // 2 % 2
        shapes = {
            "full": (n, c, rows, cols),
            "channel": ((1, n)[case % 3 > 0], c, 1, 1),
            "pixel": ((1, n)[case % 3 > 0], 1, rows, cols),
            "scalar": (1, 1, 1, 1),
        }
        arrays = [RNG.standard_normal(shapes[kind]).astype(np.float32) for kind in kinds]
        out = Blocked.empty(shapes["full"], v, halo=halo, at_end=at_end)
        blocks, chunk_rows = out.buffer.shape[1], 2
        values = {**out.arguments("y"), "blocks": blocks, "rows": rows, "cols": cols}
        values |= {"chunks": -(-rows // chunk_rows), "chunk_rows": chunk_rows}
        keep: list[Any] = []
        for place, (kind, array) in enumerate(zip(kinds, arrays, strict=True)):
            if kind == "scalar":
                keep.append(guarded(array.ravel(), at_end=at_end))
                values[f"x{place}"] = keep[-1].ctypes.data
                continue
            keep.append(Blocked.of(array, v, halo=halo if kind == "full" else 0, at_end=at_end))
            values |= keep[-1].arguments(f"x{place}")
            if len(array) == 1:
                values[f"x{place}_image"] = 0
        items = n * blocks * values["chunks"]
        call(config, emit, config.arguments, values, items, target, ranges=min(items, 3))
        expected = np.broadcast_to(evaluate(expression, arrays), shapes["full"])
        np.testing.assert_allclose(out.array(), expected, rtol=2e-6, atol=2e-6)
        assert out.halo_untouched()


FLAT = [CHAINS[0], CHAINS[5], (("prelu", ("add", 0, 2), 1), ("full", "scalar", "full")), (("relu", 0.25), ())]


@each_target
@pytest.mark.parametrize(("expression", "kinds"), FLAT)
def test_a_chain_over_flat_arrays(target: Target, expression: Expression, kinds: tuple[str, ...]) -> None:
    v = target.vector
    config = Flat(expression, kinds)
    for case, size in enumerate([1, v - 1, v, v + 1, 4 * v - 1, 4 * v, 9 * v + 5, 200]):
        at_end = case % 2 == 0
        arrays = [guarded(RNG.standard_normal(1 if kind == "scalar" else size), at_end=at_end) for kind in kinds]
        out = guarded_empty(size, at_end=at_end)
        span = 5 * v
        values = {"y": out.ctypes.data, "size": size, "span": span}
        values |= {f"x{place}": array.ctypes.data for place, array in enumerate(arrays)}
        items = -(-size // span)
        call(config, emit_flat, config.arguments, values, items, target, ranges=min(items, 2))
        expected = np.broadcast_to(evaluate(expression, arrays), size)
        np.testing.assert_allclose(out, expected, rtol=2e-6, atol=2e-6)


def flat(expression: Expression, target: Target, *arrays: Any) -> np.ndarray:
    config = Flat(expression, ("full",) * len(arrays))
    inputs = [np.array(array, np.float32) for array in arrays]
    out = np.empty_like(inputs[0])
    values = {"y": out.ctypes.data, "size": out.size, "span": out.size + target.vector}
    values |= {f"x{place}": array.ctypes.data for place, array in enumerate(inputs)}
    call(config, emit_flat, config.arguments, values, 1, target)
    return out


@each_target
def test_nan_and_minus_zero(target: Target) -> None:
    nan, inf = np.nan, np.inf
    a, b = [nan, 1, nan, inf, -inf], [1, nan, nan, 2, 3]
    np.testing.assert_array_equal(flat(("max", 0, 1), target, a, b), [nan, nan, nan, inf, 3])
    np.testing.assert_array_equal(flat(("min", 0, 1), target, a, b), [nan, nan, nan, 2, -inf])
    slopes = flat(("prelu", 0, 1), target, [-0.0, nan, -2, 5, -inf], [inf, 1, 0.5, nan, 0.5])
    np.testing.assert_array_equal(slopes, [0, nan, -1, 5, -inf])
    assert np.signbit(slopes[0])
    np.testing.assert_array_equal(flat(("pow", 0, 0.0), target, a), [1] * 5)


@each_target
def test_the_output_may_be_an_operand(target: Target) -> None:
    config = Flat(("add", 0, ("mul", 0, 1)), ("full", "full"))
    x, y = (RNG.standard_normal(57).astype(np.float32) for _ in range(2))
    expected = x + x * y
    values = {"y": x.ctypes.data, "x0": x.ctypes.data, "x1": y.ctypes.data, "size": 57, "span": 64}
    call(config, emit_flat, config.arguments, values, 1, target)
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)


def test_what_cannot_be_computed_has_a_reason() -> None:
    assert why_not(("add", ("pow", 0, 2.0), 1), ("full", "full")) is None
    assert "power 2.5" in str(why_not(("add", ("pow", 0, 2.5), 1), ("full", "full")))
    assert "'cosh'" in str(why_not(("cosh", 0), ("full",)))
    assert "operand 1" in str(why_not(("add", 0, 1), ("full",)))
