"""The built-in networks: what they cost, that they run, and that PyTorch's weights fit them."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import convwright as cw
from convwright.graph import Graph
from convwright.model.lower.fallback import SlowOperatorWarning

GOLDEN: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "golden" / "state_dicts.json").read_text())
"""By library and network, what `bench/state_dicts.py --golden` wrote."""

OPTIONS = {("torchvision", "inception_v3"): {"aux": True}}

SMALL = {
    "alexnet_grouped": {"size": 227},
    "squeezenet1_0": {"size": 48},
    "squeezenet1_1": {"size": 45},
    "resnet18": {"size": 64},
    "resnet50": {"size": 40},
    "resnet50_v1": {"size": 40},
    "resnext50_32x4d": {"size": 40},
    "inception_v2": {"size": 70},
    "inception_v3": {"size": 80},
    "xception": {"size": 72},
}
"""Networks that run in every run of the tests, at less than their size; the long run has all of them as they are."""


def test_a_name_that_no_network_has_is_told_with_what_is_close() -> None:
    with pytest.raises(cw.ConvwrightError, match=r"no network is called 'vgg61': did you mean vgg1"):
        cw.networks.build("vgg61")


def test_every_name_of_the_table_is_a_function_of_the_package() -> None:
    for name in cw.networks.TABLE:
        assert callable(getattr(cw.networks, name))


def test_weights_are_the_same_for_a_seed_and_others_for_another() -> None:
    first, again, other = (cw.networks.squeezenet1_1(seed=seed) for seed in (1, 1, 2))
    name = "classifier.1.weight"
    assert np.array_equal(first.constants[name], again.constants[name])
    assert not np.array_equal(first.constants[name], other.constants[name])


def test_weights_come_from_a_state_dict_by_name() -> None:
    graph = cw.networks.resnet18(seed=3, classes=10)
    found = cw.networks.from_state_dict("resnet18", dict(graph.constants), classes=10)
    assert graph.constants.keys() == found.constants.keys()
    assert all(np.array_equal(graph.constants[key], found.constants[key]) for key in graph.constants)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.0.weight": None}, "no weights for features.0.weight"),
        ({"extra": np.zeros(1)}, "it has no extra"),
        ({"features.0.bias": np.zeros(63)}, "the shapes differ: features.0.bias (63,) for (64,)"),
        ({"features.0.bias": np.array(["a"] * 64)}, "weights 'features.0.bias' are <U1, not numbers"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    weights = {**cw.networks.vgg11(seed=None).constants, **change}
    with pytest.raises(cw.ConvwrightError, match=re.escape(message)):
        cw.networks.from_state_dict("vgg11", {key: value for key, value in weights.items() if value is not None})


def runs_alike(graph: Graph, folder: Path, tolerance: float = 1e-5) -> None:
    """onnxruntime, from a file, and convwright give the same answers, within a share of the largest."""
    path = folder / "network.onnx"
    graph.save(path)
    (info,) = graph.inputs.values()
    sizes = [size for size in info.shape if isinstance(size, int)]
    x = np.random.default_rng(0).standard_normal((2, *sizes), np.float32)
    want = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    with warnings.catch_warnings(), cw.compile(cw.load(path)) as model:
        # AlexNet's local response normalisation has no kernel.
        warnings.simplefilter("ignore", SlowOperatorWarning)
        found = model(x)
    outputs = list(found.values()) if isinstance(found, dict) else [found]
    assert len(outputs) == len(want) == len(graph.outputs)
    for ours, theirs in zip(outputs, want, strict=True):
        assert ours.shape == theirs.shape
        assert np.isfinite(theirs).all()
        assert theirs.std() > 0
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_runs_as_in_onnxruntime(name: str, tmp_path: Path) -> None:
    runs_alike(cw.networks.build(name, classes=10, **SMALL[name]), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", cw.networks.TABLE)
def test_a_network_runs_as_in_onnxruntime(name: str, tmp_path: Path) -> None:
    # With random weights MixNet magnifies rounding: see tests/test_light_networks.py.
    runs_alike(cw.networks.build(name), tmp_path, 1e-4 if name.startswith("mixnet") else 1e-5)


@pytest.mark.long
def test_the_auxiliary_head_runs_as_in_onnxruntime(tmp_path: Path) -> None:
    runs_alike(cw.networks.inception_v3(aux=True), tmp_path)


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in GOLDEN for name in GOLDEN[library]])
def test_names_are_those_of_the_library(library: str, name: str) -> None:
    """All of its names and shapes are our own, or `from_state_dict` takes them."""
    theirs = GOLDEN[library][name]
    if isinstance(theirs, str):
        constants = cw.networks.build(name, seed=None, **OPTIONS.get((library, name), {})).constants
        shapes = {key: array.shape for key, array in constants.items() if array.dtype.kind == "f" and array.ndim}
        lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
        assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == theirs
    else:
        shapes = {key: tuple(map(int, sizes.split("x"))) for key, sizes in theirs.items()}
        weights = {key: np.broadcast_to(np.float32(at), shapes[key]) for at, key in enumerate(shapes)}
        graph = cw.networks.from_state_dict(name, weights)
        taken = {float(array.flat[0]) for array in graph.constants.values() if array.dtype.kind == "f" and array.ndim}
        assert len(taken) == sum(array.dtype.kind == "f" and array.ndim > 0 for array in graph.constants.values())
        assert taken <= set(range(len(shapes)))


def test_weights_of_a_training_head_are_passed_over() -> None:
    weights = dict(cw.networks.inception_v3(aux=True, seed=None).constants)
    weights["Conv2d_1a_3x3.bn.num_batches_tracked"] = np.array(7)
    graph = cw.networks.from_state_dict("inception_v3", weights)
    assert graph.constants.keys() == {key for key in weights if not re.search("AuxLogits|num_batches", key)}
    both = cw.networks.from_state_dict("inception_v3", weights, aux=True)
    assert {f"AuxLogits.fc.{field}" for field in ("weight", "bias")} <= both.constants.keys()


def test_convolutions_over_all_of_their_input_become_fully_connected_layers() -> None:
    """timm's VGG has them in place of the first two; every value goes where it belongs."""
    ours = cw.networks.vgg11(seed=None, classes=2)
    weights = dict(ours.constants)
    first = np.broadcast_to(np.arange(512 * 7 * 7, dtype=np.float32).reshape(512, 7, 7), (4096, 512, 7, 7))
    weights["pre_logits.fc1.weight"] = first
    weights["pre_logits.fc1.bias"] = weights.pop("classifier.0.bias")
    del weights["classifier.0.weight"]
    found = cw.networks.from_state_dict("vgg11", weights, classes=2)
    assert np.array_equal(found.constants["classifier.0.weight"], first.reshape(4096, -1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alexnet", {"variant": "two"}, "variant must be 'one-tower', 'grouped' or 'ungrouped', got 'two'"),
        ("alexnet", {"size": 30}, "a kernel spanning 3 does not fit axis 0 of size 2"),
        ("vgg16", {"classes": 0}, "network 'vgg16': layer '6' with 0 outputs"),
        ("squeezenet1_0", {"version": "2"}, "version must be '1.0' or '1.1', got '2'"),
        ("resnet50", {"depth": 51}, "depth must be one of 18, 34, 50, 101, 152, got 51"),
        ("resnet18", {"groups": 32}, "depth 18 has no bottlenecks, so neither stride_first = False nor groups = 32"),
        ("vgg16", {"size": 200}, "6 x 6 elements do not divide into 7 x 7 equal windows"),
        ("resnet50", {"size": 0}, "an input of shape (3, 0, 0) is empty"),
        ("inception_v3", {"aux": True, "size": 100}, "AuxLogits"),
    ],
)
def test_options_that_do_not_fit_are_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(cw.ConvwrightError, match=re.escape(message)):
        cw.networks.build(name, seed=None, **options)


def test_a_network_of_a_files_name_is_a_function_even_where_the_file_is_imported_first() -> None:
    import importlib
    import sys

    sys.modules.pop("convwright.networks.xception", None)
    importlib.import_module("convwright.networks.xception")
    assert len(cw.networks.xception(seed=None, classes=3).outputs) == 1


def test_weights_without_memory_run_and_are_saved_as_zeros(tmp_path: Path) -> None:
    graph = cw.networks.squeezenet1_1(seed=None, classes=4, size=33)
    graph.save(tmp_path / "zeros.onnx")
    loaded = cw.load(tmp_path / "zeros.onnx")
    assert all(np.array_equal(loaded.constants[key], array) for key, array in graph.constants.items())
    with cw.compile(graph) as model:
        assert not model(np.ones((1, 3, 33, 33), np.float32)).any()
    # What makes them take none has not been lost to planning.
    assert all(set(array.strides) <= {0} for array in graph.constants.values() if array.ndim > 1)
