"""Chains of layers that are computed strip by strip, so that what lies between them stays in a core's cache.

Between two layers of a chain nobody else reads: a pointwise convolution, the depthwise one behind it, the pointwise one
behind that (MobileNet v2's inverted residual, arXiv 1801.04381, figure 3). Computed one after the other, their tensors
go to memory and, worse, from one core to another. A strip of the last layer's rows needs a few rows more of each layer
before it, which are computed again for the next strip.

All strips of a layer are equally high: at the edges they are moved back inside, and rows that lie outside the tensor
are zeros of the strip's halo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from convwright.errors import ConvwrightError
from convwright.kernels import strips as kernel
from convwright.model.builder import Builder, Step, aligned
from convwright.model.choices import choice
from convwright.model.fuse import Layer
from convwright.model.geometry import Geometry, geometry_of
from convwright.model.lower import channels, conv, depthwise, direct, grouped, paired
from convwright.model.problem import Algorithm, Problem, problem_of
from convwright.model.values import Buffer, Value, blocked_tensor

_LONGEST = 4  # layers of a chain
_SCRATCH_BYTES = 640 * 1024  # of one thread: what lies between the layers stays in the second-level cache
# The rows whose kernels can do a strip, and what adds their step; a first layer that reads planes has its own.
_ADD: Mapping[Algorithm, Callable[..., None]] = {
    direct.ROW: direct.add, depthwise.ROW: depthwise.add, grouped.ROW: grouped.add,
    paired.ROW: paired.add,
}  # fmt: skip
_add_first = partial(direct.add, planar=True)
_CALL_CYCLES = 150.0  # of calling a kernel for a strip
_FAR_CYCLES = 0.1  # a byte between layers computed apart, each thread: measured with an idle third-level cache


@dataclass(frozen=True, slots=True)
class Strip:
    """How a chain is cut.

    - `rows`: of each layer's output that one strip computes.
    - `starts`: `[strip][layer]`, the first of them.
    - `shifts`: `[strip][layer]`, how many rows of the layer's input the strip reads from before (negative) or behind
      the first that is there; 0 for the first layer, whose input is whole.
    """

    rows: tuple[int, ...]
    starts: np.ndarray
    shifts: np.ndarray

    @property
    def count(self) -> int:
        return len(self.starts)


@lru_cache(maxsize=1024)
def cut(geometries: tuple[Geometry, ...], high: int, edges: bool = False) -> Strip:
    """The chain in strips of `high` rows of its last output; `edges`: the first and the last of them alone."""
    rows = _rows(geometries, high)
    last = geometries[-1].out_size[0]
    outs = range(0, last, high)
    starts, shifts = [], []
    for start in (outs[0], outs[-1]) if edges else outs:
        places, offsets = [min(start, last - rows[-1])], []
        for layer in range(len(geometries) - 1, 0, -1):
            g = geometries[layer]
            wanted = places[-1] * g.stride[0] - g.padding[0][0]
            places.append(min(max(wanted, 0), g.size[0] - rows[layer - 1]))
            offsets.append(wanted - places[-1])
        starts.append(places[::-1])
        shifts.append([0, *offsets[::-1]])
    return Strip(rows, np.array(starts), np.array(shifts))


def _rows(geometries: tuple[Geometry, ...], high: int) -> tuple[int, ...]:
    """Of each layer's output that a strip of `high` rows of the last one needs."""
    rows = [min(high, geometries[-1].out_size[0])]
    for g in reversed(geometries[1:]):
        rows.append(min(g.size[0], _reach(g, rows[-1])))
    return tuple(rows[::-1])


def _reach(g: Geometry, rows: int) -> int:
    """Rows of the input that so many rows of the output read."""
    return (rows - 1) * g.stride[0] + (g.kernel[0] - 1) * g.dilation[0] + 1


def _halo(strip: Strip, geometries: Sequence[Geometry], layer: int) -> tuple[int, int, int, int]:
    """Zeros around the rows that layer `layer` reads: those of its padding, and where a strip reads beyond.

    No strip reads further up than the first, and none further down than the last.
    """
    g = geometries[layer]
    above, below = -int(strip.shifts[0, layer]), int(strip.shifts[-1, layer])
    below += _reach(g, strip.rows[layer]) - strip.rows[layer - 1]
    return max(0, above), g.halo[1], max(0, below), g.halo[3]


# -- which layers ------------------------------------------------------------------------------------------------------


def chains(b: Builder, readers: Mapping[str, list[Layer]]) -> list[list[Layer]]:
    """The chains of this plan: where strips are estimated, or measured, to be quicker than layer after layer."""
    found: list[list[Layer]] = []
    for run in runs(b, readers):
        at = 0
        for length in b.cuts.get(run[-1].output) or lengths(b, run):
            if length > 1:
                found.append(run[at : at + length])
                b.measured[id(found[-1][-1])] = b.measured_cuts.get(run[-1].output, {})
            at += length
    return found


def runner_up(problems: Sequence[Problem], measured: Mapping[str, float] | None) -> str:
    """What a chain could be instead, for reports: layer after layer by estimate, or its whole run otherwise cut.

    `measured`: seconds of the run's cuts, the one taken first, where they were measured.
    """
    if measured and len(measured) > 1:
        taken, *others = measured
        best = min(others, key=lambda cut: measured[cut])
        return f"{best} {measured[best] / measured[taken]:.2f}x measured"
    far = sum(_FAR_CYCLES * _bytes_between(p) for p in problems[1:])
    apart = far + sum(_cycles((p,)) for p in problems)
    return f"{'+'.join('1' * len(problems))} {apart / _cycles(tuple(problems)):.2f}x estimated"


def runs(b: Builder, readers: Mapping[str, list[Layer]]) -> list[list[Layer]]:
    """Layers of which each alone reads the one before, as many in a row as can be."""
    found: list[list[Layer]] = []
    follows = {id(layer): _follower(b, layer, readers) for layer in b.layers}
    behind = {id(layer) for layer in follows.values() if layer is not None}
    for layer in b.layers:
        if id(layer) in behind or follows[id(layer)] is None:
            continue
        run = [layer]
        while (after := follows[id(run[-1])]) is not None:
            run.append(after)
        found.append(run)
    return found


def _follower(b: Builder, layer: Layer, readers: Mapping[str, list[Layer]]) -> Layer | None:
    """The layer that alone reads this one's output, and can be computed in strips together with it."""
    name, after = layer.output, readers.get(layer.output, [])
    if len(after) != 1 or name in b.graph.outputs or name in b.parents or name in b.flattened or name in b.apart:
        return None
    (follower,) = after
    if follower.node.inputs[0] != name or follower.residual == name:
        return None
    return follower if _kernel_of(b, layer) is not None and _kernel_of(b, follower) is not None else None


def _kernel_of(b: Builder, layer: Layer) -> Algorithm | None:
    """The row that computes the layer, if its kernel can do a strip."""
    if layer.op not in ("Conv", "Convolution") or layer.shuffle or len(b.shape(layer.output)) != 4:
        return None
    try:
        if not conv.can_lower(b, layer):
            return None
        p = problem_of(b, layer)
    except ConvwrightError:
        return None
    row = conv.algorithm_of(p)
    if row not in _ADD or p.out_size[0] < 2 or p.plain_output:
        return None
    # Weights of several taps come from the third-level cache once for each strip.
    if row is paired.ROW and geometry_of(p).kernel != (1, 1):
        return None
    return None if row is depthwise.ROW and depthwise.is_clipped(geometry_of(p)) else row


def lengths(b: Builder, run: Sequence[Layer], far: float | None = None) -> tuple[int, ...]:
    """Of the parts into which a run of layers is cut with the least estimate, found by dynamic programming.

    `far`: cycles a byte between layers computed apart; None: `_FAR_CYCLES`.
    """
    return _lengths(tuple(problem_of(b, layer) for layer in run), _FAR_CYCLES if far is None else far)


@choice
def _lengths(problems: tuple[Problem, ...], far: float) -> tuple[int, ...]:
    best: list[tuple[float, int]] = [
        (0.0, 0)
    ]  # least cycles of the first so many layers, and the length of their last part
    for end in range(1, len(problems) + 1):
        options = []
        for length in range(1, min(_LONGEST, end) + 1):
            first = end - length
            if length > 1 and any(p.plain_input for p in problems[first + 1 : end]):
                break
            between = 0.0 if first == 0 else far * _bytes_between(problems[first])
            options.append((best[first][0] + between + _cycles(problems[first:end]), length))
        best.append(min(options))
    parts, end = [], len(problems)
    while end:
        parts.append(best[end][1])
        end -= parts[-1]
    return tuple(parts[::-1])


def _bytes_between(p: Problem) -> int:
    """That are written and read, the input of `p`, where the layer before it was computed apart."""
    high, wide = p.size
    return 4 * p.batch * p.spec.in_channels * high * wide


@lru_cache(maxsize=4096)
def _cycles(problems: tuple[Problem, ...]) -> float:
    """Estimated cycles, on each thread, of layers in one chain."""
    alone = [conv.algorithm_of(p).cycles(p) for p in problems]
    if len(problems) == 1:
        return alone[0]
    geometries = tuple(geometry_of(p) for p in problems)
    return min(_strip_cycles(problems, alone, geometries, high) for high in _heights(problems, geometries))


@choice
def _height(problems: tuple[Problem, ...]) -> int:
    """Rows of the last output in a strip."""
    geometries = tuple(geometry_of(p) for p in problems)
    alone = [conv.algorithm_of(p).cycles(p) for p in problems]
    return min(_heights(problems, geometries), key=lambda high: _strip_cycles(problems, alone, geometries, high))


def _strip_cycles(
    problems: Sequence[Problem], alone: Sequence[float], geometries: tuple[Geometry, ...], high: int
) -> float:
    p, count = problems[0], -(-geometries[-1].out_size[0] // high)
    items = p.batch * count
    uneven = -(-items // p.threads) * p.threads / items
    total = 0.0
    for cycles, rows, g in zip(alone, _rows(geometries, high), geometries, strict=True):
        total += cycles * rows * count / g.out_size[0] * uneven + _CALL_CYCLES * items / p.threads
    return total


def _heights(problems: Sequence[Problem], geometries: tuple[Geometry, ...]) -> list[int]:
    """Heights of strips to choose from: those of even shares whose scratch fits the cache, else the least."""
    last, v, p = geometries[-1].out_size[0], problems[0].target.vector, problems[0]
    heights = sorted({-(-last // count) for count in range(1, last + 1)}, reverse=True)
    shares = [high for high in heights if p.batch * -(-last // high) >= p.threads] or heights[-1:]
    fitting = [high for high in shares if sum(_scratch(geometries, cut(geometries, high, True), v)) <= _SCRATCH_BYTES]
    return fitting or shares[-1:]


def _scratch(geometries: Sequence[Geometry], strip: Strip, v: int) -> tuple[int, int]:
    """Bytes of the two buffers that the tensors between layers take by turns."""
    needs = [0, 0]
    for layer in range(1, len(geometries)):
        g = geometries[layer]
        shape = (1, geometries[layer - 1].out_channels, strip.rows[layer - 1], g.size[1])
        nbytes = blocked_tensor(shape, _halo(strip, geometries, layer), v).buffer.nbytes
        needs[layer % 2] = max(needs[layer % 2], aligned(nbytes))
    return needs[0], needs[1]


# -- lowering ----------------------------------------------------------------------------------------------------------


def lower(b: Builder, chain: list[Layer]) -> None:
    """Add the step that computes the chain."""
    problems = [problem_of(b, layer) for layer in chain]
    geometries = tuple(geometry_of(p) for p in problems)
    strip = cut(geometries, _height(tuple(problems)))
    b.layer = chain[0]
    planar = direct.reads_planes(problems[0]) and conv.algorithm_of(problems[0]) is direct.ROW
    name = chain[0].node.inputs[0]
    x = (
        b.padded_planes(b.plain(name), geometries[0].halo)
        if planar
        else channels.with_halo(b, name, geometries[0].halo)
    )
    residuals = [b.blocked(layer.residual) if layer.residual else None for layer in chain]
    y = b.new_blocked(chain[-1].output)
    lanes = [b.lanes(layer.output) for layer in chain]
    places = _scratch([replace(g, out_channels=own) for g, own in zip(geometries, lanes, strict=True)], strip, b.v)
    scratch = Buffer(b.threads * sum(places))
    calls, reads = [], [x, *(value for value in residuals if value is not None)]
    moves: list[dict[str, np.ndarray]] = []  # bytes, by strip, that a call's arguments move by
    source = replace(x, shape=(1, *x.shape[1:]))
    for at, (layer, p, g) in enumerate(zip(chain, problems, geometries, strict=True)):
        rows = strip.rows[at]
        if at < len(chain) - 1:
            shape = (1, lanes[at], rows, geometries[at + 1].size[1])
            target = blocked_tensor(shape, _halo(strip, geometries, at + 1), b.v)
            target.buffer, target.offset = scratch, target.offset + (places[0] if (at + 1) % 2 else 0)
            target_move = np.zeros(strip.count, np.int64)
        else:
            target = replace(y, shape=(1, g.out_channels, rows, g.out_size[1]))
            target_move = strip.starts[:, at] * (4 * y.row)
        move = {"y": target_move}
        if at == 0:
            own = replace(g, out_size=(rows, g.out_size[1]), size=(min(g.size[0], _reach(g, rows)), g.size[1]))
            move["x"] = strip.starts[:, 0] * (4 * g.stride[0] * x.row)
        else:
            wide = (0, 0), g.padding[1]
            own = replace(g, size=(strip.rows[at - 1], g.size[1]), out_size=(rows, g.out_size[1]), padding=wide)
            move["x"] = strip.shifts[:, at] * (4 * source.row)
        residual = residuals[at]
        if residual is not None:
            move["residual"] = strip.starts[:, at] * (4 * residual.row)
            residual = replace(residual, shape=(1, *residual.shape[1:2], rows, g.out_size[1]))
        with _recorded(b, layer) as steps:
            if at < len(chain) - 1:
                b.fill_halo(target)
            add = _add_first if planar and at == 0 else _ADD[conv.algorithm_of(p)]
            add(b, layer, own, source, target, residual)
        moves += [{}] * (len(steps) - 1) + [move]
        calls += steps
        source = target
    b.layer = chain[-1]
    _add_step(b, chain, problems, strip, calls, moves, scratch, sum(places), x, y, reads)


@contextmanager
def _recorded(b: Builder, layer: Layer) -> Iterator[list[Step]]:
    """Steps that are added inside, for one thread, and not to the plan."""
    kept, threads, before = b.steps, b.threads, b.layer
    b.steps, b.threads, b.layer = [], 1, layer
    try:
        yield b.steps
    finally:
        b.steps, b.threads, b.layer = kept, threads, before


def _add_step(
    b: Builder, chain: list[Layer], problems: list[Problem], strip: Strip, calls: list[Step],
    moves: list[dict[str, np.ndarray]], scratch: Buffer, share: int, x: Value, y: Value, reads: list[Value],
) -> None:  # fmt: skip
    n = problems[0].batch
    words = [_words(call) for call in calls]
    assert sum(map(len, words)) <= kernel.MOST_WORDS
    offsets = np.zeros((n, strip.count, sum(map(len, words))), np.int64)
    shares = np.zeros(offsets.shape[-1], np.int64)
    values = {id(value.buffer): value for value in [*reads, y]}
    first = 0
    for call, move, names in zip(calls, moves, words, strict=True):
        for place, name in enumerate(names, first):
            ref = call.arguments[name]
            if name in move:
                offsets[:, :, place] = move[name]
            buffer = getattr(ref, "buffer", None)
            if buffer is scratch:
                shares[place] = share
            elif id(buffer) in values and buffer is not None:
                offsets[:, :, place] += 4 * values[id(buffer)].image * np.arange(n)[:, None]
        first += len(names)
    arguments = {
        "offsets": b.static(offsets), "shares": b.static(shares), "count": len(calls), "words": len(shares),
    }  # fmt: skip
    kernels = ", ".join(call.name for call in calls if call.macs)
    others = ", ".join(layer.name for layer in chain[:-1])
    why = f"{strip.count} strips of {strip.rows[-1]} rows with {others}: {kernels}"
    macs = sum(p.macs for p in problems)
    b.step(f"strips of {len(chain)}", kernel, kernel.Strips(), arguments, n * strip.count, reads, [y], why, macs)
    b.steps[-1].touches.append((scratch, 0, scratch.nbytes, True, "inside"))
    own = [touch for call in calls for touch in call.touches if touch[0] is not scratch and id(touch[0]) not in values]
    b.steps[-1].touches += own  # scratch of the kernels themselves
    b.steps[-1].calls = calls


def _words(call: Step) -> tuple[str, ...]:
    own = getattr(call.tile, "arguments", None)
    assert call.family is not None
    names: tuple[str, ...] = (own or call.family.ARGUMENTS).names
    return names
