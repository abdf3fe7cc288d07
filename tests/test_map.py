"""`Model.map`: order, laziness, errors in their place, and nothing left behind."""

from __future__ import annotations

import itertools
import os
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import convwright as cw
from convwright.runtime import team as teams
from convwright.runtime.machine import cores
from convwright.runtime.team import Team, Turn

from .graph_models import Array, model, node, read, weights


@pytest.fixture(autouse=True, scope="module")
def no_work_is_too_small() -> Iterator[None]:
    """These networks would run on one thread; the tests want the team."""
    with patch("convwright.model.plan._small", lambda steps: False):
        yield


def network(threads: int | None = None, seed: int = 1) -> cw.Model:
    constants = {"w": weights(20, 3, 3, 3, seed=seed), "v": weights(7, 20, 1, 1, seed=seed + 1)}
    nodes = [
        node("Conv", "x w", "a", pads=[1] * 4),
        node("Relu", "a", "b"),
        node("Conv", "b v", "y"),
    ]
    return cw.compile(read(model(nodes, {"x": ["n", 3, "h", "w"]}, constants)), threads=threads)


def two_inputs() -> cw.Model:
    shape = [1, 4, 6, 6]
    nodes = [node("Sub", "p q", "d"), node("Relu", "d", "r")]
    return cw.compile(read(model(nodes, {"p": shape, "q": shape}, outputs=("d", "r"))))


def image(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def workers_alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("convwright-map")]


@pytest.mark.parametrize("workers", [None, 1, 2, 64])
def test_results_come_in_order_and_are_those_of_one_thread(workers: int | None) -> None:
    shapes = [(1, 3, 9, 9), (2, 3, 5, 17), (1, 3, 40, 33), (1, 3, 1, 1)]
    items = [image(*shapes[number % len(shapes)], seed=number) for number in range(23)]
    alone = network(threads=1)
    net = network()
    found = list(net.map(items, workers=workers))
    assert len(found) == len(items)
    for item, result in zip(items, found, strict=True):
        np.testing.assert_array_equal(result, alone(item))
        np.testing.assert_allclose(result, net(item), rtol=1e-5, atol=1e-5)
    assert not workers_alive()


def test_items_are_arrays_tuples_or_dicts() -> None:
    net = two_inputs()
    p, q = image(1, 4, 6, 6), image(1, 4, 6, 6, seed=1)
    for result in net.map([(p, q), {"q": q, "p": p}]):
        assert list(result) == ["d", "r"]
        np.testing.assert_array_equal(result["d"], p - q)
        np.testing.assert_array_equal(result["r"], np.maximum(p - q, 0))
    assert list(net.map([])) == []


def test_an_endless_iterable_is_read_only_a_little_ahead() -> None:
    net = network()
    taken = itertools.count()
    read_so_far = 0

    def endless() -> Iterator[Array]:
        nonlocal read_so_far
        for number in taken:
            read_so_far = number + 1
            yield image(1, 3, 8, 8, seed=number)

    results = net.map(endless(), workers=2)
    assert read_so_far == 0
    for number in range(10):
        np.testing.assert_allclose(next(results), net(image(1, 3, 8, 8, seed=number)), rtol=1e-5, atol=1e-5)
        assert number < read_so_far <= number + 4
    results.close()  # type: ignore[attr-defined]  # a generator
    assert not workers_alive()


def test_a_dropped_iterator_leaves_nothing_running() -> None:
    net = network()
    results = net.map(image(1, 3, 8, 8) for _ in itertools.count())
    next(results)
    del results
    assert not workers_alive()


def test_errors_arrive_in_their_place() -> None:
    net = network()
    good, bad = image(1, 3, 8, 8), image(1, 4, 8, 8)
    results = net.map([good, good, bad, good])
    next(results), next(results)
    with pytest.raises(cw.ConvwrightError):
        next(results)
    assert list(results) == []  # the iteration is over

    def breaks() -> Iterator[Array]:
        yield good
        yield good
        raise OSError("the camera is gone")

    results = net.map(breaks())
    next(results), next(results)
    with pytest.raises(OSError, match="the camera is gone"):
        next(results)
    assert not workers_alive()
    np.testing.assert_array_equal(next(net.map([good])), network(threads=1)(good))  # and the model lives on


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_bad_numbers_of_workers(workers: Any) -> None:
    with pytest.raises(cw.ConvwrightError, match=f"workers must be a positive integer, not {workers!r}"):
        network().map([], workers=workers)


def test_a_closed_model_says_so() -> None:
    net = network()
    results = net.map(itertools.repeat(image(1, 3, 8, 8)))
    next(results)
    net.close()
    with pytest.raises(cw.ConvwrightError, match="closed"):
        list(results)
    assert net.memory()["arena"] == 0
    with pytest.raises(cw.ConvwrightError, match="closed"):
        net.map([])


def test_weights_are_held_once_and_a_second_map_plans_nothing() -> None:
    net, item = network(threads=1), image(1, 3, 8, 8)
    net(item)
    before = net.memory()["weights"]
    list(net.map([item] * 8, workers=2))
    assert net.memory()["weights"] == before
    with patch("convwright.model.model.make_plan", side_effect=AssertionError("planned again")):
        list(net.map([item], workers=1))
    net.forget_plans()
    np.testing.assert_array_equal(next(net.map([item])), net(item))


def test_a_pickled_model_maps() -> None:
    net, item = network(), image(1, 3, 8, 8)
    expected = list(net.map([item]))
    copy = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(list(copy.map([item])), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that forking beside other threads is risky is the point
def test_a_forked_child_starts_anew() -> None:
    net, item = network(), image(1, 3, 8, 8)
    results = net.map(itertools.repeat(item))
    expected = next(results)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fresh = list(net.map([item] * 5))
            right = all(np.array_equal(result, expected) for result in fresh)
            try:
                next(results)
            except cw.ConvwrightError as error:
                code = 0 if right and "forked" in str(error) else 3
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended[0] == child, "the child hangs"
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    np.testing.assert_array_equal(next(results), expected)  # the parent goes on


def test_calls_and_maps_of_two_models_at_once_are_right_and_never_on_more_threads_than_cores() -> None:
    first, second = network(seed=1), network(threads=1, seed=5)
    items = [image(1, 3, 16, 16, seed=number) for number in range(6)]
    expected = {net: [net(item) for item in items] for net in (first, second)}
    most, running, lock = 0, 0, threading.Lock()
    wrong: list[str] = []
    real = Team.run

    def counted(team: Team, *job: Any) -> None:
        nonlocal most, running
        with lock:
            running += team.threads
            most = max(most, running)
        real(team, *job)
        with lock:
            running -= team.threads

    def call(net: cw.Model, until: float) -> None:
        while time.monotonic() < until:
            for item, right in zip(items, expected[net], strict=True):
                if not np.array_equal(net(item), right):
                    wrong.append("call")

    def stream(net: cw.Model, until: float) -> None:
        while time.monotonic() < until:
            for result, right in zip(net.map(items, workers=2), expected[net], strict=True):
                if not np.allclose(result, right, rtol=1e-5, atol=1e-5):
                    wrong.append("map")

    with patch.object(Team, "run", counted):
        until = time.monotonic() + 2
        callers = [threading.Thread(target=do, args=(net, until)) for net in (first, second) for do in (call, stream)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert wrong == []
    assert 0 < most <= cores()
    assert teams._cores.free == teams._cores.count


def test_cores_are_lent_in_order_and_nobody_is_passed_over() -> None:
    with patch.object(teams, "_cores", teams._Cores()):
        lender = teams._cores
        lender.count = lender.free = 4
        order: list[int] = []

        def use(threads: int) -> None:
            with Turn(threads):
                order.append(threads)

        with Turn(3):
            waiting = []
            for number, threads in enumerate((4, 1, 2)):  # 1 would fit, but 4 came before
                waiting.append(threading.Thread(target=use, args=(threads,)))
                waiting[-1].start()
                deadline = time.monotonic() + 10
                while len(lender._waiting) <= number and time.monotonic() < deadline:
                    time.sleep(0.001)
            assert order == []
        for thread in waiting:
            thread.join(10)
        assert order[0] == 4
        assert sorted(order) == [1, 2, 4]
        assert lender.free == 4
