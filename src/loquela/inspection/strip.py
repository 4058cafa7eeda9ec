"""Tokens in boxes, line after line like the text that they are cut from."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import plotly.graph_objects as go

from loquela.inspection.theme import INK, figure, visible_tokens

__all__ = ["strip"]

_LINE = 96  # characters
_HIGH = 2.0


def strip(
    texts: Sequence[str],
    fills: Sequence[str],
    hover: Sequence[str],
    *,
    title: str,
    caption: str,
    ids: Sequence[int] | None = None,
) -> go.Figure:
    """Draw each of `texts` on its colour of `fills`, with its `hover` text and its number of `ids` beneath."""
    shown = visible_tokens(list(texts))
    boxes, labels, under, where = [], [], [], []
    x, row = 0.0, 0
    for i, (text, fill) in enumerate(zip(shown, fills, strict=True)):
        plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        number = "" if ids is None else str(ids[i])
        wide = max(sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in plain), 0.72 * len(number), 1) + 0.9
        if x and x + wide > _LINE:
            x, row = 0.0, row + 1
        y = -row * _HIGH
        boxes.append(
            {
                "type": "rect",
                "x0": x + 0.08,
                "x1": x + wide - 0.08,
                "y0": y - 0.5,
                "y1": y + 0.5,
                "fillcolor": fill,
                "line": {"width": 0},
                "layer": "below",
            }
        )
        where.append((x + wide / 2, y))
        labels.append(text)
        under.append(number)
        x += wide
        if "↵" in plain:
            x, row = 0.0, row + 1
    rows = row + 1
    xs, ys = [place[0] for place in where], [place[1] for place in where]
    traces = [
        go.Scatter(
            x=xs,
            y=ys,
            mode="text",
            text=labels,
            textfont={
                "color": INK,
                "size": 14,
                "family": "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace",
            },
            hovertext=list(hover),
            hoverinfo="text",
            showlegend=False,
        )
    ]
    if ids is not None:
        traces.append(
            go.Scatter(
                x=xs,
                y=[y - 0.78 for y in ys],
                mode="text",
                text=under,
                textfont={"size": 10},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    made = figure(traces, title=title, caption=caption, height=110 + 46 * rows, shapes=boxes)
    made.update_xaxes(visible=False, range=[-0.5, _LINE + 0.5], fixedrange=True)
    made.update_yaxes(visible=False, range=[-(rows - 1) * _HIGH - 1.1, 0.8], fixedrange=True)
    return made.update_layout(margin={"l": 16, "r": 16, "t": 60, "b": 10}, dragmode=False)
