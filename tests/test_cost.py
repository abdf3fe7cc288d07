"""What layers cost: hand-worked and published numbers, and the same figures whatever they are asked of."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convwright as cw
from convwright import reference
from convwright.graph import Graph
from convwright.networks.assembly import Assembly
from convwright.spec import (
    ConvSpec,
    DeformableSpec,
    HetSpec,
    IntegerSpec,
    MixSpec,
    SeparableSpec,
    ShuffledSpec,
    SpatialSpec,
    Spec,
)
from tests.graph_models import model, node, read

SPECS: tuple[tuple[Spec, tuple[int, ...]], ...] = (
    (ConvSpec(3, 5, (3,), stride=2, padding=1), (9,)),
    (ConvSpec(4, 6, (3, 2), dilation=2, groups=2, bias=False), (9, 7)),
    (ConvSpec(4, 8, (1, 3, 5), groups=4, padding="same", stride=(1, 2, 1)), (3, 8, 7)),
    (ConvSpec(4, 6, (3, 4), stride=2, transposed=True, groups=2), (5, 6)),
    (SeparableSpec(ConvSpec(6, 4, (3, 3), padding=1), multiplier=2), (8, 8)),
    (SpatialSpec(ConvSpec(4, 6, (3, 3))), (9, 9)),
    (SpatialSpec(ConvSpec(4, 6, (3, 3, 3), stride=2)), (9, 9, 9)),
    (DeformableSpec(ConvSpec(8, 4, (3, 3), padding=1), offset_groups=2, modulated=True), (5, 6)),
    (HetSpec(ConvSpec(10, 7, (3, 3), padding=1), part=3), (8, 8)),
    (MixSpec(32, (3, 5, 7)), (8, 8)),
    (MixSpec(12, (3, 4), rank=1, stride=2, bias=False), (9,)),
    (ShuffledSpec(ConvSpec(6, 6, (1, 1), groups=3)), (5, 5)),
    (IntegerSpec(ConvSpec(8, 4, (3, 3)), input_zero_point=3), (5, 6)),
)


@pytest.mark.parametrize(("spec", "size"), SPECS, ids=lambda value: getattr(value, "kind", ""))
@pytest.mark.parametrize("batch", [1, 3])
def test_a_specification_costs_what_its_formulas_say(spec: Spec, size: tuple[int, ...], batch: int) -> None:
    total = cw.cost(spec, input_size=size, batch=batch).total
    assert total.macs == spec.macs(size, batch)
    assert total.flops == 2 * total.macs
    assert total.parameters == spec.parameters


def test_one_layer_of_mobilenet() -> None:
    """arXiv 1704.04861, table 3: 462 M and 2.36 M for the full convolution, 52.3 M and 0.27 M for the separable."""
    conv = ConvSpec(512, 512, (3, 3), padding=1, bias=False)
    full, light = (cw.cost(spec, input_size=(14, 14)).total for spec in (conv, SeparableSpec(conv)))
    assert (full.macs, full.parameters) == (462_422_016, 2_359_296)
    assert (light.macs, light.parameters) == (52_283_392, 266_752)


def ones_summed(spec: Spec, size: tuple[int, ...]) -> int:
    """The products that the definition sums, counted by it: where everything is one, each adds one to the result.

    Padding is put into the input beforehand, for the formulas count the zeros that it contributes.
    """
    if isinstance(spec, SeparableSpec | SpatialSpec):
        total = 0
        for stage in spec.stages:
            total += ones_summed(stage, size)
            size = stage.output_size(size)
        return total
    if isinstance(spec, MixSpec):
        return sum(ones_summed(part, size) for part in spec.parts)
    conv = spec if isinstance(spec, ConvSpec) else spec.conv  # type: ignore[attr-defined]
    if not conv.transposed:
        size = tuple(n + sum(pair) for n, pair in zip(size, conv.pads(size), strict=True))
    conv = replace(conv, padding=0, output_padding=0, padding_mode="zeros", bias=False)
    x, weight = np.ones((1, conv.in_channels, *size)), np.ones(conv.weight_shape)
    if isinstance(spec, HetSpec):
        return int(reference.het_conv(x, weight, None, replace(spec, conv=conv)).sum())
    if isinstance(spec, DeformableSpec):
        still = replace(spec, conv=conv)
        offset = np.zeros(still.offset_shape(size))
        mask = np.ones(still.mask_shape(size)) if still.modulated else None
        return int(reference.deform_conv(x, offset, weight, None, still, mask).sum())
    return int(reference.conv(x, weight, None, conv).sum())


@pytest.mark.parametrize(("spec", "size"), SPECS, ids=lambda value: getattr(value, "kind", ""))
def test_macs_are_the_products_of_the_definition(spec: Spec, size: tuple[int, ...]) -> None:
    assert cw.cost(spec, input_size=size).total.macs == ones_summed(spec, size)


def random_spec(pick: random.Random) -> tuple[ConvSpec, tuple[int, ...]]:
    rank, groups = pick.randint(1, 3), pick.choice((1, 1, 2, 3))
    several = [pick.randint(1, 4) for _ in range(4 * rank)]
    transposed = pick.random() < 0.3
    spec = ConvSpec.of_rank(
        rank, groups * pick.randint(1, 3), groups * pick.randint(1, 3), several[:rank],
        stride=several[rank : 2 * rank], dilation=several[2 * rank : 3 * rank], groups=groups, transposed=transposed,
        padding=0 if transposed else [n - 1 for n in several[3 * rank :]], bias=pick.random() < 0.5,
    )  # fmt: skip
    return spec, tuple(span + pick.randint(0, 4) for span in spec.effective_kernel)


def test_macs_of_random_convolutions() -> None:
    pick = random.Random(0)
    for _ in range(150):
        spec, size = random_spec(pick)
        batch = pick.randint(1, 3)
        found = cw.cost(spec, input_size=size, batch=batch)
        assert found.total.macs == batch * ones_summed(spec, size), (spec, size)
        outputs = batch * spec.out_channels * prod(spec.output_size(size))
        assert found.total.elementwise == spec.bias * outputs
        assert found.total.bytes_activations == 4 * outputs
        assert found.total.bytes_read == 4 * batch * spec.in_channels * prod(size)
        assert found.total.bytes_weights == 4 * spec.parameters


def small_network() -> Graph:
    """A convolution with batch norm, activation and pool, a residual, and a classifier."""
    net = Assembly("small", (3, 8, 8), seed=0)
    x = net.relu(net.batch_norm("bn", net.conv("conv", net.input, 4, 3, padding=1, bias=True)))
    x = net.add(x, net.conv("pointwise", x, 4, 1), "add")
    x = net.max_pool(x, 2, 2, name="pool")
    return net.finish(net.linear("fc", net.flatten(net.global_average_pool(x, "mean")), 5))


def test_every_figure_of_a_small_network_by_hand() -> None:
    found = cw.cost(small_network())
    plane, image = 4 * 8 * 8, 3 * 8 * 8  # elements of an activation, and of the input
    rows = {
        # parameters, buffers, MACs, elementwise, bytes of weights, read, written
        "conv": (112, 0, 64 * 9 * 3 * 4, plane, 448, 4 * image, 4 * plane),
        "bn": (8, 8, 0, 2 * plane, 64, 4 * plane, 4 * plane),
        "relu": (0, 0, 0, plane, 0, 4 * plane, 4 * plane),
        "pointwise": (16, 0, 64 * 16, 0, 64, 4 * plane, 4 * plane),
        "add": (0, 0, 0, plane, 0, 8 * plane, 4 * plane),
        "pool": (0, 0, 0, 4 * plane // 4, 0, 4 * plane, plane),
        "mean": (0, 0, 0, plane // 4, 0, plane, 16),
        "fc": (25, 0, 20, 5, 100, 16, 20),
    }
    assert [layer.name for layer in found.layers] == list(rows)
    for name, expected in rows.items():
        layer = found[name]
        figures = (layer.parameters, layer.buffers, layer.macs, layer.elementwise, layer.bytes_weights)
        assert (*figures, layer.bytes_read, layer.bytes_activations) == expected, name
        assert layer.flops == 2 * layer.macs
        assert layer.bytes_moved == layer.bytes_weights + layer.bytes_read + layer.bytes_activations
        assert layer.intensity == pytest.approx(layer.flops / layer.bytes_moved)
    total = found.total
    columns = [sum(column) for column in zip(*rows.values(), strict=True)]
    figures = (total.parameters, total.buffers, total.macs, total.elementwise, total.bytes_weights)
    assert (*figures, total.bytes_read, total.bytes_activations) == tuple(columns)
    # The addition is where most is alive: both operands and the sum; the pointwise layer needs its input afterwards.
    assert total.bytes_peak == found["add"].bytes_peak == 3 * 4 * plane
    assert found["conv"].bytes_peak == 4 * (image + plane)
    assert found["fc"].bytes_peak == 16 + 20
    assert {layer.name: layer.kind for layer in found.layers} == {
        "conv": "standard", "bn": "normalisation", "relu": "activation", "pointwise": "pointwise", "add": "arithmetic",
        "pool": "pooling", "mean": "pooling", "fc": "fully connected",
    }  # fmt: skip
    assert sum(found.share(layer, "macs") for layer in found.layers) == pytest.approx(1)
    assert found["pool"].receptive_field is not None
    assert found["pool"].receptive_field.size == (4, 4)


def test_the_same_figures_for_a_graph_its_file_and_its_model(tmp_path: Path) -> None:
    graph = small_network()
    path = tmp_path / "small.onnx"
    graph.save(path)
    expected = cw.cost(graph)
    assert cw.cost(path) == cw.cost(str(path)) == cw.cost(cw.load(path)) == expected
    assert cw.cost(path, batch=3).total.macs == 3 * expected.total.macs
    with cw.compile(path, threads=1) as model:
        model(np.zeros((1, 3, 8, 8), np.float32))  # packs the weights, which lose their own form
        assert cw.cost(model) == expected
        with pickle.loads(pickle.dumps(model)) as copy:
            assert cw.cost(copy) == expected


@pytest.mark.parametrize("spec", [spec for spec, _ in SPECS if isinstance(spec, ConvSpec)], ids=lambda spec: spec.kind)
def test_a_layer_of_a_network_costs_what_its_specification_does(spec: ConvSpec, tmp_path: Path) -> None:
    size = dict(SPECS)[spec]
    pads = spec.pads(size)
    attributes = {
        "strides": spec.stride, "dilations": spec.dilation, "group": spec.groups,
        "pads": [*(low for low, _ in pads), *(high for _, high in pads)],
    }  # fmt: skip
    constants = {"w": np.ones(spec.weight_shape, np.float32), "b": np.ones(spec.out_channels, np.float32)}
    names = "x w b" if spec.bias else "x w"
    conv = node("ConvTranspose" if spec.transposed else "Conv", names, "y", **attributes)
    given = {name: constants[name] for name in names.split()[1:]}
    (layer,) = cw.cost(read(model([conv], {"x": (1, spec.in_channels, *size)}, given)))
    (described,) = cw.cost(spec, shapes=(1, spec.in_channels, *size))
    assert layer.figures() == described.figures()
    assert (layer.kind, layer.input_shape, layer.output_shape) == (
        described.kind, described.input_shape, described.output_shape,
    )  # fmt: skip
    assert layer.receptive_field == described.receptive_field


def test_calling_twice_gives_the_same_and_leaves_the_graph_alone() -> None:
    graph = small_network()
    before = [str(node.__getstate__()) for node in graph.nodes], dict(graph.constants), list(graph.outputs)
    assert cw.cost(graph).to_dict() == cw.cost(graph).to_dict()
    after = [str(node.__getstate__()) for node in graph.nodes], dict(graph.constants), list(graph.outputs)
    assert before[0] == after[0]
    assert before[2] == after[2]
    assert all(before[1][name] is after[1][name] for name in (*before[1], *after[1]))


def test_published_numbers_of_vgg16() -> None:
    """arXiv 1409.1556, table 2: 138 million parameters; 15.3 G are the convolutions alone."""
    found = cw.cost(cw.networks.vgg16(seed=None))
    assert (found.total.parameters, found.total.macs) == (138_357_544, 15_470_264_320)
    kinds = {group.name: group for group in found.groups("kind")}
    assert kinds["standard"].macs == 15_346_630_656


def test_memory_is_that_of_the_buffers_alive() -> None:
    """Against a simulation that knows nothing of intervals: at each node, what is there and still to be used."""
    pick = random.Random(1)
    for _ in range(30):
        names = ["x"]
        nodes = []
        for number in range(pick.randint(1, 12)):
            read_by = [pick.choice(names) for _ in range(pick.randint(1, 3))]
            if pick.random() < 0.2:
                nodes.append(node("Identity", read_by[0], f"v{number}"))
            else:
                nodes.append(node("Sum", " ".join(read_by), f"v{number}"))
            names.append(f"v{number}")
        nodes.append(node("Sum", names[-1], "y"))
        outputs = list(dict.fromkeys(["y", pick.choice(names[1:])]))
        graph = read(model(nodes, {"x": (5,)}, outputs=outputs))
        found = cw.cost(graph)
        same = {"x": "x"}
        for one_node in graph.nodes:
            source = one_node.inputs[0]
            same[one_node.outputs[0]] = same[source] if one_node.op == "Identity" else one_node.outputs[0]
        running = [layer.output for layer in found]
        for place, layer in enumerate(found):
            there = {same["x"], *(running[: place + 1])}
            later = {same[name] for other in found.layers[place:] for name in other.inputs}
            kept = {same[name] for name in outputs}
            alive = {name for name in there if name in later | kept} | {layer.output}
            assert layer.bytes_peak == 20 * len(alive), (place, nodes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cw.cost(ConvSpec(3, 4, (3, 3))), "needs its input_size, 2 ints"),
        (lambda: cw.cost(ConvSpec(3, 4, (3, 3)), input_size=(5,)), r"input_size \(5,\) must have 2 entries"),
        (lambda: cw.cost(ConvSpec(3, 4, (3, 3)), input_size=(2, 5)), r"more than the padded input \(2, 5\)"),
        (lambda: cw.cost(ConvSpec(3, 4, (3, 3)), shapes=(1, 4, 5, 5)), r"shapes \(1, 4, 5, 5\) must be \(N, 3, H, W\)"),
        (lambda: cw.cost(ConvSpec(3, 4, (3, 3)), input_size=(5, 5), batch=0), "batch must be at least 1, got 0"),
        (lambda: cw.cost(ConvSpec(3, 4, (3, 3)), input_size=(5, 5), dtype="int8"), "floating type, got 'int8'"),
        (lambda: cw.cost(small_network(), by="colour"), "by must be one of .*, got 'colour'"),
        (lambda: cw.cost(small_network(), sort="speed"), "sort must be one of .*, got 'speed'"),
        (lambda: cw.cost(small_network(), by="block", depth=0), "depth must be a positive int, got 0"),
        (lambda: cw.cost(small_network(), shapes={"z": (1, 3, 8, 8)}), "no input named 'z'"),
        (lambda: cw.cost(small_network(), shapes=(1, 4, 8, 8)), r"shape \(1, 4, 8, 8\), the graph declares"),
        (lambda: cw.cost(small_network(), input_size=(8, 8)), r"input_size \(8, 8\) is for a convolution"),
        (lambda: cw.cost(7), "got int"),  # type: ignore[arg-type]
        (lambda: cw.cost("no such file.onnx"), "no such file"),
        (lambda: cw.cost(small_network())["convolution"], "no layer 'convolution'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(cw.ConvwrightError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
