#!/usr/bin/env python3
"""Run the built-in networks with weights of torchvision's and timm's definitions, beside those definitions.

    pip install torch==2.13.0 onnx onnxruntime torchinfo pillow pyyaml safetensors huggingface_hub tqdm
    pip install --no-deps torchvision timm
    python bench/state_dicts.py [NAME ...] [--golden tests/golden/state_dicts.json]

Each network is built by the other library with random weights and batch norms that do something; its state dict goes
through `cw.networks.from_state_dict`, and the answers of convwright and of onnxruntime, which runs the same graph from
a file, are compared with PyTorch's in float64: the largest difference over the largest answer. MACs and parameters by
`cw.cost` have to be those of PyTorch's FLOP counter (half its FLOPs) and of the definition; torchinfo's "mult-adds",
which count biases and batch norms too (docs/cost.md), are shown beside them. With --golden nothing runs: the names and
shapes in each state dict are written for the tests, as a checksum where they are our network's own.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_networks import randomised, timm, torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary

TOLERANCE = 1e-5

TORCHVISION = [
    "alexnet", *(f"vgg{depth}{norm}" for norm in ("", "_bn") for depth in (11, 13, 16, 19)), "squeezenet1_0",
    "squeezenet1_1", *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)), "resnext50_32x4d", "resnext101_32x8d",
    "mobilenet_v2",
]  # fmt: skip
TIMM = {
    **{name: name for name in ("vgg16", "inception_v3", "resnet50", "resnext50_32x4d")},
    "xception": "legacy_xception",
    "mobilenet_v1": "mobilenetv1_100",
    "mobilenet_v2": "mobilenetv2_100",
    **{name: name for name in ("mixnet_s", "mixnet_m", "mixnet_l")},
}
NETWORKS: dict[tuple[str, str], Callable[[], nn.Module]] = {
    **{(name, "torchvision"): torchvision(name) for name in TORCHVISION},
    ("inception_v3", "torchvision"): torchvision("inception_v3", init_weights=False),
    **{(name, "timm"): timm(theirs) for name, theirs in TIMM.items()},
}
"""By the name of the built-in network and the library: the library's definition."""


OPTIONS = {("inception_v3", "torchvision"): {"aux": True}}
"""Options with which a network has the names of the library's."""


def checksum(shapes: dict[str, str]) -> str:
    """SHA-256 of the sorted lines `name shape`."""
    return hashlib.sha256("\n".join(sorted(f"{name} {shape}" for name, shape in shapes.items())).encode()).hexdigest()


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, str]:
    """By name, sizes joined by x; without the limits of activations and the counters of training steps."""
    shapes = {name: "x".join(map(str, array.shape)) for name, array in arrays.items()}
    return {name: shape for name, shape in shapes.items() if shape}


def write_golden(path: Path, wanted: list[tuple[str, str]]) -> None:
    """A checksum where the library has the names of our network, else its own names and shapes."""
    import convwright as cw

    golden: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for name, library in wanted:
        theirs = shapes_of(NETWORKS[name, library]().state_dict())
        constants = cw.networks.build(name, seed=None, **OPTIONS.get((name, library), {})).constants
        ours = shapes_of({key: array for key, array in constants.items() if array.dtype.kind == "f"})
        golden.setdefault(library, {})[name] = checksum(theirs) if theirs == ours else theirs
    path.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")


def compare(name: str, library: str) -> tuple[float, float]:
    """The largest difference over the largest answer, of convwright and of onnxruntime, from PyTorch's answer."""
    import onnxruntime

    import convwright as cw

    torch.manual_seed(0)
    network = randomised(NETWORKS[name, library]())
    graph = cw.networks.from_state_dict(name, network.state_dict())
    shape = [size for size in graph.inputs["x"].shape if isinstance(size, int)]  # all but the batch
    x = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    with torch.inference_mode():
        want = network.double()(torch.from_numpy(x).double()).numpy()
    ours = cw.compile(graph)(x)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        graph.save(path)
        theirs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    largest = np.abs(want).max()
    return float(np.abs(ours - want).max() / largest), float(np.abs(theirs - want).max() / largest)


def counts(name: str, library: str) -> tuple[int, int, int]:
    """MACs and parameters by `cw.cost`, and torchinfo's mult-adds.

    Raises AssertionError where PyTorch's FLOP counter or the definition has others.
    """
    import convwright as cw

    network = NETWORKS[name, library]().eval()
    graph = cw.networks.build(name, seed=None)
    total = cw.cost(graph).total
    x = torch.zeros(1, *(size for size in graph.inputs["x"].shape if isinstance(size, int)))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(x)
    assert 2 * total.macs == counter.get_total_flops(), (name, total.macs, counter.get_total_flops())
    own = sum(value.numel() for key, value in network.named_parameters() if not key.startswith("AuxLogits."))
    assert total.parameters == own, (name, total.parameters, own)
    return total.macs, total.parameters, int(summary(network, input_data=x, verbose=0).total_mult_adds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of built-in networks; all by default")
    parser.add_argument("--golden", type=Path, metavar="FILE", help="write checksums of names and shapes instead")
    options = parser.parse_args()
    unknown = set(options.names) - {name for name, _ in NETWORKS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted({n for n, _ in NETWORKS}))}")
    wanted = [key for key in NETWORKS if not options.names or key[0] in options.names]
    if options.golden:
        write_golden(options.golden, wanted)
        return
    print(f"{'network':18} {'weights of':12} {'convwright':>12} {'onnxruntime':>12}", end="")
    print(f" {'MACs':>15} {'parameters':>12} {'mult-adds':>15}")
    failed = []
    for name, library in wanted:
        errors = compare(name, library)
        print(f"{name:18} {library:12} {errors[0]:12.1e} {errors[1]:12.1e}", end="")
        macs, parameters, mult_adds = counts(name, library)
        print(f" {macs:15,} {parameters:12,} {mult_adds:15,}", flush=True)
        if not max(errors) < TOLERANCE:
            failed.append(f"{name} ({library})")
    if failed:
        sys.exit(f"above {TOLERANCE}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
