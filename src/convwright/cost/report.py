"""What `cost` returns: the figures of each layer, of groups of layers, and of the whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from convwright.cost.blocks import Path, block_paths
from convwright.cost.weights import Weight
from convwright.errors import ConvwrightError

if TYPE_CHECKING:
    from convwright.cost.receptive_field import AxisField, ReceptiveField

_WHOLE = ("GlobalAveragePool", "GlobalMaxPool")
GROUPINGS = ("layer", "kind", "block", "tree")


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a layer, of a group of them, or of the whole.

    - `parameters`: learned values; `buffers`: constants that are not learned (running means and variances). A constant
      that several layers share is counted once in a group and in the total.
    - `macs`: multiply-accumulates; `flops` is twice that.
    - `elementwise`: operations that are no multiply-accumulates (biases, batch norms, activations, pools, ...).
    - `bytes_weights`: of parameters and buffers, as they are stored.
    - `bytes_read`: of the activations that are read; `bytes_activations`: of those that are written.
    - `bytes_moved`: at least, each input, weight and output once a layer; `intensity`: FLOPs a byte moved.
    - `bytes_peak`: of all activations alive while the layer runs, of a group the most: see `cost.memory`.
    """

    parameters: int
    buffers: int
    macs: int
    elementwise: int
    bytes_weights: int
    bytes_read: int
    bytes_activations: int
    bytes_moved: int
    bytes_peak: int

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes_moved if self.bytes_moved else 0.0

    def figures(self) -> dict[str, Any]:
        """All of them by name."""
        return {name: getattr(self, name) for name in FIGURES}


FIGURES = (
    "parameters", "buffers", "macs", "flops", "elementwise", "bytes_weights", "bytes_read", "bytes_activations",
    "bytes_moved", "intensity", "bytes_peak",
)  # fmt: skip
"""The names of the figures, in the order of columns."""

SHARES = ("parameters", "macs", "elementwise", "bytes_weights", "bytes_activations", "bytes_moved")
"""The figures of which shares of the total are told."""


@dataclass(frozen=True, slots=True)
class Layer(Figures):
    """One layer: a node that does something.

    - `name`: the node's, or its first output's; `op`: its operator.
    - `kind`: of convolutions as their spec has it ("standard", "depthwise", ...), else "fully connected",
      "matrix product", "activation", "arithmetic", "normalisation", "pooling", "reduction", "softmax", "resize",
      "quantisation", "movement" or "not counted".
    - `inputs`, `output`: names of the activations that it reads, and of the first that it writes.
    - `input_shape`, `output_shape`: of the first of each, the batch included.
    - `receptive_field`: what its output depends on of the network's input, None where that has no spatial axes.
    """

    name: str
    op: str
    kind: str
    inputs: tuple[str, ...]
    output: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    receptive_field: ReceptiveField | None
    weights: Mapping[str, Weight] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Group(Figures):
    """Layers that are summed: all of one kind, or of one block, whose path of modules is `path`."""

    name: str
    path: Path
    layers: tuple[Layer, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class NotCounted:
    """A layer that is left out of MACs and of elementwise operations, and how many of either it may be."""

    name: str
    op: str
    reason: str
    estimate: int


@dataclass(frozen=True, eq=False)
class Cost:
    """What a network, or one convolution, costs; printing it shows a table.

    - `title`: the name and the shapes of the inputs.
    - `layers`: in the order in which they run.
    - `total`: of all layers.
    - `not_counted`: what is in no figure but the bytes.
    - `by`, `sort`, `depth`: how it is shown, as `cost` was asked.

    Two are equal where their layers are.
    """

    title: str
    layers: tuple[Layer, ...]
    total: Group
    not_counted: tuple[NotCounted, ...]
    by: str = "layer"
    sort: str | None = None
    depth: int | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cost) and (self.layers, self.not_counted) == (other.layers, other.not_counted)

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Layer:
        """The layer of this name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        from difflib import get_close_matches

        close = get_close_matches(name, [layer.name for layer in self.layers], 3)
        raise ConvwrightError(
            f"no layer {name!r}" + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "")
        )

    def groups(self, by: str, depth: int | None = None) -> tuple[Group, ...]:
        """The layers summed by "kind" or by "block", in the order in which the first of each runs."""
        keys: list[Path]
        if by == "kind":
            keys = [(layer.kind,) for layer in self.layers]
        elif by == "block":
            keys = self._blocks(depth)
        else:
            raise ConvwrightError(f"by must be 'kind' or 'block', got {by!r}")
        found: dict[Path, list[Layer]] = {}
        for key, layer in zip(keys, self.layers, strict=True):
            found.setdefault(key, []).append(layer)
        return tuple(group_of(path, layers) for path, layers in found.items())

    def tree(self, depth: int | None = None, sort: str | None = None) -> tuple[Group, ...]:
        """Every block, before the blocks that it consists of, whose figures are part of its own.

        - `depth`: how deep, all levels by default.
        - `sort`: a figure by which the blocks inside a block are sorted, the largest first.
        """
        found: dict[Path, list[Layer]] = {}
        for path, layer in zip(self._blocks(depth), self.layers, strict=True):
            for length in range(1, len(path) + 1):
                found.setdefault(path[:length], []).append(layer)
        groups = {path: group_of(path, layers) for path, layers in found.items()}
        first = {path: number for number, path in enumerate(found)}
        places = {path: (-getattr(group, sort) if sort else 0, first[path]) for path, group in groups.items()}
        order = sorted(found, key=lambda path: [places[path[:length]] for length in range(1, len(path) + 1)])
        return tuple(groups[path] for path in order)

    def _blocks(self, depth: int | None) -> list[Path]:
        if depth is not None and (not isinstance(depth, int) or depth < 1):
            raise ConvwrightError(f"depth must be a positive int, got {depth!r}")
        return block_paths([layer.name for layer in self.layers], depth)

    @cached_property
    def rows(self) -> tuple[Layer, ...] | tuple[Group, ...]:
        """What the table shows: layers or groups, sorted as `cost` was asked."""
        if self.by == "tree":
            return self.tree(self.depth, self.sort)
        rows: Any = self.layers if self.by == "layer" else self.groups(self.by, self.depth)
        if self.sort is not None:
            rows = tuple(sorted(rows, key=lambda row: -getattr(row, str(self.sort))))
        return rows  # type: ignore[no-any-return]

    @property
    def field(self) -> tuple[AxisField, ...] | None:
        """The receptive field of the last feature map, an `AxisField` an axis; None where there is none.

        Global pools, fully connected layers and what follows them see everything and are left out, and so are the
        gates of squeeze-and-excitation.
        """
        for layer in reversed(self.layers):
            seen, first = layer.receptive_field, self.layers[0].input_shape
            if seen is not None and len(layer.output_shape) == len(first) and layer.op not in _WHOLE:
                return seen.local or seen.axes
        return None

    def share(self, row: Figures, figure: str) -> float:
        """What part of the total a layer or a group is, of this figure; 0 where the total is."""
        whole = getattr(self.total, figure)
        return getattr(row, figure) / whole if whole else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `title`, `total`, `layers`, `not_counted`, and `groups` where it is summed by kind or block.

        The total has the figures by name; a layer has its `name`, `op`, `kind`, shapes and receptive field as well, and
        `shares` of the total.
        """
        rows = [self._row(row) for row in self.rows]
        layers = rows if self.by == "layer" else [self._row(layer) for layer in self.layers]
        result = {"title": self.title, "total": self.total.figures(), "layers": layers}
        if self.by != "layer":
            result |= {"by": self.by, "groups": rows}
        names = [one.name for one in fields(NotCounted)]
        return result | {"not_counted": [{name: getattr(one, name) for name in names} for one in self.not_counted]}

    def _row(self, row: Layer | Group) -> dict[str, Any]:
        named: dict[str, Any] = {"name": row.name}
        if isinstance(row, Layer):
            named |= {"op": row.op, "kind": row.kind}
            named |= {"input_shape": list(row.input_shape), "output_shape": list(row.output_shape)}
        else:
            named["layers"] = len(row.layers)
        named |= row.figures() | {"shares": {name: self.share(row, name) for name in SHARES}}
        if isinstance(row, Layer):
            named["receptive_field"] = None if row.receptive_field is None else row.receptive_field.to_dict()
        return named

    def records(self) -> list[dict[str, Any]]:
        """The rows with one plain value a column.

        Shapes as `1x3x224x224`, shares as `share_macs` and so on, the receptive field's size, stride, padding and
        centre as `receptive_field`, `effective_stride`, `effective_padding` and `centre`.
        """
        records = []
        for row in self.rows:
            named = self._row(row)
            shares = {f"share_{name}": value for name, value in named.pop("shares").items()}
            named.pop("receptive_field", None)
            flat = {key: _by(value) if isinstance(value, list) else value for key, value in named.items()}
            records.append(flat | shares)
            if isinstance(row, Layer):
                seen = row.receptive_field
                parts = ("size", "stride", "padding", "centre")
                values = ("" if seen is None else _by(getattr(seen, part)) for part in parts)
                records[-1] |= zip(_FIELD_COLUMNS, values, strict=True)
        return records

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame; raises ConvwrightError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise ConvwrightError("to_pandas needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame(self.records())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as CSV (RFC 4180), whole or not at all."""
        from convwright.cost.files import write_csv

        write_csv(path, self.records())

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict()` as JSON, whole or not at all."""
        from convwright.cost.files import write_json

        write_json(path, self.to_dict())

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        from convwright.cost.show import text

        return text(self)

    def __rich__(self) -> Any:
        from convwright.cost.show import Shown

        return Shown(self)


_FIELD_COLUMNS = ("receptive_field", "effective_stride", "effective_padding", "centre")


def _by(sizes: Iterable[Any]) -> str:
    return "x".join(map(str, sizes))


def group_of(path: Path, layers: Iterable[Layer]) -> Group:
    """The sum of layers, each constant once, with the peak of any of them."""
    layers = tuple(layers)
    weights: dict[str, Weight] = {}
    for layer in layers:
        weights.update(layer.weights)
    return Group(
        parameters=sum(weight.parameters for weight in weights.values()),
        buffers=sum(weight.buffers for weight in weights.values()),
        macs=sum(layer.macs for layer in layers),
        elementwise=sum(layer.elementwise for layer in layers),
        bytes_weights=sum(weight.nbytes for weight in weights.values()),
        bytes_read=sum(layer.bytes_read for layer in layers),
        bytes_activations=sum(layer.bytes_activations for layer in layers),
        bytes_moved=sum(layer.bytes_moved for layer in layers),
        bytes_peak=max((layer.bytes_peak for layer in layers), default=0),
        name=".".join(path),
        path=path,
        layers=layers,
    )
