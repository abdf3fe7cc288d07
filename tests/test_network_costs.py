"""The published costs of the classic networks, each in the convention of the paper that it comes from.

Exact figures are integer arithmetic over convolutions and fully connected layers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

import convwright as cw
from convwright.cost import Cost


@cache
def cost(name: str, **options: Any) -> Cost:
    return cw.cost(cw.networks.build(name, seed=None, **options))


def convolution_macs(table: Cost) -> int:
    return sum(layer.macs for layer in table.layers if layer.op == "Conv")


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [
        ("alexnet", 714_188_480, 61_100_840),
        ("alexnet_grouped", 724_406_816, 60_965_224),
        ("alexnet_ungrouped", 1_135_256_096, 62_378_344),
        ("vgg16", 15_470_264_320, 138_357_544),
        ("squeezenet1_0", 818_924_576, 1_248_424),
        ("squeezenet1_1", 349_151_936, 1_235_496),
        ("resnet50_v1", 3_857_973_248, 25_557_032),
        ("resnet50", 4_089_184_256, 25_557_032),
        ("resnext50_32x4d", 4_230_479_872, 25_028_904),
        ("xception", 8_357_403_496, 22_855_952),
    ],
)
def test_exact(name: str, macs: int, parameters: int) -> None:
    total = cost(name).total
    assert (total.macs, total.flops, total.parameters) == (macs, 2 * macs, parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # What torchvision's documentation says of its weights.
        ("vgg11", 132_863_336),
        ("vgg11_bn", 132_868_840),
        ("vgg13", 133_047_848),
        ("vgg13_bn", 133_053_736),
        ("vgg16_bn", 138_365_992),
        ("vgg19", 143_667_240),
        ("vgg19_bn", 143_678_248),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext101_32x8d", 88_791_336),
        ("inception_v2", 11_295_240),
        ("inception_v3", 23_834_568),
    ],
)
def test_exact_parameters(name: str, parameters: int) -> None:
    assert cost(name).total.parameters == parameters


def test_the_auxiliary_head_of_inception_v3_is_an_option() -> None:
    assert cost("inception_v3", aux=True).total.parameters == 27_161_264


@pytest.mark.parametrize(
    ("name", "millions"), [("alexnet", 714), ("squeezenet1_0", 819), ("squeezenet1_1", 349), ("inception_v3", 5713)]
)
def test_macs_to_the_million(name: str, millions: int) -> None:
    assert round(cost(name).total.macs / 1e6) == millions


def test_alexnet_has_720_million_macs_and_60_million_parameters() -> None:
    """To two digits, as MobileNet's paper has them (arXiv 1704.04861, table 9), parameters cut, not rounded."""
    total = cost("alexnet_grouped").total
    assert round(total.macs, -7) == 720_000_000
    assert total.parameters // 10**6 == 60


def test_vgg16_counts_15300_million_macs_in_convolutions_alone() -> None:
    """MobileNet's paper (arXiv 1704.04861, table 8) leaves the fully connected layers out; with them it is 15.47 G."""
    assert convolution_macs(cost("vgg16")) == 15_346_630_656
    assert round(convolution_macs(cost("vgg16")), -8) == 15_300_000_000
    assert round(cost("vgg16").total.macs / 1e9, 2) == 15.47


@pytest.mark.parametrize(
    ("depth", "published"), [("18", 1.8), ("34", 3.6), ("50_v1", 3.8), ("101_v1", 7.6), ("152_v1", 11.3)]
)
def test_resnets_cost_what_the_paper_says(depth: str, published: float) -> None:
    """Table 1 of arXiv 1512.03385, whose "FLOPs" are MACs; some of its figures are rounded and some cut."""
    billions = cost(f"resnet{depth}").total.macs / 1e9
    assert published in (round(billions, 1), int(10 * billions) / 10)


def test_resnext_costs_little_more_than_resnet_of_its_depth() -> None:
    """4.2 and 4.1 G in table 1 of arXiv 1611.05431; both have the stride on the 3 x 3. Parameters 25.0 and 25.5 M."""
    assert round(cost("resnext50_32x4d").total.macs / 1e9, 1) == 4.2
    assert round(cost("resnet50").total.macs / 1e9, 1) == 4.1
    assert round(cost("resnext50_32x4d").total.parameters / 1e6, 1) == 25.0
    assert int(cost("resnet50").total.parameters / 1e5) / 10 == 25.5


def test_inception_v3_is_of_5_billion_macs_and_less_than_25_million_parameters() -> None:
    """Section 10 of arXiv 1512.00567 has billions cut to whole ones, without the auxiliary head."""
    total = cost("inception_v3").total
    assert total.macs // 10**9 == 5
    assert total.parameters < 25e6


def test_inception_v2_counts_all_but_pools() -> None:
    """2.05 G are MACs, biases, batch norms and ReLUs together; MACs alone are 2.03 G."""
    table = cost("inception_v2")
    pointwise = sum(layer.elementwise for layer in table.layers if "Pool" not in layer.op)
    assert round((table.total.macs + pointwise) / 1e9, 2) == 2.05
    assert round(table.total.macs / 1e9, 2) == 2.03
    assert round(table.total.parameters / 1e6, 1) == 11.3


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 195),
        ("vgg16", 212),
        ("inception_v2", 699),
        ("inception_v3", 1311),
        ("resnet50_v1", 483),
    ],
)
def test_receptive_fields_are_the_published_ones(name: str, size: int) -> None:
    """Of the last feature map, before global pools and fully connected layers."""
    field = cost(name).field
    assert field is not None
    assert [axis.size for axis in field] == [size, size]
    assert [axis.stride for axis in field] == [32, 32]


def test_everything_in_every_network_is_counted() -> None:
    for name in cw.networks.TABLE:
        assert cost(name).not_counted == (), name


LARGE = ("alexnet", "vgg", "resn", "inception", "xception")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name.startswith(LARGE) else []) for name in cw.networks.TABLE],
)
def test_the_file_of_a_network_costs_the_same(name: str, tmp_path: Path) -> None:
    cw.networks.build(name, seed=None).save(tmp_path / "network.onnx")
    assert cw.cost(tmp_path / "network.onnx") == cost(name)
