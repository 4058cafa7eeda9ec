"""The loaded model drawn as a diagram, with its real shapes, parameters and costs."""

from __future__ import annotations

from typing import Annotated, Any

import plotly.graph_objects as go

from loquela.inspection.drawing import Pen, short
from loquela.inspection.parts import Box, skeleton_length, take_apart, worn_parameters
from loquela.inspection.reading import Inspected, worn_adapter
from loquela.inspection.theme import COLOURS, figure

__all__ = ["TAKES", "VIEWS", "data", "terminal"]

TAKES = "model"


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


def diagram(content: dict[str, Any]) -> go.Figure:
    """The model as the lecture draws it: text goes in below, logits come out above."""
    pen = Pen(content)
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
