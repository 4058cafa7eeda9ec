"""What tuning made the model forget: stages × probes, and token by token."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from loquela.errors import DataError
from loquela.inspection.strip import strip
from loquela.inspection.theme import COLOURS, DIVERGING, figure

__all__ = ["TAKES", "VIEWS", "data", "terminal"]

TAKES = "file"
_SHOWN = 6


def data(text: str) -> dict[str, Any]:
    """Return what `loquela tune` measured; `text` is the directory that it wrote, or its `evidence`.

    - `stages`: the steps at which was measured, the first before tuning; `probes`: names of what the base knew
    - `bits_per_byte` [probe][stage], and `change` [probe][stage] since before tuning: above 0 is forgotten
    - `tasks` [name][stage]: the loss on held-out rows of each task of the tuning, or None
    - `texts`: of each probe some texts: `probe`, `tokens`, and `before` and `after` in nats
    - `verdict`: in words, or None
    """
    place = Path(text)
    place = place / "evidence" if (place / "evidence").is_dir() else place
    curves = _json(place / "curves.json")
    missing: dict[str, str] = {}
    try:
        stages = list({stage["step"]: stage for stage in curves["stages"]}.values())  # the last of each step
        probes = [name for name in (stages[0] if stages else {}) if name != "step"]
        bits = [[float(stage[name]) for stage in stages] for name in probes]
        tasks = _tasks(curves.get("tasks") or [])
        found = _json(place / "probe_tokens.json") if (place / "probe_tokens.json").is_file() else []
        texts = [{key: one[key] for key in ("probe", "tokens", "before", "after")} for one in found]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place} must hold what loquela tune writes, but does not: {error!r}") from None
    if not probes and not tasks:
        raise DataError(f"{place} must hold stages with scores, but has none")
    if not texts:
        missing["texts"] = "no token of a probe was kept"
    if not probes:
        missing["bits_per_byte"] = "nothing that the base knew was probed"
    return {
        "stages": [int(stage["step"]) for stage in stages],
        "probes": probes,
        "bits_per_byte": bits,
        "change": [[round(value - row[0], 6) for value in row] for row in bits],
        "tasks": tasks,
        "texts": texts,
        "verdict": (curves.get("verdict") or {}).get("sentence"),
        "unavailable": missing,
    }


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"forgetting is read from what loquela tune writes, but {path} cannot be: {error}; name the directory that "
            "--output of the tuning named"
        ) from None


def _tasks(curves: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The held-out loss of each task at each time; a metric in a table of its own gives its loss."""
    steps = [int(row["step"]) for row in curves]
    values: dict[str, list[float | None]] = {}
    for i, row in enumerate(curves):
        for name, value in {"all": row.get("loss"), **(row.get("tasks") or {})}.items():
            number = value.get("loss") if isinstance(value, Mapping) else value
            kept = values.setdefault(name, [None] * len(steps))
            kept[i] = float(number) if isinstance(number, int | float) and math.isfinite(number) else None
    return {"steps": steps, "values": values} if steps else None


def matrix(content: dict[str, Any]) -> go.Figure | None:
    """Stages × probes."""
    if not content["probes"]:
        return None
    change = np.array(content["change"])
    reach = float(np.abs(change).max()) or 0.01
    made = figure(
        go.Heatmap(
            z=change,
            x=[f"step {step}" if i else "before" for i, step in enumerate(content["stages"])],
            y=content["probes"],
            text=[
                [f"{v:.3f}<br>({c:+.3f})" for v, c in zip(*rows, strict=True)]
                for rows in zip(content["bits_per_byte"], change, strict=True)
            ],
            texttemplate="%{text}" if change.size <= 120 else None,
            colorscale=[[p, c] for (p, _), (_, c) in zip(DIVERGING, DIVERGING[::-1], strict=True)],
            zmin=-reach,
            zmax=reach,
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
            colorbar={"title": {"text": "change<br>(bits per byte)"}},
        ),
        title="What was forgotten, stage by stage",
        caption="Each row is something that the base knew, each column a time during the tuning; the numbers are bits "
        "per byte, and in brackets the change since before. Orange: forgotten, blue: learnt. "
        + (f"The verdict: {content['verdict']}." if content["verdict"] else ""),
        height=240 + 54 * len(content["probes"]),
    )
    return made.update_yaxes(autorange="reversed", showgrid=False)


def tasks(content: dict[str, Any]) -> go.Figure | None:
    """What was learnt meanwhile."""
    if content["tasks"] is None:
        return None
    steps = content["tasks"]["steps"]
    made = figure(
        [
            go.Scatter(
                x=steps,
                y=values,
                name=name,
                mode="lines+markers",
                line={"color": COLOURS[i % len(COLOURS)], "width": 3 if name == "all" else 2},
            )
            for i, (name, values) in enumerate(content["tasks"]["values"].items())
        ],
        title="What was learnt meanwhile",
        caption="The loss on held-out rows of the tuning's own tasks, in nats a token: falling is learning.",
    )
    made.update_xaxes(title="step")
    return made.update_yaxes(title="held-out loss (nats)")


def texts(content: dict[str, Any]) -> go.Figure | None:
    """Texts that the base knew, token by token."""
    if not content["texts"]:
        return None
    chosen = sorted(content["texts"], key=lambda t: sum(t["before"]) - sum(t["after"]))[:_SHOWN]
    tokens, fills, hover = [], [], []
    for one in chosen:
        for token, before, after in zip(one["tokens"], one["before"], one["after"], strict=True):
            tokens.append(token)
            fills.append(_shade(after - before))
            hover.append(f"{before:.2f} → {after:.2f} nats")
        if one is not chosen[-1]:
            tokens.append("\n")
            fills.append("rgba(0, 0, 0, 0)")
            hover.append(one["probe"])
    return strip(
        tokens[:1500],
        fills[:1500],
        hover[:1500],
        title="Texts that the base knew: which tokens were forgotten",
        caption="The texts that lost most, up to six. Orange tokens are less likely than before, blue ones more; "
        "full colour from 3 nats, a factor of 20.",
    )


def _shade(nats: float) -> str:
    end = (0xF0, 0x8C, 0x4A) if nats > 0 else (0x56, 0xA8, 0xE0)
    return "#" + "".join(f"{round(245 + (c - 245) * min(1.0, abs(nats) / 3)):02x}" for c in end)


VIEWS = {"matrix": matrix, "tasks": tasks, "texts": texts}


def terminal(content: dict[str, Any]) -> Any:
    """The matrix, and the verdict."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="bits per byte (change)", title_justify="left")
    table.add_column("probe")
    for i, step in enumerate(content["stages"]):
        table.add_column(f"step {step}" if i else "before", justify="right")
    for name, bits, change in zip(content["probes"], content["bits_per_byte"], content["change"], strict=True):
        table.add_row(name, *(f"{b:.3f} ({c:+.3f})" for b, c in zip(bits, change, strict=True)))
    return Group(table, content["verdict"] or "")
