"""Convolution by fast Fourier transforms of overlapping tiles, on row-major tensors (overlap-save; for networks
M. Mathieu, M. Henaff, Y. LeCun, arXiv 1312.5851).

A tile of the input is transformed, multiplied by the transform of the kernel's conjugate, summed over the input
channels and transformed back: a circular correlation, whose first ``tile - kernel + 1`` outputs on each axis are the
convolution's. Two tiles are transformed at once, as the real and the imaginary part of complex numbers: as the kernel
is real, they do not mix, and nothing has to be taken apart.

A tile is a ``high x wide`` matrix. Its columns are transformed with a vector's lanes being neighbouring columns; then
squares of vectors are transposed and its rows are transformed with the lanes being rows. On a line (one axis) the tile
is ``high * wide`` neighbouring elements, row after row, and between the two steps element (frequency of the column,
column) is turned by ``exp(-2 pi i frequency column / (high wide))``: the four-step transform (D. H. Bailey, FFTs in
external or hierarchical memory, 1990).

What makes convolutions differ becomes more terms of the sum over channels, or disappears while tiles are read:

- a stride's phases (every n-th row and column, from each offset) are channels of their own, with the phase's taps;
- taps along the first axis (of three, or of two where the tile is a line) are summed as channels are;
- padding of every mode is filled in by tables; dilated kernels come spread by zeros.

A work item is ``pairs`` pairs of tiles of one group, through ``part_tiles`` tiles of output channels. Frequencies are
the outermost loop of its products, so that spectra and weights are read once. Weights are packed ``[group][vector of
frequencies][tile of outs][term][outs][2][v]``, spectra in scratch ``[vector of frequencies][term][pair][2][v]``, real
and imaginary parts in turn, products ``[out][pair][vector of frequencies][2][v]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from convwright.codegen.lang import Int, Kernel
from convwright.codegen.target import Target
from convwright.kernels.activations import apply
from convwright.kernels.arguments import Arguments, Reader
from convwright.kernels.fft_codelets import (
    Complex,
    Numbers,
    add_product,
    backward,
    forward,
    multiplied,
    transposed,
)
from convwright.kernels.im2col import strided

ARGUMENTS = Arguments(
    # roots_high, roots_wide, turns: factors of the transforms; slices, rows, cols: the source of each padded slice, row
    # and column, -1 for a zero
    "x w bias y scratch roots_high roots_wide turns slices rows cols",
    # work: item -> (group, part of the output tiles, block of pairs)
    "groups parts part_tiles k_tiles blocks pairs tiles out_slices tiles_high tiles_wide step_high step_wide "
    "stage_rows stage_cols channels taps_deep phases_high phases_wide terms slice_step slice_gap row_step col_low "
    "x_channel x_slice x_row out_channels y_channel y_slice out_rows out_cols scratch_thread",
)


@dataclass(frozen=True)
class FftTile:
    """What is baked into one kernel.

    high, wide: the tile, lengths of `fft_codelets.RADICES`; line: it is one row, ``high * wide`` long.
    outs, pairs: output channels and pairs of tiles whose products are summed in registers.
    step: the horizontal stride. zeros: padding holds zeros. single: the sum has one term.
    element: "f32" or "f64". epilogue: activations.
    """

    high: int
    wide: int
    line: bool
    outs: int
    pairs: int
    step: int = 1
    zeros: bool = True
    single: bool = False
    element: str = "f32"
    epilogue: tuple[tuple[object, ...], ...] = ()

    @property
    def key(self) -> str:
        return f"fft-{self!r}"

    def name(self, target: Target) -> str:
        size = f"{self.high * self.wide}" if self.line else f"{self.high}x{self.wide}"
        return f"{self.element}-fft-{size}-{target.name}"

    @property
    def area(self) -> int:
        return self.high * self.wide


def scratch_elements(tile: FftTile, terms: int, part_tiles: int, v: int) -> int:
    """Elements of scratch of one thread: two planes, a block of transposed rows, spectra, and their products."""
    return _products_at(tile, terms, v) + 2 * tile.area * tile.outs * tile.pairs * part_tiles


def _products_at(tile: FftTile, terms: int, v: int) -> int:
    return 2 * tile.area + 2 * tile.wide * v + tile.area // v * spectrum_step(tile, terms, v)


def spectrum_step(tile: FftTile, terms: int, v: int) -> int:
    """Elements from a vector of frequencies to the next: an odd number of pairs of vectors, so that those which a
    transform writes one after another do not meet in the same lines of a cache."""
    return 2 * v * (terms * tile.pairs | 1)


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Two planes (``a`` and ``b``: real and imaginary parts), transposed rows, spectra and their products."""

    a: ir.Value
    b: ir.Value
    rows: ir.Value
    spectra: ir.Value
    products: ir.Value
    step: Int


def emit(tile: FftTile, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target, element=tile.element)
    a = ARGUMENTS.read(k)
    base = k.advance(a.scratch, k.thread * a.scratch_thread)
    rows = k.advance(base, 2 * tile.area)
    spectra = k.advance(rows, 2 * tile.wide * k.v)
    step = (k.choose((a.terms * tile.pairs % 2).equals(0), 1, 0) + a.terms * tile.pairs) * (2 * k.v)
    products = k.advance(spectra, step * (tile.area // k.v))
    s = _Scratch(base, k.advance(base, tile.area), rows, spectra, products, step)
    with k.loop(k.begin, k.end) as item:
        block, rest = item % a.blocks, item // a.blocks
        part, group = rest % a.parts, rest // a.parts
        first = k.smaller(block * tile.pairs, a.pairs - tile.pairs)
        with k.loop(0, tile.pairs) as pair:
            _transform_inputs(k, a, tile, s, group, (first + pair) * 2, pair)
        start = part * a.part_tiles
        count = k.smaller(a.k_tiles - start, a.part_tiles)
        with k.loop(0, tile.area // k.v) as vector, k.loop(0, count) as k_tile:
            number = (group * (tile.area // k.v) + vector) * a.k_tiles + start + k_tile
            w = k.advance(a.w, number * a.terms * (2 * k.v * tile.outs))
            _multiply(
                k,
                a,
                tile,
                k.advance(s.spectra, vector * s.step),
                w,
                k.advance(s.products, k_tile * (2 * tile.area * tile.outs * tile.pairs) + vector * (2 * k.v)),
            )
        with k.loop(0, count) as k_tile:
            out = k.smaller((start + k_tile) * tile.outs, a.out_channels - tile.outs)
            with k.loop(0, tile.outs) as more, k.loop(0, tile.pairs) as pair:
                number = (k_tile * tile.outs + more) * tile.pairs + pair
                _transform_back(k, a, tile, s, k.advance(s.products, number * (2 * tile.area)))
                _leave(k, a, tile, s, group * a.out_channels + out + more, (first + pair) * 2)
    return k.finish()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tile lies: its image, slice, first row and first column of the output."""

    image: Int
    deep: Int
    top: Int
    left: Int


def _place(a: Reader, tile: Int) -> _Place:
    wide, rest = tile % a.tiles_wide, tile // a.tiles_wide
    high, rest = rest % a.tiles_high, rest // a.tiles_high
    return _Place(rest // a.out_slices, rest % a.out_slices, high * a.step_high, wide * a.step_wide)


# -- inputs ------------------------------------------------------------------------------------------------------------


def _transform_inputs(k: Kernel, a: Reader, tile: FftTile, s: _Scratch, group: Int, first: Int, pair: Int) -> None:
    """The spectra of two tiles, for every term of the sum."""
    taps = a.phases_high * a.phases_wide
    with k.loop(0, a.channels) as channel, k.loop(0, a.taps_deep) as deep, k.loop(0, taps) as phase:
        phase_high, phase_wide = phase // a.phases_wide, phase % a.phases_wide
        with k.loop(0, 2) as half:
            number = first + half
            here = _place(a, k.smaller(number, a.tiles - 1))
            to = k.advance(s.a, half * tile.area)
            source = k.load_int(a.slices, here.deep * a.slice_step + deep * a.slice_gap)
            source = k.choose(number < a.tiles, source, -1)
            x = k.advance(a.x, ((here.image * a.groups + group) * a.channels + channel) * a.x_channel)
            x = k.advance(x, k.choose(source < 0, 0, source) * a.x_slice)
            _read(k, a, tile, x, source, here, (phase_high, phase_wide), to)
        term = (channel * a.taps_deep + deep) * taps + phase
        _transform(k, a, tile, s, k.advance(s.spectra, (term * tile.pairs + pair) * (2 * k.v)))


def _read(
    k: Kernel, a: Reader, tile: FftTile, x: ir.Value, slice_: Int, here: _Place, phases: tuple[Int, Int], to: ir.Value
) -> None:  # fmt: skip
    """One tile of one phase of the padded input, zeros beyond it."""
    phase_high, phase_wide = phases
    left = here.left * tile.step + phase_wide
    with k.loop(0, a.stage_rows) as row:
        source = k.load_int(a.rows, (here.top + row) * a.row_step + phase_high)
        length = k.choose(k.b.or_(slice_ < 0, source < 0), 0, a.x_row)
        x_row, to_row = k.advance(x, k.choose(source < 0, 0, source) * a.x_row), k.advance(to, row * tile.wide)
        with k.loop(0, a.stage_cols, k.v) as offset:
            k.store(strided(k, x_row, left + offset * tile.step - a.col_low, length, tile.step), to_row, offset)
        if not tile.zeros:
            with k.when(length >= 1):
                _patch(k, a, tile, x_row, to_row, left)


def _patch(k: Kernel, a: Reader, tile: FftTile, row: ir.Value, to: ir.Value, left: Int) -> None:
    """Padding that comes from elsewhere in the row, over the zeros that stand there."""
    up = tile.step - 1
    source = left - a.col_low
    before = (k.choose(source < 0, 0 - source, 0) + up) // tile.step
    behind = (k.choose(a.x_row - source < 0, 0, a.x_row - source) + up) // tile.step
    for start, stop in ((0, k.minimum(before, a.stage_cols)), (behind, a.stage_cols)):
        with k.loop(start, stop) as offset:
            column = k.load_int(a.cols, left + offset * tile.step)
            with k.when(column >= 0):
                k.store_scalar(k.load_scalar(row, column), to, offset)


# -- transforms --------------------------------------------------------------------------------------------------------


def _strided_numbers(k: Kernel, real: ir.Value, imaginary: ir.Value, step: int) -> Numbers:
    """Vectors ``step`` elements apart."""

    def load(index: Int) -> Complex:
        return k.load(real, index * step), k.load(imaginary, index * step)

    def store(index: Int, value: Complex) -> None:
        k.store(value[0], real, index * step)
        k.store(value[1], imaginary, index * step)

    return Numbers(load, store)


def _turn(k: Kernel, a: Reader, tile: FftTile, column: Int) -> Callable[[Int], Complex]:
    """Of a line: the factors of a row of a vector of columns."""
    return lambda row: (
        k.load(a.turns, row * (2 * tile.wide) + column),
        k.load(a.turns, row * (2 * tile.wide) + column + tile.wide),
    )


def _transform(k: Kernel, a: Reader, tile: FftTile, s: _Scratch, to: ir.Value) -> None:
    """The planes' spectrum, to ``to`` and every ``s.step`` elements on."""
    with k.loop(0, tile.wide, k.v) as column:
        numbers = _strided_numbers(k, k.advance(s.a, column), k.advance(s.b, column), tile.wide)
        turn = _turn(k, a, tile, column)

        def finish(row: Int, value: Complex, numbers: Numbers = numbers, turn: Callable[[Int], Complex] = turn) -> None:
            numbers.store(row, multiplied(k, value, turn(row)) if tile.line else value)

        forward(k, tile.high, numbers, finish, a.roots_high)
    real, imaginary = s.rows, k.advance(s.rows, tile.wide * k.v)
    with k.loop(0, tile.high // k.v) as block:
        for plane, rows in ((s.a, real), (s.b, imaginary)):
            corner = k.advance(plane, block * (k.v * tile.wide))
            with k.loop(0, tile.wide, k.v) as column:
                square = [k.load(corner, column + tile.wide * row) for row in range(k.v)]
                for place, vector in enumerate(transposed(k, square)):
                    k.store(vector, rows, (column + place) * k.v)
        spectrum = k.advance(to, block * s.step * tile.wide)

        def spread(place: Int, value: Complex, spectrum: ir.Value = spectrum) -> None:
            at = k.advance(spectrum, place * s.step)
            k.store(value[0], at)
            k.store(value[1], at, k.v)

        forward(k, tile.wide, _strided_numbers(k, real, imaginary, k.v), spread, a.roots_wide)


def _transform_back(k: Kernel, a: Reader, tile: FftTile, s: _Scratch, product: ir.Value) -> None:
    """The planes whose spectrum this is."""
    real, imaginary = s.rows, k.advance(s.rows, tile.wide * k.v)
    with k.loop(0, tile.high // k.v) as block:
        spectrum = k.advance(product, block * (2 * k.v * tile.wide))

        def gathered(place: Int, spectrum: ir.Value = spectrum) -> Complex:
            return k.load(spectrum, place * (2 * k.v)), k.load(spectrum, place * (2 * k.v) + k.v)

        backward(k, tile.wide, gathered, _strided_numbers(k, real, imaginary, k.v), a.roots_wide)
        for plane, rows in ((s.a, real), (s.b, imaginary)):
            corner = k.advance(plane, block * (k.v * tile.wide))
            with k.loop(0, tile.wide, k.v) as column:
                square = [k.load(rows, (column + place) * k.v) for place in range(k.v)]
                for row, vector in enumerate(transposed(k, square)):
                    k.store(vector, corner, column + tile.wide * row)
    with k.loop(0, tile.wide, k.v) as column:
        numbers = _strided_numbers(k, k.advance(s.a, column), k.advance(s.b, column), tile.wide)
        turn = _turn(k, a, tile, column)

        def begin(row: Int, numbers: Numbers = numbers, turn: Callable[[Int], Complex] = turn) -> Complex:
            value = numbers.load(row)
            return multiplied(k, value, turn(row), conjugate=True) if tile.line else value

        backward(k, tile.high, begin, numbers, a.roots_high)


# -- products ----------------------------------------------------------------------------------------------------------


def _multiply(k: Kernel, a: Reader, tile: FftTile, spectra: ir.Value, w: ir.Value, to: ir.Value) -> None:
    """Of one vector of frequencies the sum over terms of spectra times weights."""
    pair = 2 * k.v
    x = k.variable(spectra)
    weights = k.variable(w)
    zero = k.splat(0.0)
    sums = [[(k.variable(zero), k.variable(zero)) for _ in range(tile.pairs)] for _ in range(tile.outs)]

    def add_term() -> None:
        now, factors = x.get(), weights.get()
        inputs = [(k.load(now, pair * number), k.load(now, pair * number + k.v)) for number in range(tile.pairs)]
        for out, accumulators in enumerate(sums):
            factor = k.load(factors, pair * out), k.load(factors, pair * out + k.v)
            for value, (real, imaginary) in zip(inputs, accumulators, strict=True):
                if tile.single:
                    total = multiplied(k, value, factor)
                else:
                    total = add_product(k, (real.get(), imaginary.get()), value, factor)
                real.set(total[0])
                imaginary.set(total[1])
        x.set(k.advance(now, pair * tile.pairs))
        weights.set(k.advance(factors, pair * tile.outs))

    if tile.single:
        add_term()
    else:
        with k.loop(0, a.terms):
            add_term()
    for out, accumulators in enumerate(sums):
        for number, total in enumerate(accumulators):
            at = k.advance(to, (out * tile.pairs + number) * (2 * tile.area))
            for part in (0, 1):
                k.store(total[part].get(), at, part * k.v)


# -- outputs -----------------------------------------------------------------------------------------------------------


def _leave(k: Kernel, a: Reader, tile: FftTile, s: _Scratch, channel: Int, first: Int) -> None:
    """Two tiles of one output channel, counted through all groups."""
    bias = k.broadcast(k.load_scalar(a.bias, channel))
    with k.loop(0, 2) as half:
        number = first + half
        with k.when(number < a.tiles):
            here = _place(a, number)
            source = k.advance(s.a, half * tile.area)
            plane = (here.image * (a.groups * a.out_channels) + channel) * a.y_channel
            y = k.advance(a.y, plane + here.deep * a.y_slice + here.top * a.out_cols + here.left)
            high, wide = k.smaller(a.step_high, a.out_rows - here.top), k.smaller(a.step_wide, a.out_cols - here.left)
            with k.loop(0, high) as row, k.loop(0, wide, k.v) as column:
                vector = k.add(k.load(source, row * tile.wide + column), bias)
                for operation in tile.epilogue:
                    vector = apply(k, operation, vector)
                k.store(vector, y, row * a.out_cols + column, k.mask(0, wide - column))
