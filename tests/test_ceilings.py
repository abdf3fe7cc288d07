"""Measured ceilings: plausible, stored, read back, measured again; and the store under damage and many writers."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from convwright.cli import main
from convwright.codegen.target import host_target, target_named
from convwright.runtime import ceilings, store
from convwright.runtime.ceilings import Ceilings, kinds, measured
from convwright.runtime.machine import describe

FIGURES = Ceilings(1, {"f32": 1e11, "f64": 5e10}, {"l2": 1e11, "memory": 2e10}, 3e10, 4e10)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "store_path", lambda: tmp_path / "cache" / "measured.sqlite")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for measuring, and tells of how many threads it was asked."""
    asked: list[int] = []

    def measure(threads: int) -> Ceilings:
        asked.append(threads)
        return Ceilings(threads, FIGURES.operations, FIGURES.read, FIGURES.write, FIGURES.copy)

    monkeypatch.setattr(ceilings, "_measure", measure)
    return asked


def test_what_is_measured_is_plausible_and_read_back() -> None:
    found = measured(1)
    assert set(found.operations) == set(kinds(host_target()))
    assert 1e9 < found.operations["f64"] < found.operations["f32"] < 1e12
    assert set(found.read) >= {"l1", "l2", "memory"}
    for rate in (*found.read.values(), found.write, found.copy):
        assert 1e8 < rate < 1e13
    assert measured(1) == found


@pytest.mark.parametrize("name", ["avx512", "avx2", "generic"])
def test_every_target_has_a_kernel_for_each_of_its_types(name: str) -> None:
    target = target_named(name)
    for kind in kinds(target):
        assert "br label" in str(ceilings._build_products(target, kind))


def test_figures_are_measured_once(counted: list[int]) -> None:
    assert measured(1) == measured(1) == FIGURES
    assert measured(2).threads == 2
    assert counted == [1, 2]
    measured(1, remeasure=True)
    assert counted == [1, 2, 1]


def test_figures_of_another_machine_or_version_are_not_used(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(1)
    about = describe()
    for name, value in (("cpu", "another"), ("cores", 96), ("convwright", "0.0.1"), ("isa", "avx3")):
        monkeypatch.setattr(ceilings, "describe", lambda name=name, value=value: about | {name: value})
        measured(1)
    assert counted == [1] * 5


@pytest.mark.parametrize(
    "value",
    [
        [],
        "text",
        {"threads": 1},
        FIGURES.to_dict() | {"copy": "fast"},
        FIGURES.to_dict() | {"operations": {"f32": 1.0}},
        FIGURES.to_dict() | {"write": 0},
    ],
)
def test_stored_figures_that_make_no_sense_are_measured_again(counted: list[int], value: Any) -> None:
    store.remember("ceilings", ceilings._key(1), value)
    assert measured(1) == FIGURES
    assert counted == [1]


def _garbage(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _no_json(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE measured SET value = '{'")
    database.close()


def _other_table(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE measured (other TEXT)")
    database.close()


@pytest.mark.parametrize("damage", [_garbage, _cut, _no_json, _other_table])
def test_a_damaged_store_is_replaced(damage: Callable[[Path], None]) -> None:
    path = store.store_path()
    assert path is not None
    store.remember("test", {"a": 1}, [1, 2])
    assert store.recall("test", {"a": 1}) == [1, 2]
    damage(path)
    store.recall("test", {"a": 1})
    store.remember("test", {"a": 1}, [3])
    assert store.recall("test", {"a": 1}) == [3]


def test_a_store_that_cannot_be_written_is_gone_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    store.remember("test", {}, 1)
    assert store.recall("test", {}) is None


def test_no_store_where_the_cache_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("CONVWRIGHT_CACHE", "off")
    assert store.store_path() is None
    store.remember("test", {}, 1)
    assert store.recall("test", {}) is None


def _write(path: Path, process: int) -> None:
    store.store_path = lambda: path
    for number in range(20):
        store.remember("test", {"process": process, "number": number}, number)


def test_many_writers(tmp_path: Path) -> None:
    path = store.store_path()
    assert path is not None
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    for number in range(4):
        assert [store.recall("test", {"process": number, "number": n}) for n in range(20)] == list(range(20))


def test_the_command_shows_what_is_stored(counted: list[int]) -> None:
    run = CliRunner().invoke
    shown = run(main, ["machine", "--threads", "3"])
    assert shown.exit_code == 0, shown.output
    assert "f32 multiply-adds, 2 operations each" in shown.output
    assert "100.0 GOP/s" in shown.output
    assert "3 threads" in shown.output
    told = json.loads(run(main, ["machine", "--threads", "3", "--json", "--remeasure"]).output)
    assert [each["threads"] for each in told["ceilings"]] == [1, 3]
    assert told["ceilings"][0]["read"]["memory"] == 2e10
    assert counted == [1, 3, 1, 3]
