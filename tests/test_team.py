"""The team of threads: every item once, barriers that hold, and nobody waits for a thread that sleeps.

Jobs here are chains: each step's item i reads item n - 1 - i of the step before, adds one, and counts itself. A number
that is not the number of steps shows a barrier that did not hold, a count other than one an item done twice or never.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convwright.codegen.jit import compile_kernel
from convwright.codegen.lang import Kernel
from convwright.codegen.target import host_target
from convwright.runtime.region import STEP_COLUMNS
from convwright.runtime.team import SPIN_SECONDS, Team, seconds_of_turns, spin_turns


def chain_kernel() -> Any:
    """``args``: the row before, the own row, the counts, the number of items, turns of idle work an item."""
    k = Kernel(host_target())
    before, own, counts, items, turns = k.pointer(0), k.pointer(1), k.pointer(2), k.arg(3), k.arg(4)
    with k.loop(k.begin, k.end) as item:
        spent = k.variable(0)
        with k.loop(0, turns):
            spent.set(k.opaque_int(spent.get() + 1))
        k.store_int(k.load_int(before, items - 1 - item) + 1 + spent.get() - turns, own, item)
        k.store_int(k.load_int(counts, item) + 1, counts, item)
    return k.finish()


class Job:
    """A chain of steps, and what it leaves."""

    def __init__(self, items: int, steps: int, turns: int) -> None:
        address = compile_kernel("test-team-chain", chain_kernel, host_target())
        self.rows, self.counts = np.zeros((steps + 1, items), np.int64), np.zeros((steps, items), np.int64)
        self.arguments: NDArray[np.int64] = np.array(
            [
                (self.rows[i].ctypes.data, self.rows[i + 1].ctypes.data, self.counts[i].ctypes.data, items, turns)
                for i in range(steps)
            ],
            np.int64,
        )
        self.table = np.zeros((steps, STEP_COLUMNS), np.int64)
        for i in range(steps):
            self.table[i] = address, self.arguments[i].ctypes.data, items, i + 1 < steps

    def run(self, team: Team) -> None:
        self.rows[1:], self.counts[:] = -1, 0
        with team.lock:
            team.run(self.table, 0, len(self.table))
        assert (self.rows == np.arange(len(self.rows))[:, None]).all()
        assert (self.counts == 1).all()


@pytest.fixture
def team_of_size(request: pytest.FixtureRequest) -> Any:
    team = Team(request.param)
    yield team
    team.stop()


sizes = pytest.mark.parametrize("team_of_size", [1, 2, 3, 7], indirect=True)  # more threads than cores, too


@sizes
@pytest.mark.parametrize("pause", [0.0, 0.0002])
def test_every_item_is_done_once_and_barriers_hold(team_of_size: Team, pause: float) -> None:
    """With pauses, threads fall asleep between jobs, and join while they are under way or not at all."""
    rng, jobs, until = random.Random(0), [], time.monotonic() + 0.7
    for items in (1, 2, 3, 5, 8, 40):
        jobs += [Job(items, steps, turns) for steps in (1, 2, 9) for turns in (0, 100, 3000)]
    while time.monotonic() < until:
        rng.choice(jobs).run(team_of_size)
        time.sleep(pause * rng.random())


@sizes
def test_steps_without_barriers_between_them_and_times_of_each(team_of_size: Team) -> None:
    job = Job(6, 5, 50)
    apart = np.zeros_like(job.rows[0])
    job.arguments[:, 0], job.table[:, 3] = apart.ctypes.data, 0  # no step reads another
    for _ in range(200):
        job.rows[1:], job.counts[:] = -1, 0
        with team_of_size.lock:
            team_of_size.run(job.table, 0, 5)
        assert (job.rows[1:] == 1).all()
        assert (job.counts == 1).all()
    with team_of_size.lock:
        seconds = team_of_size.run_timed(job.table, 0, 5)
    assert len(seconds) == 5
    assert all(0 < share < 10 for share in seconds)
    assert (job.counts == 2).all()


def test_teams_of_several_sizes_at_the_same_time() -> None:
    teams, until, failed = [Team(2), Team(2), Team(3)], time.monotonic() + 1.0, []

    def work(number: int) -> None:
        rng, jobs = random.Random(number), [Job(7, 4, turns) for turns in (0, 500)]
        try:
            while time.monotonic() < until:
                rng.choice(jobs).run(teams[number % len(teams)])
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for team in teams:
        team.stop()
    assert not failed


def test_a_job_is_over_though_no_other_thread_came() -> None:
    """The workers of this team have ended: whoever waited for them would wait for ever."""
    team, job = Team(3), Job(8, 6, 10)
    job.run(team)
    team.stop()
    for _ in range(100):
        job.run(team)


def test_waiting_lasts_as_long_whatever_a_pause_takes() -> None:
    spin_turns.cache_clear()
    assert SPIN_SECONDS / 3 < seconds_of_turns(spin_turns()) < 3 * SPIN_SECONDS
