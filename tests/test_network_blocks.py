"""Each block of the classic networks costs what its formula says.

A block is built alone, on one pixel, so that its multiply-accumulates are those at one output position.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

import convwright as cw
from convwright.networks import blocks
from convwright.networks.assembly import Assembly, Tensor

Block = Callable[[Assembly, Tensor], Tensor]


def macs(in_channels: int, block: Block) -> tuple[int, int]:
    """Of the block at one output position, and the channels that it puts out."""
    net = Assembly("block", (in_channels, 1, 1), seed=None)
    result = block(net, net.input)
    assert result.size == (1, 1)
    return cw.cost(net.finish(result)).total.macs, result.channels


@pytest.mark.parametrize(("m", "n", "k", "g"), [(8, 12, 3, 4), (96, 256, 5, 2), (6, 6, 1, 6), (3, 5, 11, 1)])
def test_grouped_is_k_k_m_over_g_n(m: int, n: int, k: int, g: int) -> None:
    found = macs(m, lambda net, x: blocks.grouped(net, x, "conv", n, k, padding=k // 2, groups=g))
    assert found == (k * k * (m // g) * n, n)


@pytest.mark.parametrize(("n", "small", "count"), [(16, 3, 2), (7, 3, 3), (1, 5, 2)])
def test_a_stack_is_s_s_for_each_of_its_kernels(n: int, small: int, count: int) -> None:
    names = [(f"conv{index}", f"relu{index}") for index in range(count)]
    assert macs(n, lambda net, x: blocks.stack(net, x, names, n, small)) == (count * small * small * n * n, n)


@pytest.mark.parametrize(("small", "count", "big"), [(3, 2, 5), (3, 3, 7), (5, 2, 9)])
def test_a_stack_sees_what_one_big_kernel_sees(small: int, count: int, big: int) -> None:
    net = Assembly("stack", (1, 32, 32), seed=None)
    names = [(f"conv{index}", f"bn{index}", f"relu{index}") for index in range(count)]
    graph = net.finish(blocks.stack(net, net.input, names, 1, small))
    fields = cw.receptive_fields(graph, {"x": (1, 1, 32, 32)})
    assert fields[graph.outputs[0]].size == (big, big)


@pytest.mark.parametrize("tall_first", [False, True])
@pytest.mark.parametrize(("n", "k"), [(16, 7), (5, 3), (1, 11)])
def test_factorised_is_k_1_plus_1_k(n: int, k: int, tall_first: bool) -> None:
    names = [("flat", "flat_bn"), ("tall", "tall_bn")]
    found = macs(n, lambda net, x: blocks.factorised(net, x, names, (n, n), k, tall_first=tall_first))
    assert found == ((k * 1 + 1 * k) * n * n, n)


@pytest.mark.parametrize(("m", "n", "t", "tenths"), [(96, 128, 8, 5), (512, 512, 8, 5), (10, 40, 4, 3), (3, 10, 10, 9)])
def test_fire(m: int, n: int, t: int, tenths: int) -> None:
    """The share p of 3 x 3 is `tenths` / 10."""
    wide = n * tenths // 10
    narrow = n - wide
    found = macs(m, lambda net, x: blocks.fire(net, x, n // t, narrow, wide))
    assert found == (m * (n // t) + (n // t) * narrow + 3 * 3 * (n // t) * wide, n)


@pytest.mark.parametrize(("n", "t"), [(256, 4), (64, 8), (2, 2), (7, 1)])
@pytest.mark.parametrize("stride_first", [False, True])
def test_bottleneck(n: int, t: int, stride_first: bool) -> None:
    narrow = n // t
    found = macs(n, lambda net, x: blocks.bottleneck(net, x, n, narrow=narrow, stride_first=stride_first))
    assert found == (n * narrow + 3 * 3 * narrow * narrow + narrow * n, n)


def test_a_bottleneck_is_of_a_quarter_of_its_channels() -> None:
    assert macs(256, lambda net, x: blocks.bottleneck(net, x, 256)) == (256 * 64 + 9 * 64 * 64 + 64 * 256, 256)


@pytest.mark.parametrize(("m", "n"), [(64, 256), (3, 8)])
def test_a_shortcut_whose_channels_differ_adds_m_n(m: int, n: int) -> None:
    narrow = n // 4
    found = macs(m, lambda net, x: blocks.bottleneck(net, x, n))
    assert found == (m * narrow + 3 * 3 * narrow * narrow + narrow * n + m * n, n)


@pytest.mark.parametrize(("n", "g"), [(256, 32), (64, 32), (24, 3), (12, 6)])
def test_resnext(n: int, g: int) -> None:
    narrow = n // 2
    found = macs(n, lambda net, x: blocks.resnext(net, x, n, groups=g))
    assert found == (n * narrow + 3 * 3 * (narrow // g) * narrow + narrow * n, n)


def test_resnext_is_in_32_groups() -> None:
    assert macs(256, lambda net, x: blocks.resnext(net, x, 256)) == (256 * 128 + 9 * 4 * 128 + 128 * 256, 256)


@pytest.mark.parametrize(("m", "n", "k"), [(64, 128, 3), (5, 1, 5), (1, 7, 3)])
def test_separable_is_depthwise_then_pointwise(m: int, n: int, k: int) -> None:
    assert macs(m, lambda net, x: blocks.separable(net, x, n, k)) == (k * k * m + m * n, n)


@pytest.mark.parametrize(("m", "n"), [(64, 64), (64, 128)])
def test_basic(m: int, n: int) -> None:
    found = macs(m, lambda net, x: blocks.basic(net, x, n))
    assert found == (9 * m * n + 9 * n * n + (m * n if m != n else 0), n)


@pytest.mark.parametrize(("stride_first", "fewer"), [(False, 1), (True, 4)])
def test_the_stride_of_a_bottleneck_is_where_it_is_asked_for(stride_first: bool, fewer: int) -> None:
    net = Assembly("block", (8, 4, 4), seed=None)
    graph = net.finish(blocks.bottleneck(net, net.input, 16, stride=2, stride_first=stride_first))
    table = cw.cost(graph)
    assert table["conv1"].macs == 16 // fewer * 8 * 4
    assert table["conv2"].macs == 4 * 9 * 4 * 4
    assert table["downsample.0"].output_shape == table["conv3"].output_shape == (1, 16, 2, 2)
