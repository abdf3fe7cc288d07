"""`deform_conv`: convolutions whose taps are moved by offsets."""

from __future__ import annotations

from typing import Any

from convwright.errors import ConvwrightError
from convwright.functional.arrays import Array, array_of, check_real, frozen
from convwright.functional.convolution import check_bias
from convwright.functional.prepared import Recipe, run
from convwright.graph import Node
from convwright.spec import AxesLike, ConvSpec, DeformableSpec, PaddingLike


def deform_conv(
    x: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    *,
    mask: Any = None,
    stride: AxesLike = 1,
    padding: PaddingLike = 0,
    dilation: AxesLike = 1,
    groups: int = 1,
    offset_groups: int = 1,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """A deformable convolution over two axes (arXiv 1703.06211; with `mask`, its second version, arXiv 1811.11168).

    - `x`: N x C x H x W, or C x H x W; float32 or float64, as all arrays.
    - `offset`: N x (2 * offset_groups * kh * kw) x Ho x Wo, the (dy, dx) pair of each tap; no N where `x` has none.
    - `weight`: K x C/groups x kh x kw.
    - `bias`: K values, or None.
    - `mask`: N x (offset_groups * kh * kw) x Ho x Wo, which scales the samples, or None.
    - `offset_groups`: the input channels in this many groups, each with its own offsets.

    The other arguments as in `conv`. Samples are bilinear, and zero outside. Returns N x K x Ho x Wo, or K x Ho x Wo.
    Raises `ConvwrightError` for arrays and arguments that do not fit each other.

    >>> import numpy as np
    >>> x = np.array([[[1, 2, 4]]], np.float32)
    >>> offset = np.array([[[0, 0, 0.5]], [[0.5, 1, 0]]], np.float32)
    >>> deform_conv(x, offset, np.ones((1, 1, 1, 1), np.float32))
    array([[[1.5, 4. , 2. ]]], dtype=float32)
    """
    x, offset, weight = array_of("input", x), array_of("offset", offset), array_of("weight", weight)
    bias = None if bias is None else array_of("bias", bias)
    mask = None if mask is None else array_of("mask", mask)
    check_real(("input", "offset", "weight", "bias", "mask"), (x, offset, weight, bias, mask))
    options = (frozen(stride), frozen(padding), frozen(dilation), frozen(groups), frozen(offset_groups))

    def build() -> Recipe:
        conv = ConvSpec.of_weight(
            weight.shape, stride=options[0], padding=options[1], dilation=options[2], groups=options[3],
            bias=bias is not None,
        )  # fmt: skip
        spec = DeformableSpec(conv, options[4], mask is not None)
        shape = conv.output_shape(x.shape)
        check_bias(bias, conv)
        size, lead = x.shape[-2:], x.shape[:-3]
        _check("offset", offset, (*lead, *spec.offset_shape(size)[1:]))
        if mask is not None:
            _check("mask", mask, (*lead, *spec.mask_shape(size)[1:]))
        pads = conv.pads(size)
        attributes = {
            "kernel_shape": conv.kernel,
            "strides": conv.stride,
            "dilations": conv.dilation,
            "pads": (*(low for low, _ in pads), *(high for _, high in pads)),
            "group": conv.groups,
            "offset_group": spec.offset_groups,
        }
        names = ["x", "w", "offset", "b" if conv.bias else "", "mask" if spec.modulated else ""]
        while not names[-1]:
            names.pop()
        return Recipe([Node("DeformConv", names, ["y"], attributes)], shape[-3:], x.dtype)

    batched = x.ndim != 3
    inputs = {"x": x, "offset": offset} | ({} if mask is None else {"mask": mask})
    if not batched:
        inputs = {name: array.reshape(1, *array.shape) for name, array in inputs.items()}
    return run(
        ("deform_conv", options), inputs, {"w": weight, "b": bias}, build, out, threads, "default", batched
    )  # fmt: skip


def _check(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ConvwrightError(f"{name} must be of shape {shape}, got {array.shape}")
