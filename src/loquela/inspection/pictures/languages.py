"""How many tokens a word costs, language by language, with one tokenizer or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import plotly.graph_objects as go

from loquela.errors import DataError
from loquela.inspection.reading import Inspected
from loquela.inspection.theme import COLOURS, figure
from loquela.text.tokenizer import Tokenizer

__all__ = ["TAKES", "VIEWS", "data", "terminal"]

TAKES = "model file"


def data(
    model: Inspected,
    text: str,
    *,
    other: Annotated[Inspected | None, "A second model, whose tokenizer is compared."] = None,
) -> dict[str, Any]:
    """Return what texts in several languages cost in tokens.

    `text` is a JSONL file of `lang` and `text`, best the same text in each language. `tokenizers` names them (kind and
    vocabulary); `languages` has for each `lang` its `words` (parts between blanks), `characters`, `bytes` (UTF-8), and
    by tokenizer the lists `tokens`, `tokens_per_word`, `tokens_per_character`, `bytes_per_token` and `unknown`. Where a
    script writes no blanks between words, `tokens_per_word` is None.
    """
    rows = _read(Path(text))
    tokenizers = [m.tokenizer for m in (model, other) if m is not None]
    return {
        "tokenizers": [f"{t.kind}, {t.vocab_size:,} tokens" for t in tokenizers],
        "languages": [_counted(lang, written, tokenizers) for lang, written in rows],
        "unavailable": {},
    }


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        found = [(str(row["lang"]), str(row["text"])) for row in rows]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'languages must be a JSONL file of lines {{"lang": …, "text": …}}, but {path} is none: {error}'
        ) from None
    if not found or any(not written.strip() for _, written in found):
        raise DataError(f"each language must have a text, but {path} has {len(found)} lines, or an empty one")
    return found


def _counted(lang: str, text: str, tokenizers: list[Tokenizer]) -> dict[str, Any]:
    words, characters = len(text.split()), len(text)
    spaced = characters / words < 20  # a "word" as long as a sentence is a script without blanks
    tokens, unknown = [], []
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens.append(len(ids))
        unknown.append(0 if tokenizer.unk_id is None else ids.count(tokenizer.unk_id))
    size = len(text.encode())
    return {
        "lang": lang,
        "words": words,
        "characters": characters,
        "bytes": size,
        "tokens": tokens,
        "tokens_per_word": [round(n / words, 4) if spaced else None for n in tokens],
        "tokens_per_character": [round(n / characters, 4) for n in tokens],
        "bytes_per_token": [round(size / n, 4) if n else None for n in tokens],
        "unknown": unknown,
    }


def per_word(content: dict[str, Any]) -> go.Figure:
    """Tokens per word."""
    return _bars(
        content,
        "tokens_per_word",
        "Tokens per word",
        "tokens per word",
        "How many tokens a word becomes on average. The more, the slower, the dearer and the shorter the text that "
        "fits the window. Scripts without blanks between words are missing here and stand in the next figure.",
    )


def per_character(content: dict[str, Any]) -> go.Figure:
    """Tokens per character."""
    return _bars(
        content,
        "tokens_per_character",
        "Tokens per character",
        "tokens per character",
        "How many tokens a character becomes on average: above 1, a single letter takes several tokens (its bytes).",
    )


def _bars(content: dict[str, Any], key: str, title: str, unit: str, caption: str) -> go.Figure:
    rows = [row for row in content["languages"] if row[key][0] is not None]
    rows.sort(key=lambda row: row[key][0])
    marked = [
        [f"{row['unknown'][i] / row['tokens'][i]:.0%} unknown" if row["unknown"][i] else "" for row in rows]
        for i in range(len(content["tokenizers"]))
    ]
    if any(any(texts) for texts in marked):
        caption += " Where a star stands, tokens are unknown: that text is not cheap but lost."
    made = figure(
        [
            go.Bar(
                x=[row["lang"] for row in rows],
                y=[row[key][i] for row in rows],
                name=name,
                marker={"color": COLOURS[i]},
                text=[f"{row[key][i]:.2g}{'*' if row['unknown'][i] else ''}" for row in rows],
                customdata=marked[i],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{x}: %{y:.3f} %{customdata}<extra>" + name + "</extra>",
            )
            for i, name in enumerate(content["tokenizers"])
        ],
        title=title,
        caption=caption,
        barmode="group",
        height=460,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        showlegend=True,
    )
    made.update_xaxes(title="language", tickangle=-40)
    return made.update_yaxes(title=unit, rangemode="tozero")


VIEWS = {"per_word": per_word, "per_character": per_character}


def terminal(content: dict[str, Any]) -> Any:
    """A row for each language."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("language", "words"):
        table.add_column(name, justify="left" if name == "language" else "right")
    for name in content["tokenizers"]:
        for key in ("tokens a word", "a character", "bytes a token", "unknown"):
            table.add_column(f"{key}\n{name}" if key == "tokens a word" else key, justify="right")
    for row in sorted(content["languages"], key=lambda r: r["tokens_per_character"][0]):
        cells = []
        for i in range(len(content["tokenizers"])):
            word, share = row["tokens_per_word"][i], row["bytes_per_token"][i]
            cells += ["–" if word is None else f"{word:.2f}", f"{row['tokens_per_character'][i]:.3f}"]
            cells += ["–" if share is None else f"{share:.2f}", str(row["unknown"][i])]
        table.add_row(row["lang"], f"{row['words']:,}", *cells)
    return table
