"""Who looks at whom: attention by layer and head."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from loquela.errors import UsageError
from loquela.generation.decode import evaluating
from loquela.inspection.maps import lines, pooled_by, shares
from loquela.inspection.patterns import PATTERNS, Weights, describe, induction, repeated, rollout
from loquela.inspection.reading import Inspected, Reading, Text, UnavailableError, layers_of, read, token_texts
from loquela.inspection.theme import COLOURS, INK, figure, ticks
from loquela.inspection.watch import watch
from loquela.layers.attention import MultiHeadAttention

__all__ = ["VIEWS", "data", "terminal", "weights_of"]

_MOST = 512
_MOST_CELLS, _MOST_MENU, _MOST_EXACT = 160_000, 250_000, 40_000
_PERIOD = 24
_SIDES = {"encoder": ("encoder", "attention"), "decoder": ("decoder", "attention"), "cross": ("decoder", "cross")}


def data(
    model: Inspected,
    text: Text,
    *,
    part: Annotated[str | None, "encoder, decoder or cross; else cross where there is one."] = None,
    target: Annotated[str | None, "What an encoder-decoder writes; else what it writes itself."] = None,
    layer: Annotated[int | None, "The layer (from 0) that single maps show."] = None,
    head: Annotated[int | None, "The head (from 0) that single maps show."] = None,
) -> dict[str, Any]:
    """Return the attention of every head.

    - `attention` [layer][head][query][key]: each row sums to 1
    - `queries` and `keys`: the tokens that look and that are looked at, as texts; `tokens` are the keys once more
    - `part`: which of `parts` this is
    - `heads`: for each head its scores for the patterns, highest first; see `loquela.inspection.patterns`
    - `rollout` [query][key], through all layers; None for cross-attention
    - `shown`: layer and head of the single maps, the one with the clearest pattern unless asked for
    """
    network = model.network
    parts = [part for part, (side, brick) in _SIDES.items() if _bricks(model, side, brick)]
    if not parts:
        raise UnavailableError(f"attention is unavailable: {network.config.model_type} has none")
    if part is None:
        part = parts[-1]
    if part not in parts:
        raise UsageError(f"part must be one of {', '.join(parts)} for this model, but is {part!r}")
    reading = read(model, text, target, most=_MOST)
    weights = weights_of(reading, part)
    square = part != "cross"
    keys = token_texts(model.tokenizer, reading.written if part == "decoder" else reading.ids)
    queries = token_texts(model.tokenizer, reading.ids if part == "encoder" else reading.written)
    missing = {} if square else {"rollout": "it follows one stream, and cross-attention joins two"}
    before = weights.shape[-1] - len(keys)  # a tuned prefix stands before the text
    keys = [f"prefix {i}" for i in range(before)] + keys
    square = square and not before
    if before:
        missing["rollout"] = "a tuned prefix is looked at but looks at nothing"
    echoed = None
    if network.kind == "decoder" and not before:
        echoed = _echoed(model)
    else:
        missing["induction"] = "it is measured on a decoder that reads its own text"
    heads = describe(weights, echoed, square=square)
    count = weights.shape[:2]
    shown = [heads[0]["layer"] if layer is None else layer, heads[0]["head"] if head is None else head]
    if layer is not None and head is None:
        shown[1] = next((h["head"] for h in heads if h["layer"] == layer), 0)
    if not (0 <= shown[0] < count[0] and 0 <= shown[1] < count[1]):
        raise UsageError(f"layer and head must be below {count[0]} and {count[1]}, but are {shown[0]} and {shown[1]}")
    return {
        "tokens": keys,
        "queries": queries,
        "keys": keys,
        "part": part,
        "parts": parts,
        "attention": weights.round(6),
        "heads": heads,
        "rollout": rollout(weights).round(6) if square else None,
        "shown": shown,
        "unavailable": missing,
    }


def weights_of(reading: Reading, part: str) -> Weights:
    """Return the weights (layers, heads, queries, keys) of a part: `encoder`, `decoder` or `cross`."""
    side, brick = _SIDES[part]
    name = f"{side}.layers.*.{brick}:weights"
    with watch(reading.network, name) as seen, evaluating(reading.network):
        reading.hidden()
    found = [maps[-1][0].double().cpu().numpy() for maps in seen.values()]
    keys = max(one.shape[-1] for one in found)
    # a layer with a window may see fewer keys than the others: those it does not see weigh 0
    return np.stack([np.pad(one, ((0, 0), (0, 0), (keys - one.shape[-1], 0))) for one in found])


def _bricks(model: Inspected, side: str, brick: str) -> bool:
    layers = [layer for name, layer in layers_of(model.network) if name.startswith(side)]
    return bool(layers) and all(isinstance(getattr(layer, brick, None), MultiHeadAttention) for layer in layers)


def _echoed(model: Inspected) -> Any:
    network = model.network
    period = min(_PERIOD, network.context_length // 2)
    if period < 4:
        return None
    size = min(network.vocab_size, model.tokenizer.vocab_size)
    ids = repeated(size, period, sorted(model.tokenizer.special_tokens.values()))
    return induction(weights_of(Reading(network, ids), "decoder"), period)


def _name(content: dict[str, Any]) -> str:
    return "cross-attention" if content["part"] == "cross" else f"{content['part']} self-attention"


def grid(content: dict[str, Any]) -> go.Figure:
    """Every head at once, small."""
    weights = np.asarray(content["attention"])
    layers, heads = weights.shape[:2]
    pooled = 1 + int((weights.size / _MOST_CELLS) ** 0.5) if weights.size > _MOST_CELLS else 1
    weights = pooled_by(weights, pooled)
    queries, keys = weights.shape[2:]
    wide = weights.transpose(0, 2, 1, 3).reshape(layers * queries, heads * keys)
    rules = [{"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": j * keys - 0.5} for j in range(heads + 1)]
    rules += [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": i * queries - 0.5} for i in range(layers + 1)]
    for rule in rules:
        rule |= {"x1": rule.get("x1", rule["x0"]), "y1": rule.get("y1", rule["y0"]), "line": {"color": "#8a8f9a"}}
    made = figure(
        shares(wide, words=False),
        title=f"Every head of the {_name(content)}: {layers} layers × {heads} heads",
        caption="Each field is one head: rows are the tokens that look, columns the tokens that are looked at, the "
        "first at the top left. A line along the diagonal is a head that looks at the token before or at itself, a "
        "bright left edge one that rests on the first token."
        + (f" Each dot is the largest of {pooled} × {pooled} shares." if pooled > 1 else ""),
        height=min(1100, max(320, 120 + layers * max(70, min(150, 900 // heads)))),
        shapes=rules,
    )
    made.update_xaxes(
        tickvals=[j * keys + (keys - 1) / 2 for j in range(heads)],
        ticktext=[str(j) for j in range(heads)],
        title="head",
        showgrid=False,
        zeroline=False,
        side="top",
    )
    return made.update_yaxes(
        tickvals=[i * queries + (queries - 1) / 2 for i in range(layers)],
        ticktext=[str(i) for i in range(layers)],
        title="layer",
        autorange="reversed",
        showgrid=False,
        zeroline=False,
    ).update_layout(margin={"t": 110})


def one_map(content: dict[str, Any]) -> go.Figure:
    """One head, with its tokens; a menu has the others, or in a long text the clearest of them."""
    shown = tuple(content["shown"])
    clearest = [(h["layer"], h["head"]) for h in content["heads"]]
    clearest.sort(key=lambda place: place != shown)  # in the order that they have, but the one asked for first
    fitting = max(1, _MOST_MENU // (len(content["queries"]) * len(content["keys"])))
    places = sorted(clearest[:fitting])
    weights = [np.asarray(content["attention"][layer][head]) for layer, head in places]
    exact = sum(one.size for one in weights) <= _MOST_EXACT
    made = _map(
        content,
        [shares(one, exact=exact, visible=place == shown) for one, place in zip(weights, places, strict=True)],
        _headed(content, *shown),
        "Each row is a token and what it looks at; the shares of a row sum to 1. The menu has the other heads"
        + ("." if len(places) == len(clearest) else f", of {len(clearest)} the {len(places)} clearest."),
    )
    buttons = [
        {
            "label": f"layer {place[0]}, head {place[1]}",
            "method": "update",
            "args": [{"visible": [place == other for other in places]}, {"title.text": _headed(content, *place)}],
        }
        for place in places
    ]
    look = {"x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom", "bgcolor": "#e8ebf1", "font": {"color": INK}}
    menu = {"buttons": buttons, "active": places.index(shown), **look}
    return made.update_layout(updatemenus=[menu] if len(places) > 1 else [], margin={"t": 96})


def _headed(content: dict[str, Any], layer: int, head: int) -> str:
    scores = next(h for h in content["heads"] if (h["layer"], h["head"]) == (layer, head))
    said = [f"{100 * scores[p]:.0f} % {_WORDS[p]}" for p in PATTERNS if scores[p] is not None]
    return f"Layer {layer}, head {head} of the {_name(content)}<br><sup>{', '.join(said)}</sup>"


_WORDS = {
    "previous": "to the token before",
    "first": "to the first token",
    "itself": "to itself",
    "induction": "to what followed the same token last time",
}


def _map(content: dict[str, Any], drawn: Any, title: str, caption: str) -> go.Figure:
    made = figure(drawn, title=title, caption=caption, height=min(900, 200 + 22 * len(content["queries"])))
    made.update_xaxes(**ticks(content["keys"]), title="is looked at", tickangle=-60)
    return made.update_yaxes(**ticks(content["queries"]), title="looks", autorange="reversed")


def arcs(content: dict[str, Any]) -> go.Figure:
    """One head as lines from words to words."""
    layer, head = content["shown"]
    return lines(
        np.asarray(content["attention"][layer][head]),
        content["queries"],
        content["keys"],
        title=f"Layer {layer}, head {head}: from each token (left) to what it looks at (right)",
        caption="The thicker a line, the larger the share; shares below 5 % are left out, and in a long text all but "
        "the largest.",
    )


def patterns(content: dict[str, Any]) -> go.Figure:
    """Heads sorted by what they do."""
    first = content["heads"][:48]
    known = [p for p in PATTERNS if any(h[p] is not None for h in first)]
    made = make_subplots(cols=len(known), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=[*known])
    for i, pattern in enumerate(known):
        made.add_bar(
            x=[h[pattern] for h in first],
            y=[f"layer {h['layer']}, head {h['head']}" for h in first],
            orientation="h",
            marker={"color": COLOURS[i]},
            hovertemplate="%{y}: %{x:.1%} " + _WORDS[pattern] + "<extra></extra>",
            showlegend=False,
            row=1,
            col=i + 1,
        )
    made = figure(
        made.data,
        title="Heads by what they do, clearest first",
        caption="The mean share of a head's attention that goes "
        + ", ".join(f"{_WORDS[p]} ({p})" for p in known)
        + "."
        + (" Induction is measured on random tokens written twice; the others on this text." * ("induction" in known))
        + ("" if len(first) == len(content["heads"]) else f" The first {len(first)} of {len(content['heads'])} heads."),
        height=170 + 20 * len(first),
        **{k: v for k, v in made.layout.to_plotly_json().items() if k != "template"},
    )
    made.update_xaxes(range=[0, 1], tickvals=[0, 0.25, 0.5, 0.75], tickformat=".0%")
    return made.update_yaxes(autorange="reversed").update_layout(margin={"t": 90, "l": 130})


def rolled(content: dict[str, Any]) -> go.Figure | None:
    """Attention through all layers."""
    if content["rollout"] is None:
        return None
    return _map(
        content,
        shares(np.asarray(content["rollout"])),
        "Attention rollout: where each position's content comes from",
        "All layers multiplied, heads averaged, half of every layer left to the residual stream (Abnar and Zuidema, "
        "2020): a rough answer to which tokens a position is made of.",
    )


VIEWS = {"grid": grid, "map": one_map, "arcs": arcs, "patterns": patterns, "rollout": rolled}


_SHADES = " ░▒▓█"


def terminal(content: dict[str, Any]) -> Any:
    """The head that is shown, as shades, and the clearest heads."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text as Rich

    layer, head = content["shown"]
    texts = [repr(q)[1:-1] for q in content["queries"]]
    width = min(16, max(map(len, texts)))
    drawn = Rich(f"layer {layer}, head {head} of the {_name(content)}: rows look at columns\n", "bold")
    for query, row in zip(texts, content["attention"][layer][head], strict=True):
        drawn.append(f"{query[:width]:>{width}} ")
        for share in row[:100]:
            level = round(255 * share**0.5)
            drawn.append(_SHADES[level // 52] * 2, f"#{level // 3:02x}{90 + level // 2:02x}{120 + level // 2:02x}")
        drawn.append("\n")
    table = Table(box=None, pad_edge=False, title="clearest heads", title_justify="left")
    for name in ("layer", "head", "pattern", *PATTERNS, "entropy (bits)"):
        table.add_column(name, justify="left" if name == "pattern" else "right")
    for h in content["heads"][:10]:
        scores = ["–" if h[p] is None else f"{h[p]:.2f}" for p in PATTERNS]
        table.add_row(str(h["layer"]), str(h["head"]), h["pattern"], *scores, f"{h['entropy']:.2f}")
    return Group(drawn, table)
