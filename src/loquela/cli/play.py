"""`loquela play`: the playground in the browser, with a model of one's own or the one that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loquela.cli.threads import share_cores
from loquela.errors import UsageError

__all__ = ["SHIPPED", "app", "shipped_model"]

SHIPPED = "stories"
"""The house model that is opened where none is named, with the house's adapters."""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def play(
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model directory. [default: stories, with its adapters]")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="[NAME=]DIR", help="An adapter, by name.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Open the playground in the browser; Ctrl-C ends it."""
    share_cores()
    from loquela.checkpoint import house
    from loquela.cli.serve import adapters_of, start
    from loquela.serving.options import Options

    adapters = adapters_of(adapter or [])
    if model is None:
        model = Path(shipped_model())
        adapters = {name: house.adapter(name) for name in house.adapter_names()} | adapters
    start(Options(model=model, adapters=adapters, port=port), browse=browser)


def shipped_model() -> str:
    """Return the model that the package opens by itself, by its name where no path of that name is in the way.

    Raises `UsageError` where the package came without.
    """
    from loquela.checkpoint import house

    if SHIPPED not in house.model_names():
        raise UsageError(
            "this package came without a model, so name one: loquela play -m DIR (loquela quickstart makes one)"
        )
    return str(house.HOUSE / SHIPPED) if Path(SHIPPED).exists() else SHIPPED
