"""A model behind a URL that speaks OpenAI's API: `POST /v1/completions`, with `echo` and `logprobs` for likelihoods."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from loquela.errors import ContextWindowError, DataError, LoquelaError, UsageError
from loquela.evaluation.subject import Answer, Likelihood, Question, cannot, one_by_one

__all__ = ["RemoteSubject"]

_TRIES = 4
_SECONDS = 600.0


class RemoteSubject:
    """Asks a server; `url` ends before `/completions`, for example `http://127.0.0.1:8000/v1`.

    The key is the environment's OPENAI_API_KEY. The server's context window is not known, so nothing is dropped for it:
    what is too long the server refuses, and that item is left out.
    """

    kind = "remote"
    window: int | None = None

    def __init__(
        self, url: str, model: str | None = None, *, chat: bool = False, transport: httpx.BaseTransport | None = None
    ) -> None:
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"a URL must begin with http:// or https://, but is {url!r}")
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/", headers=headers, timeout=_SECONDS, transport=transport
        )
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
        reply = self._post(
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
            choice = self._first(self._post("chat/completions", body))
            return str(choice.get("message", {}).get("content") or "")
        return str(self._first(self._post("completions", body | {"prompt": prompt})).get("text") or "")

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
        rows: list[list[float]] = []
        for start in range(0, len(texts), 16):
            batch = list(texts[start : start + 16])
            reply = self._post("embeddings", {"model": self.model, "input": batch, "encoding_format": "float"})
            data = sorted(reply.get("data", []), key=lambda entry: entry.get("index", 0))
            rows += [entry["embedding"] for entry in data]
        return np.array(rows, np.float64)

    def _first(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        choices = reply.get("choices")
        if not choices:
            raise LoquelaError(f"{self.name} must give a choice, but gave none")
        first: dict[str, Any] = choices[0]
        return first

    def _only_model(self) -> str:
        reply = self._send("GET", "models", None)
        names = [str(entry.get("id")) for entry in reply.get("data", [])]
        if not names:
            raise UsageError(f"{self._client.base_url} must serve a model, but lists none: name one with --model")
        return names[0]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Send a request; one that is refused for now (429, 503) is sent again, after as long as the server says."""
        for attempt in range(1, _TRIES + 1):
            try:
                reply = self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                raise LoquelaError(
                    f"{self._client.base_url} must answer, but: {error or type(error).__name__}"
                ) from error
            if reply.status_code not in (429, 503) or attempt == _TRIES:
                break
            said = reply.headers.get("retry-after", "")
            time.sleep(min(30.0, float(said) if said.replace(".", "", 1).isdigit() else 2.0**attempt))
        return _answer(f"{self._client.base_url}{path}", reply)


def _answer(where: str, reply: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of a reply; raises what its error means."""
    try:
        value = reply.json()
    except ValueError:
        value = None
    if reply.status_code != 200:
        said = value.get("error") if isinstance(value, dict) else None
        details = said if isinstance(said, dict) else {"message": said or reply.text}
        message = " ".join(str(details.get("message")).split())[:300]
        if reply.status_code == 400 and "context" in f"{details.get('code')} {message}".lower():
            raise ContextWindowError(f"{where} refuses a prompt as too long: {message}")
        raise LoquelaError(f"{where} must answer 200, but answers {reply.status_code}: {message}")
    if not isinstance(value, dict):
        raise LoquelaError(f"{where} must answer a JSON object, but does not")
    return value


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
