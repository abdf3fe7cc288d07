"""The convolutions and pools of TF-slim's networks, as bare graphs: one channel a convolution, no weights that matter.

From the published architectures: only kernels, strides, paddings and branches count. "SAME" is TensorFlow's rule, which
puts an odd element of padding at the high end and depends on the input's size where the stride is above 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convwright.graph import Graph, Node, ValueInfo

Pair = int | tuple[int, int]


class Slim:
    """A graph under construction; each method adds nodes and returns the name of the value that they define."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.nodes: list[Node] = []
        self.weights: dict[str, np.ndarray] = {}
        self.channels = {"x": 1}

    def add(self, op: str, inputs: Sequence[str], **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, list(inputs), [name], dict(attributes), name))
        self.channels[name] = 1 if op == "Conv" else self.channels[inputs[0]]
        return name

    def conv(self, x: str, kernel: Pair, stride: int = 1, padding: str = "SAME") -> str:
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        name = f"w{self.channels[x]}x{kernel[0]}x{kernel[1]}"
        self.weights[name] = np.ones((1, self.channels[x], *kernel), np.float32)
        return self.add("Relu", [self.add("Conv", [x, name], strides=(stride, stride), auto_pad=_auto(padding))])

    def pool(self, x: str, kernel: int, stride: int, padding: str = "VALID", op: str = "MaxPool") -> str:
        sizes = {"kernel_shape": (kernel, kernel), "strides": (stride, stride)}
        return self.add(op, [x], auto_pad=_auto(padding), **sizes)

    def explicit(self, x: str, kernel: int, stride: int) -> str:
        """slim's conv2d_same: padding of (kernel - 1) // 2 before, the rest after, whatever the size."""
        if stride == 1:
            return self.conv(x, kernel)
        low = (kernel - 1) // 2
        high = kernel - 1 - low
        self.weights[f"pads{kernel}"] = np.array([0, 0, low, low, 0, 0, high, high], np.int64)
        return self.conv(self.add("Pad", [x, f"pads{kernel}"]), kernel, stride, "VALID")

    def convs(self, x: str, *kernels: Pair | tuple[Pair, int]) -> str:
        for kernel in kernels:
            x = self.conv(x, kernel)  # type: ignore[arg-type]
        return x

    def concat(self, *parts: str) -> str:
        name = self.add("Concat", parts, axis=1)
        self.channels[name] = sum(self.channels[part] for part in parts)
        return name

    def graph(self, output: str) -> Graph:
        info = ValueInfo(np.dtype(np.float32), (1, 1, self.size, self.size))
        return Graph("slim", {"x": info}, [output], self.nodes, dict(self.weights), 17)


def _auto(padding: str) -> str:
    return "SAME_UPPER" if padding == "SAME" else padding


def alexnet_v2(size: int) -> Graph:
    net = Slim(size)
    x = net.pool(net.conv("x", 11, 4, "VALID"), 3, 2)
    x = net.pool(net.conv(x, 5), 3, 2)
    return net.graph(net.pool(net.convs(x, 3, 3, 3), 3, 2))


def vgg_16(size: int) -> Graph:
    net, x = Slim(size), "x"
    for depth in (2, 2, 3, 3, 3):
        x = net.pool(net.convs(x, *[3] * depth), 2, 2)
    return net.graph(x)


def mobilenet_v1(size: int) -> Graph:
    """To Conv2d_13_pointwise."""
    net = Slim(size)
    x = net.conv("x", 3, 2)
    for stride in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1):
        x = net.conv(net.conv(x, 3, stride), 1)
    return net.graph(x)


def resnet_v1_50(size: int) -> Graph:
    """The stride lies on the 3 x 3 of a block's last unit; its shortcut is then a pool of 1 x 1."""
    net = Slim(size)
    x = net.pool(net.explicit("x", 7, 2), 3, 2, "SAME")
    for units, last_stride in ((3, 2), (4, 2), (6, 2), (3, 1)):
        for unit in range(units):
            stride = last_stride if unit == units - 1 else 1
            if unit == 0:
                shortcut = net.conv(x, 1, stride)
            else:
                shortcut = x if stride == 1 else net.pool(x, 1, stride, "SAME")
            branch = net.conv(net.explicit(net.conv(x, 1), 3, stride), 1)
            x = net.add("Relu", [net.add("Add", [shortcut, branch])])
    return net.graph(x)


def inception_v2(size: int) -> Graph:
    """To Mixed_5c."""
    net = Slim(size)
    x = net.pool(net.conv("x", 7, 2), 3, 2, "SAME")
    x = net.pool(net.convs(x, 1, 3), 3, 2, "SAME")

    def block(x: str) -> str:
        pool = net.conv(net.pool(x, 3, 1, "SAME", "AveragePool"), 1)
        return net.concat(net.conv(x, 1), net.convs(x, 1, 3), net.convs(x, 1, 3, 3), pool)

    def reduction(x: str) -> str:
        short = net.conv(net.conv(x, 1), 3, 2)
        return net.concat(short, net.conv(net.convs(x, 1, 3), 3, 2), net.pool(x, 3, 2, "SAME"))

    x = reduction(block(block(x)))
    for _ in range(4):
        x = block(x)
    x = block(block(reduction(x)))
    return net.graph(x)


def inception_v3(size: int) -> Graph:
    """To Mixed_7c."""
    net = Slim(size)
    x = net.conv(net.conv("x", 3, 2, "VALID"), 3, 1, "VALID")
    x = net.pool(net.conv(x, 3), 3, 2)
    x = net.pool(net.conv(net.conv(x, 1), 3, 1, "VALID"), 3, 2)

    def pooled(x: str) -> str:
        return net.conv(net.pool(x, 3, 1, "SAME", "AveragePool"), 1)

    for _ in range(3):
        x = net.concat(net.conv(x, 1), net.convs(x, 1, 5), net.convs(x, 1, 3, 3), pooled(x))
    deep = net.conv(net.convs(x, 1, 3), 3, 2, "VALID")
    x = net.concat(net.conv(x, 3, 2, "VALID"), deep, net.pool(x, 3, 2))
    row, column = (1, 7), (7, 1)
    for _ in range(4):
        double = net.convs(x, 1, column, row, column, row)
        x = net.concat(net.conv(x, 1), net.convs(x, 1, row, column), double, pooled(x))
    short = net.conv(net.conv(x, 1), 3, 2, "VALID")
    deep = net.conv(net.convs(x, 1, row, column), 3, 2, "VALID")
    x = net.concat(short, deep, net.pool(x, 3, 2))
    for _ in range(2):
        wide, twice = net.conv(x, 1), net.convs(x, 1, 3)
        split = [net.conv(source, kernel) for source in (wide, twice) for kernel in ((1, 3), (3, 1))]
        x = net.concat(net.conv(x, 1), *split, pooled(x))
    return net.graph(x)
