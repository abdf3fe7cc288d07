#!/usr/bin/env python3
"""Time deformable convolutions beside the runtimes that have them.

    python bench/deformable.py [--threads 2] [--rounds 9] [--against onnxruntime,openvino,torchvision]

Float32, batch 1, row-major in and out, offsets and masks drawn at random (offsets of a standard deviation of a pixel).
The runtimes take turns of a quarter of a second in one process, each after the last one's threads have come to rest.
What is printed is the median of one inference in milliseconds, and how many times the best peer's time is
convwright's: the median over the rounds. OpenVINO's ONNX reader does not know DeformConv: its layer is built by hand.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import convwright as cw
from convwright.cli.worker import settle
from convwright.spec import ConvSpec, DeformableSpec

Arrays = dict[str, np.ndarray]
Run = Callable[[], np.ndarray]
TURN = 0.25  # seconds

CASES = {
    "64 -> 64, 56 x 56": (DeformableSpec(ConvSpec(64, 64, (3, 3), padding=1), 1, True), 56),
    "128 -> 128, 28 x 28": (DeformableSpec(ConvSpec(128, 128, (3, 3), padding=1), 1, True), 28),
    "256 -> 256, 14 x 14": (DeformableSpec(ConvSpec(256, 256, (3, 3), padding=1), 1, True), 14),
    "256 -> 256, stride 2, 56 x 56": (DeformableSpec(ConvSpec(256, 256, (3, 3), padding=1, stride=2), 1, True), 56),
    "64 -> 64, no mask, 56 x 56": (DeformableSpec(ConvSpec(64, 64, (3, 3), padding=1)), 56),
    "64 -> 64, 4 offset groups, 56 x 56": (DeformableSpec(ConvSpec(64, 64, (3, 3), padding=1), 4, True), 56),
    "128 -> 128, 4 groups and offset groups, 28 x 28": (
        DeformableSpec(ConvSpec(128, 128, (3, 3), padding=1, groups=4), 4, True), 28,
    ),
    "128 -> 128, 32 groups, 28 x 28": (DeformableSpec(ConvSpec(128, 128, (3, 3), padding=1, groups=32), 1, True), 28),
    "128 depthwise, 56 x 56": (DeformableSpec(ConvSpec(128, 128, (3, 3), padding=1, groups=128), 1, True), 56),
    "3 -> 64, 112 x 112": (DeformableSpec(ConvSpec(3, 64, (3, 3), padding=1), 1, True), 112),
    "37 -> 53, 40 x 40": (DeformableSpec(ConvSpec(37, 53, (3, 3), padding=1), 1, True), 40),
}  # fmt: skip


def arrays_of(spec: DeformableSpec, size: int) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {
        "x": (1, spec.conv.in_channels, size, size), "w": spec.conv.weight_shape, "b": (spec.conv.out_channels,),
        "offset": spec.offset_shape((size, size)),
    }  # fmt: skip
    arrays = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    if spec.modulated:
        arrays["mask"] = rng.random(spec.mask_shape((size, size)), dtype=np.float32)
    return arrays


def write_onnx(path: Path, spec: DeformableSpec, arrays: Arrays) -> dict[str, np.ndarray]:
    """A file of one DeformConv; returns what is fed to it."""
    conv = spec.conv
    ((top, bottom), (left, right)) = conv.pads(arrays["x"].shape[2:])
    node = helper.make_node(
        "DeformConv", ["x", "w", "offset", "b", "mask" if spec.modulated else ""], ["y"], kernel_shape=conv.kernel,
        strides=conv.stride, dilations=conv.dilation, pads=[top, left, bottom, right], group=conv.groups,
        offset_group=spec.offset_groups,
    )  # fmt: skip
    fed = {name: array for name, array in arrays.items() if name not in ("w", "b")}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in fed.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(arrays[name], name) for name in ("w", "b")]
    graph = helper.make_graph([node], "deformable", inputs, [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return fed


def convwright(path: Path, spec: DeformableSpec, arrays: Arrays, fed: Arrays, threads: int) -> Run:
    model = cw.compile(cw.load(str(path)), threads=threads)
    return lambda: np.asarray(model(fed))


def onnxruntime(path: Path, spec: DeformableSpec, arrays: Arrays, fed: Arrays, threads: int) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run(None, fed)[0])


def openvino(path: Path, spec: DeformableSpec, arrays: Arrays, fed: Arrays, threads: int) -> Run:
    import openvino as ov
    from openvino import opset8

    conv = spec.conv
    low, high = (list(side) for side in zip(*conv.pads(arrays["x"].shape[2:]), strict=True))
    parameters = {name: opset8.parameter(array.shape, np.float32, name=name) for name, array in fed.items()}
    mask = [parameters["mask"]] if spec.modulated else []
    y = opset8.deformable_convolution(
        parameters["x"], parameters["offset"], arrays["w"], list(conv.stride), low, high, list(conv.dilation), *mask,
        auto_pad="EXPLICIT", group=conv.groups, deformable_group=spec.offset_groups, bilinear_interpolation_pad=True,
    )  # fmt: skip
    y = opset8.add(y, arrays["b"].reshape(1, -1, 1, 1))
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    model = ov.Model([y], list(parameters.values()))
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run() -> np.ndarray:
        request.infer(list(fed.values()), share_inputs=True)
        return np.asarray(request.get_output_tensor(0).data)

    return run


def torchvision(path: Path, spec: DeformableSpec, arrays: Arrays, fed: Arrays, threads: int) -> Run:
    import torch

    deform_conv2d = import_module("torchvision.ops").deform_conv2d
    torch.set_num_threads(threads)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    conv = spec.conv
    padding = [low for low, _ in conv.pads(arrays["x"].shape[2:])]

    def run() -> np.ndarray:
        with torch.inference_mode():
            y = deform_conv2d(
                tensors["x"], tensors["offset"], tensors["w"], tensors["b"], conv.stride, padding, conv.dilation,
                tensors.get("mask"),
            )  # fmt: skip
            return np.asarray(y.numpy())

    return run


PEERS = {"convwright": convwright, "onnxruntime": onnxruntime, "openvino": openvino, "torchvision": torchvision}


def turn(run: Run) -> float:
    """The median of one inference, in seconds."""
    run()
    times: list[float] = []
    while sum(times) < TURN:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    settle()
    return median(times)


def measure(spec: DeformableSpec, size: int, peers: list[str], threads: int, rounds: int) -> tuple[Arrays, Arrays]:
    """Each peer's seconds, one a round, and its output."""
    arrays = arrays_of(spec, size)
    with tempfile.TemporaryDirectory(prefix="convwright-deformable-") as folder:
        path = Path(folder) / "deformable.onnx"
        fed = write_onnx(path, spec, arrays)
        runs = {peer: PEERS[peer](path, spec, arrays, fed, threads) for peer in peers}
    outputs = {peer: run().copy() for peer, run in runs.items()}
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    for number in range(rounds):
        for place in range(len(peers)):
            peer = peers[(place + number) % len(peers)]
            seconds[peer].append(turn(runs[peer]))
    return {peer: np.array(times) for peer, times in seconds.items()}, outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--against", default="onnxruntime,openvino,torchvision")
    options = parser.parse_args()
    wanted = [name for name in options.against.split(",") if name]
    if set(wanted) - set(PEERS):
        parser.error(f"--against {options.against}: known are {', '.join(PEERS)}")
    peers = ["convwright", *(name for name in wanted if find_spec(name) is not None)]
    if missing := [name for name in wanted if find_spec(name) is None]:
        print(f"not installed: {', '.join(missing)}")
    print(" | ".join([f"{'layer':48}", *(f"{peer:>11}" for peer in peers), "to the best", "GFLOP/s", "deviation"]))
    for name, (spec, size) in CASES.items():
        seconds, outputs = measure(spec, size, peers, options.threads, options.rounds)
        own, others = seconds["convwright"], [times for peer, times in seconds.items() if peer != "convwright"]
        ratio = f"{np.median(np.min(others, axis=0) / own):10.2f}x" if others else f"{'-':>11}"
        y = outputs["convwright"]
        apart = max((float(np.abs(y - other).max()) for other in outputs.values()), default=0.0) / float(
            np.abs(y).max()
        )
        rate = 2 * spec.macs((size, size)) / float(np.median(own)) / 1e9
        times = [f"{1e3 * np.median(seconds[peer]):11.3f}" for peer in peers]
        print(" | ".join([f"{name:48}", *times, ratio, f"{rate:7.0f}", f"{apart:9.1e}"]), flush=True)


if __name__ == "__main__":
    main()
