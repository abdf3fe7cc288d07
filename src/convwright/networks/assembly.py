"""A graph under construction, layer by layer, with the names that PyTorch gives modules and their parameters."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph import Graph, Node, ValueInfo
from convwright.graph.shape_rules import Scope
from convwright.graph.shapes import infer_next
from convwright.spec import AxesLike, ConvSpec, PaddingLike

Array = np.ndarray[Any, Any]
FLOAT = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the graph: its name, and its shape without the batch, C x spatial."""

    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """The spatial sizes."""
        return self.shape[1:]


class Assembly:
    """Adds layers to a graph.

    - `name`: the graph's.
    - `input_shape`: C x spatial; the batch stays open.
    - `seed`: of the random weights. None for weights that all are zero and take no memory: enough for everything that
      asks for shapes alone, costs among them, and for `from_state_dict`.

    A layer's name is a module's path in PyTorch: `scope` adds its prefix, and parameters are called `PATH.weight`,
    `PATH.bias`, `PATH.running_mean` and `PATH.running_var`. Convolutions get normal weights of variance 2 / fan-in
    (He et al., arXiv 1502.01852, equation 10), fully connected layers of variance 1 / fan-in, biases zeros; batch norms
    do nothing.

    >>> net = Assembly("two layers", (3, 32, 32), seed=0)
    >>> with net.scope("features"):
    ...     x = net.relu(net.conv("0", net.input, 8, 3, padding=1))
    >>> graph = net.finish(net.linear("classifier", net.flatten(net.global_average_pool(x)), 10))
    >>> [node.name for node in graph.nodes]
    ['features.0', 'features.relu', 'global_average_pool', 'flatten', 'classifier']
    >>> {name: array.shape for name, array in graph.constants.items()}
    {'features.0.weight': (8, 3, 3, 3), 'classifier.weight': (10, 8), 'classifier.bias': (10,)}
    """

    def __init__(self, name: str, input_shape: Sequence[int], *, seed: int | None = 0) -> None:
        shape = tuple(input_shape)
        if any(size < 1 for size in shape):
            raise ConvwrightError(f"network {name!r}: an input of shape {shape} is empty")
        self.graph = Graph(name, {"x": ValueInfo(FLOAT, ("N", *shape))}, [], [], {})
        self.input = Tensor("x", shape)
        self._seed = seed
        self._prefix: list[str] = []
        self._names = {"x"}
        self._types = Scope(self.graph.constants, self.graph.opset)
        self._types.values["x"] = ValueInfo(FLOAT, (1, *shape))

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Layers added inside have names that begin with `name` and a dot."""
        self._prefix.append(name)
        try:
            yield
        finally:
            self._prefix.pop()

    def node(
        self,
        op: str,
        inputs: Sequence[Tensor | str],
        name: str = "",
        *,
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """Any operator; returns its output, or a tuple of them where there are several.

        - `inputs`: values, or the names of constants.
        - `name`: by default the operator's, with a number from its second use in a scope on.
        - `domain`: of the operator, `"convwright"` for those that ONNX lacks.
        """
        path = self._path(name or _snake(op), unique=not name)
        given = [value if isinstance(value, str) else value.name for value in inputs]
        names = [path] if outputs == 1 else [f"{path}.{index}" for index in range(outputs)]
        node = Node(op, given, names, attributes, path, domain)
        infer_next(self._types, node, self.graph)
        self.graph.nodes.append(node)
        results = tuple(Tensor(out, self._types.values[out].shape[1:]) for out in names)  # type: ignore[arg-type]
        return results[0] if outputs == 1 else results

    def constant(self, name: str, array: Array) -> str:
        """A constant of the current scope; returns its whole name."""
        path = ".".join([*self._prefix, name])
        if path in self.graph.constants:
            raise ConvwrightError(f"network {self.graph.name!r}: constant {path!r} is defined twice")
        self.graph.constants[path] = array
        self._types.values[path] = ValueInfo(array.dtype, array.shape)
        return path

    def weight(self, name: str, shape: tuple[int, ...], variance: float) -> str:
        """A constant of normal values."""
        path = ".".join([*self._prefix, name])
        if self._seed is None:
            return self.constant(name, _filled(0, shape))
        # Seeded by its name too, so that a layer's weights do not depend on what was added before it.
        rng = np.random.default_rng([self._seed, zlib.crc32(path.encode())])
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(math.sqrt(variance))
        return self.constant(name, values)

    def filled(self, name: str, value: float, shape: tuple[int, ...]) -> str:
        """A constant whose elements are all `value`."""
        array = _filled(value, shape)
        return self.constant(name, array if self._seed is None else array.copy())

    def conv(
        self,
        name: str,
        x: Tensor,
        out_channels: int,
        kernel: AxesLike,
        *,
        stride: AxesLike = 1,
        padding: PaddingLike = 0,
        dilation: AxesLike = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> Tensor:
        """A convolution; the arguments are those of `ConvSpec`."""
        spec = ConvSpec.of_rank(
            len(x.size), x.channels, out_channels, kernel,
            stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias,
        )  # fmt: skip
        pads = spec.pads(x.size)
        inputs: list[Tensor | str] = [x, self.weight(f"{name}.weight", spec.weight_shape, 2 / _fan_in(spec))]
        if bias:
            inputs.append(self.filled(f"{name}.bias", 0, (out_channels,)))
        result: Tensor = self.node(
            "Conv",
            inputs,
            name,
            kernel_shape=spec.kernel,
            strides=spec.stride,
            pads=(*(low for low, _ in pads), *(high for _, high in pads)),
            dilations=spec.dilation,
            group=groups,
        )
        return result

    def linear(self, name: str, x: Tensor, out_features: int, *, bias: bool = True) -> Tensor:
        """A fully connected layer: N x C to N x K."""
        (features,) = x.shape
        if out_features < 1:
            raise ConvwrightError(f"network {self.graph.name!r}: layer {name!r} with {out_features} outputs")
        inputs: list[Tensor | str] = [x, self.weight(f"{name}.weight", (out_features, features), 1 / features)]
        if bias:
            inputs.append(self.filled(f"{name}.bias", 0, (out_features,)))
        result: Tensor = self.node("Gemm", inputs, name, alpha=1.0, beta=1.0, transA=0, transB=1)
        return result

    def batch_norm(self, name: str, x: Tensor, *, epsilon: float = 1e-5) -> Tensor:
        """Batch normalisation by its running statistics (arXiv 1502.03167)."""
        fields = (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1))
        constants = [self.filled(f"{name}.{field}", value, (x.channels,)) for field, value in fields]
        result: Tensor = self.node("BatchNormalization", [x, *constants], name, epsilon=epsilon)
        return result

    def relu(self, x: Tensor, name: str = "") -> Tensor:
        return self._same("Relu", x, name)

    def relu6(self, x: Tensor, name: str = "") -> Tensor:
        """min(max(x, 0), 6)."""
        limits = [self._shared("zero", np.float32(0)), self._shared("six", np.float32(6))]
        result: Tensor = self.node("Clip", [x, *limits], name or self._free("relu6"))
        return result

    def sigmoid(self, x: Tensor, name: str = "") -> Tensor:
        return self._same("Sigmoid", x, name)

    def silu(self, x: Tensor, name: str = "") -> Tensor:
        """x * sigmoid(x) (arXiv 1710.05941)."""
        return self.multiply(x, self.sigmoid(x), name or self._free("silu"))

    def add(self, x: Tensor, y: Tensor, name: str = "") -> Tensor:
        result: Tensor = self.node("Add", [x, y], name)
        return result

    def multiply(self, x: Tensor, y: Tensor, name: str = "") -> Tensor:
        result: Tensor = self.node("Mul", [x, y], name)
        return result

    def concat(self, parts: Sequence[Tensor], name: str = "") -> Tensor:
        """Side by side on the channel axis."""
        result: Tensor = self.node("Concat", parts, name, axis=1)
        return result

    def split(self, x: Tensor, channels: Sequence[int], name: str = "") -> tuple[Tensor, ...]:
        """Parts of the channel axis, of these many channels each."""
        name = name or self._free("split")
        sizes = self.constant(f"{name}.sizes", np.array(channels, np.int64))
        parts: tuple[Tensor, ...] = self.node("Split", [x, sizes], name, outputs=len(channels), axis=1)
        return parts

    def max_pool(
        self, x: Tensor, kernel: int, stride: int, *, padding: int = 0, ceil: bool = False, name: str = ""
    ) -> Tensor:
        """The largest of each window; `ceil` rounds the output size up."""
        return self._pool("MaxPool", x, kernel, stride, padding, ceil, name)

    def average_pool(
        self,
        x: Tensor,
        kernel: int,
        stride: int,
        *,
        padding: int = 0,
        ceil: bool = False,
        count_padding: bool = True,
        name: str = "",
    ) -> Tensor:
        """The mean of each window; `count_padding` says whether padded zeros count as elements, as in PyTorch."""
        return self._pool("AveragePool", x, kernel, stride, padding, ceil, name, count_include_pad=int(count_padding))

    def global_average_pool(self, x: Tensor, name: str = "") -> Tensor:
        return self._same("GlobalAveragePool", x, name)

    def adaptive_average_pool(self, x: Tensor, size: Sequence[int], name: str = "") -> Tensor:
        """The mean over windows that cut `x` into `size` equal parts; nothing where it has that size.

        Raises ConvwrightError where `size` does not divide it.
        """
        size = tuple(size)
        if x.size == size:
            return x
        if any(have % want for have, want in zip(x.size, size, strict=True)):
            raise ConvwrightError(
                f"network {self.graph.name!r}: {_by(x.size)} elements do not divide into {_by(size)} equal windows; "
                "choose another input size"
            )
        kernel = tuple(have // want for have, want in zip(x.size, size, strict=True))
        result: Tensor = self.node("AveragePool", [x], name, kernel_shape=kernel, strides=kernel)
        return result

    def flatten(self, x: Tensor, name: str = "") -> Tensor:
        result: Tensor = self.node("Flatten", [x], name, axis=1)
        return result

    def channel_shuffle(self, x: Tensor, groups: int, name: str = "channel_shuffle") -> Tensor:
        """Channels (G, C/G) become (C/G, G) (arXiv 1707.01083, figure 1), in three nodes of standard ONNX."""
        if x.channels % groups:
            raise ConvwrightError(f"channel shuffle: {x.channels} channels are not divisible by groups {groups}")
        with self.scope(name):
            apart = (0, groups, x.channels // groups, *x.size)
            y = self.node("Reshape", [x, self.constant("apart", np.array(apart, np.int64))])
            y = self.node("Transpose", [y], perm=(0, 2, 1, *range(3, len(apart))))
            result: Tensor = self.node("Reshape", [y, self.constant("joined", np.array((0, *x.shape), np.int64))])
        return result

    def finish(self, *outputs: Tensor) -> Graph:
        """The graph, validated."""
        self.graph.outputs = [output.name for output in outputs]
        self.graph.validate()
        return self.graph

    def _same(self, op: str, x: Tensor, name: str) -> Tensor:
        result: Tensor = self.node(op, [x], name)
        return result

    def _pool(
        self, op: str, x: Tensor, kernel: int, stride: int, padding: int, ceil: bool, name: str, **more: Any
    ) -> Tensor:
        rank = len(x.size)
        result: Tensor = self.node(
            op, [x], name, kernel_shape=(kernel,) * rank, strides=(stride,) * rank, pads=(padding,) * rank * 2,
            ceil_mode=int(ceil), **more,
        )  # fmt: skip
        return result

    def _shared(self, name: str, value: np.float32) -> str:
        """A scalar that all layers use."""
        if name not in self.graph.constants:
            array = np.array(value)
            self.graph.constants[name] = array
            self._types.values[name] = ValueInfo(array.dtype, array.shape)
        return name

    def _free(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`, ... where the scope has it already."""
        path = ".".join([*self._prefix, name])
        count = 0
        while (f"{path}_{count}" if count else path) in self._names:
            count += 1
        return f"{name}_{count}" if count else name

    def _path(self, name: str, *, unique: bool) -> str:
        path = ".".join([*self._prefix, self._free(name) if unique else name])
        if path in self._names:
            raise ConvwrightError(f"network {self.graph.name!r}: two layers are called {path!r}")
        self._names.add(path)
        return path


def _fan_in(spec: ConvSpec) -> int:
    return math.prod(spec.weight_shape[1:])


def _filled(value: float, shape: tuple[int, ...]) -> Array:
    """An array of one value that takes the memory of one element."""
    return np.broadcast_to(np.float32(value), shape)


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _snake(op: str) -> str:
    """`GlobalAveragePool` as `global_average_pool`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in op).strip("_")
