"""What is large keeps nobody waiting: it is freed where it was read, and what cannot fit is refused unread."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from loquela.checkpoint import house
from loquela.serving.large import LARGE, aside

Running = Any  # conftest.Running


class Big:
    """Stands for half a million objects."""


def test_an_error_keeps_nothing_alive_of_what_was_read() -> None:
    seen: list[weakref.ref[Big]] = []

    def job() -> None:
        big = Big()
        seen.append(weakref.ref(big))
        try:
            raise KeyError(big)
        except KeyError:
            raise ValueError("wrong") from None

    async def asked() -> bool:
        with pytest.raises(ValueError, match="wrong") as caught:
            await aside(LARGE, job)
        return seen[0]() is None and caught.value.__traceback__ is not None

    gc.disable()  # it is freed at once, not when somebody looks for garbage
    try:
        assert asyncio.run(asked())
    finally:
        gc.enable()


def test_garbage_is_looked_for_again_afterwards() -> None:
    assert not asyncio.run(aside(LARGE, gc.isenabled))
    assert gc.isenabled()


def completion(server: Running, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=body | {"max_tokens": 1}, timeout=60)


@pytest.mark.parametrize("more", [{"prompt": "a" * 600_000}, {"prompt": "b", "suffix": "a" * 600_000}])
def test_a_text_that_cannot_fit_is_not_read(
    server: Running, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    read: list[int] = []
    encode = type(server.served.model.tokenizer).encode

    def watched(self: Any, text: str, **given: Any) -> list[int]:
        read.append(len(text))
        return encode(self, text, **given)

    monkeypatch.setattr(type(server.served.model.tokenizer), "encode", watched)
    answer = completion(server, **more)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "32,768 characters" in answer.json()["error"]["message"]
    assert not read


def test_tokens_that_cannot_fit_are_not_written_out(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(type(server.served.model.tokenizer), "decode", lambda self, ids, **_: written.append(len(ids)))
    answer = completion(server, prompt=[1] * 100_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert not written


def test_a_text_within_the_bound_is_read_and_its_tokens_are_counted(server: Running) -> None:
    answer = completion(server, prompt="cat " * 5000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "tokens, but has " in answer.json()["error"]["message"]
    assert "characters" not in answer.json()["error"]["message"]


EARLY: list[tuple[Any, str, str]] = [
    (["cat", "a" * 600_000], "context_length_exceeded", "32,768 characters"),
    (["cat", "cat " * 2000, ""], "context_length_exceeded", "text 2 of 3 has "),
    (["cat", [1] * 600, "dog"][1:2], "context_length_exceeded", "600"),
    (["cat", "dog", ""], "invalid_value", "text 3 of 3 has none"),
]


@pytest.mark.parametrize(("texts", "code", "said"), EARLY)
def test_texts_of_which_one_has_no_vector_are_refused_before_any_is_computed(
    server: Running, monkeypatch: pytest.MonkeyPatch, texts: Any, code: str, said: str
) -> None:
    monkeypatch.setattr(server.served, "look", lambda *_, **__: pytest.fail("a vector was computed"))
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": texts}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert said in answer.json()["error"]["message"]


def test_no_way_out_is_named_that_a_caller_has_not(server: Running) -> None:
    told = completion(server, prompt=[5] * 512).json()["error"]["message"]
    assert told == "the prompt must leave room in the context window of 512 tokens, but has 512: shorten it"


def test_vectors_of_an_encoder_decoder_are_not_offered(start: Callable[..., Running]) -> None:
    server = start(house.HOUSE / "translator")
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"input": "I love you."}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unavailable")
    assert "vectors need an encoder or a decoder" in answer.json()["error"]["message"]
