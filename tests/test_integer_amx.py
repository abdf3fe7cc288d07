"""Integer convolutions on AMX, where no machine may have it: with tiles kept in memory, and by their assembly."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from llvmlite import ir

from convwright.codegen.jit import assembly
from convwright.codegen.lang import I32, I64, PTR, Kernel
from convwright.codegen.target import Target, target_named
from convwright.kernels import integer_amx as amx
from convwright.kernels import words
from convwright.model.lower import integer_amx as amx_lowering
from convwright.spec import ConvSpec
from tests.integers import SPECS, Case
from tests.plans import graph_of, planned


class SoftTiles:
    """Tile registers in memory, with the meaning that the architecture manual gives them, in words and vectors."""

    def configure(self, k: Kernel, shapes: list[tuple[int, int]]) -> None:
        self.shapes = shapes
        with k.b.goto_entry_block():
            self.place = k.b.inttoptr(k.b.ptrtoint(k.b.alloca(ir.ArrayType(I32, 8 * 256)), I64), PTR)

    def _row(self, k: Kernel, register: int, row: Any) -> Any:
        return k.advance(self.place, row * 16 + 256 * register)

    def zero(self, k: Kernel, register: int) -> None:
        with k.loop(0, 16) as row:
            k.b.store(k.splat_int(0), self._row(k, register, row), align=4)

    def load(self, k: Kernel, register: int, pointer: Any, stride: int) -> None:
        rows, row_bytes = self.shapes[register]
        self.zero(k, register)
        with k.loop(0, rows) as row, k.loop(0, row_bytes // 4) as word:
            value = k.b.load(k.advance(words.advance_bytes(k, pointer, row * stride), word), typ=I32, align=1)
            k.b.store(value, k.advance(self._row(k, register, row), word), align=4)

    def add_products(self, k: Kernel, total: int, x: int, w: int) -> None:
        assert self.shapes[x][1] == 4 * self.shapes[w][0]
        assert self.shapes[total] == (self.shapes[x][0], self.shapes[w][1])
        with k.loop(0, self.shapes[total][0]) as row, k.loop(0, self.shapes[w][0]) as word:
            place = self._row(k, total, row)
            x_word = words.load_word(k, self._row(k, x, row), word)
            sums_ = words.add_word(k, "bytes", k.load_ints(place), x_word, k.load_ints(self._row(k, w, word)))
            k.b.store(sums_, place, align=4)

    def store(self, k: Kernel, register: int, pointer: Any, stride: Any) -> None:
        rows, row_bytes = self.shapes[register]
        assert row_bytes == 64
        with k.loop(0, rows) as row:
            vector = k.load_ints(self._row(k, register, row))
            k.b.store(vector, words.advance_bytes(k, pointer, row * stride), align=1)

    def release(self, k: Kernel) -> None:
        pass


@pytest.mark.skipif(not target_named("avx512").has_vnni, reason="the stand-in for tile registers needs VNNI")
@pytest.mark.parametrize(
    "name", ["first layer", "small groups", "everything different on every axis", "one long axis", "three axes"]
)
def test_amx_sums_the_same_where_its_tiles_are_memory(name: str) -> None:
    """Everything but the instructions themselves, which the next test finds in the assembly."""
    emit_amx = amx.emit

    def soft(tile: Any, target: Target) -> Any:
        return emit_amx(tile, target, SoftTiles())

    target = target_named("avx512")
    spec, size = SPECS[name](16)
    if name != "first layer":  # a block of 64 channels and one of three, two full vectors and one of three
        spec = replace(spec, in_channels=spec.groups * 67, out_channels=spec.groups * 35)
    with (
        patch.object(amx, "emit", soft),
        patch.object(amx.AmxTile, "key", property(lambda self: f"soft-{self!r}")),
        patch.object(amx_lowering, "estimate", lambda *_: -1.0),
    ):
        Case(spec, size, 2, threads=2, scratch=4096).check(target)
        Case(spec, size, 1, np.int8, y_type=np.uint8, bias=True, at_end=False).check(target)


@pytest.mark.skipif(not target_named("avx512").is_x86, reason="reads x86 assembly")
def test_amx_instructions() -> None:
    host = target_named("avx512")
    target = replace(host, cpu="sapphirerapids", features="+amx-tile,+amx-int8", has_vnni=True, has_amx=True)
    tile = amx.AmxTile(2, 1, 14, 2, 16, 16, False, True)
    text = assembly(tile.key, lambda: amx.emit(tile, target), target)
    counts = {
        name: len(re.findall(rf"\b{name}\b", text)) for name in ("tdpbusd", "tileloadd", "tilezero", "tilestored")
    }
    assert counts == {"tdpbusd": 4, "tileloadd": 4, "tilezero": 4, "tilestored": 4}
    assert len(re.findall(r"\bldtilecfg\b", text)) == len(re.findall(r"\btilerelease\b", text)) == 1


def test_amx_is_used_where_the_cpu_has_it() -> None:
    spec = ConvSpec(64, 64, (3, 3), padding=1, bias=False)
    case = Case(spec, (14, 14))
    inputs, constants = case.arrays()
    graph = graph_of([case.node({*inputs, *constants})], inputs, ["y"], constants)
    for has_amx in (False, True):
        target = replace(target_named("avx512"), has_vnni=True, has_amx=has_amx)
        plan = planned(graph, target)
        assert bool(plan.tiles(amx)) == has_amx
