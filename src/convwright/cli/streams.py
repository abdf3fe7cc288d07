"""Runtimes set up for throughput: the images of a batch one by one, several at a time, on one thread each.

They take the place of `convwright.cli.peers` in a race; an inference is still the whole batch.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from convwright.cli.peers import PEERS, Arrays, Peer, Runner, Shapes, Unavailable

Opened = Callable[[str, Shapes, int], Runner]


def _images(inputs: Arrays) -> Iterator[dict[str, np.ndarray]]:
    """The images of a batch, each a batch of one."""
    (count,) = {x.shape[0] for x in inputs.values()}
    for number in range(count):
        yield {name: x[number : number + 1] for name, x in inputs.items()}


def _single(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    if len({shape[0] for shape in shapes.values()}) != 1:
        raise Unavailable("the inputs do not share a batch axis")
    return {name: (1, *shape[1:]) for name, shape in shapes.items()}


def _joined(answers: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _convwright_map(path: str, shapes: Shapes, threads: int) -> Runner:
    import convwright as cw

    graph = cw.load(path)
    for name, shape in _single(shapes).items():
        graph.inputs[name].shape = shape
    names = list(graph.outputs)
    model = cw.compile(graph, threads=1)

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        results = model.map(_images(inputs), workers=threads)
        return _joined([result if isinstance(result, dict) else {names[0]: result} for result in results])

    return run


def _called_by_threads(peer: str) -> Opened:
    """One session on one thread, called by as many Python threads."""

    def opened(path: str, shapes: Shapes, threads: int) -> Runner:
        alone = PEERS[peer].open(path, _single(shapes), 1)
        pool = ThreadPoolExecutor(threads)
        return lambda inputs: _joined(list(pool.map(alone, _images(inputs))))

    return opened


def _one_by_one(peer: str) -> Opened:
    """A session on all threads, an image after another: of runtimes that take no batch."""

    def opened(path: str, shapes: Shapes, threads: int) -> Runner:
        alone = PEERS[peer].open(path, _single(shapes), threads)
        return lambda inputs: _joined([alone(image) for image in _images(inputs)])

    return opened


def _openvino_streams(path: str, shapes: Shapes, threads: int) -> Runner:
    """A stream a thread, by the throughput hint, and as many requests under way as it calls the best."""
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    single = _single(shapes)
    network.reshape({port: list(single[port.any_name]) for port in network.inputs})
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(network, "CPU", settings)
    count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    idle = deque(compiled.create_infer_request() for _ in range(count))
    names = [port.any_name for port in network.outputs]

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        answers: list[dict[str, np.ndarray]] = []
        busy: deque[Any] = deque()

        def finish() -> None:
            request = busy.popleft()
            request.wait()
            answers.append({name: request.get_output_tensor(at).data.copy() for at, name in enumerate(names)})
            idle.append(request)

        for image in _images(inputs):
            if not idle:
                finish()
            request = idle.popleft()
            request.start_async(image, share_inputs=True)
            busy.append(request)
        while busy:
            finish()
        return _joined(answers)

    return run


STREAMS = {
    "convwright-map": Peer(("llvmlite", "onnx", "convwright.model"), "convwright", _convwright_map),
    "onnxruntime-threads": Peer(("onnxruntime",), "onnxruntime", _called_by_threads("onnxruntime")),
    "openvino-streams": Peer(("openvino",), "openvino", _openvino_streams),
    "ncnn-threads": Peer(("ncnn", "pnnx"), "ncnn", _called_by_threads("ncnn")),
    "ncnn-images": Peer(("ncnn", "pnnx"), "ncnn", _one_by_one("ncnn")),
}
