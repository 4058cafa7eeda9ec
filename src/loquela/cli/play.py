"""`loquela play`: the playground in the browser, with a model of one's own or the one that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loquela.cli.threads import share_cores
from loquela.errors import UsageError

__all__ = ["app", "shipped_model"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def play(
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model directory. [default: the model that is shipped]")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="NAME=DIR", help="An adapter, by name.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
) -> None:
    """Open the playground in the browser; Ctrl-C ends it."""
    share_cores()
    from loquela.cli.serve import adapters_of, start
    from loquela.serving.options import Options

    directory = shipped_model() if model is None else model
    start(Options(model=directory, adapters=adapters_of(adapter or []), port=port), browse=browser)


def shipped_model() -> Path:
    """Return the directory of the model that came with the package; raises `UsageError` where there is none."""
    directory = Path(__file__).parent.parent / "house"
    if not (directory / "config.json").is_file():
        raise UsageError(
            "this package came without a model, so name one: loquela play -m DIR (loquela quickstart makes one)"
        )
    return directory
