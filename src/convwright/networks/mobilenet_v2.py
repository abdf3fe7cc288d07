"""MobileNet v2 (Sandler et al., arXiv 1801.04381, table 2), with torchvision's names of layers."""

from __future__ import annotations

from convwright.graph import Graph
from convwright.networks.assembly import Assembly
from convwright.networks.light_blocks import inverted_residual, scaled

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""The paper's t, c, n, s: expansion, channels, blocks, and the first block's stride."""


def _renames() -> list[tuple[str, str]]:
    """timm's names of layers (`mobilenetv2_100`), which count blocks by stage, to torchvision's."""
    pairs = [(r"^conv_stem\.", "features.0.0."), (r"^bn1\.", "features.0.1.")]
    place = 1
    for stage, (expansion, _, blocks, _) in enumerate(_STAGES):
        for block in range(blocks):
            # Names of a layer's convolution and batch norm, first to last.
            layers = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
            if expansion == 1:
                layers = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
            for theirs, ours in zip(layers, _layer_names(expansion), strict=True):
                for old, new in zip(theirs, ours, strict=True):
                    pairs.append((rf"^blocks\.{stage}\.{block}\.{old}\.", f"features.{place}.conv.{new}."))
            place += 1
    pairs += [(r"^conv_head\.", f"features.{place}.0."), (r"^bn2\.", f"features.{place}.1.")]
    return [*pairs, (r"^classifier\.(?=weight|bias)", "classifier.1.")]


def mobilenet_v2(*, width: float = 1.0, classes: int = 1000, size: int = 224, seed: int | None = 0) -> Graph:
    """MobileNet v2.

    - `width`: what the numbers of channels are multiplied with; they are rounded to multiples of 8. The last layer
      before the classifier does not become narrower than 1280.
    - `size`: height and width of the input.
    """
    net = Assembly("mobilenet_v2", (3, size, size), seed=seed)
    with net.scope("features"):
        stem = scaled("mobilenet_v2", 32, width)
        x = net.relu6(net.batch_norm("0.1", net.conv("0.0", net.input, stem, 3, stride=2, padding=1)))
        place = 1
        for expansion, channels, blocks, first_stride in _STAGES:
            for block in range(blocks):
                with net.scope(f"{place}.conv"):
                    x = inverted_residual(
                        net,
                        x,
                        _layer_names(expansion),
                        scaled("mobilenet_v2", channels, width),
                        expansion=expansion,
                        stride=1 if block else first_stride,
                    )
                place += 1
        head = scaled("mobilenet_v2", 1280, max(1.0, width))
        x = net.relu6(net.batch_norm(f"{place}.1", net.conv(f"{place}.0", x, head, 1)))
    x = net.flatten(net.global_average_pool(x))
    return net.finish(net.linear("classifier.1", x, classes))


def _layer_names(expansion: int) -> list[tuple[str, str]]:
    """Of each layer of a block, its convolution's and its batch norm's."""
    if expansion == 1:
        return [("0.0", "0.1"), ("1", "2")]
    return [("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")]


RENAMES = _renames()
