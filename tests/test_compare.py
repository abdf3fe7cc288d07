"""`convwright compare`: the figures are those of `cw.cost`, and what it cannot read is told in one line."""

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

import convwright as cw
from convwright.cli import main
from convwright.cli.described import described
from convwright.spec import (
    ConvSpec,
    DeformableSpec,
    HetSpec,
    MixSpec,
    SeparableSpec,
    ShuffledSpec,
    SpatialSpec,
    Spec,
)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["compare", *arguments])


def compared(*arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    return found["a"], found["b"]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("standard", ConvSpec(8, 8, (3, 3), padding="same")),
        ("standard 16 k5x3 s2 p1", ConvSpec(8, 16, (5, 3), stride=2, padding=1)),
        ("grouped 16 g4 pvalid", ConvSpec(8, 16, (3, 3), groups=4)),
        ("depthwise k7 m2", ConvSpec(8, 16, (7, 7), padding="same", groups=8)),
        ("pointwise 4", ConvSpec(8, 4, (1, 1))),
        ("dilated d2", ConvSpec(8, 8, (3, 3), padding="same", dilation=2)),
        ("separable 16 k3 m2", SeparableSpec(ConvSpec(8, 16, (3, 3), padding="same"), 2)),
        ("spatial k5", SpatialSpec(ConvSpec(8, 8, (5, 5), padding="same"), 8)),
        ("transposed 4 k4 s2 p1", ConvSpec(8, 4, (4, 4), stride=2, padding=1, transposed=True)),
        ("deformable", DeformableSpec(ConvSpec(8, 8, (3, 3), padding="same"))),
        ("het 16 part4", HetSpec(ConvSpec(8, 16, (3, 3), padding="same"), 4)),
        ("mix k3,5", MixSpec(8, (3, 5))),
        ("mix k3", MixSpec(8, (3,))),
        ("shuffled g2", ShuffledSpec(ConvSpec(8, 8, (1, 1), groups=2))),
    ],
)
def test_a_few_words_describe_every_kind(text: str, spec: Spec) -> None:
    assert described(text, 8, 2) == spec


def test_a_layer_and_its_replacement_have_the_figures_of_their_cost() -> None:
    a, b = compared("standard 512", "separable 512", "--in", "1x512x14x14", "--no-measure")
    assert (a["macs"], b["macs"]) == (462_422_016, 52_283_392)
    assert (a["parameters"], b["parameters"]) == (2_359_808, 267_264)
    assert a["receptive_field"] == b["receptive_field"] == [3, 3]
    assert a["seconds"] is None


def test_networks_have_the_figures_of_their_cost() -> None:
    a, b = compared("squeezenet1_1", "shufflenet_v1_g3", "--no-measure")
    for side, name in (a, "squeezenet1_1"), (b, "shufflenet_v1_g3"):
        total = cw.cost(cw.networks.build(name, seed=None)).total.figures()
        assert {key: side[key] for key in total} == total
        assert side["inputs"] == {"x": [1, 3, 224, 224]}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_times_are_measured_in_turns(rank: int) -> None:
    shape = "1x8" + "x6" * rank
    a, b = compared("standard", "depthwise", "--in", shape, "--threads", "1")
    assert a["seconds"] > 0
    assert b["seconds"] > 0
    text = invoke("standard", "depthwise", "--in", shape, "--threads", "1").output
    assert "measured, ms" in text
    assert "B / A" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("standard", "depthwise"), "'standard' is a convolution, which needs --in"),
        (("standard", "het", "--in", "1x8x6x6"), "'het': a het convolution needs its part, such as part4"),
        (("standard", "mix part2", "--in", "1x8x6x6"), "only a het convolution has a part"),
        (("standard", "depthwise 9", "--in", "1x8x6x6"), "depthwise convolution of 8 channels cannot give 9"),
        (("standard", "dilated", "--in", "1x8x6x6"), "'dilated' describes a standard convolution, not a dilated one"),
        (("standard k3 k5", "mix", "--in", "1x8x6x6"), "kernel is given twice"),
        (("standard q3", "mix", "--in", "1x8x6x6"), "'q3' is none of 128, k3"),
        (("standard g3", "mix", "--in", "1x8x6x6"), "in_channels 8 is not divisible by groups 3"),
        (("standard", "mix", "--in", "8x6"), "'8x6' is no batch, channels and 1 to 3 sizes"),
        (("standard", "no_network", "--in", "1x8x6x6"), "'no_network' does not exist"),
    ],
)
def test_what_cannot_be_read_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
