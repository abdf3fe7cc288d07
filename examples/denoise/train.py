"""Train the image restorer and export it as `restorer.onnx`.

Run from the repository's root, with PyTorch, scikit-image and scikit-learn installed::

    python -m examples.denoise.train                 # the file in the repository: 3500 steps
    python -m examples.denoise.train --steps 200 --out quick.onnx
    python -m examples.denoise.train --evaluate      # measure restorer.onnx on the held-out photographs

All photographs come inside the wheels of scikit-image and scikit-learn; nothing is downloaded. `README.md` beside this
file lists them with their authors and licences. The schedule is fixed in advance and the last weights are kept: the
photographs in `HELD_OUT` choose nothing, and are measured after the last step.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import skimage
import sklearn.datasets
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from examples.images import SIGMA, add_noise, from_batch, load_picture, psnr, to_batch

HERE = Path(__file__).parent
SKIMAGE = Path(skimage.__file__).parent / "data"
SKLEARN = Path(sklearn.datasets.__file__).parent / "images"

TRAINING: dict[Path, float] = {
    SKLEARN / "china.jpg": 4,
    SKLEARN / "flower.jpg": 3,
    SKIMAGE / "rocket.jpg": 2,
    SKIMAGE / "camera.png": 2,
    SKIMAGE / "brick.png": 1,
    SKIMAGE / "grass.png": 1,
    SKIMAGE / "gravel.png": 1,
    SKIMAGE / "hubble_deep_field.jpg": 1,
    SKIMAGE / "retina.jpg": 1,
}
"""The photographs trained on, and how often each is drawn from, relative to the others."""

HELD_OUT: tuple[Path, ...] = tuple(SKIMAGE / name for name in ("astronaut.png", "chelsea.png", "coffee.png"))
"""The photographs tested on: other scenes than those in `TRAINING`."""

SCALES = (1.0, 0.8, 0.6)
"""Each photograph is also offered at these smaller sizes: more detail a pixel, less trace of JPEG compression."""


class Block(nn.Module):
    """Convolutions, batch norm, the block's own input added, ReLU (arXiv 1512.03385).

    The addition is for training: after 500 steps without it, the mean error was 14 of 255, with it 7.
    """

    def __init__(self, channels: int, *convolutions: nn.Conv2d) -> None:
        super().__init__()
        self.change = nn.Sequential(*convolutions, nn.BatchNorm2d(channels))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[N, channels, H, W] -> the same shape."""
        changed: torch.Tensor = self.change(features)
        return torch.relu(features + changed)


def dilated(channels: int, dilation: int, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size; with `groups=channels`, depthwise."""
    return nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=groups, bias=False)


class Restorer(nn.Module):
    """Predicts the noise and subtracts it (residual learning, arXiv 1608.03981), at full resolution, for any size.

    The dilations rise and fall, 1 2 3 4 2 3 2 1 (after arXiv 1704.03264), so that a receptive field of 41x41 pixels
    takes few layers and no stride: one standard dilated convolution in the middle, depthwise-separable ones around it.

    Shapes: image [N, 3, H, W] in 0..1 (noise may exceed it) -> restored [N, 3, H, W].
    """

    def __init__(self, channels: int = 48) -> None:
        super().__init__()

        def separable(dilation: int) -> Block:
            return Block(channels, dilated(channels, dilation, channels), nn.Conv2d(channels, channels, 1, bias=False))

        last = nn.Conv2d(channels, 3, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)  # training starts from the identity
        self.noise = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            *(separable(dilation) for dilation in (1, 2, 3, 4)),
            Block(channels, dilated(channels, 2)),
            *(separable(dilation) for dilation in (3, 2, 1)),
            last,
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return `image` without its noise."""
        noise: torch.Tensor = self.noise(image)
        return image - noise


class Patches:
    """Endless seeded supply of clean training patches."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = np.random.default_rng(seed)
        self.size = size
        weights = np.array(list(TRAINING.values()), dtype=np.float64)
        self.chances = weights / weights.sum()
        self.pictures = [[self._resized(path, scale) for scale in SCALES] for path in TRAINING]
        self.grey = [bool(np.ptp(versions[0], axis=2).max() == 0) for versions in self.pictures]

    @staticmethod
    def _resized(path: Path, scale: float) -> NDArray[np.uint8]:
        with Image.open(path) as image:
            picture = image.convert("RGB")
        size = round(picture.width * scale), round(picture.height * scale)
        return np.asarray(picture.resize(size, Image.Resampling.LANCZOS) if scale != 1 else picture)

    def _patch(self) -> NDArray[np.float32]:
        """One patch [size, size, 3] in 0..1: any place, flipped, turned, in other colours, darker."""
        which = self.random.choice(len(self.pictures), p=self.chances)
        picture = self.pictures[which][self.random.integers(len(SCALES))]
        top, left = (self.random.integers(extent - self.size + 1) for extent in picture.shape[:2])
        patch = picture[top : top + self.size, left : left + self.size].astype(np.float32) / 255
        patch = np.rot90(patch, int(self.random.integers(4)))
        if self.random.random() < 0.5:
            patch = patch[::-1]
        if self.grey[which]:  # a grey photograph in three equal channels would teach that channels are always equal
            patch = patch * self.random.uniform(0.5, 1, 3).astype(np.float32)
        elif self.random.random() < 0.5:
            patch = patch[..., self.random.permutation(3)]
        return np.asarray(patch * self.random.uniform(0.7, 1), dtype=np.float32)

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy and clean patches, each [count, 3, size, size]; the noise of every second patch is clipped to 0..1."""
        clean = np.stack([self._patch() for _ in range(count)]).transpose(0, 3, 1, 2)
        noisy = clean + self.random.normal(0, SIGMA, clean.shape).astype(np.float32)
        noisy[::2] = np.clip(noisy[::2], 0, 1)
        layout = torch.channels_last  # twice the speed of the contiguous layout for depthwise convolutions
        return torch.from_numpy(noisy).to(memory_format=layout), torch.from_numpy(clean).to(memory_format=layout)


def in_layout(model: nn.Module, layout: torch.memory_format) -> None:
    """Change the memory layout of the model's weights."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the steps, then a cosine down to zero."""
    warm = max(1, steps // 50)
    return peak * min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(options: argparse.Namespace) -> Restorer:
    """Run the schedule, saving a checkpoint beside the output every 250 steps."""
    torch.manual_seed(options.seed)
    model = Restorer()
    in_layout(model, torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters())
    checkpoint = options.out.with_suffix(".checkpoint.pt")
    first = 0
    if options.resume:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    patches = Patches(options.seed + first, options.patch)
    print(
        f"{sum(p.numel() for p in model.parameters())} parameters, {len(TRAINING)} photographs, {options.steps} steps"
    )
    started, losses = time.perf_counter(), []
    for step in range(first, options.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.learning_rate)
        noisy, clean = patches.batch(options.batch)
        loss = (model(noisy) - clean).abs().mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - started
            left = seconds / (step + 1 - first) * (options.steps - step - 1)
            print(
                f"step {step + 1}: mean error {255 * np.mean(losses[-50:]):.2f} of 255, {left:.0f} s left", flush=True
            )
        if (step + 1) % 250 == 0:
            saved = {"step": step + 1, "model": model.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(saved, checkpoint)
    checkpoint.unlink(missing_ok=True)
    model.eval()
    return model


def export(model: Restorer, path: Path) -> None:
    """Write ONNX with dynamic batch, height and width, and with batch norms as nodes of their own."""
    names = {0: "batch", 2: "height", 3: "width"}
    in_layout(model, torch.contiguous_format)
    torch.onnx.export(
        model.eval(),
        (torch.rand(1, 3, 32, 48),),
        path,
        input_names=["image"],
        output_names=["restored"],
        dynamic_axes={"image": names, "restored": names},
        opset_version=17,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # the default would fold the batch norms away
        dynamo=False,
    )


def evaluate(path: Path) -> None:
    """Print the PSNR of every held-out photograph before and after `path`, for both kinds of noise."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for clip in (False, True):
        gains = []
        for photograph in HELD_OUT:
            clean = load_picture(photograph)
            noisy = add_noise(clean, seed=0, clip=clip)
            restored = np.clip(from_batch(session.run(None, {"image": to_batch(noisy)})[0]), 0, 1)
            before, after = psnr(noisy, clean), psnr(restored, clean)
            gains.append(after - before)
            kind = "clipped" if clip else "unclipped"
            print(f"{photograph.stem:10} {kind:9} {before:6.2f} dB -> {after:6.2f} dB, gain {after - before:5.2f} dB")
        print(f"mean gain {np.mean(gains):.2f} dB")


def main() -> None:
    """Parse the arguments, train, export and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch", type=int, default=8, help="patches a step")
    parser.add_argument("--patch", type=int, default=64, help="pixels a side")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at the end of the warm-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "restorer.onnx")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint; --steps may have changed")
    parser.add_argument("--evaluate", action="store_true", help="only measure the file that is there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        export(train(options), options.out)
    evaluate(options.out)


if __name__ == "__main__":
    main()
