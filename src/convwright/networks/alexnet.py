"""AlexNet: torchvision's, of one tower, and the original of two, with the names that each has."""

from __future__ import annotations

from convwright.errors import ConvwrightError
from convwright.graph import Graph
from convwright.networks.assembly import Assembly, Tensor
from convwright.networks.blocks import grouped


def alexnet(variant: str = "one-tower", *, classes: int = 1000, size: int | None = None, seed: int | None = 0) -> Graph:
    """AlexNet with weights.

    - `variant`: "one-tower", torchvision's (Krizhevsky, arXiv 1404.5997); "grouped", the network of 2012 (Krizhevsky,
      Sutskever and Hinton, figure 2), whose layers 2, 4 and 5 are in two groups; "ungrouped", the same without groups.
    - `size`: height and width of the input, 224 for the first and 227 for the others by default. The last pool has to
      put out a multiple of 6.

    Raises ConvwrightError for another `variant`.
    """
    if variant == "one-tower":
        return _one_tower(classes, size or 224, seed)
    if variant not in ("grouped", "ungrouped"):
        raise ConvwrightError(f"alexnet: variant must be 'one-tower', 'grouped' or 'ungrouped', got {variant!r}")
    return _original(2 if variant == "grouped" else 1, classes, size or 227, seed)


def _one_tower(classes: int, size: int, seed: int | None) -> Graph:
    net = Assembly("alexnet", (3, size, size), seed=seed)
    with net.scope("features"):
        x = net.relu(net.conv("0", net.input, 64, 11, stride=4, padding=2, bias=True), "1")
        x = net.max_pool(x, 3, 2, name="2")
        x = net.relu(net.conv("3", x, 192, 5, padding=2, bias=True), "4")
        x = net.max_pool(x, 3, 2, name="5")
        for index, width in (6, 384), (8, 256), (10, 256):
            x = net.relu(net.conv(str(index), x, width, 3, padding=1, bias=True), str(index + 1))
        x = net.max_pool(x, 3, 2, name="12")
    x = net.flatten(net.adaptive_average_pool(x, (6, 6), "avgpool"))
    with net.scope("classifier"):
        x = net.relu(net.linear("1", x, 4096), "2")
        x = net.relu(net.linear("4", x, 4096), "5")
        return net.finish(net.linear("6", x, classes))


def _original(groups: int, classes: int, size: int, seed: int | None) -> Graph:
    net = Assembly("alexnet_grouped" if groups > 1 else "alexnet_ungrouped", (3, size, size), seed=seed)
    x = net.relu(net.conv("conv1", net.input, 96, 11, stride=4, bias=True))
    x = net.max_pool(_normalised(net, x), 3, 2)
    x = grouped(net, x, "conv2", 256, 5, padding=2, groups=groups)
    x = net.max_pool(_normalised(net, x), 3, 2)
    x = net.relu(net.conv("conv3", x, 384, 3, padding=1, bias=True))
    x = grouped(net, x, "conv4", 384, 3, padding=1, groups=groups)
    x = grouped(net, x, "conv5", 256, 3, padding=1, groups=groups)
    x = net.flatten(net.adaptive_average_pool(net.max_pool(x, 3, 2), (6, 6)))
    x = net.relu(net.linear("fc6", x, 4096))
    x = net.relu(net.linear("fc7", x, 4096))
    return net.finish(net.linear("fc8", x, classes))


def _normalised(net: Assembly, x: Tensor) -> Tensor:
    """Local response normalisation with the paper's constants (section 3.3): n = 5, k = 2, alpha = 1e-4, beta = 0.75.

    ONNX divides its alpha by n, the paper does not.
    """
    result: Tensor = net.node("LRN", [x], size=5, bias=2.0, alpha=5e-4, beta=0.75)
    return result
