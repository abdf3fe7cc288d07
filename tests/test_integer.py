"""Integer convolutions, to the last bit, on every target: planned as a model plans them, every buffer beside an
unreadable page."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import convwright as cw
from convwright.codegen.lang import Kernel
from convwright.codegen.target import Target, target_named
from convwright.errors import ConvwrightError
from convwright.graph import Node
from convwright.graph.onnx_writer import save
from convwright.kernels import integer, words
from convwright.kernels.arguments import Arguments
from convwright.model.lower import integer_channels
from convwright.model.tiles import Shape
from convwright.spec import ConvSpec
from tests.guard import guarded_bytes
from tests.integers import SPECS, Case, Ints, on_each_target, random_case, targets_here
from tests.kernels import call
from tests.plans import Arrays, graph_of, planned
from tests.sweeps import check_each, on_targets


@on_targets(10, targets=on_each_target)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: case.check(target))


FAMILIES = pytest.mark.parametrize("family", ["channels", "planes"])


@on_each_target
@FAMILIES
@pytest.mark.parametrize("name", SPECS)
def test_corners(target: Target, name: str, family: str) -> None:
    spec, size = SPECS[name](target.vector)
    if len(name) % 2:
        case = Case(spec, size, w_zero="extreme", w_type=np.uint8, threads=2, family=family)
    else:
        case = Case(spec, size, 2, np.int8, dynamic=True, y_type=np.int8, bias=True, at_end=False, family=family)
    case.check(target)


@on_each_target
@FAMILIES
def test_sizes_around_the_vector_and_four_of_it(target: Target, family: str) -> None:
    v = target.vector
    spec = ConvSpec(4, v + 1, (1, 1))
    for pixels in (1, 5, v - 1, 4 * v - 1, 4 * v + 1):
        Case(spec, (1, pixels), y_type=np.uint8, family=family).check(target)
        Case(spec, (pixels, 1), family=family).check(target)


@on_each_target
def test_the_largest_products_do_not_saturate(target: Target) -> None:
    """255 * -128 four times over is past 16 bits; all of a sum's products are as large as they can be."""
    spec = ConvSpec(64, 3, (3, 3), padding=1, bias=False)
    x = np.full((1, 64, 5, 5), 255, np.uint8)
    for value in (-128, 127):
        w = np.full(spec.weight_shape, value, np.int8)
        graph = graph_of([Node("ConvInteger", ["x", "w"], ["y"], {"pads": [1] * 4})], {"x": x}, ["y"], {"w": w})
        y = planned(graph, target).run({"x": x})["y"]
        assert (y[:, :, 2, 2] == 64 * 9 * 255 * value).all()
        assert (y[:, :, 0, 0] == 64 * 4 * 255 * value).all()


def test_sums_past_32_bits_wrap() -> None:
    spec = ConvSpec(70000, 1, (1, 1), bias=False)
    x, w = np.full((1, 70000, 1, 1), 255, np.uint8), np.full(spec.weight_shape, 127, np.int8)
    graph = graph_of([Node("ConvInteger", ["x", "w"], ["y"], {})], {"x": x}, ["y"], {"w": w})
    total = 70000 * 255 * 127
    assert total > 2**31
    for target in targets_here():
        assert int(planned(graph, target).run({"x": x})["y"].reshape(())) == total - 2**32


@on_each_target
def test_halves_round_to_even(target: Target) -> None:
    """Sums 0 to 255 scaled by a half: 0.5 becomes 0, 1.5 becomes 2; and the limits hold."""
    x = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    one = np.ones((), np.float32)
    constants: Arrays = {
        "s": one, "half": np.full((), 0.5, np.float32), "z": np.zeros((), np.uint8), "wz": np.zeros((), np.int8),
        "yz": np.full((), -100, np.int8), "w": np.array([1, -1], np.int8).reshape(2, 1, 1, 1),
    }  # fmt: skip
    node = Node("QLinearConv", ["x", "half", "z", "w", "s", "wz", "s", "yz"], ["y"], {})
    y = planned(graph_of([node], {"x": x}, ["y"], constants), target).run({"x": x})["y"]
    wanted = np.rint(np.stack([x[0, 0], -x[0, 0].astype(int)]) * 0.5) - 100
    assert np.array_equal(y[0], np.clip(wanted, -128, 127).astype(np.int8))


@on_each_target
def test_products_of_pairs_without_their_own_instruction(target: Target) -> None:
    """The same sums where no instruction multiplies pairs of 16 bits, as on CPUs that are not x86."""

    class Sum:
        def __init__(self, plain: bool) -> None:
            self.plain, self.key = plain, f"test-pairs-{plain}"

    def emit(config: Any, target: Target) -> Any:
        k = Kernel(target)
        x, w, y = (k.load_ints(k.pointer(place)) for place in range(3))
        with patch.object(Target, "is_x86", not config.plain):
            pairs = words._sum_of_pairs(k, x, w)
        k.b.store(k.b.add(y, pairs), k.pointer(2), align=4)
        return k.finish()

    rng = np.random.default_rng(0)
    v = target.vector
    x, w = rng.integers(-255, 256, (2, 2 * v)).astype(np.int16)
    expected = (x.astype(int) * w).reshape(v, 2).sum(1) + 7
    for plain in (False, True):
        arrays = [guarded_bytes(4 * v) for _ in range(3)]
        arrays[0].view(np.int16)[:], arrays[1].view(np.int16)[:] = x, w
        arrays[2].view(np.int32)[:] = 7
        values = {name: array.ctypes.data for name, array in zip("xwy", arrays, strict=True)}
        call(Sum(plain), emit, Arguments("x w y", ""), values, 1, target)
        assert np.array_equal(arrays[2].view(np.int32), expected)


def as_file(case: Case, tmp_path: Any) -> str:
    """The case as an ONNX file, its sizes fixed."""
    inputs, constants = case.arrays()
    graph = graph_of([case.node({*inputs, *constants})], inputs, ["y"], constants)
    path = str(tmp_path / "integer.onnx")
    save(graph, path)
    return path


@pytest.mark.parametrize(
    ("x_type", "w_type", "w_zero", "y_type"),
    [
        (np.uint8, np.int8, "", None),
        (np.uint8, np.uint8, "one", None),
        (np.int8, np.int8, "one", None),
        (np.uint8, np.int8, "each", np.uint8),
        (np.uint8, np.uint8, "one", np.uint8),
        (np.int8, np.int8, "each", np.int8),
    ],
)
def test_models_agree_with_onnxruntime(tmp_path: Any, x_type: Any, w_type: Any, w_zero: str, y_type: Any) -> None:
    """A whole model, on two threads, to the last bit, of the types that onnxruntime has."""
    onnxruntime = pytest.importorskip("onnxruntime")
    for seed, name in enumerate(("first layer", "depthwise", "small groups", "everything different on every axis")):
        spec, size = SPECS[name](16)
        case = Case(spec, size, 1, x_type, w_type, w_zero=w_zero, y_type=y_type, bias=True, seed=seed)
        path = as_file(case, tmp_path)
        inputs, constants = case.arrays()
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (expected,) = session.run(None, inputs)
        found = cw.compile(cw.load(path), threads=2)(inputs["x"])
        assert np.array_equal(found, expected), case
        assert np.array_equal(case.expected(inputs, constants), expected), case


def test_a_large_output_is_cut_and_a_small_one_is_not() -> None:
    cut = integer_channels.cut_rectangles(56, 56, Shape(1, 14, 2, 0.0), 2, 1, 10, 20, 16, 2)
    assert cut.bands > 1
    assert cut.spans == 1
    assert cut.bands * cut.band_rows >= 56
    small = integer_channels.cut_rectangles(7, 7, Shape(2, 7, 2, 0.0), 16, 1, 10, 20, 16, 2)
    assert (small.bands, small.spans, small.parts) == (1, 1, 2)
    row = integer_channels.cut_rectangles(1, 16000, Shape(1, 14, 2, 0.0), 2, 1, 10, 20, 16, 2)
    assert row.spans > 1


@pytest.mark.parametrize(("zero", "message"), [(np.zeros(3, np.int8), "zero point"), (np.zeros(2, np.int8), None)])
def test_zero_points_are_one_or_one_a_channel(zero: Ints, message: str | None) -> None:
    x = np.zeros((1, 4, 3, 3), np.uint8)
    constants = {"w": np.zeros((2, 4, 1, 1), np.int8), "wz": zero}
    graph = graph_of([Node("ConvInteger", ["x", "w", "", "wz"], ["y"], {})], {"x": x}, ["y"], constants)
    if message is None:
        assert planned(graph, target_named("generic")).steps
    else:
        with pytest.raises(ConvwrightError, match=message):
            planned(graph, target_named("generic"))


def test_runs_have_no_words_left_over() -> None:
    for run in range(1, 200):
        count = integer.choose_unroll(run)
        assert 1 <= count <= 8
        assert run % count == 0 or all(run % other for other in (4, 5, 6, 7))
