"""Nearest and linear resizing of channel-blocked tensors, from tables of source places.

ONNX's Resize has six ways to map coordinates and four to round them; all of that is in the tables, which are made here
in float64. For every output row (and column) a table holds how many floats away its source rows are and, for linear
resizing, the weight of the second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from convwright.codegen.lang import Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments, Reader

ARGUMENTS = Arguments(
    # int64 offsets in floats, float32 weights of the high side; "nearest" reads row_low and col_low alone
    "x y row_low row_high row_weight col_low col_high col_weight",
    # work: item -> (image, block, chunk of output rows)
    "blocks chunks chunk_rows rows cols x_image x_block y_image y_block y_row",
)


@dataclass(frozen=True)
class Resize:
    """What is baked into one kernel. kind: "nearest" or "linear"."""

    kind: str

    @property
    def key(self) -> str:
        return f"resize-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-{self.kind}-{target.vector}-{target.name}"


def source_coordinates(
    size: int, output_size: int, scale: float, transformation: str, roi: tuple[float, float] = (0.0, 1.0)
) -> NDArray[np.float64]:
    """Where the output pixels of one axis lie in the input (`coordinate_transformation_mode` of ONNX Resize).

    ``scale`` is the scale asked for, ``output_size / size`` where sizes were; ``roi`` belongs to "tf_crop_and_resize".

    Raises ValueError for an unknown transformation.
    """
    x = np.arange(output_size, dtype=np.float64)
    exact = scale * size  # may be a fraction
    if transformation in ("half_pixel", "pytorch_half_pixel"):
        coordinates = (x + 0.5) / scale - 0.5
        return np.full_like(x, -0.5) if transformation == "pytorch_half_pixel" and exact == 1 else coordinates
    if transformation == "half_pixel_symmetric":
        return size / 2 * (1 - output_size / exact) + (x + 0.5) / scale - 0.5
    if transformation == "asymmetric":
        return x / scale
    if transformation == "align_corners":
        return np.zeros_like(x) if exact == 1 else x * (size - 1) / (exact - 1)
    if transformation == "tf_crop_and_resize":
        start, end = roi
        if exact == 1:
            return np.full_like(x, (start + end) * (size - 1) / 2)
        return start * (size - 1) + x * (end - start) * (size - 1) / (exact - 1)
    raise ValueError(f"unknown coordinate transformation {transformation!r}")


def _nearest(coordinates: NDArray[np.float64], rounding: str) -> NDArray[np.float64]:
    if rounding == "round_prefer_floor":
        return np.ceil(coordinates - 0.5)
    if rounding == "round_prefer_ceil":
        return np.floor(coordinates + 0.5)
    if rounding == "floor":
        return np.floor(coordinates)
    if rounding == "ceil":
        return np.ceil(coordinates)
    raise ValueError(f"unknown rounding {rounding!r}")


def resize_tables(
    sizes: Sequence[int],
    output_sizes: Sequence[int],
    scales: Sequence[float],
    strides: Sequence[int],
    *,
    kind: str,
    transformation: str = "half_pixel",
    rounding: str = "round_prefer_floor",
    roi: Sequence[tuple[float, float]] | None = None,
) -> dict[str, NDArray[np.int64] | NDArray[np.float32]]:
    """The tables that the kernel's table pointers point at, by argument name.

    - `sizes`, `output_sizes`, `scales`: one a spatial axis, the last of them the columns. The axes before it become one
      table of rows, in row-major order: a volume's rows are those of all its planes.
    - `strides`: floats between neighbours along each axis of the input, so the last is ``v``.
    - `kind`: "nearest" or "linear"; `rounding` belongs to "nearest", `roi` (start, end a axis) to "tf_crop_and_resize".

    Raises ValueError where the kernel cannot do it: an unknown mode, a point outside the input that would be
    extrapolated, linear resizing between more than two rows.
    """
    if kind not in ("nearest", "linear"):
        raise ValueError(f"unknown kind of resizing {kind!r}: nearest or linear")
    axes = []
    for axis, (size, output_size, scale, stride) in enumerate(zip(sizes, output_sizes, scales, strides, strict=True)):
        places = source_coordinates(size, output_size, float(scale), transformation, roi[axis] if roi else (0.0, 1.0))
        if transformation == "tf_crop_and_resize" and ((places < 0) | (places > size - 1)).any():
            raise ValueError(f"axis {axis}: points outside the input of size {size} would be extrapolated")
        first = _nearest(places, rounding) if kind == "nearest" else np.floor(places)
        weight = np.zeros_like(places) if kind == "nearest" else places - first
        low = np.clip(first, 0, size - 1).astype(np.int64)
        high = np.clip(first + (weight > 0), 0, size - 1).astype(np.int64)
        axes.append((low * stride, high * stride, np.where(low == high, 0.0, weight)))
    low, high, weight = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(1)
    for axis_low, axis_high, axis_weight in axes[:-1]:
        if weight.any() and axis_weight.any():
            raise ValueError(f"linear resizing of {list(sizes)} to {list(output_sizes)}: more than two axes")
        low, high = np.add.outer(low, axis_low).ravel(), np.add.outer(high, axis_high).ravel()
        weight = np.add.outer(weight, axis_weight).ravel()
    tables: dict[str, NDArray[np.int64] | NDArray[np.float32]] = {}
    for name, (lows, highs, weights) in (("row", (low, high, weight)), ("col", axes[-1])):
        tables |= {f"{name}_low": lows, f"{name}_high": highs, f"{name}_weight": weights.astype(np.float32)}
    return tables


def emit(config: Resize, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    with k.loop(k.begin, k.end) as item:
        image, block, chunk = item.unravel(a.blocks, a.chunks)
        x = k.advance(a.x, image * a.x_image + block * a.x_block)
        y = k.advance(a.y, image * a.y_image + block * a.y_block)
        first = chunk * a.chunk_rows
        with k.loop(first, k.minimum(first + a.chunk_rows, a.rows)) as row:
            y_row = k.advance(y, row * a.y_row)
            top = k.advance(x, k.load_int(a.row_low, row))
            if config.kind == "nearest":
                with k.loop(0, a.cols) as col:
                    k.store(k.load(top, k.load_int(a.col_low, col)), y_row, col * k.v)
            else:
                _linear_row(k, a, top, k.advance(x, k.load_int(a.row_high, row)), y_row, row)
    return k.finish()


def _linear_row(k: Kernel, a: Reader, top: ir.Value, bottom: ir.Value, y: ir.Value, row: Int) -> None:
    """One output row between the two input rows that start at ``top`` and ``bottom``."""
    one = k.splat(1.0)
    down = k.broadcast(k.load_scalar(a.row_weight, row))
    up = k.sub(one, down)
    with k.loop(0, a.cols) as col:
        low, high = k.load_int(a.col_low, col), k.load_int(a.col_high, col)
        right = k.broadcast(k.load_scalar(a.col_weight, col))
        left = k.sub(one, right)
        upper, lower = (k.fma(k.load(line, high), right, k.mul(k.load(line, low), left)) for line in (top, bottom))
        k.store(k.fma(lower, down, k.mul(upper, up)), y, col * k.v)
