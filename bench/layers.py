#!/usr/bin/env python3
"""How near every layer comes to the FMA ceiling inside its network, beside the same layer in other runtimes.

    python bench/layers.py FOLDER [NAME ...] [--only-short] [--alone] [--json]

FOLDER is what bench/export_networks.py wrote. A layer is a convolution or a fully connected layer of the simplified
network (batch norms folded); equal ones (input, weights, stride, padding, dilation, groups) share a row. The times are
each runtime's own profile of the whole network: here the layer's steps, filling its input's padding included and
conversion between layouts not; of onnxruntime the node's kernel time; of openvino the node's real_time. Where one layer
here is several there (equal convolutions side by side), theirs are added up.

One process a runtime, in turns. Within a turn a runtime runs as it likes, spinning threads included; the next one's
turn comes when its threads rest. onnxruntime and openvino open the network anew for each turn, which is how their
profiles begin anew. Times are medians over the turns of a turn's median (openvino tells means alone, to a microsecond).

"short" marks what the project does not allow itself: a layer under 60 % of the ceiling where a peer's is above.

With --alone each layer is measured as a network of its own, too, with random weights: the whole call in each runtime,
conversion of the input and the output included, and here the layer's steps without it.
"""

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import convwright as cw
from convwright.cli.options import print_json, progress_bar
from convwright.cli.worker import settle
from convwright.graph import Graph, Node
from convwright.graph.rewrites import simplify
from convwright.graph.shapes import Inferred, infer
from convwright.kernels.activations import ROWS as ACTIVATIONS
from convwright.model.fuse import layers_of
from convwright.runtime.ceilings import ceilings
from convwright.runtime.machine import describe

OURS = "convwright"
SHARE = 0.6  # of the ceiling
SEED = 0
Shape = tuple[int, ...]

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_CONVERSIONS = ("pack", "unpack")  # kernels that only change the layout


# -- layers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes two layers equal; a fully connected layer has no window."""

    x: Shape
    weight: Shape
    y: Shape
    stride: Shape = ()
    padding: tuple[Any, ...] = ()
    dilation: Shape = ()
    groups: int = 1

    @property
    def macs(self) -> int:
        return int(np.prod(self.y)) * int(np.prod(self.weight[1:]))

    def __str__(self) -> str:
        out = f"{'x'.join(map(str, self.x[1:]))} -> {self.weight[0]}"
        if len(self.x) < 3:
            return f"{out} fully connected"
        text = f"{out} {'x'.join(map(str, self.weight[2:]))}"
        text += f" stride {'x'.join(map(str, dict.fromkeys(self.stride)))}" if set(self.stride) != {1} else ""
        text += f" dilation {'x'.join(map(str, dict.fromkeys(self.dilation)))}" if set(self.dilation) != {1} else ""
        if self.groups == self.x[1] and self.groups > 1:
            return f"{text} depthwise"
        return f"{text} groups {self.groups}" if self.groups > 1 else text


@dataclass(slots=True)
class Row:
    """One kind of layer in one network.

    - `names`: of the layers of this kind; `parts`: for each, the places of the file's nodes that it stands for.
    - `seconds`: by runtime, of one such layer in the network; convwright's without filling the padding: `kernel`.
    - `alone`: the same for a network of this layer alone; `alone_kernel`: convwright's steps without conversion.
    """

    kind: Kind
    node: Node
    names: list[str] = field(default_factory=list)
    parts: list[tuple[int, ...]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    kernel: float | None = None
    alone: dict[str, float] = field(default_factory=dict)
    alone_kernel: float | None = None

    def gflops(self, seconds: float | None) -> float | None:
        return 2e-9 * self.kind.macs / seconds if seconds else None

    def share(self, runtime: str, ceiling: float) -> float | None:
        """Of the FMA ceiling."""
        rate = self.gflops(self.seconds.get(runtime))
        return None if rate is None else 1e9 * rate / ceiling

    def short(self, ceiling: float) -> bool:
        ours = self.share(OURS, ceiling)
        peers = [self.share(runtime, ceiling) or 0.0 for runtime in self.seconds if runtime != OURS]
        return ours is not None and ours < SHARE and max(peers, default=0.0) >= SHARE

    def to_dict(self, ceiling: float) -> dict[str, Any]:
        kind = self.kind
        return {
            "layer": str(kind), "names": self.names, "macs": kind.macs, "input": kind.x, "weight": kind.weight,
            "output": kind.y, "stride": kind.stride, "padding": kind.padding, "dilation": kind.dilation,
            "groups": kind.groups, "seconds": self.seconds, "kernel_seconds": self.kernel,
            "gflops": {runtime: self.gflops(seconds) for runtime, seconds in self.seconds.items()},
            "share": {runtime: self.share(runtime, ceiling) for runtime in self.seconds},
            "short": self.short(ceiling), "alone_seconds": self.alone, "alone_kernel_seconds": self.alone_kernel,
        }  # fmt: skip


class File:
    """The nodes of a file as it stands, and which of its products a name speaks of."""

    def __init__(self, graph: Graph, types: Inferred):
        self.nodes = [node for node in graph.nodes if node.op in _PRODUCTS and node.inputs[1] in graph.constants]
        self.shapes = [(concrete(types, node.inputs[0]), concrete(types, node.inputs[1])) for node in self.nodes]
        places = {id(node): place for place, node in enumerate(self.nodes)}
        self.direct: dict[str, int] = {}
        self.behind: dict[str, set[int]] = {}  # products from which a value comes by layers that may be fused
        for node in graph.nodes:
            if id(node) in places:
                place = places[id(node)]
                found = {place}
                self.direct |= dict.fromkeys((node.name, *node.outputs), place)
            elif node.op in _SEPARATE:
                continue
            else:
                found = {place for name in node.inputs for place in self.behind.get(name, ())}
            for name in (node.name, *node.outputs):
                self.behind[name] = found

    def parts(self, names: Sequence[str], weight: Shape, x: Shape = ()) -> tuple[int, ...]:
        """The products that a runtime's layer of these names stands for: one, or equal ones side by side.

        Where the names tell nothing, the last with these shapes.
        """
        for name in names:
            if name in self.direct:
                return (self.direct[name],)
        behind = [sorted(self.behind[name]) for name in names if self.behind.get(name)]
        for places in behind:
            alike = [place for place in places if self.shapes[place][1] == weight]
            if alike:
                return tuple(alike[-1:])
        for places in behind:
            if len(places) == 1 or sum(self.shapes[place][1][0] for place in places) == weight[0]:
                return tuple(places)
        return tuple([place for place, shapes in enumerate(self.shapes) if shapes == (x, weight)][-1:])


# Nothing is fused across these. A concatenation is not among them: equal convolutions before one may be one layer.
_SEPARATE = {
    "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose", "Split", "Slice",
}  # fmt: skip


def rows_of(graph: Graph, file: File) -> list[Row]:
    """The distinct layers of a simplified network, in order."""
    types = infer(graph)
    rows: dict[Kind, Row] = {}
    for layer in layers_of(graph, types, set(ACTIVATIONS)):
        node = layer.node
        if node.op not in ("Conv", "Gemm") or node.inputs[1] not in graph.constants:
            continue
        x, weight, y = (concrete(types, name) for name in (*node.inputs[:2], node.outputs[0]))
        kind = kind_of(node, x, weight, y)
        row = rows.setdefault(kind, Row(kind, node))
        row.names.append(layer.name)
        row.parts.append(file.parts((node.name, node.outputs[0]), weight))
    return list(rows.values())


def concrete(types: Inferred, name: str) -> Shape:
    return tuple(int(size) for size in types[name].shape if size is not None)


def kind_of(node: Node, x: Shape, weight: Shape, y: Shape) -> Kind:
    if node.op != "Conv":
        return Kind(x, weight, y)
    get, rank = node.attributes.get, len(x) - 2
    padding = get("pads", (0,) * 2 * rank)
    if (automatic := get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        padding = (automatic,)
    stride, dilation = get("strides", (1,) * rank), get("dilations", (1,) * rank)
    return Kind(x, weight, y, tuple(stride), tuple(padding), tuple(dilation), get("group", 1))


def save_alone(row: Row, path: Path) -> None:
    """A network of this layer alone, with random weights and a bias."""
    from onnx import TensorProto, helper, numpy_helper
    from onnx import save as save_onnx

    kind, rng = row.kind, np.random.default_rng(SEED)
    weight = rng.standard_normal(kind.weight, np.float32) / np.float32(np.sqrt(np.prod(kind.weight[1:])))
    bias = rng.standard_normal(kind.weight[0], np.float32)
    attributes = {name: value for name, value in row.node.attributes.items() if value is not None}
    node = helper.make_node(row.node.op, ["x", "w", "b"], ["y"], "layer", **attributes)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, kind.x)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, kind.y)]
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "layer", inputs, outputs, weights)
    save_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


# -- the processes that hold a runtime ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Timed:
    """One entry of a runtime's profile: what it is called, the shapes that the runtime tells, its seconds."""

    names: list[str]
    x: Shape
    weight: Shape
    seconds: float
    kernel: float | None = None


class Convwright:
    """`Model.profile`: the layer's steps, in `kernel` without those that fill the padding."""

    def __init__(self, threads: int):
        self.threads = threads
        self.models: dict[str, Any] = {}

    def profile(self, path: str, x: np.ndarray, runs: int) -> list[Timed]:
        if path not in self.models:
            for model in self.models.values():
                model.close()
            self.models = {path: cw.compile(path, threads=self.threads, strips=False)}
        layers: dict[str, Timed] = {}
        for step in self.models[path].profile(x, runs=runs).steps:
            if step.kernel not in _CONVERSIONS and step.layer:
                timed = layers.setdefault(step.layer, Timed([step.layer], (), (), 0.0, 0.0))
                timed.seconds += step.seconds
                timed.kernel = (timed.kernel or 0.0) + (step.seconds if step.macs else 0.0)
        return list(layers.values())

    def call(self, path: str, x: np.ndarray, runs: int) -> tuple[float, float | None]:
        with cw.compile(path, threads=self.threads) as model:
            seconds = timed_calls(lambda: model(x), runs)
            report = model.profile(x, runs=runs)
        return seconds, sum(step.seconds for step in report.steps if step.kernel not in _CONVERSIONS)


class OnnxRuntime:
    """Its profile is a file of events, one a node and inference."""

    def __init__(self, threads: int):
        self.threads = threads

    def _session(self, path: str, prefix: str = "") -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        if prefix:
            options.enable_profiling, options.profile_file_prefix = True, prefix
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def profile(self, path: str, x: np.ndarray, runs: int) -> list[Timed]:
        with tempfile.TemporaryDirectory(prefix="convwright-layers-") as folder:
            session = self._session(path, f"{folder}/profile")
            feed = {session.get_inputs()[0].name: x}
            for _ in range(WARM + runs):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_bytes())
        nodes: dict[str, list[dict[str, Any]]] = {}
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                nodes.setdefault(event["name"], []).append(event)
        return [self._timed(name, found) for name, found in nodes.items() if _is_product(found[0]["args"]["op_name"])]

    def _timed(self, name: str, events: Sequence[Mapping[str, Any]]) -> Timed:
        plain = re.sub(r"^fused |(_nchwc)?_kernel_time$", "", name)
        shapes = [tuple(shape) for one in events[0]["args"]["input_type_shape"] for shape in one.values()]
        seconds = median(event["dur"] for event in events[WARM:]) * 1e-6
        return Timed([plain], shapes[0], shapes[1] if len(shapes) > 1 else (), seconds)

    def call(self, path: str, x: np.ndarray, runs: int) -> tuple[float, float | None]:
        session = self._session(path)
        feed = {session.get_inputs()[0].name: x}
        return timed_calls(lambda: session.run(None, feed), runs), None


class OpenVino:
    """Its profile is the mean over all inferences since the network was opened, so the warm ones are subtracted."""

    def __init__(self, threads: int):
        import openvino

        self.core = openvino.Core()
        self.settings = {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }  # fmt: skip

    def profile(self, path: str, x: np.ndarray, runs: int) -> list[Timed]:
        model = self.core.compile_model(path, "CPU", {**self.settings, "PERF_COUNT": True})
        request = model.create_infer_request()
        totals: list[dict[str, float]] = []
        for count in WARM, runs:
            for _ in range(count):
                request.infer([x], share_inputs=True)
            done = WARM if not totals else WARM + runs
            # Means are rounded down to a microsecond: half of one is what they lack on average.
            mean = {info.node_name: info.real_time.total_seconds() + 0.5e-6 for info in request.get_profiling_info()}
            totals.append({name: seconds * done for name, seconds in mean.items()})
        layers = []
        for node in model.get_runtime_model().get_ops():
            name, info = node.get_friendly_name(), node.get_rt_info()
            if name not in totals[1] or not _is_product(info["layerType"].astype(str)):
                continue
            names = [name, *info["originalLayersNames"].astype(str).split(",")]
            x_shape, weight = (tuple(port.get_shape()) for port in node.inputs()[:2])
            if len(weight) > len(x_shape):
                weight = (weight[0] * weight[1], *weight[2:])
            seconds = (totals[1][name] - totals[0].get(name, 0.0)) / runs
            layers.append(Timed([one.removesuffix("/WithoutBiases") for one in names], x_shape, weight, seconds))
        return layers

    def call(self, path: str, x: np.ndarray, runs: int) -> tuple[float, float | None]:
        request = self.core.compile_model(path, "CPU", self.settings).create_infer_request()
        return timed_calls(lambda: request.infer([x], share_inputs=True), runs), None


WARM = 2  # inferences of a turn that do not count
CLOCKS: dict[str, type[Convwright] | type[OnnxRuntime] | type[OpenVino]] = {
    OURS: Convwright,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}


def _is_product(op: str) -> bool:
    return any(word in op for word in ("Conv", "Gemm", "MatMul", "FullyConnected"))


def timed_calls(call: Any, runs: int) -> float:
    """The median seconds of a call."""
    seconds = []
    for _ in range(WARM + runs):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[WARM:])


def serve(runtime: str, threads: int, pipe: Connection) -> None:
    """Answer requests (method, arguments) until there are no more; each answer waits for the threads to rest."""
    clock: Any = None
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            clock = clock or CLOCKS[runtime](threads)
            answer = getattr(clock, method)(*arguments)
        except Exception as error:  # whatever a foreign runtime raises is told beside the table
            traceback.print_exc()
            answer = RuntimeError(" ".join(str(error).split()) or type(error).__name__)
        settle()
        pipe.send(answer)


class Clocks:
    """A process a runtime; one that fails is left out from then on, and why is in `reasons`."""

    def __init__(self, runtimes: Sequence[str], threads: int, stack: ExitStack):
        self.pipes: dict[str, Connection] = {}
        self.reasons: dict[str, str] = {}
        context = multiprocessing.get_context("spawn")
        for runtime in runtimes:
            if find_spec(runtime) is None:
                self.reasons[runtime] = "not installed"
                continue
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(runtime, threads, there), daemon=True)
            process.start()
            there.close()
            stack.callback(process.join, 10)
            stack.callback(here.close)
            self.pipes[runtime] = here

    def turn(self, number: int, method: str, *arguments: Any) -> Iterator[tuple[str, Any]]:
        """Every runtime's answer, one after the other; whoever begins a round ends the next."""
        runtimes = list(self.pipes)
        for place in range(len(runtimes)):
            runtime = runtimes[(place + number) % len(runtimes)]
            try:
                self.pipes[runtime].send((method, arguments))
                answer = self.pipes[runtime].recv()
            except (EOFError, OSError):
                answer = RuntimeError("its process ended")
                del self.pipes[runtime]
            if isinstance(answer, Exception):
                self.reasons[runtime] = str(answer)
            else:
                yield runtime, answer


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(path: Path, clocks: Clocks, options: argparse.Namespace, report: Any) -> list[Row]:
    """The rows of one network."""
    graph = cw.load(str(path))
    ((_, value),) = graph.inputs.items()
    shape = tuple(size if isinstance(size, int) else 1 for size in value.shape)
    value.shape = shape
    file = File(graph, infer(graph))
    rows = rows_of(simplify(graph), file)
    del graph
    x = np.random.default_rng(SEED).standard_normal(shape, np.float32)
    turns: dict[str, dict[Any, list[float]]] = {}  # by runtime, then by products of the file or by our layer's name
    for number in range(options.turns):
        for runtime, layers in clocks.turn(number, "profile", str(path), x, options.runs):
            for key, seconds in turn_seconds(runtime, layers, file):
                turns.setdefault(runtime, {}).setdefault(key, []).append(seconds)
        report(f"{path.stem}: in the network", (number + 1) / options.turns)
    for row in rows:
        fill(row, {runtime: {key: median(them) for key, them in found.items()} for runtime, found in turns.items()})
    if options.alone:
        measure_alone(rows, clocks, options, lambda share: report(f"{path.stem}: layers alone", share))
    return rows


def turn_seconds(runtime: str, layers: Sequence[Timed], file: File) -> Iterator[tuple[Any, float]]:
    for timed in layers:
        if runtime == OURS:
            yield timed.names[0], timed.seconds
            yield ("kernel", timed.names[0]), timed.kernel or 0.0
        elif parts := file.parts(timed.names, timed.weight, timed.x):
            yield parts, timed.seconds


def fill(row: Row, medians: Mapping[str, Mapping[Any, float]]) -> None:
    """The row's seconds: the mean over its layers that the runtime's profile tells of."""
    for runtime, found in medians.items():
        if runtime == OURS:
            row.kernel = mean([found[key] for name in row.names if (key := ("kernel", name)) in found])
            seconds = mean([found[name] for name in row.names if name in found])
        else:
            seconds = mean([taken for parts in row.parts if (taken := together(parts, found)) is not None])
        if seconds is not None:
            row.seconds[runtime] = seconds


def together(parts: tuple[int, ...], found: Mapping[Any, float]) -> float | None:
    """The seconds of products that are one layer there, too, or one layer each."""
    if parts in found:
        return found[parts]
    return sum(found[part,] for part in parts) if parts and all((part,) in found for part in parts) else None


def measure_alone(rows: Sequence[Row], clocks: Clocks, options: argparse.Namespace, report: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="convwright-layers-") as folder:
        for index, row in enumerate(rows):
            path = Path(folder) / f"{index}.onnx"
            save_alone(row, path)
            x = np.random.default_rng(SEED).standard_normal(row.kind.x, np.float32)
            turns: dict[str, list[tuple[float, float | None]]] = {}
            for number in range(options.turns):
                for runtime, answer in clocks.turn(number, "call", str(path), x, options.runs):
                    turns.setdefault(runtime, []).append(answer)
            path.unlink()
            row.alone = {runtime: median(whole for whole, _ in found) for runtime, found in turns.items()}
            kernels = [kernel for _, kernel in turns.get(OURS, []) if kernel is not None]
            row.alone_kernel = median(kernels) if kernels else None
            report((index + 1) / len(rows))


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# -- reports -----------------------------------------------------------------------------------------------------------


def print_table(name: str, rows: Sequence[Row], runtimes: Sequence[str], ceiling: float, alone: bool) -> None:
    """GFLOP/s and the share of the ceiling of each layer."""
    from rich.console import Console
    from rich.table import Table

    def cell(row: Row, seconds: float | None) -> str:
        rate = row.gflops(seconds)
        return "-" if rate is None else f"{rate:.0f} {1e9 * rate / ceiling:4.0%}"

    table = Table(title=name, title_justify="left")
    table.add_column("layer", no_wrap=True)
    headings = ["times", "MMACs", *runtimes, "kernel alone", ""]
    headings += [f"one-layer: {runtime}" for runtime in runtimes] + ["kernel"] if alone else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [cell(row, row.seconds.get(runtime)) for runtime in runtimes]
        cells += [cell(row, row.kernel), "short" if row.short(ceiling) else ""]
        if alone:
            cells += [cell(row, row.alone.get(runtime)) for runtime in runtimes] + [cell(row, row.alone_kernel)]
        table.add_row(str(row.kind), str(len(row.names)), f"{row.kind.macs / 1e6:.1f}", *cells)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(table)


def summary(name: str, rows: Sequence[Row], runtimes: Sequence[str], ceiling: float) -> str:
    """One line: how many layers are short, and what all layers together reach in each runtime."""
    short = sum(row.short(ceiling) for row in rows)
    rates = []
    for runtime in runtimes:
        known = [row for row in rows if runtime in row.seconds]
        seconds = sum(row.seconds[runtime] * len(row.names) for row in known)
        if seconds:
            share = 2 * sum(row.kind.macs * len(row.names) for row in known) / seconds / ceiling
            missing = f", {len(rows) - len(known)} unknown" if len(known) < len(rows) else ""
            rates.append(f"{runtime} {1e3 * seconds:.2f} ms ({share:.0%}{missing})")
    layers = sum(len(row.names) for row in rows)
    return f"{name}: {layers} layers of {len(rows)} kinds, {short} short; all layers: {', '.join(rates)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of networks in the folder; all by default")
    parser.add_argument("--against", default="onnxruntime,openvino")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5, help="of each runtime, for each network")
    parser.add_argument("--runs", type=int, default=10, help="inferences that count in a turn")
    parser.add_argument("--alone", action="store_true", help="measure each layer as a network of its own, too")
    parser.add_argument("--only-short", action="store_true", help="print the rows marked short alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args()
    usual = sorted(path for path in options.folder.glob("*.onnx") if "-" not in path.stem)
    paths = [options.folder / f"{name}.onnx" for name in options.names] or usual
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        parser.error(f"no such file: {', '.join(missing) or options.folder / '*.onnx'}")
    runtimes = [OURS, *dict.fromkeys(options.against.split(","))]
    if set(runtimes) - set(CLOCKS):
        parser.error(f"--against {options.against}: known are onnxruntime, openvino")
    if min(options.threads, options.turns, options.runs) < 1:
        parser.error("--threads, --turns and --runs are at least 1")

    ceiling = ceilings(options.threads)[0]
    if not options.json:
        print(f"{describe()['cpu']}, {options.threads} threads: FMA ceiling {ceiling / 1e9:.0f} GFLOP/s")
    results = {}
    with ExitStack() as stack:
        clocks = Clocks(runtimes, options.threads, stack)
        for path in paths:
            with progress_bar() as progress:
                task = progress.add_task(path.stem, total=1.0)
                rows = measure(
                    path,
                    clocks,
                    options,
                    lambda what, share, task=task, progress=progress: progress.update(
                        task, description=what, completed=share
                    ),
                )
            shown = [row for row in rows if row.short(ceiling)] if options.only_short else rows
            results[path.stem] = {"layers": [row.to_dict(ceiling) for row in shown], "failed": dict(clocks.reasons)}
            if not options.json:
                if shown:
                    print_table(path.stem, shown, runtimes, ceiling, options.alone)
                print(summary(path.stem, rows, runtimes, ceiling))
                sys.stdout.flush()
            for runtime, reason in clocks.reasons.items():
                print(f"{path.stem}: {runtime}: {reason}", file=sys.stderr)
            clocks.reasons.clear()
    if options.json:
        print_json({"machine": describe(), "threads": options.threads, "fma_flops": ceiling, "networks": results})


if __name__ == "__main__":
    main()
