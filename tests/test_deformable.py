"""Deformable convolutions against float64, on every target: planned as a model plans them, every buffer beside an
unreadable page, and NaN in all memory that means nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import convwright as cw
from convwright import functional, reference
from convwright.codegen.target import Target, host_target, target_named
from convwright.errors import ConvwrightError
from convwright.graph import Node
from convwright.kernels import deformable
from convwright.kernels.activations import ROWS
from convwright.kernels.direct import DirectTile
from convwright.model.lower import deformable as lowering
from convwright.model.tiles import most_pixels
from convwright.spec import ConvSpec, DeformableSpec
from tests.convolutions import ACTIVATIONS, RESIDUAL, Epilogue, compare, random_epilogue, random_size, random_window
from tests.kernels import each_target
from tests.plans import Arrays, Planned, graph_of, planned
from tests.sweeps import check_each, on_host, on_targets
from tests.test_spills import share_of_spills, spilling


@dataclass(frozen=True)
class Case:
    """A deformable convolution with its epilogue.

    reach: the offsets' standard deviation, in pixels.
    inside: the input is not the graph's own.
    chunk_bytes: of the columns of one chunk, 0 for the usual.
    """

    spec: DeformableSpec
    batch: int
    size: tuple[int, ...]
    epilogue: Epilogue = ()
    reach: float = 1.5
    inside: bool = False
    threads: int = 1
    at_end: bool = True
    chunk_bytes: int = 0
    numerics: str = "strict"
    seed: int = 0

    def arrays(self) -> tuple[Arrays, Arrays]:
        """The graph's inputs, and its constants."""
        rng, spec, conv = np.random.default_rng(self.seed), self.spec, self.spec.conv

        def normal(*shape: int) -> NDArray[np.float32]:
            return rng.standard_normal(shape).astype(np.float32)

        x = normal(self.batch, conv.in_channels, *self.size)
        offset = normal(*spec.offset_shape(self.size, self.batch)) * np.float32(self.reach)
        # Whole and half offsets, where the weights of some pixels are zero, and places far outside.
        some = rng.random(offset.shape) < 0.2
        offset[some] = np.round(2 * offset[some]) / 2
        far = rng.random(offset.shape) < 0.02
        offset[far] = rng.choice([1e30, -1e30, 1e9, -70000.0, np.inf, -np.inf], far.sum())
        inputs: Arrays = {"x": x, "offset": offset}
        if spec.modulated:
            inputs["mask"] = normal(*spec.mask_shape(self.size, self.batch))
        if RESIDUAL in self.epilogue:
            inputs["r"] = normal(self.batch, conv.out_channels, *conv.output_size(self.size))
        constants: Arrays = {"w": normal(*conv.weight_shape)}
        if conv.bias:
            constants["b"] = normal(conv.out_channels)
        return inputs, constants

    def node(self, source: str) -> Node:
        conv = self.spec.conv
        low, high = zip(*conv.pads(self.size), strict=True)
        attributes: dict[str, Any] = {
            "kernel_shape": conv.kernel, "strides": conv.stride, "dilations": conv.dilation, "pads": (*low, *high),
            "group": conv.groups, "offset_group": self.spec.offset_groups,
        }  # fmt: skip
        names = [source, "w", "offset", "b" if conv.bias else "", "mask" if self.spec.modulated else ""]
        return Node("DeformConv", names, ["y"], attributes)

    def plan(self, inputs: Arrays, constants: Arrays, target: Target) -> Planned:
        nodes = [Node("Identity", ["x"], ["inside"])] if self.inside else []
        nodes.append(self.node("inside" if self.inside else "x"))
        for number, operation in enumerate(self.epilogue):
            name = nodes[-1].outputs[0]
            if operation == RESIDUAL:
                nodes.append(Node("Add", [name, "r"], [f"y{number}"]))
            else:
                op, options = ACTIVATIONS[operation]
                nodes.append(Node(op, [name], [f"y{number}"], dict(options)))
        return planned(
            graph_of(nodes, inputs, [nodes[-1].outputs[0]], constants), target, self.threads, numerics=self.numerics
        )

    def run(self, inputs: Arrays, constants: Arrays, target: Target) -> tuple[NDArray[Any], Planned]:
        with pytest.MonkeyPatch.context() as patch:
            if self.chunk_bytes:
                patch.setattr(lowering, "_COLUMN_BYTES", self.chunk_bytes)
            plan = self.plan(inputs, constants, target)
        (result,) = plan.run(inputs, at_end=self.at_end).values()
        return result, plan

    def expected(self, inputs: Arrays, constants: Arrays) -> tuple[NDArray[np.float64], float]:
        """The output in float64, and how far a result may be from it (see ``tests.convolutions``)."""
        spec, b = self.spec, constants.get("b")
        y = reference.deform_conv(inputs["x"], inputs["offset"], constants["w"], b, spec, inputs.get("mask"))
        terms = math.prod(spec.conv.weight_shape[1:])
        largest = [
            float(np.abs(array).max()) for array in (inputs["x"], constants["w"], inputs.get("mask", np.ones(1)))
        ]
        bound = 2e-6 * math.sqrt(terms) * (math.prod(largest) + 1)
        for name, *parameters in self.epilogue:
            with np.errstate(all="ignore"):
                y = y + inputs["r"] if (name,) == RESIDUAL else ROWS[name].reference(y, *parameters)
        return y, bound

    def check(self, target: Target) -> Planned:
        inputs, constants = self.arrays()
        result, plan = self.run(inputs, constants, target)
        compare(result, *self.expected(inputs, constants), self)
        return plan


def random_case(seed: int, target: Target) -> Case:
    rng = np.random.default_rng(seed)
    v = target.vector
    own_in, own_out = (int(n) for n in rng.choice([1, 1, 2, 3, 4, v - 1, v, v + 1, 2 * v + 3], 2))
    groups = int(rng.choice([1, 1, 2, 3, 4, v, v + 1]))
    if own_in * own_out * groups > 2000:
        groups = 1
    if rng.random() < 0.3:
        own_out = own_in
    channels = own_in * groups
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    offset_groups = 1 if rng.random() < 0.5 else int(rng.choice(divisors[:6] + divisors[-1:]))
    window = random_window(rng, 2, 5)
    conv = ConvSpec(channels, own_out * groups, groups=groups, **window, bias=bool(rng.random() < 0.7))
    return Case(
        DeformableSpec(conv, offset_groups, bool(rng.random() < 0.5)),
        batch=int(rng.integers(1, 4)),
        size=random_size(rng, conv, 200),
        epilogue=random_epilogue(rng),
        reach=float(rng.choice([0.0, 0.3, 1.5, 6.0])),
        inside=bool(rng.random() < 0.3),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        chunk_bytes=int(rng.choice([0, 1, 20_000])),
        seed=seed,
    )


@on_targets(40)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: case.check(target))


def simple(
    own: tuple[int, int] = (5, 7),
    groups: int = 1,
    offset_groups: int = 1,
    size: tuple[int, int] = (6, 7),
    **wanted: Any,
) -> Case:
    conv = ConvSpec(own[0] * groups, own[1] * groups, (3, 3), padding=1, groups=groups)
    modulated = wanted.pop("modulated", True)
    return Case(DeformableSpec(conv, offset_groups, modulated), batch=1, size=size, **wanted)


@each_target
def test_boundary_channels(target: Target) -> None:
    v = target.vector
    for channels in (1, v - 1, v, v + 1, 5 * v):
        for out_channels in (1, v, v + 1):
            simple((channels, out_channels), seed=channels).check(target)
        simple((1, 1), groups=channels, seed=channels).check(target)
        simple((channels, 2), offset_groups=channels, seed=channels).check(target)


@each_target
@pytest.mark.parametrize("beside", [True, False])
def test_products_in_pairs(target: Target, beside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where additions have pipes of their own; the result is the same however the work is cut."""
    monkeypatch.setattr(lowering, "adds_beside_multiply_adds", lambda _: beside)
    v = target.vector
    for channels, outs, size, epilogue in (
        (v, 4 * v, (1, 1), ()),
        (v, 4 * v + 1, (3, 7), (("relu",),)),
        (3 * v, 5 * v - 1, (9, 5), (RESIDUAL, ("relu",))),
        (2 * v, 6 * v, (13, 11), (("gelu",), RESIDUAL)),
    ):
        results = []
        for threads, chunk_bytes in ((1, 10**7), (2, 0), (3, 40_000)):
            case = simple(
                (channels, outs), size=size, epilogue=epilogue, threads=threads, chunk_bytes=chunk_bytes,
                at_end=threads != 2, numerics="default", offset_groups=1 + (channels > v),
            )  # fmt: skip
            inputs, constants = case.arrays()
            result, plan = case.run(inputs, constants, target)
            compare(result, *case.expected(inputs, constants), case)
            assert [tile.pairs for tile in plan.tiles(deformable)] == [beside]
            results.append(result)
            np.testing.assert_array_equal(plan.builder.weights.array("w"), constants["w"])
            strict = replace(case, numerics="strict").plan(inputs, constants, target)
            assert [tile.pairs for tile in strict.tiles(deformable)] == [False]
        for result in results[1:] if beside else ():
            np.testing.assert_array_equal(result, results[0])


@each_target
def test_stride_larger_than_the_kernel(target: Target) -> None:
    conv = ConvSpec(3, 4, (2, 1), stride=(3, 4), dilation=(1, 5), padding=((2, 0), (0, 3)))
    Case(DeformableSpec(conv, 3, True), batch=2, size=(11, 9), reach=3.0).check(target)


@each_target
@pytest.mark.parametrize(("own", "groups"), [((1, 1), 7), ((1, 2), 9), ((2, 2), 8), ((1, 4), 5), ((2, 4), 8)])
def test_small_groups_lie_side_by_side_in_a_vector(target: Target, own: tuple[int, int], groups: int) -> None:
    plan = simple(own, groups, seed=groups).check(target)
    (tile,) = plan.tiles(deformable)
    fits = own[1] < target.vector
    assert tile.own == (own if fits else (0, 0))


@each_target
@pytest.mark.parametrize(("own", "groups"), [((5, 7), 1), ((6, 5), 3), ((2, 2), 8)])
def test_results_do_not_depend_on_how_the_work_is_cut(target: Target, own: tuple[int, int], groups: int) -> None:
    whole = simple(own, groups, groups, size=(9, 11), chunk_bytes=10**7)
    inputs, constants = whole.arrays()
    expected, _ = whole.run(inputs, constants, target)
    for threads, chunk_bytes in ((1, 1), (3, 5000), (2, 12000)):
        result, _ = replace(whole, threads=threads, chunk_bytes=chunk_bytes).run(inputs, constants, target)
        np.testing.assert_array_equal(result, expected)


@each_target
@pytest.mark.parametrize("modulated", [False, True])
def test_places_that_are_not_numbers(target: Target, modulated: bool) -> None:
    """NaN in an offset spoils its output and no other; nothing is read far outside."""
    case = simple(modulated=modulated, epilogue=(("relu",),))
    inputs, constants = case.arrays()
    inputs["offset"][0, 4:6, 2, 3] = np.nan, 0
    inputs["offset"][0, 6:8, 1, 1] = 0, np.nan
    inputs["offset"][0, 8:10, 5, 6] = np.nan, -np.inf  # outside on one axis: zero
    result, _ = case.run(inputs, constants, target)
    expected, bound = case.expected(inputs, constants)
    assert np.isnan(expected[0, 0]).sum() == 2
    compare(result, expected, bound, case)


@each_target
def test_what_lies_outside_is_zero_whatever_the_border_holds(target: Target) -> None:
    case = simple((3, 2), size=(4, 4), reach=0.0)
    inputs, constants = case.arrays()
    inputs["offset"][:] = np.random.default_rng(0).choice([-9.5, 11.25, np.inf], inputs["offset"].shape)
    inputs["x"][:, :, [0, -1]] = np.inf
    inputs["x"][:, :, :, [0, -1]] = np.nan
    result, _ = case.run(inputs, constants, target)
    np.testing.assert_array_equal(result, np.broadcast_to(constants["b"].reshape(1, -1, 1, 1), result.shape))


@each_target
def test_no_offsets_are_a_plain_convolution(target: Target) -> None:
    case = simple(modulated=False, groups=2, offset_groups=5)
    inputs, constants = case.arrays()
    inputs["offset"][:] = 0
    result, _ = case.run(inputs, constants, target)
    expected = reference.conv(inputs["x"], constants["w"], constants["b"], case.spec.conv)
    compare(result, expected, case.expected(inputs, constants)[1], case)


def test_far_from_the_origin_places_keep_their_precision() -> None:
    """A float32 near 4000 has 2.4e-4 between neighbours: the fraction of the offset must not be rounded to that."""
    spec = DeformableSpec(ConvSpec(1, 1, (1, 1), bias=False))
    case = Case(spec, batch=1, size=(1, 5000))
    x = np.tile(np.array([0.0, 1.0], np.float32), 2500).reshape(1, 1, 1, -1)
    offset = np.zeros((1, 2, 1, 5000), np.float32)
    offset[:, 1] = 1e-5
    inputs, constants = {"x": x, "offset": offset}, {"w": np.ones((1, 1, 1, 1), np.float32)}
    result, _ = case.run(inputs, constants, target_named("generic"))
    np.testing.assert_allclose(result, reference.deform_conv(x, offset, constants["w"], None, spec), rtol=0, atol=1e-7)


def check_float64(case: Case, target: Target) -> None:
    """In float64, which fuses nothing: layouts are converted, and vectors have half the lanes."""
    case = replace(case, epilogue=())
    inputs, constants = ({name: a.astype(np.float64) for name, a in arrays.items()} for arrays in case.arrays())
    result, plan = case.run(inputs, constants, target)
    assert result.dtype == np.float64
    assert not any(step.python for step in plan.steps)
    expected, bound = case.expected(inputs, constants)
    compare(result, expected, bound * 2.0**-28, case)


@on_targets(8, full=(300, 300))
def test_float64(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda case: check_float64(case, target))


def check_call(case: Case) -> None:
    """The function of arrays, with and without a batch."""
    case, conv = replace(case, epilogue=()), case.spec.conv
    inputs, constants = case.arrays()
    x, offset, mask = inputs["x"], inputs["offset"], inputs.get("mask")
    options: dict[str, Any] = {
        "stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation, "groups": conv.groups,
        "offset_groups": case.spec.offset_groups, "threads": case.threads,
    }  # fmt: skip
    if case.batch == 1:
        x, offset, mask = x[0], offset[0], None if mask is None else mask[0]
    result = cw.deform_conv(x, offset, constants["w"], constants.get("b"), mask=mask, **options)
    expected, bound = case.expected(inputs, constants)
    compare(result, expected[0] if case.batch == 1 else expected, bound, case)


@on_host(200)
def test_random_calls(seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, host_target()), check_call)
    functional.forget()


def write_model(path: Path, opset: int, case: Case, inputs: Arrays, constants: Arrays) -> None:
    """An ONNX file of the case's convolution with a Relu behind it."""
    own = case.node("x")
    nodes = [
        helper.make_node("DeformConv", own.inputs, ["z"], **own.attributes),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    feeds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "deformable", feeds, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path)


@pytest.mark.parametrize("opset", [19, 22])
@pytest.mark.parametrize("modulated", [False, True])
def test_a_file_with_a_deformable_convolution_and_relu_runs_on_one_kernel(
    tmp_path: Path, opset: int, modulated: bool
) -> None:
    case = simple((8, 6), 2, 4, modulated=modulated, epilogue=(("relu",),))
    inputs, constants = case.arrays()
    path = tmp_path / "deformable.onnx"
    write_model(path, opset, case, inputs, constants)
    model = cw.compile(cw.load(str(path)), threads=2)  # a SlowOperatorWarning would be an error here
    compare(np.asarray(model(inputs)), *case.expected(inputs, constants), case)
    kernels = [step["kernel"] for step in model.explain().to_dict()["steps"]]
    assert [kernel for kernel in kernels if kernel not in ("halo", "pack", "unpack")] == [kernels[2]]
    assert "deformable" in kernels[2]


def test_between_other_layers_it_reads_and_writes_blocks() -> None:
    """A convolution that predicts the offsets, the deformable one, and a convolution behind it that wants a halo."""
    rng = np.random.default_rng(0)
    shapes = {"w": (5, 3, 3, 3), "wo": (18, 5, 3, 3), "wd": (4, 5, 3, 3), "after": (2, 4, 3, 3)}
    constants: Arrays = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}
    around = {"pads": (1, 1, 1, 1)}
    nodes = [
        Node("Conv", ["x", "w"], ["a"], around),
        Node("Conv", ["a", "wo"], ["offset"], around),
        Node("DeformConv", ["a", "wd", "offset"], ["d"], around),
        Node("Conv", ["d", "after"], ["y"], around),
    ]
    inputs: Arrays = {"x": rng.standard_normal((2, 3, 6, 8)).astype(np.float32)}
    plan = planned(graph_of(nodes, inputs, ["y"], constants), target_named("generic"), 2)
    (result,) = plan.run(inputs).values()
    convs = {name: ConvSpec.of_weight(w.shape, padding=1, bias=False) for name, w in constants.items()}
    a = reference.conv(inputs["x"], constants["w"], None, convs["w"])
    offset = reference.conv(a, constants["wo"], None, convs["wo"])
    d = reference.deform_conv(a, offset, constants["wd"], None, DeformableSpec(convs["wd"]))
    np.testing.assert_allclose(result, reference.conv(d, constants["after"], None, convs["after"]), rtol=0, atol=1e-4)
    assert not [step for step in plan.steps if step.name == "pack" and step.layer is not plan.steps[0].layer]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offset": (1, 17, 6, 7)}, "offsets of shape (1, 17, 6, 7), it needs (1, 18, 6, 7)"),
        ({"offset": (1, 18, 6, 6)}, "it needs (1, 18, 6, 7)"),
        ({"mask": (1, 8, 6, 7)}, "mask of shape (1, 8, 6, 7), it needs (1, 9, 6, 7)"),
        ({"b": (6,)}, "bias of shape (6,) for 7 output channels"),
        ({"w": (7, 4, 3, 3)}, "5 channels, weights of shape (7, 4, 3, 3)"),
        ({"w": (7, 5, 9, 3)}, "a kernel spanning 9 does not fit"),
    ],
)
def test_shapes_that_do_not_fit(changed: dict[str, tuple[int, ...]], message: str) -> None:
    case = simple()
    inputs, constants = case.arrays()
    for name, shape in changed.items():
        (inputs if name in inputs else constants)[name] = np.zeros(shape, np.float32)
    node = case.node("x")
    del node.attributes["kernel_shape"]
    with pytest.raises(ConvwrightError) as caught:
        planned(graph_of([node], inputs, ["y"], constants), target_named("generic"))
    assert message in str(caught.value)


def test_offset_groups_that_do_not_divide_the_channels() -> None:
    case = simple()
    inputs, constants = case.arrays()
    node = case.node("x")
    node.attributes["offset_group"] = 2
    with pytest.raises(ConvwrightError, match="5 input channels in 2 offset groups"):
        planned(graph_of([node], inputs, ["y"], constants), target_named("generic"))


@pytest.mark.skipif(target_named("generic").registers > 16, reason="reads x86 assembly")
@each_target
def test_the_innermost_loops_keep_their_vectors_in_registers(target: Target) -> None:
    dense = DirectTile(1, *{16: (14, 2), 8: (6, 2), 4: (5, 2)}[target.vector], target.vector)
    side_by_side = DirectTile(1, min(8, most_pixels(1, target) // 2), 1, target.vector)
    tiles = [
        deformable.DeformableTile(dense, modulated=True),
        deformable.DeformableTile(dense, split=True),
        deformable.DeformableTile(side_by_side, (1, 1)),
        deformable.DeformableTile(side_by_side, (2, 2), modulated=True),
    ]
    assert not spilling(deformable, tiles, target)
    # In pairs LLVM keeps a few addresses on the stack.
    paired = deformable.DeformableTile(DirectTile(1, 11 if target.vector == 16 else 3, 2, target.vector), pairs=True)
    assert share_of_spills(deformable.emit, paired, target) < 0.1
