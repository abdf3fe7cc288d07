"""What is known of the shapes in a graph whose input shapes may be open.

Open dimensions are tried at two sizes each; a claim about shapes is believed where it holds for both. Where all inputs
have fixed shapes there is one trial, and claims are certain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convwright.graph.graph import Dimension, Graph, ValueInfo
from convwright.graph.shapes import Inferred, infer_leniently

Shape = tuple[int, ...]

_BATCHES = (2, 3)
_SIZES = ((224, 256), (224, 224), (299, 299), (64, 96), (32, 32))
"""Spatial sizes to try, in pairs: the first pair that carries the inference to the graph's end is taken."""


class Facts:
    """Shapes of the values under each trial."""

    def __init__(self, graph: Graph) -> None:
        self.certain = all(isinstance(size, int) for info in graph.inputs.values() for size in info.shape)
        leading = [info.shape[0] for info in graph.inputs.values() if info.shape]
        self.batch_symbol = next((size for size in leading if isinstance(size, str)), None)
        self.trials: list[Inferred] = [infer_leniently(graph, {})] if self.certain else _best(graph)

    def shapes(self, name: str) -> tuple[Shape, ...] | None:
        """The value's shape in each trial, None where a trial did not get that far."""
        found = [trial.values.get(name) for trial in self.trials]
        if not found or any(info is None for info in found):
            return None
        return tuple(info.shape for info in found)  # type: ignore[union-attr,misc]

    def dtype(self, name: str) -> np.dtype[Any] | None:
        info = self.trials[0].values.get(name) if self.trials else None
        return None if info is None else info.dtype

    def content(self, name: str) -> np.ndarray[Any, Any] | None:
        """Contents of a value of shape arithmetic that are the same in every trial."""
        found = [trial.constants.get(name) for trial in self.trials]
        if not found or any(array is None for array in found):
            return None
        return found[0] if all(np.array_equal(found[0], array) for array in found[1:]) else None  # type: ignore[arg-type]

    def open_shape(self, name: str) -> tuple[Dimension, ...] | None:
        """The value's shape with None, or the batch's symbol, for dimensions that vary."""
        shapes = self.shapes(name)
        if shapes is None:
            return None
        sizes = zip(*shapes, strict=True)
        return tuple(
            same[0] if len(set(same)) == 1 else self.batch_symbol if same == _BATCHES else None for same in sizes
        )

    def note(self, name: str, like: str, shapes: tuple[Shape, ...]) -> None:
        """Record the shapes of a new value that has the element type of `like`."""
        for trial, shape in zip(self.trials, shapes, strict=True):
            if like in trial.values:
                trial.values[name] = ValueInfo(trial.values[like].dtype, shape)


def _best(graph: Graph) -> list[Inferred]:
    best: list[Inferred] = []
    for sizes in _SIZES:
        trials = [infer_leniently(graph, _shapes(graph, *pair)) for pair in zip(_BATCHES, sizes, strict=True)]
        if not best or min(len(trial.values) for trial in trials) > min(len(trial.values) for trial in best):
            best = trials
        if all(name in trial.values for trial in best for name in graph.outputs):
            break
    return best


def _shapes(graph: Graph, batch: int, size: int) -> dict[str, Shape]:
    """Shapes for all inputs, the same size for the same symbol."""
    symbols: dict[str, int] = {}

    def choose(axis: int, declared: Dimension) -> int:
        if isinstance(declared, int):
            return declared
        value = batch if axis == 0 else 3 if axis == 1 else size
        return value if declared is None else symbols.setdefault(declared, value)

    return {
        name: tuple(choose(axis, declared) for axis, declared in enumerate(info.shape))
        for name, info in graph.inputs.items()
    }
