"""The built-in networks: what they cost, that they run, and that PyTorch's weights fit them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import convwright as cw


def test_a_name_that_no_network_has_is_told_with_what_is_close() -> None:
    with pytest.raises(cw.ConvwrightError, match=r"no network is called 'vgg61': did you mean vgg1"):
        cw.networks.build("vgg61")


def test_every_name_of_the_table_is_a_function_of_the_package() -> None:
    for name in cw.networks.TABLE:
        assert callable(getattr(cw.networks, name))


def test_weights_are_the_same_for_a_seed_and_others_for_another() -> None:
    first, again, other = (cw.networks.vgg11(seed=seed) for seed in (1, 1, 2))
    name = "classifier.6.weight"
    assert np.array_equal(first.constants[name], again.constants[name])
    assert not np.array_equal(first.constants[name], other.constants[name])


def test_weights_come_from_a_state_dict_by_name() -> None:
    graph = cw.networks.vgg11(seed=3, classes=10)
    found = cw.networks.from_state_dict("vgg11", dict(graph.constants), classes=10)
    assert graph.constants.keys() == found.constants.keys()
    assert all(np.array_equal(graph.constants[key], found.constants[key]) for key in graph.constants)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.0.weight": None}, "no weights for features.0.weight"),
        ({"extra": np.zeros(1)}, "it has no extra"),
        ({"features.0.bias": np.zeros(63)}, "the shapes differ: features.0.bias (63,) for (64,)"),
        ({"features.0.bias": np.array(["a"] * 64)}, "weights 'features.0.bias' are <U1, not numbers"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    weights = {**cw.networks.vgg11(seed=None).constants, **change}
    with pytest.raises(cw.ConvwrightError, match=re.escape(message)):
        cw.networks.from_state_dict("vgg11", {key: value for key, value in weights.items() if value is not None})
