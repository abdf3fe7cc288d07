"""Where a team's threads may run."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from convwright.runtime.placing import Placing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are placed on Linux alone")


@pytest.fixture
def thread() -> Iterator[threading.Thread]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield thread
    done.set()
    thread.join()


def placing_of(thread: threading.Thread, copies: int = 1) -> Placing:
    assert thread.ident is not None
    return Placing([ctypes.c_ulong(thread.ident)] * copies)


def cores_of(thread: threading.Thread) -> set[int]:
    assert thread.native_id is not None
    return os.sched_getaffinity(thread.native_id)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_threads_keep_off_the_core_of_their_caller(thread: threading.Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, placing = os.sched_getaffinity(0), placing_of(thread)
    for home in (*allowed, *allowed):
        monkeypatch.setattr(placing, "_get_core", lambda home=home: home)
        placing.leave_caller_alone()
        assert cores_of(thread) == allowed - {home}
        placing.leave_caller_alone()
        assert cores_of(thread) == allowed - {home}


def test_more_threads_than_cores_stay_where_they_are(thread: threading.Thread) -> None:
    allowed = os.sched_getaffinity(0)
    placing = placing_of(thread, len(allowed))
    placing.leave_caller_alone()
    assert cores_of(thread) == allowed


def test_where_cores_are_unknown_nothing_is_placed(thread: threading.Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "elsewhere")
    placing = placing_of(thread)
    placing.leave_caller_alone()
    assert cores_of(thread) == os.sched_getaffinity(0)
