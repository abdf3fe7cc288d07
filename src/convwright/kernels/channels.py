"""Choosing channels of a channel-blocked tensor: slices, channel shuffles, and concatenation that is not in place.

Every lane of an output block names an input channel. Where all lanes of a block come from few input blocks, these are
loaded whole and permuted in registers; otherwise the lanes are gathered. Blocks that keep their place are copied.
Output lanes that name no channel are left as they are, so that several steps, one an input, fill one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from convwright.codegen.lang import Kernel
from convwright.codegen.target import Target
from convwright.kernels.arguments import Arguments

ARGUMENTS = Arguments(
    # offsets: int64 [blocks][sources], floats from x to an input block; lanes: int32 [blocks][v]
    "x y offsets lanes",
    # work: item -> (image, chunk of rows, output block)
    "blocks chunks chunk_rows rows cols x_image x_row y_image y_block y_row",
)

# Beyond this many input blocks an output block is gathered. Measured on 28 x 28 pixels, nanoseconds a vector: AVX-512
# permuting 2, 4, 8 and 12 blocks 2.8, 3.4, 4.9 and 6.5, gathering 4.2 to 5.9; AVX2 permuting 2, 4 and 8 blocks 1.5, 2.4
# and 4.1, gathering 3.5 to 4.0. SSE has no permutation by a variable.
MOST_SOURCES = {16: 8, 8: 6, 4: 0}


@dataclass(frozen=True)
class Channels:
    """What is baked into one kernel; ``choose`` makes it.

    kind: "copy" (whole blocks), "permute" (lanes of up to ``sources`` input blocks) or "gather".
    masked: some lanes of the output are left as they are.
    """

    kind: str
    sources: int = 1
    masked: bool = False

    @property
    def key(self) -> str:
        return f"channels-{self!r}"

    def name(self, target: Target) -> str:
        return f"f32-channels-{self.kind}{self.sources}-{target.name}"


@dataclass(frozen=True)
class Choice:
    """A kernel with its tables: output blocks ``first_block <= block < first_block + blocks`` are worked on."""

    config: Channels
    first_block: int
    blocks: int
    offsets: NDArray[np.int64]
    lanes: NDArray[np.int32]


def choose(channels: Sequence[int], x_block: int, target: Target) -> Choice:
    """The kernel and tables that give output channel ``c`` the input channel ``channels[c]``, -1: leave it as it is.

    ``x_block`` is the input's distance between blocks in floats. Lanes past ``len(channels)`` may be overwritten.

    Raises ValueError where no channel is chosen.
    """
    v = target.vector
    length = -(-len(channels) // v) * v
    padded = np.full(length, -2, np.int64)  # -2: whatever is simplest
    padded[: len(channels)] = channels
    table = padded.reshape(-1, v)
    touched = np.flatnonzero((table >= 0).any(axis=1))
    if not len(touched):
        raise ValueError(f"no channel is chosen: {list(channels)}")
    first, blocks = int(touched[0]), int(touched[-1] - touched[0] + 1)
    table = table[first : first + blocks]
    masked = bool((table == -1).any())
    sources = [sorted({int(channel) // v for channel in row if channel >= 0}) or [0] for row in table]
    most = max(len(row) for row in sources)
    starts = np.array([row[:1] for row in sources]) * v
    if not masked and most == 1 and bool((((table - starts) == np.arange(v)) | (table < 0)).all()):
        kind, most = "copy", 1
    elif most <= MOST_SOURCES[v]:
        kind, most = "permute", most if most == 1 else most + most % 2
    else:
        kind, most = "gather", 1
    offsets = np.array([(row + row[-1:] * most)[:most] for row in sources], np.int64) * x_block
    if kind == "gather":
        lanes = np.where(table >= 0, table // v * x_block + table % v, table)
        lanes = np.where(table == -2, starts // v * x_block, lanes)
    else:
        place = [
            [row.index(int(channel) // v) if channel >= 0 else 0 for channel in want]
            for row, want in zip(sources, table, strict=True)
        ]
        lanes = np.where(table >= 0, np.array(place) * v + table % v, table)
        lanes = np.where(table == -2, 0, lanes)
    return Choice(Channels(kind, most, masked), first, blocks, offsets, lanes.astype(np.int32))


def emit(config: Channels, target: Target) -> ir.Module:
    """The kernel's module."""
    k = Kernel(target)
    a = ARGUMENTS.read(k)
    with k.loop(k.begin, k.end) as item:
        image, chunk, block = item.unravel(a.chunks, a.blocks)
        x = k.advance(a.x, image * a.x_image)
        y = k.advance(a.y, image * a.y_image + block * a.y_block)
        lanes = None if config.kind == "copy" else k.load_ints(a.lanes, block * k.v)
        mask = k.b.icmp_signed(">=", lanes, k.splat_int(0)) if config.masked else None
        if config.kind == "gather":
            starts = [x]
        else:
            offsets = [k.load_int(a.offsets, block * config.sources + source) for source in range(config.sources)]
            starts = [k.advance(x, offset) for offset in offsets]
        first = chunk * a.chunk_rows
        with (
            k.loop(first, k.minimum(first + a.chunk_rows, a.rows)) as row,
            k.loop(0, a.cols * k.v, k.v) as place,
        ):
            at = row * a.x_row + place
            if config.kind == "gather":
                vector = k.gather(k.advance(x, at), lanes, mask)
            else:
                vectors = [k.load(start, at) for start in starts]
                vector = vectors[0] if config.kind == "copy" else permuted(k, vectors, lanes)
            k.store(vector, y, row * a.y_row + place, mask)
    return k.finish()


def permuted(k: Kernel, vectors: list[ir.Value], lanes: ir.Value) -> ir.Value:
    """Lane ``lanes[i]`` of all the vectors, counted through; one instruction chooses from two vectors or from one."""
    if k.v == 16:
        operands = [k.vector_type, k.int_vector_type, k.vector_type]
        choose_lanes = k.intrinsic("llvm.x86.avx512.vpermi2var.ps.512", k.vector_type, operands)
        pairs = zip(vectors[::2], vectors[1::2] or vectors, strict=True)
        parts, width = [k.b.call(choose_lanes, [low, lanes, high]) for low, high in pairs], 2 * k.v
    else:
        choose_lanes = k.intrinsic("llvm.x86.avx2.permps", k.vector_type, [k.vector_type, k.int_vector_type])
        parts, width = [k.b.call(choose_lanes, [vector, lanes]) for vector in vectors], k.v
    result = parts[0]
    for number, part in enumerate(parts[1:], 1):
        result = k.select(k.b.icmp_signed(">=", lanes, k.splat_int(number * width)), part, result)
    return result
