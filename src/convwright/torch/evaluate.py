"""Evaluate an ONNX file with PyTorch's operators, in float64 as an oracle or in float32 as a peer.

It reads the file itself and shares nothing with the graph rewrites and the generated kernels that it judges. An
operator that is not in the table below, or that is asked for in a way PyTorch does not define alike, goes through
`onnx.reference`. Functions that the file defines are expanded into their bodies.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.nn import functional as F

from convwright.errors import ConvwrightError
from convwright.torch.convolutions import conv, conv_integer, conv_transpose, deform_conv, qlinear_conv
from convwright.torch.step import NotAlike, Step, not_alike, padded, pads

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Evaluator:
    """The network of an ONNX file, run node by node.

    - `path`: the file, or a model already read.
    - `dtype`: every floating-point constant, input and result is of this type.
    - `channels_last`: hold images and weights channels last, PyTorch's faster layout for convolutions on the CPU.
    """

    def __init__(
        self,
        path: str | PathLike[str] | onnx.ModelProto,
        *,
        dtype: torch.dtype = torch.float64,
        channels_last: bool = False,
    ) -> None:
        model = path if isinstance(path, onnx.ModelProto) else onnx.load(path)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        self.dtype, self.channels_last = dtype, channels_last
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.constants = {t.name: self._tensor(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in model.graph.output]
        self.steps = self._schedule(model.graph.node)
        self._references: dict[int, ReferenceEvaluator] = {}

    def _schedule(self, nodes: Sequence[onnx.NodeProto]) -> list[Step]:
        last_reader = {name: index for index, node in enumerate(nodes) for name in node.input}
        kept = {*self.outputs, ""}
        spent: list[list[str]] = [[] for _ in nodes]
        for name, index in last_reader.items():
            if name not in kept and name not in self.constants:
                spent[index].append(name)
        steps = []
        for node, names in zip(nodes, spent, strict=True):
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant" and "value" in attributes:
                self.constants[node.output[0]] = self._tensor(onnx.numpy_helper.to_array(attributes["value"]))
            else:
                fixed = all(name in self.constants or not name for name in node.input[1:])
                steps.append(Step(node, attributes, names, self.dtype, self.channels_last, fixed))
        for step in steps:
            step.spent = [name for name in step.spent if name not in self.constants]
        return steps

    def _tensor(self, array: np.ndarray) -> Tensor:
        """As a tensor that may share the array's memory: no operator writes to its inputs."""
        usable = array.flags.writeable and min(array.strides, default=0) >= 0
        tensor = torch.from_numpy(array if usable else np.array(array))
        if tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        if self.channels_last and tensor.dim() in _CHANNELS_LAST:
            tensor = tensor.contiguous(memory_format=_CHANNELS_LAST[tensor.dim()])
        return tensor

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the network: arrays by input name in, row-major arrays by output name out."""
        with torch.inference_mode():
            values: dict[str, Tensor] = {name: self._tensor(array) for name, array in inputs.items()}
            for step in self.steps:
                self._run(step, values)
            return {name: self._value(values, name).contiguous().numpy() for name in self.outputs}

    def _value(self, values: dict[str, Tensor], name: str) -> Tensor:
        return values[name] if name in values else self.constants[name]

    def _run(self, step: Step, values: dict[str, Tensor]) -> None:
        arguments = [self._value(values, name) if name else None for name in step.node.input]
        operator = _OPERATORS.get(step.node.op_type) if step.node.domain in ("", "ai.onnx") else None
        try:
            if operator is None:
                raise NotAlike
            result = operator(step, *arguments)
        except NotAlike:
            result = self._reference(step, arguments)
        results = [result] if isinstance(result, Tensor) else result
        for name, tensor in zip(step.node.output, results, strict=False):
            values[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        for name in step.spent:
            values.pop(name, None)

    def _reference(self, step: Step, arguments: Sequence[Tensor | None]) -> list[Tensor]:
        evaluator = self._references.get(id(step))
        if evaluator is None:
            try:
                evaluator = self._references[id(step)] = ReferenceEvaluator(step.node, opsets=self.opsets)
            except (NotImplementedError, RuntimeError) as error:
                raise ConvwrightError(f"node {step.node.name!r}: no float64 run of {step.node.op_type}") from error
        feed = {n: t.numpy() for n, t in zip(step.node.input, arguments, strict=True) if t is not None}
        return [self._tensor(np.asarray(array)) for array in evaluator.run(None, feed)]


def _max_pool(step: Step, x: Tensor) -> Tensor:
    kernel = step.attributes["kernel_shape"]
    rank = len(kernel)
    low, high = pads(step, x, kernel)
    ceil_mode = bool(step.attributes.get("ceil_mode", 0))
    if len(step.node.output) > 1 or (ceil_mode and any(low + high)):
        raise NotAlike
    if low != high or any(2 * pad > k for pad, k in zip(low, kernel, strict=True)):
        x, low = padded(x, low, high, float("-inf")), [0] * rank
    pool: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    strides, dilations = (step.attributes.get(key, [1] * rank) for key in ("strides", "dilations"))
    return pool(x, kernel, strides, low, dilations, ceil_mode)


def _average_pool(step: Step, x: Tensor) -> Tensor:
    kernel = step.attributes["kernel_shape"]
    rank = len(kernel)
    low, high = pads(step, x, kernel)
    ceil_mode = bool(step.attributes.get("ceil_mode", 0))
    dilated = any(d != 1 for d in step.attributes.get("dilations", ()))
    too_wide = any(2 * pad > k for pad, k in zip(low, kernel, strict=True))
    if low != high or dilated or too_wide or (ceil_mode and any(low)):
        raise NotAlike
    pool: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    strides = step.attributes.get("strides", [1] * rank)
    return pool(x, kernel, strides, low, ceil_mode, bool(step.attributes.get("count_include_pad", 0)))


def _gemm(step: Step, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if step.attributes.get("transA", 0) else a
    b = b.T if step.attributes.get("transB", 0) else b
    alpha, beta = step.attributes.get("alpha", 1.0), step.attributes.get("beta", 1.0)
    return alpha * (a @ b) if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)


def _batch_norm(step: Step, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if step.attributes.get("training_mode", 0):
        raise NotAlike
    return F.batch_norm(x, mean, variance, scale, bias, eps=step.attributes.get("epsilon", 1e-5))


def _clip(step: Step, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    smallest = low.item() if low is not None else step.attributes.get("min")
    largest = high.item() if high is not None else step.attributes.get("max")
    return x if smallest is None and largest is None else torch.clamp(x, smallest, largest)


def _flatten(step: Step, x: Tensor) -> Tensor:
    axis = step.attributes.get("axis", 1) % (x.dim() + 1)
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return x.reshape(rows, int(np.prod(x.shape[axis:], dtype=np.int64)))


def _reshape(step: Step, x: Tensor, shape: Tensor) -> Tensor:
    if step.attributes.get("allowzero", 0):
        return x.reshape(shape.tolist())
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(shape.tolist())])


def _split(step: Step, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    axis = step.attributes.get("axis", 0)
    if sizes is not None:
        return list(torch.split(x, sizes.tolist(), axis))
    if "split" in step.attributes:
        return list(torch.split(x, list(step.attributes["split"]), axis))
    return list(torch.split(x, -(-x.shape[axis] // len(step.node.output)), axis))


def _reduce_mean(step: Step, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = step.attributes.get("axes") if axes is None else axes.tolist()
    if not chosen:
        raise NotAlike
    return x.mean(list(chosen), keepdim=bool(step.attributes.get("keepdims", 1)))


def _softmax(step: Step, x: Tensor) -> Tensor:
    return F.softmax(x, step.attributes["axis"]) if x.dim() == 2 and "axis" in step.attributes else not_alike()


def _gelu(step: Step, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=step.attributes.get("approximate", b"none").decode())


def _prelu(step: Step, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _hard_sigmoid(step: Step, x: Tensor) -> Tensor:
    return torch.clamp(x * step.attributes.get("alpha", 0.2) + step.attributes.get("beta", 0.5), 0, 1)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda step, a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda step, *parts: torch.cat(parts, step.attributes["axis"]),
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "DeformConv": deform_conv,
    "Dropout": lambda step, x, *_: x if len(step.node.output) == 1 else not_alike(),
    "Erf": lambda step, x: torch.erf(x),
    "Exp": lambda step, x: torch.exp(x),
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda step, x: x.mean(list(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda step, x: x.amax(list(range(2, x.dim())), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda step, x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "Identity": lambda step, x: x,
    "LeakyRelu": lambda step, x: F.leaky_relu(x, step.attributes.get("alpha", 0.01)),
    "MatMul": lambda step, a, b: a @ b,
    "MaxPool": _max_pool,
    "Mul": lambda step, a, b: a * b,
    "PRelu": _prelu,
    "ReduceMean": _reduce_mean,
    "QLinearConv": qlinear_conv,
    "Relu": lambda step, x: torch.relu(x),
    "Reshape": _reshape,
    "Shape": lambda step, x: torch.tensor(x.shape) if not step.attributes else not_alike(),
    "Sigmoid": lambda step, x: torch.sigmoid(x),
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": lambda step, x: torch.sqrt(x),
    "Sub": lambda step, a, b: a - b,
    "Tanh": lambda step, x: torch.tanh(x),
    "Transpose": lambda step, x: x.permute(step.attributes.get("perm", list(range(x.dim()))[::-1])),
}
