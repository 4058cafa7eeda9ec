"""`loquela tour`: the lecture on language models, concept by concept, each on a model at hand."""

from __future__ import annotations

import io
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from loquela.cli.output import INTERRUPTED, console
from loquela.errors import CheckpointError, LoquelaError, UsageError

__all__ = ["Row", "app", "rows"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_ROWS = Path(__file__).parent.parent / "serving" / "page" / "tour.json"
"""Beside the page, which shows the same rows."""
_WIDTH = 100


class _Language(str, Enum):
    EN = "en"
    ES = "es"


_WORDS = {
    "en": {
        "live": "live",
        "more": "to do yourself",
        "not": "This model cannot show it:",
        "next": "Enter: next · q: leave ",
        "end": "That was the lecture. The same in the browser, live: ",
        "decoder": "decoder",
        "encoder": "encoder",
        "encoder-decoder": "encoder-decoder",
        "welcome": "{model}: {kind}, {parameters:,} parameters, a window of {window:,} tokens",
    },
    "es": {
        "live": "en vivo",
        "more": "para hacerlo usted",
        "not": "Este modelo no puede mostrarlo:",
        "next": "Intro: siguiente · q: salir ",
        "end": "Esa fue la clase. Lo mismo en el navegador, en vivo: ",
        "decoder": "decodificador",
        "encoder": "codificador",
        "encoder-decoder": "codificador-decodificador",
        "welcome": "{model}: {kind}, {parameters:,} parámetros, una ventana de {window:,} tokens",
    },
}


@dataclass(frozen=True)
class Row:
    """One concept. `live` are commands that the tour runs, `more` those that it only names; texts are by language.

    `house` are those that it runs on models in the package, when no other was named. In a command `{model}` stands for
    the model's directory and `{text}` for the text of the tour.
    """

    number: int
    concept: Mapping[str, str]
    says: Mapping[str, str]
    live: tuple[str, ...] = ()
    house: tuple[str, ...] = ()
    sees: Mapping[str, str] | None = None
    more: tuple[str, ...] = ()
    page: tuple[str, ...] = ()
    """The section of the page that shows it, and a picture where it is one of those."""


def rows() -> list[Row]:
    """Return the rows of the lecture, in its order."""
    found: list[dict[str, Any]] = json.loads(_ROWS.read_text(encoding="utf-8"))
    made = []
    for number, row in enumerate(found, 1):
        live, house, more, page = (tuple(row.pop(key, ())) for key in ("live", "house", "more", "page"))
        made.append(Row(number, **row, live=live, house=house, more=more, page=page))
    return made


@app.command()
def tour(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model directory. [default: the house models]")
    ] = None,
    language: Annotated[_Language, typer.Option(help="Of the explanations.")] = _Language.EN,
    row: Annotated[int | None, typer.Option(min=1, help="Only this row.")] = None,
    start: Annotated[int | None, typer.Option("--from", min=1, help="Begin with this row.")] = None,
    text: Annotated[str, typer.Option(help="What the model reads on the way.")] = "Once upon a time",
    list_rows: Annotated[bool, typer.Option("--list", help="List the rows.")] = False,
) -> None:
    """The lecture as a guided tour: each concept explained, shown on a model, and how to do it yourself.

    In a terminal Enter goes on and q leaves; in a pipe it goes straight through. What runs is the command that is
    printed above it.
    """
    all_rows = rows()
    if list_rows:
        for one in all_rows:
            typer.echo(f"{one.number:>2}  {one.concept[language.value]}")
        return
    if row is not None and start is not None:
        raise UsageError(f"one of --row and --from must be given, but both are: --row {row} --from {start}")
    for flag, number in (("--row", row), ("--from", start)):
        if number is not None and number > len(all_rows):
            raise UsageError(f"{flag} must be from 1 to {len(all_rows)}, but is {number} (--list shows the rows)")
    if not text.strip():
        raise UsageError("--text must be a text that a model can read, but is empty")

    words = _WORDS[language.value]
    directory, kind = _open(model, words)
    names = {"{model}": shlex.quote(directory), "{text}": shlex.quote(text), "{kind}": words[kind]}
    chosen = [r for r in all_rows if r.number == row] if row is not None else all_rows[(start or 1) - 1 :]
    for one in chosen:
        _show(one, language.value, names, house=model is None)
        if one is not chosen[-1] and not _goes_on(words["next"]):
            return
    if chosen[-1] is all_rows[-1] and row is None:
        _out().print("\n" + words["end"] + f"loquela play -m {shlex.quote(directory)}", soft_wrap=True)


def _open(model: str | None, words: Mapping[str, str]) -> tuple[str, str]:
    """Return the model's directory as commands name it, and its kind; say what it is. Raises `CheckpointError`."""
    from loquela.checkpoint import sizes
    from loquela.checkpoint.configs import read_config
    from loquela.checkpoint.hub import resolve
    from loquela.cli.play import shipped_model
    from loquela.models.base import architecture

    directory = shipped_model() if model is None else model
    config = read_config(resolve(Path(directory)))
    size = sizes.size(config)
    kind = architecture(config.model_type).NETWORK.kind
    said = words["welcome"].format(
        model=directory,
        kind=f"{config.model_type} ({words[kind]})",
        parameters=size.parameters["total"],
        window=size.context_length,
    )
    _out().print(said, style="dim", soft_wrap=True)
    return directory, kind


def _show(row: Row, language: str, names: Mapping[str, str], *, house: bool) -> None:
    """Print a row, running what is live."""
    from rich.text import Text

    words, out = _WORDS[language], _out()
    out.print()
    out.rule(Text(f"{row.number} · {row.concept[language]}", "bold cyan"), align="left", style="cyan", characters="─")
    out.print(row.says[language])
    for command in (*row.live, *(row.house if house else ())):
        _commands(words["live"], [_filled(command, names)])
        sys.stdout.flush()
        try:
            _run(_filled(command, names))
        except CheckpointError:
            raise
        except LoquelaError as error:
            out.print(f"{words['not']} {error}", style="yellow", soft_wrap=True)
    if row.sees is not None:
        out.print()
        out.print(_filled(row.sees[language], names))
    if row.more:
        _commands(words["more"], [_filled(command, names) for command in row.more])
    sys.stdout.flush()


def _commands(label: str, commands: Sequence[str]) -> None:
    """Print commands, each on one line, as it is to be copied."""
    out = _out()
    out.print(f"\n{label}:", style="dim")
    for command in commands:
        out.print(f"  {command}", style="bold green", soft_wrap=True)


def _filled(command: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        command = command.replace(name, value)
    return command


def _run(command: str) -> None:
    """Run `loquela …` or `printf %s TEXT | loquela …` in this process, through the verb itself."""
    from loquela.cli.main import app as top

    before, _, after = command.rpartition(" | ") if command.startswith("printf ") else ("", "", command)
    arguments = shlex.split(after)[1:]
    piped = shlex.split(before)[-1] if before else ""
    with _stdin(piped):
        code = typer.main.get_command(top).main(args=arguments, prog_name="loquela", standalone_mode=False)
    if code == INTERRUPTED:  # Ctrl-C ends the tour, not only the verb
        raise KeyboardInterrupt


@contextmanager
def _stdin(text: str) -> Iterator[None]:
    """Let a verb read `text` from its stdin, not what the person types."""
    kept = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    try:
        yield
    finally:
        sys.stdin = kept


def _interactive() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _goes_on(prompt: str) -> bool:
    """Wait for Enter where a person sits; False when they leave."""
    if not _interactive():
        return True
    console.print(f"\n{prompt}", style="dim", end="")
    line = sys.stdin.readline()
    return line != "" and not line.strip().lower().startswith("q")


def _out() -> Any:
    from rich.console import Console

    wide = Console(file=sys.stdout).width if sys.stdout.isatty() else _WIDTH
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=min(wide, _WIDTH))
