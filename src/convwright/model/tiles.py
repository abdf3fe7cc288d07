"""Choosing the register tile of a direct convolution and how its work is cut for threads and caches.

The estimate counts, for one step of the reduction, what each resource of a core needs: multiply-adds (two vectors a
cycle), loads (two a cycle), instructions (about five a cycle) and the latency of an addition (four cycles); and
multiplies the slowest by the number of tiles that cover the output. Measured on AVX-512: tiles of 14 x 2 and 7 x 4
reach 98 % of the peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from convwright.codegen.target import Target
from convwright.model.choices import choice

_L2_BUDGET = 768 * 1024
_OUTS = (1, 2, 3, 4, 5, 6, 8)
_MOST_HALVED = 3  # vectors of a tile whose last is half of one: LLVM spills sums in larger ones
_STORE_CYCLES = 2.0  # a vector of outputs: bias, epilogue, store
_TILE_CYCLES = 20.0
_STREAM_CYCLES = 0.3  # a step, for each vector of weights that comes from the second-level cache


@dataclass(frozen=True, slots=True)
class Shape:
    """rows x cols output pixels by outs vectors of channels, and the estimated cycles for a whole layer on one core.

    ``half``: of the last vector, only the lower half counts.
    """

    rows: int
    cols: int
    outs: int
    cycles: float
    half: bool = False


def most_pixels(outs: int, target: Target) -> int:
    """How many pixels by ``outs`` vectors can be summed in registers.

    Besides the sums there are the weights, the input value and, without fused multiply-add, a product. Where there are
    16 registers LLVM wants a few more for tiles of one or two vectors, whose inputs it loads ahead.
    """
    free = target.registers - outs - (1 if target.has_fma else 2)
    if target.registers < 32:
        free -= (3 if outs == 1 else 0) if target.has_fma else (4 if outs <= 2 else 0)
    return min(free // outs, 28)


def tallest(outs: int, target: Target) -> int:
    """The most rows of a tile. With 16 registers, tiles of one vector and several rows spill more than flat ones."""
    return 2 if target.registers < 32 and outs == 1 else 4


def step_cycles(pixels: int, outs: int, half: bool = False) -> float:
    """Estimated cycles of one step of the reduction: one input value of each pixel times ``outs`` weight vectors.

    ``half``: the last is half a vector. That is for machines whose multiply-adds are half as fast as is counted here:
    nothing else limits them.
    """
    if half:
        return pixels * (outs - 0.5) / 2 + _STREAM_CYCLES * outs
    multiply_adds = pixels * outs / 2
    loads = (pixels + outs) / 2 if outs > 1 else 0.6 * (pixels + 1)  # measured: 28 x 1 is slower than 14 x 1
    instructions = (pixels * outs + pixels + outs) / 5
    latency = 4.0 if pixels * outs < 8 else 0.0
    return max(multiply_adds, loads, instructions, latency) + _STREAM_CYCLES * outs


@choice
@lru_cache(maxsize=4096)
def choose_tile(
    out_rows: int, out_cols: int, vectors: int, groups: int, reduction: int, target: Target, half: bool = False,
    threads: int = 1,
) -> Shape:  # fmt: skip
    """The cheapest tile for ``out_rows x out_cols`` pixels and ``vectors`` output vectors in each group.

    - ``half``: the last vector of a group is at most half full, which tiles of all its vectors may make use of.
    - ``threads``: that share tiles of pixels or of outputs (``cut_work``), where few of them make uneven shares.
    """
    best: Shape | None = None
    least = 0.0
    for outs in _OUTS:
        if outs > vectors:
            break
        tiles_out = -(-vectors // outs) * groups
        most = most_pixels(outs, target)
        halved = half and outs == vectors <= _MOST_HALVED
        for rows in range(1, min(out_rows, tallest(outs, target), most) + 1):
            for cols in range(1, min(out_cols, most // rows) + 1):
                pixels = rows * cols
                tiles_pixel = -(-out_rows // rows) * -(-out_cols // cols)
                tiles = tiles_out * tiles_pixel
                once = _TILE_CYCLES + pixels * outs * _STORE_CYCLES
                cycles = tiles * (reduction * step_cycles(pixels, outs, halved) + once)
                shared = cycles * min(_unevenness(tiles_out, threads), _unevenness(tiles_pixel, threads))
                if best is None or shared < least:
                    best, least = Shape(rows, cols, outs, cycles, halved), shared
    assert best is not None
    return best


def _unevenness(tiles: int, threads: int) -> float:
    """The largest share of so many tiles as a multiple of an even one."""
    return -(-tiles // threads) * threads / tiles


@dataclass(frozen=True, slots=True)
class Cut:
    """How a layer's tiles become work items (see ``kernels.direct``).

    Item -> (half of the output tiles, chunk of pixel tiles, output tile in the half).
    """

    tiles_inner: int
    chunks_image: int
    chunk_tiles: int
    halves: int


def cut_work(tiles: int, pixel_tiles: int, images: int, x_bytes: int, weight_bytes: int, threads: int) -> Cut:
    """Cut so that a chunk of the input stays in the second-level cache while all output tiles pass over it, and so that
    the threads' shares are even; with more weights than input, each thread takes its own part of the weights.
    """
    uneven_out = -(-tiles // threads) * threads / tiles
    pieces = max(1, -(-threads // images)) if threads > 1 else 1
    shares = images * pieces
    uneven_pixels = -(-pixel_tiles // pieces) * pieces / pixel_tiles * (-(-shares // threads) * threads / shares)
    by_output = threads > 1 and (
        uneven_out < uneven_pixels - 0.02 or (weight_bytes > x_bytes and uneven_out <= uneven_pixels + 0.02)
    )
    for_cache = max(1, -(-x_bytes // _L2_BUDGET))
    chunks = for_cache if by_output else -(-max(for_cache, pieces) // pieces) * pieces
    chunk_tiles = -(-pixel_tiles // min(chunks, pixel_tiles))
    halves = threads if by_output else 1
    return Cut(-(-tiles // halves), -(-pixel_tiles // chunk_tiles), chunk_tiles, halves)
