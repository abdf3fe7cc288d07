"""MobileNet v1 (Howard et al., arXiv 1704.04861, table 1), with timm's names of layers (`mobilenetv1_100`)."""

from __future__ import annotations

from convwright.graph import Graph
from convwright.networks.assembly import Assembly, Tensor
from convwright.networks.light_blocks import depthwise_separable, scaled

_STAGES = (((64, 1),), ((128, 2), (128, 1)), ((256, 2), (256, 1)), ((512, 2), *((512, 1),) * 5), ((1024, 2), (1024, 1)))
"""By stage, channels out and stride of each block."""


def mobilenet_v1(
    *, width: float = 1.0, standard: bool = False, classes: int = 1000, size: int = 224, seed: int | None = 0
) -> Graph:
    """MobileNet v1.

    - `width`: what the numbers of channels are multiplied with; they are rounded to multiples of 8.
    - `standard`: 3 x 3 convolutions in place of depthwise separable ones, which is what the paper's table 4 compares.
    - `size`: height and width of the input.
    """
    net = Assembly("mobilenet_v1", (3, size, size), seed=seed)
    stem = scaled("mobilenet_v1", 32, width)
    x = net.relu6(net.batch_norm("bn1", net.conv("conv_stem", net.input, stem, 3, stride=2, padding=1)))
    with net.scope("blocks"):
        for stage, blocks in enumerate(_STAGES):
            for index, (channels, stride) in enumerate(blocks):
                with net.scope(f"{stage}.{index}"):
                    x = _block(net, x, scaled("mobilenet_v1", channels, width), stride, standard)
    x = net.flatten(net.global_average_pool(x))
    return net.finish(net.linear("classifier", x, classes))


def _block(net: Assembly, x: Tensor, channels: int, stride: int, standard: bool) -> Tensor:
    if standard:
        return net.relu6(net.batch_norm("bn", net.conv("conv", x, channels, 3, stride=stride, padding=1)))
    return depthwise_separable(net, x, channels, activation=net.relu6, stride=stride)
