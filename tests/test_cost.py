"""What layers cost: hand-worked and published numbers, and the same figures whatever they are asked of."""

from __future__ import annotations

import pytest

import convwright as cw
from convwright.spec import (
    ConvSpec,
    DeformableSpec,
    HetSpec,
    IntegerSpec,
    MixSpec,
    SeparableSpec,
    ShuffledSpec,
    SpatialSpec,
    Spec,
)

SPECS: tuple[tuple[Spec, tuple[int, ...]], ...] = (
    (ConvSpec(3, 5, (3,), stride=2, padding=1), (9,)),
    (ConvSpec(4, 6, (3, 2), dilation=2, groups=2, bias=False), (9, 7)),
    (ConvSpec(4, 8, (1, 3, 5), groups=4, padding="same", stride=(1, 2, 1)), (3, 8, 7)),
    (ConvSpec(4, 6, (3, 4), stride=2, transposed=True, groups=2), (5, 6)),
    (SeparableSpec(ConvSpec(6, 4, (3, 3), padding=1), multiplier=2), (8, 8)),
    (SpatialSpec(ConvSpec(4, 6, (3, 3))), (9, 9)),
    (SpatialSpec(ConvSpec(4, 6, (3, 3, 3), stride=2)), (9, 9, 9)),
    (DeformableSpec(ConvSpec(8, 4, (3, 3), padding=1), offset_groups=2, modulated=True), (5, 6)),
    (HetSpec(ConvSpec(10, 7, (3, 3), padding=1), part=3), (8, 8)),
    (MixSpec(32, (3, 5, 7)), (8, 8)),
    (MixSpec(12, (3, 4), rank=1, stride=2, bias=False), (9,)),
    (ShuffledSpec(ConvSpec(6, 6, (1, 1), groups=3)), (5, 5)),
    (IntegerSpec(ConvSpec(8, 4, (3, 3)), input_zero_point=3), (5, 6)),
)


@pytest.mark.parametrize(("spec", "size"), SPECS, ids=lambda value: getattr(value, "kind", ""))
@pytest.mark.parametrize("batch", [1, 3])
def test_a_specification_costs_what_its_formulas_say(spec: Spec, size: tuple[int, ...], batch: int) -> None:
    total = cw.cost(spec, input_size=size, batch=batch).total
    assert total.macs == spec.macs(size, batch)
    assert total.flops == 2 * total.macs
    assert total.parameters == spec.parameters


def test_one_layer_of_mobilenet() -> None:
    """arXiv 1704.04861, table 3: 462 M and 2.36 M for the full convolution, 52.3 M and 0.27 M for the separable."""
    conv = ConvSpec(512, 512, (3, 3), padding=1, bias=False)
    full, light = (cw.cost(spec, input_size=(14, 14)).total for spec in (conv, SeparableSpec(conv)))
    assert (full.macs, full.parameters) == (462_422_016, 2_359_296)
    assert (light.macs, light.parameters) == (52_283_392, 266_752)
