"""ResNet (He et al., arXiv 1512.03385, table 1) and ResNeXt (Xie et al., 1611.05431), with torchvision's names."""

from __future__ import annotations

from functools import partial

from convwright.errors import ConvwrightError
from convwright.graph import Graph
from convwright.networks.assembly import Assembly
from convwright.networks.blocks import basic, bottleneck, conv_bn, resnext

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_WIDTHS = (64, 128, 256, 512)


def resnet(
    depth: int,
    *,
    stride_first: bool = False,
    groups: int = 1,
    group_width: int = 64,
    classes: int = 1000,
    size: int = 224,
    seed: int | None = 0,
) -> Graph:
    """ResNet of 18, 34, 50, 101 or 152 layers with weights; with `groups` a ResNeXt.

    - `stride_first`: the stride of a bottleneck on its first 1 x 1, as the paper has it (v1), and not on its 3 x 3
      (v1.5, torchvision's).
    - `groups`, `group_width`: of the 3 x 3 in the bottlenecks of the first stage; 32 groups of 4 channels are ResNeXt's
      "32x4d". The width doubles from stage to stage.
    - `size`: height and width of the input.

    Raises ConvwrightError for another depth, and for `stride_first` or `groups` where there are no bottlenecks.
    """
    if depth not in _BLOCKS:
        raise ConvwrightError(f"resnet: depth must be one of {', '.join(map(str, _BLOCKS))}, got {depth}")
    if depth < 50 and (stride_first or groups > 1):
        raise ConvwrightError(
            f"resnet: depth {depth} has no bottlenecks, so neither stride_first = {stride_first} nor groups = {groups}"
        )
    name = f"resnext{depth}_{groups}x{group_width}d" if groups > 1 else f"resnet{depth}{'_v1' if stride_first else ''}"
    net = Assembly(name, (3, size, size), seed=seed)
    x = conv_bn(net, net.input, ("conv1", "bn1"), 64, 7, stride=2, padding=3)
    x = net.max_pool(x, 3, 2, padding=1, name="maxpool")
    for stage, (width, count) in enumerate(zip(_WIDTHS, _BLOCKS[depth], strict=True), 1):
        if groups > 1:
            block = partial(resnext, narrow=groups * group_width * width // 64, groups=groups)
        else:
            block = partial(bottleneck, stride_first=stride_first)
        for index in range(count):
            stride = 2 if stage > 1 and index == 0 else 1
            with net.scope(f"layer{stage}.{index}"):
                x = block(net, x, 4 * width, stride=stride) if depth >= 50 else basic(net, x, width, stride=stride)
    return net.finish(net.linear("fc", net.flatten(net.global_average_pool(x, "avgpool")), classes))
