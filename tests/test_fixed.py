"""Weights in 24 bits (`kernels.fixed`): the nearest multiples of their row's unit, the same when they are packed again,
and only where that is near enough; products with them against float64, every buffer beside an unreadable page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright.codegen.target import Target, host_target
from convwright.graph import Node
from convwright.kernels import dense, fixed
from convwright.kernels import narrow as narrow_kernels
from convwright.large_arrays import large_empty
from convwright.model import narrow
from convwright.model.lower import dense as lowering
from convwright.model.weights import Weights
from tests.guard import guarded, guarded_bytes, guarded_empty
from tests.kernels import call, each_target
from tests.plans import graph_of, planned
from tests.test_dense import alike, at_the_edges, huge, normal, pruned, sizes, zeros

Array = NDArray[np.float32]
KINDS: list[Callable[..., Any]] = [normal, pruned, alike, at_the_edges, zeros]


@pytest.fixture
def however_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are rounded, whatever that changes."""
    monkeypatch.setattr(narrow, "MOST_ROUNDED", 1.0)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers, too, and on every target."""
    monkeypatch.setattr(lowering, "_limited_by_memory", lambda b, nbytes, images: images <= dense.MOST_IMAGES)


def surveyed(matrix: Array, target: Target, threads: int = 1) -> narrow.Survey:
    return narrow.Survey(matrix, target, threads, exact=False)


def is_rounded(found: Array, matrix: Array) -> bool:
    """Whether these are multiples of each row's 2^(e - 23), where 2^e is the least power of two above its weights, and
    the nearest, of two the even one, but for weights within half a unit of 2^e, which is no multiple."""
    rows = matrix.astype(float)
    largest = np.abs(rows).max(1, keepdims=True)
    unit = np.ldexp(1.0, np.where(largest > 0, np.frexp(largest)[1], 0) - 23)
    most = 2.0**23 - 1
    return bool((found == np.clip(np.round(rows / unit), -most, most) * unit).all())


@each_target
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.usefixtures("however_far")
def test_weights_are_the_nearest_multiples(target: Target, kind: Callable[..., Array]) -> None:
    rng = np.random.default_rng(7)
    for number, shape in enumerate(sizes(target.vector)):
        matrix = np.asarray(kind(rng, shape), np.float32)
        survey = surveyed(matrix, target, number % 2 + 1)
        assert survey.parts.coding == "fixed"
        assert survey.possible
        found = narrow.unpack(survey.pack(matrix), survey.parts, target, 1)
        assert is_rounded(found, matrix), shape
        again = surveyed(found, target)
        np.testing.assert_array_equal(narrow.unpack(again.pack(found), again.parts, target, 1), found)


@each_target
def test_errors_of_weights_between_multiples_have_no_sign(target: Target) -> None:
    rng = np.random.default_rng(2)
    matrix = np.asarray(rng.integers(-(2**21), 2**21, (4, 4096)) * 2 + 1, np.float32)  # odd halves of the unit
    matrix[:, 0] = 2.0**23  # whose row's unit is 2
    survey = surveyed(matrix, target)
    errors = narrow.unpack(survey.pack(matrix), survey.parts, target, 1) - matrix
    assert (np.abs(errors[:, 1:]) == 1).all()
    assert abs(errors[:, 1:].mean()) < 0.05


@each_target
def test_a_weight_takes_24_bits(target: Target) -> None:
    matrix = normal(np.random.default_rng(0), (512, 512))
    packed = surveyed(matrix, target, 2).pack(matrix)
    assert 24 / 32 <= packed.nbytes / matrix.nbytes < 24.3 / 32


@each_target
def test_what_would_change_too_much_is_kept_without_loss(target: Target) -> None:
    rng = np.random.default_rng(1)
    plain = normal(rng, (33, 1000))
    assert surveyed(plain, target).parts.coding == "fixed"
    far = plain.copy()
    far[32, 999] = 100.0  # one row of weights that are small beside its largest
    tiny = plain * np.float32(2.0 ** (fixed.LOWEST - 8))
    for matrix in (far, tiny, huge(rng, plain.shape)):  # squares of huge ones are infinite
        survey = surveyed(matrix, target)
        assert survey.parts.coding == "lossless"
        assert survey.possible
        found = narrow.unpack(survey.pack(matrix), survey.parts, target, 1)
        np.testing.assert_array_equal(found.view(np.uint32), matrix.view(np.uint32))


@each_target
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_packed(target: Target, bad: float) -> None:
    for row, channel in ((0, 0), (target.vector, 32), (3, 31)):
        matrix = normal(np.random.default_rng(0), (target.vector + 1, 33))
        matrix[row, channel] = bad
        assert not surveyed(matrix, target).possible


@each_target
@pytest.mark.parametrize("at_end", [True, False])
def test_packing_touches_nothing_else(target: Target, at_end: bool) -> None:
    rng = np.random.default_rng(3)
    for shape in sizes(target.vector):
        parts, matrix = narrow.Parts(*shape, target.vector, "fixed"), normal(rng, shape)
        memory: dict[str, NDArray[Any]] = {
            "weights": guarded(matrix, at_end=at_end),
            "words": guarded_empty(parts.vectors * parts.words, at_end=at_end),
            "bases": guarded_empty(parts.vectors * parts.v, at_end=at_end),
            "squares": guarded_empty(parts.vectors * parts.v, at_end=at_end),
            "counts": guarded_bytes(8 * parts.vectors, at_end=at_end),
            "rare": guarded_bytes(0, at_end=at_end),
            "scratch": guarded_empty(2 * parts.words, at_end=at_end),
        }
        values = {name: array.ctypes.data for name, array in memory.items()}
        values |= {"rows": shape[0], "channels": shape[1], "blocks": parts.blocks, "room": 0, "stride": parts.words}

        def run(what: str, values: dict[str, int] = values, parts: narrow.Parts = parts) -> None:
            tile = narrow_kernels.Narrow(what, "fixed")
            call(tile, narrow_kernels.emit, narrow_kernels.ARGUMENTS, values, parts.vectors, target, 2)

        run("survey")
        last = np.minimum(np.arange(parts.vectors * parts.v), shape[0] - 1)
        np.testing.assert_array_equal(memory["bases"], np.abs(matrix).max(1)[last])
        np.testing.assert_allclose(memory["squares"], (matrix.astype(float) ** 2).sum(1)[last], rtol=1e-5)
        memory["bases"][:] = np.ldexp(1.0, np.frexp(memory["bases"])[1] - 31)
        run("pack")
        run("unpack")
        assert is_rounded(memory["weights"], matrix)


@each_target
def test_weights_are_packed_where_they_lie(target: Target) -> None:
    rng = np.random.default_rng(9)
    v = target.vector
    for threads, shape in enumerate([(1, 64), (v, 57), (3 * v + 1, 100), (5 * v - 1, 1001), (40 * v, 64)]):
        matrix = normal(rng, shape)
        survey = surveyed(matrix, target, threads % 3 + 1)
        room = 4 * -(-shape[0] // v) * v * shape[1] + 1024
        memory = guarded_bytes(room, at_end=bool(threads % 2))
        memory[: matrix.nbytes] = matrix.reshape(-1).view(np.uint8)
        assert survey.fits_in_place(room)
        np.testing.assert_array_equal(survey.pack_in_place(memory), survey.pack(matrix))


@each_target
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.usefixtures("always")
def test_fully_connected(target: Target, batch: int) -> None:
    rng = np.random.default_rng(batch)
    for number, (outputs, channels) in enumerate(sizes(target.vector)):
        x, w, bias = normal(rng, (batch, channels)), normal(rng, (outputs, channels)), normal(rng, (1, outputs))[0]
        nodes = [Node("Gemm", ["x", "w", "b"], ["y"], {"transB": 1})]
        graph = graph_of(nodes, {"x": x}, ["y"], {"w": w, "b": bias})
        plan = planned(graph, target, 1 + number % 3, numerics="default")
        (tile,) = plan.tiles(dense)
        assert tile.coding == "fixed"
        survey = surveyed(w, target)
        weights = narrow.unpack(survey.pack(w), survey.parts, target, 1)
        expected = x.astype(float) @ weights.T.astype(float) + bias
        bound = (channels + 8) * 2.0**-24 * (np.abs(x.astype(float)) @ np.abs(w.T.astype(float)) + np.abs(bias))
        y = plan.run({"x": x}, at_end=bool(number % 2))["y"]
        assert (np.abs(y - expected) <= bound).all(), (x.shape, w.shape)


@pytest.mark.parametrize("alone", [True, False])
def test_other_formats_are_made_of_the_weights_that_layers_compute_with(alone: bool) -> None:
    """Whether the memory of the constant was used again or not; the caller's own array stays as it is."""
    target, shape = host_target(), (303, 1001)
    w = normal(np.random.default_rng(1), shape)
    constant = large_empty(shape, w.dtype)
    constant[...] = w
    weights = Weights({"w": constant}, target.vector)
    start = constant.ctypes.data
    if alone:
        del constant
    weights.consuming = True
    narrowed = weights.narrow("w", target, 2, exact=False)
    weights.consuming = False
    assert narrowed is not None
    parts, packed = narrowed
    assert parts.bits == 24
    assert (packed.ctypes.data == start) == alone
    if not alone:
        np.testing.assert_array_equal(constant, w)
    assert weights.nbytes == packed.nbytes < 0.76 * w.nbytes
    found = weights.array("w")
    assert is_rounded(found, w)
    plain = Weights({"w": found}, target.vector).get("w", "direct", (*shape, 1, 1))
    np.testing.assert_array_equal(weights.get("w", "direct", (*shape, 1, 1)), plain)
    assert weights.narrow("w", target, 1, exact=False) is narrowed
