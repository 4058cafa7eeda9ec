"""What is large keeps nobody waiting: it is freed where it was read, and what cannot fit is refused unread."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import httpx
import pytest

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
