"""Depthwise convolutions of several kernel sizes, MixConv (arXiv 1907.09595): a step a part, in one pass.

Each part is a depthwise convolution that reads its channels where they are, and writes them where they belong. The
parts touch different channels, and share one scratch memory that each thread has its own piece of: no barrier stands
between them, and a thread goes on to the next part while another is at the one before.
"""

from __future__ import annotations

from dataclasses import replace

from convwright.graph import Node, ValueInfo
from convwright.graph.graph import INTERNAL
from convwright.model.builder import Builder, Step
from convwright.model.fuse import Layer
from convwright.model.lower import depthwise_planes, planar
from convwright.model.problem import Algorithm, Problem
from convwright.model.values import Buffer, Ref, Value


def can_lower(b: Builder, layer: Layer) -> bool:
    known = all(name in b.graph.constants for name in layer.node.inputs[1:] if name)
    return known and 0 not in b.shape(layer.output)


def lower(b: Builder, layer: Layer) -> None:
    node = layer.node
    parts = node.attributes["parts"]
    x, y = b.plain(node.inputs[0]), b.new_plain(layer.output)
    first_step, first_in, first_out = len(b.steps), 0, 0
    for place, part in enumerate(parts):
        spec = part.resolve(x.shape[2:])
        names = f"{node.inputs[0]}:{place}", f"{layer.output}:{place}"
        inputs = [names[0], node.inputs[1 + place], node.input(1 + len(parts) + place)]
        of_part = Layer(
            Node("Convolution", inputs, [names[1]], {"spec": spec}, domain=INTERNAL), names[1], layer.epilogue
        )
        b.values[names[0], False] = _channels(x, first_in, part.in_channels)
        b.rooms[names[1]] = _channels(y, first_out, part.out_channels)
        b.types.values[names[1]] = ValueInfo(y.dtype, b.rooms[names[1]].shape)
        p = Problem(
            spec, x.shape[2:], x.n, x.dtype, b.target, b.threads, b.numerics, plain_input=True, plain_output=True
        )
        _row(p).lower(b, of_part, p)
        first_in, first_out = first_in + part.in_channels, first_out + part.out_channels
    _one_pass(b.steps[first_step:], y.buffer, b.threads, x.dtype.itemsize)


def _row(p: Problem) -> Algorithm:
    """What computes a part: in place where that is estimated to be quicker."""
    in_place = depthwise_planes.ROW
    return in_place if in_place.why_not(p) is None and in_place.cycles(p) < planar.ROW.cycles(p) else planar.ROW


def _channels(value: Value, first: int, count: int) -> Value:
    """A range of the channels of a row-major tensor; its images are as far apart as the whole's."""
    plane = value.dtype.itemsize
    image = 1
    for size in value.shape[2:]:
        plane *= size
    for size in value.shape[1:]:
        image *= size
    shape = (value.n, count, *value.shape[2:])
    return replace(value, shape=shape, offset=value.offset + first * plane, image=image)


def _one_pass(steps: list[Step], y: Buffer, threads: int, itemsize: int) -> None:
    """Let the steps share their scratch, and say that each writes what no other does."""
    most = max((step.arguments["scratch_thread"] for step in steps if "scratch" in step.arguments), default=0)
    scratch = Buffer(itemsize * most * threads)
    for number, step in enumerate(steps):
        own = None
        if "scratch" in step.arguments:
            own = step.arguments["scratch"].buffer
            step.arguments |= {"scratch": Ref(scratch), "scratch_thread": most}
        # A thread's piece of the scratch, and a part's channels of the output.
        tag = f"part{number}"
        step.touches = [
            (scratch, 0, scratch.nbytes, True, tag) if touch[0] is own
            else (y, *touch[1:4], tag) if touch[0] is y else touch
            for touch in step.touches
        ]  # fmt: skip
