"""`convwright cost`: what each layer of a network costs."""

import click

from convwright.cli.options import input_shapes, json_option, model_argument, print_json, shape_option


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
@shape_option
@json_option
def cost(
    model: str, by: str, sort: str | None, depth: int | None, batch: int | None, table: str | None,
    shapes: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Show what each layer costs: parameters, MACs, FLOPs, elementwise operations, bytes and memory.

    Nothing runs: the figures follow from shapes. One MAC is one multiply-accumulate, FLOPs are twice the MACs.
    "moved" is the least that a layer reads and writes, weights included, "alive" the activations that lie in memory
    while it runs.

    Example: convwright cost model.onnx --by kind --sort macs
    """
    import convwright as cw

    graph = cw.load(model)
    found = cw.cost(graph, shapes=input_shapes(graph, shapes, batch), by=by, sort=sort, depth=depth)
    if table is not None:
        found.to_csv(table)
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(str(found))
