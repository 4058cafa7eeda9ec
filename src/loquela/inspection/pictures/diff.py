"""Two models on one text: what became more and less likely, and which weights moved."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from loquela.errors import UsageError
from loquela.inspection.pictures.tokens import log_probs
from loquela.inspection.reading import Inspected, Text, UnavailableError, model_name, read, token_texts, worn_adapter
from loquela.inspection.strip import strip
from loquela.inspection.theme import SEQUENTIAL, figure
from loquela.peft.attaching import wearing
from loquela.peft.base import Adapter

__all__ = ["VIEWS", "data", "moved", "terminal"]

_MOST = 1024


def data(
    model: Inspected,
    text: Text,
    *,
    other: Annotated[
        Inspected | None, "The model to compare with (the base); else this one without its adapter."
    ] = None,
) -> dict[str, Any]:
    """Return what this model finds more and less likely than the other, and how far its weights are from the other's.

    - `models`: what the two are called, this one first
    - `tokens`: texts; `log_prob` and `other_log_prob` (nats) of each, None for the first; `change`, their difference
    - `moved`: for each tensor its `name`, `layer` (None outside the layers), `part` and `moved`: the norm of the
      difference over the norm of the other's; None where the two have different shapes
    """
    reading = read(model, text, most=_MOST)
    worn = worn_adapter(model.network)
    missing: dict[str, str] = {}
    own, _ = log_probs(model, reading)
    if other is None:
        if worn is None:
            raise UnavailableError("a diff needs a second model (other=DIR), or an adapter to compare with its base")
        with wearing(model.network, None):
            base, _ = log_probs(model, reading)
        names = [f"with adapter {worn.name!r}", "the base"]
        changes = _adapted(model, worn)
    else:
        theirs = read(other, text, None if reading.target is None else reading.target[1:], most=_MOST)
        if theirs.written != reading.written:
            raise UsageError(
                "a diff needs two models whose tokenizers cut the text alike, but these cut it differently"
            )
        base, _ = log_probs(other, theirs)
        names = [f"this model ({model_name(model)})", f"the other ({model_name(other)})"]
        changes = moved(dict(other.network.named_parameters()), dict(model.network.named_parameters()))
    if not changes:
        missing["moved"] = "the two have no tensors of the same name and shape"
    return {
        "models": names,
        "tokens": token_texts(model.tokenizer, reading.written),
        "log_prob": own,
        "other_log_prob": base,
        "change": [None if a is None or b is None else round(a - b, 6) for a, b in zip(own, base, strict=True)],
        "moved": changes or None,
        "unavailable": missing,
    }


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Return how far each tensor of `after` is from the one of its name in `before`, relative to that."""
    found = []
    for name, new in after.items():
        old = before.get(name)
        if old is not None and old.shape == new.shape and old.is_floating_point():
            gap, size = (
                float((new.detach().double() - old.detach().double()).norm()),
                float(old.detach().double().norm()),
            )
            found.append({"name": name, **_where(name), "moved": gap / size if size else (math.inf if gap else 0.0)})
    return [row for row in found if math.isfinite(row["moved"])]


def _adapted(model: Inspected, adapter: Adapter) -> list[dict[str, Any]]:
    """The same for an adapter that could be merged: what its base's tensors would become."""
    modules, found = dict(model.network.named_modules()), []
    for layer, part in adapter.parts.items():
        try:
            new = part.merged(modules[layer], 1.0)
        except UsageError:  # it computes what no weights of the base can
            continue
        old = {name: dict(modules[layer].named_parameters())[name] for name in new}
        with torch.no_grad():
            found += [{**row, "name": f"{layer}.{row['name']}", **_where(layer)} for row in moved(old, new)]
    return found


def _where(name: str) -> dict[str, Any]:
    parts = name.split(".")
    at = parts.index("layers") if "layers" in parts else None
    if at is None or at + 1 >= len(parts) or not parts[at + 1].isdecimal():
        return {"layer": None, "part": ".".join(p for p in parts if p not in ("weight", "bias"))}
    side = f"{parts[0]} " if parts[0] == "encoder" else ""
    rest = [p for p in parts[at + 2 :] if p not in ("weight", "bias")]
    return {"layer": f"{side}{parts[at + 1]}", "part": " ".join(rest)}


def text(content: dict[str, Any]) -> go.Figure:
    """The text, coloured by what changed."""
    changes = content["change"]
    hover = [
        "given, not predicted" if c is None else f"{math.exp(b):.4f} → {math.exp(a):.4f}<br>{c / math.log(2):+.2f} bits"
        for a, b, c in zip(content["log_prob"], content["other_log_prob"], changes, strict=True)
    ]
    known = [c for c in changes if c is not None]
    mean = sum(known) / len(known) / math.log(2) if known else 0.0
    return strip(
        content["tokens"],
        ["#E3E5EA" if c is None else _shade(c / 3) for c in changes],
        hover,
        title="What became more and less likely",
        caption=f"Blue tokens are more likely to {content['models'][0]} than to {content['models'][1]}, orange ones "
        f"less; full colour from a factor of 20. On average {mean:+.3f} bits a token.",
    )


def _shade(v: float) -> str:
    end = (0x56, 0xA8, 0xE0) if v >= 0 else (0xF0, 0x8C, 0x4A)
    return "#" + "".join(f"{round(245 + (c - 245) * min(1.0, abs(v))):02x}" for c in end)


def weights(content: dict[str, Any]) -> go.Figure | None:
    """Which weights moved, by layer."""
    if content["moved"] is None:
        return None
    layers = list(dict.fromkeys(row["layer"] for row in content["moved"] if row["layer"] is not None))
    parts = list(dict.fromkeys(row["part"] for row in content["moved"] if row["layer"] is not None))
    outside = [row for row in content["moved"] if row["layer"] is None]
    grid = np.full((len(parts) + len(outside), max(len(layers), 1)), np.nan)
    for row in content["moved"]:
        if row["layer"] is not None:
            cell = (parts.index(row["part"]), layers.index(row["layer"]))
            grid[cell] = np.nanmax([grid[cell], row["moved"]])
    for i, row in enumerate(outside):
        grid[len(parts) + i, :] = row["moved"]
    made = figure(
        go.Heatmap(
            z=100 * grid,
            x=[f"layer {name}" for name in layers] or ["no layers"],
            y=[*parts, *(row["part"] for row in outside)],
            colorscale=SEQUENTIAL,
            zmin=0,
            hovertemplate="%{y}, %{x}: %{z:.3f} %<extra></extra>",
            texttemplate="%{z:.2g}" if grid.size <= 250 else None,
            colorbar={"title": {"text": "moved (%)"}},
        ),
        title="Which weights moved",
        caption="How far each tensor is from where it was, in per cent of its length. What does not belong to a layer "
        "fills its row; what has no colour is not there, or could not move.",
        height=220 + 26 * len(grid),
    )
    return made.update_yaxes(autorange="reversed", showgrid=False)


VIEWS = {"text": text, "weights": weights}


def terminal(content: dict[str, Any]) -> Any:
    """The coloured text, and the tensors that moved most."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text as Rich

    drawn = Rich()
    for token, change in zip(content["tokens"], content["change"], strict=True):
        shown = "".join(c if c.isprintable() else "␤" for c in token)
        drawn.append(shown, f"#16181d on {'#E3E5EA' if change is None else _shade(change / 3)}")
    title = Rich(f"more likely to {content['models'][0]}: blue; to {content['models'][1]}: orange", "bold")
    if content["moved"] is None:
        return Group(title, drawn)
    table = Table(box=None, pad_edge=False, title="\nmoved most", title_justify="left")
    table.add_column("tensor")
    table.add_column("of its length", justify="right")
    for row in sorted(content["moved"], key=lambda r: -r["moved"])[:12]:
        table.add_row(row["name"], f"{row['moved']:.3%}")
    return Group(title, drawn, table)
