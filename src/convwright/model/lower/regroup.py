"""The order of channels between a grouped convolution and the pointwise one behind it.

A channel shuffle between two grouped convolutions (ShuffleNet, arXiv 1707.01083, figure 2) is a permutation of
channels, and a depthwise layer between them works on channels in any order, if its filters are in the same. So nothing
moves: the first convolution leaves its channels as it computes them, and the last one reads those of a group where they
lie, from a table. As nobody else sees what is between them, its channels may lie apart, too: each group begins a block,
where a vector that two groups share would be computed for both of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.geometry import geometry_of
from convwright.model.lower import conv, depthwise, direct, paired
from convwright.model.problem import OPERATORS, Algorithm, Problem, problem_of
from convwright.model.values import Order, blocks_of
from convwright.model.weights import entries_of

_MOST_LANES = 1.6  # of a channel, where groups begin blocks: each is a product less for one more of the layers between


@dataclass(frozen=True, slots=True)
class Passage:
    """A convolution, depthwise layers and a pointwise convolution, each of which alone reads the one before."""

    first: Layer
    between: tuple[Layer, ...]
    last: Layer


def settle(b: Builder, readers: Mapping[str, list[Layer]]) -> None:
    """Give every value inside a passage its order, and take the shuffles that are in their way out of the layers."""
    for layer in b.layers:
        passage = _passage(b, layer, readers)
        if passage is None:
            continue
        p = problem_of(b, layer)
        order = order_behind(p, b.v)
        if p.shuffle == 0 and order.lanes == p.spec.out_channels:
            continue
        b.problems[id(layer)] = replace(p, shuffle=0, in_lanes=order.lanes > p.spec.out_channels)
        b.problems[id(passage.last)] = replace(problem_of(b, passage.last), in_order=True)
        layer.shuffle = 0
        for one in (layer, *passage.between):
            b.orders[one.output] = order


def _passage(b: Builder, layer: Layer, readers: Mapping[str, list[Layer]]) -> Passage | None:
    """The one that begins with the layer."""
    p = _problem(b, layer)
    if p is None or (not p.shuffle and p.spec.groups == 1) or layer.residual or _row(p) is not direct.ROW:
        return None
    between: list[Layer] = []
    name = layer.output
    while True:
        after = readers.get(name, [])
        if len(after) != 1 or name in b.graph.outputs or after[0].node.inputs[0] != name or after[0].residual == name:
            return None
        follower = after[0]
        p = _problem(b, follower)
        row = _row(p) if p is not None else None
        if p is None or row not in (direct.ROW, depthwise.ROW):
            return None
        if row is direct.ROW:
            pointwise = geometry_of(p).kernel == (1, 1) and not any(geometry_of(p).halo)
            return Passage(layer, tuple(between), follower) if pointwise else None
        if follower.residual or p.shuffle:
            return None
        between.append(follower)
        name = follower.output


def _problem(b: Builder, layer: Layer) -> Problem | None:
    if layer.op not in OPERATORS or not conv.can_lower(b, layer):
        return None
    return problem_of(b, layer)


def _row(p: Problem) -> Algorithm:
    row = conv.algorithm_of(replace(p, shuffle=0))
    return direct.ROW if row is paired.ROW else row  # which leaves such channels to it


def order_behind(p: Problem, v: int) -> Order:
    """Where the channels that the problem gives, shuffled as it says, lie if it leaves them as it computes them."""
    spec = p.spec
    channels, own = spec.out_channels, spec.out_channels // spec.groups
    numbers = np.arange(channels)
    if p.shuffle:
        numbers = numbers % p.shuffle * (channels // p.shuffle) + numbers // p.shuffle
    own_lanes = blocks_of(own, v) * v
    lanes = spec.groups * own_lanes
    vectors = len(entries_of(channels, spec.groups, v))
    if spec.groups == 1 or lanes > vectors * v or lanes > _MOST_LANES * channels:
        own_lanes, lanes = own, channels
    made = np.arange(channels) // own * own_lanes + np.arange(channels) % own
    name = f"{spec.groups} groups of {own} in {own_lanes} lanes, shuffled by {p.shuffle}"
    return Order(name, made[numbers], made, lanes)
