"""Weights drawn: as heat maps that stay small in a file, and as lines between words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go

from loquela.inspection.patterns import Weights
from loquela.inspection.theme import COLOURS, figure, heat, visible_tokens

__all__ = ["lines", "pooled_by", "shares"]

_MOST_EXACT, _MOST_LINES = 10_000, 2000


def pooled_by(weights: Weights, size: int) -> Weights:
    """The largest of each `size` × `size` shares, so that a line of one token's width stays in sight."""
    rows, columns = (-n % size for n in weights.shape[2:])
    padded = np.pad(weights, ((0, 0), (0, 0), (0, rows), (0, columns)))
    split = padded.reshape(*padded.shape[:2], padded.shape[2] // size, size, padded.shape[3] // size, size)
    pooled: Weights = split.max((3, 5))
    return pooled


def shares(weights: Any, *, exact: bool | None = None, words: bool = True, **more: Any) -> Any:
    """A heat map of shares whose axes are tokens (`words`).

    Unless it is `exact`, as a small one is, it is kept in whole per cent, a byte for each, so that pages stay small.
    """
    hover = "%{y} looks at %{x}: " if words else ""  # an axis whose ticks are tokens says them here too
    if exact or (exact is None and weights.size <= _MOST_EXACT):
        return heat(np.float32(weights), unit="share", hover=hover + "%{z:.3f}", zmin=0, **more)
    return heat(np.uint8(np.round(100 * weights)), unit="share (%)", hover=hover + "%{z} %", zmin=0, **more)


def lines(weights: Weights, queries: Sequence[str], keys: Sequence[str], *, title: str, caption: str) -> go.Figure:
    """Draw `weights` (queries, keys) as lines from the left to the right, thicker the larger a share is."""
    traces: list[Any] = []
    least = float(np.sort(weights, axis=None)[-_MOST_LINES:][0])
    for low, high in pairwise([max(0.05, least), max(0.2, least), max(0.4, least), max(0.7, least), 1.1]):
        q, k = np.nonzero((weights >= low) & (weights < high))  # one trace per strength, since a line has one width
        if not len(q):
            continue
        gap = np.full(len(q), np.nan)
        traces.append(
            go.Scatter(
                x=np.float32(np.tile([0, 1, np.nan], len(q))),
                y=np.float32(np.stack([-q, -k, gap], 1).ravel()),
                mode="lines",
                line={"width": 1 + 7 * low, "color": COLOURS[0]},
                opacity=min(1.0, 0.25 + low),
                hoverinfo="skip",
                name=f"{low:.0%} to {min(high, 1):.0%}",
            )
        )
    for side, texts in ((0, queries), (1, keys)):
        traces.append(
            go.Scatter(
                x=[side] * len(texts),
                y=[-i for i in range(len(texts))],
                mode="markers+text",
                text=visible_tokens(list(texts)),
                textposition="middle left" if side == 0 else "middle right",
                marker={"size": 5, "color": COLOURS[1]},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    longest = max(len(queries), len(keys))
    made = figure(traces, title=title, caption=caption, height=min(1200, 150 + 24 * longest))
    made.update_xaxes(visible=False, range=[-0.6, 1.6])
    return made.update_yaxes(visible=False, range=[-longest + 0.3, 0.7])
