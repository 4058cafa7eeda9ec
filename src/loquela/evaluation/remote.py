"""A model behind a URL that speaks OpenAI's API: `POST /v1/completions`, with `echo` and `logprobs` for likelihoods."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from loquela.errors import DataError, LoquelaError, UsageError
from loquela.evaluation.ahead import in_order
from loquela.evaluation.client import Client
from loquela.evaluation.subject import Answer, Likelihood, Question, cannot, one_by_one

__all__ = ["AT_ONCE", "RemoteSubject"]

AT_ONCE = 8
"""Requests at a time, unless another number is named."""
_TEXTS = 16  # that are embedded by one request


class RemoteSubject:
    """Asks a server; `url` ends before `/completions`, for example `http://127.0.0.1:8000/v1`.

    The key is the environment's OPENAI_API_KEY. It is sent `at_once` requests at a time (`loquela.evaluation.client`
    says how often). The server's context window is not known, so nothing is dropped for it:
    what is too long the server refuses, and that item is left out.
    """

    kind = "remote"
    window: int | None = None

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        chat: bool = False,
        at_once: int = AT_ONCE,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if at_once < 1:
            raise UsageError(f"there must be 1 request at a time or more, but there are {at_once}")
        key = os.environ.get("OPENAI_API_KEY")
        self._client = Client(url, {"authorization": f"Bearer {key}"} if key else {}, transport)
        self.at_once = at_once
        self.model = model or self._only_model()
        self.chat = chat
        self.name = f"{url.rstrip('/')}#{self.model}"

    def count(self, text: str) -> int:
        """Return 0: how the server cuts a text is its own affair."""
        return 0

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Return 0 for each; see `count`."""
        return [0] * len(texts)

    def likelihoods(self, context: str, continuations: Sequence[str], *, prefix: str = "") -> list[Likelihood]:
        """Return how each continuation is expected, from the log-probabilities of an echoed prompt."""
        if not context.strip():
            raise UsageError("a server cannot say how likely a text is without a context: leave --corrected out")
        texts = [context + continuation for continuation in continuations]
        reply = self._client.send(
            "POST",
            "completions",
            {"model": self.model, "prompt": texts, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True},
        )
        choices = sorted(reply.get("choices", []), key=lambda choice: choice.get("index", 0))
        if len(choices) != len(texts):
            raise LoquelaError(f"{self.name} must answer each of {len(texts)} prompts, but gave {len(choices)} choices")
        start = len(context.rstrip())
        return [_likelihood(choice, start, len(text)) for choice, text in zip(choices, texts, strict=True)]

    def several(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the answers in the order of the questions."""
        return one_by_one(self, questions)

    def complete(self, prompt: str, *, max_new_tokens: int, stop: Sequence[str]) -> str:
        """Return the greedy completion of a prompt; with `chat`, what the assistant says to it."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": max_new_tokens, "temperature": 0}
        body |= {"stop": list(stop)[:4]} if stop else {}
        if self.chat:
            body["messages"] = [{"role": "user", "content": prompt}]
            choice = self._first(self._client.send("POST", "chat/completions", body))
            text = str(choice.get("message", {}).get("content") or "")
        else:
            reply = self._client.send("POST", "completions", body | {"prompt": prompt})
            text = str(self._first(reply).get("text") or "")
        for end in stop:  # the API takes four
            text = text.partition(end)[0]
        return text

    def tokens(self, text: str, *, add_special_tokens: bool = True) -> tuple[list[int], int | None]:
        """Return the server's token ids of a text, and its context window where it says so.

        Raises `UsageError` for a server without POST /tokenize, which `loquela serve` and vLLM have.
        """
        asked = {"model": self.model, "prompt": text, "add_special_tokens": add_special_tokens}
        try:
            reply = self._client.send("POST", "/tokenize", asked)
        except LoquelaError as error:
            raise UsageError(
                f"a text is scored by its tokens, which a server must tell at POST /tokenize: {error}"
            ) from error
        window = reply.get("max_model_len")
        return [int(token) for token in reply.get("tokens", [])], window if isinstance(window, int) else None

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of the server's token ids."""
        return str(self._client.send("POST", "/detokenize", {"model": self.model, "tokens": list(ids)}).get("prompt"))

    def log_probs(self, ids: Sequence[int]) -> list[float]:
        """Return the log-probability of each token but the first, given those before it."""
        asked = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "logprobs": 1}
        choice = self._first(self._client.send("POST", "completions", asked | {"echo": True}))
        values = (choice.get("logprobs") or {}).get("token_logprobs") or []
        found = values[1 : len(ids)]
        if len(found) != len(ids) - 1 or not all(isinstance(value, int | float) for value in found):
            raise LoquelaError(
                f"{self.name} must echo {len(ids)} tokens with their logprobs to score them, but does not: ask a "
                "server that does (echo and logprobs of /v1/completions)"
            )
        return [float(value) for value in found]

    def classify(self, text: str, pair: str | None) -> str:
        """Refused: the API has no such question."""
        raise cannot(self.name, "classifies texts")

    def tag(self, words: Sequence[str]) -> list[str]:
        """Refused: the API has no such question."""
        raise cannot(self.name, "labels words")

    def labels(self) -> tuple[str, ...]:
        """Return none."""
        return ()

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.floating[Any]]:
        """Return the server's embeddings (n, dim)."""
        parts = [list(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)]
        return np.array([row for rows in in_order(self._embed, parts, self.at_once) for row in rows], np.float64)

    def _embed(self, texts: list[str]) -> list[list[float]]:
        asked = {"model": self.model, "input": texts, "encoding_format": "float"}
        data = self._client.send("POST", "embeddings", asked).get("data", [])
        if len(data) != len(texts):
            raise LoquelaError(f"{self.name} must embed each of {len(texts)} texts, but gave {len(data)} vectors")
        return [entry["embedding"] for entry in sorted(data, key=lambda entry: entry.get("index", 0))]

    def _first(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        choices = reply.get("choices")
        if not choices:
            raise LoquelaError(f"{self.name} must give a choice, but gave none")
        first: dict[str, Any] = choices[0]
        return first

    def _only_model(self) -> str:
        reply = self._client.send("GET", "models")
        names = [str(entry.get("id")) for entry in reply.get("data", [])]
        if not names:
            raise UsageError(f"{self._client.url} must serve a model, but lists none: name one with --model")
        return names[0]


def _likelihood(choice: Mapping[str, Any], start: int, end: int) -> Likelihood:
    """Sum up the tokens that begin from character `start` on and before `end`, where the prompt ends."""
    logprobs = choice.get("logprobs") or {}
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    offsets, tops = logprobs.get("text_offset"), logprobs.get("top_logprobs")
    if not tokens or not values or not offsets:
        raise LoquelaError(
            "a server must echo the prompt with logprobs (tokens, token_logprobs, text_offset) to score it, but this "
            "one does not: use --by generation"
        )
    chosen = [i for i, offset in enumerate(offsets) if start <= offset < end and values[i] is not None]
    if not chosen:
        raise DataError("a continuation must have a token of its own, but one melts into its context's last token")
    greedy = all(tops and tops[i] and max(tops[i].values()) <= values[i] + 1e-9 for i in chosen)
    return Likelihood(float(sum(values[i] for i in chosen)), len(chosen), greedy)
