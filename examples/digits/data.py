"""The digits: 1797 handwritten ones, scanned at 8x8 pixels, and the one split of them into training and held-out ones.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(CC BY 4.0, doi 10.24432/C50P49), in the copy that scikit-learn ships as `load_digits`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

HELD_OUT_FILE = Path(__file__).parent / "held_out.npz"
"""The held-out digits, so that whoever only tests needs no scikit-learn. `train.py` writes it."""


def split(seed: int = 0) -> tuple[Images, Labels, Images, Labels]:
    """Training images and labels, then held-out ones: of each digit, one third (rounded down), drawn with `seed`.

    Images have shape [N, 1, 8, 8] in 0..1 (the scans count 0..16), labels [N].
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, np.newaxis] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        held_out[random.permutation(members)[: len(members) // 3]] = True
    return images[~held_out], labels[~held_out], images[held_out], labels[held_out]


def save_held_out(images: Images, labels: Labels) -> None:
    """Write `HELD_OUT_FILE`; a pixel is stored as the count 0..16 that it was scanned as."""
    counts = np.rint(images * 16).astype(np.uint8)
    np.savez_compressed(HELD_OUT_FILE, counts=counts, labels=labels.astype(np.uint8))


def load_held_out() -> tuple[Images, Labels]:
    """The held-out images [N, 1, 8, 8] in 0..1 and their labels [N], from `HELD_OUT_FILE`."""
    with np.load(HELD_OUT_FILE, allow_pickle=False) as file:
        return file["counts"].astype(np.float32) / 16, file["labels"].astype(np.int64)
