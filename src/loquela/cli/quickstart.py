"""`loquela quickstart [TEXT]`: from a text to a model you talk to, in about a minute."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from loquela.cli.output import console, note, print_json
from loquela.cli.threads import share_cores
from loquela.errors import UsageError

app = typer.Typer(rich_markup_mode=None, add_completion=False)

DEFAULT_CORPUS = "shakespeare"
HOME = Path("my-model")


@app.command()
def quickstart(
    text: Annotated[
        Path | None, typer.Argument(help="A text file; without one, a text that is shipped.", metavar="[TEXT]")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="A text that is shipped: shakespeare (the default) or quijote.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat/--no-chat", help="Talk to the model afterwards.")] = True,
    page: Annotated[
        bool | None,
        typer.Option("--page/--no-page", help="Open the playground while you talk. [default: in a terminal]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object; no chat.")] = False,
    output: Annotated[
        Path | None, typer.Option(help=f"Where the model is to live. [default: {HOME}/NAME-OF-TEXT]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train anew over an earlier run there.")] = False,
    encoding: Annotated[str, typer.Option(help="How the bytes of TEXT are text, e.g. latin-1.")] = "utf-8",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
) -> None:
    """Train a model on a text in about a minute, then talk to it. A second call goes straight to the talk."""
    share_cores()
    from loquela.cli.progress import TrainingView, curve
    from loquela.training.log import read_rows
    from loquela.training.quickstart import recipe_for
    from loquela.training.run import train

    if text is not None and corpus is not None:
        raise UsageError(f"one text must be given, but there are two: {text} and --corpus {corpus}")
    data = str(text) if text is not None else corpus_name(corpus)
    directory = output or HOME / (text.name.removesuffix(".gz").rsplit(".", 1)[0] if text is not None else data)
    recipe = recipe_for(data, directory, encoding=encoding, seed=seed)
    with TrainingView(verbose=False) as view:
        result = train(recipe.model_copy(update={"overwrite_output_dir": overwrite}), on_event=view)
    if as_json:
        print_json(result.as_dict())
        return

    from loquela.api import load
    from loquela.cli.terminal import visible

    model = load(directory)
    if view.started is not None:
        console.print(curve(read_rows(directory / "loss.csv")))
        typer.echo(
            f"{result.val_bits_per_byte:.3f} bits per byte on the {result.val_tokens:,} held-out tokens, after "
            f"{result.seconds:.0f} s of training"
        )
    if result.sample is not None and (view.started is not None or not chat):
        typer.echo(visible(result.sample.prompt + result.sample.text))
    note(f"The model is in {directory} (its loss curve in loss.html). Talk to it again: loquela chat -m {directory}")
    if chat:
        from loquela.cli.beside import playground
        from loquela.cli.chat import talk

        with playground(directory) if (sys.stdin.isatty() if page is None else page) else nullcontext():
            talk(model)


def corpus_name(corpus: str | None) -> str:
    """Return the name of a text that is shipped; raises `UsageError` for an unknown one."""
    from loquela.data.corpora import names
    from loquela.errors import nearest

    if corpus is not None and corpus not in names():
        raise UsageError(f"--corpus must be one of {', '.join(names())}, but is {corpus!r}{nearest(corpus, names())}")
    return corpus or DEFAULT_CORPUS
