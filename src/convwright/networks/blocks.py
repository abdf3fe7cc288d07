"""The blocks that the classic networks are made of, each with what it does to a convolution's cost.

A standard convolution of k x k from M channels to N takes k*k*M*N multiply-accumulates at one output position; each
docstring says what becomes of that. A block's layers carry the names that its caller gives, or those of PyTorch's
modules inside the caller's scope. Blocks of the mobile networks are in `light_blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convwright.networks.assembly import Assembly, Tensor


def conv_bn(
    net: Assembly,
    x: Tensor,
    names: tuple[str, str],
    out_channels: int,
    kernel: int | tuple[int, int],
    *,
    relu: bool = True,
    epsilon: float = 1e-5,
    **options: Any,
) -> Tensor:
    """A convolution, its batch norm and, if asked, ReLU: k*k*M*N.

    - `names`: the convolution's and the batch norm's.
    - `options`: as `Assembly.conv` takes them.
    """
    x = net.conv(names[0], x, out_channels, kernel, **options)
    x = net.batch_norm(names[1], x, epsilon=epsilon)
    return net.relu(x) if relu else x


def grouped(
    net: Assembly, x: Tensor, name: str, out_channels: int, kernel: int, *, groups: int, padding: int = 0
) -> Tensor:
    """Channels in G groups that do not see each other (AlexNet): k*k*M*N becomes k*k*(M/G)*N."""
    return net.relu(net.conv(name, x, out_channels, kernel, padding=padding, groups=groups, bias=True))


def stack(
    net: Assembly,
    x: Tensor,
    names: Sequence[Sequence[str]],
    out_channels: int,
    kernel: int = 3,
) -> Tensor:
    """One big kernel as several small ones of size s (VGG, arXiv 1409.1556, section 2.3).

    k*k becomes s*s + ... + s*s for each pair of channels; n kernels of 3 x 3 see 2n + 1 pixels a side.

    - `names`: of each layer's convolution, its batch norm if it has one, and its ReLU.
    """
    for conv, *batch_norm, relu in names:
        x = net.conv(conv, x, out_channels, kernel, padding=kernel // 2, bias=True)
        for name in batch_norm:
            x = net.batch_norm(name, x)
        x = net.relu(x, relu)
    return x


def factorised(
    net: Assembly,
    x: Tensor,
    names: Sequence[tuple[str, str]],
    channels: tuple[int, int],
    kernel: int,
    *,
    tall_first: bool = False,
    epsilon: float = 1e-3,
) -> Tensor:
    """A square kernel as 1 x k and k x 1 (Inception, arXiv 1512.00567, section 3.2), each with batch norm and ReLU.

    k*k becomes k*1 + 1*k for each pair of channels.

    - `names`: of convolution and batch norm of both; `channels`: that they put out.
    - `tall_first`: whether k x 1 comes first.
    """
    kernels = [(1, kernel), (kernel, 1)]
    for pair, width, size in zip(names, channels, kernels[::-1] if tall_first else kernels, strict=True):
        x = conv_bn(net, x, pair, width, size, padding=tuple(k // 2 for k in size), epsilon=epsilon)
    return x


def fire(net: Assembly, x: Tensor, squeeze: int, expand_1x1: int, expand_3x3: int) -> Tensor:
    """Squeeze with 1 x 1, then expand with 1 x 1 and 3 x 3 side by side (SqueezeNet, arXiv 1602.07360, section 3.2).

    k*k*M*N becomes M*(N/t) + (N/t)*(1-p)*N + k*k*(N/t)*p*N, where N/t is `squeeze` and p the share of `expand_3x3` in
    what comes out.
    """
    x = net.relu(net.conv("squeeze", x, squeeze, 1, bias=True))
    narrow = net.relu(net.conv("expand1x1", x, expand_1x1, 1, bias=True))
    wide = net.relu(net.conv("expand3x3", x, expand_3x3, 3, padding=1, bias=True))
    return net.concat([narrow, wide])


def basic(net: Assembly, x: Tensor, out_channels: int, *, stride: int = 1) -> Tensor:
    """Two 3 x 3 beside a shortcut (ResNet-18 and -34, arXiv 1512.03385, figure 5, left): k*k*M*N + k*k*N*N."""
    y = conv_bn(net, x, ("conv1", "bn1"), out_channels, 3, stride=stride, padding=1)
    y = conv_bn(net, y, ("conv2", "bn2"), out_channels, 3, padding=1, relu=False)
    return net.relu(net.add(y, shortcut(net, x, out_channels, stride=stride)))


def bottleneck(
    net: Assembly, x: Tensor, out_channels: int, *, narrow: int | None = None, stride: int = 1, groups: int = 1,
    stride_first: bool = False,
) -> Tensor:  # fmt: skip
    """1 x 1 to fewer channels, 3 x 3, 1 x 1 to many, beside a shortcut (ResNet, arXiv 1512.03385, figure 5, right).

    k*k*M*N becomes M*(N/t) + k*k*(N/t)*(N/t) + (N/t)*N, with t = 4 by default.

    - `narrow`: N/t; `groups`: of the 3 x 3.
    - `stride_first`: the stride on the first 1 x 1, as the paper has it (v1), and not on the 3 x 3 (v1.5).
    """
    narrow = narrow or out_channels // 4
    first, middle = (stride, 1) if stride_first else (1, stride)
    y = conv_bn(net, x, ("conv1", "bn1"), narrow, 1, stride=first)
    y = conv_bn(net, y, ("conv2", "bn2"), narrow, 3, stride=middle, padding=1, groups=groups)
    y = conv_bn(net, y, ("conv3", "bn3"), out_channels, 1, relu=False)
    return net.relu(net.add(y, shortcut(net, x, out_channels, stride=stride)))


def resnext(
    net: Assembly, x: Tensor, out_channels: int, *, narrow: int | None = None, stride: int = 1, groups: int = 32
) -> Tensor:
    """A bottleneck whose 3 x 3 is grouped (ResNeXt, arXiv 1611.05431, figure 3c).

    k*k*M*N becomes M*(N/t) + k*k*(N/(t*G))*(N/t) + (N/t)*N, with t = 2 and G = 32 by default.
    """
    return bottleneck(net, x, out_channels, narrow=narrow or out_channels // 2, stride=stride, groups=groups)


def shortcut(net: Assembly, x: Tensor, out_channels: int, *, stride: int) -> Tensor:
    """`x` itself, or projected by a 1 x 1 (arXiv 1512.03385, section 3.3, option B) where its shape changes."""
    if stride == 1 and x.channels == out_channels:
        return x
    return conv_bn(net, x, ("downsample.0", "downsample.1"), out_channels, 1, stride=stride, relu=False)


def separable(net: Assembly, x: Tensor, out_channels: int, kernel: int = 3) -> Tensor:
    """Depthwise, then pointwise, nothing between (Xception, arXiv 1610.02357, section 3): k*k*M*N becomes k*k*M + M*N.

    With the pointwise layer first, as the paper draws an "extreme" Inception module, it would be M*N + k*k*N.
    """
    x = net.conv("conv1", x, x.channels, kernel, padding=kernel // 2, groups=x.channels)
    return net.conv("pointwise", x, out_channels, 1)
