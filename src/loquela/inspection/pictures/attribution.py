"""What made the model say it: a prediction taken apart by layer and head, and by token."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from loquela.errors import UsageError
from loquela.inspection.credit import attribute
from loquela.inspection.reading import (
    Inspected,
    Reading,
    Text,
    UnavailableError,
    gap,
    head,
    read,
    token_text,
    token_texts,
)
from loquela.inspection.strip import strip
from loquela.inspection.theme import COLOURS, figure, heat, visible_tokens
from loquela.layers.counts import Counting

__all__ = ["VIEWS", "data", "gradient_times_input", "terminal"]

_MOST = 512


def data(
    model: Inspected,
    text: Text,
    *,
    token: Annotated[str | None, "The token that is explained; else the most probable one."] = None,
    against: Annotated[str | None, "Explain its logit minus that of this token."] = None,
    place: Annotated[
        int | None, "After which token (from 0; -1: the last, as unless said); of an encoder, its one mask."
    ] = None,
    target: Annotated[str | None, "What an encoder-decoder has written so far."] = None,
) -> dict[str, Any]:
    """Return what a prediction is the sum of, and which tokens it hangs on.

    - `tokens`; `place`, and the `token` predicted there: `id`, `text`, `logit`, `probability`; `against` likewise, or
      None
    - `terms`: addends of the logit (or of the difference): `kind` (embedding, head, cross, feed_forward, bias),
      `layer`, `head`, `value`; they sum to `total`
    - `saliency`: for each input token the gradient of the logit at its embedding times the embedding; of an
      encoder-decoder, `source_saliency` for the tokens in `source` too
    """
    reading = read(model, text, target, most=_MOST)
    count, predicted = len(reading.written), reading.logits()
    if place is None:
        place = gap(model, reading) if model.network.kind == "encoder" else -1
    if not -count <= place < count:
        raise UsageError(f"place must be from {-count} to {count - 1}, but is {place}")
    place %= count
    logits = predicted[place].double()
    chosen = int(logits.argmax()) if token is None else _id(model, token)
    other = None if against is None else _id(model, against)
    missing: dict[str, str] = {}
    terms: list[dict[str, Any]] | None = None
    total = float(logits[chosen] - (0 if other is None else logits[other]))
    try:
        terms = _terms(reading, place, chosen, other)
    except UnavailableError as error:
        missing["terms"] = str(error)
    saliency: list[float] | None = None
    source: list[float] | None = None
    try:
        saliency, source = gradient_times_input(reading, place, chosen, other)
    except UnavailableError as error:
        missing["saliency"] = str(error)
    if len(missing) == 2:
        raise UnavailableError(missing["terms"])
    content: dict[str, Any] = {
        "tokens": token_texts(model.tokenizer, reading.written),
        "place": place,
        "token": _said(model, logits, chosen),
        "against": None if other is None else _said(model, logits, other),
        "terms": terms,
        "total": total,
        "saliency": None if saliency is None else [round(v, 6) for v in saliency],
        "unavailable": missing,
    }
    if source is not None:
        content["source"] = token_texts(model.tokenizer, reading.ids)
        content["source_saliency"] = [round(v, 6) for v in source]
    return content


def _terms(reading: Reading, place: int, chosen: int, other: int | None) -> list[dict[str, Any]]:
    terms, _ = attribute(reading, place, chosen)
    minus = {} if other is None else {(t.kind, t.layer, t.head): t.value for t in attribute(reading, place, other)[0]}
    return [
        {
            "kind": t.kind,
            "layer": t.layer,
            "head": t.head,
            "value": round(t.value - minus.get((t.kind, t.layer, t.head), 0.0), 8),
        }
        for t in terms
    ]


def gradient_times_input(
    reading: Reading, place: int, chosen: int, other: int | None = None
) -> tuple[list[float], list[float] | None]:
    """Return for each token of `written` (and of the source) the gradient of the logit times its embedding, summed.

    To a first approximation, how much of the logit goes when the token's embedding does (Shrikumar et al., 2016,
    arXiv:1605.01713).
    """
    network = reading.network
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    tables = [m for n, m in network.named_modules() if isinstance(m, nn.Embedding) and _of_tokens(n)]
    if not tables:
        raise UnavailableError(
            f"attribution is unavailable: {network.config.model_type} has no embedding of its tokens"
        )
    if isinstance(network, Counting):
        raise UnavailableError(
            f"attribution is unavailable: {network.config.model_type} predicts from counts too, which have no gradient"
        )
    handles = [module.register_forward_hook(catch) for module in tables]
    training = network.training
    try:
        with torch.enable_grad():
            logits = head(network.eval(), reading.hidden()[0, place])
            aim = logits[chosen] if other is None else logits[chosen] - logits[other]
            if caught[-1].shape[0] != 1:
                raise UnavailableError(f"{network.config.model_type} embeds windows of its text, not each token once")
            gradients = torch.autograd.grad(aim, caught, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    products = [
        [0.0] * x.shape[1] if g is None else (g * x)[0].sum(-1).double().tolist()
        for g, x in zip(gradients, caught, strict=True)
    ]
    written = products[-1][-len(reading.written) :]  # a soft prompt stands before the text
    return written, None if reading.target is None else products[0][-len(reading.ids) :]  # the source is read first


def _of_tokens(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    return last in ("token_embedding", "tokens", "encoder_embedding")


def _id(model: Inspected, token: str) -> int:
    encode = model.tokenizer.encode
    for text in (token, " " + token):
        ids = encode(text, add_special_tokens=False)
        if len(ids) == 1:
            return ids[0]
    found = model.tokenizer.id_of(token)
    if found is None:
        raise UsageError(f"a token must be one piece of the vocabulary, but {token!r} is {len(encode(token))}")
    return found


def _said(model: Inspected, logits: Tensor, token: int) -> dict[str, Any]:
    return {
        "id": token,
        "text": token_text(model.tokenizer, token),
        "logit": float(logits[token]),
        "probability": float(logits.softmax(-1)[token]),
    }


def _aim(content: dict[str, Any]) -> str:
    name = visible_tokens([content["token"]["text"]])[0]
    return f"“{name}”" + (f" over “{visible_tokens([content['against']['text']])[0]}”" if content["against"] else "")


_KINDS = {"head": "attention", "cross": "cross-attention", "feed_forward": "feed-forward"}


def layers(content: dict[str, Any]) -> go.Figure | None:
    """Addends of the logit by layer."""
    if content["terms"] is None:
        return None
    rows: dict[str, dict[str, float]] = {}
    for term in content["terms"]:
        row = "biases" if term["layer"] is None else f"layer {term['layer']}"
        row = "embedding" if term["kind"] == "embedding" else row
        kind = _KINDS.get(term["kind"], "embedding, biases")
        found = rows.setdefault(row, {})
        found[kind] = found.get(kind, 0.0) + term["value"]
    if "biases" in rows:
        rows["biases"] = rows.pop("biases")
    kinds = [kind for kind in (*_KINDS.values(), "embedding, biases") if any(kind in row for row in rows.values())]
    made = figure(
        [
            go.Bar(
                x=list(rows),
                y=[row.get(kind, 0.0) for row in rows.values()],
                name=kind,
                marker={"color": COLOURS[i]},
                hovertemplate="%{x}, " + kind + ": %{y:+.3f}<extra></extra>",
            )
            for i, kind in enumerate(kinds)
        ],
        title=f"What the prediction {_aim(content)} is the sum of",
        caption=f"The addends of its logit, {content['total']:.2f} (probability "
        f"{content['token']['probability']:.1%}): what each layer adds to the stream, as the head reads it. "
        "All bars together are exactly the logit; a bar below zero argues against the token.",
        barmode="relative",
    )
    return made.update_yaxes(title="addend of the logit")


def heads(content: dict[str, Any]) -> go.Figure | None:
    """Addends of the logit by head."""
    if content["terms"] is None:
        return None
    cells = [t for t in content["terms"] if t["kind"] == "head"]
    grid = np.zeros((1 + max(t["layer"] for t in cells), 1 + max(t["head"] for t in cells)), dtype=np.float32)
    for t in cells:
        grid[t["layer"], t["head"]] = t["value"]
    made = figure(
        heat(
            grid,
            unit="addend",
            hover="layer %{y}, head %{x}: %{z:+.3f}",
            diverging=True,
            texttemplate="%{z:+.2f}" if grid.size <= 200 else None,
        ),
        title=f"Which attention head spoke for {_aim(content)}",
        caption="What each head alone adds to the logit: blue argues for the token, orange against it.",
        height=200 + 34 * len(grid),
    )
    made.update_xaxes(title="head", dtick=1, showgrid=False, zeroline=False)
    return made.update_yaxes(title="layer", dtick=1, autorange="reversed", showgrid=False, zeroline=False)


def saliency(content: dict[str, Any]) -> go.Figure | None:
    """Input tokens by gradient × input."""
    if content["saliency"] is None:
        return None
    values = [*content.get("source_saliency", ()), *content["saliency"]]
    texts = [*content.get("source", ()), *content["tokens"]]
    most = max(map(abs, values)) or 1.0
    return strip(
        texts,
        [_shade(v / most) for v in values],
        [f"gradient × input {v:+.3f}" for v in values],
        title=f"Which tokens the prediction {_aim(content)} hangs on",
        caption="Gradient × input: blue tokens push its logit up, orange ones down, pale ones hardly matter. A first "
        "approximation, and only that: it says what a small change would do.",
    )


def _shade(v: float) -> str:
    """From orange over near white to blue, light enough for dark text."""
    end = (0x56, 0xA8, 0xE0) if v >= 0 else (0xF0, 0x8C, 0x4A)
    return "#" + "".join(f"{round(245 + (c - 245) * min(1.0, abs(v))):02x}" for c in end)


VIEWS = {"layers": layers, "heads": heads, "saliency": saliency}


def terminal(content: dict[str, Any]) -> Any:
    """The largest terms, and the text coloured by what it hangs on."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text as Rich

    values = content["saliency"] or [0.0] * len(content["tokens"])
    most = max(map(abs, values)) or 1.0
    text = Rich()
    for token, value in zip(content["tokens"], values, strict=True):
        shown = "".join(c if c.isprintable() else "␤" for c in token)
        text.append(shown, f"#16181d on {_shade(value / most)}")
    drawn: list[Any] = [Rich(f"what {content['token']['text']!r} hangs on (blue for, orange against)", "bold"), text]
    if content["terms"] is not None:
        table = Table(box=None, pad_edge=False, title=f"\nlogit {content['total']:.3f} is", title_justify="left")
        for name in ("addend", "part", "layer", "head"):
            table.add_column(name, justify="left" if name == "part" else "right")
        ordered = sorted(content["terms"], key=lambda t: -abs(t["value"]))
        for t in ordered[:14]:
            where = ["" if t[key] is None else str(t[key]) for key in ("layer", "head")]
            table.add_row(f"{t['value']:+.3f}", t["kind"].replace("_", "-"), *where)
        rest = sum(t["value"] for t in ordered[14:])
        table.add_row(f"{rest:+.3f}", f"{max(0, len(ordered) - 14)} more", style="dim")
        drawn.append(table)
    return Group(*drawn)
