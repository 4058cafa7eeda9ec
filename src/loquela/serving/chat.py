"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loquela.engine.requests import Written
from loquela.generation.completion import Alternative, Piece
from loquela.generation.constrain import token_bytes
from loquela.serving.asking import rendered, requests_of
from loquela.serving.completions import LEAST_LOG_PROB, usage
from loquela.serving.failures import ApiError
from loquela.serving.large import json_answer
from loquela.serving.running import Run, until_left
from loquela.serving.schemas import ChatRequest
from loquela.serving.state import Served
from loquela.serving.stream import events

__all__ = ["chat"]


async def chat(served: Served, http: HttpRequest, body: ChatRequest) -> Response:
    """Answer a conversation `n` times."""
    adapter = served.adapter(body.model)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    if None not in (body.max_tokens, body.max_completion_tokens):
        raise ApiError(400, "max_tokens and max_completion_tokens are two names of one", param="max_tokens")
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    settings = served.settings(body, served.scheduler.window(adapter) if asked is None else asked)
    ids = await rendered(served, body.messages, adapter)
    requests = await requests_of(served, http, body, [ids], settings, top=body.top_logprobs or 0)
    run = Run(served, requests)
    answer = _Answer(served, bool(body.logprobs), run, settings.n, served.name if adapter is None else adapter)
    if body.stream:
        return events(answer.chunks(bool(body.stream_options and body.stream_options.include_usage)))
    return await until_left(http, answer.whole(), run.cancel)


class _Answer:
    """Turns the events of a run into OpenAI's objects."""

    def __init__(self, served: Served, wants_logprobs: bool, run: Run, n: int, model: str) -> None:
        self._served, self._wants_logprobs, self._run, self._n = served, wants_logprobs, run, n
        self._head: dict[str, Any] = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        self._head["model"] = model

    async def whole(self) -> Response:
        """Return the answer when all has come."""
        texts: list[list[str]] = [[] for _ in range(self._n)]
        entries: list[list[Any]] = [[] for _ in range(self._n)]
        reasons: list[str] = ["length"] * self._n
        async for _, event in self._run.events():
            if isinstance(event, Written):
                texts[event.choice].append(event.piece.text)
                entries[event.choice] += self._entries(event.piece)
                reasons[event.choice] = event.piece.finish_reason or "length"

        def choice(index: int) -> dict[str, Any]:
            return {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts[index]), "refusal": None},
                "logprobs": {"content": entries[index], "refusal": None} if self._wants_logprobs else None,
                "finish_reason": reasons[index],
            }

        answer = self._head | {"object": "chat.completion", "usage": usage(self._run)}
        return await json_answer(answer, "choices", range(self._n), choice, 60 * sum(map(len, entries)))

    async def chunks(self, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield the answer as it comes."""
        head = self._head | {"object": "chat.completion.chunk"}
        extra: dict[str, Any] = {"usage": None} if include_usage else {}
        for index in range(self._n):
            yield head | {"choices": [_delta(index, {"role": "assistant", "content": ""})]} | extra
        async for _, event in self._run.events():
            if isinstance(event, Written):
                piece = event.piece
                logprobs = {"content": self._entries(piece), "refusal": None} if self._wants_logprobs else None
                if piece.text or logprobs:
                    yield head | {"choices": [_delta(event.choice, {"content": piece.text}, logprobs)]} | extra
                if piece.finish_reason:
                    yield head | {"choices": [_delta(event.choice, {}, None, piece.finish_reason)]} | extra
        if include_usage:
            yield head | {"choices": [], "usage": usage(self._run)}

    def _entries(self, piece: Piece) -> list[dict[str, Any]]:
        if not self._wants_logprobs:
            return []
        chosen = self._entry(Alternative(piece.id, self._served.token(piece.id), piece.log_prob))
        return [chosen | {"top_logprobs": [self._entry(alternative) for alternative in piece.top]}]

    def _entry(self, token: Alternative) -> dict[str, Any]:
        raw = token_bytes(self._served.model.tokenizer, token.id)
        return {"token": token.text, "logprob": max(token.log_prob, LEAST_LOG_PROB), "bytes": list(raw)}


def _delta(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
