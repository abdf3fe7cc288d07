"""Networks of three spatial axes as ONNX models: residual networks and U-Nets.

``python -m tests.volume_networks FOLDER`` writes those that docs/notes/next.md has figures of.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from .graph_models import Array, model, node, norm_parameters, weights


class _Writer:
    """The nodes and constants of a network under construction; every convolution has weights of its own seed."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def convolution(
        self, x: str, y: str, channels: tuple[int, int], kernel: Sequence[int], stride: Sequence[int], relu: bool
    ) -> None:
        """x to y, "same" padding, batch normalised."""
        name = f"{y}.w"
        fan = channels[0] * int(np.prod(kernel))
        own = weights(channels[1], channels[0], *kernel, seed=len(self.constants))
        self.constants[name] = own * np.float32(np.sqrt(2 / fan))
        pads = [size // 2 for size in kernel] * 2
        self.nodes.append(node("Conv", f"{x} {name}", f"{y}.conv", pads=pads, strides=list(stride)))
        norm = norm_parameters(channels[1])
        self.constants |= {f"{y}.{key}": array for key, array in norm.items()}
        names = " ".join(f"{y}.{key}" for key in norm)
        self.nodes.append(node("BatchNormalization", f"{y}.conv {names}", f"{y}.norm" if relu else y))
        if relu:
            self.nodes.append(node("Relu", f"{y}.norm", y))


def residual_network(
    shape: Sequence[int], widths: Sequence[int], blocks: int = 2, classes: int = 10, in_channels: int = 3
) -> onnx.ModelProto:
    """After "R3D" of arXiv 1711.11248: a stem of 3 x 7 x 7 at stride 1 x 2 x 2, then for each width `blocks` basic
    blocks, the first at stride 2 from the second width on; global mean, a fully connected layer.

    shape: depth, height and width of the input `x`, one volume; the output is `y`.
    """
    net = _Writer()
    net.convolution("x", "stem", (in_channels, widths[0]), (3, 7, 7), (1, 2, 2), relu=True)
    at, channels = "stem", widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = (2, 2, 2) if stage and not block else (1, 1, 1)
            name = f"s{stage}b{block}"
            net.convolution(at, f"{name}a", (channels, width), (3, 3, 3), stride, relu=True)
            net.convolution(f"{name}a", f"{name}c", (width, width), (3, 3, 3), (1, 1, 1), relu=False)
            shortcut = at
            if stride != (1, 1, 1) or channels != width:
                shortcut = f"{name}s"
                net.convolution(at, shortcut, (channels, width), (1, 1, 1), stride, relu=False)
            net.nodes.append(node("Add", f"{name}c {shortcut}", f"{name}sum"))
            net.nodes.append(node("Relu", f"{name}sum", name))
            at, channels = name, width
    net.nodes.append(node("GlobalAveragePool", at, "mean"))
    net.nodes.append(node("Flatten", "mean", "features"))
    net.constants |= {"fc.w": weights(classes, channels, seed=3), "fc.b": weights(classes, seed=4)}
    net.nodes.append(node("Gemm", "features fc.w fc.b", "y", transB=1))
    return model(net.nodes, {"x": (1, in_channels, *shape)}, net.constants)


def u_network(shape: Sequence[int], widths: Sequence[int], classes: int = 2) -> onnx.ModelProto:
    """A U-Net (arXiv 1606.06650): two convolutions for each width, maxima over 2 x 2 x 2 between widths on the way
    down, transposed convolutions and concatenations on the way up.

    shape: depth, height and width of the input `x`, one volume of one channel; the output is `y`.
    """
    net = _Writer()
    at, channels, kept = "x", 1, []
    for level, width in enumerate(widths):
        if level:
            kept.append((at, channels))
            net.nodes.append(node("MaxPool", at, f"down{level}", kernel_shape=[2] * 3, strides=[2] * 3))
            at = f"down{level}"
        net.convolution(at, f"d{level}a", (channels, width), (3, 3, 3), (1, 1, 1), relu=True)
        net.convolution(f"d{level}a", f"d{level}b", (width, width), (3, 3, 3), (1, 1, 1), relu=True)
        at, channels = f"d{level}b", width
    for level, (other, width) in reversed(list(enumerate(kept))):
        net.constants[f"up{level}.w"] = weights(channels, width, 2, 2, 2) / np.float32(np.sqrt(channels))
        net.nodes.append(node("ConvTranspose", f"{at} up{level}.w", f"up{level}", strides=[2] * 3))
        net.nodes.append(node("Concat", f"up{level} {other}", f"both{level}", axis=1))
        net.convolution(f"both{level}", f"u{level}a", (2 * width, width), (3, 3, 3), (1, 1, 1), relu=True)
        net.convolution(f"u{level}a", f"u{level}b", (width, width), (3, 3, 3), (1, 1, 1), relu=True)
        at, channels = f"u{level}b", width
    net.convolution(at, "y", (channels, classes), (1, 1, 1), (1, 1, 1), relu=False)
    return model(net.nodes, {"x": (1, 1, *shape)}, net.constants)


def _write(folder: Path) -> None:
    onnx.save(residual_network((8, 112, 112), (64, 128, 256, 512)), folder / "residual.onnx")
    onnx.save(residual_network((8, 64, 64), (32, 64, 128)), folder / "residual_small.onnx")
    onnx.save(u_network((16, 48, 48), (16, 32, 64)), folder / "u.onnx")


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
