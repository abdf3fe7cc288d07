"""Photographs in and out, seeded noise, and PSNR: what the restorer's training and the demonstration share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from convwright.cli.images import read_image, write_image

Picture = npt.NDArray[np.float32]
"""A photograph of shape [H, W, 3] in 0..1, or a batch of shape [1, 3, H, W] where a function says so."""

SIGMA = 25 / 255
"""Standard deviation of the noise that the restorer was trained for, in units of the 0..1 range."""


def load_picture(path: str | Path) -> Picture:
    """An image file of any size and mode as RGB of shape [H, W, 3] in 0..1.

    Raises `ConvwrightError` for a file that is no image, `OSError` for one that cannot be opened.
    """
    pixels = read_image(str(path), 3, (None, None))
    return pixels.astype(np.float32) / np.float32(255)


def save_picture(picture: Picture, path: Path) -> None:
    """Write `picture`, [H, W, 3], cut to 0..1, with 8 bits a channel: the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(str(path), _pixels(picture))


def quantised(picture: Picture) -> Picture:
    """`picture` as a file holds it: cut to 0..1 and rounded to 256 steps."""
    return _pixels(picture).astype(np.float32) / np.float32(255)


def _pixels(picture: Picture) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def add_noise(picture: Picture, *, seed: int, sigma: float = SIGMA, clip: bool) -> Picture:
    """Add Gaussian noise of standard deviation `sigma`; with `clip`, cut the result to 0..1 as an image file does.

    Clipping removes a part of the noise wherever the picture is nearly black or nearly white, so a clipped noisy
    picture starts from a higher PSNR: figures of the two kinds must not be compared with each other.
    """
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    noisy = (picture + noise).astype(np.float32)
    return np.clip(noisy, 0, 1) if clip else noisy


def psnr(picture: Picture, reference: Picture) -> float:
    """Peak signal-to-noise ratio in decibels, 10 log10(1 / mean squared error), of arrays in 0..1 of equal shape.

    >>> round(psnr(np.full((2, 2, 3), 0.1, np.float32), np.zeros((2, 2, 3), np.float32)), 3)
    20.0
    """
    error = np.mean((picture.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def to_batch(picture: Picture) -> Picture:
    """[H, W, 3] -> a network's input [1, 3, H, W]."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None])


def from_batch(batch: Picture) -> Picture:
    """A network's output [1, 3, H, W] -> [H, W, 3]."""
    return np.ascontiguousarray(batch[0].transpose(1, 2, 0))
