"""A model behind OpenAI's API: the same scores as in this process, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from loquela.errors import ContextWindowError, DataError, LoquelaError, UsageError
from loquela.evaluation import remote
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.remote import RemoteSubject
from loquela.evaluation.run import evaluate

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


def test_a_busy_server_is_asked_again(llama: LocalSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    calls = []

    def busy(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(503, headers={"retry-after": "3"}) if len(calls) < 3 else server(llama)(request)

    assert connect(busy, model="tiny").likelihoods("the", [" cat"])[0].tokens > 0
    assert waits == [3.0, 3.0]

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
