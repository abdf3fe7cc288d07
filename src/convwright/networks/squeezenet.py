"""SqueezeNet (Iandola et al., arXiv 1602.07360, figure 2), with torchvision's names of layers."""

from __future__ import annotations

from convwright.errors import ConvwrightError
from convwright.graph import Graph
from convwright.networks.assembly import Assembly
from convwright.networks.blocks import fire

_POOL = 0
_FEATURES = {
    "1.0": (16, 16, 32, _POOL, 32, 48, 48, 64, _POOL, 64),
    "1.1": (16, 16, _POOL, 32, 32, _POOL, 48, 48, 64, 64),
}
"""What the fire modules squeeze to, and where pools stand between them; they expand to 4 times as many, twice."""


def squeezenet(version: str = "1.0", *, classes: int = 1000, size: int = 224, seed: int | None = 0) -> Graph:
    """SqueezeNet with weights; the pools round their output sizes up, as those of the authors' framework do.

    - `version`: "1.0", the paper's, or "1.1", the authors' later one, which pools earlier.
    - `size`: height and width of the input.

    Raises ConvwrightError for another `version`.
    """
    if version not in _FEATURES:
        raise ConvwrightError(f"squeezenet: version must be '1.0' or '1.1', got {version!r}")
    net = Assembly(f"squeezenet{version.replace('.', '_')}", (3, size, size), seed=seed)
    with net.scope("features"):
        width, kernel = (96, 7) if version == "1.0" else (64, 3)
        x = net.relu(net.conv("0", net.input, width, kernel, stride=2, bias=True), "1")
        x = net.max_pool(x, 3, 2, ceil=True, name="2")
        for index, squeeze in enumerate(_FEATURES[version], 3):
            if squeeze == _POOL:
                x = net.max_pool(x, 3, 2, ceil=True, name=str(index))
                continue
            with net.scope(str(index)):
                x = fire(net, x, squeeze, 4 * squeeze, 4 * squeeze)
    with net.scope("classifier"):
        x = net.relu(net.conv("1", x, classes, 1, bias=True), "2")
        x = net.global_average_pool(x, "3")
    return net.finish(net.flatten(x))
