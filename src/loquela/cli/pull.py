"""`loquela pull ORG/NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loquela.cli.output import note, print_json

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="ORG/NAME", help="A model of the Hugging Face Hub.")],
    revision: Annotated[
        str | None, typer.Option(help="A branch, tag or commit. Default: what main is now; its commit is kept.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The directory to write; it must be new. Default: in ~/.cache/loquela.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fetch a model of the Hub, pinned to a commit. No other verb reaches the network.

    Only safetensors are fetched. Afterwards `-m ORG/NAME` opens it in every verb, without a network.
    """
    from loquela.checkpoint import hub

    place, commit = hub.pull(name, revision=revision, target=output)
    if json:
        print_json({"model": str(place), "commit": commit})
        return
    typer.echo(str(place))
    note(f"{name} at commit {commit}")
