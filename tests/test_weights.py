"""Weights are packed into the order that kernels read, and come back the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from convwright.model.weights import (
    Weights,
    entries_of,
    pack_channels,
    pack_depthwise,
    pack_direct,
    pack_planar,
    segments_of,
    unpack_direct,
)  # fmt: skip

each_vector = pytest.mark.parametrize("v", [4, 8, 16])
SHAPES = [
    (1, 1, 1), (1, 5, 1), (2, 1, 2), (3, 3, 3), (3, 17, 3), (5, 1, 5), (12, 4, 4), (15, 16, 1), (16, 16, 1), (17, 3, 1),
    (24, 5, 2), (32, 1, 32), (35, 33, 1), (36, 9, 4), (40, 8, 8), (51, 2, 17),
]  # fmt: skip
KERNELS = [(1, 1), (1, 3), (3, 3), (2, 5)]


def numbered(*shape: int) -> np.ndarray:
    """Weights that are all different."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


@each_vector
@pytest.mark.parametrize(("out_channels", "own", "groups"), SHAPES)
def test_packing_for_direct_kernels_can_be_undone(v: int, out_channels: int, own: int, groups: int) -> None:
    for kernel in KERNELS:
        weight = numbered(out_channels, own, *kernel)
        packed = pack_direct(weight, groups, v)
        assert packed.shape == (len(entries_of(out_channels, groups, v)), weight[0].size, v)
        assert packed.ctypes.data % 64 == 0
        np.testing.assert_array_equal(unpack_direct(packed, weight.shape, groups, v), weight)
        # Each weight once, and nothing else but zeros.
        np.testing.assert_array_equal(np.sort(packed[packed != 0]), weight.ravel())


@each_vector
@pytest.mark.parametrize(("out_channels", "own", "groups"), SHAPES)
def test_packed_weights_stand_where_direct_kernels_read_them(v: int, out_channels: int, own: int, groups: int) -> None:
    kh, kw = 2, 3
    weight = numbered(out_channels, own, kh, kw)
    packed = pack_direct(weight, groups, v)
    each = out_channels // groups
    for place, entry in enumerate(entries_of(out_channels, groups, v)):
        at = 0
        for start, count in segments_of(entry.group * own, own, v):
            for row, col, channel in itertools.product(range(kh), range(kw), range(start, start + count)):
                for lane in range(v):
                    out = entry.block * v + lane
                    mine = out < out_channels and out // each == entry.group
                    assert packed[place, at, lane] == (weight[out, channel, row, col] if mine else 0)
                at += 1
        assert at == own * kh * kw


@each_vector
def test_entries_cover_every_output_channel_once(v: int) -> None:
    for out_channels, _, groups in SHAPES:
        channels = [
            entry.block * v + lane
            for entry in entries_of(out_channels, groups, v)
            for lane in range(entry.low, entry.high)
            if entry.block * v + lane < out_channels
        ]
        assert channels == list(range(out_channels))


@each_vector
def test_segments_end_at_block_boundaries(v: int) -> None:
    for first, channels in itertools.product(range(2 * v), range(1, 3 * v)):
        pieces = segments_of(first, channels, v)
        assert sum(count for _, count in pieces) == channels
        assert all((first + start) // v == (first + start + count - 1) // v for start, count in pieces)
        assert all((first + start) % v == 0 for start, _ in pieces[1:])


@each_vector
def test_planar_and_depthwise_packing(v: int) -> None:
    for k in (1, v - 1, v, v + 1, 2 * v + 3):
        weight = numbered(k, 3, 2, 5)
        packed = pack_planar(weight, v)
        lanes = packed.transpose(0, 2, 1).reshape(-1, 30)
        np.testing.assert_array_equal(lanes[:k], weight.reshape(k, 30))
        assert not lanes[k:].any()
        depthwise = numbered(k, 1, 2, 5)
        lanes = pack_depthwise(depthwise, v).transpose(0, 2, 1).reshape(-1, 10)
        np.testing.assert_array_equal(lanes[:k], depthwise.reshape(k, 10))
        assert not lanes[k:].any()
        np.testing.assert_array_equal(pack_channels(numbered(k), v)[:k], numbered(k))
        assert not pack_channels(numbered(k), v)[k:].any()


@each_vector
@pytest.mark.parametrize("form", ["direct", "planar", "depthwise"])
def test_a_released_constant_can_be_had_again(v: int, form: str) -> None:
    groups = {"direct": 3, "planar": 1, "depthwise": 1}[form]
    shape = {"direct": (51, 40, 3, 3), "planar": (401, 3, 3, 5), "depthwise": (2001, 1, 3, 3)}[form]
    weight = numbered(*shape)
    weights = Weights({"w": weight.copy()}, v)
    packed = weights.get("w", form, shape, groups)
    weights.release()
    assert weights.constants["w"].shape == shape
    np.testing.assert_array_equal(weights.array("w"), weight)
    np.testing.assert_array_equal(weights.unpacked()["w"], weight)
    assert weights.get("w", form, shape, groups) is packed
    assert weights.nbytes == packed.nbytes
