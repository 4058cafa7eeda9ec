"""POST /v1/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loquela.engine.requests import Scores, Written
from loquela.generation.completion import Alternative, best
from loquela.serving.asking import prompt_of, requests_of
from loquela.serving.failures import ApiError
from loquela.serving.large import aside, json_answer
from loquela.serving.running import Run, until_left
from loquela.serving.schemas import CompletionRequest, listed
from loquela.serving.state import Served
from loquela.serving.stream import events

__all__ = ["complete", "usage"]

DEFAULT_TOKENS = 16
LEAST_LOG_PROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


async def complete(served: Served, http: HttpRequest, body: CompletionRequest) -> Response:
    """Continue each prompt `n` times."""
    adapter = served.adapter(body.model)
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    settings = served.settings(body, max_tokens)
    kept, written = settings.n, _written(body, settings.n)
    settings = settings.replace(n=written)
    read = [await prompt_of(served, prompt, body.suffix) for prompt in listed(body.prompt)]
    scored = bool(body.echo) and body.logprobs is not None
    prompts, texts = [ids for ids, _ in read], [text for _, text in read]
    requests = await requests_of(served, http, body, prompts, settings, top=body.logprobs or 0, score_prompt=scored)
    echoes = texts if body.echo else [""] * len(texts)
    run = Run(served, requests)
    answer = _Answer(served, body, run, written, kept, echoes, served.name if adapter is None else adapter)
    if body.stream:
        return events(answer.chunks(bool(body.stream_options and body.stream_options.include_usage)))
    return await until_left(http, answer.whole(), run.cancel)


def usage(run: Run) -> dict[str, int]:
    """Return OpenAI's usage object of a call that has ended."""
    spent = {"prompt_tokens": run.prompt_tokens, "completion_tokens": run.completion_tokens}
    return spent | {"total_tokens": sum(spent.values())}


def _written(body: CompletionRequest, n: int) -> int:
    """Return how many texts are written of each prompt."""
    written = n if body.best_of is None else body.best_of
    if written < n:
        raise ApiError(400, f"best_of must be at least n, which is {n}, but is {written}", param="best_of")
    if written > n and body.stream:
        raise ApiError(
            400, "best_of judges whole texts, so they cannot be streamed: leave out one of both", param="best_of"
        )
    return written


@dataclass
class _Choice:
    """What has come of one choice so far."""

    length: int = 0
    """Characters, the echoed prompt among them."""
    text: list[str] = field(default_factory=list)
    logprobs: dict[str, list[Any]] = field(
        default_factory=lambda: {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    )
    reason: str | None = None
    log_prob: float = 0.0
    """Sum over the tokens that were written."""
    tokens: int = 0


class _Answer:
    """Turns the events of a run into OpenAI's objects: of the `n` texts of each prompt the `kept` best."""

    def __init__(
        self, served: Served, body: CompletionRequest, run: Run, n: int, kept: int, echoes: Sequence[str], model: str
    ) -> None:
        self._served, self._run, self._n, self._kept, self._echoes = served, run, n, kept, echoes
        self._wants_logprobs = body.logprobs is not None
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time())}
        self._head["model"] = model
        self._choices = [_Choice() for _ in range(n * len(echoes))]
        for index, choice in enumerate(self._choices):
            choice.length = len(echoes[index // n])

    async def whole(self) -> Response:
        """Return the answer when all has come."""
        async for index, text, logprobs, reason in self._parts():
            choice = self._choices[index]
            choice.text.append(text)
            choice.reason = reason or choice.reason
            for name, values in (logprobs or {}).items():
                choice.logprobs[name] += values
        answer = self._head | {"usage": usage(self._run)}
        size = sum(1 + 20 * len(choice.logprobs["tokens"]) for choice in self._choices)
        return await json_answer(answer, "choices", list(enumerate(self._best())), self._choice, size)

    def _choice(self, numbered: tuple[int, _Choice]) -> dict[str, Any]:
        index, choice = numbered
        return {
            "index": index,
            "text": "".join(choice.text),
            "logprobs": choice.logprobs if self._wants_logprobs else None,
            "finish_reason": choice.reason or "length",
        }

    def _best(self) -> list[_Choice]:
        if self._kept == self._n:
            return self._choices
        each = [self._choices[start : start + self._n] for start in range(0, len(self._choices), self._n)]
        ranked = (best(texts, self._kept, [text.log_prob / max(1, text.tokens) for text in texts]) for texts in each)
        return [choice for texts in ranked for choice in texts]

    async def chunks(self, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield the answer as it comes."""
        extra = {"usage": None} if include_usage else {}
        async for index, text, logprobs, reason in self._parts():
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
            yield self._head | {"choices": [choice]} | extra
        if include_usage:
            yield self._head | {"choices": [], "usage": usage(self._run)}

    async def _parts(self) -> AsyncIterator[tuple[int, str, dict[str, list[Any]] | None, str | None]]:
        """Yield (choice, text, its logprobs, finish reason): the echo first, then each piece."""
        begun: set[int] = set()
        async for number, event in self._run.events():
            every = range(number * self._n, (number + 1) * self._n)
            if number not in begun:
                begun.add(number)
                if self._echoes[number]:
                    scored = (
                        await aside(20 * len(event.tokens), self._scored, event) if isinstance(event, Scores) else None
                    )
                    for index in every:
                        yield index, self._echoes[number], scored, None
            if isinstance(event, Written):
                piece, index = event.piece, number * self._n + event.choice
                yield index, piece.text, self._logprobs(index, piece), piece.finish_reason
                choice = self._choices[index]
                choice.length += len(piece.text)
                choice.log_prob, choice.tokens = choice.log_prob + piece.log_prob, choice.tokens + 1

    def _logprobs(self, index: int, piece: Any) -> dict[str, list[Any]] | None:
        if not self._wants_logprobs:
            return None
        return {
            "tokens": [self._token(piece.id)],
            "token_logprobs": [max(piece.log_prob, LEAST_LOG_PROB)],
            "top_logprobs": [_table((*piece.top, Alternative(piece.id, self._token(piece.id), piece.log_prob)))],
            "text_offset": [self._choices[index].length],
        }

    def _scored(self, scores: Scores) -> dict[str, list[Any]]:
        """The logprobs of the prompt's own tokens."""
        table: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        decoder, offset = self._served.model.tokenizer.stream(), 0
        for token in scores.tokens:
            table["tokens"].append(self._token(token.id))
            table["token_logprobs"].append(None if token.log_prob is None else max(token.log_prob, LEAST_LOG_PROB))
            chosen = () if token.log_prob is None else (Alternative(token.id, table["tokens"][-1], token.log_prob),)
            table["top_logprobs"].append(_table((*token.top, *chosen)) if chosen else None)
            table["text_offset"].append(offset)
            offset += len(decoder.push(token.id))
        return table

    def _token(self, token: int) -> str:
        return self._served.token(token)


def _table(top: Sequence[Alternative]) -> dict[str, float]:
    """Alternatives by their texts, of two with one text the more probable; the token that was chosen is among them."""
    table: dict[str, float] = {}
    for alternative in top:
        table.setdefault(alternative.text, max(alternative.log_prob, LEAST_LOG_PROB))
    return table
