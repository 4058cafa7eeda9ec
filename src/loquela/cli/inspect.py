"""`loquela inspect WHAT -m DIR TEXT`: pictures of a model at work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loquela.cli.output import note, print_json
from loquela.cli.terminal import piped_text
from loquela.cli.threads import suit_threads

if TYPE_CHECKING:
    from loquela.api import LanguageModel
    from loquela.inspection.picture import Picture

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)
_WIDTH = 120


@app.command()
def inspect(
    what: Annotated[
        str | None, typer.Argument(metavar="WHAT", help="A picture, several with commas between, or `all`; none: list.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Argument(metavar="[TEXT] [OPTION=VALUE]…", help="The text, else piped in; options.")
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", "-m", help="Model directory.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter directory, worn by the model.")] = None,
    view: Annotated[
        str | None, typer.Option(help="One view of the picture; default: all of them, or the first.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a .html (offline, interactive), .png or .svg.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write all pictures named as one offline .html.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the picture's data as one JSON object.")] = False,
) -> None:
    """Look inside a model: who looks at whom, what comes next, what each layer says, where words lie, and more.

    `loquela inspect` alone lists the pictures and their options. In a terminal a picture is drawn there; --output
    writes it to a file, --json prints its data. `loquela inspect all -m DIR TEXT --report FILE.html` joins everything
    that the model can show. An option is written as `layer=3`; settings of generation such as `top_k=5` shape `next`
    and `loop`, and `other=DIR` is the second model of `diff`, `languages` and `gradients`.
    """
    from loquela.errors import UsageError
    from loquela.inspection.picture import PICTURES

    if what is None:
        _list()
        return
    chosen = list(PICTURES.values()) if what == "all" else [PICTURES[name.strip()] for name in what.split(",")]
    if (what == "all" or len(chosen) > 1) and report is None:
        raise UsageError("several pictures are joined by --report FILE.html, but no file is named")
    if report is not None and (json or output is not None):
        raise UsageError("--report writes a page of its own, so --json and --output must be left out")
    if view is not None and output is None:
        raise UsageError("--view chooses what --output writes, so a file must be named, but none is")
    words, given = _split(text or [], [name for picture in chosen for name in _known(picture)])
    loaded = _load(model, adapter, needed=any("model" in picture.takes for picture in chosen))
    if words is None and any({"text", "file"} & {*picture.takes} for picture in chosen):
        words = piped_text("loquela inspect WHAT -m DIR TEXT, or echo TEXT | loquela inspect WHAT -m DIR").rstrip("\n")
    if words is not None and not any({"text", "file"} & {*picture.takes} for picture in chosen):
        note(f"{chosen[0].name} takes no text: {words[:40]!r} changes nothing")
    others: dict[str, LanguageModel] = {}
    if report is not None:
        _report(report, chosen, loaded, words, given, others, explicit=what != "all")
        return
    from loquela.inspection.reading import model_name
    from loquela.inspection.shown import Shown

    (picture,) = chosen
    data = _data(picture, loaded, words, given, others)
    if json:
        print_json(data)
    shown = Shown(picture, data, model_name(loaded) if loaded else "")
    if output is not None:
        shown.save(output, view)
        note(f"{picture.name} is in {output}")
    elif not json:
        _print(picture.terminal(data), [f"{key}: unavailable, {why}" for key, why in data["unavailable"].items()])


def _known(picture: Picture) -> list[str]:
    from loquela.generation.settings import SETTINGS

    return [*picture.options, *(SETTINGS if picture.takes_settings else ())]


def _split(arguments: Sequence[str], known: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Tell the text from options; raises `UsageError` for an option that no picture asked for has."""
    from loquela.errors import UsageError, nearest

    texts: list[str] = []
    given: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name in known:
            given[name] = value
        elif equals and texts and name.isidentifier():
            raise UsageError(f"there is no option {name!r} here{nearest(name, known)}")
        else:
            texts.append(argument)
    if len(texts) > 1:
        raise UsageError(f"there must be one text, in quotes, but there are {len(texts)}: {texts[1]!r} is the second")
    return (texts[0] if texts else None), given


def _load(model: Path | None, adapter: Path | None, *, needed: bool) -> LanguageModel | None:
    from loquela.api import load
    from loquela.errors import UsageError

    if model is None:
        if needed:
            raise UsageError("a model must be named by --model DIR, but none is")
        return None
    opened = load(model, adapter=adapter)
    suit_threads(opened)
    return opened


def _data(
    picture: Picture,
    model: LanguageModel | None,
    text: str | None,
    given: Mapping[str, str],
    others: dict[str, LanguageModel],
) -> dict[str, Any]:
    """Read the options that are this picture's, and make its data."""
    from loquela.generation.settings import SETTINGS
    from loquela.inspection.reading import Inspected

    options: dict[str, Any] = {}
    for name, value in given.items():
        if name in picture.options:
            option = picture.options[name]
            if option.kind is Inspected:
                from loquela.api import load

                others[value] = options[name] = others.get(value) or load(value)
            else:
                options[name] = option.parse(value)
        elif picture.takes_settings and name in SETTINGS:
            options[name] = SETTINGS[name].parse(value)
    return picture.data(model, text, **options)


def _report(
    path: Path,
    pictures: Sequence[Picture],
    model: LanguageModel | None,
    text: str | None,
    given: Mapping[str, str],
    others: dict[str, LanguageModel],
    *,
    explicit: bool,
) -> None:
    from loquela.errors import UsageError
    from loquela.inspection.shown import report, write_text

    if path.suffix != ".html":
        raise UsageError(f"a report must be written as .html, but is {path.name!r}")
    if not explicit:  # what needs a file of its own is asked for by name
        pictures = [
            p
            for p in pictures
            if "file" not in p.takes and all(o.name in given for o in p.options.values() if o.needed)
        ]

    def maker(picture: Picture) -> Callable[[], dict[str, Any]]:
        return lambda: _data(picture, model, text, given, others)

    title = f"Inside {model.network.config.model_type}" if model is not None else "Inside language models"
    write_text(path, report(title, [(picture, maker(picture)) for picture in pictures], model))
    note(f"{len(pictures)} pictures are in {path}")


def _print(drawn: Any, missing: Sequence[str]) -> None:
    from rich.console import Console

    wide = None if sys.stdout.isatty() else _WIDTH
    Console(file=sys.stdout, highlight=False, width=wide, markup=False).print(drawn)
    for line in missing:
        note(line)


def _list() -> None:
    from rich.table import Table

    from loquela.inspection.picture import PICTURES

    table = Table(box=None, pad_edge=False)
    for column in ("WHAT", "shows", "option", ""):
        table.add_column(column)
    for picture in PICTURES.values():
        rows = [
            (o.name if o.needed or o.default is None else f"{o.name}={o.default}", o.help)
            for o in picture.options.values()
        ]
        if picture.takes_settings:
            rows.append(("temperature, top_k, …", "Any setting of generation."))
        for i, (name, help) in enumerate(rows or [("", "")]):
            table.add_row(*((picture.name, picture.title) if i == 0 else ("", "")), name, help)
    _print(table, [])
