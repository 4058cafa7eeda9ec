"""`loquela tokenizer train|show`: make a tokenizer from a text, or see how one cuts a text."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loquela.cli.output import console, note, print_json
from loquela.cli.terminal import decoded
from loquela.errors import UsageError

if TYPE_CHECKING:
    from loquela.text.tokenizer import Tokenizer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Train a tokenizer, or show how one cuts a text.",
)

_COLOURS = ("on dark_blue", "on dark_green", "on dark_magenta", "on dark_cyan", "on dark_red", "on orange4")
_CONTROLS = {code: 0x2400 + code for code in range(32)} | dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)
_VISIBLE = {**_CONTROLS, ord(" "): "·", ord("\n"): "↵", ord("\t"): "→"}
"""White space can be seen, and no token commands the terminal."""


@app.command()
def train(
    data: Annotated[list[str], typer.Argument(metavar="TEXT", help="Text files, or shakespeare, quijote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")],
    kind: Annotated[str, typer.Option(help="bpe, wordpiece, unigram, char or byte.")] = "bpe",
    vocab_size: Annotated[
        int | None, typer.Option(help="Tokens, special ones included.  [default: 4096, or all characters or bytes]")
    ] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the text files.")] = "utf-8",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Learn a vocabulary from texts and write it to a directory."""
    from loquela.data.vocabulary import bytes_per_token, train_tokenizer

    if (output / "tokenizer.json").exists():
        raise UsageError(f"--output must be a directory without a tokenizer, but {output} has one; choose another")
    start = time.perf_counter()
    with console.status(f"learning {kind} tokens …"):
        tokenizer = train_tokenizer(data, kind, vocab_size, encoding=encoding)
    tokenizer.save(output)
    seconds = time.perf_counter() - start
    if tokenizer.note:
        note(tokenizer.note)
    ratio = bytes_per_token(tokenizer, data, encoding=encoding)
    if json:
        print_json({**_summary(tokenizer, output), "bytes_per_token": ratio, "seconds": seconds})
        return
    typer.echo(f"{output}: {kind} tokenizer, {tokenizer.vocab_size:,} tokens, {ratio:.2f} bytes of text per token")
    note(f'See how it cuts a text: loquela tokenizer show {output} "some text"')


@app.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="A model or tokenizer directory, or tokenizer.json.")
    ],
    text: Annotated[str | None, typer.Argument(help="Text to cut; else stdin; else the tokenizer itself.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how a tokenizer cuts a text, or what it is."""
    from loquela.checkpoint.hub import resolve
    from loquela.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(resolve(path))
    if text is None and not sys.stdin.isatty():
        text = decoded(sys.stdin.buffer.read()) or None
    if text is None:
        _show_tokenizer(tokenizer, path, json)
        return
    ids = tokenizer.encode(text)
    tokens: list[dict[str, Any]] = [
        {"id": i, "text": tokenizer.token(i), "start": start, "end": end}
        for i, (start, end) in zip(ids, tokenizer.offsets(text), strict=True)
    ]
    if json:
        print_json({**_summary(tokenizer, path), "tokens": tokens})
    elif sys.stdout.isatty():
        _draw(tokens)
    else:
        for token in tokens:
            typer.echo(f"{token['id']}\t{token['text'].translate(_VISIBLE)}")
    size = len(text.encode())
    note(
        f"{len(ids):,} tokens, {len(text):,} characters, {size:,} bytes: {size / max(1, len(ids)):.2f} bytes per token"
    )


def _summary(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    return {
        "tokenizer": str(path),
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": tokenizer.special_tokens,
    }


def _show_tokenizer(tokenizer: Tokenizer, path: Path, json: bool) -> None:
    if json:
        print_json(_summary(tokenizer, path))
        return
    special = ", ".join(f"{name} {token_id}" for name, token_id in tokenizer.special_tokens.items()) or "none"
    typer.echo(f"{path}: {tokenizer.kind} tokenizer, {tokenizer.vocab_size:,} tokens; special: {special}")


def _draw(tokens: list[dict[str, Any]]) -> None:
    """Draw each token over its id, in columns, as many to a line as the terminal holds; a line end ends it."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    above, below = Text(), Text()

    def new_line() -> None:
        nonlocal above, below
        if above:
            console.print(above, below, sep="\n", soft_wrap=True)
        above, below = Text(), Text()

    for index, token in enumerate(tokens):
        shown, number = token["text"].translate(_VISIBLE), str(token["id"])
        width = max(cell_len(shown), len(number))
        if above.cell_len + width > console.width:
            new_line()
        above.append(shown, style=f"bold white {_COLOURS[index % len(_COLOURS)]}")
        above.append(" " * (width - cell_len(shown) + 1))
        below.append(f"{number:<{width}} ", style="dim")
        if "\n" in token["text"]:
            new_line()
    new_line()
