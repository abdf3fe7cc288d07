"""The blocks of networks for small devices, each with what it does to a convolution's cost.

A standard convolution of k x k from M channels to N takes k*k*M*N multiply-accumulates at one output position; each
docstring says what becomes of that. A block's layers carry the names that its caller gives, or those that timm gives
modules, inside the caller's scope. Blocks of the networks before them are in `blocks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convwright.errors import ConvwrightError
from convwright.graph.graph import INTERNAL
from convwright.networks.assembly import Assembly, Tensor
from convwright.spec import ConvSpec, HetSpec, MixSpec

Activation = Callable[[Tensor], Tensor]


def rounded(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` that is next to `channels`, and the one above where that loses more than a tenth.

    So the widths of MobileNets are scaled, in the code that accompanies arXiv 1801.04381.

    >>> [rounded(24 * width) for width in (0.5, 0.75, 1.4)]
    [16, 24, 32]
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def scaled(name: str, channels: int, width: float, divisor: int = 8) -> int:
    """`channels` times `width`, rounded; raises ConvwrightError for a width that is not positive."""
    if not width > 0:
        raise ConvwrightError(f"network {name!r}: width must be above 0, got {width}")
    return rounded(channels * width, divisor)


def depthwise_separable(
    net: Assembly,
    x: Tensor,
    out_channels: int,
    *,
    activation: Activation,
    kernel: int = 3,
    stride: int = 1,
    last_activation: bool = True,
) -> Tensor:
    """Depthwise, then pointwise, batch norm and an activation after each (MobileNet v1, arXiv 1704.04861, figure 3).

    k*k*M*N becomes k*k*M + M*N.

    - `last_activation`: whether one follows the pointwise layer.
    """
    y = net.conv("conv_dw", x, x.channels, kernel, stride=stride, padding=kernel // 2, groups=x.channels)
    y = activation(net.batch_norm("bn1", y))
    y = net.batch_norm("bn2", net.conv("conv_pw", y, out_channels, 1))
    return activation(y) if last_activation else y


def inverted_residual(
    net: Assembly,
    x: Tensor,
    names: Sequence[tuple[str, str]],
    out_channels: int,
    *,
    expansion: int = 6,
    kernel: int = 3,
    stride: int = 1,
) -> Tensor:
    """Wide inside, narrow and linear outside (MobileNet v2, arXiv 1801.04381, section 3.3, table 1).

    k*k*M*N becomes M*t*M + k*k*t*M + t*M*N: a 1 x 1 to t*M channels, a depthwise k x k, a 1 x 1 without activation.
    With t = 1 the first is left out. The input is added where the output has its shape.

    - `names`: of convolution and batch norm of each of the three, or two, layers.
    - `expansion`: t.
    """
    y = x
    if expansion > 1:
        y = net.relu6(net.batch_norm(names[0][1], net.conv(names[0][0], y, expansion * x.channels, 1)))
    conv, batch_norm = names[-2]
    y = net.conv(conv, y, y.channels, kernel, stride=stride, padding=kernel // 2, groups=y.channels)
    y = net.relu6(net.batch_norm(batch_norm, y))
    y = net.batch_norm(names[-1][1], net.conv(names[-1][0], y, out_channels, 1))
    return net.add(x, y) if y.shape == x.shape else y


def shuffle_unit(
    net: Assembly,
    x: Tensor,
    out_channels: int,
    *,
    groups: int,
    narrow: int | None = None,
    stride: int = 1,
    first_groups: int | None = None,
) -> Tensor:
    """Grouped 1 x 1, channel shuffle, depthwise 3 x 3, grouped 1 x 1 (ShuffleNet, arXiv 1707.01083, figure 2, b and c).

    k*k*M*N becomes (M/G)*(N/t) + k*k*(N/t) + (N/(t*G))*N and a shuffle that multiplies nothing. At stride 1 the input
    is added; at stride 2 its average is set beside, and the last layer makes N - M channels instead of N.

    - `narrow`: N/t, by default with t = 4.
    - `first_groups`: of the first layer where they differ from `groups`.
    """
    narrow = narrow or out_channels // 4
    y = net.conv("conv1", x, narrow, 1, groups=first_groups or groups)
    y = net.relu(net.batch_norm("bn1", y))
    if groups > 1:
        y = net.channel_shuffle(y, groups)
    y = net.conv("conv2", y, narrow, 3, stride=stride, padding=1, groups=narrow)
    y = net.batch_norm("bn2", y)
    last = out_channels if stride == 1 else out_channels - x.channels
    y = net.batch_norm("bn3", net.conv("conv3", y, last, 1, groups=groups))
    if stride == 1:
        return net.relu(net.add(x, y))
    return net.relu(net.concat([net.average_pool(x, 3, stride, padding=1), y]))


def mix_conv(net: Assembly, x: Tensor, name: str, kernels: Sequence[int], *, stride: int = 1) -> Tensor:
    """Depthwise, of another kernel size for each part of the channels (MixConv, arXiv 1907.09595, section 3.1).

    k*k*M becomes (M/g)*(k1*k1 + ... + kg*kg) for g equal parts; the first takes the rest. Weights are called
    `NAME.0.weight`, `NAME.1.weight`, ..., of one part `NAME.weight`.
    """
    if len(kernels) == 1:
        return net.conv(name, x, x.channels, kernels[0], stride=stride, padding=kernels[0] // 2, groups=x.channels)
    spec = MixSpec(x.channels, tuple(kernels), rank=len(x.size), stride=stride, padding="half", bias=False)
    weights = [
        net.weight(f"{name}.{place}.weight", part.weight_shape, 2 / (part.parameters / part.out_channels))
        for place, part in enumerate(spec.parts)
    ]
    result: Tensor = net.node("MixConvolution", [x, *weights], name, domain=INTERNAL, parts=spec.parts)
    return result


def split_pointwise(net: Assembly, x: Tensor, name: str, out_channels: int, parts: int) -> Tensor:
    """A 1 x 1 whose channels lie in groups with weights of their own: M*N becomes (M/g)*N."""
    if parts == 1:
        return net.conv(name, x, out_channels, 1)
    if x.channels % parts or out_channels % parts:
        raise ConvwrightError(f"{name}: {x.channels} to {out_channels} channels do not divide into {parts} parts")
    with net.scope(name):
        pieces = net.split(x, [x.channels // parts] * parts)
        made = [net.conv(str(place), piece, out_channels // parts, 1) for place, piece in enumerate(pieces)]
        return net.concat(made)


def squeeze_excite(net: Assembly, x: Tensor, squeezed: int, *, activation: Activation) -> Tensor:
    """Scale each channel by what a small network makes of all channels' means (arXiv 1709.01507, figure 1).

    It takes 2*M*S for the whole image, with S = `squeezed`.
    """
    with net.scope("se"):
        y = net.global_average_pool(x)
        y = activation(net.conv("conv_reduce", y, squeezed, 1, bias=True))
        y = net.sigmoid(net.conv("conv_expand", y, x.channels, 1, bias=True))
        return net.multiply(x, y)


def het_conv(
    net: Assembly, x: Tensor, name: str, out_channels: int, kernel: int, *, part: int, bias: bool = True
) -> Tensor:
    """Kernels of k x k on one channel in P, of 1 x 1 on the others (HetConv, arXiv 1903.04120, section 3).

    k*k*M*N becomes M*N*(k*k/P + 1 - 1/P).

    - `part`: P; 1 makes a standard convolution.
    """
    padding = kernel // 2
    if part == 1:
        return net.conv(name, x, out_channels, kernel, padding=padding, bias=bias)
    conv = ConvSpec.of_rank(len(x.size), x.channels, out_channels, kernel, padding=padding, bias=bias)
    spec = HetSpec(conv, part)
    inputs: list[Tensor | str] = [x, net.weight(f"{name}.weight", spec.weight_shape, 2 * out_channels / spec.taps)]
    if bias:
        inputs.append(net.filled(f"{name}.bias", 0, (out_channels,)))
    result: Tensor = net.node("HetConvolution", inputs, name, domain=INTERNAL, spec=spec)
    return result
