"""`convwright explain`: each layer's kernel, why it was chosen, what came second, its time and share of the limit."""

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
    tune_option,
    tuning_bar,
)


@click.command()
@model_argument
@shape_option
@threads_option
@tune_option
@json_option
def explain(model: str, shapes: tuple[str, ...], threads: int | None, tune: bool, as_json: bool) -> None:
    """Show each layer's kernel, why it was chosen, and what it costs.

    Times are measured, on random values of the shape that the model fixes or --shape says. "of limit" is the least
    time that this machine's measured arithmetic and memory speed allow for a step, over the time that it took;
    "runner-up" is the next best way to compute a convolution, with its time as a multiple of what was taken.

    Example: convwright explain model.onnx --shape 1x3x224x224
    """
    import convwright as cw

    with progress_bar() as progress:
        task = progress.add_task("compiling", total=None)
        graph = load_model(model)
        inputs = random_inputs(graph, input_shapes(graph, shapes))
        with cw.compile(graph, threads=threads, tune=tune, progress=tuning_bar(progress)) as compiled:
            progress.update(task, description="measuring")
            explanation = compiled.explain(*inputs.values())
    if as_json:
        print_json(explanation.to_dict())
    else:
        click.echo(str(explanation))
