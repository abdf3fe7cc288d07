"""Choices by measurement: of the ways to compute a layer, which is the fastest on this machine.

Every distinct convolution of a plan is timed alone in all ways that are estimated to be near the best, and then every
run of layers that may be computed in strips, cut as different estimates would. What was found is stored
(`runtime.store`) under the machine, the versions and the layers; what is stored is never measured again, so that a
network once tuned always gets the same plan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from convwright.codegen.jit import sources_hash
from convwright.model import timing
from convwright.model.builder import Builder
from convwright.model.fuse import Layer
from convwright.model.lower import conv, strips
from convwright.model.lower.ways import name_of, ways
from convwright.model.problem import OPERATORS, Problem, problem_of
from convwright.runtime import store
from convwright.runtime.machine import describe

_REVISION = 1
"""Of what is measured and how: what was stored under another revision is not used."""

_NEAR = 2.5  # times the least estimate: what is estimated to be slower is not measured
_MOST = 6  # ways that are measured
_MARGIN = 0.97  # of the estimates' choice's time: nothing is taken for a gain as small as the measurement's error
_FAR = (0.0, 0.03, 0.3, 1.0)  # cycles a byte between layers: how strips are cut besides, `strips._FAR_CYCLES` is 0.1

Progress = Callable[[str, float], None]
"""Told what is being measured, and which share of all is done."""

Part = tuple[Problem, tuple[tuple[Any, ...], ...]]
"""A layer: its problem and its epilogue."""


@dataclass(frozen=True, slots=True)
class _Question:
    """Something to be measured: the parts that it is about, what there is to choose from, and how to find out."""

    parts: tuple[Part, ...]
    options: tuple[str, ...]
    ask: Callable[[], Mapping[str, float]]

    def told(self) -> str:
        """For the progress bar: "3x3, 64 to 64 channels of 56x56"."""
        p = self.parts[0][0]
        kernel, size = ("x".join(map(str, sizes)) for sizes in (p.spec.kernel, p.size))
        what = f"{kernel}, {p.spec.in_channels} to {p.spec.out_channels} channels of {size}"
        return f"timing {what}" if len(self.parts) == 1 else f"timing {len(self.parts)} layers from {what} on"


class Tuner:
    """The measured choices of one model; a `plan.Tuning`."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._found: dict[Hashable, Mapping[str, float]] = {}  # seconds by option; also where there is no store

    def settle(self, b: Builder) -> None:
        """How each convolution is computed."""
        parts: dict[int, Part] = {}
        questions: dict[Part, _Question] = {}
        for layer in b.layers:
            if layer.op not in OPERATORS or not conv.can_lower(b, layer):
                continue
            p = problem_of(b, layer)
            if p.algorithm == "auto":
                part = parts[id(layer)] = p, layer.epilogue
                names = tuple(candidates(p))
                ask = functools.partial(measured, b, layer, p, names)
                questions.setdefault(part, _Question((part,), names, ask))
        self._answer(list(questions.values()))
        for layer in b.layers:
            if id(layer) in parts:
                seconds = self._found[(parts[id(layer)],)]
                b.problems[id(layer)] = replace(parts[id(layer)][0], algorithm=choice(seconds))
                b.measured[id(layer)] = seconds

    def settle_strips(self, b: Builder, runs: list[list[Layer]]) -> None:
        """Where each run of layers is cut."""
        questions: dict[str, _Question] = {}
        for run in runs:
            parts = tuple((problem_of(b, layer), layer.epilogue) for layer in run)
            cuts = {"+".join(map(str, lengths)): lengths for lengths in cuts_of(b, run)}
            ask = functools.partial(measured_strips, b, run, cuts)
            questions[run[-1].output] = _Question(parts, tuple(cuts), ask)
        self._answer(list(questions.values()))
        for output, question in questions.items():
            seconds = self._found[question.parts]
            taken = choice(seconds)
            b.cuts[output] = tuple(int(length) for length in taken.split("+"))
            b.measured_cuts[output] = {taken: seconds[taken], **seconds}

    def _answer(self, questions: Sequence[_Question]) -> None:
        """Find the seconds of every option of every question."""
        open_ones: dict[Hashable, _Question] = {}
        for question in questions:
            if question.parts in self._found or question.parts in open_ones:
                continue
            known: Mapping[str, float] | None = dict.fromkeys(question.options, 0.0)
            if len(question.options) > 1:
                known = _checked(store.recall(_KIND, _stored_key(question.parts)), question.options)
            if known is None:
                open_ones[question.parts] = question
            else:
                self._found[question.parts] = known
        for number, question in enumerate(open_ones.values()):
            if self._progress is not None:
                self._progress(question.told(), number / len(open_ones))
            seconds = question.ask()
            # Another process may have been faster, and then it has the say.
            agreed = store.agree(_KIND, _stored_key(question.parts), dict(seconds))
            self._found[question.parts] = _checked(agreed, question.options) or seconds
        if self._progress is not None and open_ones:
            self._progress("tuned", 1.0)


def candidates(p: Problem) -> list[str]:
    """The ways that are worth measuring, what is taken without measuring first."""
    estimates = ways(p)
    first = name_of(conv.algorithm_of(p), p)
    near = [name for name, cycles in estimates.items() if name != first and cycles <= _NEAR * min(estimates.values())]
    return [first, *near[: _MOST - 1]]


def cuts_of(b: Builder, run: Sequence[Layer]) -> list[tuple[int, ...]]:
    """The ways to cut a run that are worth measuring, what is taken without measuring first."""
    return list(
        dict.fromkeys([strips.lengths(b, run), (1,) * len(run), *(strips.lengths(b, run, far) for far in _FAR)])
    )


def choice(seconds: Mapping[str, float]) -> str:
    """The fastest; the first, which is the estimates' choice, unless something is faster by more than the noise."""
    first, best = next(iter(seconds)), min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] < _MARGIN * seconds[first] else first


# -- measuring ---------------------------------------------------------------------------------------------------------


def measured(b: Builder, layer: Layer, p: Problem, names: Sequence[str]) -> dict[str, float]:
    """Median seconds of the layer alone, computed in each of these ways."""
    seconds = timing.race(b, [timing.Entry((layer,), (name,)) for name in names])
    return dict(zip(names, seconds, strict=True))


def measured_strips(b: Builder, run: Sequence[Layer], cuts: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Median seconds of the run alone, cut in each of these ways."""
    algorithms = tuple(name_of(conv.algorithm_of(p), p) for p in (problem_of(b, layer) for layer in run))
    seconds = timing.race(b, [timing.Entry(tuple(run), algorithms, lengths) for lengths in cuts.values()])
    return dict(zip(cuts, seconds, strict=True))


# -- what is stored ----------------------------------------------------------------------------------------------------

_KIND = "choices"


def _stored_key(parts: Sequence[Part]) -> dict[str, Any]:
    layers = [
        {
            "spec": asdict(p.spec), "size": p.size, "batch": p.batch, "dtype": str(p.dtype), "threads": p.threads,
            "numerics": p.numerics, "plain_input": p.plain_input, "plain_output": p.plain_output,
            "residual": p.residual, "shuffle": p.shuffle, "algorithm": p.algorithm, "epilogue": repr(epilogue),
        }
        for p, epilogue in parts
    ]  # fmt: skip
    return {"revision": _REVISION, **_machine(), "layers": layers}


@functools.cache
def _machine() -> dict[str, Any]:
    told = describe()
    names = ("cpu", "isa", "cores", "l1d_bytes", "l2_bytes", "l3_bytes", "convwright", "llvm")
    return {name: told[name] for name in names} | {"sources": sources_hash().hex()}


def _checked(value: Any, options: Sequence[str]) -> dict[str, float] | None:
    """Stored seconds, in the order of the options that they have to be of; None where they are not."""
    if not isinstance(value, dict) or set(value) != set(options):
        return None
    if not all(isinstance(seconds, float) and 0 < seconds < 1e3 for seconds in value.values()):
        return None
    return {name: value[name] for name in options}
