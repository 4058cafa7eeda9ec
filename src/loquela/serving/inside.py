"""What the page asks beyond OpenAI's API: pieces with their ids, whole distributions, pictures, labels, runs."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loquela.api import LanguageModel
from loquela.engine.choosing import base_of
from loquela.engine.requests import Scores, Written
from loquela.generation.completion import Alternative, prompt_ids
from loquela.generation.rules import RULES, History, most_probable
from loquela.generation.sampling import stages
from loquela.generation.settings import SETTINGS
from loquela.generation.tagging import words_of
from loquela.inspection import PICTURES
from loquela.inspection.reading import read, token_text
from loquela.inspection.theme import TEMPLATES
from loquela.models.encoder_only import EncoderOnly
from loquela.peft.wardrobe import wardrobe_of
from loquela.serving.asking import prompt_of, rendered, requests_of
from loquela.serving.completions import LEAST_LOG_PROB
from loquela.serving.failures import ApiError
from loquela.serving.inside_schemas import (
    About,
    ClassifyRequest,
    Control,
    Labelled,
    Labels,
    Logits,
    LogitsRequest,
    PictureCard,
    PictureRequest,
    PieceRequest,
    StageCard,
    Stages,
    StagesRequest,
)
from loquela.serving.large import aside
from loquela.serving.operations import Operation
from loquela.serving.running import Run, until_left
from loquela.serving.runs import Runs, runs
from loquela.serving.state import Served
from loquela.serving.stream import events

__all__ = ["INSIDE"]

T = TypeVar("T")

MOST_DRAWN = 512
"""Tokens that a picture may have: attention grows with their square."""
_LISTED = 512
_SHOWN = frozenset({"tokens", "attention", "next", "embeddings", "positions", "lens", "attribution", "anatomy", "loop"})
_HIDDEN = frozenset({"seed", "n", "stop", "max_new_tokens", "sampler_order", "do_sample"})


async def about(served: Served, http: HttpRequest) -> About:
    """Describe model, controls and pictures."""
    network, card = served.model.network, served.card(None)
    return About(
        name=served.name,
        model_type=network.config.model_type,
        kind=network.kind,
        task=network.task if isinstance(network, EncoderOnly) else None,
        parameters=base_of(network).parameter_count(),
        vocab_size=network.vocab_size,
        context_length=served.scheduler.window(None),
        chat=card.chat,
        infill=card.infill,
        adapters=_methods(served),
        defaults=card.defaults,
        controls=[
            _control(s.name, s.kind, s.default, s.minimum, s.maximum, s.help)
            for s in SETTINGS.values()
            if s.name in RULES and s.kind in (int, float) and s.name not in _HIDDEN
        ],
        pictures=[_picture_card(name) for name in PICTURES if name in _SHOWN],
        templates={name: template.to_plotly_json() for name, template in TEMPLATES.items()},
    )


def _methods(served: Served) -> dict[str, str]:
    """Return how each adapter was tuned, by its name."""
    wardrobe = wardrobe_of(served.model.network)
    return {} if wardrobe is None else {name: wardrobe.adapters[name].config.method for name in served.adapters}


def _control(name: str, kind: type, default: Any, minimum: float, maximum: float, help: str) -> Control:
    bounds = [None if math.isinf(bound) else bound for bound in (minimum, maximum)]
    return Control(name=name, kind=kind.__name__, default=default, minimum=bounds[0], maximum=bounds[1], help=help)


def _picture_card(name: str) -> PictureCard:
    options = [
        _control(o.name, o.kind, None if o.needed else o.default, -math.inf, math.inf, o.help)
        for o in PICTURES[name].options.values()
        if o.kind in (int, float, bool, str)
    ]
    return PictureCard(name=name, title=PICTURES[name].title, options=options)


async def _ids(served: Served, body: Any) -> list[int] | str:
    """Return the token ids of a body's text, ids or conversation; or the text that an empty prompt is."""
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give one of prompt and messages", param="prompt", code="invalid_value")
    suffix = getattr(body, "suffix", None)
    if body.messages is not None:
        if suffix is not None:
            raise ApiError(400, "a suffix goes with a prompt, not with messages", param="suffix")
        return await rendered(served, body.messages, served.adapter(body.model))
    return (await prompt_of(served, body.prompt, suffix))[0]


async def _read(served: Served, body: Any) -> list[int]:
    """Return the token ids of a body's text, ids or conversation, as the network reads them."""
    ids = await _ids(served, body)
    return prompt_ids(served.model.tokenizer, ids) if isinstance(ids, str) else ids


async def complete(served: Served, http: HttpRequest, body: PieceRequest) -> Response:
    """Stream each piece of one completion with its id, its log-probability, and the alternatives with theirs."""
    settings = served.settings(body, 200 if body.max_tokens is None else body.max_tokens)
    ids = await _ids(served, body)
    requests = await requests_of(served, http, body, [ids], settings, top=body.top, score_prompt=bool(body.echo))
    return events(_pieces(served, Run(served, requests), requests[0].prompt, settings.seed))


async def _pieces(served: Served, run: Run, ids: Sequence[int], seed: int) -> AsyncIterator[dict[str, Any]]:
    texts = await aside(len(ids), lambda: [served.token(token) for token in ids])
    yield {"prompt": [{"id": token, "text": text} for token, text in zip(ids, texts, strict=True)], "seed": seed}
    async for _, event in run.events():
        if isinstance(event, Scores):
            yield {"scores": [token.log_prob for token in event.tokens]}
        elif isinstance(event, Written):
            piece = event.piece
            yield {
                "text": piece.text,
                "id": piece.id,
                "token": served.token(piece.id),
                "log_prob": max(piece.log_prob, LEAST_LOG_PROB),
                "top": [_alternative(other) for other in piece.top],
                "finish_reason": piece.finish_reason,
            }


def _alternative(other: Alternative) -> dict[str, Any]:
    return {"id": other.id, "text": other.text, "log_prob": max(other.log_prob, LEAST_LOG_PROB)}


async def _next_logits(served: Served, http: HttpRequest, body: Any) -> tuple[list[int], Any]:
    """Return the prompt's ids and the logits (vocab,) of what comes next, float64."""
    adapter, ids = served.adapter(body.model), await _read(served, body)
    if served.model.network.kind == "encoder":
        raise ApiError(400, "the next token is unavailable: this model reads a text whole", code="unavailable")

    def job(model: LanguageModel) -> Any:
        reading = read(model, ids) if model.network.kind == "decoder" else read(model, ids, [])
        return reading.logits()[-1].double().cpu().numpy()

    return ids, await until_left(http, served.look(adapter, job), _nothing)


def _nothing() -> None:
    """Who leaves before their turn has no turn: the future is cancelled with the wait for it."""


async def logits(served: Served, http: HttpRequest, body: LogitsRequest) -> Logits:
    """Return the whole distribution, so that the page can follow a slider without asking again."""
    ids, row = await _next_logits(served, http, body)
    listed = [int(token) for token in most_probable(row, _LISTED)]
    return Logits(
        tokens=ids,
        logits=base64.b64encode(np.asarray(row, dtype="<f4").tobytes()).decode(),
        vocab_size=len(row),
        texts={token: token_text(served.model.tokenizer, token) for token in listed},
    )


async def stages_of(served: Served, http: HttpRequest, body: StagesRequest) -> Stages:
    """Let the sampler itself say what each rule does."""
    settings = served.model.settings(**body.settings)
    ids, row = await _next_logits(served, http, body)
    row = np.asarray(row, dtype=np.float32).astype(np.float64)  # the very numbers that `logits` sends
    history = History(ids, (), served.model.end_ids)
    return Stages(
        stages=[
            StageCard(name=s.name, value=s.value, removed=s.removed, kept=int(np.isfinite(s.after).sum()))
            for s in await aside(len(row), stages, row, history, settings)
        ]
    )


async def picture(served: Served, http: HttpRequest, body: PictureRequest) -> Response:
    """Draw a picture of the very tokens of a request, with its adapter worn."""
    if body.picture not in _SHOWN:
        raise ApiError(404, f"picture must be one of {', '.join(sorted(_SHOWN))}, but is another", param="picture")
    drawn = PICTURES[body.picture]
    options = {}
    for name, value in body.options.items():
        setting = drawn.options.get(name) or (SETTINGS.get(name) if drawn.takes_settings else None)
        if setting is None:
            raise ApiError(400, f"{body.picture} has no option {name[:40]!r}", param="options", code="invalid_value")
        options[name] = setting.parse(value)
    adapter, ids = served.adapter(body.model), await _read(served, body) if "text" in drawn.takes else None
    if ids is not None and len(ids) > MOST_DRAWN:
        told = f"a picture takes at most {MOST_DRAWN} tokens, but there are {len(ids)}: shorten the text"
        raise ApiError(400, told, code="too_long")

    def job(model: LanguageModel) -> str:
        data = drawn.tables(model, ids, adapter=adapter, **options)
        figures = ",".join(f"{json.dumps(name)}:{figure.to_json()}" for name, figure in drawn.figures(data).items())
        shown = json.dumps({"title": drawn.title, "unavailable": data.get("unavailable") or {}})
        return f'{shown[:-1]}, "figures": {{{figures}}}}}'

    answer = await until_left(http, served.look(adapter, job, long=True), _nothing)
    return Response(answer, media_type="application/json")


async def classify(served: Served, http: HttpRequest, body: ClassifyRequest) -> Labels:
    """Return the labels of a classifier's head, for whole texts or for each word of them."""
    adapter, network = served.adapter(body.model), served.model.network
    task = network.task if isinstance(network, EncoderOnly) else ""
    if task not in ("text-classification", "token-classification"):
        raise ApiError(400, "labels need a model with a classifier's head, but this one has none", code="unavailable")

    def whole(model: LanguageModel, text: str) -> list[float]:
        scores: list[float] = (
            model.logits(model.tokenizer.encode(text), adapter=adapter).double().softmax(-1)[0].tolist()
        )
        return scores

    def words(model: LanguageModel, text: str) -> list[Labelled]:
        found = zip(words_of(text), model.tag(text, adapter=adapter), strict=True)
        return [
            Labelled(word=one.word, start=start, end=end, label=one.tag, probability=math.exp(one.log_prob))
            for (start, end), one in found
        ]

    async def each(job: Callable[[LanguageModel, str], T]) -> list[T]:
        return [await served.look(adapter, lambda model, text=text: job(model, text)) for text in body.input]  # type: ignore[misc]

    labels = list(getattr(network, "labels", ()))
    if task == "text-classification":
        return Labels(labels=labels, probabilities=await until_left(http, each(whole), _nothing))
    return Labels(labels=labels, words=await until_left(http, each(words), _nothing))


INSIDE = (
    Operation("GET", "/inside/about", "What the page must know.", about, answer=About, errors=(401, 403, 500)),
    Operation("POST", "/inside/complete", "Pieces with ids.", complete, PieceRequest, media="text/event-stream"),
    Operation("POST", "/inside/logits", "The next token's logits.", logits, LogitsRequest, Logits),
    Operation("POST", "/inside/stages", "What each rule removes.", stages_of, StagesRequest, Stages),
    Operation("POST", "/inside/picture", "A picture's figures and data.", picture, PictureRequest),
    Operation("POST", "/inside/classify", "Labels of texts.", classify, ClassifyRequest, Labels),
    Operation("GET", "/inside/runs", "Runs of training here.", runs, answer=Runs, errors=(401, 403, 500)),
)
"""The operations that the app adds to its table."""
