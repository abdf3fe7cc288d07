"""`convwright conv`: what one convolution costs, and every algorithm for it."""

import time
from typing import TYPE_CHECKING, Any

import click

from convwright.cli.options import json_option, parse_shape, print_json, progress_bar, threads_option

if TYPE_CHECKING:
    from convwright.spec import ConvSpec

_PATIENCE = 2.0  # seconds of measuring before a progress bar appears


def parse_sizes(text: str, option: str) -> tuple[int, ...]:
    """One number for all axes, or one an axis: `3`, `3x5`.

    >>> parse_sizes("3x5", "--kernel")
    (3, 5)
    """
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number, nor one an axis such as 3x5", param_hint=option) from None


def parse_padding(text: str) -> Any:
    """A word, one number for all axes, or one an axis; LOW:HIGH for ends that differ.

    >>> parse_padding("same"), parse_padding("1"), parse_padding("0:1x2")
    ('same', 1, ((0, 1), (2, 2)))
    """
    if text in ("same", "same_lower", "valid"):
        return text
    axes = []
    for part in text.lower().split("x"):
        ends = part.split(":")
        if not 1 <= len(ends) <= 2 or not all(end.lstrip("-").isdigit() for end in ends):
            hint = "same, same_lower, valid, a number, or one an axis such as 1x2 or 0:1x2:2"
            raise click.BadParameter(f"{text!r} is not {hint}", param_hint="--padding")
        axes.append((int(ends[0]), int(ends[-1])))
    return axes[0][0] if len(axes) == 1 and axes[0][0] == axes[0][1] else tuple(axes)


@click.command()
@click.option("--in", "shape", required=True, metavar="NxCxSIZES", help="The input's shape, such as 1x64x56x56.")
@click.option("--out-channels", type=int, required=True, metavar="K", help="The number of output channels.")
@click.option("--kernel", required=True, metavar="K[xK...]", help="Kernel size: for all axes, or one an axis.")
@click.option("--stride", default="1", show_default=True, metavar="S[xS...]")
@click.option("--padding", default="0", show_default=True, metavar="P[xP...]",
              help="same, same_lower, valid, a number, or one an axis; LOW:HIGH for ends that differ.")  # fmt: skip
@click.option("--dilation", default="1", show_default=True, metavar="D[xD...]")
@click.option("--groups", type=int, default=1, show_default=True, metavar="G")
@click.option("--padding-mode", default="zeros", show_default=True, help="zeros, reflect, replicate or circular.")
@click.option("--transposed", is_flag=True, help="The transposed convolution.")
@click.option("--output-padding", default="0", show_default=True, metavar="P[xP...]", help="Of a transposed one.")
@click.option("--flip", is_flag=True, help="Flip the kernel: the convolution of mathematics.")
@click.option("--no-bias", is_flag=True, help="Without a bias.")
@click.option("--dtype", default="float32", show_default=True, help="float32 or float64.")
@click.option("--measure", is_flag=True, help="Time every algorithm, not only the one that is chosen.")
@threads_option
@json_option
def conv(
    shape: str, out_channels: int, kernel: str, stride: str, padding: str, dilation: str, groups: int,
    padding_mode: str, transposed: bool, output_padding: str, flip: bool, no_bias: bool, dtype: str, measure: bool,
    threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what one convolution costs: sizes, parameters, MACs, FLOPs, every algorithm's row, and the measured time.

    --in says how many axes there are: 1x64x500 is 1-D, 1x64x56x56 is 2-D, 1x64x8x56x56 is 3-D.

    Example: convwright conv --in 1x64x56x56 --out-channels 128 --kernel 3 --stride 2 --padding 1 --groups 4
    """
    sizes = parse_shape(shape)
    if not 3 <= len(sizes) <= 5:
        raise click.BadParameter(f"{shape!r} is no batch, channels and 1 to 3 sizes", param_hint="--in")
    rank = len(sizes) - 2

    def axes(text: str, option: str) -> Any:
        found = parse_sizes(text, option)
        return found[0] if len(found) == 1 else found

    from convwright.spec import ConvSpec

    spec = ConvSpec.of_rank(
        rank, sizes[1], out_channels, axes(kernel, "--kernel"), stride=axes(stride, "--stride"),
        padding=parse_padding(padding), dilation=axes(dilation, "--dilation"), groups=groups, transposed=transposed,
        output_padding=axes(output_padding, "--output-padding"), bias=not no_bias, padding_mode=padding_mode, flip=flip,
    )  # fmt: skip
    report = _report(spec, sizes, dtype, threads, measure)
    if as_json:
        found = report.pop("algorithms")
        print_json({**report, **found.to_dict()})
    else:
        _show(spec, report)


def _report(
    spec: "ConvSpec", sizes: tuple[int, ...], dtype: str, threads: int | None, measure: bool
) -> dict[str, Any]:  # fmt: skip
    from convwright.functional import algorithms
    from convwright.functional.comparison import measured_seconds, problem_of

    batch, _, *size = sizes
    begin = time.perf_counter()
    with progress_bar() as progress:
        task: Any = None

        def step(name: str) -> None:
            nonlocal task
            if task is None and time.perf_counter() - begin > _PATIENCE:
                task = progress.add_task(name, total=None)
            if task is not None:
                progress.update(task, description=f"measuring {name}")

        found = algorithms(spec, size, batch, dtype=dtype, threads=threads, measure=measure, progress=step)
        chosen = found.chosen.measured_seconds
        if chosen is None:
            step("the chosen algorithm")
            chosen = measured_seconds(problem_of(spec, size, batch, dtype=dtype, threads=threads), "auto")
    macs = spec.macs(size, batch)
    return {
        "kind": spec.kind,
        "input_shape": list(sizes),
        "output_shape": [batch, spec.out_channels, *spec.output_size(size)],
        "parameters": spec.parameters,
        "macs": macs,
        "flops": 2 * macs,
        "effective_kernel": list(spec.effective_kernel),
        "receptive_field": list(spec.receptive_field),
        "measured_seconds": chosen,
        "algorithms": found,
    }


def _show(spec: "ConvSpec", report: dict[str, Any]) -> None:
    from convwright.functional.comparison import seconds_text

    def sizes(values: Any) -> str:
        return "x".join(map(str, values))

    seconds, macs, chosen = report["measured_seconds"], report["macs"], report["algorithms"].chosen
    lines = {
        "kind": report["kind"],
        "input": sizes(report["input_shape"]),
        "output": sizes(report["output_shape"]),
        "parameters": f"{report['parameters']:,}",
        "MACs": f"{macs:,}",
        "FLOPs": f"{report['flops']:,} (2 a MAC)",
        "receptive field": f"{sizes(report['receptive_field'])} of the input, the effective kernel is "
        f"{sizes(report['effective_kernel'])}",
        "measured": f"{seconds_text(seconds)}, {2e-9 * macs / seconds:.1f} GFLOP/s, by {chosen.name}",
    }
    for name, text in lines.items():
        click.echo(f"{name:<16}{text}")
    click.echo()
    click.echo(str(report["algorithms"]), nl=False)
