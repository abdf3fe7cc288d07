"""Train the two digit classifiers and export them as `standard.onnx` and `separable.onnx`.

Run from the repository's root, with PyTorch and scikit-learn installed::

    python -m examples.digits.train

Both networks have the same plan; `standard` is made of standard convolutions, `separable` of depthwise-separable ones.
The schedule is fixed in advance and the last epoch's weights are kept: the held-out third chooses nothing.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from examples.digits.data import save_held_out, split

HERE = Path(__file__).parent


def standard(in_channels: int, channels: int, stride: int = 1) -> list[nn.Module]:
    """Standard 3x3 convolution, batch norm, ReLU."""
    return [
        nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def separable(in_channels: int, channels: int, stride: int = 1) -> list[nn.Module]:
    """Depthwise 3x3 and pointwise convolution, each with batch norm and ReLU (MobileNet v1, arXiv 1704.04861)."""
    return [
        nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def network(kind: str) -> nn.Sequential:
    """The network of that name: image [N, 1, 8, 8] in 0..1 -> logits [N, 10]."""
    layers = standard if kind == "standard" else separable
    return nn.Sequential(
        *standard(1, 32),
        *layers(32, 64),
        *layers(64, 64, stride=2),
        *layers(64, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def augmented(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The images turned by up to 12 degrees, scaled by up to 10 % and shifted by up to 0.8 pixels, each its own way."""

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(len(images), generator=random) * 2 - 1) * limit

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    shift = 0.8 * 2 / images.shape[-1]  # affine_grid counts from -1 to 1
    rows = [cosine, -sine, uniform(shift), sine, cosine, uniform(shift)]
    transform = torch.stack(rows, dim=1).reshape(-1, 2, 3)
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> None:
    """Adam with a cosine decay over a fixed number of epochs, batches of 64."""
    random = torch.Generator().manual_seed(options.seed)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    batches = math.ceil(len(images) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=options.epochs * batches)
    model.train()
    for epoch in range(options.epochs):
        total = 0.0
        for chosen in torch.split(torch.randperm(len(images), generator=random), 64):
            logits = model(augmented(images[chosen], random))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            total += loss.item()
        if (epoch + 1) % 10 == 0:
            print(f"  epoch {epoch + 1}: loss {total / batches:.3f}", flush=True)
    model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write ONNX with a dynamic batch and with batch norms as nodes of their own."""
    torch.onnx.export(
        model.eval(),
        (torch.rand(2, 1, 8, 8),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # the default would fold the batch norms away
        dynamo=False,
    )


def main() -> None:
    """Parse the arguments, then train, test and export both networks."""
    parser = argparse.ArgumentParser(description="Train the two digit classifiers.")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the ONNX files")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    images, labels, held_out_images, held_out_labels = split()
    save_held_out(held_out_images, held_out_labels)
    for kind in ("standard", "separable"):
        torch.manual_seed(options.seed)
        model = network(kind)
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{kind}: {parameters} parameters, {len(images)} digits, {options.epochs} epochs")
        started = time.perf_counter()
        train(model, torch.from_numpy(images), torch.from_numpy(labels), options)
        with torch.no_grad():
            right = model(torch.from_numpy(held_out_images)).argmax(1).numpy() == held_out_labels
        export(model, options.out / f"{kind}.onnx")
        seconds = time.perf_counter() - started
        print(f"  held out: {right.sum()} of {len(right)} right, {right.mean():.2%}, after {seconds:.0f} s")


if __name__ == "__main__":
    main()
