"""MixNet (Tan and Le, arXiv 1907.09595, figure 5), with timm's names of layers (`mixnet_s`, `mixnet_m`, `mixnet_l`)."""

from __future__ import annotations

from dataclasses import dataclass

from convwright.graph import Graph
from convwright.networks.assembly import Assembly, Tensor
from convwright.networks.light_blocks import (
    depthwise_separable,
    mix_conv,
    scaled,
    split_pointwise,
    squeeze_excite,
)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Blocks of one make.

    - `count`, `channels`: how many, and what they put out; `stride`: of the first.
    - `kernels`: sizes of the depthwise layer; `expand`, `project`: parts of the pointwise layers before and after it.
    - `expansion`: what the channels are multiplied with in between.
    - `squeeze`: channels of squeeze-and-excitation, as a share of the block's input; 0 for none.
    - `swish`: whether that is the activation; else ReLU.
    """

    count: int
    channels: int
    kernels: tuple[int, ...]
    stride: int = 1
    expand: int = 1
    project: int = 1
    expansion: int = 6
    squeeze: float = 0.0
    swish: bool = False


def _swish(count: int, channels: int, kernels: tuple[int, ...], parts: tuple[int, int] = (1, 1), *, stride: int = 1,
           expansion: int = 6, squeeze: float = 0.5) -> _Blocks:  # fmt: skip
    return _Blocks(count, channels, kernels, stride, *parts, expansion, squeeze, swish=True)


_SMALL = (
    (_Blocks(1, 24, (3,), 2, 2, 2), _Blocks(1, 24, (3,), 1, 2, 2, expansion=3)),
    (_swish(1, 40, (3, 5, 7), stride=2), _swish(3, 40, (3, 5), (2, 2))),
    (_swish(1, 80, (3, 5, 7), (1, 2), stride=2, squeeze=0.25), _swish(2, 80, (3, 5), (1, 2), squeeze=0.25)),
    (_swish(1, 120, (3, 5, 7), (2, 2)), _swish(2, 120, (3, 5, 7, 9), (2, 2), expansion=3)),
    (_swish(1, 200, (3, 5, 7, 9, 11), stride=2), _swish(2, 200, (3, 5, 7, 9), (1, 2))),
)
_MEDIUM = (
    (_Blocks(1, 32, (3, 5, 7), 2, 2, 2), _Blocks(1, 32, (3,), 1, 2, 2, expansion=3)),
    (_swish(1, 40, (3, 5, 7, 9), stride=2), _swish(3, 40, (3, 5), (2, 2))),
    (_swish(1, 80, (3, 5, 7), stride=2, squeeze=0.25), _swish(3, 80, (3, 5, 7, 9), (2, 2), squeeze=0.25)),
    (_swish(1, 120, (3,)), _swish(3, 120, (3, 5, 7, 9), (2, 2), expansion=3)),
    (_swish(1, 200, (3, 5, 7, 9), stride=2), _swish(3, 200, (3, 5, 7, 9), (1, 2))),
)
_VARIANTS = {"s": (16, _SMALL, 1.0), "m": (24, _MEDIUM, 1.0), "l": (24, _MEDIUM, 1.3)}
"""Channels of the stem, stages, and what the numbers of channels are multiplied with."""

_HEAD = 1536


def mixnet(variant: str, *, width: float = 1.0, classes: int = 1000, size: int = 224, seed: int | None = 0) -> Graph:
    """MixNet S, M or L.

    - `variant`: "s", "m" or "l".
    - `width`: what the variant's numbers of channels are multiplied with; they are rounded to multiples of 8.
    - `size`: height and width of the input.
    """
    name = f"mixnet_{variant}"
    stem, stages, factor = _VARIANTS[variant]
    width *= factor
    net = Assembly(name, (3, size, size), seed=seed)
    stem = scaled(name, stem, width)
    x = net.relu(net.batch_norm("bn1", net.conv("conv_stem", net.input, stem, 3, stride=2, padding=1)))
    with net.scope("blocks.0.0"):
        y = depthwise_separable(net, x, stem, activation=net.relu, last_activation=False)
        x = net.add(x, y)
    for stage, makes in enumerate(stages, 1):
        place = 0
        for make in makes:
            for index in range(make.count):
                with net.scope(f"blocks.{stage}.{place}"):
                    x = _block(net, x, scaled(name, make.channels, width), make, 1 if index else make.stride)
                place += 1
    x = net.relu(net.batch_norm("bn2", net.conv("conv_head", x, _HEAD, 1)))
    x = net.flatten(net.global_average_pool(x))
    return net.finish(net.linear("classifier", x, classes))


def _block(net: Assembly, x: Tensor, out_channels: int, make: _Blocks, stride: int) -> Tensor:
    """An inverted residual (arXiv 1801.04381) with a mixed depthwise layer."""
    activation = net.silu if make.swish else net.relu
    y = split_pointwise(net, x, "conv_pw", x.channels * make.expansion, make.expand)
    y = activation(net.batch_norm("bn1", y))
    y = activation(net.batch_norm("bn2", mix_conv(net, y, "conv_dw", make.kernels, stride=stride)))
    if make.squeeze:
        y = squeeze_excite(net, y, round(x.channels * make.squeeze), activation=net.silu)
    y = net.batch_norm("bn3", split_pointwise(net, y, "conv_pwl", out_channels, make.project))
    return net.add(x, y) if y.shape == x.shape else y
