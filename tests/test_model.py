"""A compiled model behaves: inputs, shapes, memory, threads, forks, pickles, errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest

import convwright as cw
from convwright.codegen.jit import compile_kernel
from convwright.graph import Graph, Node, ValueInfo
from convwright.model import model as module
from convwright.model.lower.fallback import SlowOperatorWarning
from convwright.model.plan import _small, make_plan
from convwright.networks.assembly import Assembly
from convwright.runtime import team
from convwright.spec import ConvSpec

from .graph_models import Array, model, node, read, run, weights

SHAPES = [(1, 3, 12, 10), (2, 3, 12, 10), (1, 3, 7, 9), (3, 3, 6, 5), (1, 3, 17, 16)]


def scaled(*shape: int, seed: int = 1) -> Array:
    return weights(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))


@pytest.fixture(autouse=True, scope="module")
def no_work_is_too_small() -> Iterator[None]:
    """These networks would run on one thread; the tests want the team."""
    with patch("convwright.model.plan._small", lambda steps: False):
        yield


def restorer() -> onnx.ModelProto:
    """A network for images of any size: dense, depthwise, dilated and 1x1 convolutions, a concatenation, a residual."""
    constants = {
        "w0": scaled(20, 3, 3, 3),
        "b0": weights(20),
        "w1": scaled(20, 1, 3, 3),
        "w2": scaled(12, 20, 1, 1),
        "w3": scaled(20, 32, 3, 3),
        "w4": scaled(3, 20, 1, 1),
    }
    nodes = [
        node("Conv", "x w0 b0", "c0", pads=[1] * 4),
        node("Relu", "c0", "a"),
        node("Conv", "a w1", "c1", pads=[2] * 4, dilations=[2, 2], group=20),
        node("Conv", "c1 w2", "c2"),
        node("Concat", "a c2", "cat", axis=1),
        node("Conv", "cat w3", "c3", pads=[1] * 4),
        node("Add", "c3 a", "s"),
        node("Relu", "s", "r"),
        node("Conv", "r w4", "y"),
    ]
    return model(nodes, {"x": ("N", 3, "H", "W")}, constants)


def classifier(channels: int = 24, classes: int = 10) -> onnx.ModelProto:
    """A network for images of one size, with two outputs."""
    constants = {
        "w0": scaled(channels, 3, 3, 3),
        "w1": scaled(channels, channels, 3, 3),
        "w2": scaled(classes, channels * 16),
        "b2": weights(classes),
    }
    nodes = [
        node("Conv", "x w0", "c0", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "c0", "r0"),
        node("Conv", "r0 w1", "c1", pads=[1] * 4),
        node("MaxPool", "c1", "features", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "features", "f"),
        node("Gemm", "f w2 b2", "g", transB=1),
        node("Softmax", "g", "probabilities"),
    ]
    return model(nodes, {"x": ("N", 3, 16, 16)}, constants, ("probabilities", "features"))


def pair() -> cw.Model:
    """x - z, of two inputs that share their batch."""
    inputs = {"x": ("N", 5, 3), "z": ("N", 5, 3)}
    return cw.compile(read(model([node("Sub", "x z", "y")], inputs)), threads=1)


def image(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


@pytest.fixture(scope="module")
def net() -> Iterator[cw.Model]:
    with cw.compile(read(restorer()), threads=2) as compiled:
        yield compiled


# -- inputs and outputs ------------------------------------------------------------------------------------------------


def test_inputs_go_by_place_by_name_or_in_a_dict() -> None:
    sub = pair()
    x, z = image(2, 5, 3), image(2, 5, 3, seed=1)
    for result in (sub(x, z), sub(x, z=z), sub(z=z, x=x), sub({"z": z, "x": x}), sub({"x": x}, z=z)):
        np.testing.assert_array_equal(result, x - z)


def test_several_outputs_come_as_a_dict_in_the_graphs_order() -> None:
    proto = classifier()
    compiled = cw.compile(read(proto))
    x = image(2, 3, 16, 16)
    results = compiled(x)
    assert list(results) == ["probabilities", "features"]
    for result, expected in zip(results.values(), run(proto, {"x": x}), strict=True):
        close(result, expected)
    assert {name: info.shape for name, info in compiled.outputs.items()} == {
        "probabilities": (2, 10),
        "features": (2, 24, 4, 4),
    }


def test_arrays_may_lie_in_memory_as_they_like_and_are_never_written(net: cw.Model) -> None:
    x = image(1, 3, 12, 10)
    expected = net(x)
    large = image(2, 4, 24, 13)
    large[:1, 1:, ::2, 2:12] = x
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    assert not unaligned.flags.aligned
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    reversed_rows = np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]
    for given in (x, np.asfortranarray(x), large[:1, 1:, ::2, 2:12], unaligned, channels_last, reversed_rows):
        given.flags.writeable = False
        before = large.copy()
        np.testing.assert_array_equal(net(given), expected)
        np.testing.assert_array_equal(given, x)
        np.testing.assert_array_equal(large, before)


def test_every_call_returns_an_array_of_its_own(net: cw.Model) -> None:
    x = image(1, 3, 12, 10)
    first = net(x)
    kept = first.copy()
    second = net(image(1, 3, 12, 10, seed=5))
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    assert first.flags.writeable
    assert first.flags.c_contiguous


@pytest.mark.parametrize(("kernel", "groups"), [((3, 3), 1), ((3, 3), 20), ((1, 1), 1)], ids=str)
def test_nan_and_infinity_reach_the_windows_they_lie_in_and_no_others(kernel: tuple[int, int], groups: int) -> None:
    w = weights(20, 20 // groups, *kernel)
    attributes = {"pads": [kernel[0] // 2] * 4, "group": groups}
    conv = cw.compile(
        read(model([node("Relu", "x", "r"), node("Conv", "r w", "y", **attributes)], {"x": (1, 20, 6, 7)}, {"w": w})),
        numerics="strict",
    )
    x = np.abs(image(1, 20, 6, 7))
    clean = conv(x)
    reach = kernel[0] // 2
    near = np.zeros(clean.shape, bool)
    near[:, (slice(None) if groups == 1 else 19), 2 - reach : 3 + reach, 3 - reach : 4 + reach] = True
    for value in (np.nan, np.inf):
        hurt = x.copy()
        hurt[0, 19, 2, 3] = value
        result = conv(hurt)
        np.testing.assert_array_equal(result[~near], clean[~near])
        if np.isnan(value):
            assert np.isnan(result[near]).all()
        else:
            # Each window meets the infinity with another weight, whose sign it keeps.
            taps = w[:, -1, ::-1, ::-1] if groups == 1 else w[19:, 0, ::-1, ::-1]
            np.testing.assert_array_equal(result[near].reshape(taps.shape), np.inf * np.sign(taps))


def test_nan_passes_through_activations_sums_pools_and_softmax() -> None:
    x = image(1, 20, 4, 4)
    x[0, 3, 1, 2] = np.nan
    for op in (
        "Relu",
        "Sigmoid",
        "Tanh",
        "LeakyRelu",
        "HardSigmoid",
        "HardSwish",
        "GlobalMaxPool",
        "GlobalAveragePool",
    ):
        result = cw.compile(read(model([node(op, "x", "y")], {"x": x.shape})))(x)
        where = np.isnan(result)
        assert where[0, 3].any(), op
        assert where.sum() == 1, op
    softmax = cw.compile(read(model([node("Softmax", "x", "y", axis=1)], {"x": x.shape})))(x)
    assert np.isnan(softmax[0, :, 1, 2]).all()
    assert np.isnan(softmax).sum() == 20


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_batch_and_size_may_change_from_call_to_call(net: cw.Model) -> None:
    proto = restorer()
    for shape in SHAPES:
        x = image(*shape)
        close(net(x), run(proto, {"x": x})[0])


def test_results_do_not_depend_on_what_ran_before(net: cw.Model) -> None:
    graph = read(restorer())
    alone = []
    for shape in SHAPES:
        with cw.compile(graph, threads=2) as fresh:
            alone.append(fresh(image(*shape)))
    order = np.random.default_rng(0).integers(len(SHAPES), size=25)
    for place in order:
        np.testing.assert_array_equal(net(image(*SHAPES[place])), alone[place])
        # What lies in the arena afterwards is no number at all.
        net(np.full(SHAPES[(place + 1) % len(SHAPES)], np.nan, np.float32))


def test_plans_are_remembered_and_the_oldest_forgotten() -> None:
    planned = []

    def counting(graph: Graph, shapes: Any, *rest: Any) -> Any:
        planned.append(shapes["x"])
        return make_plan(graph, shapes, *rest)

    compiled = cw.compile(read(model([node("Relu", "x", "y")], {"x": ("N", 1, 1, "W")})), threads=1)
    limit = module._REMEMBERED_PLANS
    with patch.object(module, "make_plan", counting):
        for _ in range(2):
            for batch in range(1, limit + 1):
                compiled(np.ones((batch, 1, 1, 5), np.float32))
        assert len(planned) == limit
        compiled(np.ones((1, 1, 1, 5), np.float32))  # now the newest
        compiled(np.ones((limit + 1, 1, 1, 5), np.float32))
        compiled(np.ones((1, 1, 1, 5), np.float32))
        assert len(planned) == limit + 1
        compiled(np.ones((2, 1, 1, 5), np.float32))
        assert len(planned) == limit + 2


def test_a_second_plan_takes_milliseconds() -> None:
    graph = read(restorer())
    shape = (1, 3, 11, 13)
    cw.compile(graph)(image(*shape))  # so that no kernel is left to compile
    compiled = cw.compile(graph)
    compiled(image(1, 3, 12, 10))
    start = time.perf_counter()
    compiled(image(*shape))
    assert time.perf_counter() - start < 0.5


def test_an_empty_batch_gives_an_empty_result() -> None:
    for proto in (restorer(), classifier()):
        compiled = cw.compile(read(proto))
        with pytest.warns(SlowOperatorWarning):
            results = compiled(np.zeros((0, 3, 16, 16), np.float32))
        for result in results.values() if isinstance(results, dict) else [results]:
            assert result.shape[0] == 0
        assert compiled(np.zeros((1, 3, 16, 16), np.float32)) is not None


# -- errors ------------------------------------------------------------------------------------------------------------

X = np.zeros((2, 5, 3), np.float32)
BAD_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "too few": ((X,), {}, r"\['x'\].*\['x', 'z'\]"),
    "too many": ((X, X, X), {}, r"3 arrays.*2 inputs"),
    "unknown name": ((X,), {"q": X}, r"'q'"),
    "unknown name in a dict": (({"x": X, "q": X},), {}, r"'q'"),
    "names that are no strings": (({"x": X, 3: X},), {}, r"3"),
    "given twice": ((X, X), {"x": X}, r"'x'.*twice"),
    "rank": ((X[0], X), {}, r"'x'.*\(5, 3\)"),
    "size": ((X[:, :4], X), {}, r"'x'.*\(2, 4, 3\)"),
    "symbol": ((X, X[:1]), {}, r"'N' is 2 .* 1"),
    "double": ((X.astype(np.float64), X), {}, r"'x'.*float64.*float32"),
    "integer": ((X.astype(np.int64), X), {}, r"'x'.*int64.*float32"),
    "other endianness": ((X.astype(">f4"), X), {}, r"'x'.*f4"),
    "not an array": (("photo.png", X), {}, r"'x'"),
    "ragged": (([[1, 2], [3]], X), {}, r"'x'"),
    "none": ((None, X), {}, r"'x'"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_one_line_that_echoes_what_is_wrong_and_the_model_lives_on(name: str) -> None:
    args, kwargs, message = BAD_CALLS[name]
    sub = pair()
    with pytest.raises(cw.ConvwrightError, match=message) as caught:
        sub(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert sub(X, X).shape == X.shape


@pytest.mark.parametrize("threads", [0, -1, 2.0, True, "2", 10**6], ids=str)
def test_bad_numbers_of_threads(threads: Any) -> None:
    with pytest.raises(cw.ConvwrightError, match="threads"):
        cw.compile(read(restorer()), threads=threads)


def test_bad_settings_and_files(tmp_path: Path) -> None:
    with pytest.raises(cw.ConvwrightError, match="fast"):
        cw.compile(read(restorer()), numerics="fast")
    with pytest.raises(cw.ConvwrightError, match=r"nothing\.onnx"):
        cw.compile(tmp_path / "nothing.onnx")


def test_sizes_that_the_layers_cannot_take() -> None:
    narrow = model([node("Conv", "x w", "y")], {"x": (1, 3, "H", "W")}, {"w": weights(4, 3, 5, 5)})
    compiled = cw.compile(read(narrow))
    with pytest.raises(cw.ConvwrightError) as caught:
        compiled(np.zeros((1, 3, 4, 9), np.float32))
    assert "\n" not in str(caught.value)
    assert compiled(np.zeros((1, 3, 5, 9), np.float32)).shape == (1, 4, 1, 5)


# -- threads and processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_number_of_threads_does_not_change_the_results(net: cw.Model, threads: int) -> None:
    with cw.compile(read(restorer()), threads=threads) as compiled:
        for shape in SHAPES[:3]:
            expected = net(image(*shape))
            for _ in range(5):
                np.testing.assert_allclose(compiled(image(*shape)), expected, rtol=0, atol=1e-5)


def test_several_models_and_several_python_threads_at_once(net: cw.Model) -> None:
    other = cw.compile(read(restorer()), threads=3)
    inputs = [image(*shape) for shape in SHAPES[:3]]
    expected = [net(x) for x in inputs]
    wrong: list[str] = []
    gate = threading.Barrier(6)

    def work(number: int) -> None:
        gate.wait()
        for turn in range(20):
            which = (number + turn) % len(inputs)
            result = (net, other)[(number + turn // 2) % 2](inputs[which])
            if not np.allclose(result, expected[which], rtol=0, atol=1e-5):
                wrong.append(f"thread {number}, turn {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_nothing_spins_when_idle(net: cw.Model) -> None:
    for _ in range(3):
        net(image(*SHAPES[0]))
    time.sleep(0.05)  # the bounded spin after the last job
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


FORK = """
import os, sys, threading, warnings
import numpy as np
import convwright as cw

warnings.simplefilter("ignore", DeprecationWarning)  # that forking beside other threads is risky is the point
path, threads = sys.argv[1], int(sys.argv[2])
x = np.linspace(-1, 1, 360, dtype=np.float32).reshape(1, 3, 12, 10)
model = cw.compile(path, threads=threads)
expected = model(x)
stop = threading.Event()

def busy():
    while not stop.is_set():
        model(x)

other = threading.Thread(target=busy)
other.start()
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        good = np.array_equal(model(x), expected)
        good = good and np.array_equal(cw.compile(path, threads=threads)(x), expected)
        larger = np.concatenate([x, x])
        good = good and np.array_equal(model(larger)[1:], cw.compile(path, threads=1)(larger)[:1])
        os._exit(0 if good else 1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
other.join()
assert np.array_equal(model(x), expected)
assert codes == [0, 0, 0], codes
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_runs_the_old_model_and_compiles_a_new_one(tmp_path: Path, threads: int) -> None:
    (tmp_path / "net.onnx").write_bytes(restorer().SerializeToString())
    command = [sys.executable, "-c", FORK, str(tmp_path / "net.onnx"), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


LOAD = """
import pickle, sys
import numpy as np

with open(sys.argv[1], "rb") as file:
    model, x, expected = pickle.load(file)
assert np.array_equal(model(x), expected)
assert model.threads == 2 and model.numerics == "strict"
"""


def test_a_pickled_model_comes_back_in_another_process(tmp_path: Path) -> None:
    """After its weights were packed, the plain ones let go, and several plans made."""
    compiled = cw.compile(read(restorer()), threads=2, numerics="strict")
    for shape in SHAPES[:2]:
        expected = compiled(image(*shape))
    content = (compiled, image(*SHAPES[1]), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(compiled))(content[1]), expected)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(content))
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_closed_model_says_so_and_others_live_on(net: cw.Model) -> None:
    x = image(*SHAPES[0])
    with cw.compile(read(restorer()), threads=2) as compiled:
        result = compiled(x)
        assert compiled.memory()["arena"] > 0
    assert compiled.memory() == {"weights": 0, "arena": 0, "liveness_bound": 0}
    for use in (lambda: compiled(x), lambda: pickle.dumps(compiled), lambda: compiled.profile(x)):
        with pytest.raises(cw.ConvwrightError, match="closed"):
            use()
    compiled.close()
    np.testing.assert_array_equal(net(x), result)


# -- memory ------------------------------------------------------------------------------------------------------------


def nbytes(graph: Graph) -> int:
    return sum(array.nbytes for array in graph.constants.values())


def test_weights_are_held_once() -> None:
    """Except Winograd's, which strict numerics leave out."""
    graph = read(classifier(channels=64, classes=32))
    assert all(array.nbytes > 1 << 14 for name, array in graph.constants.items() if name in ("w1", "w2"))
    compiled = cw.compile(graph, numerics="strict")
    for batch in (1, 3):
        compiled(image(batch, 3, 16, 16))
        assert compiled.memory()["weights"] <= 1.1 * nbytes(graph)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_arena_is_near_the_liveness_bound(threads: int) -> None:
    for proto, shapes in (
        (restorer(), [(1, 3, 12, 10), (1, 3, 64, 48)]),
        (classifier(), [(1, 3, 16, 16), (3, 3, 16, 16)]),
    ):
        for shape in shapes:
            with cw.compile(read(proto), threads=threads) as compiled:
                compiled(image(*shape))
                memory = compiled.memory()
                assert memory["liveness_bound"] <= memory["arena"] <= 1.2 * memory["liveness_bound"] + 4096


def test_compiling_and_running_leave_the_users_graph_as_it_was() -> None:
    graph = read(classifier(channels=64))
    nodes = [(str(one), list(one.inputs), list(one.outputs), dict(one.attributes)) for one in graph.nodes]
    arrays = dict(graph.constants)
    contents = {name: array.copy() for name, array in arrays.items()}
    x = image(1, 3, 16, 16)
    first = cw.compile(graph)(x)
    assert nodes == [(str(one), list(one.inputs), list(one.outputs), dict(one.attributes)) for one in graph.nodes]
    assert list(graph.constants) == list(arrays)
    for name, array in graph.constants.items():
        assert array is arrays[name]
        np.testing.assert_array_equal(array, contents[name])
    again = cw.compile(graph)(x)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_profile_counts_every_multiplication() -> None:
    compiled = cw.compile(read(restorer()), threads=1)
    report = compiled.profile(image(1, 3, 12, 10), runs=2)
    pixels = 12 * 10
    assert sum(step.macs for step in report.steps) == pixels * (20 * 27 + 20 * 9 + 12 * 20 + 20 * 32 * 9 + 3 * 20)


def test_compiling_what_times_steps_is_not_timed() -> None:
    def slow(*arguments: Any) -> int:
        time.sleep(0.3)
        return compile_kernel(*arguments)

    with cw.compile(read(restorer())) as compiled, patch.object(team, "compile_kernel", slow):
        report = compiled.profile(image(1, 3, 12, 10), runs=1)
    assert sum(step.seconds for step in report.steps) < 0.3


def test_a_little_work_is_done_by_one_thread_and_much_by_the_team() -> None:
    with patch("convwright.model.plan._small", wraps=_small), cw.compile(read(restorer()), threads=2) as compiled:
        assert compiled.profile(np.zeros((1, 3, 8, 8), np.float32), runs=1).threads == 1
        assert compiled.profile(np.zeros((1, 3, 128, 128), np.float32), runs=1).threads == 2


def test_a_single_layer_is_shared_from_less_work_on() -> None:
    spec = ConvSpec(64, 64, (3, 3), padding=1, groups=64)
    weight = np.ones(spec.weight_shape, np.float32)
    for size, threads in ((8, 1), (56, 2)):
        p = {"spec": spec, "algorithm": "direct"}
        node = Node("Convolution", ["x", "w", "b"], ["y"], p, domain="convwright")
        inputs = {"x": ValueInfo(np.dtype(np.float32), (1, 64, size, size))}
        layer = Graph("layer", inputs, ["y"], [node], {"w": weight, "b": np.zeros(64, np.float32)})
        with patch("convwright.model.plan._small", wraps=_small), cw.compile(layer, threads=2) as compiled:
            assert compiled.profile(runs=1).threads == threads


def test_a_shape_can_be_prepared_and_plans_forgotten() -> None:
    with cw.compile(read(restorer()), threads=2) as compiled:
        compiled.prepare((1, 3, 9, 7))
        with patch.object(module, "make_plan", side_effect=AssertionError("planned again")):
            compiled(np.zeros((1, 3, 9, 7), np.float32))
        compiled.forget_plans()
        with patch.object(module, "make_plan", wraps=make_plan) as planner:
            compiled(np.zeros((1, 3, 9, 7), np.float32))
        assert planner.call_count == 1
        with pytest.raises(cw.ConvwrightError, match="2 shapes given"):
            compiled.prepare((1, 3, 9, 7), (1,))


def test_a_network_whose_batch_is_open_is_measured_with_one_image() -> None:
    net = Assembly("open", (3, 8, 8))
    model = cw.compile(net.finish(net.conv("conv", net.input, 4, 3, padding=1)), threads=1)
    assert model.profile(runs=1).title == "open (1x3x8x8)"
