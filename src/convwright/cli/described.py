"""Convolutions in a few words: `standard 128 k3 s2`, `separable 128 k3`, `het 128 k3 part4`, `mix k3,5,7`."""

import re
from typing import TYPE_CHECKING, Any

from convwright.errors import ConvwrightError

if TYPE_CHECKING:
    from convwright.spec import Spec

KINDS = (
    "standard", "grouped", "depthwise", "pointwise", "dilated", "separable", "spatial", "transposed", "deformable",
    "het", "mix", "shuffled",
)  # fmt: skip

_WORD = re.compile(r"(?P<name>part|[ksdgpm])?(?P<value>same|valid|\d+(?:[x,]\d+)*)")
_MEANS = {"k": "kernel", "s": "stride", "d": "dilation", "g": "groups", "p": "padding", "m": "multiplier"}


def is_described(text: str) -> bool:
    """Whether the text begins with a kind of convolution."""
    return text.split(" ", 1)[0] in KINDS


def described(text: str, channels: int, rank: int) -> "Spec":
    """The convolution that a few words describe.

    The first is its kind; a number alone is the output channels (as many as the input's by default); then `k3` or
    `k3x5` the kernel (3; of mix, a list: `k3,5,7`), `s2` the stride, `d2` the dilation, `g4` the groups, `p1`, `psame`
    or `pvalid` the padding (same, of a transposed one 0), `m2` the filters a channel of a depthwise stage, `part4` the
    P of HetConv.

    - `channels`, `rank`: input channels, and the number of spatial axes.

    >>> described("separable 128 k3 s2", 64, 2).parameters
    8896
    >>> described("standard 128 k3 s2 g4", 64, 2).kind
    'grouped'
    """
    kind, *words = text.split()
    given: dict[str, Any] = {}
    for word in words:
        found = _WORD.fullmatch(word)
        if found is None:
            raise ConvwrightError(f"{text!r}: {word!r} is none of 128, k3, s2, d2, g4, p1, psame, m2, part4")
        name = _MEANS.get(found["name"] or "", found["name"] or "out_channels")
        if name in given:
            raise ConvwrightError(f"{text!r}: {name} is given twice")
        given[name] = _value(found["value"])
    return _spec(text, kind, given, channels, rank)


def _value(text: str) -> Any:
    """`3` as an int, `3x5` as one int an axis, `3,5` as a list; words stay."""
    if text.isalpha():
        return text
    separator = "," if "," in text else "x"
    numbers = [int(part) for part in text.replace(",", "x").split("x")]
    return numbers[0] if len(numbers) == 1 else numbers if separator == "," else tuple(numbers)


def _spec(text: str, kind: str, given: dict[str, Any], channels: int, rank: int) -> "Spec":
    from convwright.spec import (
        ConvSpec,
        DeformableSpec,
        HetSpec,
        MixSpec,
        SeparableSpec,
        ShuffledSpec,
        SpatialSpec,
    )

    out = given.pop("out_channels", channels)
    kernel = given.pop("kernel", 1 if kind in ("pointwise", "shuffled") else 3)
    multiplier, part = given.pop("multiplier", 1), given.pop("part", None)
    given.setdefault("padding", 0 if kind == "transposed" else "same")
    if kind == "het" and part is None:
        raise ConvwrightError(f"{text!r}: a het convolution needs its part, such as part4")
    if kind != "het" and part is not None:
        raise ConvwrightError(f"{text!r}: only a het convolution has a part")
    if kind in ("mix", "depthwise") and out != channels:
        raise ConvwrightError(
            f"{text!r}: a {kind} convolution of {channels} channels cannot give {out}; m2 gives twice"
        )
    if kind == "mix":
        return MixSpec(channels, kernel if isinstance(kernel, list) else [kernel], rank=rank, **given)
    if kind == "depthwise":
        return ConvSpec.of_rank(rank, channels, channels * multiplier, kernel, groups=channels, **given)
    conv = ConvSpec.of_rank(rank, channels, out, kernel, transposed=kind == "transposed", **given)
    if kind == "separable":
        return SeparableSpec(conv, multiplier)
    if kind == "spatial":
        return SpatialSpec(conv, out)
    if kind == "het":
        assert part is not None
        return HetSpec(conv, part)
    if kind == "shuffled":
        return ShuffledSpec(conv)
    if kind == "deformable":
        return DeformableSpec(conv)
    if kind not in ("standard", conv.kind):
        raise ConvwrightError(f"{text!r} describes a {conv.kind} convolution, not a {kind} one")
    return conv
