"""Convolutions that ONNX lacks, as functions inside the file: ONNX Runtime inlines them, `load` knows them again.

The node of a `Convolution`, `HetConvolution` or `MixConvolution` calls a function of the domain `convwright`, whose
body is standard ONNX; its own attributes say what it is. Each convolution has these, and a node of several parts has
those of all, one after another: `in_channels`, `out_channels`, `kernel_shape`, `strides`, `dilations`, `pads` (low
ends, then high ends), `auto_pad`, `group`, `transposed`, `output_padding`, `padding_mode`, `flip`, and `bias`, whether
one is added. A HetConvolution has `part` as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph.graph import INTERNAL, Graph, Node
from convwright.spec import ConvSpec, HetSpec

OPERATORS = ("Convolution", "HetConvolution", "MixConvolution")

VERSION = 1
"""Of the domain's operators, in files."""

_WORDS = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower"}
_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}

_NUMBERED = re.compile(rf"({'|'.join(OPERATORS)})_\d+")


def operator(name: str) -> str:
    """The operator that a function of the domain `convwright` stands for, `""` for none."""
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else ""


class Functions:
    """The functions that the nodes of a graph call, one for each operator with the same attributes."""

    def __init__(self, graph: Graph) -> None:
        self.opset = graph.opset
        self.protos: list[Any] = []
        self._names: dict[Any, str] = {}

    def call(self, node: Node) -> Node:
        """The node that calls the function of this one."""
        specs = _specs(node)
        attributes = _attributes(specs)
        if node.op == "HetConvolution":
            attributes["part"] = node.attributes["spec"].part
        key = (node.op, len(node.inputs), *attributes.items())
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = f"{node.op}_{len(self.protos)}"
            self.protos.append(_Body(node, specs, self.opset).function(name, attributes))
        return Node(name, list(node.inputs), list(node.outputs), attributes, node.name, INTERNAL)


def known_again(node: Node) -> Node:
    """The operator that a node stands for which calls one of these functions.

    Raises ConvwrightError for attributes that describe none.
    """
    op = operator(node.op)
    try:
        given = node.attributes
        specs = tuple(_spec(given, place) for place in range(len(given["group"])))
        if not specs or (op != "MixConvolution" and len(specs) > 1):
            raise ConvwrightError(f"they describe {len(specs)} convolutions")
        if op == "MixConvolution":
            attributes: dict[str, Any] = {"parts": specs}
        else:
            attributes = {"spec": HetSpec(specs[0], given["part"]) if op == "HetConvolution" else specs[0]}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConvwrightError(f"{node}: its attributes do not describe a {op}: {error}") from error
    return Node(op, list(node.inputs), list(node.outputs), attributes, node.name, INTERNAL)


def _specs(node: Node) -> tuple[ConvSpec, ...]:
    if node.op == "MixConvolution":
        return tuple(node.attributes["parts"])
    spec = node.attributes["spec"]
    return (spec.conv if node.op == "HetConvolution" else spec,)


def _attributes(specs: Sequence[ConvSpec]) -> dict[str, Any]:
    words = {word: name for name, word in _WORDS.items()}
    pads = [((0, 0),) * spec.rank if isinstance(spec.padding, str) else spec.padding for spec in specs]
    return {
        "in_channels": tuple(spec.in_channels for spec in specs),
        "out_channels": tuple(spec.out_channels for spec in specs),
        "kernel_shape": tuple(size for spec in specs for size in spec.kernel),
        "strides": tuple(step for spec in specs for step in spec.stride),
        "dilations": tuple(step for spec in specs for step in spec.dilation),
        "pads": tuple(pair[end] for pairs in pads for end in (0, 1) for pair in pairs),
        "auto_pad": tuple(words.get(str(spec.padding), "NOTSET") for spec in specs),
        "group": tuple(spec.groups for spec in specs),
        "transposed": tuple(int(spec.transposed) for spec in specs),
        "output_padding": tuple(size for spec in specs for size in spec.output_padding),
        "padding_mode": tuple(spec.padding_mode for spec in specs),
        "flip": tuple(int(spec.flip) for spec in specs),
        "bias": tuple(int(spec.bias) for spec in specs),
    }


def _spec(given: Mapping[str, Any], place: int) -> ConvSpec:
    """The convolution of one part."""
    rank = len(given["kernel_shape"]) // len(given["group"])
    axes = slice(place * rank, (place + 1) * rank)
    pads = given["pads"][2 * place * rank : 2 * (place + 1) * rank]
    return ConvSpec(
        given["in_channels"][place],
        given["out_channels"][place],
        given["kernel_shape"][axes],
        stride=given["strides"][axes],
        padding=_WORDS.get(given["auto_pad"][place]) or tuple(zip(pads[:rank], pads[rank:], strict=True)),
        dilation=given["dilations"][axes],
        groups=given["group"][place],
        transposed=bool(given["transposed"][place]),
        output_padding=given["output_padding"][axes],
        bias=bool(given["bias"][place]),
        padding_mode=given["padding_mode"][place],
        flip=bool(given["flip"][place]),
    )


class _Body:
    """The nodes of a function, in standard ONNX."""

    def __init__(self, node: Node, specs: Sequence[ConvSpec], opset: int) -> None:
        self.node, self.specs, self.opset = node, specs, opset
        self.nodes: list[Any] = []

    def function(self, name: str, attributes: Mapping[str, Any]) -> Any:
        """The onnx.FunctionProto."""
        from onnx import helper

        count = len(self.specs)
        biases = ["" for _ in self.specs]
        inputs = ["x", *(f"w{place}" for place in range(count))]
        for place, spec in enumerate(self.specs):
            if spec.bias:
                biases[place] = f"b{place}"
        inputs += [biases[place] or f"none{place}" for place in range(len(self.node.inputs) - 1 - count)]
        if self.node.op == "MixConvolution":
            sizes = self.constant(np.array([spec.in_channels for spec in self.specs], np.int64))
            pieces = [f"x{place}" for place in range(count)]
            self.add("Split", ["x", sizes], pieces, axis=1)
            made = [
                self.convolution(spec, piece, f"w{place}", biases[place], f"y{place}")
                for place, (spec, piece) in enumerate(zip(self.specs, pieces, strict=True))
            ]
            self.add("Concat", made, ["y"], axis=1)
        else:
            weight = self.thinned("w0") if self.node.op == "HetConvolution" else "w0"
            self.convolution(self.specs[0], "x", weight, biases[0], "y")
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_function(INTERNAL, name, inputs, ["y"], self.nodes, opsets, list(attributes))

    def add(self, op: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any) -> str:
        from onnx import helper

        names = list(outputs) or [f"t{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0]

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        return self.add("Constant", [], value=numpy_helper.from_array(array))

    def integers(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def thinned(self, weight: str) -> str:
        """The weights of a HetConvolution, zeros wherever a kernel has its centre alone."""
        spec: HetSpec = self.node.attributes["spec"]
        conv = spec.conv
        ones = (1,) * conv.rank
        centre = np.zeros((1, 1, *conv.kernel), bool)
        centre[(0, 0, *(size // 2 for size in conv.kernel))] = True
        filters = np.arange(conv.out_channels).reshape(-1, 1, *ones) % spec.part
        channels = np.arange(conv.in_channels).reshape(1, -1, *ones) % spec.part
        full = self.add("Equal", [self.constant(channels), self.constant(filters)])
        kept = self.add("Or", [full, self.constant(centre)])
        # A zero of the weight's own type, and not a product with zeros: what is not read may be infinite.
        nothing = self.add("CastLike", [self.constant(np.zeros((), np.float32)), weight])
        return self.add("Where", [kept, weight, nothing])

    def convolution(self, spec: ConvSpec, x: str, weight: str, bias: str, result: str) -> str:
        if spec.flip:
            axes = range(2, spec.rank + 2)
            ends = [self.integers([value] * spec.rank) for value in (-1, -(2**31))]
            weight = self.add("Slice", [weight, *ends, self.integers(axes), self.integers([-1] * spec.rank)])
        options: dict[str, Any] = {"strides": spec.stride, "dilations": spec.dilation, "group": spec.groups}
        inputs = [x, weight, bias] if bias else [x, weight]
        if spec.transposed:
            pads = spec.pads()
            options |= {"pads": [pair[end] for end in (0, 1) for pair in pads], "output_padding": spec.output_padding}
            return self.add("ConvTranspose", inputs, [result], **options)
        if not isinstance(spec.padding, str) and spec.padding_mode == "zeros":
            options["pads"] = [pair[end] for end in (0, 1) for pair in spec.padding]
        else:
            zero = self.add("CastLike", [self.constant(np.zeros((), np.float32)), x])
            pads_name = self.same_pads(spec, x) if isinstance(spec.padding, str) else self.explicit_pads(spec)
            if spec.padding_mode == "circular" and self.opset < 19:
                raise ConvwrightError(f"{self.node}: circular padding needs opset 19, the graph has {self.opset}")
            inputs[0] = self.add("Pad", [x, pads_name, zero], mode=_MODES[spec.padding_mode])
        return self.add("Conv", inputs, [result], **options)

    def explicit_pads(self, spec: ConvSpec) -> str:
        pads = spec.pads()
        return self.integers([value for end in (0, 1) for value in (0, 0, *(pair[end] for pair in pads))])

    def same_pads(self, spec: ConvSpec, x: str) -> str:
        """What Pad takes, for an output of `ceil(size / stride)` whatever the input's size is (`ConvSpec.pads`)."""
        one, two, none = self.integers([1]), self.integers([2]), self.integers([0])
        size = self.add("Shape", [x], start=2)
        stride = self.integers(spec.stride)
        outputs = self.add("Div", [self.add("Add", [size, self.integers([s - 1 for s in spec.stride])]), stride])
        reach = self.add("Mul", [self.add("Sub", [outputs, one]), stride])
        span = self.add("Add", [reach, self.integers(spec.effective_kernel)])
        total = self.add("Max", [self.add("Sub", [span, size]), none])
        less = self.add("Div", [total, two])
        more = self.add("Sub", [total, less])
        low, high = (more, less) if spec.padding == "same_lower" else (less, more)
        still = self.integers([0, 0])
        return self.add("Concat", [still, low, still, high], axis=0)
