"""`loquela score`: how well a model expects a text."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loquela.cli.options import AdapterOption, QuantizeOption, open_model
from loquela.cli.output import note, print_json
from loquela.cli.terminal import piped_text, visible, write

if TYPE_CHECKING:
    from loquela.evaluation.perplexity import Score
    from loquela.text.tokenizer import Tokenizer

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None, add_completion=False)
_SHOWN = 4000  # characters coloured in the terminal: a few screens
_COLOURS = {1: "", 3: "on #1d3a5f", 6: "on #3f6b8c", 10: "black on #c9b458", float("inf"): "black on #f7d03c"}
"""Bits of surprise up to a bound → style; one scale from dark to bright, which the colour-blind read too."""


@app.command()
def score(
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model directory; with --url the model's name there.")
    ] = None,
    file: Annotated[str | None, typer.Argument(help="Text file or document set; else what is piped in.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens before each; default: the context window.")] = None,
    stride: Annotated[int | None, typer.Option(help="How far the window moves; default: half the window.")] = None,
    adapter: AdapterOption = None,
    quantize: QuantizeOption = None,
    versus: Annotated[str | None, typer.Option(help="Another text, to see which the model expects more.")] = None,
    url: Annotated[str | None, typer.Option(help="Ask a server instead, e.g. http://127.0.0.1:8000/v1.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the file.")] = "utf-8",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Log-probability (nats), perplexity (per token) and bits per byte of a text under a model.

    With the default stride every token of a long text sees at least half a window of what comes before it; with
    --stride equal to the window the figures are those of a validation loss. In a terminal the beginning of the text is
    coloured by surprise. Of a masked model it is the pseudo-perplexity: each token of a line from all others.
    """
    from loquela.data.readers import Piece, read_pieces
    from loquela.errors import UsageError

    if model is None and url is None:
        raise UsageError("score needs a model: -m DIR, or --url http://HOST:PORT/v1")

    notes: list[str] = []
    if file is None:
        pieces = [Piece(piped_text("loquela score -m DIR FILE, or echo TEXT | loquela score -m DIR"), True)]
    else:
        pieces = list(read_pieces(file, encoding=encoding, notes=notes))

    ask: Callable[..., Score]
    if url is None:
        assert model is not None
        language_model = open_model(model, quantize=quantize, adapter=adapter)
        ask, tokenizer = partial(language_model.score, window=window, stride=stride), language_model.tokenizer
    else:
        if adapter or quantize:
            raise UsageError("--adapter and --quantize have no effect on a server: name what it serves with -m")
        ask, tokenizer = _remote(url, model, window, stride), None
    result = ask(pieces)
    notes += result.notes
    figures = _figures(result)
    other = None
    if versus is not None:
        second = ask(read_pieces(versus, encoding=encoding, notes=notes))
        notes += [line for line in second.notes if line not in notes]
        other = _figures(second)
    for line in notes:
        note(line)
    if json:
        more: dict[str, object] = {"pseudo": True} if result.pseudo else {}
        print_json(
            figures | more | {"notes": notes} | ({} if other is None else {"versus": other | _gaps(figures, other)})
        )
        return
    if sys.stdout.isatty() and tokenizer is None:
        note("a text is coloured by the model's own tokenizer, which a server keeps: with -m DIR only")
    elif tokenizer is not None and sys.stdout.isatty():
        _colour(tokenizer, result)
    width = 20 if result.pseudo else 14
    for name, value in figures.items():
        beside = "" if other is None else f" {_number(other[name]):>16}"
        name = f"pseudo-{name}" if result.pseudo and name in ("log_prob", "perplexity", "bits_per_byte") else name
        write(f"{name.replace('_', ' '):<{width}} {_number(value):>{16 if other else 0}}{beside}\n")
    if other is not None:
        for name, value in _gaps(figures, other).items():
            write(f"{name.replace('_', ' ')}: {value:+.4f}\n")


def _remote(url: str, model: Path | None, window: int | None, stride: int | None) -> Callable[..., Score]:
    """Return what scores a text at a server."""
    from loquela.evaluation.remote import RemoteSubject
    from loquela.evaluation.remote_text import remote_score

    subject = RemoteSubject(url, None if model is None else str(model))
    return partial(remote_score, subject, window=window, stride=stride)


def _figures(result: Score) -> dict[str, float]:
    return {
        "tokens": result.tokens,
        "log_prob": result.log_prob,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "bytes": result.n_bytes,
        "window": result.window,
        "stride": result.stride,
    }


def _gaps(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """How much likelier the first text is: as a whole (shorter texts are likelier), and by what a byte of it costs."""
    return {
        "log_prob_difference": first["log_prob"] - second["log_prob"],
        "bits_per_byte_difference": first["bits_per_byte"] - second["bits_per_byte"],
    }


def _number(value: float) -> str:
    return f"{value:{',' if isinstance(value, int) else ',.4f'}}"


def _colour(tokenizer: Tokenizer, result: Score) -> None:
    """Print the beginning of the text, each token on the colour of its surprise, and what the colours mean."""
    from rich.console import Console
    from rich.text import Text

    decoder, text = tokenizer.stream(), Text()
    for token, log_prob in zip(result.ids, result.log_probs, strict=True):
        if len(text) > _SHOWN:
            text.append(" …", "dim")
            break
        text.append(visible(decoder.push(int(token))), _style(-log_prob / math.log(2)))
    legend = Text("bits of surprise:")
    for bound, style in _COLOURS.items():
        legend.append(" ").append(f" to {bound} " if math.isfinite(bound) else " more ", style)
    console = Console(file=sys.stdout, highlight=False)
    console.print(text, soft_wrap=True)
    console.print(legend)


def _style(bits: float) -> str:
    return next((style for bound, style in _COLOURS.items() if bits <= bound), "dim")  # NaN: given, not scored
