"""`loquela score`: how well a model expects a text."""

from __future__ import annotations

import math
import sys
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
    model: Annotated[Path, typer.Option("--model", "-m", help="Model directory.")],
    file: Annotated[str | None, typer.Argument(help="Text file or document set; else what is piped in.")] = None,
    window: Annotated[int | None, typer.Option(help="Tokens before each; default: the context window.")] = None,
    stride: Annotated[int | None, typer.Option(help="How far the window moves; default: half the window.")] = None,
    adapter: AdapterOption = None,
    quantize: QuantizeOption = None,
    versus: Annotated[str | None, typer.Option(help="Another text, to see which the model expects more.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the file.")] = "utf-8",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Log-probability (nats), perplexity (per token) and bits per byte of a text under a model.

    With the default stride every token of a long text sees at least half a window of what comes before it; with
    --stride equal to the window the figures are those of a validation loss. In a terminal the beginning of the text is
    coloured by surprise.
    """
    from loquela.data.readers import Piece, read_pieces

    notes: list[str] = []
    if file is None:
        pieces = [Piece(piped_text("loquela score -m DIR FILE, or echo TEXT | loquela score -m DIR"), True)]
    else:
        pieces = list(read_pieces(file, encoding=encoding, notes=notes))

    language_model = open_model(model, quantize=quantize, adapter=adapter)
    result = language_model.score(pieces, window=window, stride=stride)
    notes += result.notes
    figures = _figures(result)
    other = None
    if versus is not None:
        second = language_model.score(read_pieces(versus, encoding=encoding, notes=notes), window=window, stride=stride)
        notes += [line for line in second.notes if line not in notes]
        other = _figures(second)
    for line in notes:
        note(line)
    if json:
        print_json(figures | {"notes": notes} | ({} if other is None else {"versus": other | _gaps(figures, other)}))
        return
    if sys.stdout.isatty():
        _colour(language_model.tokenizer, result)
    for name, value in figures.items():
        beside = "" if other is None else f" {_number(other[name]):>16}"
        write(f"{name.replace('_', ' '):<14} {_number(value):>{16 if other else 0}}{beside}\n")
    if other is not None:
        for name, value in _gaps(figures, other).items():
            write(f"{name.replace('_', ' ')}: {value:+.4f}\n")


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
