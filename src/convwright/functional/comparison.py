"""`algorithms`: which ways there are to compute a convolution, and what each one costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from convwright.codegen.target import host_target
from convwright.errors import ConvwrightError
from convwright.functional.arrays import REAL
from convwright.functional.convolution import conv, conv_transpose
from convwright.model.lower.conv import ROWS, cost
from convwright.model.lower.ways import name_of
from convwright.model.problem import Algorithm, Problem
from convwright.model.report import render
from convwright.runtime.ceilings import cycle_seconds
from convwright.runtime.team import check_threads
from convwright.spec import ConvSpec
from convwright.spec.checks import checked_int, show

_MEASURED_SECONDS, _MOST_CALLS = 0.25, 200


@dataclass(frozen=True, slots=True)
class AlgorithmReport:
    """One algorithm for one convolution; where it does not apply, `why_not` says why and the numbers are None.

    - `name`, `variant`: the algorithm, and which of the ways that the name stands for.
    - `algorithm`: what `conv(algorithm=...)` takes to compute this convolution so.
    - `multiplications`: how many it does. `workspace_bytes`: of scratch memory beside input, weights and output.
    - `error_bound`: how far a result may be from the exact sum, as a part of the largest output.
    - `estimated_seconds`: what the choice among algorithms goes by, changes of layout included.
    - `measured_seconds`: the median of whole calls, where measuring was asked for.
    """

    name: str
    variant: str
    why_not: str | None
    algorithm: str | None = None
    multiplications: int | None = None
    workspace_bytes: int | None = None
    error_bound: float | None = None
    estimated_seconds: float | None = None
    measured_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Algorithms:
    """The algorithms for one convolution at one input size; printing it shows a table."""

    spec: ConvSpec
    input_size: tuple[int, ...]
    batch: int
    dtype: str
    threads: int
    rows: tuple[AlgorithmReport, ...]

    @property
    def chosen(self) -> AlgorithmReport:
        """The one of least estimated time, which `algorithm="auto"` takes."""
        return min((row for row in self.rows if row.why_not is None), key=lambda row: row.estimated_seconds or 0.0)

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "spec": asdict(self.spec),
            "input_size": self.input_size,
            "batch": self.batch,
            "dtype": self.dtype,
            "threads": self.threads,
            "chosen": f"{self.chosen.name} {self.chosen.variant}",
            "algorithms": [asdict(row) for row in self.rows],
        }

    def table(self) -> Table:
        sizes = "x".join(map(str, (self.batch, self.spec.in_channels, *self.input_size)))
        kernel = "x".join(map(str, self.spec.kernel))
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        table = Table(
            title=f"{self.spec.kind} {kernel}, {sizes}, {self.dtype}, {threads}",
            caption="* is what auto takes. Errors are parts of the largest output. Times include changes of layout.",
        )
        table.add_column("algorithm", no_wrap=True)
        for heading in ("multiplications", "workspace", "error", "estimated", "measured"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("why not")
        for row in self.rows:
            mark = "* " if row is self.chosen else "  "
            table.add_row(
                f"{mark}{row.name} {row.variant}",
                "" if row.multiplications is None else f"{row.multiplications:,}",
                _bytes(row.workspace_bytes),
                "" if row.error_bound is None else f"{row.error_bound:.1e}",
                seconds_text(row.estimated_seconds),
                seconds_text(row.measured_seconds),
                row.why_not or "",
            )
        return table

    def __str__(self) -> str:
        return render(self.table())


def algorithms(
    spec: ConvSpec,
    input_size: Sequence[int],
    batch: int = 1,
    *,
    dtype: Any = "float32",
    threads: int | None = None,
    measure: bool = False,
    numerics: str = "default",
    progress: Callable[[str], None] | None = None,
) -> Algorithms:
    """The ways there are to compute a convolution of NumPy arrays, with what each costs or why it does not apply.

    - `spec`: the convolution. `input_size`: one int an axis. `batch`: the number of images.
    - `dtype`: float32 or float64.
    - `threads`, `numerics`: as in `conv`.
    - `measure`: whether to time each, on random values; about a quarter of a second an algorithm.
    - `progress`: called with the name of each algorithm before it is timed.

    Estimates rest on one measurement of the machine's arithmetic, a few hundredths of a second at the first call.
    Raises `ConvwrightError` for sizes that the spec does not take.

    >>> found = algorithms(ConvSpec(16, 16, (3, 3), padding=1), (56, 56), threads=1)
    >>> direct = next(row for row in found if row.name == "direct" and row.why_not is None)
    >>> direct.multiplications
    7225344
    """
    p = problem_of(spec, input_size, batch, dtype=dtype, threads=threads, numerics=numerics)
    reasons = [(row, row.why_not(p)) for row in ROWS]
    able = [row.name for row, reason in reasons if reason is None]
    reports = []
    for row, reason in reasons:
        if reason is not None:
            reports.append(AlgorithmReport(row.name, row.variant, reason))
            continue
        wish = row.name if able.count(row.name) == 1 else name_of(row, p)
        if measure and progress is not None:
            progress(f"{row.name} {row.variant}")
        reports.append(_report(row, p, wish, measured_seconds(p, wish) if measure else None))
    return Algorithms(p.spec, p.size, p.batch, str(p.dtype), p.threads, tuple(reports))


def problem_of(
    spec: ConvSpec,
    input_size: Sequence[int],
    batch: int = 1,
    *,
    dtype: Any = "float32",
    threads: int | None = None,
    numerics: str = "default",
) -> Problem:
    """The arguments of `algorithms`, checked, as what algorithms are chosen by."""
    if not isinstance(spec, ConvSpec):
        raise ConvwrightError(f"spec must be a ConvSpec, got {show(spec)}")
    if numerics not in ("default", "strict"):
        raise ConvwrightError(f'numerics must be "default" or "strict", not {numerics!r}')
    spec.macs(input_size, batch)  # checks the sizes, and that their products do not overflow
    size = tuple(int(length) for length in input_size)
    return Problem(
        spec.resolve(size), size, checked_int("batch", batch, 1), _dtype(dtype), host_target(), check_threads(threads),
        numerics, plain_input=True, plain_output=True,
    )  # fmt: skip


def _dtype(dtype: Any) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    # None is float64 for NumPy.
    if dtype is None or kind not in REAL:
        raise ConvwrightError(f"dtype must be float32 or float64, got {show(dtype)}")
    return kind


def _report(row: Algorithm, p: Problem, algorithm: str, measured: float | None) -> AlgorithmReport:
    return AlgorithmReport(
        row.name,
        row.variant,
        None,
        algorithm,
        row.multiplications(p),
        row.workspace(p),
        float(row.error_bound(p)),
        float(cost(row, p) * cycle_seconds()),
        measured,
    )


def measured_seconds(p: Problem, algorithm: str) -> float:
    """The median time of a call by this algorithm, on random values."""
    spec, rng = p.spec, np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(p.dtype)

    x, weight = normal(p.batch, spec.in_channels, *p.size), normal(*spec.weight_shape)
    bias = normal(spec.out_channels) if spec.bias else None
    out = np.empty((p.batch, spec.out_channels, *p.out_size), p.dtype)
    options: dict[str, Any] = {
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups,
        "flip": spec.flip, "algorithm": algorithm, "out": out, "threads": p.threads, "numerics": p.numerics,
    }  # fmt: skip
    if spec.transposed:
        options["output_padding"] = spec.output_padding
    else:
        options["padding_mode"] = spec.padding_mode
    function = conv_transpose if spec.transposed else conv
    times: list[float] = []
    function(x, weight, bias, **options)
    end = time.perf_counter() + _MEASURED_SECONDS
    while len(times) < 3 or (time.perf_counter() < end and len(times) < _MOST_CALLS):
        start = time.perf_counter()
        function(x, weight, bias, **options)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def seconds_text(seconds: float | None) -> str:
    """A time with its unit; nothing for None.

    >>> seconds_text(0.0123), seconds_text(4.2e-05)
    ('12.3 ms', '42.0 µs')
    """
    if seconds is None:
        return ""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds / 1e-6:.1f} µs"


def _bytes(count: int | None) -> str:
    if not count:
        return "" if count is None else "none"
    return f"{count / 1024:,.0f} KiB"
