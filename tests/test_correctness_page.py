"""What docs/correctness.md says of tests is so: they exist, and compare as many random specifications."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "correctness.md").read_text()
CELLS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
ROWS = [cells for cells in CELLS if cells[0] != "what" and "---" not in cells[0]]
FILES = sorted({file.strip("`") for *_, file, _ in ROWS})


def module_of(file: str) -> ModuleType:
    return importlib.import_module(file.removesuffix(".py").replace("/", "."))


def function(module: ModuleType, name: str) -> Any:
    for part in name.partition("[")[0].split("."):
        module = getattr(module, part)
    return module


def seeds_of(test: Any) -> tuple[int, int]:
    """How many seeds the marks of a test hand out on the three targets, for each value of other parameters: in the
    default run, and in the full one."""
    by_default = full = 0
    for mark in test.pytestmark:
        if mark.name == "parametrize" and "seeds" in mark.args[0]:
            for case in mark.args[1]:
                if not case.id.startswith("avx512-without"):
                    count = len(case.values[-1])
                    by_default += 0 if any(own.name == "long" for own in case.marks) else count
                    full += count
    return by_default, full


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_counts_what_its_tests_compare(row: list[str]) -> None:
    _, _, by_default, full, file, names = row
    tests = [function(module_of(file.strip("`")), name) for name in re.findall(r"`([^`]+)`", names)]
    counts = [seeds_of(test) for test in tests]
    assert all(all_of_it for _, all_of_it in counts)
    stated = tuple(int(number.replace(",", "")) for number in (by_default, full))
    assert stated == tuple(map(sum, zip(*counts, strict=True)))


@pytest.mark.parametrize("file", FILES)
def test_every_sweep_of_a_file_has_a_row(file: str) -> None:
    module = module_of(file)
    scopes = [
        ("", vars(module)),
        *((f"{name}.", vars(one)) for name, one in vars(module).items() if isinstance(one, type)),
    ]
    swept = {
        prefix + name
        for prefix, scope in scopes
        for name, test in scope.items()
        if name.startswith("test_") and hasattr(test, "pytestmark") and any(seeds_of(test))
    }
    named = {
        name.partition("[")[0]
        for *_, own, names in ROWS
        if own.strip("`") == file
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert swept == named
