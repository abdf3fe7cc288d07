"""Random convolutions, and PyTorch's answer to them in float64."""

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convwright.spec import PADDING_MODES, ConvSpec

Array = NDArray[Any]
CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def arrays(
    spec: ConvSpec, size: tuple[int, ...], batch: int | None = 2, seed: int = 0
) -> tuple[Array, Array, Array | None]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((*([] if batch is None else [batch]), spec.in_channels, *size))
    weight = generator.standard_normal(spec.weight_shape)
    return x, weight, generator.standard_normal(spec.out_channels) if spec.bias else None


def tensors(x: Array, weight: Array, bias: Array | None) -> tuple[Tensor, Tensor, Tensor | None]:
    return torch.from_numpy(x), torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias)


def torch_conv(x: Array, weight: Array, bias: Array | None, spec: ConvSpec) -> Array:
    """PyTorch's answer; its padding modes want a batch, its transposed convolution equal padding at both ends."""
    inputs, kernels, biases = tensors(x, weight, bias)
    if spec.flip:
        kernels = kernels.flip(*range(2, kernels.ndim))
    pads = spec.pads(x.shape[-spec.rank :])
    if spec.transposed:
        assert all(low == high for low, high in pads)
        padding = [low for low, _ in pads]
        up = CONV_TRANSPOSE[spec.rank]
        return np.asarray(
            up(inputs, kernels, biases, spec.stride, padding, spec.output_padding, spec.groups, spec.dilation)
        )
    ends = [end for pair in reversed(pads) for end in pair]
    batched = inputs.reshape(-1, *inputs.shape[-spec.rank - 1 :])
    padded = F.pad(batched, ends, "constant" if spec.padding_mode == "zeros" else spec.padding_mode)
    convolved = CONV[spec.rank](padded, kernels, biases, spec.stride, 0, spec.dilation, spec.groups)
    return np.asarray(convolved).reshape(*inputs.shape[: -spec.rank - 1], *convolved.shape[1:])


def random_case(seed: int) -> tuple[ConvSpec, tuple[int, ...], int | None]:
    """A spec that mostly fits its input: boundary channel numbers, and another number on every axis."""
    pick = random.Random(seed)
    rank, transposed = pick.choice([1, 2, 3]), pick.random() < 0.4
    largest = {1: 12, 2: 7, 3: 4}[rank]
    groups = pick.choice([1, 1, 2, 3])
    in_channels, out_channels = groups * pick.choice([1, 1, 2, 3]), groups * pick.choice([1, 1, 2, 4])
    kernel = [pick.choice([1, 2, 3, 3, 5]) for _ in range(rank)]
    stride = [pick.choice([1, 1, 2, 3, 6]) for _ in range(rank)]
    dilation = [pick.choice([1, 1, 2, 3]) for _ in range(rank)]
    padding = [(pick.randint(0, 3), pick.randint(0, 3)) for _ in range(rank)]
    if transposed:
        padding = [(low, low) for low, _ in padding]
    spec = ConvSpec(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        dilation=dilation,
        padding=padding,
        groups=groups,
        transposed=transposed,
        output_padding=[pick.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)] if transposed else 0,
        bias=pick.random() < 0.5,
        padding_mode="zeros" if transposed else pick.choice(PADDING_MODES),
        flip=pick.random() < 0.3,
    )
    return spec, tuple(pick.randint(1, largest) for _ in range(rank)), pick.choice([None, 1, 2])
