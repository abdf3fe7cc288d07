#!/usr/bin/env python3
"""Write the eleven networks that the performance tables are about as ONNX files.

    pip install torch==2.13.0 onnx pillow pyyaml safetensors huggingface_hub tqdm
    pip install --no-deps torchvision timm
    python bench/export_networks.py FOLDER [NAME ...] [--size 225] [--batch 3]

The definitions are torchvision's and timm's own; ShuffleNet v1, which neither has, is written here after arXiv
1707.01083. Weights are random from a fixed seed, and so are the batch norms' statistics, scales and shifts, so that
folding them is no empty exercise. With --size or --batch a file is named after its input's shape,
NAME-3x3x225x225.onnx, beside the usual NAME.onnx; bench/networks.py needs such files only for networks that hold fixed
sizes, here ShuffleNet.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

SEED = 0
OPSET = 17


def library(name: str) -> Any:
    """Import torchvision or timm for their definitions; torchvision's compiled operators may not fit this torch."""
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
    from importlib import import_module

    return import_module(name)


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(library("torchvision.models"), name)(weights=None, **options)


def timm(name: str) -> Callable[[], nn.Module]:
    return lambda: library("timm").create_model(name, pretrained=False)


class ChannelShuffle(nn.Module):
    """Channels (G, C/G) become (C/G, G), so that the next grouped convolution sees every group."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleUnit(nn.Module):
    """Figure 2 (b) and (c) of arXiv 1707.01083: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1, beside a shortcut.

    - `stride`: 1 adds the shortcut; 2 concatenates it, pooled.
    - `reduce_groups`: 1 in the first unit of the network, whose input has too few channels to group.
    """

    def __init__(self, c_in: int, c_out: int, *, stride: int, groups: int, reduce_groups: int) -> None:
        super().__init__()
        narrow, wide = c_out // 4, c_out if stride == 1 else c_out - c_in
        self.branch = nn.Sequential(
            nn.Conv2d(c_in, narrow, 1, groups=reduce_groups, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            ChannelShuffle(groups if reduce_groups > 1 else 1),
            nn.Conv2d(narrow, narrow, 3, stride, padding=1, groups=narrow, bias=False),
            nn.BatchNorm2d(narrow),
            nn.Conv2d(narrow, wide, 1, groups=groups, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else nn.Identity()
        self.concatenates = stride == 2

    def forward(self, x: Tensor) -> Tensor:
        y, kept = self.branch(x), self.shortcut(x)
        return torch.relu(torch.cat((kept, y), dim=1) if self.concatenates else kept + y)


def shufflenet_v1() -> nn.Module:
    """Table 1 of arXiv 1707.01083 with three groups."""
    stem = [nn.Conv2d(3, 24, 3, 2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    units = []
    channels = 24
    for width, units_in_stage in (240, 4), (480, 8), (960, 4):
        for position in range(units_in_stage):
            reduce_groups = 1 if channels == 24 else 3
            stride = 2 if position == 0 else 1
            units.append(ShuffleUnit(channels, width, stride=stride, groups=3, reduce_groups=reduce_groups))
            channels = width
    return nn.Sequential(*stem, *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (torchvision("alexnet"), 224),
    "vgg16": (torchvision("vgg16"), 224),
    "inception_v3": (torchvision("inception_v3", aux_logits=False, init_weights=False), 299),
    "squeezenet1_0": (torchvision("squeezenet1_0"), 224),
    "resnet50": (torchvision("resnet50"), 224),
    "resnext50": (torchvision("resnext50_32x4d"), 224),
    "mobilenet_v1": (timm("mobilenetv1_100"), 224),
    "mobilenet_v2": (torchvision("mobilenet_v2"), 224),
    "xception": (timm("legacy_xception"), 299),
    "shufflenet_v1": (shufflenet_v1, 224),
    "mixnet_s": (timm("mixnet_s"), 224),
}


def randomised(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, its batch norms given statistics and parameters that are not 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor, mean in (module.running_mean, 0.0), (module.bias, 0.0):
                assert tensor is not None
                tensor.data.normal_(mean, 0.1)
            for tensor in module.running_var, module.weight:
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5)
    return network.eval()


def write(build: Callable[[], nn.Module], path: Path, shape: tuple[int, ...]) -> None:
    """Write a network for inputs of one shape, N x C x spatial."""
    torch.manual_seed(SEED)
    network = randomised(build())
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter says that it is the older of two, and that traced sizes are fixed
        torch.onnx.export(
            network,
            (torch.randn(shape),),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=["y"],
        )


def asked(parser: argparse.ArgumentParser, known: Collection[str]) -> argparse.Namespace:
    """The options, with the folder, which exists then, and names of known networks, all by default."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all by default")
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    options.names = options.names or list(known)
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, help="height and width of the input; each network's usual by default")
    parser.add_argument("--batch", type=int)
    options = asked(parser, NETWORKS)
    for name in options.names:
        size = options.size or NETWORKS[name][1]
        shape = (options.batch or 1, 3, size, size)
        usual = options.size is None and options.batch is None
        path = options.folder / (f"{name}.onnx" if usual else f"{name}-{'x'.join(map(str, shape))}.onnx")
        write(NETWORKS[name][0], path, shape)
        print(path)


if __name__ == "__main__":
    main()
