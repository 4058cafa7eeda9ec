"""A model behind OpenAI's API: the same scores as in this process, and its refusals."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from loquela.errors import ContextWindowError, DataError, LoquelaError, UsageError
from loquela.evaluation import client
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.plan import Settings
from loquela.evaluation.remote import RemoteSubject
from loquela.evaluation.run import evaluate, prepare_task, run

Handler = Callable[[httpx.Request], httpx.Response]


def server(subject: LocalSubject) -> Handler:
    """Answer as the API's specification says, from a model in this process."""

    def echo(prompt: str) -> dict[str, Any]:
        ids = subject.tokenizer.encode(prompt)
        offsets = [start for start, _ in subject.tokenizer.offsets(prompt)]
        values = [None, *(subject.of_ids(ids[:i], [ids[i]]) for i in range(1, len(ids)))]
        tops = [None if v is None else {"x": v.log_prob if v.greedy else v.log_prob + 1} for v in values]
        return {
            "tokens": [str(i) for i in ids] + ["new"],
            "token_logprobs": [None if v is None else v.log_prob for v in values] + [-1.0],
            "text_offset": [*offsets, len(prompt)],
            "top_logprobs": [*tops, {"x": -1.0}],
        }

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny"}]})
        body = json.loads(request.content)
        assert body["model"] == "tiny"
        if path == "/v1/embeddings":
            rows = [{"index": i, "embedding": v.tolist()} for i, v in enumerate(subject.embed(body["input"]))]
            return httpx.Response(200, json={"data": rows[::-1]})
        assert body["temperature"] == 0
        if path == "/v1/chat/completions":
            return httpx.Response(
                200, json={"choices": [{"message": {"content": body["messages"][0]["content"] + "!"}}]}
            )
        if body.get("echo"):
            choices = [{"index": i, "text": p, "logprobs": echo(p)} for i, p in enumerate(body["prompt"])]
            return httpx.Response(200, json={"choices": choices[::-1]})
        text = subject.complete(body["prompt"], max_new_tokens=body["max_tokens"], stop=body.get("stop", []))
        return httpx.Response(200, json={"choices": [{"index": 0, "text": text}]})

    return answer


def connect(handler: Handler, **options: Any) -> RemoteSubject:
    return RemoteSubject("http://server/v1", transport=httpx.MockTransport(handler), **options)


def test_the_same_records_as_in_this_process(
    llama: LocalSubject, rows_file: Callable[..., Path], questions: list[Any]
) -> None:
    path = rows_file(questions)
    subject = connect(server(llama))
    assert subject.name == "http://server/v1#tiny"
    ours = evaluate(llama, path, limit=12).results["set"]
    theirs = evaluate(subject, path, limit=12).results["set"]
    for mine, other in zip(ours.records, theirs.records, strict=True):
        assert other["log_probs"] == pytest.approx(mine["log_probs"], abs=1e-4)
        assert (other["tokens"], other["bytes"], other["gold"]) == (mine["tokens"], mine["bytes"], mine["gold"])
    assert ours.scores == theirs.scores
    by = {"by": "generation", "limit": 4}
    assert (
        evaluate(llama, path, **by).results["set"].records[0]["output"]
        == (evaluate(subject, path, **by).results["set"].records[0]["output"])
    )
    assert connect(server(llama), chat=True).complete("hi", max_new_tokens=3, stop=["\n"]) == "hi!"
    assert abs(subject.embed(["a", "the cat"]) - llama.embed(["a", "the cat"])).max() < 1e-6
    with pytest.raises(UsageError, match="leave --corrected out"):
        evaluate(subject, path, limit=2, corrected=True)
    with pytest.raises(UsageError, match="classifies texts"):
        subject.classify("x", None)


def refusing(status: int, body: Any, **headers: str) -> Handler:
    return lambda request: httpx.Response(status, json=body, headers=headers)


@pytest.mark.parametrize(
    ("handler", "error", "message"),
    [
        (
            refusing(401, {"error": {"message": "no key", "code": "x"}}),
            LoquelaError,
            "answers 401: no key",
        ),
        (refusing(500, ["x"]), LoquelaError, "answers 500"),
        (refusing(200, ["x"]), LoquelaError, "must answer a JSON object"),
        (refusing(200, {"choices": []}), LoquelaError, "gave 0 choices"),
        (refusing(200, {"choices": [{"text": "a"}]}), LoquelaError, "use --by generation"),
        (
            refusing(400, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
            ContextWindowError,
            "too long",
        ),
        (
            refusing(200, {"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-1], "text_offset": [0]}}]}),
            DataError,
            "a token of its own",
        ),
    ],
)
def test_refusals_are_one_line(handler: Handler, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        connect(handler, model="tiny").likelihoods("context", [" a"])
    assert "\n" not in str(raised.value)


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.waits = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(round(seconds, 3))
        self.now += seconds


@pytest.mark.parametrize(
    ("status", "said", "waits"), [(503, "3", [3.0, 3.0]), (429, "0.5", [0.5, 0.5]), (429, None, [1.0, 2.0])]
)
def test_a_busy_server_is_asked_again(
    llama: LocalSubject, monkeypatch: pytest.MonkeyPatch, status: int, said: str | None, waits: list[float]
) -> None:
    clock = Clock()
    monkeypatch.setattr(client, "time", clock)
    calls = []

    def busy(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        headers = {} if said is None else {"retry-after": said}
        return httpx.Response(status, headers=headers) if len(calls) < 3 else server(llama)(request)

    assert connect(busy, model="tiny").likelihoods("the", [" cat"])[0].tokens > 0
    assert clock.waits == waits


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(client, "time", clock)
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90))
    with pytest.raises(LoquelaError, match="answers 503"):
        connect(refusing(503, {}, **{"retry-after": date}), model="x").complete("x", max_new_tokens=1, stop=[])
    assert len(clock.waits) == 6
    assert all(80 < wait <= 90 for wait in clock.waits)
    with pytest.raises(LoquelaError, match="asks for 3600 seconds of patience"):
        connect(refusing(429, {}, **{"retry-after": "3600"}), model="x").complete("x", max_new_tokens=1, stop=[])


def test_a_dropped_connection_is_tried_again(llama: LocalSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "time", Clock())
    calls = []

    def drops(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        if len(calls) < 3:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        return server(llama)(request)

    assert connect(drops, model="tiny").likelihoods("the", [" cat"])[0].tokens > 0
    assert len(calls) == 3


def test_many_requests_at_a_time_change_no_record(
    llama: LocalSubject, rows_file: Callable[..., Path], questions: list[Any]
) -> None:
    """Answers that come in any order; some of them refused for a while."""
    path, running, most, lock, refused = rows_file(questions), 0, 0, threading.Lock(), set[bytes]()
    answer = server(llama)

    def slow(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        with lock:
            running, again = running + 1, request.content in refused
            most = max(most, running)
            refused.add(request.content)
        time.sleep(0.001 * (len(request.content) % 5))
        with lock:
            running -= 1
            if not again and len(request.content) % 7 == 0:
                return httpx.Response(429, headers={"retry-after": "0"})
            return answer(request)

    one = evaluate(connect(answer, at_once=1), path).results["set"]
    many = evaluate(connect(slow, at_once=6), path).results["set"]
    assert many.records == one.records
    assert 2 <= most <= 6
    by = {"by": "generation", "limit": 8}
    assert (
        evaluate(connect(slow, at_once=6), path, **by).results["set"].records
        == evaluate(connect(answer, at_once=1), path, **by).results["set"].records
    )
    with pytest.raises(UsageError, match="1 request at a time or more"):
        connect(answer, at_once=0)


def test_documents_that_a_server_refuses_are_sent_once(shared_data: Path) -> None:
    prepared = prepare_task("search_en", data_dir=shared_data)
    calls = []

    def narrow(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(400, json={"error": {"message": "9 tokens", "code": "context_length_exceeded"}})

    subject = connect(narrow, model="tiny", at_once=1)
    with pytest.raises(ContextWindowError, match=r"no item of task search_en fits .*9 tokens"):
        run(subject, [prepared], Settings(limit=20))
    assert len(calls) == 1


def test_what_a_server_says_too_much_is_cut(llama: LocalSubject) -> None:
    """The API takes four stop strings."""

    def says(request: httpx.Request) -> httpx.Response:
        assert len(json.loads(request.content)["stop"]) == 4
        return httpx.Response(200, json={"choices": [{"text": "one e two"}]})

    found = connect(says, model="x").complete("x", max_new_tokens=9, stop=["a", "b", "c", "d", " e"])
    assert found == "one"


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def down(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(LoquelaError, match="must answer, but: refused"):
        connect(down, model="tiny").complete("x", max_new_tokens=1, stop=[])
    with pytest.raises(UsageError, match="must begin with http"):
        RemoteSubject("server", "tiny")
    with pytest.raises(UsageError, match="lists none"):
        connect(refusing(200, {"data": []}))


def test_the_key_goes_to_the_server_only(monkeypatch: pytest.MonkeyPatch, llama: LocalSubject) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    seen = []

    def watch(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return server(llama)(request)

    subject = connect(watch)
    assert seen == ["Bearer canary"]
    assert "canary" not in subject.name
