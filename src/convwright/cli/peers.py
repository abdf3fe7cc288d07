"""The runtimes that `convwright bench` times, each behind one function: a model's file in, a callable out.

Each runtime is asked for float32 and the same number of threads; the rest is its own default. Only a worker process
opens one, so that no two share threads, allocators or memory figures.
"""

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from convwright.graph import Graph
    from convwright.model import Model

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Arrays], dict[str, np.ndarray]]
Shapes = Mapping[str, tuple[int, ...]]
# What the names of files end in that hold a model in a runtime's own format; it opens those without converting.
NCNN_SUFFIX, MNN_SUFFIX = ".ncnn.param", ".mnn"


class Unavailable(Exception):
    """A runtime that cannot take part, and why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A runtime: the modules that it needs, its package, and the function that opens a model in it."""

    modules: tuple[str, ...]
    package: str
    open: Callable[[str, Shapes, int], Runner]

    def why_not(self) -> str | None:
        """Why it cannot run here, or None."""
        missing = [module for module in self.modules if find_spec(module) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    def version(self) -> str:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""


@runtime_checkable
class Accountable(Protocol):
    """A runner that can say what its memory went into, in bytes."""

    def account(self) -> dict[str, int]: ...


class _Convwright:
    def __init__(self, model: "Model") -> None:
        self.model = model
        self.names = list(model.outputs)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        result = self.model(dict(inputs))
        return result if isinstance(result, dict) else {self.names[0]: result}

    def account(self) -> dict[str, int]:
        return dict(self.model.memory())


def _of_shapes(graph: "Graph", shapes: Shapes) -> "Graph":
    """The graph, its inputs of these shapes. Nobody but `compile` is to hold it: weights then need no second copy."""
    for name, shape in shapes.items():
        graph.inputs[name].shape = shape
    return graph


def _convwright(path: str, shapes: Shapes, threads: int) -> Runner:
    import convwright as cw

    return _Convwright(cw.compile(_of_shapes(cw.load(path), shapes), threads=threads))


def _convwright_tuned(path: str, shapes: Shapes, threads: int) -> Runner:
    import convwright as cw

    return _Convwright(cw.compile(_of_shapes(cw.load(path), shapes), threads=threads, tune=True))


def _convwright_strict(path: str, shapes: Shapes, threads: int) -> Runner:
    import convwright as cw

    return _Convwright(cw.compile(_of_shapes(cw.load(path), shapes), threads=threads, numerics="strict"))


def _convwright_graph(path: str, shapes: Shapes, threads: int) -> Runner:
    """A pickled `Graph`, for operators that no ONNX file holds."""
    import convwright as cw

    with open(path, "rb") as file:
        return _Convwright(cw.compile(_of_shapes(pickle.load(file), shapes), threads=threads))


def _onnxruntime(path: str, shapes: Shapes, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    if not all(_fits(value.shape, shapes[value.name]) for value in session.get_inputs()):
        session = onnxruntime.InferenceSession(_reshaped(path, shapes), options, providers=providers)
    names = [value.name for value in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _openvino(path: str, shapes: Shapes, threads: int) -> Runner:
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    named = {port.any_name: port for port in network.inputs}
    for name, port in named.items():
        declared = [size.get_length() if size.is_static else None for size in port.partial_shape]
        if not _fits(declared, shapes[name]):
            network.reshape({named[name]: list(shape) for name, shape in shapes.items()})
            break
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    names = [port.any_name for port in network.outputs]

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        request.infer(dict(inputs), share_inputs=True)
        return {name: request.get_output_tensor(index).data for index, name in enumerate(names)}

    return run


def _torch(channels_last: bool) -> Callable[[str, Shapes, int], Runner]:
    """PyTorch in one of its two layouts: channels last is the faster for most networks, not for every single layer."""

    def opened(path: str, shapes: Shapes, threads: int) -> Runner:
        import torch

        from convwright.torch.evaluate import Evaluator

        torch.set_num_threads(threads)
        return Evaluator(path, dtype=torch.float32, channels_last=channels_last)

    return opened


def _torch_integer(path: str, shapes: Shapes, threads: int) -> Runner:
    """One QLinearConv of two axes, on what PyTorch's quantised models run: oneDNN's integer convolution."""
    import onnx
    import torch

    graph = onnx.load(path).graph
    if len(graph.node) != 1 or graph.node[0].op_type != "QLinearConv" or len(shapes) != 1:
        raise Unavailable("runs one QLinearConv alone here")
    torch.set_num_threads(threads)
    node = graph.node[0]
    given = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *bias = (given[name] for name in node.input[1:])
    pads = attributes.get("pads", [0] * 4)
    if w.dim() != 4 or pads[:2] != pads[2:] or w_zero.any():
        raise Unavailable("takes two axes, equal padding on both sides and weights without a zero point")
    window = (attributes.get("strides", [1, 1]), pads[:2], attributes.get("dilations", [1, 1]))
    groups = attributes.get("group", 1)
    channels = w.shape[0]
    w_scale = w_scale.reshape(-1).expand(channels).contiguous()
    ((name, shape),) = shapes.items()
    of_input = (float(x_scale), int(x_zero))
    packed = torch.ops.onednn.qconv_prepack(w, w_scale, of_input[0], of_input[1], *window, groups, list(shape))
    zeros = torch.zeros(channels, dtype=torch.int64)
    added = bias[0].float() * of_input[0] * w_scale if bias else None
    tail: tuple[Any, ...] = (float(y_scale), int(y_zero), y_zero.dtype, "none", [], "")
    output = node.output[0]

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            x = torch.from_numpy(inputs[name])
            y = torch.ops.onednn.qconv2d_pointwise(x, *of_input, packed, w_scale, zeros, added, *window, groups, *tail)
            return {output: y.contiguous().numpy()}

    return run


def _ncnn(path: str, shapes: Shapes, threads: int) -> Runner:
    import ncnn

    if len(shapes) != 1:
        raise Unavailable(f"takes one input here, the model has {len(shapes)}")
    ((name, shape),) = shapes.items()
    if shape[0] != 1:
        raise Unavailable(f"runs a batch of 1 alone, not {shape[0]}")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(path) if path.endswith(NCNN_SUFFIX) else ncnn_file(path, shape, Path(folder))
        net.load_param(str(converted))
        net.load_model(str(converted.with_suffix(".bin")))
    first, outputs = net.input_names()[0], list(net.output_names())

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        extractor = net.create_extractor()
        extractor.input(first, ncnn.Mat(np.ascontiguousarray(inputs[name][0])))
        return {output: np.array(extractor.extract(output)[1])[np.newaxis] for output in outputs}

    return run


def ncnn_file(path: str, shape: tuple[int, ...], folder: Path) -> Path:
    """Convert an ONNX file to ncnn's own format; its weights are a file beside the one that returns.

    pnnx writes beside its input. Raises `Unavailable` where it cannot.
    """
    import pnnx

    copy = folder / "model.onnx"
    copy.symlink_to(Path(path).resolve())
    sizes = ",".join(map(str, shape))
    command = [pnnx.EXEC_PATH, str(copy), f"inputshape=[{sizes}]f32", "fp16=0"]
    converted = folder / f"model{NCNN_SUFFIX}"
    _convert("pnnx", command, folder, [converted, converted.with_suffix(".bin")])
    return converted


def _convert(converter: str, command: Sequence[str], folder: Path, written: Sequence[Path]) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not all(file.exists() for file in written):
        lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
        what = lines[-1] if lines else f"exit code {done.returncode}"
        raise Unavailable(f"{converter} cannot convert the model: {what}")


def _mnn(path: str, shapes: Shapes, threads: int) -> Runner:
    """MNN's sessions, its interface for fixed shapes."""
    import MNN

    with tempfile.TemporaryDirectory() as folder:
        interpreter = MNN.Interpreter(str(path if path.endswith(MNN_SUFFIX) else mnn_file(path, Path(folder))))
    # High precision is float32; "normal" may take less where the processor has it.
    session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": threads})
    inputs = interpreter.getSessionInputAll(session)
    for name, shape in shapes.items():
        if tuple(inputs[name].getShape()) != shape:
            interpreter.resizeTensor(inputs[name], shape)
    interpreter.resizeSession(session)
    outputs = interpreter.getSessionOutputAll(session)
    layout = MNN.Tensor_DimensionType_Caffe  # rows of channels: N x C x spatial
    given = {name: tensor.getShape() for name, tensor in outputs.items()}
    answers = {name: np.empty(shape, np.float32) for name, shape in given.items()}

    def run(arrays: Arrays) -> dict[str, np.ndarray]:
        for name, x in arrays.items():
            inputs[name].copyFrom(MNN.Tensor(x.shape, MNN.Halide_Type_Float, x, layout))
        interpreter.runSession(session)
        results = {}
        for name, tensor in outputs.items():
            host = MNN.Tensor(given[name], MNN.Halide_Type_Float, answers[name], layout)
            tensor.copyToHostTensor(host)
            results[name] = np.array(host.getNumpyData()).reshape(given[name])
        return results

    return run


def mnn_file(path: str, folder: Path) -> Path:
    """Convert an ONNX file to MNN's own format. Raises `Unavailable` where its converter cannot."""
    converted = folder / f"model{MNN_SUFFIX}"
    # The converter's own command, mnnconvert, installs a package with the first pip that it finds and reports to MNN's
    # maker; the function behind it does neither. A process of its own, because it may end the process that calls it.
    call = "import _tools, sys; _tools.mnnconvert(['MNNConvert', *sys.argv[1:]])"
    files = ["--modelFile", str(Path(path).resolve()), "--MNNModel", str(converted)]
    command = [sys.executable, "-c", call, "-f", "ONNX", *files, "--bizCode", "convwright"]
    _convert("MNN", command, folder, [converted])
    return converted


def _float64(path: str, shapes: Shapes, threads: int) -> Runner:
    """The oracle: PyTorch's operators in float64, or without PyTorch onnx.reference, slower by far."""
    if find_spec("torch") is not None:
        import torch

        from convwright.torch.evaluate import Evaluator

        torch.set_num_threads(threads)
        return Evaluator(path, dtype=torch.float64)
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(path)
    constants = [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
    for tensor in [*model.graph.initializer, *constants]:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    evaluator = ReferenceEvaluator(model)

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        wide = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in inputs.items()}
        return dict(zip(evaluator.output_names, evaluator.run(None, wide), strict=True))

    return run


def _fits(declared: Sequence[int | str | None], shape: tuple[int, ...]) -> bool:
    """Whether a model that declares this shape takes that one; names and None are free."""
    return all(not isinstance(size, int) or size == wanted for size, wanted in zip(declared, shape, strict=True))


def _reshaped(path: str, shapes: Shapes) -> bytes:
    """The file's bytes with other input shapes than those that it fixes."""
    import onnx

    model = onnx.load(path)
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            dim.dim_value = size
    for value in model.graph.output:
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{index}"
    del model.graph.value_info[:]
    return model.SerializeToString()


# onnx is imported when the first file is read, and belongs to what importing takes.
_OWN_MODULES = ("llvmlite", "onnx", "convwright.model")
PEERS = {
    "convwright": Peer(_OWN_MODULES, "convwright", _convwright),
    "onnxruntime": Peer(("onnxruntime",), "onnxruntime", _onnxruntime),
    "openvino": Peer(("openvino",), "openvino", _openvino),
    "torch": Peer(("torch", "convwright.torch.evaluate"), "torch", _torch(channels_last=True)),
    "torch-nchw": Peer(("torch", "convwright.torch.evaluate"), "torch", _torch(channels_last=False)),
    "torch-int8": Peer(("torch", "onnx"), "torch", _torch_integer),
    "ncnn": Peer(("ncnn", "pnnx"), "ncnn", _ncnn),
    "mnn": Peer(("MNN", "_tools"), "MNN", _mnn),
}
# Not to be asked for by name where a model comes from elsewhere: what is pickled runs.
GRAPH = Peer(_OWN_MODULES, "convwright", _convwright_graph)
TUNED = Peer(_OWN_MODULES, "convwright", _convwright_tuned)
STRICT = Peer(_OWN_MODULES, "convwright", _convwright_strict)
FLOAT64 = Peer(("onnx",), "onnx", _float64)
