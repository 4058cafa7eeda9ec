"""Which token comes next, and how much of it each setting lets through."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go

from loquela.errors import UsageError
from loquela.generation.decode import evaluating, prefill
from loquela.generation.rules import History, Logits, most_probable, softmax
from loquela.generation.sampling import distribution, stages
from loquela.inspection.reading import Inspected, Text, UnavailableError, gap, head, read, token_text
from loquela.inspection.theme import COLOURS, figure, visible_tokens

__all__ = ["VIEWS", "data", "terminal", "waterfall_of"]


def data(
    model: Inspected,
    text: Text,
    *,
    top: Annotated[int, "How many tokens the table lists."] = 20,
    **settings: Any,
) -> dict[str, Any]:
    """Return the distribution of the next token, over the whole vocabulary, before and after the sampling rules.

    - `prompt`: the tokens that it follows; of an encoder, the text with its mask, for which the distribution is
    - `top`: the most probable tokens: `id`, `text`, `log_prob` (nats) and `probability` of the model itself, and
      `after`, the probability once every rule is applied (0: removed)
    - `rest`: `tokens`, `probability` and `after` of all that is not listed: with them the sums are 1
    - `stages`: each rule that does something, in order: `name`, `value`, `kept` tokens, `removed` (the share of the
      distribution before it that it removes), `moved` (the share that changes hands, half the sum of |after - before|),
      `entropy` after it in bits, and for a waterfall `taken` and `left`, in shares of the whole: all `taken` and the
      last `left` sum to 1
    - `settings`: those in force; `entropy` of the model's own distribution, in bits; `vocab_size`
    """
    if top < 1:
        raise UsageError(f"top must be at least 1, but is {top}")
    logits, prompt = _logits(model, text)
    chosen = model.settings(**settings)
    history = History([] if model.network.kind == "encoder" else prompt, (), model.end_ids)
    own, after = softmax(logits), distribution(logits, history, chosen)
    listed = most_probable(logits, top)
    return {
        "prompt": [{"id": token, "text": token_text(model.tokenizer, token)} for token in prompt],
        "vocab_size": len(logits),
        "entropy": _bits(own),
        "top": [
            {
                "id": int(token),
                "text": token_text(model.tokenizer, int(token)),
                "log_prob": float(np.log(own[token])) if own[token] > 0 else -1e9,
                "probability": float(own[token]),
                "after": float(after[token]),
            }
            for token in listed
        ],
        "rest": {
            "tokens": len(logits) - len(listed),
            "probability": max(0.0, float(1 - own[listed].sum())),
            "after": max(0.0, float(1 - after[listed].sum())),
        },
        "stages": waterfall_of(logits, history, chosen),
        "settings": {name: getattr(chosen, name) for name in chosen.sampler_order},
        "unavailable": {},
    }


def _logits(model: Inspected, text: Text) -> tuple[Logits, list[int]]:
    network = model.network
    if network.kind == "encoder":
        if getattr(network, "task", "") != "fill-mask":
            raise UnavailableError(
                f"the next token is unavailable: this {network.config.model_type} reads a text whole and has no head "
                "that fills masks"
            )
        reading = read(model, text)
        with evaluating(network):
            row = head(network, reading.hidden()[0, gap(model, reading)])
        return row.double().cpu().numpy(), reading.ids
    ids = read(model, text, target=() if network.kind == "encoder-decoder" else None).ids
    prefix, _, outlook = prefill(network, ids)
    return outlook.values, ids if network.kind == "decoder" else [*ids, *prefix]


def waterfall_of(logits: Any, history: History, settings: Any) -> list[dict[str, Any]]:
    """Return what each stage of the sampler does to `logits` (vocab,); see `data`."""
    steps, left = [], 1.0
    for stage in stages(logits, history, settings):
        before, after = softmax(stage.before), softmax(stage.after)
        removed = stage.removed
        taken = left * removed
        left -= taken
        steps.append(
            {
                "name": stage.name,
                "value": stage.value,
                "kept": int(np.isfinite(stage.after).sum()),
                "removed": removed,
                "moved": float(np.abs(after - before).sum() / 2),
                "entropy": _bits(after),
                "taken": taken,
                "left": left,
            }
        )
    return steps


def _bits(p: Logits) -> float:
    positive = p[p > 0]
    return float(max(0.0, -(positive * np.log2(positive)).sum()))


def bars(content: dict[str, Any]) -> go.Figure:
    """The most probable tokens, before and after the rules."""
    listed = content["top"]
    rest = content["rest"]
    names = [*visible_tokens([token["text"] for token in listed]), f"{rest['tokens']:,} others"]
    traces = []
    for key, label, colour in (
        ("probability", "the model's own", COLOURS[0]),
        ("after", "after the settings", COLOURS[1]),
    ):
        shares = [*(token[key] for token in listed), rest[key]]
        traces.append(
            go.Bar(
                y=list(range(len(names))),
                x=shares,
                orientation="h",
                name=label,
                marker={"color": colour},
                text=[f"{100 * share:.1f} %" if share else "removed" if key == "after" else "0 %" for share in shares],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{x:.4%}<extra>" + label + "</extra>",
            )
        )
    made = figure(
        traces,
        title="What comes next",
        caption=f"The {len(listed)} most probable of {content['vocab_size']:,} tokens; every probability is over the "
        f"whole vocabulary, so with the others the bars of a colour sum to 100 %. Uncertainty of the model's own "
        f"distribution: {content['entropy']:.2f} bits.",
        height=150 + 34 * len(names),
        barmode="group",
        bargap=0.25,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right", "traceorder": "normal"},
    )
    made.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, autorange="reversed", showgrid=False, title="next token"
    )
    return made.update_xaxes(tickformat=".0%", rangemode="tozero", title="probability")


def waterfall(content: dict[str, Any]) -> go.Figure:
    """How much of the distribution each stage removes."""
    steps = content["stages"]
    names = ["whole vocabulary", *(f"{s['name']}<br>{_value(s['value'])}" for s in steps), "left to draw from"]
    left = steps[-1]["left"] if steps else 1.0
    kept = steps[-1]["kept"] if steps else content["vocab_size"]
    label = ["100 %"]
    for s in steps:
        if s["removed"] > 0 or s["kept"] < content["vocab_size"]:
            label.append(f"−{100 * s['taken']:.2g} %<br>{s['kept']:,} kept")
        else:
            label.append(f"moves {100 * s['moved']:.2g} %")
    label.append(f"{100 * left:.3g} %<br>{kept:,} tokens")
    made = figure(
        go.Waterfall(
            x=names,
            y=[1.0, *(-s["taken"] for s in steps), left],
            measure=["absolute", *["relative"] * len(steps), "total"],
            text=label,
            textposition="outside",
            cliponaxis=False,
            decreasing={"marker": {"color": COLOURS[1]}},
            increasing={"marker": {"color": COLOURS[2]}},
            totals={"marker": {"color": COLOURS[0]}},
            connector={"line": {"color": "#8a8f9a", "width": 1}},
            hovertemplate="%{x}: %{y:.3%}<extra></extra>",
        ),
        title="What each setting removes",
        caption="From left to right in the order in which the sampler applies them. A penalty or a temperature removes "
        "nothing: it moves probability from some tokens to others. What is removed and what is left sum to 100 %; what "
        "is left is then scaled up to 1, and one token is drawn from it.",
        height=460,
    )
    return made.update_yaxes(tickformat=".0%", range=[0, 1.18], title="share of the distribution").update_layout(
        showlegend=False
    )


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)[:20]


VIEWS = {"bars": bars, "waterfall": waterfall}


def terminal(content: dict[str, Any]) -> Any:
    """The table of tokens and that of the stages."""
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="what comes next", title_justify="left")
    for name in ("token", "id", "probability", "", "after the settings"):
        table.add_column(name, justify="left" if name in ("token", "") else "right")
    for token in content["top"]:
        bar = "█" * round(30 * token["probability"]) or "▏"
        after = f"{token['after']:.4f}" if token["after"] else "removed"
        table.add_row(repr(token["text"])[1:-1], str(token["id"]), f"{token['probability']:.4f}", bar, after)
    rest = content["rest"]
    table.add_row(
        f"{rest['tokens']:,} others", "", f"{rest['probability']:.4f}", "", f"{rest['after']:.4f}", style="dim"
    )
    steps = Table(box=None, pad_edge=False, title="\nwhat each setting does", title_justify="left")
    for name in ("setting", "value", "tokens kept", "removes", "moves", "entropy (bits)"):
        steps.add_column(name, justify="left" if name == "setting" else "right")
    for s in content["stages"]:
        row = (f"{s['kept']:,}", f"{s['removed']:.2%}", f"{s['moved']:.2%}", f"{s['entropy']:.2f}")
        steps.add_row(s["name"], _value(s["value"]), *row)
    return Group(table, steps)
