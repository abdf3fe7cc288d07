"""The table that bench/kinds.py measures: kinds with their targets, and for each the sizes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import kind_models as models
import onnx

from convwright.graph import Graph
from convwright.spec import ConvSpec, DeformableSpec, HetSpec, IntegerSpec, MixSpec, ShuffledSpec, Spec

Build = Callable[[], Any]  # an ONNX model
Size = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Beside:
    """Another model that convwright runs in the same race, to compare a case with."""

    name: str
    spec: Spec
    build: Build


@dataclass(frozen=True, slots=True)
class Case:
    """One layer.

    - `spec`, `size`: what it is, and the spatial size of its input; batch 1.
    - `build`: the ONNX model for every runtime.
    - `own`: the graph for convwright where it has an operator of its own for what ONNX writes out in several.
    - `torch`: the forms of PyTorch that run it, of `convwright.cli.peers`.
    - `forms`: further forms of the model for a peer, by a name and the peer's; each writes a file. The fastest counts.
    - `beside`: what the case is compared with instead of with peers.
    - `instead`: whether peers run the first of `beside` too, as what a user would otherwise take.
    - `absent`: peers that have nothing of the kind, and why.
    """

    name: str
    spec: Spec
    size: Size
    build: Build
    own: Callable[[], Graph] | None = None
    torch: tuple[str, ...] = ("torch", "torch-nchw")
    forms: Mapping[tuple[str, str], Callable[[Path], None]] = field(default_factory=dict)
    beside: tuple[Beside, ...] = ()
    instead: bool = False
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        return self.spec.macs(self.size)


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the targets.

    - `target`: the least that the ratio is to be.
    - `ratio`: what the ratio is: "peers", the best peer's time over ours; "rate", our multiply-adds a second over those
      of the model beside; "time", the sum of the times of the models beside over ours.
    - `cases`: the first one is the quick one.
    """

    name: str
    target: float
    cases: Sequence[Case]
    ratio: str = "peers"


def text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def conv(size: Sequence[int] | int, channels: Sequence[int] | int, kernel: Sequence[int] | int, **options: Any) -> Case:
    """A case of one Conv or ConvTranspose; `channels` is C, or C and K."""
    size = (size,) if isinstance(size, int) else tuple(size)
    c, k = (channels, channels) if isinstance(channels, int) else channels
    spec = ConvSpec.of_rank(len(size), c, k, kernel, **options)
    return Case(title(spec, size), spec, size, lambda: models.conv(spec, size))


def title(spec: ConvSpec, size: Size) -> str:
    words = [text(size), str(spec.in_channels)]
    if spec.groups < spec.in_channels:
        words[1] += f"->{spec.out_channels}"
    words.append(f"k{spec.kernel[0]}" if len({*spec.kernel}) == 1 else text(spec.kernel))
    for letter, values in (("s", spec.stride), ("d", spec.dilation)):
        if {*values} != {1}:
            words.append(f"{letter}{values[0]}")
    if 1 < spec.groups < spec.in_channels:
        words.append(f"g{spec.groups}")
    elif spec.groups > 1:
        words.append("dw")
    return " ".join(words)


def depthwise(size: Sequence[int] | int, channels: int, kernel: int, stride: int = 1) -> Case:
    return conv(size, channels, kernel, stride=stride, padding=kernel // 2, groups=channels)


def square(size: int) -> Size:
    return (size, size)


def grouped(size: int, channels: int, each: int, stride: int = 1) -> Case:
    case = conv(square(size), channels, 3, stride=stride, padding=1, groups=channels // each)
    return replace(case, name=f"{case.name} ({each} a group)")


def shuffled(size: int, channels: int, groups: int) -> Case:
    spec = ShuffledSpec(ConvSpec(channels, channels, (1, 1), groups=groups))
    name = f"{title(spec.conv, square(size))} + shuffle"
    return Case(name, spec, square(size), lambda: models.shuffled(spec, square(size)))


def transposed(size: Sequence[int] | int, channels: Sequence[int], kernel: int, stride: int, **options: Any) -> Case:
    return conv(size, channels, kernel, stride=stride, transposed=True, **options)


def deformable(size: int, channels: int) -> Case:
    conv = ConvSpec(channels, channels, (3, 3), padding=1)
    spec = DeformableSpec(conv, modulated=True)

    def openvino(path: Path) -> None:
        models.deformable_openvino(spec, square(size), str(path))

    return Case(
        f"{title(conv, square(size))} v2",
        spec,
        square(size),
        lambda: models.deformable(spec, square(size)),
        forms={("openvino", "IR.xml"): openvino},
        absent={"openvino": "reads no DeformConv from ONNX"},
    )


def odd(size: int, channels: tuple[int, int], kernel: int) -> Case:
    """Beside the next multiples of 16, the vector width of AVX-512."""
    case = conv(square(size), channels, kernel, padding=kernel // 2)
    wide = conv(square(size), [-(-count // 16) * 16 for count in channels], kernel, padding=kernel // 2)
    return replace(case, beside=(Beside(wide.name, wide.spec, wide.build),))


def het(size: int, channels: int, part: int) -> Case:
    """Beside the dense layer, our own and the peers'."""
    dense = conv(square(size), channels, 3, padding=1)
    assert isinstance(dense.spec, ConvSpec)
    spec = HetSpec(dense.spec, part)
    name = f"{dense.name} P{part}"
    return Case(
        name,
        spec,
        square(size),
        lambda: models.het(spec, square(size)),
        own=lambda: models.het_graph(spec, square(size)),
        beside=(Beside(dense.name, dense.spec, dense.build),),
        instead=True,
    )


def mix(size: int, channels: int, kernels: Sequence[int], split: str = "equal", stride: int = 1) -> Case:
    """Beside each part alone."""
    spec = MixSpec(channels, kernels, split=split, stride=stride)
    parts = []
    for part in spec.parts:
        alone = part.resolve(square(size))
        build = lambda alone=alone: models.conv(alone, square(size))  # noqa: E731 (binds this part)
        parts.append(Beside(title(alone, square(size)), alone, build))
    name = f"{text(square(size))} {channels} k{','.join(map(str, kernels))} {split}" + f" s{stride}" * (stride > 1)
    return Case(
        name,
        spec,
        square(size),
        lambda: models.mix(spec, square(size)),
        own=lambda: models.mix_graph(spec, square(size)),
        beside=tuple(parts),
    )


def integer(size: int, channels: int, requantised: bool) -> Case:
    spec = IntegerSpec(ConvSpec(channels, channels, (3, 3), padding=1, bias=requantised), input_zero_point=128)
    name = title(spec.conv, square(size))
    if not requantised:
        absent = {"torch": "no integer convolution with 32-bit sums"}
        build = lambda: models.conv_integer(spec, square(size))  # noqa: E731
        return Case(f"{name} int32", spec, square(size), build, torch=(), absent=absent)

    def around(path: Path) -> None:
        onnx.save(models.quantized_around_float(spec, square(size)), path)

    return Case(
        f"{name} requantised",
        spec,
        square(size),
        lambda: models.qlinear_conv(spec, square(size)),
        torch=("torch-int8",),
        forms={("openvino", "QDQ.onnx"): around},
    )


KINDS = {
    kind.name: kind
    for kind in (
        Kind("depthwise-2d", 1.3, (
            depthwise(square(112), 64, 3), depthwise(square(56), 128, 3, 2), depthwise(square(28), 256, 5),
            depthwise(square(14), 512, 3),
        )),
        Kind("depthwise-1d", 3.0, (
            depthwise(4000, 256, 31), depthwise(16000, 64, 3), depthwise(8000, 128, 31), depthwise(1000, 512, 3),
        )),
        Kind("depthwise-3d", 3.0, (
            depthwise((16, 56, 56), 32, 3), depthwise((8, 28, 28), 64, 3), depthwise((16, 56, 56), 32, 3, 2),
            depthwise((4, 14, 14), 128, 3),
        )),
        Kind("depthwise-31", 1.2, tuple(depthwise(square(s), c, 31) for s, c in ((28, 256), (56, 128), (14, 512)))),
        Kind("grouped", 1.5, (
            grouped(56, 128, 4), grouped(28, 256, 8), grouped(14, 512, 16), grouped(56, 128, 32),
            grouped(28, 256, 32), grouped(14, 512, 4), grouped(56, 128, 4, 2), grouped(28, 256, 8, 2),
            grouped(28, 512, 16, 2),
        )),
        Kind("shuffled", 1.3, (
            shuffled(28, 240, 3), shuffled(14, 480, 3), shuffled(28, 384, 8), shuffled(14, 768, 8), shuffled(7, 960, 3),
        )),
        Kind("dilated", 1.5, tuple(
            conv(square(size), channels, 3, padding=rate, dilation=rate)
            for size, channels, rate in ((32, 256, 2), (32, 256, 4), (32, 256, 6), (32, 256, 12), (64, 64, 2))
        )),
        Kind("transposed-1d", 1.3, tuple(
            transposed(size, channels, 16, 8, padding=4)
            for size, channels in ((256, (256, 128)), (64, (512, 256)), (2048, (128, 64)))
        )),
        Kind("transposed-2d", 1.3, (
            transposed(square(32), (128, 64), 4, 2, padding=1),
            transposed(square(16), (256, 128), 4, 2, padding=1),
            transposed(square(28), (64, 64), 3, 2, padding=1, output_padding=1),
            transposed(square(56), (128, 64), 2, 2),
            transposed(square(28), (128, 128), 4, 2, padding=1, groups=8),
            transposed(square(56), (64, 64), 4, 2, padding=1, groups=64),
        )),
        Kind("transposed-9x9", 2.0, tuple(transposed(square(s), (64, 3), 9, 3, padding=3) for s in (64, 32, 96))),
        Kind("dense-3d", 1.5, (
            conv((8, 28, 28), 64, 3, padding=1), conv((16, 56, 56), 32, 3, padding=1),
            conv((16, 56, 56), (32, 64), 3, padding=1, stride=2), conv((4, 14, 14), 128, 3, padding=1),
        )),
        Kind("3x3", 1.7, tuple(
            conv(square(s), c, 3, padding=1) for s, c in ((28, 128), (56, 64), (14, 256), (7, 512))
        )),
        Kind("1x7-7x1", 1.3, (
            conv(square(17), 160, (1, 7), padding=(0, 3)), conv(square(17), 160, (7, 1), padding=(3, 0)),
            conv(square(17), 128, (1, 7), padding=(0, 3)), conv(square(17), (128, 192), (7, 1), padding=(3, 0)),
            conv(square(17), 192, (1, 7), padding=(0, 3)),
        )),
        Kind("deformable", 1.3, (deformable(28, 128), deformable(56, 64), deformable(14, 256))),
        Kind("odd", 0.75, (
            odd(28, (37, 53), 3), odd(28, (61, 61), 3), odd(56, (37, 53), 1), odd(56, (61, 61), 1),
        ), "rate"),
        Kind("het", 2.0, (het(28, 128, 4), het(56, 64, 4), het(14, 256, 4)), "time"),
        Kind("mix", 1.0, (
            mix(28, 240, (3, 5, 7)), mix(56, 96, (3, 5)), mix(14, 480, (3, 5, 7, 9)),
            mix(28, 256, (3, 5, 7, 9), "exponential", 2),
        ), "time"),
        Kind("integer", 1.2, tuple(
            integer(size, channels, requantised)
            for requantised in (True, False) for size, channels in ((28, 128), (56, 64), (14, 256))
        )),
    )
}  # fmt: skip
