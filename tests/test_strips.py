"""Chains of layers in strips: the same numbers, to the last bit, as layer after layer, which are held to float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright import reference
from convwright.codegen.target import Target
from convwright.errors import ConvwrightError
from convwright.graph import Graph, Node
from convwright.kernels import paired
from convwright.kernels import strips as kernel
from convwright.model.geometry import Geometry
from convwright.model.lower import strips
from convwright.spec import ConvSpec
from tests.convolutions import ACTIVATIONS, Random, random_window
from tests.kernels import each_target
from tests.plans import Arrays, Planned, graph_of, planned


@dataclass(frozen=True)
class Chain:
    """Convolutions one after another, with an activation (or none) and perhaps a residual behind each.

    `pointwise`: how 1x1 layers are computed.
    """

    specs: tuple[ConvSpec, ...]
    batch: int
    size: tuple[int, int]
    activations: tuple[tuple[Any, ...], ...]
    residuals: tuple[bool, ...]
    first_reads_planes: bool = False
    threads: int = 2
    pointwise: str = "direct-blocked"

    def sizes(self) -> list[tuple[int, ...]]:
        """Of the input, and of what each convolution gives."""
        found: list[tuple[int, ...]] = [self.size]
        for spec in self.specs:
            found.append(spec.output_size(found[-1]))
        return found

    def graph(self, seed: int) -> tuple[Graph, Arrays]:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> NDArray[np.float32]:
            return rng.standard_normal(shape).astype(np.float32)

        inputs: Arrays = {"x": normal(self.batch, self.specs[0].in_channels, *self.size)}
        constants: Arrays = {}
        nodes, name = [], "x"
        if not self.first_reads_planes:
            nodes, name = [Node("Identity", ["x"], ["inside"])], "inside"
        sizes = self.sizes()
        for at, spec in enumerate(self.specs):
            constants[f"w{at}"] = normal(*spec.weight_shape) / np.float32(np.sqrt(np.prod(spec.weight_shape[1:])))
            constants[f"b{at}"] = normal(spec.out_channels)
            low, high = zip(*spec.pads(sizes[at]), strict=True)
            way = "blocked" if spec.groups == 1 else "grouped"
            if spec.groups == spec.in_channels == spec.out_channels > 1:
                way = "depthwise"
            algorithm = self.pointwise if spec.kernel == (1, 1) and way == "blocked" else f"direct-{way}"
            attributes: dict[str, Any] = {
                "kernel_shape": spec.kernel, "strides": spec.stride, "dilations": spec.dilation, "pads": (*low, *high),
                "group": spec.groups, "algorithm": algorithm,
            }  # fmt: skip
            nodes.append(Node("Conv", [name, f"w{at}", f"b{at}"], [f"c{at}"], attributes, name=f"conv{at}"))
            name = f"c{at}"
            if self.activations[at]:
                op, options = ACTIVATIONS[self.activations[at]]
                nodes.append(Node(op, [name], [f"a{at}"], dict(options)))
                name = f"a{at}"
            if self.residuals[at]:
                inputs[f"r{at}"] = normal(self.batch, spec.out_channels, *sizes[at + 1])
                nodes.append(Node("Add", [name, f"r{at}"], [f"s{at}"]))
                name = f"s{at}"
        nodes.append(Node("Identity", [name], ["y"]))
        return graph_of(nodes, inputs, ["y"], constants), inputs

    def expected(self, graph: Graph, inputs: Arrays) -> NDArray[np.float64]:
        """In float64, for chains without activations."""
        x = inputs["x"].astype(np.float64)
        for at, spec in enumerate(self.specs):
            x = reference.conv(x, graph.constants[f"w{at}"], graph.constants[f"b{at}"], spec)
            if self.residuals[at]:
                x = x + inputs[f"r{at}"]
        return x


def in_strips(graph: Graph, target: Target, threads: int, high: int, numerics: str = "strict") -> Planned:
    """The plan with as many layers in chains as can be, in strips of `high` rows."""

    def heights(problems: Any, geometries: list[Geometry]) -> list[int]:
        return [min(high, geometries[-1].out_size[0])]

    with patch.object(strips, "_FAR_CYCLES", 1e9), patch.object(strips, "_heights", heights):
        return planned(graph, target, threads, numerics=numerics)


def one_by_one(graph: Graph, target: Target, threads: int, numerics: str = "strict") -> Planned:
    with patch.object(strips, "chains", lambda *_: []):
        return planned(graph, target, threads, numerics=numerics)


def random_chain(rng: Random, v: int) -> Chain:
    channels = int(rng.choice([1, 2, 3, v, v + 1, 2 * v - 1]))
    size = int(rng.integers(4, 15)), int(rng.integers(3, 12))
    first, specs, now = channels, [], size
    for _ in range(int(rng.integers(2, 5))):
        if channels > 1 and rng.random() < 0.45:
            own = int(rng.choice([1, 2])) if channels == v else 1
            spec = ConvSpec(channels, channels, **random_window(rng, 2, 5), groups=channels // own)
        else:
            out = int(rng.choice([1, 3, v - 1, v, v + 2]))
            window = random_window(rng, 2, 3) if rng.random() < 0.4 else {"kernel": (1, 1)}
            spec = ConvSpec(channels, out, **window)
        try:
            after = spec.output_size(now)
        except ConvwrightError:
            continue
        if min(after) < 2:
            continue
        specs.append(spec)
        now, channels = (after[0], after[1]), spec.out_channels
    if len(specs) < 2:
        specs, size = [ConvSpec(first, 2 * v, (1, 1)), ConvSpec(2 * v, 2 * v, (3, 3), padding=1, groups=2 * v)], (6, 5)
    names: list[tuple[Any, ...]] = [(), ("relu",), ("clip", 0.0, 6.0)]
    return Chain(
        tuple(specs),
        int(rng.integers(1, 3)),
        size,
        tuple(names[int(rng.integers(3))] for _ in specs),
        tuple(bool(rng.random() < 0.25) for _ in specs),
        threads=int(rng.integers(1, 4)),
    )


def check(chain: Chain, target: Target, seed: int, high: int) -> Planned:
    graph, inputs = chain.graph(seed)
    numerics = "strict" if chain.pointwise == "direct-blocked" else "default"
    cut = in_strips(graph, target, chain.threads, high, numerics)
    assert any(step.family is kernel for step in cut.steps), f"no strips: {chain}"
    apart = one_by_one(graph, target, chain.threads, numerics)
    assert not any(step.family is kernel for step in apart.steps)
    wanted = apart.run(inputs)["y"]
    assert np.array_equal(cut.run(inputs, at_end=seed % 2 == 0)["y"], wanted), f"{chain}, strips of {high} rows"
    if not any(chain.activations):
        exact = chain.expected(graph, inputs)
        assert np.abs(wanted - exact).max() <= 1e-5 * max(1.0, np.abs(exact).max())
    return cut


@each_target
@pytest.mark.parametrize("start", range(0, 40, 10))
def test_random_chains(target: Target, start: int) -> None:
    for seed in range(start, start + 10):
        rng = np.random.default_rng(seed)
        chain = random_chain(rng, target.vector)
        check(chain, target, seed, int(rng.integers(1, 6)))


@pytest.mark.long
@each_target
@pytest.mark.parametrize("start", range(1000, 3000, 100))
def test_many_random_chains(target: Target, start: int) -> None:
    for seed in range(start, start + 100):
        rng = np.random.default_rng(seed)
        chain = random_chain(rng, target.vector)
        check(chain, target, seed, int(rng.integers(1, 6)))


@each_target
@pytest.mark.parametrize("high", [1, 2, 3, 5, 8])
def test_an_inverted_residual_in_strips_of_any_height(target: Target, high: int) -> None:
    v = target.vector
    specs = (
        ConvSpec(v + 1, 3 * v, (1, 1)),
        ConvSpec(3 * v, 3 * v, (3, 3), padding=1, groups=3 * v),
        ConvSpec(3 * v, v + 1, (1, 1)),
    )
    check(Chain(specs, 2, (8, 7), (("relu",), ("clip", 0.0, 6.0), ()), (False, False, True)), target, high, high)
    exact = Chain(specs, 1, (8, 7), ((), (), ()), (False, False, True))
    check(exact, target, high, high)


@each_target
@pytest.mark.parametrize("high", [1, 2, 3, 5, 8])
def test_products_in_pairs_around_a_depthwise_layer(target: Target, high: int) -> None:
    """Each thread has scratch of its own for them; strips of one row have 7 pixels."""
    v = target.vector
    specs = (
        ConvSpec(24, 6 * v, (1, 1)),
        ConvSpec(6 * v, 6 * v, (3, 3), padding=1, groups=6 * v),
        ConvSpec(6 * v, v + 1, (1, 1)),
    )
    for threads, last in ((1, ()), (2, ("relu",)), (3, ())):
        chain = Chain(specs, 2, (8, 7), ((), (), last), (False, False, True), threads=threads, pointwise="paired")
        cut = check(chain, target, high + threads, high)
        assert sum(call.family is paired for step in cut.steps for call in step.calls) == 2


@each_target
def test_a_first_layer_that_reads_planes_begins_a_chain(target: Target) -> None:
    v = target.vector
    specs = (
        ConvSpec(3, v + 1, (3, 3), stride=2, padding=1),
        ConvSpec(v + 1, v + 1, (3, 3), padding=1, groups=v + 1),
        ConvSpec(v + 1, 3, (1, 1)),
    )
    check(Chain(specs, 2, (15, 13), ((), (), ()), (False,) * 3, first_reads_planes=True), target, 0, 2)


@each_target
def test_a_value_that_others_read_ends_a_chain(target: Target) -> None:
    v = target.vector
    rng = np.random.default_rng(0)
    inputs: Arrays = {"x": rng.standard_normal((1, v, 6, 6)).astype(np.float32)}
    constants: Arrays = {f"w{at}": rng.standard_normal((v, v, 1, 1)).astype(np.float32) for at in range(2)}
    nodes = [
        Node("Identity", ["x"], ["inside"]),
        Node("Conv", ["inside", "w0"], ["c0"], {"kernel_shape": (1, 1), "algorithm": "direct"}),
        Node("Conv", ["c0", "w1"], ["c1"], {"kernel_shape": (1, 1), "algorithm": "direct"}),
        Node("Identity", ["c1"], ["y"]),
        Node("Identity", ["c0"], ["z"]),
    ]
    cut = in_strips(graph_of(nodes, inputs, ["y", "z"], constants), target, 1, 2)
    assert not any(step.family is kernel for step in cut.steps)


def test_strips_of_equal_height_cover_the_rows_and_stay_inside() -> None:
    def geometry(size: int, out: int, kernel: int, stride: int, pad: int) -> Geometry:
        return Geometry(8, 8, (kernel, 1), (stride, 1), ((pad, pad), (0, 0)), (1, 1), 1, (size, 4), (out, 4))

    chain = geometry(28, 28, 1, 1, 0), geometry(28, 14, 3, 2, 1), geometry(14, 14, 1, 1, 0)
    cut = strips.cut(chain, 4)
    assert cut.rows == (9, 4, 4)
    assert cut.starts.tolist() == [[0, 0, 0], [7, 4, 4], [15, 8, 8], [19, 10, 10]]
    assert cut.shifts.tolist() == [[0, -1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
