"""VGG (Simonyan and Zisserman, arXiv 1409.1556, table 1), with torchvision's names of layers."""

from __future__ import annotations

from convwright.graph import Graph
from convwright.networks.assembly import Assembly
from convwright.networks.blocks import stack

_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
RENAMES = (
    (r"^pre_logits\.fc1\.", "classifier.0."),
    (r"^pre_logits\.fc2\.", "classifier.3."),
    (r"^head\.fc\.", "classifier.6."),
)
"""From timm's names."""
_WIDTHS = (64, 128, 256, 512, 512)


def vgg(depth: int, *, batch_norm: bool = False, classes: int = 1000, size: int = 224, seed: int | None = 0) -> Graph:
    """VGG of 11, 13, 16 or 19 layers with weights, configurations A, B, D and E of the paper's table 1.

    - `batch_norm`: whether one follows each convolution, as in torchvision's `_bn` variants.
    - `size`: height and width of the input; `size` / 32 has to be a multiple of 7.
    """
    net = Assembly(f"vgg{depth}{'_bn' if batch_norm else ''}", (3, size, size), seed=seed)
    x = net.input
    with net.scope("features"):
        index = 0
        step = 3 if batch_norm else 2
        for width, convolutions in zip(_WIDTHS, _STAGES[depth], strict=True):
            pool = index + step * convolutions
            names = [[str(start + each) for each in range(step)] for start in range(index, pool, step)]
            x = net.max_pool(stack(net, x, names, width), 2, 2, name=str(pool))
            index = pool + 1
    x = net.flatten(net.adaptive_average_pool(x, (7, 7), "avgpool"))
    with net.scope("classifier"):
        x = net.relu(net.linear("0", x, 4096), "1")
        x = net.relu(net.linear("3", x, 4096), "4")
        return net.finish(net.linear("6", x, classes))
