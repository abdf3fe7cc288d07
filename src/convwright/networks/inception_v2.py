"""Inception v2, or BN-Inception (Ioffe and Szegedy, arXiv 1502.03167, figure 5).

Layers have the names of the authors' network in Caffe, `inception_3a_1x1`; the widths are those of its public
weights, where the last two pools before a stride keep 128 channels and not 96: 608 channels in place of 576.
"""

from __future__ import annotations

from convwright.graph import Graph
from convwright.networks.assembly import Assembly, Tensor
from convwright.networks.blocks import conv_bn

_MODULES = {
    "3a": (64, (64, 64), (64, 96, 96), 32),
    "3b": (64, (64, 96), (64, 96, 96), 64),
    "3c": (0, (128, 160), (64, 96, 96), 0),
    "4a": (224, (64, 96), (96, 128, 128), 128),
    "4b": (192, (96, 128), (96, 128, 128), 128),
    "4c": (160, (128, 160), (128, 160, 160), 128),
    "4d": (96, (128, 192), (160, 192, 192), 128),
    "4e": (0, (128, 192), (192, 256, 256), 0),
    "5a": (352, (192, 320), (160, 224, 224), 128),
    "5b": (352, (192, 320), (192, 224, 224), 128),
}
"""Channels of 1 x 1, of 3 x 3 with its reduction, of the double 3 x 3 with its, and of the pool's projection; modules
without the first and the last have stride 2."""


def inception_v2(*, classes: int = 1000, size: int = 224, seed: int | None = 0) -> Graph:
    """BN-Inception with weights; `size`: height and width of the input. Its convolutions have biases."""
    net = Assembly("inception_v2", (3, size, size), seed=seed)
    x = _conv(net, net.input, "conv1_7x7_s2", 64, 7, stride=2, padding=3)
    x = net.max_pool(x, 3, 2, ceil=True, name="pool1_3x3_s2")
    x = _conv(net, x, "conv2_3x3_reduce", 64, 1)
    x = _conv(net, x, "conv2_3x3", 192, 3, padding=1)
    x = net.max_pool(x, 3, 2, ceil=True, name="pool2_3x3_s2")
    for name, widths in _MODULES.items():
        x = _module(net, x, f"inception_{name}", *widths, max_pool=name == "5b")
    return net.finish(net.linear("last_linear", net.flatten(net.global_average_pool(x, "global_pool")), classes))


def _module(
    net: Assembly, x: Tensor, name: str, single: int, middle: tuple[int, int], double: tuple[int, int, int],
    projection: int, *, max_pool: bool,
) -> Tensor:  # fmt: skip
    stride = 1 if projection else 2
    y = _conv(net, x, f"{name}_3x3_reduce", middle[0], 1)
    parts = [_conv(net, y, f"{name}_3x3", middle[1], 3, stride=stride, padding=1)]
    y = _conv(net, x, f"{name}_double_3x3_reduce", double[0], 1)
    y = _conv(net, y, f"{name}_double_3x3_1", double[1], 3, padding=1)
    parts.append(_conv(net, y, f"{name}_double_3x3_2", double[2], 3, stride=stride, padding=1))
    if not projection:
        return net.concat([*parts, net.max_pool(x, 3, 2, ceil=True, name=f"{name}_pool")], f"{name}_output")
    pool = net.max_pool if max_pool else net.average_pool
    projected = _conv(net, pool(x, 3, 1, padding=1, name=f"{name}_pool"), f"{name}_pool_proj", projection, 1)
    return net.concat([_conv(net, x, f"{name}_1x1", single, 1), *parts, projected], f"{name}_output")


def _conv(net: Assembly, x: Tensor, name: str, width: int, kernel: int, *, stride: int = 1, padding: int = 0) -> Tensor:
    return conv_bn(net, x, (name, f"{name}_bn"), width, kernel, stride=stride, padding=padding, bias=True)
