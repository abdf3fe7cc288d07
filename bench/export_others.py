#!/usr/bin/env python3
"""Write six networks that nobody tuned for as ONNX files, for bench/networks.py.

    pip install torch==2.13.0 onnx pillow pyyaml safetensors huggingface_hub tqdm
    pip install --no-deps torchvision timm
    python bench/export_others.py FOLDER [NAME ...]

- efficientnet_b0: squeeze-and-excitation, SiLU, depthwise 5 x 5;
- densenet121: dense concatenation;
- mnasnet1_0: depthwise 5 x 5;
- unet_resnet18: a segmentation network with transposed convolutions, torchvision's ResNet-18 and the decoder of U-Net;
- m18: a 1-D network on four seconds of sound at 8 kHz;
- r3d_18: a 3-D network on 16 frames.

Definitions are torchvision's where it has them, else written here after their papers. Weights and batch norms are
random from a fixed seed, as in bench/export_networks.py.
"""

import argparse
from collections.abc import Callable

import torch
from export_networks import asked, library, torchvision, write
from torch import Tensor, nn


class UpBlock(nn.Module):
    """A step of U-Net's expanding path (figure 1 of arXiv 1505.04597), padded to keep sizes: an up-convolution 2x2,
    the features of the same size from the contracting path beside it, and two convolutions 3x3."""

    def __init__(self, c_in: int, c_beside: int, c_out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(c_in, c_out, 2, stride=2)
        layers: list[nn.Module] = []
        for channels in (c_out + c_beside, c_out):
            layers += [nn.Conv2d(channels, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        together: Tensor = self.convolutions(torch.cat((beside, self.up(x)), dim=1))
        return together


class UNet(nn.Module):
    """U-Net whose contracting path is torchvision's ResNet-18, for 21 classes at the input's size."""

    def __init__(self) -> None:
        super().__init__()
        backbone = library("torchvision.models").resnet18(weights=None)
        self.stem = nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu)
        self.stages = nn.ModuleList(
            [nn.Sequential(backbone.maxpool, backbone.layer1), backbone.layer2, backbone.layer3, backbone.layer4]
        )
        sizes = [(512, 256, 256), (256, 128, 128), (128, 64, 64), (64, 64, 64)]
        self.blocks = nn.ModuleList([UpBlock(*size) for size in sizes])
        self.head = nn.Sequential(nn.ConvTranspose2d(64, 32, 2, stride=2), nn.ReLU(), nn.Conv2d(32, 21, 1))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        x = features.pop()
        for block in self.blocks:
            x = block(x, features.pop())
        answer: Tensor = self.head(x)
        return answer


def m18() -> nn.Module:
    """Table 1 of arXiv 1610.00087: raw sound, a convolution of 80 samples at stride 4, then 3 by 3 in pooled stages."""
    layers: list[nn.Module] = []
    channels = 1
    for width, kernel, stride, times in ((64, 80, 4, 1), (64, 3, 1, 4), (128, 3, 1, 4), (256, 3, 1, 4), (512, 3, 1, 4)):
        for _ in range(times):
            padding = kernel // 2 - (kernel + 1) % 2
            layers += [nn.Conv1d(channels, width, kernel, stride, padding), nn.BatchNorm1d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool1d(4) if width < 512 else nn.AdaptiveAvgPool1d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "efficientnet_b0": (torchvision("efficientnet_b0"), (1, 3, 224, 224)),
    "densenet121": (torchvision("densenet121"), (1, 3, 224, 224)),
    "mnasnet1_0": (torchvision("mnasnet1_0"), (1, 3, 224, 224)),
    "unet_resnet18": (UNet, (1, 3, 256, 256)),
    "m18": (m18, (1, 1, 32000)),
    "r3d_18": (lambda: library("torchvision.models.video").r3d_18(weights=None), (1, 3, 16, 112, 112)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = asked(parser, NETWORKS)
    for name in options.names:
        build, shape = NETWORKS[name]
        path = options.folder / f"{name}.onnx"
        write(build, path, shape)
        print(path)


if __name__ == "__main__":
    main()
