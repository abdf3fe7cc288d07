"""Pictures and arrays in, pictures and arrays out.

A picture's pixel p in 0..255 becomes `(p * scale - mean) / std`; an image-shaped output is turned back the same way.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from convwright.errors import ConvwrightError
from convwright.files import replacing

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class Preparation:
    """How pixels become the network's values: `scale`, then `mean` and `std`, one value or one a channel."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def check(self, channels: int) -> None:
        """Raise `ConvwrightError` where mean or std have neither one value nor one a channel, or std is zero."""
        for name, values in ("mean", self.mean), ("std", self.std):
            if len(values) not in (1, channels):
                raise ConvwrightError(f"--{name} {values}: {len(values)} values for an image of {channels} channels")
        if 0 in self.std or not self.scale:
            raise ConvwrightError(f"--scale {self.scale} --std {self.std}: zero divides nothing")

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (H, W, C) in 0..255 to values (C, H, W), float32."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Values (C, H, W) to pixels (H, W, C), uint8."""
        channels = values.shape[0]
        mean = np.array(self.mean if len(self.mean) in (1, channels) else 0, np.float32)
        std = np.array(self.std if len(self.std) in (1, channels) else 1, np.float32)
        pixels = (values.transpose(1, 2, 0).astype(np.float32) * std + mean) / np.float32(self.scale)
        return np.clip(np.rint(np.nan_to_num(pixels)), 0, 255).astype(np.uint8)


def read_image(path: str, channels: int, size: tuple[int | None, int | None]) -> np.ndarray:
    """The pixels (H, W, C) of an image file, in 0..255, turned as its EXIF says, resized to `size` (H, W) where fixed.

    Raises `ConvwrightError` for a file that is no image, that is damaged, or that would fill the memory; `OSError` for
    one that cannot be opened.
    """
    if channels not in _MODES:
        raise ConvwrightError(
            f"{path}: the model takes {channels} channels, an image has {', '.join(map(str, _MODES))}"
        )
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = _decoded(file, _MODES[channels])
        except UnidentifiedImageError:
            raise ConvwrightError(f"{path}: not an image") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ConvwrightError(f"{path}: {str(error).split(', could')[0]}") from None
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... for damaged files
            raise ConvwrightError(f"{path}: damaged image: {error}") from None
    height, width = size[0] or picture.height, size[1] or picture.width
    if (height, width) != (picture.height, picture.width):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def _decoded(file: BinaryIO, mode: str) -> Image.Image:
    picture: Image.Image = Image.open(file)
    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip instead of scaling
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return picture.convert(mode)


def read_array(path: str) -> np.ndarray:
    """The array of a .npy file. Raises `ConvwrightError` where it is none, or holds Python objects."""
    with open(path, "rb") as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # a hostile header raises nearly anything
            raise ConvwrightError(f"{path}: not a .npy array: {str(error) or type(error).__name__}") from None
    return array


def check_output(path: str) -> None:
    """Raise `ConvwrightError` if the name's suffix is neither .npy nor one of an image format that can be written."""
    suffix = Path(path).suffix.lower()
    if suffix != ".npy" and Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise ConvwrightError(f"{path}: no image format is named {suffix or 'so'!r}")


def write_image(path: str, pixels: np.ndarray) -> None:
    """Write pixels (H, W, 1 or 3), uint8, in the format that the name says, whole or not at all."""
    kind = Image.registered_extensions()[Path(path).suffix.lower()]
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    with replacing(Path(path)) as file:
        picture.save(file, format=kind, **options)


def write_array(path: str, array: np.ndarray) -> None:
    """Write a .npy file, whole or not at all."""
    with replacing(Path(path)) as file:
        np.save(file, array, allow_pickle=False)
