"""How this model knows where a token stands."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from loquela.errors import UsageError
from loquela.generation.decode import evaluating
from loquela.inspection.reading import Inspected, Reading, UnavailableError, numbers
from loquela.inspection.theme import COLOURS, SEQUENTIAL, figure, heat
from loquela.layers.attention import MultiHeadAttention
from loquela.layers.positions import Rotary, SinusoidalPositions
from loquela.models.base import EncoderDecoder

__all__ = ["TAKES", "VIEWS", "data", "terminal"]

TAKES = "model"


def data(model: Inspected, *, length: Annotated[int, "How many positions are drawn."] = 64) -> dict[str, Any]:
    """Return the positions that the model works with, read off while it runs on `length` tokens.

    `encodings` is a list, empty for a model that has none but the causal mask (or a recurrence). Each has `where` (the
    module) and `kind`:

    - `sinusoidal` and `learned`: `table` [position][dimension], added to the embeddings, and `similarity`
      [position][position], the cosines of its rows
    - `rotary`: `angles` [position][pair] in radians, by which queries and keys are turned, and `wavelengths` [pair] in
      positions
    - `relative` and `alibi`: `bias` [head][distance] added to the scores, for `distances` (key minus query)

    `causal` says whether a token sees only what stands before it.
    """
    network = model.network
    if not 2 <= length <= 1024:
        raise UsageError(f"length must be from 2 to 1,024, but is {length}")
    length = min(length, network.context_length)
    seen = _Seen()
    handles = [h for name, module in network.named_modules() for h in seen.listen(name, module)]
    ids = [0] * length
    try:
        with evaluating(network):
            Reading(
                network, ids, [network.start_token_id] * length if isinstance(network, EncoderDecoder) else None
            ).hidden()
    finally:
        for handle in handles:
            handle.remove()
    found = [*_tables(seen, length), *_rotations(seen), *_biases(seen)]
    if not found and not seen.attentions:
        raise UnavailableError(
            f"positions are unavailable: {network.config.model_type} reads one token after the other and needs none"
        )
    return {
        "model_type": network.config.model_type,
        "length": length,
        "causal": network.kind != "encoder",
        "encodings": found,
        "unavailable": {},
    }


class _Seen:
    """What goes in and out of the bricks that have to do with positions."""

    def __init__(self) -> None:
        self.tables: dict[str, tuple[nn.Module, Tensor]] = {}
        self.rotary: dict[str, Rotary] = {}
        self.masks: dict[str, Tensor] = {}
        self.attentions = 0

    def listen(self, name: str, module: nn.Module) -> list[Any]:
        """Watch a module, if it is one of those."""
        if "position" in name.rsplit(".", 1)[-1]:

            def table(m: nn.Module, inputs: Any, output: Tensor) -> None:
                self.tables[name] = (m, output.detach())

            return [module.register_forward_hook(table)]
        if isinstance(module, MultiHeadAttention):
            self.attentions += 1

            def given(m: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
                if named.get("rotary") is not None:
                    self.rotary[name] = named["rotary"]
                if named.get("mask") is not None and named["mask"].is_floating_point():
                    self.masks[name] = named["mask"].detach()

            return [module.register_forward_pre_hook(given, with_kwargs=True)]
        return []


def _tables(seen: _Seen, length: int) -> list[dict[str, Any]]:
    found = []
    for name, (module, output) in seen.tables.items():
        table = output.reshape(-1, output.shape[-1])[:length].double()
        unit = table / table.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        kind = "sinusoidal" if isinstance(module, SinusoidalPositions) else "learned"
        found.append({"where": name, "kind": kind, "table": numbers(table), "similarity": numbers(unit @ unit.T, 4)})
    return found


def _rotations(seen: _Seen) -> list[dict[str, Any]]:
    """Layers that turn alike are one."""
    found: list[dict[str, Any]] = []
    for name, rotary in seen.rotary.items():
        half = rotary.cos.shape[-1] // 2
        cos, sin = rotary.cos[0, 0, :, :half].double(), rotary.sin[0, 0, :, :half].double()
        step = torch.atan2(sin[1], cos[1])  # the angle of position 1 is the frequency, below half a turn
        angles = numbers(torch.arange(len(cos), device=cos.device, dtype=torch.float64)[:, None] * step)
        if not any(other["angles"] == angles for other in found):
            waves = (2 * torch.pi / step.clamp_min(1e-12)).tolist()
            found.append(
                {"where": name, "kind": "rotary", "angles": angles, "wavelengths": [round(w, 4) for w in waves]}
            )
    return found


def _biases(seen: _Seen) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, mask in seen.masks.items():
        scores = mask.double().reshape(-1, *mask.shape[-2:])  # (heads, queries, keys)
        _, keys = scores.shape[-2:]
        distances = list(range(1 - keys, keys))
        by_distance = np.full((len(scores), len(distances)), np.nan)
        for i, d in enumerate(distances):
            diagonal = scores.diagonal(d, -2, -1)
            finite = diagonal[:, torch.isfinite(diagonal).all(0)]
            if finite.shape[1]:
                by_distance[:, i] = finite[:, 0].cpu().numpy()
        kept = ~np.isnan(by_distance).all(0)
        bias = by_distance[:, kept].round(6).tolist()
        if any(other["bias"] == bias for other in found):
            continue
        near = [d for d, k in zip(distances, kept, strict=True) if k]
        found.append({"where": name, "kind": _slope(bias, near), "distances": near, "bias": bias})
    return found


def _slope(bias: list[list[float]], distances: list[int]) -> str:
    """A bias that is a straight line through zero in every head is ALiBi's."""
    lines = all(
        abs(row[i] - row[0] * d / distances[0]) < 1e-4 for row in bias for i, d in enumerate(distances) if distances[0]
    )
    return "alibi" if lines and any(row[0] for row in bias) else "relative"


def _only(content: dict[str, Any], *kinds: str) -> dict[str, Any] | None:
    return next((e for e in content["encodings"] if e["kind"] in kinds), None)


def table(content: dict[str, Any]) -> go.Figure | None:
    """What is added to the embeddings."""
    encoding = _only(content, "sinusoidal", "learned")
    if encoding is None:
        return None
    values = np.array(encoding["table"], dtype=np.float32)
    usual, largest = float(np.quantile(np.abs(values), 0.998)), float(np.abs(values).max())
    limits = {"zmin": -usual, "zmax": usual} if 0 < usual < largest / 2 else {}  # one number would pale all others
    made = figure(
        heat(values, unit="value", hover="position %{y}, dimension %{x}: %{z:.3f}", diverging=True, **limits),
        title=f"The {encoding['kind']} positions of this model: {values.shape[1]} numbers for each place",
        caption="Each row is a place in the text, and what is added to the embedding of the token that stands there. "
        + (
            "Fast waves on one side, slow ones on the other: no two rows are alike."
            if encoding["kind"] == "sinusoidal"
            else "Learnt in training, like the embeddings."
        )
        + (f" The colours end at ±{usual:.2g}; one place in 500 lies beyond, up to {largest:.2g}." if limits else ""),
        height=560,
    )
    made.update_xaxes(title="dimension", showgrid=False)
    return made.update_yaxes(title="position (token)", autorange="reversed", showgrid=False)


def similarity(content: dict[str, Any]) -> go.Figure | None:
    """How alike two places are."""
    encoding = _only(content, "sinusoidal", "learned")
    if encoding is None:
        return None
    made = figure(
        heat(
            np.array(encoding["similarity"], dtype=np.float32),
            unit="cosine",
            hover="positions %{y} and %{x}: %{z:.3f}",
            diverging=True,
            zmin=-1,
            zmax=1,
        ),
        title="How alike two places are",
        caption="The cosine between the vectors of two positions: a blue band along the diagonal means that "
        "neighbours are alike.",
        height=560,
    )
    made.update_xaxes(title="position (token)", showgrid=False)
    return made.update_yaxes(title="position (token)", autorange="reversed", showgrid=False)


def rotary(content: dict[str, Any]) -> go.Figure | None:
    """How far each pair of numbers is turned."""
    encoding = _only(content, "rotary")
    if encoding is None:
        return None
    angles = np.array(encoding["angles"])
    made = figure(
        go.Heatmap(
            z=np.cos(angles).T.astype(np.float32),
            colorscale=SEQUENTIAL,
            zmin=-1,
            zmax=1,
            customdata=(np.rad2deg(angles).T % 360).astype(np.float32),
            hovertemplate="position %{x}, pair %{y}: turned by %{customdata:.1f}°<extra></extra>",
            colorbar={"title": {"text": "cosine of<br>the angle"}},
        ),
        title=f"Rotary positions: how far each of the {angles.shape[1]} pairs of a head is turned",
        caption="Each row is a pair of numbers of every query and key, each column a place in the text. The first "
        "pairs turn fast and tell neighbours apart, the last ones slowly and tell near from far. Only the difference "
        "of two angles counts in a score: the distance of two tokens. "
        f"One turn takes from {min(encoding['wavelengths']):,.1f} to {max(encoding['wavelengths']):,.0f} tokens.",
        height=200 + 14 * max(16, angles.shape[1]),
    )
    made.update_xaxes(title="position (token)", showgrid=False)
    return made.update_yaxes(
        title="pair of dimensions", autorange="reversed", showgrid=False, dtick=1 if angles.shape[1] <= 16 else None
    )


def bias(content: dict[str, Any]) -> go.Figure | None:
    """What distance adds to a score."""
    found = [e for e in content["encodings"] if e["kind"] in ("relative", "alibi")]
    if not found:
        return None
    traces = []
    for encoding in found:
        for head, row in enumerate(encoding["bias"]):
            traces.append(
                go.Scatter(
                    x=encoding["distances"],
                    y=row,
                    mode="lines",
                    name=f"{encoding['where'].split('.')[0]} head {head}",
                    line={"color": COLOURS[head % len(COLOURS)], "dash": ("solid", "dash", "dot")[head // 7 % 3]},
                    visible=True if encoding is found[0] else "legendonly",
                )
            )
    fixed = found[0]["kind"] == "alibi"
    made = figure(
        traces,
        title="What distance adds to an attention score, head by head",
        caption=(
            "ALiBi: a fixed penalty that grows in a straight line; each head has its slope, so some look "
            "near and some far."
            if fixed
            else "A learnt bias for each distance; far distances share one value in ever wider steps. Above 0 the head "
            "prefers that distance, below it avoids it. Negative distances lie before the token that looks."
        ),
        height=520,
    )
    made.update_xaxes(title="distance (position of the key − position of the query, in tokens)")
    return made.update_yaxes(title="added to the score")


def none(content: dict[str, Any]) -> go.Figure | None:
    """A model without positions."""
    if content["encodings"]:
        return None
    made = figure([], title="This model has no positions", caption="Only the mask, by which a token sees what stands "
                  "before it and not what follows, tells it where it is.", height=160)  # fmt: skip
    made.update_xaxes(visible=False)
    return made.update_yaxes(visible=False)


VIEWS = {"table": table, "similarity": similarity, "rotary": rotary, "bias": bias, "none": none}


def terminal(content: dict[str, Any]) -> Any:
    """Kinds, and what can be said of each in a line."""
    from rich.table import Table

    rows = Table(box=None, pad_edge=False)
    for name in ("kind", "where", "in numbers"):
        rows.add_column(name)
    for e in content["encodings"]:
        if e["kind"] == "rotary":
            waves = e["wavelengths"]
            said = f"{len(waves)} pairs, one turn in {min(waves):,.1f} to {max(waves):,.0f} tokens"
        elif "bias" in e:
            reach = [min(map(min, e["bias"])), max(map(max, e["bias"]))]
            said = f"{len(e['bias'])} heads, from {reach[0]:.3g} to {reach[1]:.3g} over {len(e['distances'])} distances"
        else:
            beside = np.diagonal(np.array(e["similarity"]), 1).mean()
            said = f"{len(e['table'])} × {len(e['table'][0])}, neighbours alike by a cosine of {beside:.2f}"
        rows.add_row(e["kind"], e["where"], said)
    if not content["encodings"]:
        rows.add_row("none", "", "the causal mask alone")
    return rows
