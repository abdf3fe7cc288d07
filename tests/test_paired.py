"""Products in pairs (Winograd's inner product): the kernel and planned layers against float64, on every target.

Every buffer lies beside an unreadable page, and memory that means nothing is NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright import reference
from convwright.codegen.target import Target, target_named
from convwright.errors import ConvwrightError
from convwright.kernels import paired
from convwright.model.lower import conv, paired_weights
from convwright.model.lower import paired as lowering
from convwright.model.problem import Problem
from convwright.spec import ConvSpec
from tests.convolutions import RESIDUAL, STEEPEST, Case, Epilogue, compare, random_epilogue, random_size
from tests.guard import guarded, guarded_empty
from tests.kernels import Blocked, call, each_target
from tests.plans import Planned
from tests.sweeps import check_each, on_targets

CHANNELS = (8, 16, 24, 40, 72)
OUT_CHANNELS = (1, 15, 16, 17, 33)


def bound_of(channels: int) -> float:
    """The row's, of the largest output."""
    spec = ConvSpec(channels, 16, (1, 1))
    problem = Problem(spec, (8, 8), 1, np.dtype(np.float32), target_named("generic"), 1)
    return lowering.ROW.error_bound(problem)


# -- the kernel --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A call of the kernel: `size` is the output's; `parts` and `strip` as in its arguments."""

    tiles: int
    outs: int
    channels: int
    out_channels: int
    strip: int
    parts: int = 1
    images: int = 1
    size: tuple[int, int] = (3, 5)
    stride: tuple[int, int] = (1, 1)
    epilogue: Epilogue = ()
    threads: int = 1
    at_end: bool = True
    halved: bool = False

    def check(self, target: Target) -> None:
        rng = np.random.default_rng(self.channels)
        high, wide = ((size - 1) * step + 1 for size, step in zip(self.size, self.stride, strict=True))

        def normal(*shape: int) -> NDArray[np.float32]:
            return rng.standard_normal(shape).astype(np.float32)

        x, w = normal(self.images, self.channels, high, wide), normal(self.out_channels, self.channels)
        bias, residual = normal(self.out_channels), normal(self.images, self.out_channels, *self.size)
        spec = ConvSpec(self.channels, self.out_channels, (1, 1), stride=self.stride)
        exact = reference.conv(x, w[..., None, None], bias, spec)
        y = self.run(x, w, bias, residual, target)
        expected = exact
        for operation in self.epilogue:
            expected = expected + residual if operation == RESIDUAL else np.maximum(expected, 0)
        rounding = 4e-7 * np.abs(expected).max()  # of the bias and the residual
        compare(y.array(), expected, bound_of(self.channels) * np.abs(exact).max() + rounding, self)
        assert y.halo_untouched()

    def run(self, x: Any, w: Any, bias: Any, residual: Any, target: Target) -> Blocked:
        v, at_end = target.vector, self.at_end
        vectors, blocks = -(-self.out_channels // v), -(-self.channels // v)
        pixels = self.size[0] * self.size[1]
        strips, turns = -(-pixels // self.strip), -(-vectors // self.outs)
        source = Blocked.of(x, v, halo=1, at_end=at_end)
        added = Blocked.of(residual, v, at_end=at_end)
        y = Blocked.empty(residual.shape, v, halo=2, at_end=at_end)
        packed = paired_weights.parts_of(paired_weights.pack(w, target, 2, []), w.shape, v)
        scratch_thread = paired.scratch_floats(self.strip, self.tiles, blocks, v)
        biases = np.zeros(vectors * v, np.float32)
        biases[: self.out_channels] = bias
        x_row, y_row, r_row = (one.arguments("x")["x_row"] for one in (source, y, added))
        table = np.zeros((*self.size, paired.PIXEL_COLUMNS), np.int64)
        rows, cols = np.arange(self.size[0])[:, None], np.arange(self.size[1])[None]
        table[..., 0] = rows * self.stride[0] * x_row + cols * self.stride[1] * v
        table[..., 1], table[..., 2] = rows * y_row + cols * v, rows * r_row + cols * v
        arrays: dict[str, NDArray[Any]] = {
            "w": guarded(packed.weights, at_end=at_end), "bias": guarded(biases, at_end=at_end),
            "scratch": guarded_empty(scratch_thread * self.threads, at_end=at_end), "pixels": table,
            "places": np.arange(blocks, dtype=np.int64) * source.arguments("x")["x_block"],
            "channel_scales": guarded(packed.channel_scales, at_end=at_end),
            "squares": guarded(packed.squares, at_end=at_end),
            "out_scales": guarded(packed.out_scales, at_end=at_end),
        }  # fmt: skip
        values = {
            **{name: array.ctypes.data for name, array in arrays.items()},
            **source.arguments("x"), **y.arguments("y"),
            **{name.replace("residual", "r", "_" in name): value
               for name, value in added.arguments("residual").items()},
            "out_places": 0, "groups": 1, "part_turns": -(-turns // self.parts),
            "vectors": vectors, "images": self.images, "strips": strips, "strip": self.strip, "all_pixels": pixels,
            "x_group": 0, "scales_group": 0,
            "blocks": self.channels // v, "w_out": self.channels * v, "scratch_thread": scratch_thread,
        }  # fmt: skip
        tile = paired.PairedTile(self.tiles, self.outs, self.channels % v > 0, self.epilogue, halved=self.halved)
        items = self.parts * self.images * strips
        call(tile, paired.emit, paired.ARGUMENTS, values, items, target, self.threads)
        return y


@each_target
def test_channels_and_output_channels(target: Target) -> None:
    """Half a block of inputs, output channels that leave lanes of the last vector empty; 15 pixels in tiles of 4."""
    for number, (channels, outs) in enumerate(itertools.product(CHANNELS, OUT_CHANNELS)):
        Work(4, 1, channels, outs, 15, threads=1 + number % 3, at_end=number % 2 == 0).check(target)


@each_target
@pytest.mark.parametrize(("tiles", "outs"), [(1, 1), (1, 3), (2, 2), (5, 1), (8, 3), (11, 2), (15, 1)])
def test_tiles(target: Target, tiles: int, outs: int) -> None:
    """Strips of one tile, that do not divide into tiles, and that do not divide the pixels; parts of the outputs."""
    v = target.vector
    for number, strip in enumerate(sorted({tiles, min(tiles + 1, 15), 15})):
        for parts in (1, 2):
            work = Work(tiles, outs, 24, 3 * v - 1, strip, parts, 2, threads=2, at_end=(number + parts) % 2 == 0)
            work.check(target)
            replace(work, size=(1, 37), channels=40, out_channels=5 * v, threads=3).check(target)


@each_target
@pytest.mark.parametrize("outs", [1, 2, 3, 4])
def test_half_of_the_last_vector(target: Target, outs: int) -> None:
    """Its lower lanes, all of them or one; whole blocks of inputs and half a block."""
    v = target.vector
    for number, (lanes, tiles) in enumerate(itertools.product((1, v // 2), (1, 3, 8, 13))):
        channels, size = CHANNELS[number % len(CHANNELS)], (3, 5 + number % 2)
        epilogue: Epilogue = (RESIDUAL, ("relu",)) if number % 2 else ()
        out_channels = (outs - 1) * v + lanes
        work = Work(
            tiles, outs, channels, out_channels, min(15, tiles + number % 3), 1, 2, size, epilogue=epilogue,
            threads=1 + number % 3, at_end=number % 2 == 0, halved=True,
        )  # fmt: skip
        work.check(target)


@each_target
def test_strides_images_and_epilogues(target: Target) -> None:
    epilogues: list[Epilogue] = [(), (("relu",),), (RESIDUAL,), (RESIDUAL, ("relu",)), (("relu",), RESIDUAL)]
    for number, epilogue in enumerate(epilogues):
        for stride, size in (((1, 1), (4, 3)), ((2, 2), (3, 4)), ((1, 3), (2, 7)), ((3, 2), (7, 2))):
            work = Work(3, 2, 40, 2 * target.vector + 1, 5, 2, 1 + number % 3, size, stride, epilogue, 2)
            work.check(target)


# -- planned layers ----------------------------------------------------------------------------------------------------


@contextmanager
def cut_as(made: lowering.Cut | None) -> Iterator[None]:
    """Whatever the layer, its work is divided so; None: as its plan does."""
    if made is None:
        yield
    else:
        with patch.object(lowering, "cut_of", lambda *_: made):
            yield


def run(case: Case, target: Target, made: lowering.Cut | None = None) -> tuple[Planned, NDArray[Any]]:
    """The plan, in which products are in pairs, and what it gives."""
    inputs, constants = case.arrays()
    with cut_as(made):
        plan = replace(case, numerics="default", algorithm="paired").plan(inputs, constants, target)
    assert plan.tiles(paired), case
    return plan, case.run(plan, inputs)[0]


def check(case: Case, target: Target, made: lowering.Cut | None = None) -> None:
    _, y = run(case, target, made)
    inputs, constants = case.arrays()
    expected, _ = case.expected(inputs, constants)
    largest = np.abs(replace(case, epilogue=()).expected(inputs, constants)[0]).max()
    bound = (
        bound_of(case.spec.in_channels // case.spec.groups * math.prod(case.spec.kernel)) * STEEPEST * largest
        + 1e-6 * np.abs(expected).max()
    )
    compare(y, expected, bound, case)


def cut(tiles: int, outs: int, strip: int, parts: int, pixels: int) -> lowering.Cut:
    return lowering.Cut(tiles, outs, strip, -(-pixels // strip), parts, 0.0)


def random_case(seed: int, target: Target) -> tuple[Case, lowering.Cut | None]:
    rng = np.random.default_rng(seed)
    v, rank = target.vector, 1 if rng.random() < 0.2 else 2
    while True:
        padding = tuple((int(low), int(high)) for low, high in rng.integers(0, 3, (rank, 2)))
        dense = bool(rng.random() < 0.3)
        spec = ConvSpec(
            int(rng.choice((max(v, 8), max(3 * v, 24)) if dense else (*CHANNELS, 136))),
            int(rng.choice((1, v - 1, v, v + 1, 2 * v + 1, 33, 72))),
            tuple(int(taps) for taps in rng.integers(1, 5, rank)) if dense else (1,) * rank,
            dilation=tuple(int(step) for step in rng.choice((1, 1, 2), rank)) if dense else 1,
            stride=tuple(int(step) for step in rng.choice((1, 1, 1, 2, 3), rank)),
            padding=padding if rng.random() < 0.3 else 0,
            bias=bool(rng.random() < 0.7),
        )
        size = random_size(rng, spec)
        pixels = int(np.prod(spec.output_size(size)))
        if pixels >= lowering.FEWEST_PIXELS:
            break
    case = Case(
        spec,
        batch=int(rng.integers(1, 4)),
        size=size,
        epilogue=random_epilogue(rng),
        inside=bool(rng.random() < 0.6),
        halo=bool(rng.random() < 0.2),
        threads=int(rng.integers(1, 4)),
        at_end=bool(rng.random() < 0.5),
        seed=seed,
    )
    if rng.random() < 0.5:
        return case, None
    vectors = -(-spec.out_channels // v)
    tiles, outs = ((1, 1), (3, 2), (4, 1), (7, 3))[rng.integers(4)]
    strip = int(rng.integers(min(tiles, pixels), pixels + 1))
    outs = min(outs, vectors)
    return case, cut(min(tiles, strip), outs, strip, int(rng.integers(1, -(-vectors // outs) + 1)), pixels)


@on_targets(60)
def test_random_convolutions(target: Target, seeds: range) -> None:
    check_each(seeds, lambda seed: random_case(seed, target), lambda drawn: check(drawn[0], target, drawn[1]))


@each_target
def test_corners(target: Target) -> None:
    v = target.vector
    specs: list[tuple[ConvSpec, tuple[int, ...]]] = [
        (ConvSpec(8, 1, (1, 1)), (2, 4)),
        (ConvSpec(8, 1, (1,)), (8,)),
        (ConvSpec(2 * v, v + 1, (1, 1), stride=2), (7, 9)),
        (ConvSpec(24, v - 1, (1, 1), stride=(1, 3)), (5, 11)),
        (ConvSpec(24, 2 * v, (1, 1), stride=(5, 2), padding=((0, 3), (4, 1))), (9, 6)),
        (ConvSpec(40, v, (1, 1), padding=2), (1, 1)),
        (ConvSpec(72, 33, (1,), stride=2, padding=1), (31,)),
        (ConvSpec(300 // 8 * 8, 17, (1, 1)), (1, 49)),
        (ConvSpec(2 * v, v + 1, (3, 3), stride=2, padding=1), (7, 9)),
        (ConvSpec(3 * v, 5, (2, 1), stride=(4, 3), dilation=(1, 2), padding=((0, 2), (3, 0))), (9, 30)),
        (ConvSpec(2 * v, 2 * v, (5,), stride=3, dilation=2, padding=4), (40,)),
        (ConvSpec(2 * max(v, 8), 2 * v, (1, 1), groups=2), (3, 5)),
        (ConvSpec(3 * max(2 * v, 8), 9 * v, (1, 1), stride=2, groups=3, bias=False), (6, 9)),
        (ConvSpec(2 * v, 4 * v, (3, 2), padding=1, groups=2), (4, 5)),
    ]
    for number, (spec, size) in enumerate(specs):
        for batch, threads in ((1, 1), (3, 2)):
            case = Case(spec, batch, size, (RESIDUAL, ("relu",)), number % 2 == 0, threads=threads, at_end=batch == 1)
            check(case, target)


# A tile's pixels and vectors, a strip's pixels, parts of the 4 output vectors; the output has 33 pixels.
CUTS = [(1, 1, 1, 1), (1, 3, 33, 2), (4, 2, 10, 1), (11, 2, 11, 2), (10, 2, 33, 1), (7, 3, 20, 1), (22, 1, 30, 4)]


@each_target
def test_a_pixel_has_the_same_bits_whatever_the_cut_and_the_threads(target: Target) -> None:
    """Also where pixels of a tile take the way of zeros and of numbers whose squares overflow."""
    case = Case(ConvSpec(40, 4 * target.vector - 1, (1, 1), padding=((0, 1), (0, 0))), 2, (2, 11), (("gelu",),))
    inputs, constants = case.arrays()
    inputs["x"][0, :, 0, 5] *= 1e25
    inputs["x"][1, :, 1, 7] *= 1e-25
    results = []
    for made in (None, *(cut(*numbers, pixels=33) for numbers in CUTS)):
        for threads in (1, 2, 3):
            own = replace(case, threads=threads, numerics="default", algorithm="paired")
            with cut_as(made):
                plan = own.plan(inputs, constants, target)
            results.append(own.run(plan, inputs)[0].view(np.int32))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@each_target
def test_groups_are_scaled_each_for_itself(target: Target) -> None:
    """Channels of the second group are larger and their weights smaller by as much."""
    v = max(target.vector, 8)
    case = Case(ConvSpec(3 * v, 3 * v, (1, 1), groups=3, bias=False), 2, (4, 5), threads=2)
    inputs, constants = case.arrays()
    inputs["x"][:, v : 2 * v] *= 1e12
    constants["w"][v : 2 * v] *= 1e-12
    plan = replace(case, numerics="default", algorithm="paired").plan(inputs, constants, target)
    assert [one.family for one in plan.steps if one.macs] == [paired]
    y, (expected, _) = case.run(plan, inputs)[0], case.expected(inputs, constants)
    for group in range(3):
        own = slice(group * v, (group + 1) * v)
        compare(y[:, own], expected[:, own], bound_of(v) * STEEPEST * np.abs(expected[:, own]).max(), group)


@each_target
def test_each_thread_has_its_own_scratch(target: Target) -> None:
    case = Case(ConvSpec(24, target.vector, (1, 1)), 2, (4, 5), threads=3)
    plan, _ = run(case, target, cut(4, 1, 20, 1, 20))
    (step,) = [step for step in plan.steps if step.family is paired]
    assert step.items == 2  # one an image
    scratch = plan.memory[id(step.arguments["scratch"].buffer)].view(np.float32).reshape(3, -1)
    assert scratch.shape[1] == step.arguments["scratch_thread"]
    assert [bool(np.isfinite(own).any()) for own in scratch] == [False, True, True]


# -- where it applies --------------------------------------------------------------------------------------------------


def problem_of(spec: ConvSpec, size: tuple[int, ...], target: Target, **options: Any) -> Problem:
    options = {"algorithm": "paired", "dtype": np.dtype(np.float32), "batch": 1, "threads": 2, **options}
    return Problem(spec, size, target=target, **options)


@each_target
@pytest.mark.parametrize(
    ("spec", "options", "reason"),
    [
        (ConvSpec(64, 64, (1, 1)), {"numerics": "strict"}, "numerics is strict"),
        (ConvSpec(64, 64, (1, 1)), {"dtype": np.dtype(np.float64)}, "float32, not float64"),
        (ConvSpec(60, 64, (1, 1)), {}, r"60 input channels and kernel \(1, 1\): they must be a multiple of 8"),
        (ConvSpec(3, 64, (1, 1)), {"plain_input": True}, "3 input channels"),
        (ConvSpec(6, 64, (3, 3)), {}, r"6 input channels and kernel \(3, 3\)"),
        (ConvSpec(72, 64, (1, 1), groups=4), {}, "72 to 64 channels in 4 groups, which do not fill vectors"),
        (ConvSpec(64, 72, (1, 1), groups=4), {}, "64 to 72 channels in 4 groups, which do not fill vectors"),
        (ConvSpec(64, 64, (1, 1), groups=64), {}, "depthwise"),
        (ConvSpec(64, 64, (1, 1), transposed=True), {}, "transposed"),
        (ConvSpec(64, 64, (1, 1), stride=8), {}, r"output \(2, 2\): fewer than 8 pixels"),
    ],
)
def test_what_it_cannot_do_has_a_reason(target: Target, spec: ConvSpec, options: Any, reason: str) -> None:
    with pytest.raises(ConvwrightError, match=reason):
        conv.algorithm_of(problem_of(spec, (14, 14), target, **options))
    assert conv.algorithm_of(problem_of(spec, (14, 14), target, **options, algorithm="auto")).name != "paired"


@pytest.mark.parametrize("beside", [True, False])
def test_chosen_by_itself_only_where_additions_have_pipes_of_their_own(
    beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_named("avx512")
    monkeypatch.setattr(lowering, "adds_beside_multiply_adds", lambda _: beside)
    conv._row_of.cache_clear()
    try:
        for size, channels, outs in (((14, 14), 512, 512), ((28, 28), 256, 512), ((19, 19), 728, 728)):
            own = problem_of(ConvSpec(channels, outs, (1, 1)), size, target, algorithm="auto")
            assert conv.algorithm_of(own).name == ("paired" if beside else "direct")
            assert conv.algorithm_of(replace(own, numerics="strict")).name == "direct"
            assert conv.algorithm_of(replace(own, algorithm="paired")).name == "paired"
    finally:
        conv._row_of.cache_clear()


@each_target
def test_figures_of_a_row(target: Target) -> None:
    problem = problem_of(ConvSpec(64, 48, (1, 1)), (16, 12), target)
    pairs = {16: 5 / 16, 8: 3 / 8, 4: 1 / 4}[target.vector]
    assert lowering.ROW.multiplications(problem) == 16 * 12 * 48 * 64 * (1 - pairs)
    assert 0 < lowering.ROW.workspace(problem) < 2 * 2**20
    assert bound_of(64) == bound_of(256) < bound_of(1024) < 1e-5


@each_target
def test_cuts_cover_the_pixels_and_fit_registers_and_cache(target: Target) -> None:
    sizes, channels = (8, 9, 49, 196, 784, 12544), ((8, 1), (40, 33), (512, 512), (2048, 64))
    for pixels, (own, outs), threads, images in itertools.product(sizes, channels, (1, 2, 5), (1, 3)):
        made = lowering.cut_of(pixels, images, own, outs, target, threads, 256 * 1024)
        vectors = -(-outs // target.vector)
        assert not made.halved or (made.outs == vectors and outs % target.vector <= target.vector // 2)
        assert made.strip * (made.strips - 1) < pixels <= made.strip * made.strips
        assert (
            1
            <= made.tiles
            <= min(
                made.strip,
                max(most for most, *kind in lowering._tiles_of(own, outs, target) if kind == [made.outs, made.halved]),
            )
        )
        assert made.outs <= vectors
        assert made.parts <= max(threads, 1)
        assert made.strip * own * 4 <= 256 * 1024 + 4 * own
