"""Convolution by fast Fourier transforms: which tiles, and the weights' spectra."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from convwright.codegen.lang import lanes
from convwright.kernels import fft
from convwright.kernels.fft_codelets import RADICES, frequencies, multiplications, operations, roots
from convwright.kernels.planar import MOST_STEPS
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Buffer, Ref

_LINES = ((16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256))
_MOST_WEIGHT_BYTES = 512 << 20
_MOST_ERROR = 1e-5  # of the largest output, that numerics="default" allows
_CACHE_BYTES = 8 << 20  # transformed weights up to this size come from a cache
_SCRATCH_BYTES = 512 * 1024  # spectra and products of one thread up to this size stay in its second-level cache
_SCRATCH_BYTES_A_CYCLE = 10.0
# Inside a network other layers drive the spectra of weights out of the caches. Measured (`model.timing`): 7 x 7 at
# stride 2 to 64 and 96 channels, 11 x 11 at stride 4, in 1.3 to 2.9 times what a layer takes that is called repeatedly.
_COLD = 1.7
_MEMORY_BYTES_A_CYCLE, _NEAR_BYTES_A_CYCLE = 9.0, 24.0  # of the estimate's cycles, two multiply-adds each


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a convolution that is not transposed; ``low``, ``high``: its padding, negative where it crops."""

    size: int
    kernel: int
    stride: int
    dilation: int
    low: int
    high: int
    out: int

    @property
    def span(self) -> int:
        """Elements from the first tap to the last."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def phases(self) -> int:
        """Offsets within the stride at which there are taps."""
        return min(self.stride, self.span)

    @property
    def taps(self) -> int:
        """Of one phase, zeros between dilated taps included."""
        return -(-self.span // self.stride)

    def sources(self, mode: str, length: int) -> np.ndarray:
        """The element of each padded position, up to ``length``; -1 for a zero."""
        if mode == "zeros":
            at = np.arange(length) - self.low
            return np.where((at >= 0) & (at < self.size), at, -1)
        names = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
        padded = np.pad(np.arange(self.size), (self.low, self.high), mode=names[mode])  # type: ignore[call-overload]
        return np.concatenate([padded, np.full(length, -1)])[:length].astype(np.int64)


_NONE = Axis(1, 1, 1, 1, 0, 0, 1)


@dataclass(frozen=True, slots=True)
class Form:
    """A problem as the kernel sees it: an axis whose taps are summed, and two, or one of a line, that are transformed.

    ``step_high``, ``step_wide``: outputs of a tile. ``cycles``: estimated, on each thread.
    """

    deep: Axis
    high: Axis
    wide: Axis
    tile: fft.FftTile
    v: int
    groups: int
    channels: int
    outs: int
    batch: int
    step_high: int
    step_wide: int
    parts: int = 1
    cycles: float = 0.0

    @property
    def terms(self) -> int:
        return self.channels * self.deep.kernel * self.high.phases * self.wide.phases

    @property
    def tiles_high(self) -> int:
        return -(-self.high.out // self.step_high)

    @property
    def tiles_wide(self) -> int:
        return -(-self.wide.out // self.step_wide)

    @property
    def tiles(self) -> int:
        return self.batch * self.deep.out * self.tiles_high * self.tiles_wide

    @property
    def pairs(self) -> int:
        return -(-self.tiles // 2)

    @property
    def k_tiles(self) -> int:
        return -(-self.outs // self.tile.outs)

    @property
    def part_tiles(self) -> int:
        return -(-self.k_tiles // self.parts)

    @property
    def blocks(self) -> int:
        return -(-self.pairs // self.tile.pairs)

    @property
    def scratch(self) -> int:
        """Elements of scratch of one thread, in whole cache lines."""
        return -(-fft.scratch_elements(self.tile, self.terms, self.part_tiles, self.v) // 16) * 16

    @property
    def weight_elements(self) -> int:
        return self.groups * self.k_tiles * self.tile.outs * self.terms * 2 * self.tile.area


def axes_of(p: Problem) -> list[Axis]:
    """The problem's axes; a transposed convolution of stride 1 is a convolution with other padding."""
    spec, out = p.spec, p.out_size
    axes = []
    for axis, (low, high) in enumerate(spec.pads(p.size)):
        own = Axis(p.size[axis], spec.kernel[axis], spec.stride[axis], spec.dilation[axis], low, high, out[axis])
        if spec.transposed:
            own = replace(own, low=own.span - 1 - low, high=own.span - 1 - high + spec.output_padding[axis])
        axes.append(own)
    return axes


def _shapes(axes: list[Axis]) -> Iterator[tuple[Axis, Axis, Axis, int, int, bool]]:
    """(deep, high, wide, tile's height, width, whether it is a line) of the tiles worth considering."""
    if len(axes) > 1:
        deep, high, wide = ([_NONE, *axes])[-3:]
        for rows in _lengths(high):
            for cols in _lengths(wide):
                yield deep, high, wide, rows, cols, False
    if len(axes) < 3:
        deep, wide = ([_NONE, *axes])[-2:]
        for rows, cols in _LINES:
            if rows * cols >= wide.taps:
                yield deep, _NONE, wide, rows, cols, True
            if rows * cols >= wide.out + wide.taps - 1:
                break


def _lengths(axis: Axis) -> list[int]:
    """Lengths of tiles: those that hold the kernel, up to the first that holds the axis."""
    fitting = [length for length in RADICES if length >= axis.taps]
    whole = [length for length in fitting if length >= axis.out + axis.taps - 1]
    return [length for length in fitting if not whole or length <= whole[0]]


@lru_cache(maxsize=1024)
def form_of(p: Problem) -> Form | None:
    """The tile of least estimated time; None where the kernel is larger than every tile."""
    spec, v = p.spec, lanes(p.target, p.element)
    channels, outs = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    best: Form | None = None
    for deep, high, wide, rows, cols, line in _shapes(axes_of(p)):
        if line:
            steps = 1, rows * cols - wide.taps + 1
        else:
            steps = rows - high.taps + 1, cols - wide.taps + 1
        terms = channels * deep.kernel * high.phases * wide.phases
        tile = fft.FftTile(
            rows, cols, line, 1, 1, wide.stride, spec.padding_mode == "zeros", terms == 1, p.element
        )  # fmt: skip
        steps = _even(steps[0], high.out), _even(steps[1], wide.out)
        form = Form(deep, high, wide, tile, v, spec.groups, channels, outs, p.batch, *steps)
        found = _estimate(p, replace(form, tile=_register_tile(p, form)))
        if best is None or found.cycles < best.cycles:
            best = found
    return best


def _even(most: int, out: int) -> int:
    """Outputs of a tile on an axis: as few as the same number of tiles needs."""
    return -(-out // -(-out // most))


def _register_tile(p: Problem, form: Form) -> fft.FftTile:
    """Outputs by pairs whose products are summed in registers."""
    free = p.target.registers - 2
    if form.terms == 1:
        return replace(form.tile, outs=1, pairs=1)
    tiles = [
        (outs, pairs) for pairs in (1, 2, 4) for outs in (1, 2, 4)
        if outs <= form.outs and pairs <= form.pairs and 2 * (outs * pairs + outs + pairs) <= free
    ]  # fmt: skip
    # Weights come from far away: the more pairs share them, the better.
    outs, pairs = max(tiles, key=lambda tile: (tile[0] * tile[1], tile[1]))
    return replace(form.tile, outs=outs, pairs=pairs)


def _estimate(p: Problem, form: Form) -> Form:
    """The form with its division of the work and its estimated cycles."""
    tile = form.tile
    vectors = tile.area / form.v
    transform = vectors * (0.45 * (operations(tile.high) / tile.high + operations(tile.wide) / tile.wide) + 9.0)
    product = vectors * 2.2 * max(1.0, 0.8 / tile.pairs + 0.8 / tile.outs)
    items = form.blocks * form.groups
    width = np.dtype(p.dtype).itemsize
    far = form.weight_elements * width > _CACHE_BYTES
    best: Form | None = None
    for parts in {1, min(form.k_tiles, -(-p.threads // items)), min(form.k_tiles, p.threads)}:
        part_tiles = -(-form.k_tiles // parts)
        outs = part_tiles * tile.outs
        compute = 1.2 * tile.pairs * (form.terms * transform + outs * (transform + form.terms * product)) + 300.0
        memory = 2 * tile.area * form.terms * outs * width / (_MEMORY_BYTES_A_CYCLE if far else _NEAR_BYTES_A_CYCLE)
        own = 2 * tile.area * (form.terms + outs) * tile.pairs * width
        memory += 2 * own / _SCRATCH_BYTES_A_CYCLE if own > _SCRATCH_BYTES else 0.0
        item = max(compute, memory) + 0.3 * min(compute, memory)
        cycles = -(-items * -(-form.k_tiles // part_tiles) // p.threads) * item
        if best is None or cycles < best.cycles:
            best = replace(form, parts=-(-form.k_tiles // part_tiles), cycles=cycles)
    assert best is not None
    return best


# -- the algorithm's row -----------------------------------------------------------------------------------------------


def _why_not(p: Problem) -> str | None:
    spec = p.spec
    if p.residual:
        return "adds no residual"
    if p.numerics == "strict":
        return "numerics is strict"
    if spec.transposed and max(spec.stride) > 1:
        return f"transposed with stride {spec.stride}: only stride 1"
    if spec.stride[-1] > MOST_STEPS:
        return f"stride {spec.stride}: at most {MOST_STEPS} along rows"
    if p.algorithm == "auto" and math.prod(spec.kernel) < _FEWEST_TAPS:
        return f"kernel {spec.kernel} has too few taps to gain by it"
    form = form_of(p)
    if form is None:
        return f"kernel {spec.kernel} with dilation {spec.dilation} is larger than a tile of {max(RADICES)}"
    nbytes = form.weight_elements * np.dtype(p.dtype).itemsize
    if nbytes > _MOST_WEIGHT_BYTES:
        return f"the transformed weights take {nbytes} bytes, more than {_MOST_WEIGHT_BYTES}"
    if p.algorithm == "auto" and _error_bound(p) > _MOST_ERROR:
        return f"errors may be {_error_bound(p):.1e} of the largest output, more than {_MOST_ERROR:.0e}"
    return None


_FEWEST_TAPS = 25


def _form(p: Problem) -> Form:
    form = form_of(p)
    assert form is not None
    return form


def _cycles(p: Problem) -> float:
    return _form(p).cycles * (1.0 if p.plain_input and p.plain_output else _COLD)


def _multiplications(p: Problem) -> int:
    """Transforms of inputs and outputs, and four for every product of complex numbers, of two tiles each."""
    form = _form(p)
    tile = form.tile
    transform = tile.wide * multiplications(tile.high) + tile.high * multiplications(tile.wide)
    transform += 4 * tile.area if tile.line else 0
    of_pair = (form.parts * form.terms + form.outs) * transform + 4 * tile.area * form.terms * form.outs
    return form.pairs * form.groups * of_pair


def _workspace(p: Problem) -> int:
    return p.threads * _form(p).scratch * np.dtype(p.dtype).itemsize


def _error_bound(p: Problem) -> float:
    """Measured on random numbers: no larger than a direct sum's, and growing with the logarithm of the tile."""
    unit = 2.0**-53 if p.element == "f64" else 2.0**-24
    return 4 * unit * math.log2(_form(p).tile.area) * max(1.0, _form(p).terms / 64) ** 0.5


def _lower(b: Builder, layer: Layer, p: Problem) -> None:
    form, spec, node = _form(p), p.spec, layer.node
    tile, (deep, high, wide) = replace(form.tile, epilogue=layer.epilogue), (form.deep, form.high, form.wide)
    x, y = b.plain(node.inputs[0]), b.new_plain(layer.output)
    key = ("fft", tile.high, tile.wide, tile.line, tile.outs, spec)
    packed = b.weights.derived(node.inputs[1], key, lambda weight: pack(weight, p, form))
    bias = b.constant(node.input(2)) if node.input(2) else np.zeros(spec.out_channels)
    scratch = Buffer(x.dtype.itemsize * form.scratch * b.threads)
    rows = ((form.tiles_high - 1) * form.step_high + (1 if tile.line else tile.high)) * high.stride + high.phases
    cols = ((form.tiles_wide - 1) * form.step_wide + (tile.area if tile.line else tile.wide)) * wide.stride
    slices = (deep.out - 1) * deep.stride + deep.span

    def table(values: np.ndarray) -> Ref:
        return b.static(np.ascontiguousarray(values, np.int64))

    arguments: dict[str, Any] = {
        "x": x.ref, "w": b.static(packed), "bias": b.static(np.ascontiguousarray(bias, p.dtype)), "y": y.ref,
        "scratch": Ref(scratch), "roots_high": b.static(roots(tile.high).astype(p.dtype)),
        "roots_wide": b.static(roots(tile.wide).astype(p.dtype)), "turns": b.static(_turns(tile).astype(p.dtype)),
        "slices": table(deep.sources(spec.padding_mode, slices)),
        "rows": table(high.sources(spec.padding_mode, rows)),
        "cols": table(wide.sources(spec.padding_mode, cols + wide.phases)),
        "groups": form.groups, "parts": form.parts, "part_tiles": form.part_tiles, "k_tiles": form.k_tiles,
        "blocks": form.blocks, "pairs": form.pairs, "tiles": form.tiles, "out_slices": deep.out,
        "tiles_high": form.tiles_high, "tiles_wide": form.tiles_wide,
        "step_high": form.step_high, "step_wide": form.step_wide,
        "stage_rows": 1 if tile.line else tile.high, "stage_cols": tile.area if tile.line else tile.wide,
        "channels": form.channels, "taps_deep": deep.kernel, "phases_high": high.phases, "phases_wide": wide.phases,
        "terms": form.terms, "slice_step": deep.stride, "slice_gap": deep.dilation, "row_step": high.stride,
        "col_low": wide.low, "x_channel": deep.size * high.size * wide.size, "x_slice": high.size * wide.size,
        "x_row": wide.size, "out_channels": form.outs, "y_channel": deep.out * high.out * wide.out,
        "y_slice": high.out * wide.out, "out_rows": high.out, "out_cols": wide.out, "scratch_thread": form.scratch,
    }  # fmt: skip
    size = f"{tile.area}" if tile.line else f"{tile.high}x{tile.wide}"
    why = f"{form.tiles} tiles of {size}, {form.terms} terms, {tile.outs} outputs by {tile.pairs} pairs of tiles"
    items = form.blocks * form.parts * form.groups
    b.step(tile.name(b.target), fft, tile, arguments, items, [x], [y], why, p.macs)
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))


def _turns(tile: fft.FftTile) -> np.ndarray:
    """Of a line: the factors between its two steps, ``[place of the column's frequency][2][column]``."""
    if not tile.line:
        return np.zeros(1)
    angles = np.outer(frequencies(tile.high), np.arange(tile.wide)) * (-2 * np.pi / tile.area)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def pack(weight: np.ndarray, p: Problem, form: Form) -> np.ndarray:
    """The conjugate spectra, as `kernels.fft` reads them; transformed in float64, rounded once."""
    spec, tile, v = p.spec, form.tile, form.v
    spatial = weight.shape[2:]
    whole = weight.reshape(spec.groups, -1, weight.shape[1], *spatial)
    if spec.transposed:  # [G][C/G][K/G] to [G][K/G][C/G]
        whole = whole.swapaxes(1, 2)
    if spec.flip != spec.transposed:
        whole = np.flip(whole, tuple(range(3, whole.ndim)))
    whole = whole.reshape(*whole.shape[:3], form.deep.kernel, form.high.kernel, form.wide.kernel)
    packed = np.empty((form.groups, tile.area // v, form.k_tiles, form.terms, tile.outs, 2, v), p.dtype)
    for group, of_group in enumerate(whole):
        for number in range(form.k_tiles):
            start = min(number * tile.outs, form.outs - tile.outs)
            spectra = _spectra(of_group[start : start + tile.outs].astype(np.float64), form)
            packed[group, :, number, ..., 0, :] = spectra.real
            packed[group, :, number, ..., 1, :] = spectra.imag
    return packed.reshape(-1)


def _spectra(weight: np.ndarray, form: Form) -> np.ndarray:
    """Of ``[outs][channels][kd][kh][kw]``: ``[vector of frequencies][term][outs][v]``."""
    tile, (high, wide), v = form.tile, (form.high, form.wide), form.v
    outs = len(weight)
    spread = np.zeros((*weight.shape[:3], high.taps * high.stride, wide.taps * wide.stride))
    spread[..., : high.span : high.dilation, : wide.span : wide.dilation] = weight
    phased = spread.reshape(*weight.shape[:3], high.taps, high.stride, wide.taps, wide.stride)
    phased = phased[..., : high.phases, :, : wide.phases].transpose(0, 1, 2, 4, 6, 3, 5)
    terms = phased.reshape(outs, form.terms, high.taps, wide.taps)
    spectrum: np.ndarray
    at_high, at_wide = frequencies(tile.high), frequencies(tile.wide)
    if tile.line:
        spectrum = np.fft.fft(terms[:, :, 0], tile.area)[..., at_high[:, None] + tile.high * at_wide[None, :]]
    else:
        spectrum = np.fft.fft2(terms, (tile.high, tile.wide))[..., at_high[:, None], at_wide[None, :]]
    spectrum = np.conj(spectrum) / tile.area
    blocks = spectrum.reshape(outs, form.terms, tile.high // v, v, tile.wide)
    return blocks.transpose(2, 4, 1, 0, 3).reshape(tile.area // v, form.terms, outs, v)


ROW = Algorithm(
    "fft", "tiles", False, _why_not, _cycles, _multiplications, _workspace, _error_bound, _lower
)  # fmt: skip
