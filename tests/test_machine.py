"""The machine: cores within affinity and quota, caches, and ceilings that are plausible."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from convwright.runtime import machine
from convwright.runtime.ceilings import ceilings
from convwright.runtime.machine import caches, cores, describe

linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity and cgroups")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_cores_are_those_of_the_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert cores(tmp_path) == 3


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_a_quota_limits_the_cores(tmp_path: Path, quota: str, expected: int) -> None:
    files = {"proc/self/cgroup": "0::/box/inner\n", "sys/fs/cgroup/box/inner/cpu.max": quota + "\n"}
    assert cores(write(tmp_path, files)) == expected


@pytest.mark.usefixtures("eight_cores")
def test_the_quota_of_an_outer_group_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/box/inner\n",
        "sys/fs/cgroup/box/cpu.max": "300000 100000",
        "sys/fs/cgroup/box/inner/cpu.max": "600000 100000",
    }
    assert cores(write(tmp_path, files)) == 3


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("quota", "expected"), [("200000", 2), ("-1", 8)])
def test_the_quota_of_cgroup_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    files = {
        "proc/self/cgroup": "12:memory:/box\n4:cpu,cpuacct:/box\n1:name=systemd:/a:b\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
    }
    assert cores(write(tmp_path, files)) == expected


@linux
def test_cores_here() -> None:
    assert 1 <= cores() <= len(os.sched_getaffinity(0))


@pytest.mark.usefixtures("eight_cores")
def test_caches_are_read_and_fall_back(tmp_path: Path) -> None:
    base = "sys/devices/system/cpu/cpu0/cache"
    files: dict[str, str] = {}
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "36M")]
    ):
        files |= {f"{base}/index{index}/{n}": t for n, t in (("level", level), ("type", kind), ("size", size))}
    assert caches(write(tmp_path / "full", files)) == machine.Caches(48 << 10, 2 << 20, 36 << 20)
    assert caches(tmp_path / "empty") == machine._TYPICAL
    two_levels = {name: text for name, text in files.items() if "index3" not in name}
    assert caches(write(tmp_path / "two", two_levels)).l3 == 0


def test_the_description_is_plain_data() -> None:
    told = json.loads(json.dumps(describe()))
    assert told["cores"] == cores()
    assert told["isa"] in ("avx512", "avx2", "generic")
    assert told["cpu"]
    assert told["l1d_bytes"] < told["l2_bytes"]


def test_ceilings_are_plausible_and_remembered() -> None:
    operations, read = ceilings(1)
    assert 1e9 < operations < 1e12
    assert 1e8 < read < 1e12
    assert ceilings(1) == (operations, read)
