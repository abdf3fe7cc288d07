"""Chains of elementwise work in one pass over memory: activations, sums, products, per-channel scales, masks.

What is computed is an expression, a nested tuple: an ``int`` is an operand, a ``float`` a constant, anything else an
operation's name with its operands, and for an activation its parameters behind them:

    ("relu", ("add", ("mul", 0, 1), 2))          # relu(x0 * x1 + x2): batch normalisation where 1 and 2 are "channel"
    ("leaky_relu", ("sub", 0, 0.5), 0.1)

The output may be the same memory as a full operand: every element is read before it is written, and once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

from llvmlite import ir

from convwright.codegen.lang import Int, Integer, Kernel
from convwright.codegen.target import Target
from convwright.kernels import activations
from convwright.kernels.arguments import Arguments, Reader

Expression = int | float | tuple[Any, ...]

UNROLL = 2  # 4 is no faster, and takes twice as long to compile
KINDS = {"full": "image block row", "channel": "image block", "pixel": "image row", "scalar": ""}


def _maximum(k: Kernel, a: ir.Value, b: ir.Value) -> ir.Value:
    """The larger; NaN where either is."""
    return k.select(k.b.fcmp_unordered("uno", b, b), b, k.max(a, b))


def _minimum(k: Kernel, a: ir.Value, b: ir.Value) -> ir.Value:
    return k.select(k.b.fcmp_unordered("uno", b, b), b, k.min(a, b))


def _prelu(k: Kernel, x: ir.Value, slope: ir.Value) -> ir.Value:
    return k.select(k.b.fcmp_ordered("<", x, k.splat(0.0)), k.mul(x, slope), x)


BINARY: dict[str, Callable[[Kernel, ir.Value, ir.Value], ir.Value]] = {
    "add": Kernel.add,
    "sub": Kernel.sub,
    "mul": Kernel.mul,
    "div": Kernel.div,
    "max": _maximum,
    "min": _minimum,
    "prelu": _prelu,
}

LARGEST_POWER = 16


@dataclass(frozen=True)
class Elementwise:
    """What is baked into one elementwise kernel over channel-blocked tensors ``[N][blocks][rows][cols][v]``.

    expression: see the module.
    operands: the kind of each operand:
        "full" has the output's shape;
        "channel" is ``[N or 1][blocks][1][1][v]``;
        "pixel" is ``[N or 1][1][rows][cols][v]``, of which lane 0 counts for all channels;
        "scalar" is one float.
    An operand with one image has an image stride of 0.
    """

    expression: Expression
    operands: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"elementwise-{self!r}"

    @property
    def arguments(self) -> Arguments:
        """Pointers ``y x0 x1 ...``; then the work, the strides of ``y``, and of every operand those its kind has.

        Work item -> (image, chunk of ``chunk_rows`` rows, block), the block fastest.
        """
        strides = [f"x{place}_{axis}" for place, kind in enumerate(self.operands) for axis in KINDS[kind].split()]
        work = "blocks chunks chunk_rows rows cols y_image y_block y_row"
        return Arguments(_pointers(self.operands), " ".join([work, *strides]))

    def name(self, target: Target) -> str:
        return f"f32-elementwise-{UNROLL}x1-{target.name}"


@dataclass(frozen=True)
class Flat:
    """What is baked into one elementwise kernel over contiguous arrays of any size; operands are "full" or "scalar"."""

    expression: Expression
    operands: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"flat-{self!r}"

    @property
    def arguments(self) -> Arguments:
        """Pointers ``y x0 x1 ...``, then ``size`` floats, of which an item is ``span``: a multiple of the vector."""
        return Arguments(_pointers(self.operands), "size span")

    def name(self, target: Target) -> str:
        return f"f32-flat-{UNROLL}x1-{target.name}"


def _pointers(operands: tuple[str, ...]) -> str:
    return " ".join(["y", *(f"x{place}" for place in range(len(operands)))])


def why_not(expression: Expression, operands: tuple[str, ...] | None = None) -> str | None:
    """Why no kernel can be made of this expression over these operands; None where one can."""
    if isinstance(expression, float):
        return None
    if isinstance(expression, int):
        known = operands is None or 0 <= expression < len(operands)
        return None if known else f"operand {expression} of an expression with operands {operands}"
    name, *rest = expression
    if name == "pow":
        power = rest[1]
        if not isinstance(power, float) or not (power in (0.5, -0.5) or _small_integer(power)):
            return f"pow to the power {power!r}: only whole constants up to {LARGEST_POWER}, 0.5 and -0.5"
        return why_not(rest[0], operands)
    if name in activations.ROWS:
        return why_not(rest[0], operands)
    if name in BINARY:
        return next(filter(None, (why_not(operand, operands) for operand in rest)), None)
    return f"no elementwise operation is called {name!r}"


def _small_integer(power: float) -> bool:
    return power == int(power) and abs(power) <= LARGEST_POWER


class _Evaluator:
    """Computes the expression for given operands; equal parts once."""

    def __init__(self, k: Kernel, operands: list[ir.Value]):
        self.k, self.operands = k, operands
        self.known: dict[str, ir.Value] = {}

    def __call__(self, expression: Expression) -> ir.Value:
        if isinstance(expression, float):
            return self.k.splat(expression)
        if isinstance(expression, int):
            return self.operands[expression]
        known = repr(expression)  # 0 == 0.0 == -0.0, but they mean different things here
        if known not in self.known:
            self.known[known] = self.compute(*expression)
        return self.known[known]

    def compute(self, name: str, first: Expression, *rest: Any) -> ir.Value:
        k, x = self.k, self(first)
        if name == "pow":
            return self.power(x, rest[0])
        if name in BINARY:
            return reduce(lambda a, b: BINARY[name](k, a, self(b)), rest, x)
        return activations.apply(k, (name, *rest), x)

    def power(self, x: ir.Value, power: float) -> ir.Value:
        k, one = self.k, self.k.splat(1.0)
        if abs(power) == 0.5:
            result = k.unary("sqrt", x)
        else:
            result, square = one, x
            for bit in reversed(f"{abs(int(power)):b}"):
                if bit == "1":
                    result = square if result is one else k.mul(result, square)
                square = k.mul(square, square)
        return k.div(one, result) if power < 0 else result


def _used(expression: Expression) -> Iterator[int]:
    """The operands in the expression."""
    if isinstance(expression, tuple):
        values = expression[1:2] if expression[0] in activations.ROWS else expression[1:]
        for value in values:
            yield from _used(value)
    elif isinstance(expression, int):
        yield expression


def _check(config: Elementwise | Flat) -> None:
    reason = why_not(config.expression, config.operands)
    if reason:
        raise ValueError(reason)


def emit(config: Elementwise, target: Target) -> ir.Module:
    """The kernel's module."""
    _check(config)
    k = Kernel(target)
    a = config.arguments.read(k)
    used = set(_used(config.expression))
    with k.loop(k.begin, k.end) as item:
        image, chunk, block = item.unravel(a.chunks, a.blocks)
        y = k.advance(a.y, image * a.y_image + block * a.y_block)
        # What is the same for the whole item is loaded here: the stores might alias it, as far as LLVM can tell.
        fixed: dict[int, ir.Value] = {}
        bases: dict[int, ir.Value] = {}
        for place in used:
            kind, base = config.operands[place], getattr(a, f"x{place}")
            for axis, index in (("image", image), ("block", block)):
                if axis in KINDS[kind].split():
                    base = k.advance(base, index * getattr(a, f"x{place}_{axis}"))
            if kind == "channel":
                fixed[place] = k.load(base)
            elif kind == "scalar":
                fixed[place] = k.broadcast(k.load_scalar(base))
            else:
                bases[place] = base
        first = chunk * a.chunk_rows
        with k.loop(first, k.minimum(first + a.chunk_rows, a.rows)) as row:
            target_row = k.advance(y, row * a.y_row)
            rows = {place: k.advance(base, row * getattr(a, f"x{place}_row")) for place, base in bases.items()}
            _row(k, a, config, target_row, rows, fixed)
    return k.finish()


def _row(
    k: Kernel, a: Reader, config: Elementwise, y: ir.Value, rows: dict[int, ir.Value], fixed: dict[int, ir.Value]
) -> None:
    def step(col: Int, unroll: int) -> None:
        results = []
        for place in range(unroll):
            at = (col + place) * k.v
            values = dict(fixed)
            for operand, row in rows.items():
                pixel = config.operands[operand] == "pixel"
                values[operand] = k.broadcast(k.load_scalar(row, at)) if pixel else k.load(row, at)
            results.append(_evaluate(k, config, values))
        for place, result in enumerate(results):
            k.store(result, y, (col + place) * k.v)

    whole = a.cols // UNROLL * UNROLL
    with k.loop(0, whole, UNROLL) as col:
        step(col, UNROLL)
    with k.loop(whole, a.cols) as col:
        step(col, 1)


def _evaluate(k: Kernel, config: Elementwise | Flat, values: dict[int, ir.Value]) -> ir.Value:
    nothing = k.splat(0.0)
    return _Evaluator(k, [values.get(place, nothing) for place in range(len(config.operands))])(config.expression)


def emit_flat(config: Flat, target: Target) -> ir.Module:
    """The module of the kernel over contiguous arrays."""
    _check(config)
    k = Kernel(target)
    a = config.arguments.read(k)
    used = sorted(set(_used(config.expression)))
    pointers = {place: getattr(a, f"x{place}") for place in used}
    scalars = [place for place in used if config.operands[place] == "scalar"]
    with k.loop(k.begin, k.end) as item:
        fixed = {place: k.broadcast(k.load_scalar(pointers[place])) for place in scalars}
        full = {place: pointer for place, pointer in pointers.items() if place not in fixed}

        def step(at: Integer, unroll: int, load: Callable[[ir.Value, Integer], ir.Value]) -> list[ir.Value]:
            return [
                _evaluate(k, config, fixed | {where: load(x, at + place * k.v) for where, x in full.items()})
                for place in range(unroll)
            ]

        def vectors(start: Integer, stop: Integer, unroll: int) -> None:
            with k.loop(start, stop, unroll * k.v) as at:
                for place, result in enumerate(step(at, unroll, k.load)):
                    k.store(result, a.y, at + place * k.v)

        start = item * a.span
        size = k.minimum(a.span, a.size - start)
        unrolled = start + size // (UNROLL * k.v) * (UNROLL * k.v)
        whole, stop = start + size // k.v * k.v, start + size
        vectors(start, unrolled, UNROLL)
        vectors(unrolled, whole, 1)
        if target.has_masks:
            with k.loop(whole, stop, k.v):  # at most once
                mask = k.mask(0, stop - whole)
                k.store(step(whole, 1, lambda x, at: k.load(x, at, mask))[0], a.y, whole, mask)
        else:
            with k.loop(whole, stop) as at:
                result = step(at, 1, lambda x, at: k.broadcast(k.load_scalar(x, at)))[0]
                k.store_scalar(k.extract(result, 0), a.y, at)
    return k.finish()
