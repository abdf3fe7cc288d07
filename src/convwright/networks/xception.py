"""Xception (Chollet, arXiv 1610.02357, figure 5), with timm's names of layers (its `legacy_xception`)."""

from __future__ import annotations

from convwright.graph import Graph
from convwright.networks.assembly import Assembly, Tensor
from convwright.networks.blocks import conv_bn, separable


def xception(*, classes: int = 1000, size: int = 299, seed: int | None = 0) -> Graph:
    """Xception with weights; `size`: height and width of the input."""
    net = Assembly("xception", (3, size, size), seed=seed)
    x = conv_bn(net, net.input, ("conv1", "bn1"), 32, 3, stride=2)
    x = conv_bn(net, x, ("conv2", "bn2"), 64, 3)
    entry = [(128, 128), (256, 256), (728, 728)]
    middle = [(728, 728, 728)] * 8
    for index, widths in enumerate([*entry, *middle, (728, 1024)], 1):
        with net.scope(f"block{index}"):
            x = _block(net, x, widths, down=widths not in middle, relu_first=index > 1)
    for index, width in (3, 1536), (4, 2048):
        with net.scope(f"conv{index}"):
            x = separable(net, x, width)
        x = net.relu(net.batch_norm(f"bn{index}", x))
    return net.finish(net.linear("fc", net.flatten(net.global_average_pool(x, "global_pool")), classes))


def _block(net: Assembly, x: Tensor, widths: tuple[int, ...], *, down: bool, relu_first: bool) -> Tensor:
    """Separable convolutions to `widths` channels, a ReLU before each, and a shortcut; `down` halves the size."""
    y, index = x, 0
    with net.scope("rep"):
        for position, width in enumerate(widths):
            if relu_first or position:
                y = net.relu(y, str(index))
                index += 1
            with net.scope(str(index)):
                y = separable(net, y, width)
            y = net.batch_norm(str(index + 1), y)
            index += 2
        if down:
            y = net.max_pool(y, 3, 2, padding=1, name=str(index))
    if down:
        x = conv_bn(net, x, ("skip", "skipbn"), widths[-1], 1, stride=2, relu=False)
    return net.add(y, x)
