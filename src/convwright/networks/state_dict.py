"""A built-in network with the weights that PyTorch has for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from convwright.errors import ConvwrightError
from convwright.graph import Graph
from convwright.networks import TABLE, build

_SHOWN = 3
"""How many of the names or shapes that do not fit a message tells."""

_NOT_USED = re.compile(r"(^|\.)num_batches_tracked$")
"""Counters of training steps, of no use afterwards."""


def from_state_dict(name: str, weights: Mapping[str, Any], **options: Any) -> Graph:
    """The network `name` with trained weights.

    - `weights`: arrays or PyTorch tensors by the names that torchvision or timm gives them, as `model.state_dict()`
      does; heads that serve training alone are passed over.
    - `options`: as the network's function takes them, `classes` above all.

    Raises ConvwrightError for a network that does not exist, and for weights that do not fit it, naming the first few.
    """
    graph = build(name, **{**options, "seed": None})
    wanted = {key: array for key, array in graph.constants.items() if array.dtype.kind == "f" and array.ndim}
    given = {key if key in wanted else _renamed(name, key): value for key, value in weights.items()}
    given = {key: value for key, value in given.items() if key and not _NOT_USED.search(key)}
    missing = [key for key in wanted if key not in given]
    if missing:
        raise ConvwrightError(f"network {name!r}: no weights for {_few(missing)}")
    surplus = [key for key in given if key not in wanted]
    if surplus:
        raise ConvwrightError(f"network {name!r}: it has no {_few(surplus)}")
    arrays = {key: _array(key, given[key], wanted[key].shape) for key in wanted}
    wrong = [
        f"{key} {arrays[key].shape} for {array.shape}"
        for key, array in wanted.items()
        if arrays[key].shape != array.shape
    ]
    if wrong:
        raise ConvwrightError(f"network {name!r}: the shapes differ: {_few(wrong)}")
    graph.constants.update(arrays)
    return graph


def _renamed(name: str, key: str) -> str:
    """The name that this network's graph has for a parameter, `""` for what it does without.

    A network's file may have `RENAMES`: pairs of a regular expression and what stands for its matches, applied in
    order, with which names that the graph does not have, those of another library, become the graph's.
    """
    module = import_module(f"convwright.networks.{TABLE[name][0]}")
    for pattern, replacement in getattr(module, "RENAMES", ()):
        key = re.sub(pattern, replacement, key)
    return key


def _array(key: str, value: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The values as float32; a PyTorch tensor gives its own away without that library being imported here.

    What timm writes as a convolution over the whole of its input becomes the fully connected layer that it is.
    """
    value = value.detach().cpu().float().numpy() if hasattr(value, "detach") else np.asarray(value)
    if value.dtype.kind not in "fiu":
        raise ConvwrightError(f"weights {key!r} are {value.dtype}, not numbers")
    array = np.array(value, np.float32, order="C")
    whole = array.ndim == 4 and len(shape) == 2 and array.shape[0] == shape[0] and array.size == shape[0] * shape[1]
    return array.reshape(shape) if whole else array


def _few(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
