"""Generation step by step: what goes in, what the cache holds, what could come, what was chosen."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import plotly.graph_objects as go
from torch import Tensor

from loquela.errors import UsageError
from loquela.generation.decode import decode, prefill
from loquela.generation.rules import History, most_probable, softmax
from loquela.generation.sampling import distribution, uniform
from loquela.inspection.reading import Inspected, Text, UnavailableError, read, token_text, token_texts
from loquela.inspection.theme import COLOURS, figure, heat, ticks, visible_tokens
from loquela.inspection.watch import watch
from loquela.layers.cache import Cache

__all__ = ["VIEWS", "data", "terminal"]

_MOST = 64


def data(
    model: Inspected,
    text: Text,
    *,
    top: Annotated[int, "How many candidates each step lists."] = 8,
    **settings: Any,
) -> dict[str, Any]:
    """Return what happens at each step while the model continues a text, by the sampler and the loop that generate.

    - `prompt` (of an encoder-decoder the source, read once) and `completion`: texts of tokens; `text`, the continuation
    - `steps`: each with `input` (the tokens fed: the whole prompt first, then one), `cached` (positions in the cache
      once they are read), `cache_bytes`, `candidates` (`id`, `text`, `probability` of the model, `after` the settings),
      `drawn` (the number in [0, 1) that decides), `id`, `token`, `probability`, `after` and `finish_reason`
    - `cross` [step][source]: where each step looks in the source, over all layers and heads; None without a source
    - `settings`: those in force. At most 64 steps, 16 unless `max_new_tokens` says otherwise.
    """
    network = model.network
    if network.kind == "encoder":
        raise UnavailableError(
            f"generation is unavailable: {network.config.model_type} reads a text whole, it writes none"
        )
    settings.setdefault("max_new_tokens", 16)
    chosen = model.settings(**settings)
    if not 0 < chosen.max_new_tokens <= _MOST or chosen.num_beams > 1 or chosen.stop:
        raise UsageError(f"a loop is shown with max_new_tokens from 1 to {_MOST}, one beam, and no stop texts")
    ids = read(model, text, target=() if network.kind == "encoder-decoder" else None).ids
    crossing = network.kind == "encoder-decoder"
    with watch(network, *(["decoder.layers.*.cross:weights"] if crossing else [])) as seen:
        prefix, cache, outlook = prefill(network, ids)
        steps: list[dict[str, Any]] = []
        completion: list[int] = []
        fed = token_texts(model.tokenizer, prefix)
        for step in decode(network, prefix, outlook, cache, chosen, end_ids=model.end_ids):
            last = len(completion) + 1 == min(chosen.max_new_tokens, network.context_length - len(prefix))
            history = History(prefix, tuple(completion), model.end_ids, last)
            own, after = softmax(step.logits), distribution(step.logits, history, chosen)
            listed = [int(i) for i in most_probable(step.logits, top)]
            steps.append(
                {
                    "input": fed,
                    "cached": cache.length,
                    "cache_bytes": _bytes(cache),
                    "candidates": [
                        {
                            "id": i,
                            "text": token_text(model.tokenizer, i),
                            "probability": round(float(own[i]), 8),
                            "after": round(float(after[i]), 8),
                        }
                        for i in listed
                    ],
                    "drawn": uniform(chosen.seed, 0, len(completion)),
                    "id": step.id,
                    "token": token_text(model.tokenizer, step.id),
                    "probability": round(float(own[step.id]), 8),
                    "after": round(float(after[step.id]), 8),
                    "finish_reason": step.finish_reason,
                }
            )
            completion.append(step.id)
            fed = [token_text(model.tokenizer, step.id)]
        cross = None
        if crossing:
            calls = [np.stack([w[0, :, -1].double().numpy().mean(0) for w in maps]) for maps in seen.values()]
            cross = np.mean(calls, axis=0)[: len(steps)].round(6).tolist()
    return {
        "prompt": token_texts(model.tokenizer, ids),
        "completion": token_texts(model.tokenizer, completion),
        "text": model.tokenizer.decode(completion),
        "steps": steps,
        "cross": cross,
        "settings": {k: v for k, v in chosen.as_dict().items() if k in ("seed", "do_sample", *chosen.sampler_order)},
        "unavailable": {} if crossing else {"cross": "a decoder has no source beside its own text"},
    }


def _bytes(cache: Cache) -> int:
    """Bytes of what the cache holds, buffers that wait to be filled not counted."""
    if (state := getattr(cache, "state", None)) is not None:
        return sum(part.numel() * part.element_size() for part in state)
    row = sum(2 * k.shape[1] * k.shape[3] * k.element_size() for k in _keys(cache))  # a position's keys and values
    source = sum(2 * k.numel() * k.element_size() for k, _ in getattr(cache, "memory", ()))
    return int(row * cache.length + source)


def _keys(cache: Cache) -> list[Tensor]:
    return [layer._k for layer in cache.layers if layer._k is not None]


def steps_(content: dict[str, Any]) -> go.Figure:
    """One step at a time; the slider goes through them."""
    steps = content["steps"]
    frames = [
        go.Frame(data=_bars(step), name=str(i), layout={"title": {"text": _head(i, step)}})
        for i, step in enumerate(steps)
    ]
    most = max(len(step["candidates"]) for step in steps) + 1
    made = figure(
        _bars(steps[0]),
        title=_head(0, steps[0]),
        caption="One step of the loop: the tokens that go in, the candidates that come out, and the one that is chosen "
        "(▶). Blue: the model's own probability; orange: after the settings, from which the token is drawn. The chosen "
        "token is the next step's input, and the cache grows by one.",
        height=210 + 40 * most,
        barmode="group",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        sliders=[
            {
                "active": 0,
                "currentvalue": {"prefix": "step "},
                "pad": {"t": 50},
                "steps": [
                    {
                        "label": f"{i}: {visible_tokens([step['token']])[0]}",
                        "method": "animate",
                        "args": [[str(i)], {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}],
                    }
                    for i, step in enumerate(steps)
                ],
            }
        ],
    )
    made.frames = frames
    made.update_xaxes(range=[0, 1.12], tickformat=".0%", title="probability")
    return made.update_yaxes(autorange="reversed", showgrid=False).update_layout(margin={"t": 90, "l": 130})


def _bars(step: dict[str, Any]) -> list[Any]:
    listed = list(step["candidates"])
    if step["id"] not in [c["id"] for c in listed]:
        chosen = {"id": step["id"], "text": step["token"], "probability": step["probability"], "after": step["after"]}
        listed[-1] = chosen
    names = [f"{'▶ ' if c['id'] == step['id'] else ''}{visible_tokens([c['text']])[0]} ({c['id']})" for c in listed]
    return [
        go.Bar(
            y=names,
            x=[c[key] for c in listed],
            orientation="h",
            name=label,
            marker={"color": colour},
            text=[f"{100 * c[key]:.1f} %" if c[key] else "removed" for c in listed],
            textposition="outside",
            cliponaxis=False,
        )
        for key, label, colour in (
            ("probability", "the model's own", COLOURS[0]),
            ("after", "after the settings", COLOURS[1]),
        )
    ]


def _head(i: int, step: dict[str, Any]) -> str:
    fed = "".join(visible_tokens(step["input"][-8:]))
    dots = "…" if len(step["input"]) > 8 else ""
    return (
        f"Step {i}: in goes {len(step['input'])} token{'s' if len(step['input']) > 1 else ''} “{dots}{fed}”, "
        f"the cache holds {step['cached']:,} ({step['cache_bytes'] / 1000:,.1f} kB)"
    )


def course(content: dict[str, Any]) -> go.Figure:
    """The whole text, how sure each choice was, and how the cache grew."""
    steps = content["steps"]
    where = list(range(len(steps)))
    made = figure(
        [
            go.Bar(
                x=where,
                y=[step["after"] for step in steps],
                name="probability of the choice",
                marker={"color": COLOURS[1]},
                hovertemplate="%{y:.1%}<extra></extra>",
            ),
            go.Scatter(
                x=where,
                y=[step["cache_bytes"] / 1000 for step in steps],
                name="cache (kB)",
                yaxis="y2",
                mode="lines+markers",
                line={"color": COLOURS[0], "shape": "hv"},
                hovertemplate="%{y:,.1f} kB<extra></extra>",
            ),
        ],
        title="The choices, one after the other",
        caption="Each bar is a chosen token and the probability with which it was drawn; the line is what the cache "
        "holds, which is what the model need not compute again.",
        yaxis2={
            "overlaying": "y",
            "side": "right",
            "title": {"text": "cache (kB)"},
            "rangemode": "tozero",
            "showgrid": False,
        },
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    )
    made.update_xaxes(**ticks(content["completion"]), title="chosen token", tickangle=-45)
    return made.update_layout(yaxis={"range": [0, 1.05], "tickformat": ".0%", "title": {"text": "probability"}})


def cross(content: dict[str, Any]) -> go.Figure | None:
    """Where each step looks in the source."""
    if content["cross"] is None:
        return None
    made = figure(
        heat(np.array(content["cross"], dtype=np.float32), unit="share", hover="%{z:.3f}", zmin=0),
        title="Where each step looks in the source",
        caption="Cross-attention over all layers and heads: each row is a step, named by the token that it chose, and "
        "what it looked at in the source.",
        height=220 + 22 * len(content["steps"]),
    )
    made.update_xaxes(**ticks(content["prompt"]), side="top", tickangle=-50, title="source")
    return made.update_yaxes(**ticks(content["completion"]), autorange="reversed", title="chosen token").update_layout(
        margin={"t": 140}
    )


VIEWS = {"steps": steps_, "course": course, "cross": cross}


def terminal(content: dict[str, Any]) -> Any:
    """A row for each step."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("step", "in", "cache", "kB", "candidates after the settings", "drawn", "chosen"):
        table.add_column(name, justify="right" if name in ("step", "cache", "kB") else "left")
    for i, step in enumerate(content["steps"]):
        fed = "".join(step["input"][-4:])
        left = [c for c in step["candidates"] if c["after"]][:4]
        table.add_row(
            str(i),
            ("…" if len(step["input"]) > 4 else "") + repr(fed)[1:-1],
            f"{step['cached']:,}",
            f"{step['cache_bytes'] / 1000:,.1f}",
            ", ".join(f"{c['text']!r} {c['after']:.2f}" for c in left),
            f"{step['drawn']:.3f}",
            repr(step["token"])[1:-1],
        )
    return table
