"""Stored choices: a plan made from them is the plan made anew, and what does not fit is not used."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import convwright as cw
from convwright.codegen import cache
from convwright.graph import Graph
from convwright.model import choices, model, tiles
from convwright.model.builder import Builder, Step
from convwright.model.lower import conv, strips, winograd, winograd_cut
from convwright.model.plan import make_plan
from convwright.model.values import Ref
from convwright.runtime.machine import Caches


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own cache directory, kernels apart from it in memory."""
    monkeypatch.setenv("CONVWRIGHT_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "objects"
    forget()


def forget() -> None:
    """Be a new process as far as choices are concerned."""
    for function in (conv._row_of, winograd_cut.cut, tiles.choose_tile, strips._cycles, choices._machine):
        function.cache_clear()


def tables_in(directory: Path) -> list[Path]:
    """Those of the cache's entries that are tables."""
    return [path for path in directory.glob("*.o") if b"_row_of" in path.read_bytes()]


class Tables:
    """The tables that a process reads and writes; kernels are compiled without the cache."""

    def __init__(self) -> None:
        self.read: list[bool] = []
        self.written: list[bytes] = []
        self.content: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> cache.Entry | None:
        self.read.append(key in self.content)
        return cache.Entry(self.content[key], bytes(32)) if key in self.content else None

    def put(self, key: bytes, payload: bytes, _: bytes) -> None:
        self.written.append(key)
        self.content[key] = payload


def planned(graph: Graph, *shapes: tuple[int, ...], **options: Any) -> list[Step]:
    """The steps of the last plan of a model that a new process makes for these input shapes."""
    made: list[Builder] = []

    def recorded(*arguments: Any) -> Builder:
        made.append(make_plan(*arguments))
        return made[-1]

    forget()
    with patch.object(model, "make_plan", recorded), cw.compile(graph, **options) as compiled:
        for shape in shapes:
            compiled.prepare(shape)
    return made[-1].steps


def told(step: Step) -> Any:
    """All that a step is, with what it points to."""
    arguments = {name: told_ref(value) if isinstance(value, Ref) else value for name, value in step.arguments.items()}
    touches = [(buffer.kind, buffer.place, buffer.nbytes, *rest) for buffer, *rest in step.touches]
    layer = step.layer.output if step.layer else ""
    calls = [told(call) for call in step.calls]
    return layer, step.name, step.family, step.tile, arguments, step.items, touches, step.why, step.macs, calls


def told_ref(ref: Ref) -> Any:
    buffer = ref.buffer
    content = None if buffer.array is None else buffer.array.tobytes()
    return buffer.kind, buffer.index, buffer.place, buffer.nbytes, ref.nbytes, content


def no_estimates() -> AbstractContextManager[Any]:
    """Whoever looks for a choice in here fails."""
    stack = ExitStack()
    for owner, name in ((conv, "choose"), (winograd_cut, "cut_of"), (tiles, "step_cycles"), (strips, "_strip_cycles")):
        stack.enter_context(patch.object(owner, name, side_effect=AssertionError(f"{name} was asked")))
    return stack


@pytest.fixture
def tables() -> Iterator[Tables]:
    """Tables that lie in memory."""
    own = Tables()
    with patch.object(choices, "object_cache", lambda: own):
        yield own


NETWORKS: dict[str, Callable[[], Graph]] = {
    "mobilenet_v2": lambda: cw.networks.mobilenet_v2(width=0.5, classes=10, size=64),
    "shufflenet_v1_g3": lambda: cw.networks.shufflenet_v1_g3(width=0.5, classes=10, size=64),
    "squeezenet1_1": lambda: cw.networks.squeezenet1_1(classes=10, size=64),
    "mixnet_s": lambda: cw.networks.mixnet_s(width=0.5, classes=10, size=64),
}
SHAPE = (1, 3, 64, 64)


def small() -> Graph:
    return NETWORKS["squeezenet1_1"]()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_plan_from_stored_choices_is_the_plan_made_anew(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = NETWORKS[name]()
    with monkeypatch.context() as context:
        context.setenv("CONVWRIGHT_CACHE", "off")
        anew = planned(graph, SHAPE, threads=threads)
    storing = planned(graph, SHAPE, threads=threads)
    with no_estimates():
        from_stored = planned(graph, SHAPE, threads=threads)
    assert len(anew) > 20
    assert [told(step) for step in storing] == [told(step) for step in anew]
    assert [told(step) for step in from_stored] == [told(step) for step in anew]


def test_results_are_the_same_to_the_last_bit() -> None:
    x = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    results = []
    for _ in range(2):
        forget()
        with cw.compile(NETWORKS["mobilenet_v2"](), threads=2) as compiled:
            results.append(compiled(x))
    assert results[0].tobytes() == results[1].tobytes()


def test_a_report_from_stored_choices_names_runners_up() -> None:
    def told_by_report() -> list[tuple[str, str]]:
        forget()
        with cw.compile(small(), threads=1) as compiled:
            return [(step.kernel, step.runner_up) for step in compiled.explain(runs=1).steps]

    assert told_by_report() == told_by_report()


@pytest.mark.parametrize(
    "other",
    [
        lambda: patch.object(choices, "sources_hash", lambda rooms: b"changed"),
        lambda: patch("convwright.__version__", "0.0.0"),
        lambda: patch("platform.python_version", lambda: "3.99"),
        lambda: patch.object(choices, "caches", lambda: Caches(1 << 14, 1 << 18, 1 << 22)),
        lambda: patch.object(choices, "multiply_adds_a_cycle", lambda target: 3),
    ],
)
def test_another_machine_version_or_source_does_not_use_them(
    other: Callable[[], AbstractContextManager[Any]], tables: Tables
) -> None:
    planned(small(), SHAPE, threads=1)
    with other():
        planned(small(), SHAPE, threads=1)
    planned(small(), SHAPE, threads=1)
    assert tables.read == [False, False, True]
    assert len(set(tables.written)) == 2


def test_other_settings_sizes_and_networks_have_their_own(tables: Tables) -> None:
    wider = NETWORKS["mobilenet_v2"](), cw.networks.mobilenet_v2(width=0.25, classes=10, size=64)
    calls: list[tuple[Graph, tuple[int, ...], dict[str, Any]]] = [
        (small(), SHAPE, {"threads": 1}),
        (small(), SHAPE, {"threads": 2}),
        (small(), SHAPE, {"threads": 1, "numerics": "strict"}),
        (small(), SHAPE, {"threads": 1, "strips": False}),
        (small(), (2, 3, 64, 64), {"threads": 1}),
        (wider[0], SHAPE, {"threads": 1}),
        (wider[1], SHAPE, {"threads": 1}),
    ]
    for graph, shape, options in calls:
        planned(graph, shape, **options)
    assert not any(tables.read)
    assert len(set(tables.written)) == len(calls)


def test_what_is_damaged_is_planned_anew_and_stored_again(directory: Path) -> None:
    anew = [told(step) for step in planned(small(), SHAPE, threads=1)]
    (path,) = tables_in(directory)
    content = path.read_bytes()
    for damaged in (content[:-1], content[:200], b"", content[:-20] + bytes(20)):
        path.write_bytes(damaged)
        assert [told(step) for step in planned(small(), SHAPE, threads=1)] == anew
        assert path.read_bytes() == content
    path.unlink()
    path.symlink_to("/dev/null")
    assert [told(step) for step in planned(small(), SHAPE, threads=1)] == anew
    assert path.read_bytes() == content


@pytest.mark.parametrize("foreign", [b"", b"not a pickle", pickle.dumps([1, 2]), b"cno_such_module\nthing\n."])
def test_what_is_no_table_is_planned_anew_and_stored_again(foreign: bytes, tables: Tables) -> None:
    anew = [told(step) for step in planned(small(), SHAPE, threads=1)]
    ((key, content),) = tables.content.items()
    tables.content[key] = foreign
    assert [told(step) for step in planned(small(), SHAPE, threads=1)] == anew
    assert tables.content[key] == content


def test_a_table_that_lacks_answers_is_completed(tables: Tables) -> None:
    anew = [told(step) for step in planned(small(), SHAPE, threads=1)]
    ((key, content),) = tables.content.items()
    table = pickle.loads(content)
    tables.content[key] = pickle.dumps(dict(list(table.items())[::2]))
    assert [told(step) for step in planned(small(), SHAPE, threads=1)] == anew
    assert pickle.loads(tables.content[key]) == table
    written = len(tables.written)
    planned(small(), SHAPE, threads=1)
    assert len(tables.written) == written


def test_nothing_is_stored_where_the_cache_is_off_or_choices_are_measured(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setenv("CONVWRIGHT_CACHE", "off")
        planned(small(), SHAPE, threads=1)
    assert not tables_in(directory)
    with patch.object(choices, "stored", side_effect=AssertionError("asked for stored choices")):
        planned(cw.networks.squeezenet1_1(classes=3, size=32, seed=1), (1, 3, 32, 32), threads=1, tune=True)
    assert not tables_in(directory)
    planned(small(), SHAPE, threads=1)
    assert len(tables_in(directory)) == 1


def test_few_layers_and_ever_other_shapes_are_not_stored(tables: Tables) -> None:
    x, w = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    cw.conv(x, w, padding=1)
    assert (tables.read, tables.written) == ([], [])
    with patch.object(model, "_REMEMBERED_PLANS", 3):
        planned(small(), *((batch, *SHAPE[1:]) for batch in range(1, 6)), threads=1)
    assert len(tables.written) == 3


def test_a_plan_that_fails_leaves_no_table_behind(tables: Tables) -> None:
    with (
        patch.object(winograd_cut, "cut", side_effect=MemoryError),
        patch.object(conv, "choose", lambda *_: winograd.ROW),
        pytest.raises(MemoryError),
    ):
        planned(small(), SHAPE, threads=1)
    assert not tables.written
    assert choices._table.asked is None
