"""Resizing against ONNX's own reference, for every coordinate mode and rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from convwright.codegen.target import Target, target_named
from convwright.kernels import resize
from tests.kernels import Blocked, call, each_target

TRANSFORMATIONS = [
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
CROP = [(0.0, 0.75), (0.25, 1.0)]


def onnx_resize(x: np.ndarray, kind: str, transformation: str, rounding: str, **wanted: Any) -> np.ndarray:
    """ONNX's reference; ``wanted`` is ``scales`` or ``sizes`` of the spatial axes."""
    ((name, values),) = wanted.items()
    dtype = np.float32 if name == "scales" else np.int64
    full = np.array([*(x.shape[:2] if name == "sizes" else (1, 1)), *values], dtype)
    roi = np.array([0, 0, *(start for start, _ in CROP), 1, 1, *(end for _, end in CROP)], np.float32)
    attributes = {"mode": kind, "coordinate_transformation_mode": transformation, "nearest_mode": rounding}
    inputs = ["x", "roi", "scales"] if name == "scales" else ["x", "roi", "", "sizes"]
    node = helper.make_node("Resize", inputs, ["y"], **attributes)
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    infos += [helper.make_tensor_value_info("roi", TensorProto.FLOAT, None)]
    infos += [helper.make_tensor_value_info(name, TensorProto.FLOAT if name == "scales" else TensorProto.INT64, None)]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "g", infos, [out]), opset_imports=[helper.make_opsetid("", 19)])
    (result,) = ReferenceEvaluator(model).run(None, {"x": x, "roi": roi, name: full})
    return np.asarray(result)


def run(
    x: np.ndarray, output: Sequence[int], scales: Sequence[float], target: Target, *, halo: int = 0, **modes: Any
) -> np.ndarray:
    """The kernel on an NCHW tensor."""
    source = Blocked.of(x, target.vector, halo=halo)
    y = Blocked.empty((*x.shape[:2], *output), target.vector, halo=halo)
    arguments, destination = source.arguments("x"), y.arguments("y")
    strides = (arguments.pop("x_row"), target.vector)
    tables = resize.resize_tables(x.shape[2:], output, scales, strides, roi=CROP, **modes)
    pointers = {name: table.ctypes.data for name, table in tables.items()}
    blocks = source.buffer.shape[1]
    work = {"blocks": blocks, "chunks": 2, "chunk_rows": -(-output[0] // 2), "rows": output[0], "cols": output[1]}
    config = resize.Resize(modes["kind"])
    values = {**arguments, **destination, **pointers, **work}
    call(config, resize.emit, resize.ARGUMENTS, values, len(x) * blocks * 2, target, ranges=3)
    assert y.halo_untouched()
    return y.array()


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize("kind", ["nearest", "linear"])
def test_modes_are_those_of_onnx(transformation: str, kind: str) -> None:
    target = target_named("generic")
    x = np.random.default_rng(0).standard_normal((1, 1, 5, 4), dtype=np.float32)
    for rounding in ROUNDINGS if kind == "nearest" else ROUNDINGS[:1]:
        modes: dict[str, Any] = {"kind": kind, "transformation": transformation, "rounding": rounding}
        for sizes in [(10, 8), (3, 7), (1, 1), (5, 4), (9, 2)]:
            want = onnx_resize(x, kind, transformation, rounding, sizes=sizes)
            scales = [size / was for size, was in zip(sizes, x.shape[2:], strict=True)]
            np.testing.assert_allclose(run(x, sizes, scales, target, **modes), want, rtol=1e-5, atol=1e-6)
        for scales in [[2.0, 2.0], [0.5, 1.5], [2.3, 0.6], [1.0, 3.0]]:
            want = onnx_resize(x, kind, transformation, rounding, scales=scales)
            y = run(x, want.shape[2:], [float(np.float32(scale)) for scale in scales], target, **modes)
            np.testing.assert_allclose(y, want, rtol=1e-5, atol=2e-6)


@each_target
@pytest.mark.parametrize("kind", ["nearest", "linear"])
@pytest.mark.parametrize("halo", [0, 1])
def test_every_number_of_channels(target: Target, kind: str, halo: int) -> None:
    v = target.vector
    for channels in (1, v - 1, v, v + 1, 2 * v + 3):
        x = np.random.default_rng(channels).standard_normal((2, channels, 2, 3), dtype=np.float32)
        one = onnx_resize(x.reshape(-1, 1, 2, 3), kind, "half_pixel", "floor", scales=[2.0, 2.0])
        y = run(x, (4, 6), (2, 2), target, halo=halo, kind=kind, rounding="floor")
        np.testing.assert_allclose(y, one.reshape(2, channels, 4, 6), rtol=1e-5, atol=1e-6)


def test_rows_of_a_volume_are_one_table() -> None:
    tables = resize.resize_tables((2, 3, 4), (4, 3, 8), (2, 1, 2), (48, 16, 4), kind="nearest")
    want = [plane // 2 * 48 + row * 16 for plane in range(4) for row in range(3)]
    assert tables["row_low"].tolist() == want
    with pytest.raises(ValueError, match="more than two axes"):
        resize.resize_tables((2, 3, 4), (4, 6, 8), (2, 2, 2), (48, 16, 4), kind="linear")


def test_what_the_kernel_cannot_do_is_an_error() -> None:
    modes: dict[str, Any] = {"sizes": (4, 4), "output_sizes": (8, 8), "scales": (2, 2), "strides": (16, 4)}
    with pytest.raises(ValueError, match="cubic"):
        resize.resize_tables(**modes, kind="cubic")
    roi = [(-0.5, 1.0), (0.0, 1.0)]
    with pytest.raises(ValueError, match="extrapolated"):
        resize.resize_tables(**modes, kind="linear", transformation="tf_crop_and_resize", roi=roi)
