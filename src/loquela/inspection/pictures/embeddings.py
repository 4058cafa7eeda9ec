"""Which words lie close to each other: vectors of tokens or sentences on a map."""

from __future__ import annotations

import re
from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.errors import UsageError
from loquela.generation.embed import embed
from loquela.inspection.geometry import nearest_rows, pca, project
from loquela.inspection.reading import Inspected, Text, UnavailableError, numbers, token_text, worn_adapter
from loquela.inspection.theme import COLOURS, figure, heat, visible_tokens
from loquela.models.base import Network

__all__ = ["VIEWS", "data", "soft_prompt", "terminal", "token_table"]

_MOST = 2000


def data(
    model: Inspected,
    text: Text,
    *,
    kind: Annotated[str | None, "tokens or sentences; else sentences where the text has several lines."] = None,
    method: Annotated[str, "pca, tsne or umap."] = "pca",
    dims: Annotated[int, "2 or 3."] = 2,
    neighbours: Annotated[int, "How many nearest tokens of the vocabulary each has; 0 for none."] = 8,
    analogy: Annotated[str | None, "a,b,c: what is to c as b is to a?"] = None,
) -> dict[str, Any]:
    """Return where the items of a text lie: its words, or its lines.

    - `kind`: `tokens` (rows of the embedding table; a word of several tokens is their mean) or `sentences` (`embed`)
    - `items`: their texts; `points` (items, dims), `method`, and `explained`, the share of the variance along each axis
    - `similarity` (items, items): cosines
    - `neighbours`: for each item the nearest tokens of the vocabulary, `text` and `cosine`; None for sentences
    - `analogy`: `asked` and the nearest tokens to b - a + c, or None
    - `soft_prompt`: `points` of a tuned soft prompt's vectors on the same map, and their nearest tokens, or None
    """
    if dims not in (2, 3):
        raise UsageError(f"dims must be 2 or 3, but is {dims}")
    written = text if isinstance(text, str) else model.tokenizer.decode(list(text))
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    if kind is None:
        kind = "sentences" if len(lines) > 1 else "tokens"
    if kind not in ("tokens", "sentences"):
        raise UsageError(f"kind must be tokens or sentences, but is {kind!r}")
    items = list(dict.fromkeys(lines if kind == "sentences" else re.split(r"[\s,;]+", written.strip())))
    if not 2 <= len(items) <= _MOST or items == [""]:
        raise UsageError(f"a map needs from 2 to {_MOST} different {kind}, but the text has {len(items)}")
    missing = {}
    found = None
    if kind == "sentences":
        vectors = embed(model.network, model.tokenizer, items, model.pooling).float()
        missing["neighbours"] = "a vocabulary has tokens, not sentences"
    else:
        table = token_table(model.network)
        rows = [_rows(model, item) for item in items]
        vectors = torch.stack([table[row].mean(0) for row in rows])
        if neighbours:
            near = nearest_rows(table, vectors, neighbours, [{*row, *_specials(model)} for row in rows])
            found = [[_near(model, pair) for pair in pairs] for pairs in near]
    points, explained = project(vectors.double().numpy(), dims, method)
    soft = soft_prompt(model.network)
    return {
        "kind": kind,
        "items": items,
        "method": method,
        "dims": dims,
        "points": points.round(6).tolist(),
        "explained": explained,
        "similarity": numbers(F.normalize(vectors, dim=-1) @ F.normalize(vectors, dim=-1).T),
        "neighbours": found,
        "analogy": None if analogy is None else _analogy(model, analogy),
        "soft_prompt": None if soft is None or kind != "tokens" else _soft(model, soft, vectors, dims, neighbours),
        "unavailable": missing,
    }


def token_table(network: Network) -> Tensor:
    """Return the vectors of the vocabulary (vocab, width); raises `UnavailableError` for a network that has none."""
    for name in ("token_embedding", "decoder_input.tokens", "encoder_input.tokens"):
        found: Any = network
        for part in name.split("."):
            found = getattr(found, part, None)
        if isinstance(found, nn.Module) and isinstance(weight := getattr(found, "weight", None), Tensor):
            return weight.detach().float().cpu()
    raise UnavailableError(f"embeddings are unavailable: {network.config.model_type} has no vectors for its tokens")


def soft_prompt(network: Network) -> Tensor | None:
    """Return the trained vectors (tokens, width) of the soft prompt that is worn, if one is."""
    adapter = worn_adapter(network)
    if adapter is None or adapter.virtual is None:
        return None
    found = adapter.virtual.tensors.get("prompt_embeddings")
    return found.detach().float().cpu() if found is not None and found.shape[-1] == network.dim else None


def _specials(model: Inspected) -> list[int]:
    rows = model.network.vocab_size
    return [i for i in model.tokenizer.special_tokens.values() if i < rows]


def _rows(model: Inspected, word: str) -> list[int]:
    """A word's tokens as they stand within a text, where that has one token for it."""
    encode = model.tokenizer.encode
    alone, within = encode(word, add_special_tokens=False), encode(" " + word, add_special_tokens=False)
    best = within if len(within) < len(alone) else alone
    if not best:
        raise UsageError(f"a word must have a token, but {word!r} has none")
    return best


def _near(model: Inspected, pair: tuple[int, float]) -> dict[str, Any]:
    return {"id": pair[0], "text": token_text(model.tokenizer, pair[0]), "cosine": round(pair[1], 6)}


def _analogy(model: Inspected, asked: str) -> dict[str, Any]:
    words = [word.strip() for word in asked.split(",")]
    if len(words) != 3:
        raise UsageError(f"analogy must be three words a,b,c, but is {asked!r}")
    table = F.normalize(token_table(model.network), dim=-1)
    rows = [_rows(model, word) for word in words]
    a, b, c = (table[row].mean(0) for row in rows)
    skip = {*rows[0], *rows[1], *rows[2], *_specials(model)}
    near = nearest_rows(table, (b - a + c)[None], 8, [skip])[0]
    return {"asked": words, "nearest": [_near(model, pair) for pair in near]}


def _soft(model: Inspected, soft: Tensor, vectors: Tensor, dims: int, count: int) -> dict[str, Any]:
    table = token_table(model.network)
    everything = torch.cat((vectors, soft)).double().numpy()
    points, _ = pca(everything, dims)
    near = nearest_rows(table, soft, max(count, 1), [set(_specials(model))] * len(soft))
    return {
        "points": points[len(vectors) :].round(6).tolist(),
        "nearest": [[_near(model, pair) for pair in pairs] for pairs in near],
    }


def map_(content: dict[str, Any]) -> go.Figure:
    """The items on a map."""
    points = np.array(content["points"])
    hover = _hover(content)
    labels = [text if len(text) <= 40 else text[:39] + "…" for text in content["items"]]
    if content["kind"] == "tokens":
        labels = visible_tokens(labels)
    names = _axes(content)
    look: dict[str, Any] = {
        "mode": "markers+text" if len(labels) <= 150 else "markers",
        "text": labels,
        "textposition": "top center",
        "marker": {"size": 9 if content["dims"] == 2 else 5, "color": COLOURS[0]},
        "hovertext": hover,
        "hoverinfo": "text",
    }
    caption = (
        f"{len(labels)} {content['kind']}, brought from their many dimensions to {content['dims']} by "
        f"{content['method'].upper()}. What lies close is alike to the model"
    )
    if content["explained"]:
        caption += f"; the axes show {100 * sum(content['explained']):.0f} % of all differences"
    if content["dims"] == 3:
        if len(labels) <= 60:  # as annotations, which are sharper than text in 3-D and need no font of the card
            look |= {"mode": "markers", "text": None}
        made = figure(
            go.Scatter3d(x=points[:, 0], y=points[:, 1], z=points[:, 2], **look),
            title=f"Embedding map of {len(labels)} {content['kind']}, 3-D",
            caption=caption + ". Drag to turn.",
            height=680,
        )
        axes = ("xaxis", "yaxis", "zaxis")
        return made.update_layout(
            scene={
                **{axis: {"title": {"text": name}} for axis, name in zip(axes, names, strict=True)},
                "camera": {"eye": {"x": 1.5, "y": 1.5, "z": 0.9}},
                "annotations": [
                    {"x": x, "y": y, "z": z, "text": label, "showarrow": False, "yshift": 12}
                    for (x, y, z), label in zip(points.tolist(), labels, strict=True)
                ][: 60 if len(labels) <= 60 else 0],
            },
            margin={"l": 0, "r": 0, "t": 50, "b": 0},
        )
    made = figure(
        go.Scatter(x=points[:, 0], y=points[:, 1], **look),
        title=f"Embedding map of {len(labels)} {content['kind']}",
        caption=caption + ". What lies far apart here is far apart for the model too; what lies close may "
        "still differ in a direction that the map leaves out.",
        height=620,
    )
    spread = np.ptp(points[:, 0]) or 1.0
    made.update_xaxes(title=names[0], range=[points[:, 0].min() - 0.15 * spread, points[:, 0].max() + 0.15 * spread])
    return made.update_yaxes(title=names[1])


def _axes(content: dict[str, Any]) -> list[str]:
    if content["explained"]:
        return [f"component {i + 1} ({100 * e:.0f} %)" for i, e in enumerate(content["explained"])]
    return [f"{content['method']} {i + 1} (no unit)" for i in range(content["dims"])]


def _hover(content: dict[str, Any]) -> list[str]:
    items = visible_tokens(content["items"]) if content["kind"] == "tokens" else content["items"]
    if content["neighbours"] is None:
        return list(items)
    lists = (
        "<br>".join(f"{text} {n['cosine']:.2f}" for text, n in zip(visible_tokens([n["text"] for n in near]), near))  # noqa: B905
        for near in content["neighbours"]
    )
    return [f"<b>{item}</b><br>nearest:<br>{near}" for item, near in zip(items, lists, strict=True)]


def similarity(content: dict[str, Any]) -> go.Figure | None:
    """Cosines of all pairs."""
    items = content["items"]
    if len(items) > 60:
        return None
    names = [item if len(item) <= 32 else item[:31] + "…" for item in items]
    cosines = np.array(content["similarity"], dtype=np.float32)
    made = figure(
        heat(
            cosines,
            unit="cosine",
            hover="%{z:.3f}",
            diverging=True,
            zmin=-1,
            zmax=1,
            text=[[f"{c:.2f}" for c in row] for row in cosines] if len(items) <= 14 else None,
            texttemplate="%{text}" if len(items) <= 14 else None,
        ),
        title="How alike each pair is",
        caption="The cosine of the angle between two vectors: 1 is the same direction, 0 unrelated, -1 opposite.",
        height=260 + 22 * len(items),
    )
    made.update_xaxes(tickvals=list(range(len(items))), ticktext=names, tickangle=-50, showgrid=False)
    return made.update_yaxes(tickvals=list(range(len(items))), ticktext=names, autorange="reversed", showgrid=False)


def nearest(content: dict[str, Any]) -> go.Figure | None:
    """The nearest tokens of the vocabulary, and the answers to an analogy or of a soft prompt."""
    rows = [(f"<b>{a}</b>", b) for a, b in zip(content["items"], content["neighbours"] or (), strict=False)]
    if content["analogy"]:
        a, b, c = content["analogy"]["asked"]
        rows.insert(0, (f"{a} is to {b} as <b>{c} is to …</b>", content["analogy"]["nearest"]))
    if content["soft_prompt"]:
        rows += [(f"soft token {i}", near) for i, near in enumerate(content["soft_prompt"]["nearest"])]
    if not rows:
        return None
    cells = [
        ", ".join(f"{t} ({n['cosine']:.2f})" for t, n in zip(visible_tokens([n["text"] for n in near]), near))  # noqa: B905
        for _, near in rows
    ]
    return figure(
        go.Table(
            columnwidth=[1, 4],
            header={"values": ["item", "nearest tokens (cosine)"], "align": "left", "fill": {"color": "#BBD7EE"},
                    "font": {"color": "#16181d"}},
            cells={"values": [[name for name, _ in rows], cells], "align": "left", "height": 26,
                   "fill": {"color": "#f4f6f9"}, "font": {"color": "#16181d"}},
        ),
        title="Nearest tokens of the vocabulary",
        caption="By the cosine of the vectors in the model's embedding table. An analogy is b − a + c.",
        height=150 + 36 * min(len(rows), 60),
    )  # fmt: skip


VIEWS = {"map": map_, "similarity": similarity, "nearest": nearest}


def terminal(content: dict[str, Any]) -> Any:
    """Each item's place and neighbours."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(content["kind"][:-1])
    table.add_column(" ".join(_axes(content)), no_wrap=True)
    table.add_column("nearest (cosine)")
    for i, item in enumerate(content["items"]):
        if content["neighbours"]:
            near = [(n["text"], n["cosine"]) for n in content["neighbours"][i]]
        else:
            order = np.argsort([-c for c in content["similarity"][i]])[1:6]
            near = [(content["items"][j], content["similarity"][i][j]) for j in order]
        where = " ".join(f"{c:+7.3f}" for c in content["points"][i])
        table.add_row(item, where, ", ".join(f"{text!r} {c:.2f}" for text, c in near))
    if content["analogy"]:
        a, b, c = content["analogy"]["asked"]
        answers = ", ".join(f"{n['text']!r} {n['cosine']:.2f}" for n in content["analogy"]["nearest"])
        table.add_row(f"{a} : {b} = {c} : ?", "", answers, style="bold")
    return table
