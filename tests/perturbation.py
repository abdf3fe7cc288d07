"""Random networks in which nothing cancels, and what of their input each value is seen to depend on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convwright.graph import Graph, Node, ValueInfo
from convwright.graph.onnx_writer import model_proto
from convwright.torch.evaluate import Evaluator

_AXES = "DHW"


class RandomGraph:
    """Grows a graph of one input `x`, [N, 2, spatial], by random operators of random sizes; weights are positive."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, ...]) -> None:
        self.rng, self.size, self.rank = rng, size, len(size)
        self.constants: dict[str, np.ndarray] = {}
        self.nodes: list[Node] = []
        self.made = 0

    def grow(self, steps: int, operators: str) -> Graph:
        """A graph of this many of the named methods one after another; every value is an output."""
        value, channels, names = "x", 2, operators.split()
        for _ in range(steps):
            method: Callable[[str, int], tuple[str, int]] = getattr(self, str(self.rng.choice(names)))
            value, channels = method(value, channels)
        info = ValueInfo(np.dtype(np.float32), ("N", 2, *self.size))
        outputs = [out for node in self.nodes for out in node.outputs]
        return Graph("random", {"x": info}, outputs, self.nodes, self.constants, 18)

    # -- operators: each takes and returns a value's name and its channels -------------------------------------------

    def conv(self, x: str, channels: int, **fixed: tuple[int, ...]) -> tuple[str, int]:
        kernel = fixed.get("kernel") or self._each(1, 5)
        dilation = fixed.get("dilation") or self._each(1, 3)
        stride = fixed.get("stride") or self._each(1, 3)
        pads = fixed.get("pads") or tuple(int(self.rng.integers(0, k + 1)) for k in kernel * 2)
        groups = int(self.rng.choice([g for g in (1, 2, 3) if channels % g == 0]))
        weights = self._weights((2 * groups, channels // groups, *kernel))
        sizes = {"strides": stride, "dilations": dilation, "pads": pads, "group": groups}
        return self._node("Conv", [x, weights], **sizes), 2 * groups

    def same_conv(self, x: str, channels: int) -> tuple[str, int]:
        weights = self._weights((1, channels, *self._each(1, 6)))
        auto = str(self.rng.choice(["SAME_UPPER", "SAME_LOWER"]))
        return self._node("Conv", [x, weights], strides=self._each(1, 3), auto_pad=auto), 1

    def transposed(self, x: str, channels: int) -> tuple[str, int]:
        kernel, stride = self._each(1, 5), self._each(1, 4)
        low = tuple(int(self.rng.integers(0, k)) for k in kernel)
        weights = self._weights((channels, 2, *kernel))
        sizes = {"strides": stride, "dilations": self._each(1, 3), "pads": low + self._high(low)}
        return self._node("ConvTranspose", [x, weights], **sizes), 2

    def pool(self, x: str, channels: int) -> tuple[str, int]:
        op = str(self.rng.choice(["MaxPool", "AveragePool"]))
        kernel = self._each(1, 4)
        low, high, ceil = self._each(0, 0), self._each(0, 0), int(self.rng.integers(2))
        if not ceil:  # rounding up, onnx.reference pads at the wrong end
            low, high = (tuple(int(self.rng.integers(0, k)) for k in kernel) for _ in "lh")
        sizes = {"kernel_shape": kernel, "strides": self._each(1, 4), "pads": low + high}
        if op == "AveragePool":
            sizes["pads"] = low + low
        return self._node(op, [x], **sizes, ceil_mode=ceil), channels

    def residual(self, x: str, channels: int) -> tuple[str, int]:
        half = self._each(0, 2)
        dilation = self._each(1, 2)
        pads = tuple(h * d for h, d in zip(half, dilation, strict=True)) * 2
        kernel = tuple(2 * h + 1 for h in half)
        weights = self._weights((channels, channels, *kernel))
        branch = self._node("Conv", [x, weights], dilations=dilation, pads=pads)
        return self._node("Add", [branch, x]), channels

    def branches(self, x: str, channels: int) -> tuple[str, int]:
        """Kernels of different sizes side by side, concatenated; an even one makes the centres differ."""
        stride, parts = self._each(1, 2), []
        for kernel in ((1,) * self.rank, (3,) * self.rank, self._each(1, 4)):
            weights = self._weights((1, channels, *kernel))
            parts.append(self._node("Conv", [x, weights], strides=stride, auto_pad="SAME_UPPER"))
        return self._node("Concat", parts, axis=1), 3

    def resize(self, x: str, channels: int) -> tuple[str, int]:
        scales = self.rng.choice([0.5, 1.0, 1.5, 2.0, 3.0], self.rank)
        self.constants[name := self._fresh()] = np.array([1, 1, *scales], np.float32)
        mode = str(self.rng.choice(["nearest", "linear"]))
        place = str(self.rng.choice(["asymmetric", "half_pixel"]))
        if mode == "linear":
            place = "half_pixel"
        return self._node("Resize", [x, "", name], mode=mode, coordinate_transformation_mode=place), channels

    def slice(self, x: str, channels: int) -> tuple[str, int]:
        start, step = int(self.rng.integers(0, 3)), int(self.rng.integers(1, 3))
        for value in ([start], [1 << 30], [2], [step]):
            self.constants[self._fresh()] = np.array(value, np.int64)
        return self._node("Slice", [x, *list(self.constants)[-4:]]), channels

    def pad(self, x: str, channels: int) -> tuple[str, int]:
        widths = [0, 0, *self.rng.integers(0, 4, self.rank)]
        self.constants[name := self._fresh()] = np.array(widths + widths, np.int64)
        return self._node("Pad", [x, name]), channels

    def swap(self, x: str, channels: int) -> tuple[str, int]:
        order = (0, 1, *range(self.rank + 1, 1, -1))
        return self._node("Transpose", [x], perm=order), channels

    def gate(self, x: str, channels: int) -> tuple[str, int]:
        """Squeeze-and-excitation without its activation: what is pooled is positive, so no product vanishes inside."""
        return self._node("Add", [x, self._node("GlobalAveragePool", [x])]), channels

    def _each(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.rng.integers(low, high + 1, self.rank))

    def _high(self, low: tuple[int, ...]) -> tuple[int, ...]:
        """Padding at the high end: of one axis any, of more the same, for which the evaluator is quick."""
        return (int(self.rng.integers(0, low[0] + 1)),) if self.rank == 1 else low

    def _weights(self, shape: tuple[int, ...]) -> str:
        self.constants[name := self._fresh()] = self.rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return name

    def _fresh(self) -> str:
        self.made += 1
        return f"v{self.made}"

    def _node(self, op: str, inputs: list[str], **attributes: object) -> str:
        name = self._fresh()
        self.nodes.append(Node(op, inputs, [name], attributes, f"{op}_{name}"))
        return name


def influence(graph: Graph, size: tuple[int, ...], axis: int) -> dict[str, np.ndarray]:
    """By value: a table [input index along `axis`][value index along each of its spatial axes] of who changes whom.

    One slab of the input after another is raised from 0 to 1, in the float64 evaluator. With positive weights and no
    bias a value changes where it is no longer 0.
    """
    count = size[axis]
    slabs = np.zeros((count, 2, *size), np.float64)
    for index in range(count):
        np.moveaxis(slabs[index], axis + 1, 0)[index] = 1.0
    outputs = Evaluator(model_proto(graph))({"x": slabs})
    return {name: (array != 0).any(axis=1) for name, array in outputs.items()}
