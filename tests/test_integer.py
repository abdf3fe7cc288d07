"""Integer convolutions, to the last bit, on every target: planned as a model plans them, every buffer beside an
unreadable page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from llvmlite import ir
from numpy.typing import NDArray

import convwright as cw
from convwright.codegen.jit import assembly
from convwright.codegen.lang import I32, I64, PTR, Kernel
from convwright.codegen.target import NAMES, Target, runs_here, target_named
from convwright.errors import ConvwrightError
from convwright.graph import Node
from convwright.graph.onnx_writer import save
from convwright.kernels import integer, words
from convwright.kernels import integer_amx as amx
from convwright.kernels.arguments import Arguments
from convwright.model.lower import integer_amx as amx_lowering
from convwright.model.lower import integer_channels, integer_planes
from convwright.model.lower.integer_layer import IntegerLayer
from convwright.model.tiles import Shape
from convwright.reference import conv_integer
from convwright.spec import ConvSpec, IntegerSpec
from tests.guard import guarded_bytes
from tests.kernels import call
from tests.plans import Arrays, graph_of, planned

Random = np.random.Generator
Ints = NDArray[Any]

_targets = [(name, target_named(name), runs_here(name)) for name in NAMES]
if target_named("avx512").has_vnni:
    _targets.append(("avx512-without-vnni", replace(target_named("avx512"), has_vnni=False), True))
on_each_target = pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, id=name, marks=[] if here else [pytest.mark.skip(f"no {name} here")])
        for name, target, here in _targets
    ],
)


def sums(x: Ints, w: Ints, spec: ConvSpec, x_zero: Ints, w_zero: Ints) -> Ints:
    """The exact sums, in int64."""
    exact = IntegerSpec(
        spec, int(x_zero.reshape(-1)[0]), [int(zero) for zero in w_zero.reshape(-1)],
        input_signed=x.dtype == np.int8, weight_signed=w.dtype == np.int8,
    )  # fmt: skip
    return conv_integer(x, w, exact).astype(np.int64)


def requantised(total: Ints, scales: Ints, y_zero: Ints) -> Ints:
    """As onnxruntime does it, where the reference has float64: one float32 product, limits, rounding half to even."""
    info = np.iinfo(y_zero.dtype)
    zero = int(y_zero.reshape(-1)[0])
    value = total.astype(np.int32).astype(np.float32) * scales.reshape(-1, *(1,) * (total.ndim - 2))
    value = np.clip(value, np.float32(info.min - zero), np.float32(info.max - zero))
    return (np.rint(value).astype(np.int64) + zero).astype(y_zero.dtype)


@dataclass
class Case:
    """One integer convolution with its types, zero points, and how it is cut."""

    spec: ConvSpec
    size: tuple[int, ...]
    batch: int = 1
    x_type: Any = np.uint8
    w_type: Any = np.int8
    x_zero: bool = True
    w_zero: str = ""  # "", "one", "each", or "extreme": weights minus it do not fit 8 bits
    dynamic: bool = False  # the input's zero point is an input too
    y_type: Any = None  # of a QLinearConv
    bias: bool = False
    threads: int = 1
    at_end: bool = True
    scratch: int | None = None
    family: str | None = None
    tile: tuple[int, int, int] | None = None
    seed: int = 0
    _arrays: tuple[Arrays, Arrays] | None = field(default=None, repr=False)

    def arrays(self) -> tuple[Arrays, Arrays]:
        """Inputs and constants."""
        rng = np.random.default_rng(self.seed)
        spec = self.spec

        def any_of(dtype: Any, shape: tuple[int, ...]) -> Ints:
            info = np.iinfo(dtype)
            values = rng.integers(info.min, info.max + 1, shape)
            extremes = rng.choice([info.min, info.max], shape)
            return np.asarray(np.where(rng.random(shape) < 0.3, extremes, values), dtype)

        inputs = {"x": any_of(self.x_type, (self.batch, spec.in_channels, *self.size))}
        constants = {"w": any_of(self.w_type, spec.weight_shape)}
        middle = 128 if self.w_type is np.uint8 else 0
        if self.x_zero or self.dynamic:
            (inputs if self.dynamic else constants)["xz"] = any_of(self.x_type, (1,) if self.seed % 2 else ())
        shape = (spec.out_channels,) if self.w_zero == "each" else ()
        if self.w_zero == "extreme":
            constants["wz"] = any_of(self.w_type, (spec.out_channels,))
        elif self.w_zero:
            constants["wz"] = np.full(shape, middle, self.w_type)
        elif self.y_type is not None:
            constants["wz"] = np.zeros((), self.w_type)
        if self.y_type is not None:
            if "xz" not in {**inputs, **constants}:
                constants["xz"] = np.zeros((), self.x_type)
            spread = 1.5 * np.sqrt(np.prod(spec.weight_shape[1:])) * 74 * 74
            constants["xs"] = np.float32(0.02) * np.ones((), np.float32)
            each = spec.out_channels if rng.random() < 0.6 else 1
            constants["ws"] = rng.uniform(0.5, 2, each).astype(np.float32)
            constants["ys"] = np.float32(0.02 * spread / 128) * np.ones((), np.float32)
            constants["yz"] = any_of(self.y_type, ())
            if self.bias:
                limit = int(spread)
                constants["b"] = rng.integers(-limit, limit + 1, spec.out_channels).astype(np.int32)
        return inputs, constants

    def node(self, names: set[str]) -> Node:
        def have(name: str) -> str:
            return name if name in names else ""

        pads = self.spec.pads(self.size)
        attributes = {
            "strides": list(self.spec.stride),
            "dilations": list(self.spec.dilation),
            "group": self.spec.groups,
            "pads": [low for low, _ in pads] + [high for _, high in pads],
        }
        if self.y_type is None:
            return Node("ConvInteger", ["x", "w", have("xz"), have("wz")], ["y"], attributes)
        inputs = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", have("b")]
        return Node("QLinearConv", inputs, ["y"], attributes)

    def expected(self, inputs: Arrays, constants: Arrays) -> Ints:
        given = {**inputs, **constants}
        x_zero = given.get("xz", np.zeros(1, self.x_type))
        w_zero = given.get("wz", np.zeros(1, self.w_type))
        total = sums(given["x"], given["w"], self.spec, x_zero, w_zero)
        if self.y_type is None:
            return total.astype(np.int32)
        if "b" in given:
            total += given["b"].reshape(-1, *(1,) * (total.ndim - 2))
        return requantised(total, given["xs"] * given["ws"] / given["ys"], given["yz"])

    def check(self, target: Target) -> None:
        inputs, constants = self.arrays()
        graph = graph_of([self.node({*inputs, *constants})], inputs, ["y"], constants)
        with _forced(self):
            plan = planned(graph, target, self.threads)
        assert all(step.family is not None for step in plan.steps), self
        found = plan.run(inputs, at_end=self.at_end)["y"]
        wanted = self.expected(inputs, constants)
        assert found.dtype == wanted.dtype, self
        assert np.array_equal(found, wanted), (self, np.argwhere(found != wanted)[:5])


@contextmanager
def _forced(case: Case) -> Iterator[None]:
    """Another kernel, another register tile, and other room for sums, than the plan would choose."""
    scratch = case.scratch or integer_channels._SCRATCH_BYTES
    estimates = {integer_channels: 1.0, integer_planes: 2.0 if case.family == "channels" else 0.0}
    tile = case.tile

    def choose_shape(rows: int, cols: int, vectors: int, *_: Any) -> Shape:
        assert tile is not None
        return Shape(min(tile[0], rows), min(tile[1], cols), min(tile[2], vectors), 0.0)

    def choose_planes(b: Any, layer: IntegerLayer) -> integer_planes.Tile:
        assert tile is not None
        pixels = layer.window.out[1] * layer.window.out[2]
        return integer_planes.Tile(min(tile[2], layer.own_out), max(1, min(tile[1], pixels // b.v)), 0.0)

    with ExitStack() as stack:
        stack.enter_context(patch.object(integer_channels, "_SCRATCH_BYTES", scratch))
        if case.family is not None:
            for family, cycles in estimates.items():
                stack.enter_context(patch.object(family, "estimate", lambda *_, cycles=cycles: cycles))
        if tile is not None:
            stack.enter_context(patch.object(integer_channels, "choose_tile", choose_shape))
            stack.enter_context(patch.object(integer_planes, "_tile", choose_planes))
        yield


def random_spec(rng: Random, v: int) -> tuple[ConvSpec, tuple[int, ...]]:
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    edges = [1, 2, 3, 4, 5, 7, v, 2 * v - 1, 2 * v + 1, 4 * v - 1, 4 * v, 4 * v + 1]
    groups = int(rng.choice([1, 1, 1, 2, 3, 5]))
    own_in = int(rng.choice(edges if groups == 1 else edges[:8]))
    own_out = int(rng.choice([1, 2, 3, v - 1, v, v + 1, 2 * v + 3] if groups == 1 else [1, 2, v // 2, v - 1, v + 1]))
    if rng.random() < 0.15:  # depthwise, with a channel multiplier
        groups, own_in, own_out = int(rng.choice([1, 3, v, v + 1])), 1, int(rng.integers(1, 3))
    most = 5 if rank < 3 else 3
    kernel = tuple(int(rng.integers(1, most + 1)) for _ in range(rank))
    stride = tuple(int(rng.choice([1, 1, 2, 3])) for _ in range(rank))
    dilation = tuple(int(rng.choice([1, 1, 1, 2, 3])) for _ in range(rank))
    padding = tuple((int(rng.integers(0, 4)), int(rng.integers(0, 4))) for _ in range(rank))
    spec = ConvSpec(
        groups * own_in, groups * own_out, kernel,
        stride=stride, dilation=dilation, padding=padding, groups=groups, bias=False,
    )  # fmt: skip
    longest = 40 if rank == 1 else 20 if rank == 2 else 7
    size = []
    for span, (low, high) in zip(spec.effective_kernel, padding, strict=True):
        size.append(int(rng.integers(max(1, span - low - high), max(1, span - low - high) + longest)))
    return spec, tuple(size)


def random_case(seed: int, target: Target) -> Case:
    rng = np.random.default_rng(seed)
    spec, size = random_spec(rng, target.vector)
    byte = [np.uint8, np.int8]
    tile = (int(rng.integers(1, 4)), int(rng.integers(1, 7)), int(rng.integers(1, 3)))
    return Case(
        spec, size,
        batch=int(rng.integers(1, 3)),
        x_type=byte[int(rng.integers(2))],
        w_type=byte[int(rng.integers(2))],
        x_zero=bool(rng.random() < 0.8),
        w_zero=str(rng.choice(["", "one", "each", "extreme"])),
        dynamic=bool(rng.random() < 0.2),
        y_type=[None, np.uint8, np.int8][int(rng.integers(3))],
        bias=bool(rng.random() < 0.6),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        scratch=int(rng.choice([256, 4096])) if rng.random() < 0.4 else None,
        family=[None, "channels", "planes"][int(rng.integers(3))],
        tile=tile if rng.random() < 0.3 else None,
        seed=seed,
    )  # fmt: skip


@on_each_target
@pytest.mark.parametrize("start", range(0, 10, 5))
def test_random_convolutions(target: Target, start: int) -> None:
    for seed in range(start, start + 5):
        random_case(seed, target).check(target)


@pytest.mark.long
@on_each_target
@pytest.mark.parametrize("start", range(1000, 2000, 100))
def test_many_random_convolutions(target: Target, start: int) -> None:
    for seed in range(start, start + 100):
        random_case(seed, target).check(target)


SPECS: dict[str, Any] = {
    "one channel": lambda v: (ConvSpec(1, 1, (3, 3), padding=1), (9, 14)),
    "one output channel": lambda v: (ConvSpec(4 * v + 1, 1, (3, 3), padding=1), (9, 14)),
    "first layer": lambda v: (ConvSpec(3, v, (7, 7), stride=2, padding=3), (29, 31)),
    "depthwise": lambda v: (ConvSpec(v + 1, v + 1, (3, 3), padding=1, groups=v + 1), (9, 2 * v + 3)),
    "depthwise, stride 2": lambda v: (ConvSpec(3, 6, (3, 5), stride=2, padding=2, groups=3), (9, 4 * v + 1)),
    "small groups": lambda v: (ConvSpec(12, 9, (3, 3), padding=1, groups=3, dilation=2), (7, 2 * v)),
    "stride larger than the kernel": lambda v: (ConvSpec(v + 1, v, (2, 2), stride=(5, 3)), (11, 13)),
    "everything different on every axis": lambda v: (
        ConvSpec(v - 1, v + 1, (2, 5), stride=(3, 1), dilation=(1, 3), padding=((0, 3), (4, 1))),
        (8, 17),
    ),
    "the kernel covers the input": lambda v: (ConvSpec(v + 1, 2 * v + 3, (5, 7)), (5, 7)),
    "padding beyond the kernel": lambda v: (ConvSpec(3, 2, (2, 2), padding=5), (3, 4)),
    "one long axis": lambda v: (ConvSpec(v + 1, v - 1, (7,), stride=2, padding=3, dilation=2), (3000,)),
    "three axes": lambda v: (ConvSpec(5, v + 1, (3, 2, 3), stride=(2, 1, 1), padding=(2, 1, 0)), (4, 5, 7)),
}


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
    for target in (param.values[0] for param in _runnable()):
        assert int(planned(graph, target).run({"x": x})["y"].reshape(())) == total - 2**32


def _runnable() -> list[Any]:
    return [param for param in on_each_target.args[1] if not param.marks]


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


class SoftTiles:
    """Tile registers in memory, with the meaning that the architecture manual gives them, in words and vectors."""

    def configure(self, k: Kernel, shapes: list[tuple[int, int]]) -> None:
        self.shapes = shapes
        with k.b.goto_entry_block():
            self.place = k.b.inttoptr(k.b.ptrtoint(k.b.alloca(ir.ArrayType(I32, 8 * 256)), I64), PTR)

    def _row(self, k: Kernel, register: int, row: Any) -> Any:
        return k.advance(self.place, row * 16 + 256 * register)

    def zero(self, k: Kernel, register: int) -> None:
        with k.loop(0, 16) as row:
            k.b.store(k.splat_int(0), self._row(k, register, row), align=4)

    def load(self, k: Kernel, register: int, pointer: Any, stride: int) -> None:
        rows, row_bytes = self.shapes[register]
        self.zero(k, register)
        with k.loop(0, rows) as row, k.loop(0, row_bytes // 4) as word:
            value = k.b.load(k.advance(words.advance_bytes(k, pointer, row * stride), word), typ=I32, align=1)
            k.b.store(value, k.advance(self._row(k, register, row), word), align=4)

    def add_products(self, k: Kernel, total: int, x: int, w: int) -> None:
        assert self.shapes[x][1] == 4 * self.shapes[w][0]
        assert self.shapes[total] == (self.shapes[x][0], self.shapes[w][1])
        with k.loop(0, self.shapes[total][0]) as row, k.loop(0, self.shapes[w][0]) as word:
            place = self._row(k, total, row)
            x_word = words.load_word(k, self._row(k, x, row), word)
            sums_ = words.add_word(k, "bytes", k.load_ints(place), x_word, k.load_ints(self._row(k, w, word)))
            k.b.store(sums_, place, align=4)

    def store(self, k: Kernel, register: int, pointer: Any, stride: Any) -> None:
        rows, row_bytes = self.shapes[register]
        assert row_bytes == 64
        with k.loop(0, rows) as row:
            vector = k.load_ints(self._row(k, register, row))
            k.b.store(vector, words.advance_bytes(k, pointer, row * stride), align=1)

    def release(self, k: Kernel) -> None:
        pass


@pytest.mark.skipif(not target_named("avx512").has_vnni, reason="the stand-in for tile registers needs VNNI")
@pytest.mark.parametrize(
    "name", ["first layer", "small groups", "everything different on every axis", "one long axis", "three axes"]
)
def test_amx_sums_the_same_where_its_tiles_are_memory(name: str) -> None:
    """Everything but the instructions themselves, which the next test finds in the assembly."""
    emit_amx = amx.emit

    def soft(tile: Any, target: Target) -> Any:
        return emit_amx(tile, target, SoftTiles())

    target = target_named("avx512")
    spec, size = SPECS[name](16)
    if name != "first layer":  # a block of 64 channels and one of three, two full vectors and one of three
        spec = replace(spec, in_channels=spec.groups * 67, out_channels=spec.groups * 35)
    with (
        patch.object(amx, "emit", soft),
        patch.object(amx.AmxTile, "key", property(lambda self: f"soft-{self!r}")),
        patch.object(amx_lowering, "estimate", lambda *_: -1.0),
    ):
        Case(spec, size, 2, threads=2, scratch=4096).check(target)
        Case(spec, size, 1, np.int8, y_type=np.uint8, bias=True, at_end=False).check(target)


@pytest.mark.skipif(not target_named("avx512").is_x86, reason="reads x86 assembly")
def test_amx_instructions() -> None:
    host = target_named("avx512")
    target = replace(host, cpu="sapphirerapids", features="+amx-tile,+amx-int8", has_vnni=True, has_amx=True)
    tile = amx.AmxTile(2, 1, 14, 2, 16, 16, False, True)
    text = assembly(tile.key, lambda: amx.emit(tile, target), target)
    counts = {
        name: len(re.findall(rf"\b{name}\b", text)) for name in ("tdpbusd", "tileloadd", "tilezero", "tilestored")
    }
    assert counts == {"tdpbusd": 4, "tileloadd": 4, "tilezero": 4, "tilestored": 4}
    assert len(re.findall(r"\bldtilecfg\b", text)) == len(re.findall(r"\btilerelease\b", text)) == 1


def test_amx_is_used_where_the_cpu_has_it() -> None:
    spec = ConvSpec(64, 64, (3, 3), padding=1, bias=False)
    case = Case(spec, (14, 14))
    inputs, constants = case.arrays()
    graph = graph_of([case.node({*inputs, *constants})], inputs, ["y"], constants)
    for has_amx in (False, True):
        target = replace(target_named("avx512"), has_vnni=True, has_amx=has_amx)
        plan = planned(graph, target)
        assert bool(plan.tiles(amx)) == has_amx
