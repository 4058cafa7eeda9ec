"""What the model would say after every layer: the logit lens."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from loquela.errors import UsageError
from loquela.generation.decode import evaluating
from loquela.inspection.reading import Inspected, Reading, Text, head, numbers, read, stack, token_text, token_texts
from loquela.inspection.theme import INK, SEQUENTIAL, figure, ticks, visible_tokens
from loquela.inspection.watch import watch

__all__ = ["VIEWS", "data", "lens", "terminal"]

_MOST = 256


def data(
    model: Inspected,
    text: Text,
    *,
    target: Annotated[str | None, "What an encoder-decoder writes; else what it writes itself."] = None,
    top: Annotated[int, "How many tokens each place lists."] = 5,
) -> dict[str, Any]:
    """Return the distribution that the head would give after every layer (nostalgebraist, 2020).

    - `tokens`: those at whose places it predicts; `layers`: names from `embedding` on, the last is the model itself
    - `top` [layer][place]: the most probable tokens, `text` and `probability`
    - `rank` and `probability` [layer][place]: of the token that the last layer finds most probable; 1 is the first
    - `next_rank` [layer][place]: of the token that comes next in the text; None at the last place, and in an encoder
    - `entropy` [layer][place] in bits
    """
    if top < 1:
        raise UsageError(f"top must be at least 1, but is {top}")
    reading = read(model, text, target, most=_MOST)
    names, rows = [], []
    final = reading.logits().argmax(-1)
    reads_on = reading.network.kind != "encoder"
    following = torch.tensor(reading.written[1:], device=final.device) if reads_on else None
    for name, logits in lens(reading):
        names.append(name)
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        best = p.topk(min(top, p.shape[-1]))
        ranks = [None] * len(p)
        if following is not None:
            ranks = [*_ranks(logits[:-1], following).tolist(), None]
        rows.append(
            {
                "top": [
                    [
                        {"text": token_text(model.tokenizer, int(i)), "probability": round(float(v), 6)}
                        for i, v in zip(ids, values, strict=True)
                    ]
                    for ids, values in zip(best.indices, best.values, strict=True)
                ],
                "rank": _ranks(logits, final).tolist(),
                "next_rank": ranks,
                "probability": numbers(p.gather(1, final[:, None])[:, 0]),
                "entropy": numbers(-(p * log_p).sum(-1) / math.log(2)),
            }
        )
    keys = ("top", "rank", "next_rank", "probability", "entropy")
    return {
        "tokens": token_texts(model.tokenizer, reading.written),
        "layers": names,
        **{key: [row[key] for row in rows] for key in keys},
        "vocab_size": reading.network.vocab_size,
        "unavailable": {} if reads_on else {"next_rank": "an encoder predicts the token itself, not the next one"},
    }


def lens(reading: Reading) -> list[tuple[str, Tensor]]:
    """Return each layer's name and the logits (seq, vocab) that the last norm and the head make of its output.

    The last layer's are the model's own, to the bit: they go the same way.
    """
    network = reading.network
    side = stack(network)
    name = next(n for n, module in network.named_modules() if module is side)
    first = f"{name}.layers.0:input"
    with watch(network, first, f"{name}.layers.*") as seen, evaluating(network):
        last = reading.hidden()
        seen_of = [first, *(f"{name}.layers.{i}" for i in range(len(_layers(side))))]
        streams = [seen[key][-1][:, -len(reading.written) :] for key in seen_of]  # a soft prompt stands before the text
        norm = getattr(side, "norm", None)
        made = []
        for i, x in enumerate(streams):
            hidden = last if i + 1 == len(streams) else x if norm is None else norm(x)
            logits = head(network, hidden[0])
            made.append(
                (f"layer {i - 1}" if i else "embedding", logits.to(torch.promote_types(logits.dtype, torch.float32)))
            )
    return made


def _layers(side: nn.Module) -> nn.ModuleList:
    found = side.layers
    assert isinstance(found, nn.ModuleList)
    return found


def _ranks(logits: Tensor, tokens: Tensor) -> Tensor:
    """Rank of each row's token: 1 and how many are above it."""
    return 1 + (logits > logits.gather(1, tokens[:, None])).sum(-1)


def predictions(content: dict[str, Any]) -> go.Figure:
    """The most probable token at every layer and place."""
    most = max(3, 110 // len(content["tokens"]))  # characters that a cell has room for
    names = [[_fitting(cell[0]["text"], most) for cell in row] for row in content["top"]]
    sure = np.array([[cell[0]["probability"] for cell in row] for row in content["top"]], dtype=np.float32)
    listed = 5 if sure.size <= 1500 else 2  # a text in every cell is most of a page
    hover = [
        ["<br>".join(f"{visible_tokens([t['text']])[0]} {t['probability']:.3f}" for t in cell[:listed]) for cell in row]
        for row in content["top"]
    ]
    made = figure(
        go.Heatmap(
            z=sure,
            text=[visible_tokens(row) for row in names],
            customdata=hover,
            texttemplate="%{text}",
            textfont={"size": 11},
            colorscale=SEQUENTIAL,
            zmin=0,
            zmax=1,
            hovertemplate="%{customdata}<extra></extra>",
            colorbar={"title": {"text": "probability"}},
        ),
        title="What the model would say after every layer",
        caption="Each column is a place in the text, named by the token there; each row a layer, the lowest one before "
        "any of them. A cell holds the token that the head finds most probable at that point, and its colour how "
        "probable. The top row is the model's own prediction.",
        height=180 + 34 * len(content["layers"]),
    )
    made.update_xaxes(**ticks(content["tokens"]), tickangle=-50, title=f"{_where(content)} this token")
    return made.update_yaxes(tickvals=list(range(len(content["layers"]))), ticktext=content["layers"], showgrid=False)


def ranks(content: dict[str, Any]) -> go.Figure:
    """When the final prediction rises to the top."""
    rank = np.array(content["rank"])
    made = figure(
        go.Heatmap(
            z=np.log10(rank).astype(np.float32),
            text=[[f"{r:,}" if r < 10000 else f"{r / 1000:.0f}k" for r in row] for row in rank],
            texttemplate="%{text}",
            textfont={"size": 11},
            colorscale=SEQUENTIAL,
            reversescale=True,
            zmin=0,
            zmax=float(np.log10(content["vocab_size"])),
            hovertemplate="rank %{text}<extra></extra>",
            colorbar={
                "title": {"text": "rank"},
                "tickvals": [0, 1, 2, 3, 4, 5],
                "ticktext": ["1", "10", "100", "1,000", "10,000", "100,000"],
            },
        ),
        title="The rank of the final prediction, layer by layer",
        caption="Of all tokens, in which place the one stands that the model says in the end: where a column turns to "
        "1 the layers above have nothing to change any more.",
        height=180 + 34 * len(content["layers"]),
    )
    made.update_xaxes(**ticks(content["tokens"]), tickangle=-50, title=f"{_where(content)} this token")
    return made.update_yaxes(tickvals=list(range(len(content["layers"]))), ticktext=content["layers"], showgrid=False)


def _where(content: dict[str, Any]) -> str:
    return "at" if "next_rank" in content["unavailable"] else "after"


def _fitting(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


VIEWS = {"predictions": predictions, "ranks": ranks}


def terminal(content: dict[str, Any]) -> Any:
    """Layers by the last places of the text."""
    from rich.table import Table
    from rich.text import Text as Rich

    shown = max(0, len(content["tokens"]) - 8)
    table = Table(box=None, pad_edge=False)
    table.add_column(_where(content))
    for token in content["tokens"][shown:]:
        table.add_column(repr(token)[1:-1], no_wrap=True)
    for name, row in reversed(list(zip(content["layers"], content["top"], strict=True))):
        cells = []
        for cell in row[shown:]:
            level = round(255 * cell[0]["probability"])
            ink = INK if level > 140 else "#ffffff"
            shade = f"{ink} on #{level // 3:02x}{level * 3 // 4:02x}{min(255, 60 + level // 2):02x}"
            cells.append(Rich(repr(cell[0]["text"])[1:-1], shade))
        table.add_row(name, *cells)
    return table
