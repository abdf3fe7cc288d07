"""How threads share a step: each gets rows of all channels, so that what it wrote is what it reads in the next step."""

from __future__ import annotations

import numpy as np
import pytest

from convwright.codegen.target import Target
from convwright.graph import Node
from tests.kernels import each_target
from tests.plans import graph_of, planned

POOL = Node("MaxPool", ["x"], ["pooled"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]})
CASES = {
    "max_pool": [POOL],
    "elementwise": [POOL, Node("Sigmoid", ["pooled"], ["y"])],
    "channels": [POOL, Node("Slice", ["pooled", "starts", "ends", "axes"], ["y"])],
    "depthwise": [POOL, Node("Conv", ["pooled", "w"], ["y"], {"group": 40, "pads": [1, 1, 1, 1]})],
}


@each_target
@pytest.mark.parametrize("rows", [16, 19])
@pytest.mark.parametrize("kind", CASES)
def test_half_of_the_items_are_half_of_the_rows(target: Target, kind: str, rows: int) -> None:
    x = np.random.default_rng(0).standard_normal((1, 40, rows, 9)).astype(np.float32)
    constants = {
        "w": np.ones((40, 1, 3, 3), np.float32), "starts": np.array([3]), "ends": np.array([37]), "axes": np.array([1]),
    }  # fmt: skip
    nodes = [Node(node.op, node.inputs, ["y" if node is CASES[kind][-1] else "pooled"], node.attributes)
             for node in CASES[kind]]  # fmt: skip
    plan = planned(graph_of(nodes, {"x": x}, ["y"], constants), target, threads=2)
    (step,) = (step for step in plan.steps if kind in step.name)
    assert step.items % 2 == 0
    step.items //= 2
    seen = np.isfinite(plan.run({"x": x})["y"])
    upper = -(-rows // 2)
    assert seen[:, :, :upper].all()
    assert not seen[:, :, upper:].any()
