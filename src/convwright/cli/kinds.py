"""`convwright kinds`: the kinds of convolution, with formulas for parameters and multiply-accumulates."""

from dataclasses import asdict, dataclass

import click

from convwright.cli.options import json_option, print_json


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind.

    In formulas C and K are the input and output channels, k the taps of the kernel, G the groups, `out` and `in` the
    positions of the output and the input. Of two stages M is the number of channels between them; k1 and out1 belong to
    the first, k2 to the second.
    """

    name: str
    parameters: str
    macs: str
    function: str
    definition: str


KINDS = (
    Kind("standard", "(k C + 1) K", "out k C K", "conv", "every output channel sums over all input channels"),
    Kind("grouped", "(k C/G + 1) K", "out k C/G K", "conv(groups=G)", "channels in G independent groups"),
    Kind("depthwise", "(k + 1) K", "out k K", "conv(groups=C)", "G = C, with any channel multiplier K/C"),
    Kind("pointwise", "(C + 1) K", "out C K", "conv", "k = 1: mixes channels, changes their number"),
    Kind("dilated", "(k C + 1) K", "out k C K", "conv(dilation=d)", "spans d (k - 1) + 1 on each axis"),
    Kind("separable", "k C + (C + 1) K", "out (k C + C K)", "separable_conv", "depthwise, then pointwise"),
    Kind("spatial", "k1 C M + (k2 M + 1) K", "out1 k1 C M + out k2 M K", "spatial_conv",
         "k x 1, then 1 x k; in 3-D (1, k, k), then (k, 1, 1)"),
    Kind("transposed", "(k C/G + 1) K", "in k C/G K", "conv_transpose",
         "the adjoint; counted on its input"),
    Kind("deformable", "(k C/G + 1) K", "out k C/G K", "deform_conv",
         "taps moved by offsets, bilinear samples; with a mask, its second version"),
    Kind("het", "(k/P + 1 - 1/P) C K + K", "out (k/P + 1 - 1/P) C K", "het_conv(part=P)",
         "filter f has full kernels where (c - f) mod P = 0, one tap elsewhere"),
    Kind("mix", "sum of (k_i + 1) C_i", "out sum of k_i C_i", "mix_conv",
         "depthwise, with a kernel size for each part of the channels"),
    Kind("shuffled", "(C/G + 1) K", "out C/G K", "conv, channel_shuffle",
         "grouped pointwise, then channels (G, K/G) to (K/G, G)"),
    Kind("integer", "(k C/G + 1) K", "out k C/G K", "conv_integer, qlinear_conv",
         "8-bit values with zero points, exact 32-bit sums"),
)  # fmt: skip


@click.command()
@json_option
def kinds(as_json: bool) -> None:
    """Show the kinds of convolution, with formulas for parameters and MACs.

    C and K are input and output channels, k the taps of the kernel (9 for 3x3), G the groups, `out` and `in` the
    positions of the output and the input. Parameters are with bias. One MAC is one multiply-accumulate; FLOPs are twice
    the MACs.
    """
    if as_json:
        print_json([asdict(kind) for kind in KINDS])
        return
    from rich.table import Table

    from convwright.model.report import render

    table = Table(
        title="Kinds of convolution, 1-D to 3-D",
        caption="C, K: input and output channels, M between stages; k: taps of the kernel (9 for 3x3); G: groups; "
        "out, in: positions of the output and the input. Parameters are with bias. FLOPs are twice the MACs.",
    )
    for heading in ("kind", "parameters", "MACs", "function", "definition"):
        table.add_column(heading, no_wrap=heading != "definition")
    for kind in KINDS:
        table.add_row(kind.name, kind.parameters, kind.macs, kind.function, kind.definition)
    click.echo(render(table), nl=False)
