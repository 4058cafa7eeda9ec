"""The loaded model drawn as a diagram, with its real shapes, parameters and costs."""

from __future__ import annotations

from typing import Annotated, Any

import plotly.graph_objects as go

from loquela.inspection.parts import Box, skeleton_length, take_apart, worn_parameters
from loquela.inspection.reading import Inspected, worn_adapter
from loquela.inspection.theme import COLOURS, INK, figure

__all__ = ["TAKES", "VIEWS", "data", "terminal"]

TAKES = "model"
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


def data(
    model: Inspected,
    *,
    length: Annotated[int | None, "Tokens that attention is counted over; else the window, up to 2,048."] = None,
) -> dict[str, Any]:
    """Return the parts of the model in the order in which it computes.

    - `model_type`, `kind`, `vocab_size`, `context_length`, `dim`; `parameters`, `trained` (those of the adapter that is
      worn), `adapter` (its method and name, or None); `flops` for one token that looks at `length` tokens
    - `parts`: each with `side` (encoder, decoder or ""), `place` (input, layer, output), `layers` ([first, last] or
      None), `repeat`, `name`, `kind`, `detail`, `parameters` and `flops` of one of them, `tensors` (`name`, `shape`,
      `parameters`, `tied`: counted elsewhere), and `adapter`, the tensors that are trained on top of one of them
    """
    network = model.network
    worn = worn_adapter(network)
    length = skeleton_length(network) if length is None else length
    boxes = take_apart(network, length, worn)
    return {
        "model_type": network.config.model_type,
        "kind": network.kind,
        "vocab_size": network.vocab_size,
        "context_length": network.context_length,
        "dim": network.dim,
        "parameters": network.parameter_count(),
        "trained": worn_parameters(worn),
        "adapter": None if worn is None else {"name": worn.name, "method": worn.config.method},
        "length": length,
        "flops": sum(box.flops * box.repeat for box in boxes),
        "parts": [_plain(box) for box in boxes],
        "unavailable": {},
    }


def _plain(box: Box) -> dict[str, Any]:
    return {
        "side": box.side,
        "place": box.place,
        "layers": None if box.layers is None else list(box.layers),
        "repeat": box.repeat,
        "name": box.name,
        "kind": box.kind,
        "detail": box.detail,
        "parameters": box.parameters,
        "flops": box.flops,
        "tensors": box.tensors,
        "adapter": box.adapter,
    }


def short(count: float) -> str:
    """A count as a person reads it."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def diagram(content: dict[str, Any]) -> go.Figure:
    """The model as the lecture draws it: text goes in below, logits come out above."""
    pen = _Pen(content)
    two = content["kind"] == "encoder-decoder"
    heights = []
    columns = {"encoder": -0.62, "decoder": 0.62} if two else {"": 0.0, "encoder": 0.0, "decoder": 0.0}
    shared = [part for part in content["parts"] if two and part["side"] == ""]
    for side in ("encoder", "decoder") if two else ("",):
        mine = [p for p in content["parts"] if (p["side"] == side if two else True)]
        low = [p for p in shared if p["place"] == "input"]
        top = [p for p in shared if p["place"] == "output"] if side == "decoder" else []
        names = {"encoder": "source text", "decoder": "target so far", "": "text"}
        order = [
            p
            for place in ("input", "layer", "output")
            for p in [*(low if place == "input" else ()), *mine]
            if p["place"] == place
        ]
        heights.append(pen.column(columns[side], names[side], [*order, *top], out=side != "encoder" or not two))
    return pen.figure(max(heights), two)


class _Pen:
    """Draws boxes on a plane; the y axis goes up by one for each box."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.shapes: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.hover: list[tuple[float, float, str]] = []
        self.tuned = content["adapter"] is not None
        self.drawn: set[str] = set()

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
        y += 0.1
        if out and self.content["kind"] != "encoder":
            self._arrow(x, y - 0.55, y - 0.25)
            self._note(x, y, "softmax: a probability for each token")
        return y

    def _box(self, x: float, y: float, part: dict[str, Any]) -> None:
        trained = sum(t["parameters"] for t in part["adapter"])
        fill = _FROZEN if self.tuned else _FILLS.get(part["kind"], _FILLS["other"])
        split = 0.5 if not trained else 0.22
        self.shapes.append(_rectangle(x - 0.5, x + split, y - 0.4, y + 0.4, fill))
        title = _LABELS.get(part["name"], part["name"])
        size = f"{short(part['parameters'])} parameters" if part["parameters"] else "no parameters of its own"
        if part["tensors"] and all(t["tied"] for t in part["tensors"]):
            size = "tied: the embedding once more"
        flops = f" · {short(part['flops'])}FLOP" if part["flops"] else ""
        detail = f"{part['detail']} · " if part["detail"] else ""
        self._note(
            x - (0.5 - split) / 2, y, f"<b>{title}</b><br><span style='font-size:11px'>{detail}{size}{flops}</span>"
        )
        tensors = "<br>".join(
            f"{t['name'] or 'weight'} {' × '.join(map(str, t['shape']))}{' (tied)' if t['tied'] else ''}"
            for t in part["tensors"][:14]
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
        which = f"layer {layers[0]}" if repeat == 1 else f"layers {layers[0]}–{layers[1]}"
        self.notes.append(
            {
                "x": x - 0.56,
                "y": (start + end - 1) / 2,
                "text": f"<b>× {repeat}</b><br>{which}",
                "showarrow": False,
                "xanchor": "right",
                "align": "right",
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
            height=int(150 + 62 * height),
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


def shares(content: dict[str, Any]) -> go.Figure:
    """Which parts hold the parameters, and which cost the time."""
    kinds: dict[str, list[float]] = {}
    for part in content["parts"]:
        found = kinds.setdefault(part["kind"].replace("_", "-"), [0.0, 0.0])
        found[0] += part["parameters"] * part["repeat"]
        found[1] += part["flops"] * part["repeat"]
    names = [name for name, counts in kinds.items() if any(counts)]
    totals = [sum(kinds[name][i] for name in names) or 1.0 for i in (0, 1)]
    made = figure(
        [
            go.Bar(
                x=names,
                y=[kinds[name][i] / totals[i] for name in names],
                name=label,
                marker={"color": COLOURS[i]},
                text=[short(kinds[name][i]) for name in names],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{x}: %{y:.1%} (%{text})<extra></extra>",
            )
            for i, label in ((0, "parameters"), (1, "FLOP for one token"))
        ],
        title="What each kind of part holds and costs",
        caption=f"Shares of {short(totals[0])} parameters and of {short(totals[1])}FLOP for one token that looks at "
        f"{content['length']:,} tokens. An embedding is looked up, so it costs nothing.",
        barmode="group",
    )
    return made.update_yaxes(tickformat=".0%", title="share", rangemode="tozero")


VIEWS = {"diagram": diagram, "shares": shares}


def terminal(content: dict[str, Any]) -> Any:
    """A table from the input down to the output."""
    from rich.table import Table

    title = f"{content['model_type']} ({content['kind']}), {content['parameters']:,} parameters"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("side", "layers", "part", "shape", "parameters", "FLOP a token", "trained"):
        table.add_column(name, justify="right" if name in ("parameters", "FLOP a token", "trained") else "left")
    for part in content["parts"]:
        layers = "" if part["layers"] is None else f"{part['repeat']} ×"
        trained = sum(t["parameters"] for t in part["adapter"])
        counts = (f"{part['parameters']:,}", short(part["flops"]) if part["flops"] else "")
        table.add_row(part["side"], layers, part["name"], part["detail"], *counts, f"{trained:,}" if trained else "")
    return table
