"""VGG16 of heterogeneous convolutions for small images (Singh et al., HetConv, arXiv 1903.04120, table 1)."""

from __future__ import annotations

from convwright.graph import Graph
from convwright.networks.assembly import Assembly
from convwright.networks.light_blocks import het_conv

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions before each pool."""


def hetconv_vgg16(*, part: int = 4, classes: int = 10, size: int = 32, seed: int | None = 0) -> Graph:
    """VGG16 with batch norm whose convolutions, after the first, have full kernels on one channel in `part`.

    - `part`: the paper's P, from 1, which makes the standard network, to 64.
    - `size`: height and width of the input, a multiple of 32.
    """
    net = Assembly("hetconv_vgg16", (3, size, size), seed=seed)
    x = net.input
    with net.scope("features"):
        index = 0
        for channels, convolutions in _STAGES:
            for _ in range(convolutions):
                # The first layer's three channels are too few to be thinned out.
                x = het_conv(net, x, str(index), channels, 3, part=part if index else 1)
                x = net.relu(net.batch_norm(str(index + 1), x), str(index + 2))
                index += 3
            x = net.max_pool(x, 2, 2, name=str(index))
            index += 1
    x = net.flatten(net.global_average_pool(x))
    x = net.relu(net.linear("classifier.0", x, 512), "classifier.1")
    return net.finish(net.linear("classifier.2", x, classes))
