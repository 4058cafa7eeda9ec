"""`loquela train RECIPE.yaml [key=value …]`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from loquela.cli.output import console, print_json
from loquela.cli.threads import share_cores

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Keys of the recipe with other values.", metavar="key=value")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a model from a recipe. The same command goes on after an interruption."""
    share_cores()
    from loquela.cli.progress import TrainingView, curve, figure
    from loquela.training.log import read_rows
    from loquela.training.recipe import Recipe
    from loquela.training.run import train as run

    loaded = Recipe.load(recipe, overrides or [])
    with TrainingView() as view:
        result = run(loaded, on_event=view)
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes has told it
    if as_json:
        print_json(result.as_dict())
        return
    directory = Path(result.model)
    console.print(curve(read_rows(directory / "loss.csv")))
    typer.echo(
        f"{directory}: {figure(result.val_loss, result.val_bits_per_byte)} on the held-out text "
        f"(loss {result.val_loss:.3f} over {result.val_tokens:,} tokens); "
        f"{result.steps:,} steps, {result.tokens:,} tokens in {result.seconds:.0f} s"
    )
    typer.echo(f"The curve: {directory / 'loss.html'}   Talk to it: loquela chat -m {directory}")
