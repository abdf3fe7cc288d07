"""Receptive fields: published values, and what perturbing the input of the float64 reference shows."""

from __future__ import annotations

import pytest

from convwright.cost import receptive_fields

from . import slim_networks


@pytest.mark.parametrize(
    ("network", "size", "stride", "padding"),
    [
        ("alexnet_v2", 195, 32, 64),
        ("vgg_16", 212, 32, 90),
        ("mobilenet_v1", 315, 32, 126),
        ("resnet_v1_50", 483, 32, 239),
        ("inception_v2", 699, 32, 318),
        ("inception_v3", 1311, 32, 618),
    ],
)
def test_published_fields_of_slim_networks(network: str, size: int, stride: int, padding: int) -> None:
    """The table beside Araujo et al. 2019, at its input size of 224: "SAME" pads less there than at odd sizes."""
    graph = getattr(slim_networks, network)(224)
    field = receptive_fields(graph)[graph.outputs[0]]
    assert (field.size, field.stride, field.padding) == ((size,) * 2, (stride,) * 2, (padding,) * 2)
    assert field.local is None


@pytest.mark.parametrize(
    ("network", "padding"), [("mobilenet_v1", 157), ("resnet_v1_50", 241), ("inception_v2", 349), ("inception_v3", 618)]
)
def test_padding_where_same_meets_an_odd_size(network: str, padding: int) -> None:
    """The same table at 321."""
    graph = getattr(slim_networks, network)(321)
    assert receptive_fields(graph)[graph.outputs[0]].padding == (padding, padding)
