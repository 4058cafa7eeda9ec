"""What a tuning leaves behind so that its verdict can be checked: every score of every item, and pictures of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loquela.evaluation.forgetting import Forgetting
from loquela.training.directory import write_file
from loquela.tuning.judging import Held, Verdict, gold_tags

if TYPE_CHECKING:
    from loquela.tuning.loop import Tuning

__all__ = ["HEAT", "write_evidence"]

HEAT = 24
"""Texts whose tokens are shown one by one."""
Numbers = npt.NDArray[np.float64]


def write_evidence(
    directory: Path,
    run: Tuning,
    after: Held,
    nats: Mapping[str, Numbers],
    tokens: Mapping[str, Sequence[Numbers]],
    forgetting: Forgetting,
    verdict: Verdict,
) -> None:
    """Write `evidence/`: held_out.csv, probe.csv, probe_tokens.json, forgetting.html; raises `StorageError`."""
    place = directory / "evidence"
    place.mkdir(exist_ok=True)
    items = run.prepared.held
    header = ["task", "row", "before", "after", "bytes", "label", "predicted"]
    write_file(
        place / "held_out.csv",
        _table(
            header,
            [
                [
                    run.prepared.names[item.task],
                    item.row,
                    repr(float(run.before.values[i])),
                    repr(float(after.values[i])),
                    item.n_bytes,
                    *_labels(run, after, i),
                ]
                for i, item in enumerate(items)
            ],
        ),
    )
    rows = [
        [name, i, repr(float(before)), repr(float(nats[name][i])), int(run.probes.n_bytes(name)[i])]
        for name, found in run.probes.before.items()
        for i, before in enumerate(found)
    ]
    write_file(place / "probe.csv", _table(["probe", "item", "before", "after", "bytes"], rows))
    heat = _heat(run, tokens)
    write_file(place / "probe_tokens.json", json.dumps(heat, ensure_ascii=False) + "\n")
    stages = [{"step": stage.step, **stage.bits} for stage in forgetting.stages]
    write_file(
        place / "curves.json",
        json.dumps({"stages": stages, "tasks": run.progress.curves, "verdict": verdict.as_dict()}, indent=2) + "\n",
    )
    if run.probes.before:
        write_file(place / "forgetting.html", _page(run, forgetting, heat, verdict))


def _labels(run: Tuning, after: Held, number: int) -> list[str]:
    """Return what a held-out item is labelled with, and what the model says; of words all tags with blanks between."""
    item, names = run.prepared.held[number], run.subject.labels
    if item.tagged:
        return [" ".join(names[tag] for tag in tags) for tags in (gold_tags(item), after.choices[number])]
    return ["", ""] if item.label is None else [names[item.label], names[int(after.predicted[number])]]


def _heat(run: Tuning, tokens: Mapping[str, Sequence[Numbers]]) -> list[dict[str, Any]]:
    """Return for some texts each token, and how many nats it cost before and after."""
    tokenizer = run.subject.tokenizer
    found = []
    for name, texts in run.probes.texts.items():
        for text, before, after in list(zip(texts, run.probes.tokens_before[name], tokens[name], strict=True))[:HEAT]:
            found.append(
                {
                    "probe": name,
                    "tokens": [tokenizer.token(i) for i in text.ids[1:]],
                    "before": [round(float(x), 4) for x in before],
                    "after": [round(float(x), 4) for x in after],
                }
            )
    return found


def _page(run: Tuning, forgetting: Forgetting, heat: Sequence[Mapping[str, Any]], verdict: Verdict) -> str:
    """Return a page of its own: the matrix stages x probes as a chart, and the tokens that became less likely."""
    import html

    import plotly.graph_objects as go

    figure = go.Figure()
    steps = [stage.step for stage in forgetting.stages]
    for name in run.probes.before:
        base = forgetting.stages[0].bits[name]
        figure.add_scatter(
            x=steps, y=[stage.bits[name] - base for stage in forgetting.stages], name=name, mode="lines+markers"
        )
    if forgetting.noise is not None:
        figure.add_hrect(y0=-forgetting.noise, y1=forgetting.noise, opacity=0.15, line_width=0, fillcolor="grey")
    if run.recipe.max_forget is not None:
        figure.add_hline(y=run.recipe.max_forget, line={"dash": "dash", "width": 1, "color": "#666666"})
    figure.update_layout(
        title="What was forgotten", xaxis_title="step", yaxis_title="bits per byte more than before", height=420
    )
    chart = figure.to_html(full_html=False, include_plotlyjs=True)
    lines = []
    for text in heat:
        spans = []
        for token, before, after in zip(text["tokens"], text["before"], text["after"], strict=True):
            more = after - before
            strength = min(1.0, abs(more) / 3)
            colour = f"rgba(200,30,30,{strength:.2f})" if more > 0 else f"rgba(30,120,60,{strength:.2f})"
            said = html.escape(f"{before:.2f} to {after:.2f} nats", quote=True)
            spans.append(f'<span style="background:{colour}" title="{said}">{html.escape(token)}</span>')
        lines.append(f"<p>{''.join(spans)}</p>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>What was forgotten</title>'
        '<body style="font-family:sans-serif;max-width:60em;margin:2em auto">'
        f"<p>{html.escape(verdict.sentence)}</p>{chart}"
        "<h2>Texts that the base knew</h2><p>Red: less likely now. Green: more likely.</p>"
        f"{''.join(lines)}</body></html>\n"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()
