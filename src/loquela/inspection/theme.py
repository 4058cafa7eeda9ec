"""How every figure looks: colours that the colour-blind tell apart, light and dark, a title and a caption."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

__all__ = ["COLOURS", "DIVERGING", "INK", "SEQUENTIAL", "TEMPLATES", "figure", "heat", "ticks", "visible_tokens"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito (2008): told apart with any common colour vision."""
SEQUENTIAL = "viridis"
DIVERGING = [[0.0, "#D55E00"], [0.5, "#F2F2F2"], [1.0, "#0072B2"]]
"""From orange over grey to blue: below, at and above zero."""
INK = "#16181d"
"""Text on a coloured box, the same in light and dark."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"


def _template(ink: str, paper: str, grid: str) -> go.layout.Template:
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zerolinecolor": grid,
        "automargin": True,
        "title": {"standoff": 10},
        "tickfont": {"size": 12},
    }
    return go.layout.Template(
        layout={
            "font": {"family": _FONT, "size": 13, "color": ink},
            "title": {"x": 0.0, "xanchor": "left", "xref": "container", "pad": {"l": 16}, "font": {"size": 17}},
            "paper_bgcolor": paper,
            "plot_bgcolor": paper,
            "colorway": list(COLOURS),
            "xaxis": axis,
            "yaxis": axis,
            "scene": {
                name: {"gridcolor": grid, "backgroundcolor": paper, "zerolinecolor": grid, "color": ink}
                for name in ("xaxis", "yaxis", "zaxis")
            },
            "hoverlabel": {"font": {"family": _FONT, "size": 13}},
            "legend": {"bgcolor": "rgba(0,0,0,0)"},
            "colorscale": {"sequential": SEQUENTIAL, "diverging": DIVERGING},
            "margin": {"l": 60, "r": 30, "t": 64, "b": 48},
        }
    )


TEMPLATES = {
    "light": _template("#1b1d22", "#ffffff", "#d9dce3"),
    "dark": _template("#e8eaf0", "#14161b", "#3a3f4b"),
}
"""Plotly templates by theme."""


def figure(data: Any, *, title: str, caption: str, height: int = 420, **layout: Any) -> go.Figure:
    """Return a figure with a title, a `caption` that says what one sees (`layout.meta.caption`), and our look."""
    made = go.Figure(data)
    made.update_layout(
        template=TEMPLATES["light"], title={"text": title}, height=height, meta={"caption": caption}, **layout
    )
    return made


def heat(z: Any, x: Any = None, y: Any = None, *, unit: str, hover: str, diverging: bool = False, **more: Any) -> Any:
    """Return a heat map; x and y are texts of tokens, which may repeat, so they are ticks and not categories."""
    more = {"colorscale": DIVERGING, "zmid": 0, **more} if diverging else {"colorscale": SEQUENTIAL, **more}
    return go.Heatmap(
        z=z, x=x, y=y, hovertemplate=hover + "<extra></extra>", colorbar={"title": {"text": unit}}, **more
    )


_MARKS = str.maketrans({" ": "·", "\n": "↵", "\t": "→", "\r": "␍"})
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def visible_tokens(texts: list[str]) -> list[str]:
    """Return tokens for a figure: blanks, line ends and tabs shown, nothing read as markup, none longer than 24."""
    shown = []
    for text in texts:
        text = text.translate(_MARKS)
        text = "".join(c if c.isprintable() else f"<0x{ord(c):02X}>" for c in text)
        text = text if len(text) <= 24 else text[:23] + "…"
        shown.append(text.translate(_HTML))
    return shown


def ticks(texts: list[str]) -> dict[str, Any]:
    """Return an axis whose places are tokens."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(texts))),
        "ticktext": visible_tokens(texts),
        "showgrid": False,
        "zeroline": False,
    }
