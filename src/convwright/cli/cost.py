"""`convwright cost`: what each layer of a network costs."""

from typing import TYPE_CHECKING

import click

from convwright.cli.options import (
    input_shapes,
    json_option,
    load_model,
    model_argument,
    print_json,
    progress_bar,
    random_inputs,
    shape_option,
    threads_option,
)

if TYPE_CHECKING:
    from convwright.cost import Cost
    from convwright.cost.roofline import Roofline
    from convwright.graph import Graph


@click.command()
@model_argument
@click.option("--by", default="layer", show_default=True, help="Rows: layer, kind, block of layers, or tree of blocks.")
@click.option("--sort", metavar="FIGURE", help="Largest first: macs, parameters, elementwise, bytes_moved, ...")
@click.option("--depth", type=int, metavar="N", help="How many parts of the path name a block.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    metavar="N",
    help="The first size of every input.  [default: as declared, else 1]",
)
@click.option("--csv", "table", metavar="FILE", type=click.Path(dir_okay=False), help="Write the rows to a CSV file.")
@click.option("--roofline", "bounds", is_flag=True, help="Show the least time that this machine allows each layer.")
@click.option("--measure", is_flag=True, help="As --roofline, and run the network to show what each layer takes.")
@threads_option
@shape_option
@json_option
def cost(
    model: str, by: str, sort: str | None, depth: int | None, batch: int | None, table: str | None,
    bounds: bool, measure: bool, threads: int | None, shapes: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Show what each layer costs: parameters, MACs, FLOPs, elementwise operations, bytes and memory.

    Nothing runs: the figures follow from shapes. One MAC is one multiply-accumulate, FLOPs are twice the MACs.
    "moved" is the least that a layer reads and writes, weights included, "alive" the activations that lie in memory
    while it runs.

    With --roofline a layer's least time is shown: FLOPs at this machine's measured arithmetic, or bytes at its measured
    bandwidth, whichever takes longer; and with --measure the time that it takes here, what is fused into it included.

    Example: convwright cost model.onnx --by kind --sort macs
    """
    import convwright as cw

    graph = load_model(model, seed=0 if measure else None)
    sizes = input_shapes(graph, shapes, batch)
    found = cw.cost(graph, shapes=sizes, by=by, sort=sort, depth=depth)
    if table is not None:
        found.to_csv(table)
    told = found.to_dict() if as_json else {}
    shown: object = found
    if bounds or measure:
        shown = _roofline(graph, found, sizes, threads, measure)
        told |= {"roofline": shown.to_dict()}
    if as_json:
        print_json(told)
    else:
        click.echo(str(shown))


def _roofline(
    graph: "Graph", found: "Cost", sizes: dict[str, tuple[int, ...]], threads: int | None, measure: bool
) -> "Roofline":
    import convwright as cw
    from convwright.cost.roofline import roofline
    from convwright.runtime.ceilings import measured
    from convwright.runtime.machine import cores

    with progress_bar() as progress:
        task = progress.add_task("measuring the machine", total=None)
        ceilings = measured(threads or cores())
        if not measure:
            return roofline(found, ceilings=ceilings)
        progress.update(task, description="measuring the network")
        with cw.compile(graph, threads=threads) as model:
            profile = model.profile(*random_inputs(graph, sizes).values())
    return roofline(found, profile, ceilings=ceilings)
