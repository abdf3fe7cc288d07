"""Fully connected layers of few images: weights in 28 bits are the same to the last bit (24 bits: tests/test_fixed.py),
and products against float64, planned as a model plans them, every buffer beside an unreadable page."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import convwright as cw
from convwright.codegen.target import Target, host_target
from convwright.graph import Graph, Node
from convwright.kernels import dense, direct
from convwright.kernels import narrow as narrow_kernels
from convwright.kernels.activations import ROWS as ACTIVATIONS
from convwright.large_arrays import large_empty
from convwright.model import narrow
from convwright.model.lower import dense as lowering
from convwright.model.weights import Weights
from tests.guard import guarded, guarded_bytes, guarded_empty
from tests.kernels import call, each_target
from tests.plans import Planned, graph_of, planned

Array = NDArray[np.float32]


def sizes(v: int) -> list[tuple[int, int]]:
    """Rows and channels below, at and above vectors and blocks."""
    return [(1, 1), (v - 1, 7), (v, 8), (v + 1, 9), (2 * v, 16), (3, 2 * v + 1), (2 * v + 3, 15), (40, 8 * v + 5)]


def bits(array: Array) -> NDArray[np.uint32]:
    return np.ascontiguousarray(array).view(np.uint32)


def same_bits(one: Array, other: Array) -> bool:
    return bool((bits(one) == bits(other)).all())


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.standard_normal(shape, np.float32)


def any_bits(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """All finite numbers alike: most are rare, of any size, denormals among them."""
    words = rng.integers(0, 1 << 32, shape, dtype=np.uint64).astype(np.uint32)
    return np.where((words & 0x7F800000) == 0x7F800000, words & 0x80FFFFFF, words).astype(np.uint32).view(np.float32)


def denormals(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return (bits(any_bits(rng, shape)) & np.uint32(0x807FFFFF)).view(np.float32)


def zeros(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return np.where(rng.random(shape) < 0.5, np.float32(-0.0), np.float32(0.0)).astype(np.float32)


def pruned(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """A normal distribution of which half is zero, with the sign that a weight had."""
    return (normal(rng, shape) * (rng.random(shape) < 0.5)).astype(np.float32)


def tiny(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Exponents at both sides of the least: a base of zero."""
    return normal(rng, shape) * np.float32(1e-37)


def huge(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return np.clip(normal(rng, shape), -3, 3) * np.float32(1.1e38)


def alike(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return np.full(shape, rng.standard_normal(), np.float32)


def at_the_edges(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Powers of two from the largest exponent to 17 below it, and the last number before each."""
    powers = 2.0 ** rng.integers(-17, 1, shape) * rng.choice([-1.0, 1.0], shape)
    below = np.nextafter(powers.astype(np.float32), np.float32(0.0))
    return np.asarray(np.where(rng.random(shape) < 0.5, powers, below), np.float32)


KINDS: list[Callable[..., Any]] = [
    normal, any_bits, denormals, zeros, pruned, tiny, huge, alike, at_the_edges,
]  # fmt: skip


def pack(matrix: Array, target: Target, threads: int) -> NDArray[np.uint8] | None:
    """Without loss."""
    survey = narrow.Survey(matrix, target, threads, exact=True)
    assert survey.parts.coding == "lossless"
    return survey.pack(matrix) if survey.possible else None


def unpack(packed: NDArray[np.uint8], shape: tuple[int, int], target: Target) -> Array:
    return narrow.unpack(packed, narrow.Parts(*shape, target.vector, "lossless"), target, 1)


@pytest.fixture
def however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rare weights are listed, however many there are."""
    monkeypatch.setattr(narrow, "MOST_RARE", 20.0)  # lanes beyond the last row repeat it
    monkeypatch.setattr(narrow, "_ROOM", 1.0)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers, too, and on every target."""
    monkeypatch.setattr(lowering, "_limited_by_memory", lambda b, nbytes, images: images <= dense.MOST_IMAGES)


# -- 28 bits -----------------------------------------------------------------------------------------------------------


@each_target
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.usefixtures("however_many")
def test_weights_come_back_to_the_last_bit(target: Target, kind: Callable[..., Array]) -> None:
    rng = np.random.default_rng(7)
    for threads, shape in enumerate(sizes(target.vector)):
        matrix = np.asarray(kind(rng, shape), np.float32)
        packed = pack(matrix, target, threads % 2 + 1)
        assert packed is not None, shape
        assert same_bits(unpack(packed, shape, target), matrix), shape


@each_target
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_packed(target: Target, bad: float, exact: bool) -> None:
    matrix = normal(np.random.default_rng(0), (target.vector + 1, 33))
    assert narrow.Survey(matrix, target, 1, exact=exact).possible
    for row, channel in ((0, 0), (target.vector, 32), (3, 31)):
        worse = matrix.copy()
        worse[row, channel] = bad
        assert not narrow.Survey(worse, target, 1, exact=exact).possible


@each_target
def test_too_many_rare_weights_are_not_packed(target: Target) -> None:
    matrix = np.ones((64, 1000), np.float32)
    most = int(matrix.size * narrow.MOST_RARE)
    matrix.reshape(-1)[:: matrix.size // most][:most] = 2.0**-15
    packed = pack(matrix, target, 1)
    assert packed is not None
    assert same_bits(unpack(packed, matrix.shape, target), matrix)
    matrix[5, 5] = 2.0**-15
    assert pack(matrix, target, 1) is None
    crowded = np.ones((64, 1000), np.float32)  # few of all, but all in one vector of rows
    crowded[5, : int(target.vector * 1000 * narrow._ROOM) + 65] = 2.0**-15
    assert pack(crowded, target, 1) is None


@each_target
def test_a_weight_takes_28_bits(target: Target) -> None:
    matrix = normal(np.random.default_rng(0), (512, 512))
    packed = pack(matrix, target, 2)
    assert packed is not None
    assert 28 / 32 <= packed.nbytes / matrix.nbytes < 28.3 / 32


@each_target
@pytest.mark.parametrize("coding", list(narrow_kernels.CODINGS))
@pytest.mark.parametrize("at_end", [True, False])
def test_packing_touches_nothing_else(target: Target, at_end: bool, coding: str) -> None:
    rng = np.random.default_rng(3)
    for shape in sizes(target.vector):
        parts, matrix = narrow.Parts(*shape, target.vector, coding), any_bits(rng, shape)
        if coding == "fixed":
            matrix = normal(rng, shape)
        room = 8 * target.vector * parts.blocks if coding == "lossless" else 0
        memory: dict[str, NDArray[Any]] = {
            "weights": guarded(matrix, at_end=at_end),
            "words": guarded_empty(parts.vectors * parts.words, at_end=at_end),
            "bases": guarded_empty(parts.vectors * parts.v, at_end=at_end),
            "squares": guarded_empty(parts.vectors * parts.v, at_end=at_end),
            "counts": guarded_bytes(8 * parts.vectors, at_end=at_end),
            "rare": guarded_bytes(8 * parts.vectors * room, at_end=at_end),
            "scratch": guarded_empty(2 * parts.words, at_end=at_end),
        }
        values = {name: array.ctypes.data for name, array in memory.items()}
        values |= {"rows": shape[0], "channels": shape[1], "blocks": parts.blocks, "room": room, "stride": parts.words}
        last = np.minimum(np.arange(parts.vectors * parts.v), shape[0] - 1)
        for what in ("survey", "pack", "unpack"):
            tile = narrow_kernels.Narrow(what, coding)
            call(tile, narrow_kernels.emit, narrow_kernels.ARGUMENTS, values, parts.vectors, target, 2)
            if what == "survey" and coding == "fixed":
                np.testing.assert_array_equal(memory["bases"], np.abs(matrix).max(1)[last])
                np.testing.assert_allclose(memory["squares"], (matrix.astype(float) ** 2).sum(1)[last], rtol=1e-5)
                memory["bases"][:] = np.ldexp(1.0, np.frexp(memory["bases"])[1] - 31)
        found = memory["weights"]
        if coding == "fixed":
            largest = np.abs(matrix).max(1, keepdims=True)
            assert (np.abs(found - matrix) <= np.ldexp(1.0, np.frexp(largest)[1] - 23)).all()
            continue
        rare = bits(found) != bits(matrix)
        assert not bits(found)[rare].any()
        assert rare.sum() <= memory["counts"].view(np.int64).sum()


@each_target
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", [normal, any_bits, at_the_edges], ids=lambda kind: kind.__name__)
@pytest.mark.usefixtures("however_many")
def test_weights_are_packed_where_they_lie(target: Target, kind: Callable[..., Array], exact: bool) -> None:
    rng = np.random.default_rng(9)
    v = target.vector
    for threads, shape in enumerate([(1, 64), (v, 57), (3 * v + 1, 100), (5 * v - 1, 1001), (40 * v, 64)]):
        matrix = np.asarray(kind(rng, shape), np.float32)
        survey = narrow.Survey(matrix, target, threads % 3 + 1, exact=exact)
        room = 4 * -(-shape[0] // v) * v * shape[1] + 8 * survey.rare.size + 1024
        memory = guarded_bytes(room, at_end=bool(threads % 2))
        memory[: matrix.nbytes] = matrix.reshape(-1).view(np.uint8)
        assert survey.fits_in_place(room)
        packed = survey.pack_in_place(memory)
        np.testing.assert_array_equal(packed, survey.pack(matrix))
        if survey.parts.coding == "lossless":
            assert same_bits(unpack(packed, shape, target), matrix), shape


@each_target
def test_what_would_not_fit_is_packed_elsewhere(target: Target) -> None:
    v = target.vector
    for shape, extra, fits in (((v, 64), 0, True), ((v, 64), -1, False), ((v, 41), 0, False)):
        survey = narrow.Survey(np.ones(shape, np.float32), target, 1, exact=True)
        needed = max(survey.nbytes, 4 * survey.parts.words)
        assert survey.fits_in_place(needed + extra) == fits


# -- products ----------------------------------------------------------------------------------------------------------


def layer(
    target: Target,
    x: Array,
    w: Array,
    bias: Array | None = None,
    activation: Node | None = None,
    threads: int = 2,
    numerics: str = "strict",
) -> Planned:
    nodes = [Node("Flatten", ["x"], ["f"], {"axis": 1}) if x.ndim > 2 else Node("Identity", ["x"], ["f"])]
    nodes.append(Node("Gemm", ["f", "w", "b"] if bias is not None else ["f", "w"], ["g"], {"transB": 1}))
    if activation is not None:
        nodes.append(activation)
    constants = {"w": w} if bias is None else {"w": w, "b": bias}
    return planned(graph_of(nodes, {"x": x}, [nodes[-1].outputs[0]], constants), target, threads, numerics=numerics)


def check(plan: Planned, x: Array, w: Array, bias: Array | float = 0.0, *, at_end: bool = True) -> None:
    assert len(plan.tiles(dense)) == 1
    (y,) = plan.run({"x": x}, at_end=at_end).values()
    rows = x.reshape(len(x), -1).astype(float)
    expected = rows @ w.T.astype(float) + bias
    bound = (w.shape[1] + 8) * 2.0**-24 * (np.abs(rows) @ np.abs(w.T.astype(float)) + np.abs(bias))
    assert (np.abs(y - expected) <= bound).all(), (x.shape, w.shape)


@each_target
@pytest.mark.parametrize(("numerics", "coding"), [("strict", "lossless"), ("default", "fixed")])
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.usefixtures("always")
def test_fully_connected(target: Target, batch: int, numerics: str, coding: str) -> None:
    rng = np.random.default_rng(batch)
    for number, (outputs, channels) in enumerate(sizes(target.vector)):
        x, w = normal(rng, (batch, channels)), normal(rng, (outputs, channels))
        bias = normal(rng, (1, outputs))[0] if number % 2 else None
        plan = layer(target, x, w, bias, threads=1 + number % 3, numerics=numerics)
        assert [tile.coding for tile in plan.tiles(dense)] == [coding]
        survey = narrow.Survey(w, target, 1, exact=numerics == "strict")
        check(
            plan,
            x,
            narrow.unpack(survey.pack(w), survey.parts, target, 1),
            0.0 if bias is None else bias,
            at_end=bool(number % 2),
        )


@each_target
@pytest.mark.parametrize("shape", [(5, 1, 1), (3, 2, 3), (33, 4)])
@pytest.mark.usefixtures("always")
def test_flattened_inputs(target: Target, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, *shape), np.float32)
    w = normal(rng, (target.vector + 3, x[0].size))
    check(layer(target, x, w), x, w)


@each_target
@pytest.mark.usefixtures("always")
def test_behind_channel_blocks(target: Target) -> None:
    """The input is what a convolution made, in blocks; of one pixel or of several."""
    rng = np.random.default_rng(6)
    for size in (1, 3):
        x = rng.standard_normal((2, 5, size, size), np.float32)
        constants = {"k": rng.standard_normal((19, 5, 1, 1), np.float32), "w": normal(rng, (9, 19 * size * size))}
        nodes = [
            Node("Conv", ["x", "k"], ["c"], {}),
            Node("Flatten", ["c"], ["f"], {"axis": 1}),
            Node("Gemm", ["f", "w"], ["g"], {"transB": 1}),
            Node("Gemm", ["g", "v"], ["y"], {"transB": 1}),
        ]
        constants["v"] = normal(rng, (7, 9))
        plan = planned(graph_of(nodes, {"x": x}, ["y"], constants), target, 2)
        assert len(plan.tiles(dense)) == 2
        c = np.einsum("nchw,kc->nkhw", x.astype(float), constants["k"][:, :, 0, 0].astype(float))
        expected = c.reshape(2, -1) @ constants["w"].T.astype(float) @ constants["v"].T.astype(float)
        y = plan.run({"x": x})["y"]
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@each_target
@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
@pytest.mark.usefixtures("always")
def test_activations_are_fused(target: Target, activation: str) -> None:
    rng = np.random.default_rng(2)
    x, w = normal(rng, (2, 33)), normal(rng, (20, 33))
    plan = layer(target, x, w, activation=Node(activation, ["g"], ["y"]))
    assert plan.tiles(dense)[0].epilogue == ((activation.lower(),),)
    expected = ACTIVATIONS[activation.lower()].reference(x.astype(float) @ w.T.astype(float))
    np.testing.assert_allclose(plan.run({"x": x})["y"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@each_target
@pytest.mark.parametrize("kind", [any_bits, at_the_edges, pruned, tiny], ids=lambda kind: kind.__name__)
@pytest.mark.usefixtures("always", "however_many")
def test_rare_weights_count(target: Target, kind: Callable[..., Array]) -> None:
    """Of 1 in one place, an input gives the weights themselves, to the last bit: those that are listed too."""
    rng = np.random.default_rng(4)
    w = np.asarray(kind(rng, (target.vector + 1, 21)), np.float32)
    for first in range(0, 21, 7):
        x = np.eye(21, dtype=np.float32)[first : first + 7]
        plan = layer(target, x, w)
        assert plan.tiles(dense)
        np.testing.assert_array_equal(plan.run({"x": x})["g"], w.T[first : first + 7])


@each_target
@pytest.mark.usefixtures("always")
def test_infinities_go_where_they_should(target: Target) -> None:
    rng = np.random.default_rng(8)
    w = normal(rng, (5, 19))
    w[1, 18], w[2, 3] = 0.0, 2.0**-20
    for place in (3, 18):
        x = normal(rng, (1, 19))
        x[0, place] = np.inf
        with np.errstate(invalid="ignore"):
            expected = x.astype(float) @ w.T.astype(float)
        y = layer(target, x, w).run({"x": x})["g"]
        np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
        np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))


# -- when, and what a model holds --------------------------------------------------------------------------------------


def test_only_large_layers_of_few_images_are_packed() -> None:
    target = host_target()
    w = normal(np.random.default_rng(0), (512, 513))
    for batch, outputs in ((1, 512), (dense.MOST_IMAGES, 512), (dense.MOST_IMAGES + 1, 512), (1, 500)):
        x = np.ones((batch, 513), np.float32)
        chosen = batch <= dense.MOST_IMAGES and outputs == 512 and target.name != "generic"
        family, other = (dense, direct) if chosen else (direct, dense)
        plan = layer(target, x, w[:outputs])
        assert plan.tiles(family)
        assert not plan.tiles(other)


def test_weights_that_cannot_be_packed_stay_plain() -> None:
    w = normal(np.random.default_rng(0), (512, 513))
    w[7, 7] = np.inf
    x = np.ones((1, 513), np.float32)
    plan = layer(host_target(), x, w)
    assert plan.tiles(direct)
    assert np.isinf(plan.run({"x": x})["g"][0, 7])


@pytest.mark.skipif(host_target().name == "generic", reason="packs nothing")
@pytest.mark.parametrize(("numerics", "packed"), [("strict", "28 bits, lossless"), ("default", "24 bits, rounded")])
def test_a_model_holds_weights_once_and_gives_them_back(numerics: str, packed: str) -> None:
    rng = np.random.default_rng(1)
    w = normal(rng, (600, 1000)) * (rng.random((600, 1000)) < 0.9)
    nodes = [Node("Gemm", ["x", "w"], ["y"], {"transB": 1}, "classifier")]
    graph = graph_of(nodes, {"x": np.ones((1, 1000), np.float32)}, ["y"], {"w": w})
    x = normal(rng, (1, 1000))
    with cw.compile(graph, threads=2, numerics=numerics) as model:
        assert model.memory()["weights"] < 0.9 * w.nbytes
        (step,) = [step for step in model.explain(runs=1).steps if step.macs]
        assert step.kernel == f"f32-dense-1x1-{host_target().name}"
        assert step.why == f"1 x 1000 by 600: weights in {packed}"
        assert same_bits(model._weights.array("w"), w) == (numerics == "strict")
        assert np.abs(model._weights.array("w") - w).max() < 2.0**-20
        with pickle.loads(pickle.dumps(model)) as copy:
            np.testing.assert_array_equal(copy(x), model(x))


@pytest.mark.parametrize("alone", [True, False])
def test_other_formats_are_made_of_packed_weights(alone: bool) -> None:
    """Whether the memory of the constant was used again or not."""
    target, shape = host_target(), (303, 1001)
    w = normal(np.random.default_rng(1), shape)
    w[:, 5] = 2.0**-30
    constant = large_empty(shape, w.dtype)
    constant[...] = w
    start = constant.ctypes.data
    weights = Weights({"w": constant}, target.vector)
    if alone:
        del constant
    weights.consuming = True
    narrowed = weights.narrowed("w", target, 2, exact=True)
    weights.consuming = False
    assert narrowed is not None
    _, packed = narrowed
    assert (packed.ctypes.data == start) == alone
    if not alone:
        assert same_bits(constant, w)
    assert weights.nbytes == packed.nbytes < 0.89 * w.nbytes
    assert same_bits(weights.array("w"), w)
    plain = Weights({"w": w}, target.vector).get("w", "direct", (*shape, 1, 1))
    assert same_bits(weights.get("w", "direct", (*shape, 1, 1)), plain)
    assert weights.narrowed("w", target, 1, exact=True) is narrowed


@pytest.mark.skipif(host_target().name == "generic", reason="packs nothing")
def test_compiling_packs_weights_where_they_lie() -> None:
    w = normal(np.random.default_rng(3), (512, 600))

    def graph() -> Graph:
        constant = large_empty(w.shape, w.dtype)
        constant[...] = w
        starts.append(constant.ctypes.data)
        nodes = [Node("Gemm", ["x", "w"], ["y"], {"transB": 1})]
        return graph_of(nodes, {"x": np.ones((1, 600), np.float32)}, ["y"], {"w": constant})

    starts: list[int] = []
    with cw.compile(graph(), threads=2, numerics="strict") as model:
        narrowed = model._weights.narrowed("w", host_target(), 2, exact=True)
        assert narrowed is not None
        _, packed = narrowed
        assert packed.ctypes.data == starts[0]
        assert same_bits(model._weights.array("w"), w)
