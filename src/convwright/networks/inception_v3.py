"""Inception v3 (Szegedy et al., arXiv 1512.00567, table 1), with torchvision's names of layers."""

from __future__ import annotations

from typing import Any

from convwright.graph import Graph
from convwright.networks.assembly import Assembly, Tensor
from convwright.networks.blocks import conv_bn, factorised

_EPSILON = 1e-3
_HEAD = "AuxLogits"
RENAMES = ((rf"^{_HEAD}\..*", ""),)


def inception_v3(*, aux: bool = False, classes: int = 1000, size: int = 299, seed: int | None = 0) -> Graph:
    """Inception v3 with weights.

    - `aux`: whether the auxiliary head that serves training is there, as a second output.
    - `size`: height and width of the input; with `aux`, 299, or another that leaves 17 x 17 before the head.
    """
    net = Assembly("inception_v3", (3, size, size), seed=seed)
    x = _conv(net, net.input, "Conv2d_1a_3x3", 32, 3, stride=2)
    x = _conv(net, x, "Conv2d_2a_3x3", 32, 3)
    x = _conv(net, x, "Conv2d_2b_3x3", 64, 3, padding=1)
    x = net.max_pool(x, 3, 2, name="maxpool1")
    x = _conv(net, x, "Conv2d_3b_1x1", 80, 1)
    x = _conv(net, x, "Conv2d_4a_3x3", 192, 3)
    x = net.max_pool(x, 3, 2, name="maxpool2")
    for name, width in ("5b", 32), ("5c", 64), ("5d", 64):
        with net.scope(f"Mixed_{name}"):
            x = _figure_5(net, x, width)
    with net.scope("Mixed_6a"):
        x = _to_17(net, x)
    for name, width in ("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192):
        with net.scope(f"Mixed_{name}"):
            x = _figure_6(net, x, width)
    outputs = [_head(net, x, classes)] if aux else []
    with net.scope("Mixed_7a"):
        x = _to_8(net, x)
    for name in "7b", "7c":
        with net.scope(f"Mixed_{name}"):
            x = _figure_7(net, x)
    logits = net.linear("fc", net.flatten(net.global_average_pool(x, "avgpool")), classes)
    return net.finish(logits, *outputs)


def _figure_5(net: Assembly, x: Tensor, projection: int) -> Tensor:
    """5 x 5 as a stack of two 3 x 3 (the paper's figure 5), and the 5 x 5 itself, which the public network keeps."""
    single = _conv(net, x, "branch1x1", 64, 1)
    five = _conv(net, _conv(net, x, "branch5x5_1", 48, 1), "branch5x5_2", 64, 5, padding=2)
    y = _conv(net, _conv(net, x, "branch3x3dbl_1", 64, 1), "branch3x3dbl_2", 96, 3, padding=1)
    double = _conv(net, y, "branch3x3dbl_3", 96, 3, padding=1)
    return net.concat([single, five, double, _pooled(net, x, projection)])


def _to_17(net: Assembly, x: Tensor) -> Tensor:
    """Half the size without a bottleneck (the paper's figure 10)."""
    single = _conv(net, x, "branch3x3", 384, 3, stride=2)
    y = _conv(net, _conv(net, x, "branch3x3dbl_1", 64, 1), "branch3x3dbl_2", 96, 3, padding=1)
    return net.concat([single, _conv(net, y, "branch3x3dbl_3", 96, 3, stride=2), net.max_pool(x, 3, 2)])


def _figure_6(net: Assembly, x: Tensor, width: int) -> Tensor:
    """7 x 7 as 1 x 7 and 7 x 1, once and twice (the paper's figure 6)."""
    single = _conv(net, x, "branch1x1", 192, 1)
    y = _conv(net, x, "branch7x7_1", width, 1)
    once = factorised(net, y, [_names("branch7x7_2"), _names("branch7x7_3")], (width, 192), 7)
    y = _conv(net, x, "branch7x7dbl_1", width, 1)
    pairs = [_names(f"branch7x7dbl_{index}") for index in range(2, 6)]
    y = factorised(net, y, pairs[:2], (width, width), 7, tall_first=True)
    twice = factorised(net, y, pairs[2:], (width, 192), 7, tall_first=True)
    return net.concat([single, once, twice, _pooled(net, x, 192)])


def _to_8(net: Assembly, x: Tensor) -> Tensor:
    single = _conv(net, _conv(net, x, "branch3x3_1", 192, 1), "branch3x3_2", 320, 3, stride=2)
    y = _conv(net, x, "branch7x7x3_1", 192, 1)
    y = factorised(net, y, [_names("branch7x7x3_2"), _names("branch7x7x3_3")], (192, 192), 7)
    return net.concat([single, _conv(net, y, "branch7x7x3_4", 192, 3, stride=2), net.max_pool(x, 3, 2)])


def _figure_7(net: Assembly, x: Tensor) -> Tensor:
    """1 x 3 and 3 x 1 side by side (the paper's figure 7)."""
    single = _conv(net, x, "branch1x1", 320, 1)
    once = _side_by_side(net, _conv(net, x, "branch3x3_1", 384, 1), "branch3x3_2")
    y = _conv(net, _conv(net, x, "branch3x3dbl_1", 448, 1), "branch3x3dbl_2", 384, 3, padding=1)
    return net.concat([single, once, _side_by_side(net, y, "branch3x3dbl_3"), _pooled(net, x, 192)])


def _side_by_side(net: Assembly, x: Tensor, name: str) -> Tensor:
    flat = _conv(net, x, f"{name}a", 384, (1, 3), padding=(0, 1))
    return net.concat([flat, _conv(net, x, f"{name}b", 384, (3, 1), padding=(1, 0))])


def _head(net: Assembly, x: Tensor, classes: int) -> Tensor:
    with net.scope(_HEAD):
        x = net.average_pool(x, 5, 3)
        x = _conv(net, _conv(net, x, "conv0", 128, 1), "conv1", 768, 5)
        return net.linear("fc", net.flatten(net.global_average_pool(x)), classes)


def _pooled(net: Assembly, x: Tensor, projection: int) -> Tensor:
    return _conv(net, net.average_pool(x, 3, 1, padding=1), "branch_pool", projection, 1)


def _conv(net: Assembly, x: Tensor, name: str, width: int, kernel: int | tuple[int, int], **options: Any) -> Tensor:
    return conv_bn(net, x, _names(name), width, kernel, epsilon=_EPSILON, **options)


def _names(name: str) -> tuple[str, str]:
    return f"{name}.conv", f"{name}.bn"
