"""Curves on a web page that needs no network: plotly.js once in the page, each chart a few lines of JSON.

The figures are written as plotly.js reads them, without plotly's Python objects, whose making took longer than the end
of a short run should.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loquela.errors import StorageError
from loquela.training.log import Row

__all__ = ["chart", "loss_chart", "page", "write_curve", "write_page"]

_COLOURS = ("#2563b8", "#d0660a", "#3a8a3f", "#7a4fb5")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_AXIS = {"showline": True, "linecolor": "#444", "ticks": "outside", "gridcolor": "#eef0f4", "zeroline": False}


def write_curve(rows: Sequence[Row], file: Path, title: str) -> None:
    """Draw training and validation loss (nats per token) against the tokens seen; raises `StorageError`."""
    write_page(file, page(title, loss_chart(rows, title, height=560)))


def loss_chart(rows: Sequence[Row], title: str, *, height: int) -> str:
    """Return the chart of training and validation loss."""
    held_out = [row for row in rows if row.val_loss is not None]
    series: dict[str, tuple[list[int], list[Any]]] = {
        "training": ([r.tokens for r in rows], [r.train_loss for r in rows]),
        "held out": ([r.tokens for r in held_out], [r.val_loss for r in held_out]),
    }
    return chart(title, series, x="tokens seen", y="loss, nats per token", height=height)


def chart(
    title: str,
    series: Mapping[str, tuple[Sequence[Any], Sequence[Any]]],
    *,
    x: str = "step",
    y: str = "",
    height: int = 260,
    log: bool = False,
    from_zero: bool = False,
) -> str:
    """Return a chart as HTML for a `page`: lines by name, each the x and the y of its points."""
    data = [
        {
            "type": "scatter",
            "x": list(xs),
            "y": list(ys),
            "name": name,
            "mode": "lines+markers" if len(xs) < 40 else "lines",
            "line": {"color": colour, "width": 2},
            "marker": {"size": 5},
        }
        for (name, (xs, ys)), colour in zip(series.items(), _COLOURS, strict=False)
    ]
    layout = {
        "title": {"text": title, "font": {"size": 14}, "x": 0.02},
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 40, "b": 44},
        "showlegend": len(series) > 1,
        "legend": {"x": 0.99, "xanchor": "right", "y": 0.99},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1d2330"},
        "xaxis": {**_AXIS, "title": {"text": x}},
        "yaxis": {
            **_AXIS,
            "title": {"text": y},
            "type": "log" if log else "linear",
            "rangemode": "tozero" if from_zero else "normal",
        },
    }
    figure = json.dumps({"data": data, "layout": layout}, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="chart" style="height:{height}px"></div><script>{{const f={figure};'
        "Plotly.newPlot(document.currentScript.previousElementSibling,f.data,f.layout,"
        "{displayModeBar:false,responsive:true})}</script>"
    )


def page(title: str, body: str, style: str = "body{margin:1rem;font-family:system-ui,sans-serif}") -> str:
    """Return a whole page with plotly.js inside, which may fetch nothing."""
    from plotly.offline import get_plotlyjs

    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style><script>{get_plotlyjs()}</script></head><body>{body}</body></html>\n"
    )


def write_page(file: Path, content: str) -> None:
    """Write a page; raises `StorageError`."""
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file} could not be written: {error.strerror}") from error
