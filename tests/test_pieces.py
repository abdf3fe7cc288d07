"""Long sums under strict numerics, against float64, on every target: in pieces their errors are a part of those of the
same sums one after another, and no larger than stated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright import reference
from convwright.codegen.target import Target
from convwright.graph import Node
from convwright.graph.graph import INTERNAL
from convwright.kernels import dense, direct, gemm, grouped, het, pieces, planar
from convwright.model.lower import direct as lowering
from convwright.model.problem import Problem
from convwright.spec import ConvSpec, HetSpec
from tests.kernels import each_target
from tests.plans import Arrays, Planned, graph_of, planned
from tests.test_regroup import Unit

Made = tuple[Planned, Arrays, NDArray[np.float64]]  # the plan, its inputs, and what it should give

ROUNDING = 2.0**-24


def arrays(seed: int, *shapes: tuple[int, ...]) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def convolution(
    spec: ConvSpec,
    size: tuple[int, ...],
    algorithm: str,
    target: Target,
    *,
    inside: bool = True,
    numerics: str = "strict",
) -> Made:
    x, w, b = arrays(3, (1, spec.in_channels, *size), spec.weight_shape, (spec.out_channels,))
    nodes = [Node("Identity", ["x"], ["inside"])] if inside else []
    attributes = {"spec": spec, "algorithm": algorithm}
    nodes.append(Node("Convolution", ["inside" if inside else "x", "w", "b"], ["y"], attributes, domain=INTERNAL))
    graph = graph_of(nodes, {"x": x}, ["y"], {"w": w, "b": b})
    return planned(graph, target, threads=2, numerics=numerics), {"x": x}, reference.conv(x, w, b, spec)


def relative_error(made: Made, at_end: bool = True) -> float:
    """The root of the mean square of the error over that of the output."""
    plan, inputs, want = made
    (found,) = plan.run(inputs, at_end=at_end).values()
    assert found.shape == want.shape
    return float(np.sqrt(np.mean((found - want) ** 2) / np.mean(want**2)))


def in_pieces(plan: Planned, family: Any) -> bool:
    (tile,) = plan.tiles(family)
    if family is het:
        return bool(tile.planes.in_pieces)
    return bool(tile.in_pieces if family is planar else tile.pieces)


# Specification, size, algorithm and kernel. A vector of the sums of groups and of planes is an output of each channel.
LAYERS: dict[str, tuple[Callable[[int], ConvSpec], tuple[int, ...], str, Any]] = {
    "1x1": (lambda v: ConvSpec(4096, v + 1, (1, 1)), (3, 5), "direct-blocked", direct),
    "1x1, channels after the last block": (lambda v: ConvSpec(4095, 3, (1, 1)), (1, 29), "direct-blocked", direct),
    "3x3": (lambda v: ConvSpec(512, 2 * v + 3, (3, 3), padding=1), (5, 6), "direct-blocked", direct),
    "3x3 of the graph's own input": (lambda v: ConvSpec(4, 3, (33, 33), padding=16), (9, 7), "direct-blocked", direct),
    "groups across vectors": (
        lambda v: ConvSpec(1026, 2 * v + 2, (3, 1), groups=2), (5, 4), "direct-blocked", direct
    ),
    "groups of vectors": (lambda v: ConvSpec(1024, 2 * v, (3, 3), groups=2), (5, 6), "direct-grouped", grouped),
    "three axes": (lambda v: ConvSpec(128, v, (3, 3, 3), padding=1), (3, 4, 5), "direct-volumes", direct),
    "planes": (lambda v: ConvSpec(512, 5, (3, 3), padding=1), (6, 7), "direct-planes", planar),
    "planes, one tap": (lambda v: ConvSpec(4096, 3, (1, 1)), (6, 7), "direct-planes", planar),
    "planes, one output": (lambda v: ConvSpec(512, 1, (5, 3), padding=1), (40, 33), "direct-planes", planar),
    "planes, transposed": (
        lambda v: ConvSpec(1024, 3, (4, 4), stride=2, padding=1, transposed=True), (5, 7), "direct-planes", planar
    ),
    "im2col": (lambda v: ConvSpec(512, 5, (3, 3), padding=1), (6, 7), "im2col", gemm),
    "im2col of 1x1, a position left over": (lambda v: ConvSpec(8192, 20, (1, 1)), (7, 7), "im2col", gemm),
    "im2col, transposed": (
        lambda v: ConvSpec(2048, 3, (2, 2), stride=2, transposed=True), (6, 7), "im2col", gemm
    ),
}  # fmt: skip


@each_target
@pytest.mark.parametrize("name", LAYERS)
def test_pieces_make_the_errors_of_long_sums_smaller(
    target: Target, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, size, algorithm, family = LAYERS[name]
    spec = of(target.vector)
    inside = (family is direct and spec.in_channels > 4) or family is grouped
    made = convolution(spec, size, algorithm, target, inside=inside)
    assert in_pieces(made[0], family)
    error = relative_error(made)
    assert error == relative_error(made, at_end=False)
    problem = Problem(spec, size, 1, np.dtype(np.float32), target, 2, "strict")
    assert error < lowering.error_in_pieces(problem) / 2
    assert error < 6 * ROUNDING
    monkeypatch.setattr(lowering, "in_pieces", lambda *_: False)
    whole = convolution(spec, size, algorithm, target, inside=inside)
    assert not in_pieces(whole[0], family)
    assert error < 0.5 * relative_error(whole)


@each_target
def test_channels_where_a_shuffle_leaves_them(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = Unit((2, 2), (4, 2400, 6), 2, (), size=(3, 5))
    made = unit.plan(target)
    last = made[0].tiles(direct)[-1]
    assert last.gathered
    assert last.pieces
    error = relative_error(made)
    monkeypatch.setattr(lowering, "in_pieces", lambda *_: False)
    assert error < 0.6 * relative_error(unit.plan(target))


@each_target
def test_heterogeneous_kernels(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = HetSpec(ConvSpec(1024, 4, (3, 3), padding=1), 2)
    x, w, b = arrays(3, (1, 1024, 4, 9), spec.weight_shape, (4,))
    node = Node("HetConvolution", ["x", "w", "b"], ["y"], {"spec": spec}, domain=INTERNAL)
    graph, want = graph_of([node], {"x": x}, ["y"], {"w": w, "b": b}), reference.het_conv(x, w, b, spec)

    def made() -> Made:
        return planned(graph, target), {"x": x}, want

    error = relative_error(made())
    assert in_pieces(made()[0], het)
    monkeypatch.setattr(lowering, "in_pieces", lambda *_: False)
    assert error < 0.5 * relative_error(made())


@each_target
def test_deformable(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """With offsets of zero, so that there are no errors but those of sums."""
    spec = ConvSpec(512, 7, (3, 3), padding=1)
    x, w, b = arrays(3, (1, 512, 5, 6), spec.weight_shape, (7,))
    inputs = {"x": x, "offset": np.zeros((1, 18, 5, 6), np.float32)}
    attributes = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    graph = graph_of(
        [Node("DeformConv", ["x", "w", "offset", "b"], ["y"], attributes)], inputs, ["y"], {"w": w, "b": b}
    )
    want = reference.conv(x, w, b, spec)

    def made() -> Made:
        return planned(graph, target), inputs, want

    error = relative_error(made())
    monkeypatch.setattr(lowering, "in_pieces", lambda *_: False)
    assert error < 0.5 * relative_error(made())


@each_target
@pytest.mark.parametrize("numerics", ["default", "strict"])
@pytest.mark.parametrize("images", [1, 3, dense.MOST_IMAGES, dense.MOST_IMAGES + 1])
def test_fully_connected(target: Target, images: int, numerics: str) -> None:
    """Those that wait for memory always, the others where numerics are strict: then errors hardly grow with the sum."""
    errors = []
    for channels in (512, 25088 + 5):
        x, w, b = arrays(images, (images, channels), (-(-(1 << 20) // (4 * channels)) + 1, channels), (1,))
        b = np.full(len(w), b[0])
        nodes = [Node("Identity", ["x"], ["f"]), Node("Gemm", ["f", "w", "b"], ["y"], {"transB": 1})]
        plan = planned(graph_of(nodes, {"x": x}, ["y"], {"w": w, "b": b}), target, threads=2, numerics=numerics)
        assert len(plan.tiles(dense)) == (images <= dense.MOST_IMAGES and target.name != "generic")
        errors.append(relative_error((plan, {"x": x}, x.astype(float) @ w.T.astype(float) + b)))
    if numerics == "strict" or plan.tiles(dense):
        assert errors[-1] < 9 * ROUNDING
    else:
        assert errors[-1] > 15 * ROUNDING


@each_target
def test_short_sums_and_other_numerics_are_summed_one_after_another(target: Target) -> None:
    long = ConvSpec(4096, 3, (1, 1))
    for spec, numerics in ((ConvSpec(pieces.PIECE, 3, (1, 1)), "strict"), (long, "default")):
        for algorithm, family in (("direct-blocked", direct), ("direct-planes", planar), ("im2col", gemm)):
            plan, *_ = convolution(spec, (3, 5), algorithm, target, inside=family is direct, numerics=numerics)
            assert not in_pieces(plan, family)


@each_target
def test_float64_is_summed_one_after_another(target: Target) -> None:
    spec = ConvSpec(4096, 3, (1, 1))
    assert lowering.error_in_pieces(Problem(spec, (3, 3), 1, np.dtype(float), target, 1, "strict")) == (
        lowering.error_of_sum(Problem(spec, (3, 3), 1, np.dtype(float), target, 1))
    )


@each_target
def test_nan_and_infinity_stay_what_they_are(target: Target) -> None:
    """Totals that begin at zero change neither."""
    for bad in (np.nan, np.inf, -np.inf):
        plan, inputs, _ = convolution(ConvSpec(600, 3, (1, 1)), (2, 3), "direct-blocked", target)
        inputs["x"][0, 599, 1, 2] = bad
        (found,) = plan.run(inputs).values()
        assert (~np.isfinite(found)).sum() == 3
        assert not np.isfinite(found[0, :, 1, 2]).any()
        assert np.isnan(found[0, :, 1, 2]).all() == np.isnan(bad)
