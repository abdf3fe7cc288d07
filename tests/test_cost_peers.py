"""Costs beside PyTorch's FLOP counter and torchinfo, on networks that PyTorch exports: where they agree, and why not.

docs/cost.md explains each difference; here each is worked out.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable

import pytest
import torch
import torchinfo
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import convwright as cw
from convwright.cost.report import Cost


class InvertedResidual(nn.Module):
    """Expansion, depthwise, squeeze-and-excitation, projection, residual."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.expand, self.bn = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.squeeze, self.excite = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.project = nn.Conv2d(wide, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(torch.relu(self.bn(self.expand(x))))
        gate = self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        return x + self.project(y * torch.sigmoid(gate))  # type: ignore[no-any-return]


def light() -> nn.Module:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    return nn.Sequential(stem, InvertedResidual(8, 24), InvertedResidual(8, 16), nn.MaxPool2d(2), head)


def dilated() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(6, 12, (1, 7), groups=3, bias=False),
        nn.Conv2d(12, 5, 4, stride=(2, 3), bias=False),
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 8, 4, stride=2, padding=1, bias=False),
        nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=8, bias=False),
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
    )


class Functional(nn.Module):
    """Products that are in no module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        weight = torch.ones(4, 3, 1, 1)
        return nn.functional.conv2d(x, weight).flatten(2) @ flat.transpose(1, 2)


def exported(module: nn.Module, x: torch.Tensor) -> Cost:
    """The cost of what PyTorch's exporter writes, batch norms and all left as they are."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = os.path.join(folder, "network.onnx")
        warnings.simplefilter("ignore")  # the exporter says that it is the older of two
        keep = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(module, (x,), file, dynamo=False, training=keep, do_constant_folding=False)
        result: Cost = cw.cost(file)
    return result


def prepared(make: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return make().eval(), torch.zeros(2, 3, 16, 20)


@pytest.mark.parametrize("make", [light, dilated, transposed, Functional])
def test_macs_are_half_of_pytorchs_flops(make: Callable[[], nn.Module]) -> None:
    """PyTorch counts a multiply-accumulate as two, no biases, transposed convolutions on their input, as we do."""
    module, x = prepared(make)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    found = exported(module, x)
    assert found.total.flops == counter.get_total_flops() > 0
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert found.total.parameters == parameters + (12 if make is Functional else 0)  # its constant is none to PyTorch
    buffers = [buffer for name, buffer in module.named_buffers() if "num_batches" not in name]
    assert found.total.buffers == sum(buffer.numel() for buffer in buffers)


def test_torchinfo_agrees_on_convolutions_without_bias() -> None:
    module, x = prepared(dilated)
    found, summary = exported(module, x), torchinfo.summary(module, input_data=x, verbose=0)
    assert found.total.macs == summary.total_mult_adds
    assert found.total.parameters == summary.total_params


def test_torchinfo_counts_biases_and_batch_norms_as_multiply_adds() -> None:
    module, x = prepared(light)
    found, summary = exported(module, x), torchinfo.summary(module, input_data=x, verbose=0)
    assert found.total.parameters == summary.total_params
    by_kind = {group.name: group for group in found.groups("kind")}
    biases = sum(layer.elementwise for layer in found if layer.macs)
    batch_norms = 2 * by_kind["normalisation"].parameters  # scale and shift once an image
    assert summary.total_mult_adds == found.total.macs + biases + batch_norms


def test_torchinfo_counts_transposed_convolutions_on_their_output() -> None:
    module, x = prepared(transposed)
    found, summary = exported(module, x), torchinfo.summary(module, input_data=x, verbose=0)
    ratios = [
        layer.output_shape[2] * layer.output_shape[3] / (layer.input_shape[2] * layer.input_shape[3]) for layer in found
    ]
    assert ratios == [4, 4, 4]
    assert summary.total_mult_adds == sum(ratio * layer.macs for ratio, layer in zip(ratios, found, strict=True))


def test_torchinfo_sees_no_functional_calls() -> None:
    module, x = prepared(Functional)
    assert torchinfo.summary(module, input_data=x, verbose=0).total_mult_adds == 0
    found = exported(module, x)
    assert [(layer.kind, layer.macs) for layer in found if layer.macs] == [
        ("pointwise", 2 * 320 * 3 * 4), ("matrix product", 2 * 320 * 3 * 4),
    ]  # fmt: skip
