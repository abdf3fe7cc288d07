"""What a model's layers cost: measured times, and how near each step comes to the machine's limits.

The limit of a step is the larger of its multiply-adds over the FMA ceiling and its bytes over the memory bandwidth (the
roofline of Williams, Waterman and Patterson, CACM 52(4), 2009). Bytes are those of the tensors a step reads and writes,
weights not included: a step whose tensors stay in a cache can exceed 100 %.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of an inference.

    ``layer``: the layer it belongs to; ``op``: its operator; ``seconds``: median; ``macs``: multiply-accumulates;
    ``share_of_limit``: the machine's least time for the step over the measured one, None where nothing bounds it;
    ``runner_up``: the best of the ways to compute a convolution that were not taken, with its time as a multiple of
    what was, estimated or measured; "" where there is no other, or none was asked for.
    """

    layer: str
    op: str
    kernel: str
    why: str
    seconds: float
    macs: int
    nbytes: int
    share_of_limit: float | None
    runner_up: str = ""

    @property
    def gflops(self) -> float:
        """2 x MACs a second, in 10**9."""
        return 2e-9 * self.macs / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """The steps of an inference in order; printing it shows a table."""

    title: str
    threads: int
    steps: tuple[StepReport, ...]
    whole_seconds: float
    ceilings: tuple[float, float] | None = None

    @property
    def macs(self) -> int:
        return sum(step.macs for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "threads": self.threads,
            "seconds": self.whole_seconds,
            "macs": self.macs,
            "fma_flops_per_second": self.ceilings[0] if self.ceilings else None,
            "read_bytes_per_second": self.ceilings[1] if self.ceilings else None,
            "steps": [asdict(step) | {"gflops": step.gflops} for step in self.steps],
        }

    def table(self, explain: bool = False) -> Table:
        total = sum(step.seconds for step in self.steps) or 1.0
        caption = f"{self.whole_seconds * 1e3:.2f} ms an inference on {self.threads} threads, {self.macs:,} MACs"
        if self.ceilings:
            caption += f"; limits: {self.ceilings[0] / 1e9:.0f} GFLOP/s, {self.ceilings[1] / 1e9:.0f} GB/s"
        table = Table(title=self.title, caption=caption)
        for heading in ("layer", "kernel", *(["why", "runner-up"] if explain else [])):
            table.add_column(heading, overflow="ellipsis", no_wrap=True)
        for heading, width in (("µs", 8), ("time", 5), ("MMACs", 8), ("GFLOP/s", 7), ("of limit", 8)):
            table.add_column(heading, justify="right", no_wrap=True, min_width=width)
        for step in self.steps:
            why = [step.why, step.runner_up] if explain else []
            table.add_row(
                step.layer or step.op, step.kernel, *why, f"{step.seconds * 1e6:.1f}", f"{step.seconds / total:.1%}",
                f"{step.macs / 1e6:.2f}" if step.macs else "", f"{step.gflops:.0f}" if step.macs else "",
                "" if step.share_of_limit is None else f"{step.share_of_limit:.0%}",
            )  # fmt: skip
        return table


class Profile(Report):
    """What ``Model.profile`` returns: the measured time of every step."""

    def __str__(self) -> str:
        return render(self.table())


class Explanation(Report):
    """What ``Model.explain`` returns: every step's kernel, why it was chosen, what else could have been, its time, its
    share of the limit."""

    def __str__(self) -> str:
        return render(self.table(explain=True))


def render(table: RenderableType) -> str:
    """The table as text: as wide as the terminal, or as it needs to be where there is none."""
    text = StringIO()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    Console(file=text, width=max(width, 100), force_terminal=False).print(table)
    return text.getvalue()


def share_of_limit(macs: int, nbytes: int, seconds: float, ceilings: tuple[float, float] | None) -> float | None:
    if ceilings is None or seconds <= 0:
        return None
    return max(2 * macs / ceilings[0], nbytes / ceilings[1]) / seconds


def median(rows: Sequence[Sequence[float]]) -> list[float]:
    """The median of each column."""
    return [sorted(column)[len(column) // 2] for column in zip(*rows, strict=True)]
