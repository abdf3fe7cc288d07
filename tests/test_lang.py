"""The vector language: constants that kernels share, and integers hidden from LLVM's view of a loop."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from convwright.codegen.jit import compile_kernel
from convwright.codegen.lang import Kernel
from convwright.codegen.target import Target
from tests.guard import guarded_empty
from tests.kernels import each_target

_signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def stored(target: Target, name: str, element: str, vectors: Any) -> np.ndarray[Any, Any]:
    """What a kernel stores that writes the vectors which ``vectors(k)`` gives, one after another."""

    def build() -> Any:
        k = Kernel(target, element=element)
        for number, vector in enumerate(vectors(k)):
            k.store(vector, k.args_pointer, number * k.v)
        return k.finish()

    count = len(vectors(Kernel(target, element=element))) * Kernel(target, element=element).v
    dtype = np.dtype({"f32": np.float32, "f64": np.float64}[element])
    out = guarded_empty(count * dtype.itemsize // 4).view(dtype)
    _signature(compile_kernel(f"test-lang-{name}-{element}", build, target))(out.ctypes.data, 0, 0, 0)
    return out


@each_target
def test_a_constant_in_every_lane_is_that_constant_to_the_last_bit(target: Target) -> None:
    numbers = [0.0, -0.0, 1.0, -1.0, 0.1, 1e-45, 3e38, float("inf"), float("-inf"), float("nan")]
    for element, dtype in (("f32", np.float32), ("f64", np.float64)):
        rounded = [float(np.float32(number)) for number in numbers]
        found = stored(target, "splat", element, lambda k, rounded=rounded: [k.splat(number) for number in rounded])
        wanted = np.repeat(np.array(rounded, dtype), len(found) // len(numbers))
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted))


@each_target
def test_shuffles_of_equal_and_of_different_lanes(target: Target) -> None:
    def vectors(k: Kernel) -> list[Any]:
        ids = k.b.sitofp(k.lane_ids(), k.vector_type)
        return [ids, k.shuffle(ids, ids, [2] * k.v), k.shuffle(ids, ids, list(reversed(range(k.v)))),
                k.broadcast(k.extract(ids, 1)), k.b.sitofp(k.int_broadcast(k.begin + 7), k.vector_type)]  # fmt: skip

    found = stored(target, "shuffles", "f32", vectors).reshape(5, target.vector)
    lanes = np.arange(target.vector)
    np.testing.assert_array_equal(found, [lanes, lanes * 0 + 2, lanes[::-1], lanes * 0 + 1, lanes * 0 + 7])


@each_target
def test_opaque_integers_keep_their_value_along_a_loop(target: Target) -> None:
    def build() -> Any:
        k = Kernel(target)
        with k.loop(k.begin, k.end, 3) as index:
            hidden = k.opaque_int(index)
            k.store_int(hidden * hidden + k.thread, k.args_pointer, hidden)
        return k.finish()

    out = np.full(40, -1, np.int64)
    _signature(compile_kernel("test-lang-opaque", build, target))(out.ctypes.data, 2, 37, 5)
    wanted = np.full(40, -1, np.int64)
    wanted[2:37:3] = np.arange(2, 37, 3) ** 2 + 5
    np.testing.assert_array_equal(out, wanted)
