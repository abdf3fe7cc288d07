"""`algorithms`: what each way to compute a convolution costs, or why it does not apply."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np
import pytest

import convwright as cw
from convwright import functional, reference
from convwright.codegen.target import host_target
from convwright.functional.comparison import seconds_text
from convwright.model.lower.conv import ROWS, algorithm_of, cost
from convwright.model.problem import Problem
from tests.functional import normal, refused

SPECS: list[tuple[cw.ConvSpec, tuple[int, ...]]] = [
    (cw.ConvSpec(16, 32, (3, 3), padding=1), (20, 21)),
    (cw.ConvSpec(16, 16, (3, 3), stride=2, groups=4), (20, 21)),
    (cw.ConvSpec(3, 16, (7, 7), stride=2, padding=3), (40, 41)),
    (cw.ConvSpec(16, 16, (5,), padding="same", stride=3, groups=16), (40,)),
    (cw.ConvSpec(8, 8, (3, 3, 3), padding=1), (7, 8, 9)),
    (cw.ConvSpec(8, 6, (4, 4), stride=2, padding=1, transposed=True), (9, 7)),
    (cw.ConvSpec(4, 6, (3, 3), padding=2, padding_mode="circular", flip=True, bias=False), (9, 7)),
]


@pytest.mark.parametrize(("spec", "size"), SPECS, ids=[spec.kind for spec, _ in SPECS])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_row_costs_or_says_why_not(spec: cw.ConvSpec, size: tuple[int, ...], dtype: str) -> None:
    found = cw.algorithms(spec, size, 2, dtype=dtype)
    assert [(row.name, row.variant) for row in found] == [(row.name, row.variant) for row in ROWS]
    for row in found:
        numbers = (row.multiplications, row.workspace_bytes, row.error_bound, row.estimated_seconds)
        assert row.measured_seconds is None
        if row.why_not is None:
            assert all(number is not None for number in numbers)
            assert (row.multiplications or 0) > 0
            assert 0 < (row.error_bound or 0) < 1e-3
            assert 0 < (row.estimated_seconds or 0) < 10
        else:
            assert len(row.why_not.split()) > 0
            assert "\n" not in row.why_not
            assert numbers == (None,) * 4
    if not spec.transposed:
        direct = [row for row in found if row.name == "direct" and row.why_not is None]
        assert {row.multiplications for row in direct} == {spec.macs(size, 2)}
    assert found.chosen.why_not is None


@pytest.mark.parametrize(("spec", "size"), SPECS, ids=[spec.kind for spec, _ in SPECS])
def test_errors_are_within_the_stated_bounds(spec: cw.ConvSpec, size: tuple[int, ...]) -> None:
    x, weight = normal(0, 1, spec.in_channels, *size), normal(1, *spec.weight_shape)
    bias = normal(2, spec.out_channels) if spec.bias else None
    expected = reference.conv(x, weight, bias, spec)
    options: dict[str, Any] = {
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups,
        "flip": spec.flip,
    }  # fmt: skip
    if not spec.transposed:
        options["padding_mode"] = spec.padding_mode
    for row in cw.algorithms(spec, size):
        if row.why_not is None:
            function = cw.conv_transpose if spec.transposed else cw.conv
            result = function(x, weight, bias, algorithm=row.algorithm or "", **options)
            assert row.error_bound is not None
            assert np.abs(result - expected).max() <= row.error_bound * np.abs(expected).max(), row
    functional.forget()


def test_measured() -> None:
    names: list[str] = []
    found = cw.algorithms(*SPECS[0], measure=True, threads=1, progress=names.append)
    assert names == [f"{row.name} {row.variant}" for row in found if row.why_not is None]
    for row in found:
        assert (row.measured_seconds is None) == (row.why_not is not None)
        assert row.measured_seconds is None or 0 < row.measured_seconds < 1
    functional.forget()


def test_what_is_chosen_is_what_auto_takes() -> None:
    """Direct summation alone where numerics are strict."""
    spec = cw.ConvSpec(64, 64, (3, 3), padding=1)
    assert cw.algorithms(spec, (56, 56)).chosen.name == "winograd"
    assert cw.algorithms(spec, (56, 56), numerics="strict").chosen.name == "direct"


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_row_that_is_not_estimated_could_not_have_won(threads: int) -> None:
    rng, target, seen = Random(0), host_target(), 0
    while seen < 60:
        rank, groups = rng.choice((1, 2, 3)), rng.choice((1, 1, 2, 16))
        options: dict[str, Any] = {
            name: tuple(rng.choice((1, 1, 2)) for _ in range(rank)) for name in ("stride", "dilation")
        }
        kernel = tuple(rng.choice((1, 2, 3, 5)) for _ in range(rank))
        spec = cw.ConvSpec(
            groups * rng.choice((1, 3, 16, 40)), groups * rng.choice((1, 2, 16, 33)), kernel, groups=groups,
            padding=rng.choice((0, 1)), transposed=rng.random() < 0.3, **options,
        )  # fmt: skip
        size = tuple(rng.choice((9, 14, 17, 33)) for _ in range(rank))
        if rank == 3 and spec.macs(size) > 2e9:
            continue
        dtype = np.dtype(rng.choice(("float32", "float64")))
        p = Problem(spec, size, rng.choice((1, 3)), dtype, target, threads, plain_input=True, plain_output=True)
        able = [row for row in ROWS if row.why_not(p) is None]
        for row in able:
            assert row.least_cycles is None or row.least_cycles(p) <= row.cycles(p), (row.variant, p)
        assert algorithm_of(p) is min(able, key=lambda row: cost(row, p)), p
        seen += 1


def test_a_stride_through_winograd() -> None:
    spec = cw.ConvSpec(128, 128, (3, 3), stride=2, padding=1)
    found = cw.algorithms(spec, (56, 56))
    strict = cw.algorithms(spec, (56, 56), numerics="strict").chosen
    assert (found.chosen.name, strict.name) == ("winograd", "direct")
    assert found.chosen.multiplications is not None
    assert found.chosen.multiplications < 0.75 * spec.macs((56, 56))
    assert found.chosen.workspace_bytes
    assert found.chosen.error_bound is not None
    assert found.chosen.error_bound < 1.2e-5


def test_table_and_dictionary() -> None:
    found = cw.algorithms(*SPECS[0], threads=2)
    text = str(found)
    for row in found:
        assert f"{row.name} {row.variant}" in text
    assert "standard 3x3, 1x16x20x21, float32, 2 threads" in text
    assert text.count("* ") >= 1
    written = json.loads(json.dumps(found.to_dict()))
    assert len(written["algorithms"]) == len(found) == len(ROWS)
    assert written["chosen"] == f"{found.chosen.name} {found.chosen.variant}"
    assert written["spec"]["kernel"] == [3, 3]


def test_refused() -> None:
    spec = SPECS[0][0]
    refused(lambda: cw.algorithms("conv", (3, 3)), "spec must be a ConvSpec, got 'conv'")  # type: ignore[arg-type]
    refused(lambda: cw.algorithms(spec, (3,)), "(3,)")
    refused(lambda: cw.algorithms(spec, (0, 3)), "at least 1, got 0")
    refused(lambda: cw.algorithms(spec, (9, 9), 0), "batch must be at least 1, got 0")
    refused(lambda: cw.algorithms(spec, (2**40, 2**40)), "64 bits")
    refused(lambda: cw.algorithms(spec, (9, 9), dtype="int8"), "float32 or float64, got 'int8'")
    refused(lambda: cw.algorithms(spec, (9, 9), dtype="number"), "'number'")
    refused(lambda: cw.algorithms(spec, (9, 9), threads=0), "threads")
    refused(lambda: cw.algorithms(spec, (9, 9), numerics="loose"), "'loose'")


def test_times_have_units() -> None:
    assert [seconds_text(seconds) for seconds in (None, 2.0, 0.5, 1e-5)] == ["", "2.0 s", "500.0 ms", "10.0 µs"]


def test_the_terms_of_a_transposed_sum_are_the_taps_of_a_phase_over_its_input_channels() -> None:
    def bounds(spec: cw.ConvSpec) -> set[float | None]:
        return {row.error_bound for row in cw.algorithms(spec, (8, 8)) if row.algorithm in ("direct-planes", "im2col")}

    up = cw.ConvSpec(512, 2, (4, 6), stride=(2, 3), transposed=True)
    assert bounds(up) == bounds(cw.ConvSpec(512, 2, (2, 2)))
    assert len(bounds(up)) == 1
