"""The diagram of a model: boxes and arrows on a plane, in the lecture's manner."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from loquela.inspection.theme import COLOURS, INK, figure

__all__ = ["Pen", "short"]

_FROZEN, _TRAINED = "#9CC9EA", "#F0A35E"
_FILLS = {
    "embedding": "#F5D9A8",
    "positions": "#FBEFC9",
    "attention": "#F2B48A",
    "cross": "#EBC0D8",
    "feed_forward": "#A9D4EF",
    "norm": "#E3E6C5",
    "recurrent": "#9ED8C3",
    "head": "#C9C5E8",
    "other": "#D9DCE3",
}
_LABELS = {
    "attention": "self-attention",
    "cross": "cross-attention to the encoder",
    "feedforward": "feed-forward",
    "lm head": "head: a logit for each token",
    "encoder input": "embedding + positions",
    "decoder input": "embedding + positions",
    "encoder bias": "relative positions (bias)",
    "decoder bias": "relative positions (bias)",
}


def short(count: float) -> str:
    """A count as a person reads it."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


class Pen:
    """Draws boxes on a plane; the y axis goes up by one for each box."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.shapes: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.hover: list[tuple[float, float, str]] = []
        self.tuned = content["adapter"] is not None
        self.crossing: list[tuple[float, float]] = []
        self.encoded: tuple[float, float] | None = None

    def column(self, x: float, below: str, parts: list[dict[str, Any]], *, out: bool) -> float:
        """Draw parts one above the other at `x`; return the height reached."""
        y = 0.0
        self._note(x, y, f"<i>{below}</i>")
        y += 0.85
        group, start = None, y
        for part in parts:
            layers = part["layers"]
            if layers != group:
                if group is not None:
                    self._frame(x, start, y, group)
                    y += 0.35
                if layers is not None:
                    y += 0.25
                group, start = layers, y
            self._box(x, y, part)
            y += 1.0
        if group is not None:
            self._frame(x, start, y, group)
        if not out:
            self.encoded = (x, y - 0.6)
        y += 0.1
        if out and self.content["kind"] != "encoder":
            self._arrow(x, y - 0.55, y - 0.25)
            self._note(x, y, "softmax: a probability for each token")
        return y

    def _box(self, x: float, y: float, part: dict[str, Any]) -> None:
        if part["kind"] == "cross":
            self.crossing.append((x, y))
        trained = sum(t["parameters"] for t in part["adapter"])
        fill = _FROZEN if self.tuned else _FILLS.get(part["kind"], _FILLS["other"])
        split = 0.5 if not trained else 0.22
        if trained and not part["tensors"]:  # nothing of the base is there
            fill, split, trained = _TRAINED, 0.5, 0
        self.shapes.append(_rectangle(x - 0.5, x + split, y - 0.4, y + 0.4, fill))
        title = _LABELS.get(part["name"], part["name"])
        own = part["parameters"] or sum(t["parameters"] for t in part["adapter"])
        size = f"{short(own)} parameters" if own else "no parameters of its own"
        if part["tensors"] and all(t["tied"] for t in part["tensors"]):
            size = "tied: the embedding again"
        flops = f" · {short(part['flops'])}FLOP" if part["flops"] and not trained else ""  # half a box has less room
        lines = "<br>".join(line for line in (part["detail"], f"{size}{flops}") if line)
        text = f"<b>{title}</b><br><span style='font-size:11px'>{lines}</span>"
        self._note(x - (0.5 - split) / 2, y, text)
        tensors = "<br>".join(
            f"{t['name'] or 'weight'} {' × '.join(map(str, t['shape']))}{' (tied)' if t['tied'] else ''}"
            for t in (part["tensors"] or [t | {"tied": False} for t in part["adapter"]])[:14]
        )
        self.hover.append((x, y, f"<b>{title}</b><br>{tensors or 'nothing to learn'}"))
        if trained:
            self.shapes.append(_rectangle(x + split + 0.02, x + 0.5, y - 0.4, y + 0.4, _TRAINED))
            self._note(x + 0.36, y, f"<b>+ {self.content['adapter']['method']}</b><br>{short(trained)}")
            added = "<br>".join(f"{t['name']} {' × '.join(map(str, t['shape']))}" for t in part["adapter"][:14])
            self.hover.append((x + 0.36, y, f"<b>trained</b><br>{added}"))
        self._arrow(x, y - 0.62, y - 0.42)

    def _frame(self, x: float, start: float, end: float, layers: list[int]) -> None:
        repeat = layers[1] - layers[0] + 1
        self.shapes.append(
            {
                "type": "rect",
                "x0": x - 0.545,
                "x1": x + 0.545,
                "y0": start - 0.52,
                "y1": end - 0.5,
                "line": {"color": "#8a8f9a", "width": 1.5, "dash": "dot"},
                "layer": "below",
            }
        )
        right = x > 0  # the other column stands on the left
        which = f"layer {layers[0]}" if repeat == 1 else f"layers {layers[0]}–{layers[1]}"
        self.notes.append(
            {
                "x": x + 0.56 if right else x - 0.56,
                "y": (start + end - 1) / 2,
                "text": f"<b>× {repeat}</b><br>{which}",
                "showarrow": False,
                "xanchor": "left" if right else "right",
                "align": "left" if right else "right",
            }
        )

    def _note(self, x: float, y: float, text: str) -> None:
        boxed = text.startswith("<b>")
        self.notes.append(
            {
                "x": x,
                "y": y,
                "text": text,
                "showarrow": False,
                **({"font": {"color": INK, "size": 13}} if boxed else {}),
            }
        )

    def _arrow(self, x: float, low: float, high: float) -> None:
        self.notes.append(
            {
                "x": x,
                "y": high,
                "ax": x,
                "ay": low,
                "axref": "x",
                "ayref": "y",
                "showarrow": True,
                "arrowhead": 2,
                "arrowwidth": 1.3,
                "arrowcolor": "#8a8f9a",
                "text": "",
            }
        )

    def figure(self, height: float, two: bool) -> go.Figure:
        """Return the drawing."""
        for x, y in self.crossing:
            if self.encoded is not None:
                (left, top), middle = self.encoded, (self.encoded[0] + x) / 2
                path = f"M {left},{top} V {top + 0.3} H {middle} V {y} H {x - 0.5}"
                self.shapes.append({"type": "path", "path": path, "line": {"color": "#8a8f9a", "width": 1.5}})
        content = self.content
        trained = ""
        if self.tuned:
            share = content["trained"] / (content["parameters"] + content["trained"])
            trained = (
                f" Blue is frozen; orange is what {content['adapter']['method']} trains: {short(content['trained'])} "
                f"parameters, {share:.2%} of all."
            )
        made = figure(
            go.Scatter(
                x=[h[0] for h in self.hover],
                y=[h[1] for h in self.hover],
                mode="markers",
                marker={"size": 26, "opacity": 0, "color": COLOURS[0]},
                hovertext=[h[2] for h in self.hover],
                hoverinfo="text",
                showlegend=False,
            ),
            title=f"Anatomy: {content['model_type']}, {content['parameters']:,} parameters",
            caption=f"From below to above, in the order of computation; {content['kind']}, {content['dim']} numbers "
            f"for each token. One token that looks at {content['length']:,} costs {short(content['flops'])}FLOP "
            "(multiplications and additions of matrices and attention)." + trained,
            height=int(150 + 74 * height),
            shapes=self.shapes,
            annotations=self.notes,
        )
        side = 1.75 if two else 1.3
        made.update_xaxes(visible=False, range=[-side, side], fixedrange=True)
        made.update_yaxes(visible=False, range=[-0.5, height + 0.5], fixedrange=True)
        return made.update_layout(margin={"l": 10, "r": 10, "t": 60, "b": 10}, dragmode=False)


def _rectangle(x0: float, x1: float, y0: float, y1: float, fill: str) -> dict[str, Any]:
    return {
        "type": "rect",
        "x0": x0,
        "x1": x1,
        "y0": y0,
        "y1": y1,
        "fillcolor": fill,
        "line": {"color": "#6b707c", "width": 1},
        "layer": "below",
    }
