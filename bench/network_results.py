"""What bench/networks.py measures of a network, and how runs of parts are joined."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from convwright.cli.race import Row
from convwright.files import replacing

OURS = "convwright"


@dataclass(slots=True)
class Race:
    """One network on all runtimes, in turns, on one number of threads.

    - `seconds`: how long was timed, all runtimes together.
    - `others`: cores that other processes kept busy meanwhile.
    - `rows`: a row a runtime.
    """

    threads: int
    seconds: float
    others: float = 0.0
    rows: list[Row] = field(default_factory=list)

    def row(self, peer: str) -> Row | None:
        return next((row for row in self.rows if row.peer == peer and row.reason is None), None)

    @property
    def best(self) -> Row | None:
        """The fastest peer: the one that leaves us the least ratio."""
        peers = [row for row in self.rows if row.peer != OURS and row.ratio is not None and row.reason is None]
        return min(peers, key=lambda row: row.ratio or 0.0) if peers else None

    @property
    def ratio(self) -> float | None:
        """The best peer's time over ours."""
        return None if self.best is None else self.best.ratio


@dataclass(slots=True)
class Result:
    """What was measured of one network; times in seconds, memory in bytes.

    - `when`, `machine`: of the measurement, or the last of those that were joined.
    - `races`: one for each number of threads.
    - `scaling`: by the number of threads, convwright's time and how many times as fast as on one thread that is, the
      median over the rounds of one race.
    - `cold`, `warm`: the first answer with an empty and with a full cache, as bench/first_answer.py tells it.
    - `errors`: by numerics, then by input shape, the deviation from float64, or why there is none.
    - `failed`: why a part has no figures.
    """

    name: str
    when: str = ""
    machine: str = ""
    races: list[Race] = field(default_factory=list)
    scaling: dict[int, tuple[float, float]] = field(default_factory=dict)
    cold: dict[str, float] = field(default_factory=dict)
    warm: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, float | str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("name", "when", "machine", "cold", "warm", "errors", "failed")}
        scaling = {str(threads): figures for threads, figures in self.scaling.items()}
        races = [
            {"threads": race.threads, "seconds": race.seconds, "others": race.others}
            | {"rows": [row.to_dict() for row in race.rows]}
            for race in self.races
        ]
        return plain | {"scaling": scaling, "races": races}

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Result":
        """What `to_dict` wrote."""
        races = [Race(**{**race, "rows": [Row(**row) for row in race["rows"]]}) for race in entry["races"]]
        scaling = {int(threads): (seconds, times) for threads, (seconds, times) in entry["scaling"].items()}
        return cls(**{**entry, "races": races, "scaling": scaling})

    def race(self, threads: int) -> Race | None:
        return next((race for race in self.races if race.threads == threads), None)

    def take(self, later: "Result") -> None:
        """What a later run measured, in place of the same part of this one."""
        races = {race.threads: race for race in [*self.races, *later.races]}
        self.races = [races[threads] for threads in sorted(races)]
        for part in "scaling", "cold", "warm", "errors":
            if getattr(later, part):
                setattr(self, part, getattr(later, part))
        measured = {"speed": later.races, "scaling": later.scaling, "first": later.warm, "accuracy": later.errors}
        self.failed = {part: why for part, why in self.failed.items() if not measured.get(part)} | later.failed
        self.when, self.machine = max(self.when, later.when), later.machine or self.machine


def written(results: Iterable[Result], path: Path) -> None:
    """Write them for `joined`, whole or not at all: the file is written anew after every network."""
    text = json.dumps([result.to_dict() for result in results], indent=1) + "\n"
    with replacing(path.resolve()) as file:
        file.write(text.encode())


def joined(paths: Sequence[Path]) -> list[Result]:
    """The networks of earlier runs by name; what a later file has of a network replaces an earlier one's part."""
    found: dict[str, Result] = {}
    for path in paths:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            result = Result.of(entry)
            if result.name in found:
                found[result.name].take(result)
            else:
                found[result.name] = result
    return [found[name] for name in sorted(found)]


def thread_counts(results: Iterable[Result]) -> list[int]:
    """The numbers of threads of any race."""
    return sorted({race.threads for result in results for race in result.races})


def races_on(results: Iterable[Result], threads: int) -> dict[str, Race]:
    """The races on this many threads that convwright finished, by network."""
    races = {result.name: race for result in results if (race := result.race(threads)) is not None}
    return {name: race for name, race in races.items() if race.row(OURS) is not None}


def peers_of(results: Iterable[Result]) -> list[str]:
    """Every runtime beside ours that took part or was to, in order."""
    return list(dict.fromkeys(row.peer for r in results for race in r.races for row in race.rows if row.peer != OURS))


def mean(ratios: Iterable[float | None]) -> float | None:
    """The geometric mean of those that there are.

    >>> mean([2.0, None, 8.0])
    4.0
    """
    known = [ratio for ratio in ratios if ratio]
    return geometric_mean(known) if known else None
