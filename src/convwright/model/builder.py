"""The plan under construction: values in their layouts, and the steps that compute them.

Lowering functions (``model.lower``) ask the builder for a layer's inputs in the layout that they want (``blocked``,
``plain``), for room for its output (``new_blocked``, ``new_plain``), and add steps. Conversions between layouts and the
zeros of padding appear as steps of their own where they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from convwright.codegen.target import Target
from convwright.errors import ConvwrightError
from convwright.graph import Graph
from convwright.graph.shapes import Inferred
from convwright.kernels import halo as halo_kernel
from convwright.kernels import layout as layout_kernels
from convwright.model.fuse import Layer
from convwright.model.problem import Problem
from convwright.model.values import NO_HALO, Buffer, Halo, Order, Ref, Value, blocked_tensor, blocks_of, planes, spatial
from convwright.model.weights import Weights
from convwright.runtime.memory import ALIGNMENT

_FLOAT = np.dtype(np.float32)
_FEWEST_ROWS = 4  # of each thread: convolutions of fewer share their weights among the threads, not their rows


@dataclass(slots=True)
class Step:
    """One row of the table: a kernel, its arguments, its work; or a Python function that does the work.

    ``touches``: the memory read and written, as (buffer, first byte, last byte + 1, written, tag); steps whose tags
    differ write disjoint parts of what they share.
    ``calls``: the kernels that this step's kernel calls (``kernels.strips``), with their own arguments and work.
    ``runner_up``: tells, for reports, the best of the ways to compute the layer that were not taken.
    """

    layer: Layer | None
    name: str
    family: ModuleType | None = None
    tile: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)  # integers and Refs
    items: int = 1
    touches: list[tuple[Buffer, int, int, bool, str]] = field(default_factory=list)
    python: Callable[..., None] | None = None
    why: str = ""
    macs: int = 0
    calls: list[Step] = field(default_factory=list)
    runner_up: Callable[[], str] | None = None


class Builder:
    """State of one plan: one graph, one set of input shapes, one number of threads."""

    def __init__(
        self,
        graph: Graph,
        types: Inferred,
        weights: Weights,
        target: Target,
        threads: int,
        layers: list[Layer],
        numerics: str = "default",
    ) -> None:
        self.graph, self.types, self.weights = graph, types, weights
        self.target, self.threads, self.layers = target, threads, layers
        self.team = threads  # that run the plan: ``threads`` is one while the layers of a strip are lowered
        self.v, self.numerics = target.vector, numerics
        self.steps: list[Step] = []
        self.layer: Layer | None = None
        self.halos: dict[str, Halo] = {}
        self.consumers = {name for layer in layers for name in layer.reads}
        self.problems: dict[int, Problem] = {}  # of convolution layers, by id
        self.measured: dict[int, Mapping[str, float]] = {}  # seconds of the ways to compute a layer, by its id
        self.cuts: dict[str, tuple[int, ...]] = {}  # lengths of the parts of a run of layers (`strips`), by its output
        self.measured_cuts: dict[str, Mapping[str, float]] = {}  # seconds of the ways to cut a run, the one taken first
        self.orders: dict[str, Order] = {}  # of values whose channels do not lie one after another
        self.apart: set[str] = set()  # values between layers that are never computed together
        self.parents: dict[str, tuple[str, int]] = {}  # value -> (concatenation it is a part of, first channel)
        self.values: dict[tuple[str, bool], Value] = {}
        self.rooms: dict[str, Value] = {}  # plain values that have a place already: a part of another's channels
        self.flattened: dict[str, str] = {}  # value -> the value of rank 4 that it flattens
        self.tables: list[np.ndarray] = []  # what steps point to besides weights

    # -- values --------------------------------------------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        return self.types[name].shape  # type: ignore[return-value]  # inferred shapes are concrete

    def lanes(self, name: str) -> int:
        """Of the blocked value: its channels, and what lies between them."""
        return self.orders[name].lanes if name in self.orders else self.shape(name)[1]

    def is_plain(self, name: str) -> bool:
        """Whether the value exists as a plain array only."""
        return (name, True) not in self.values and (name, False) in self.values

    def constant(self, name: str) -> np.ndarray | None:
        """The contents of a value that does not depend on the data."""
        return self.weights.array(name) if name in self.graph.constants else self.types.constants.get(name)

    def plain(self, name: str) -> Value:
        """The value as a row-major array; converted if it is blocked."""
        if (name, False) not in self.values:
            constant = self.constant(name)
            if constant is None:
                self.unpack(name, name)
            else:
                self.values[name, False] = self._static(constant)
        return self.values[name, False]

    def blocked(self, name: str) -> Value:
        """The value in channel blocks, inside the halo that its readers need; converted if it is plain."""
        if (name, True) not in self.values:
            self.values[name, True] = self._packed(name)
        return self.values[name, True]

    def fits_blocks(self, name: str) -> bool:
        """Whether the value is one that kernels on channel blocks can hold: float32 of rank 2 to 5."""
        info = self.types[name]
        return info.dtype == _FLOAT and 2 <= len(info.shape) <= 5

    def new_plain(self, name: str) -> Value:
        """Room for a row-major output: the caller's own array where the value is an output of the graph."""
        value = self.rooms.get(name)
        if value is None:
            value = self.plain_room(self.shape(name), self.types[name].dtype, self._plain_buffer(name))
        self.values[name, False] = value
        return value

    def _plain_buffer(self, name: str) -> Buffer | None:
        if name not in self.graph.outputs or name in self.graph.inputs:
            return None
        nbytes = self.types[name].dtype.itemsize * math.prod(self.shape(name))
        return Buffer(nbytes, "output", self.graph.outputs.index(name))

    def plain_room(self, shape: tuple[int, ...], dtype: np.dtype, buffer: Buffer | None = None) -> Value:
        """A new row-major tensor, in a buffer of its own where none is given."""
        return Value(shape, dtype, buffer or Buffer(dtype.itemsize * math.prod(shape)), blocked=False)

    def new_blocked(self, name: str) -> Value:
        """Room for a blocked output: inside a concatenation that the value is a part of, or a buffer of its own."""
        shape = self.shape(name)
        if name in self.parents:
            whole_name, channel = self.parents[name]
            whole = self._concatenation(whole_name)
            value = Value(shape, _FLOAT, whole.buffer, True, image=whole.image, block=whole.block, row=whole.row)
            value.halo, value.slice = whole.halo, whole.slice
            value.offset = whole.offset + channel // self.v * whole.block * 4
            value.extent = value.span(blocks_of(value.channels, self.v))
        else:
            value = self.blocked_room((shape[0], self.lanes(name), *shape[2:]), self.halos.get(name, NO_HALO))
        self.values[name, True] = value
        return value

    def _concatenation(self, name: str) -> Value:
        if (name, True) not in self.values:
            self.values[name, True] = self.blocked_room(self.shape(name), self.halos.get(name, NO_HALO))
        return self.values[name, True]

    def blocked_room(self, shape: tuple[int, ...], halo: Halo = NO_HALO) -> Value:
        """A new blocked tensor; the step that writes the zeros of its halo is added here."""
        value = blocked_tensor(shape, halo, self.v)
        self.fill_halo(value)
        return value

    def fill_halo(self, value: Value) -> None:
        """Add the steps that write the zeros around a blocked tensor, where there are any."""
        if not any(value.halo):
            return
        top, left, _, _, front, _ = (*value.halo, 0, 0)[:6]
        blocks = blocks_of(value.channels, self.v)
        deep, high, wide = value.shape[2:] if len(value.shape) == 5 else (1, *spatial(value.shape))
        part = value.slice or value.block
        around = {
            "y": value.ref, "blocks": blocks, "rows": high, "width": wide * self.v,
            "y_image": value.image, "y_block": value.block, "y_row": value.row,
            "lead": front * value.slice + top * value.row + left * self.v,
            "after": part - (high - 1) * value.row - wide * self.v,
        }  # fmt: skip
        if value.slice:
            around |= {"blocks": deep, "y_image": value.block, "y_block": value.slice}
        found = [("halo", around, deep * value.n * blocks)]
        behind = value.block - deep * value.slice
        if value.slice and behind:
            end = Ref(value.buffer, value.offset + 4 * deep * value.slice)
            one = {"y": end, "blocks": 1, "rows": 1, "width": 0, "y_image": value.block, "lead": 0, "after": behind}
            found.append(("halo_ends", around | one, value.n * blocks))
        for tag, arguments, items in found:
            touches = [(value.buffer, 0, value.buffer.nbytes, True, tag)]
            tile = halo_kernel.Halo()
            self.steps.append(Step(self.layer, "halo", halo_kernel, tile, arguments, items, touches, why="padding"))

    def alias(self, name: str, value: Value, shape: tuple[int, ...]) -> Value:
        """Another name and shape for the same memory."""
        other = Value(
            shape, value.dtype, value.buffer, value.blocked, value.offset,
            value.image, value.block, value.row, value.halo, value.extent, value.slice,
        )  # fmt: skip
        self.values[name, value.blocked] = other
        return other

    def _static(self, array: np.ndarray) -> Value:
        shape = array.shape  # of rank 0 too, which ascontiguousarray does not keep
        array = np.ascontiguousarray(array)
        return Value(shape, array.dtype, Buffer(array.nbytes, "static", array=array), blocked=False)

    # -- conversions ---------------------------------------------------------------------------------------------------

    def _packed(self, name: str) -> Value:
        source = self.plain(name)
        if source.dtype != _FLOAT or not 2 <= len(source.shape) <= 5:
            raise ConvwrightError(f"value {name!r} of type {source.dtype}{list(source.shape)} has no blocked layout")
        return self.pack(name, self.halos.get(name, NO_HALO))

    def pack(self, name: str, halo: Halo, places: np.ndarray | None = None) -> Value:
        """The row-major value ``name`` in channel blocks.

        ``places``: the channel of the array that each of the result's is; None: its own.
        """
        source = self.plain(name)
        value = self.blocked_room(source.shape, halo)
        self._convert("pack", source, value, places)
        return value

    def unpack(self, of: str, name: str, places: np.ndarray | None = None) -> None:
        """Define ``name`` as the blocked value ``of`` as a row-major array.

        ``places``: the channel of the array that each of the source's becomes; None: its own.
        """
        source = self.values[of, True]
        value = self.plain_room(source.shape, _FLOAT, self._plain_buffer(name))
        self._convert("unpack", source, value, places)
        self.values[name, False] = value

    def _convert(self, kind: str, x: Value, y: Value, places: np.ndarray | None) -> None:
        """The steps from one layout to the other: one, or of volumes with gaps between their slices one an image."""
        whole, plain = (y, x) if kind == "pack" else (x, y)
        size = math.prod(whole.shape[2:])  # of a channel of the plain tensor
        table = None if places is None else self.static(places.astype(np.int64) * size)
        blocks = blocks_of(whole.channels, self.v)
        for number, (blocked,) in enumerate(planes([whole])):
            high, wide = blocked.size
            apart = size * whole.channels if blocked is whole else high * wide  # floats from image to image
            rows, cols = (1, high * wide) if blocked.flat else (high, wide)
            tile = layout_kernels.conversion(kind, whole.channels, cols, self.target, places is not None)
            chunk_rows, pieces = cut_evenly(rows, self.threads * 2 // max(1, blocked.n * blocks))
            at = Ref(plain.buffer, plain.offset + 4 * number * size * whole.channels)
            strides = {
                "blocked": (blocked.ref, blocked.image, blocked.block, blocked.row), "plain": (at, apart, size, cols),
            }  # fmt: skip
            arguments: dict[str, Any] = {
                "planes": blocks, "chunks": pieces, "chunk_rows": chunk_rows, "rows": rows, "cols": cols,
                "top": 0, "bottom": 0, "left": 0, "right": 0, "places": table or 0,
            }  # fmt: skip
            for side, layout in (
                (("x", "plain"), ("y", "blocked")) if kind == "pack" else (("x", "blocked"), ("y", "plain"))
            ):
                names = (side, f"{side}_image", f"{side}_plane", f"{side}_row")
                arguments |= dict(zip(names, strides[layout], strict=True))
            ends = ([x], [blocked]) if kind == "pack" else ([blocked], [y])
            self.step(kind, layout_kernels, tile, arguments, blocked.n * blocks * pieces, *ends, why="layout")
            touches = self.steps[-1].touches
            touches[-1] = (*touches[-1][:4], f"image{number}")

    def padded_planes(self, source: Value, halo: Halo) -> Value:
        """A copy of a plain NCHW tensor with zeros around every plane; the tensor itself where the halo is empty."""
        n, channels = source.shape[:2]
        high, wide = spatial(source.shape)
        top, left, bottom, right = halo
        row = left + wide + right
        plane = (top + high + bottom) * row
        if not any(halo):
            value = Value(source.shape, _FLOAT, source.buffer, False, source.offset)
        else:
            value = Value(source.shape, _FLOAT, Buffer(4 * n * channels * plane), False)
            value.offset = 4 * (top * row + left)
        value.image, value.block, value.row, value.halo = channels * plane, plane, row, halo
        if any(halo):
            rows = top + high + bottom
            chunk_rows, pieces = self.chunks(rows, n * channels)
            arguments = {
                "x": source.ref, "y": value.ref, "planes": channels, "chunks": pieces,
                "chunk_rows": chunk_rows, "rows": high, "cols": wide,
                "x_image": channels * high * wide, "x_plane": high * wide, "x_row": wide,
                "y_image": value.image, "y_plane": plane, "y_row": row,
                "top": top, "bottom": bottom, "left": left, "right": right, "places": 0,
            }  # fmt: skip
            tile = layout_kernels.conversion("pad", channels, wide, self.target)
            items = n * channels * pieces
            self.step("pad", layout_kernels, tile, arguments, items, [source], [value], why="padding")
        return value

    # -- steps ---------------------------------------------------------------------------------------------------------

    def step(
        self, name: str, family: ModuleType, tile: Any, arguments: dict[str, Any], items: int,
        reads: list[Value], writes: list[Value], why: str = "", macs: int = 0,
    ) -> None:  # fmt: skip
        touches = [self._touch(value, False) for value in reads] + [self._touch(value, True) for value in writes]
        self.steps.append(Step(self.layer, name, family, tile, arguments, items, touches, None, why, macs))

    def python_step(self, name: str, function: Callable[..., None], reads: list[Value], writes: list[Value]) -> None:
        """A step that runs in Python: ``function(*arrays read, *arrays written)``."""
        touches = [self._touch(value, False) for value in reads] + [self._touch(value, True) for value in writes]
        step = Step(self.layer, name, touches=touches, python=function, why="no kernel: runs through onnx.reference")
        step.arguments = {f"array{i}": value.ref for i, value in enumerate([*reads, *writes])}
        step.tile = [(value.shape, value.dtype) for value in [*reads, *writes]]
        self.steps.append(step)

    def _touch(self, value: Value, written: bool) -> tuple[Buffer, int, int, bool, str]:
        if value.blocked and written:
            return value.buffer, value.offset, value.offset + value.extent, written, "inside"
        return value.buffer, 0, value.buffer.nbytes, written, "inside"

    def inside(self, x: Value, g: Any) -> Ref:
        """The address of the first input that a convolution's first window reads, padding included."""
        back = g.padding[0][0] * x.row + g.padding[1][0] * (self.v if x.blocked else 1)
        return Ref(x.buffer, x.offset - 4 * back)

    def static(self, array: np.ndarray) -> Ref:
        """The address of an array that the plan keeps."""
        self.tables.append(array)
        return Ref(Buffer(array.nbytes, "static", array=array))

    def chunks(self, total: int, others: int, share: int = 2) -> tuple[int, int]:
        """The rows of a piece, and how many pieces ``total`` rows are cut into, beside ``others`` independent items, so
        that all threads work."""
        return cut_evenly(total, -(-share * self.threads // max(1, others)))

    def row_chunks(self, rows: int, images: int, blocks: int) -> tuple[int, int]:
        """As `chunks`, of a step whose work items are (image, piece, block).

        Each thread is to get rows of all blocks, as it does in convolutions before and behind: what one thread writes
        and another reads comes from the other's cache, at ten times the time where these are far apart.
        """
        length, count = self.chunks(rows, images * blocks)
        if images % self.threads and rows >= _FEWEST_ROWS * self.threads:
            return cut_evenly(rows, -(-count // self.threads) * self.threads)
        return length, count


def cut_evenly(total: int, pieces: int) -> tuple[int, int]:
    """The length of so many pieces of a total, and how many there are then: at most as many as the total."""
    length = -(-total // max(1, min(total, pieces)))
    return length, -(-total // length)


@dataclass(frozen=True, slots=True)
class LongRows:
    """Planes whose rows follow each other without a gap, as if `joined` rows were one, so that a piece is a single row:
    what kernels that go over rows take for them."""

    rows: int
    cols: int
    joined: int
    chunk_rows: int

    @classmethod
    def of(cls, size: tuple[int, int], chunk_rows: int, chunks: int, flat: bool) -> LongRows:
        """`size`: rows and columns; `flat`: whether there are no gaps. Pieces not all as long stay as they are."""
        rows, cols = size
        if not flat or chunk_rows * chunks != rows:
            return cls(rows, cols, 1, chunk_rows)
        return cls(chunks, chunk_rows * cols, chunk_rows, 1)


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
