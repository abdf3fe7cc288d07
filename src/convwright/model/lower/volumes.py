"""Tensors of three spatial axes in channel blocks, ``[N][blocks][D][H][W][v]``: between the plain tensors around a
layer and the kernels that take depth slices for images of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from convwright.kernels import halo as halo_kernel
from convwright.kernels import layout
from convwright.model.builder import Builder
from convwright.model.values import Buffer, Ref, Value, blocks_of
from convwright.spec import ConvSpec

_FLOAT = np.dtype(np.float32)


def room(b: Builder, shape: tuple[int, ...]) -> tuple[Value, int]:
    """A new volume, and the floats from one of its depth slices to the next; ``shape``: N x C x D x H x W."""
    row = shape[4] * b.v
    slice_floats = shape[3] * row
    block = shape[2] * slice_floats
    image = block * blocks_of(shape[1], b.v)
    value = Value(shape, _FLOAT, Buffer(4 * image * shape[0]), True, image=image, block=block, row=row)
    value.extent = value.buffer.nbytes
    return value, slice_floats


def packed(b: Builder, x: Value, spec: ConvSpec, out_size: tuple[int, ...], reach: Sequence[int]) -> tuple[Value, int]:
    """A copy of a plain tensor inside the zeros that a convolution reads; its first element is the first input of the
    first window. ``reach``: padded rows and columns that are read at least."""
    size, pads = x.shape[2:], spec.pads(x.shape[2:])
    before = [low for low, _ in pads]
    last = [
        (out - 1) * stride + span
        for out, stride, span in zip(out_size, spec.stride, spec.effective_kernel, strict=True)
    ]
    last[1:] = [max(pair) for pair in zip(last[1:], reach, strict=True)]
    padded = [max(low + own, end) for low, own, end in zip(before, size, last, strict=True)]
    value, slice_floats = room(b, (*x.shape[:2], *padded))
    _zeros(b, value, slice_floats, size, before)
    at = 4 * (before[0] * slice_floats + before[1] * value.row + before[2] * b.v)
    _convert(b, "pack", x, value, slice_floats, size, at, joined=False)
    return value, slice_floats


def unpack(b: Builder, x: Value, slice_floats: int, y: Value) -> None:
    """A volume without borders to a plain tensor."""
    _convert(b, "unpack", x, y, slice_floats, x.shape[2:], 0, joined=True)


def _zeros(b: Builder, value: Value, slice_floats: int, size: tuple[int, ...], before: list[int]) -> None:
    """The steps that write the zeros: around the planes of the slices that hold data, and whole slices."""
    n, channels, *padded = value.shape
    blocks = n * blocks_of(channels, b.v)
    top, left = before[1:]
    around = {
        "rows": size[1], "cols": size[2], "top": top, "left": left,
        "bottom": padded[1] - top - size[1], "right": padded[2] - left - size[2],
    }  # fmt: skip
    whole = {"rows": 0, "cols": padded[2], "top": 0, "left": 0, "bottom": padded[1], "right": 0}
    stretches = [
        (before[0], size[0], around, top * value.row + left * b.v),
        (0, before[0], whole, 0),
        (before[0] + size[0], padded[0] - before[0] - size[0], whole, 0),
    ]
    for first, slices, shape, inside in stretches:
        if not slices or not any(shape[side] for side in ("top", "left", "bottom", "right")):
            continue
        arguments = {
            "y": Ref(value.buffer, 4 * (first * slice_floats + inside)), "blocks": slices,
            "y_image": value.block, "y_block": slice_floats, "y_row": value.row, **shape,
        }  # fmt: skip
        b.step("halo", halo_kernel, halo_kernel.Halo(), arguments, blocks * slices, [], [], "padding")
        b.steps[-1].touches.append((value.buffer, 0, value.buffer.nbytes, True, f"halo{first}"))


def _convert(
    b: Builder, kind: str, x: Value, y: Value, slice_floats: int, size: tuple[int, ...], at: int, joined: bool
) -> None:
    """A step for each image, whose depth slices are the kernel's images; ``at``: byte of the volume's first element."""
    volume, plain = (y, x) if kind == "pack" else (x, y)
    rows, cols = (1, size[1] * size[2]) if joined else (size[1], size[2])
    tile = layout.conversion(kind, volume.channels, cols, b.target)
    blocks = blocks_of(volume.channels, b.v)
    sides = {
        id(volume): (slice_floats, volume.block, volume.row),
        id(plain): (size[1] * size[2], math.prod(size), cols),
    }
    for image in range(volume.n):
        places = {
            id(volume): Ref(volume.buffer, volume.offset + at + 4 * image * volume.image),
            id(plain): Ref(plain.buffer, plain.offset + 4 * image * volume.channels * math.prod(size)),
        }
        arguments: dict[str, int | Ref] = {
            "x": places[id(x)], "y": places[id(y)], "places": 0, "planes": blocks, "chunks": 1, "chunk_rows": rows,
            "rows": rows, "cols": cols, "top": 0, "bottom": 0, "left": 0, "right": 0,
        }  # fmt: skip
        for side, value in (("x", x), ("y", y)):
            names = (f"{side}_image", f"{side}_plane", f"{side}_row")
            arguments |= dict(zip(names, sides[id(value)], strict=True))
        b.step(kind, layout, tile, arguments, size[0] * blocks, [x], [], "layout")
        b.steps[-1].touches.append((y.buffer, 0, y.buffer.nbytes, True, f"image{image}"))
