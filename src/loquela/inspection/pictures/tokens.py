"""The text cut in tokens, with ids, bytes and how probable each was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from loquela.errors import TokenizerError
from loquela.generation.decode import evaluating
from loquela.inspection.reading import Inspected, Reading, Text, UnavailableError, read, token_texts
from loquela.inspection.strip import strip
from loquela.inspection.theme import COLOURS, figure, ticks

__all__ = ["VIEWS", "data", "log_probs", "terminal"]

_MOST_MASKED = 128
_FILLS = ("#BBD7EE", "#FBD5B5", "#BFE5D6", "#EBCFE0", "#F5E6A8")
"""Light boxes that follow each other; their order, not their colour, says where a token ends."""


_TERMINAL = ("cyan", "yellow", "green", "magenta")  # which every terminal has


def data(model: Inspected, text: Text) -> dict[str, Any]:
    """Return the tokens of a text.

    - `text`, `kind` (of the tokenizer), `vocab_size`
    - `tokens`: for each its `id`, `text` as a person reads it, `bytes` (UTF-8, in hexadecimal; None for a special
      token) and `log_prob` (nats; None where nothing precedes it)
    - `measure`: what `log_prob` is: given what stands before; or with this token alone masked (an encoder); of the
      target given the source (an encoder-decoder, whose `target` tokens are listed too)
    """
    reading = read(model, text)
    tokenizer, missing = model.tokenizer, {}
    found: Sequence[float | None] = [None] * len(reading.written)
    measure = None
    try:
        found, measure = log_probs(model, reading)
    except UnavailableError as error:
        missing["log_prob"] = str(error)
    source = found if reading.target is None else [None] * len(reading.ids)
    content = {
        "text": text if isinstance(text, str) else tokenizer.decode(reading.ids),
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "tokens": _listed(model, reading.ids, source),
        "measure": measure,
        "unavailable": missing,
    }
    if reading.target is not None:
        content["target"] = _listed(model, reading.target, found)
    return content


def log_probs(model: Inspected, reading: Reading) -> tuple[list[float | None], str]:
    """Return the log-probability (nats) of each token of `reading.written`, and in words what it is given."""
    if reading.network.kind == "encoder":
        return _masked(model, reading), "each token when it alone is masked"
    logits = reading.logits()
    ids = torch.tensor(reading.written[1:], device=logits.device)
    scores = logits[:-1].log_softmax(-1).gather(1, ids[:, None])[:, 0]
    given = "each token given those before it" + ("" if reading.target is None else " and the source")
    return [None, *scores.double().tolist()], given


def _masked(model: Inspected, reading: Reading) -> list[float | None]:
    """Mask one token after the other (Salazar et al., 2020, arXiv:1910.14659); special tokens are left as they are."""
    network, mask = reading.network, model.tokenizer.mask_id
    if mask is None or getattr(network, "task", "fill-mask") != "fill-mask":
        raise UnavailableError("an encoder says how probable a token is only by a head that fills masks")
    special = set(model.tokenizer.special_tokens.values())
    places = [i for i, token in enumerate(reading.ids) if token not in special]
    if len(places) > _MOST_MASKED:
        raise UnavailableError(f"one pass per token is made for texts up to {_MOST_MASKED} tokens")
    scores: list[float | None] = [None] * len(reading.ids)
    ids = torch.tensor(reading.ids, device=next(network.parameters()).device)
    with evaluating(network):
        for place in places:
            hidden = ids.clone()
            hidden[place] = mask
            row = network.head(network.hidden(hidden[None])[0, place]).float().log_softmax(-1)
            scores[place] = float(row[ids[place]])
    return scores


def _listed(model: Inspected, ids: Sequence[int], scores: Sequence[float | None]) -> list[dict[str, Any]]:
    special = set(model.tokenizer.special_tokens.values())
    texts = token_texts(model.tokenizer, ids)
    return [
        {
            "id": token,
            "text": text,
            "bytes": None if token in special else _bytes(text),
            "log_prob": None if score is None else round(score, 6),
        }
        for token, text, score in zip(ids, texts, scores, strict=True)
    ]


def _bytes(text: str) -> str:
    """UTF-8 in hexadecimal; a token that is half a character reads as `<0xE2>…` already."""
    if text.startswith("<0x") and text.endswith(">"):
        return text.replace("<0x", "").replace(">", " ").strip()
    try:
        return text.encode().hex(" ").upper()
    except UnicodeEncodeError:
        raise TokenizerError("a token must be whole Unicode characters, but is not") from None


def _all(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [*content["tokens"], *content.get("target", ())]


def cut(content: dict[str, Any]) -> go.Figure:
    """The text in boxes, one per token."""
    listed = _all(content)
    hover = [
        f"token {i}<br>id {token['id']}<br>bytes {token['bytes'] or 'none: a special token'}" + _said(token)
        for i, token in enumerate(listed)
    ]
    fills = [_FILLS[i % len(_FILLS)] for i in range(len(listed))]
    words = max(len(content["text"].split()), 1)
    return strip(
        [token["text"] for token in listed],
        fills,
        hover,
        ids=[token["id"] for token in listed],
        title=f"{len(content['tokens'])} tokens of a {content['kind']} vocabulary of {content['vocab_size']:,}",
        caption=f"Each box is one token; its number in the vocabulary stands beneath. {len(content['tokens'])} tokens "
        f"for {words} words. A dot is a blank that belongs to the token, ↵ a line end.",
    )


def _said(token: dict[str, Any]) -> str:
    if token["log_prob"] is None:
        return ""
    return f"<br>probability {math.exp(token['log_prob']):.4g}<br>surprise {-token['log_prob'] / math.log(2):.2f} bits"


def surprise(content: dict[str, Any]) -> go.Figure | None:
    """Bits of surprise of each token."""
    listed = [token for token in _all(content) if token["log_prob"] is not None]
    if not listed:
        return None
    bits = np.array([-token["log_prob"] / math.log(2) for token in listed])
    made = figure(
        go.Bar(
            x=list(range(len(listed))),
            y=bits,
            marker={"color": COLOURS[0]},
            customdata=[math.exp(token["log_prob"]) for token in listed],
            hovertemplate="%{y:.2f} bits, probability %{customdata:.4g}<extra></extra>",
        ),
        title="How much each token surprised the model",
        caption=f"Bits of surprise, -log₂ of the probability of {content['measure']}: 1 bit is a coin toss, 0 was "
        f"certain. On average {bits.mean():.2f} bits.",
    )
    made.update_xaxes(**ticks([token["text"] for token in listed]))
    return made.update_yaxes(title="surprise (bits)", rangemode="tozero")


VIEWS = {"cut": cut, "surprise": surprise}


def terminal(content: dict[str, Any]) -> Any:
    """The text in coloured tokens, then a table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text as Rich

    text, table = Rich(), Table(box=None, pad_edge=False)
    for name in ("token", "id", "bytes", "probability", "bits"):
        table.add_column(name, justify="left" if name in ("token", "bytes") else "right")
    for i, token in enumerate(_all(content)):
        shown = "".join(c if c.isprintable() else "␤" if c == "\n" else "\ufffd" for c in token["text"])
        text.append(shown, f"black on {_TERMINAL[i % len(_TERMINAL)]}")
        score = token["log_prob"]
        chance, bits = ("", "") if score is None else (f"{math.exp(score):.4f}", f"{-score / math.log(2):.2f}")
        table.add_row(repr(token["text"])[1:-1], str(token["id"]), token["bytes"] or "special", chance, bits)
    return Group(text, Rich(), table)
