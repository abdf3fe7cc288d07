"""Writes deform_conv.npz: deformable convolutions as torchvision computes them in float64.

Run by hand, where torch and torchvision are installed (2.14.1 and 0.29.1 made the committed file):

    python tests/golden/make_deform_conv.py

For case i the file holds the arrays `x{i}`, `offset{i}`, `weight{i}`, `y{i}` and, where the case has them, `bias{i}`
and `mask{i}`, and `options{i}`: stride, padding and dilation of both axes, groups, offset groups. What goes in is
rounded to 64ths and held in float32, which keeps the file small; y is float64.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

# batch, in and out channels, input size, kernel, stride, padding, dilation, groups, offset groups, mask, bias
CASES = [
    (1, 1, 1, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), 1, 1, False, False),
    (2, 4, 3, (6, 5), (3, 2), (1, 2), (2, 1), (1, 2), 1, 1, True, True),
    (1, 6, 4, (5, 7), (2, 3), (2, 1), (0, 1), (2, 1), 2, 3, True, False),
    (2, 6, 6, (4, 5), (3, 3), (1, 1), (1, 2), (1, 1), 6, 2, True, True),
    (1, 4, 8, (5, 4), (1, 3), (3, 2), (1, 1), (1, 1), 4, 1, False, True),
    (1, 6, 2, (3, 1), (1, 1), (1, 1), (0, 0), (1, 1), 1, 6, True, True),
    (1, 2, 17, (1, 6), (3, 3), (1, 4), (2, 2), (2, 1), 1, 2, False, False),
]


def main() -> None:
    from torchvision.ops import deform_conv2d  # type: ignore[import-not-found]

    random = np.random.default_rng(20)
    arrays: dict[str, Any] = {}
    for index, (n, c, k, size, kernel, stride, padding, dilation, groups, offset_groups, mask, bias) in enumerate(
        CASES
    ):
        places = zip(size, kernel, stride, padding, dilation, strict=True)
        outputs = [(i + 2 * p - d * (t - 1) - 1) // s + 1 for i, t, s, p, d in places]
        taps = offset_groups * kernel[0] * kernel[1]
        # Offsets up to a few elements: samples lie inside, across every border, and far outside. A third are whole or
        # half numbers, where samples meet elements, borders and the middle between two.
        offset = 2 * random.standard_normal((n, 2 * taps, *outputs))
        offset = np.where(random.random(offset.shape) < 1 / 3, np.round(2 * offset) / 2, offset)
        inputs = {
            "x": random.standard_normal((n, c, *size)),
            "offset": offset,
            "weight": random.standard_normal((k, c // groups, *kernel)),
            "bias": random.standard_normal(k) if bias else None,
            "mask": random.random((n, taps, *outputs)) if mask else None,
        }
        rounded = {name: np.round(64 * value) / 64 for name, value in inputs.items() if value is not None}
        given = {name: torch.from_numpy(value) for name, value in rounded.items()}
        y = deform_conv2d(
            given["x"],
            given["offset"],
            given["weight"],
            given.get("bias"),
            stride,
            padding,
            dilation,
            given.get("mask"),
        )
        arrays |= {f"{name}{index}": value.astype(np.float32) for name, value in rounded.items()}
        options = [*stride, *padding, *dilation, groups, offset_groups]
        arrays |= {f"y{index}": y.numpy(), f"options{index}": np.array(options, np.int16)}
    np.savez_compressed(Path(__file__).with_name("deform_conv.npz"), **arrays)


if __name__ == "__main__":
    main()
