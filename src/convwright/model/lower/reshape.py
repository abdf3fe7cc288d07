"""Operators that keep the elements in row-major order: reshape, flatten, squeeze, unsqueeze, identity."""

from __future__ import annotations

from convwright.model.builder import Builder
from convwright.model.fuse import Layer


def lower(b: Builder, layer: Layer) -> None:
    if layer.output in b.flattened:  # its readers take the value that it flattens
        return
    name, output = layer.node.inputs[0], layer.output
    shape = b.shape(output)
    if _same_blocks(b, name, shape) and (name, True) in b.values:
        b.alias(output, b.values[name, True], shape)
        return
    b.alias(output, b.plain(name), shape)


def _same_blocks(b: Builder, name: str, shape: tuple[int, ...]) -> bool:
    """Whether both shapes are the same images, channels and plane, as in ``[N, C, 1, 1]`` and ``[N, C]``."""
    own = b.shape(name)
    if not (2 <= len(own) <= 5 and 2 <= len(shape) <= 5) or own[:2] != shape[:2]:
        return False
    rest, other = [[size for size in sizes[2:] if size != 1] for sizes in (own, shape)]
    return rest == other and (len(rest) == 0 or own == shape)
