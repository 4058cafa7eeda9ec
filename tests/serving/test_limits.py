"""What cannot be asked is refused at once, with a 4xx that names the parameter; nothing is 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

Running = Any  # conftest.Running
HUGE = 2**63
COMPLETION = {"prompt": "The cat", "max_tokens": 1}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}

COMMON: list[dict[str, Any]] = [
    *({"n": n} for n in (0, -1, 5, HUGE, 1.5, "2", True, [1])),
    *({"max_tokens": n} for n in (-1, HUGE, -HUGE, 1.5, "7", True, {})),
    *({"temperature": x} for x in (-0.1, 1e300, "1", [], "NaN")),
    *({"top_p": x} for x in (-0.1, 1.1, HUGE, "x")),
    *({"top_k": x} for x in (-1, 2.5, HUGE)),
    *({"min_p": x} for x in (-1, 2)),
    *({"repetition_penalty": x} for x in (0, -1)),
    *({"presence_penalty": x} for x in (-2.1, 2.1)),
    *({"frequency_penalty": x} for x in (-2.1, 2.1)),
    *({"stop": x} for x in ("", [""], ["a"] * 5, ["a" * 257], [1], {"a": 1})),
    *({"logit_bias": x} for x in ({"1": 101}, {"1": -101}, {"a": 1}, {"-1": 1}, {"99999": 1}, {"1": "x"}, [1])),
    {"logit_bias": {str(i): 1 for i in range(1025)}},
    *({"seed": x} for x in (HUGE, -HUGE - 1, 1.5, "x")),
    *({"stream": x} for x in (1, "true")),
    *({"model": x} for x in ("", 7, "x" * 201, "none", "../tiny")),
    *({"response_format": x} for x in ("json", {"type": "xml"}, {"type": "json_schema"}, {})),
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://evil.example/x"}}}},
    *({"regex": x} for x in ("(", 7, "a" * 4097)),
    {"regex": "a", "response_format": {"type": "json_object"}},
    {"unknown": 1},
    {"num_beams": 2},
    {"prompt_lookup_num_tokens": 3},
    {"sampler_order": ["top_k"]},
]
ONLY_COMPLETION: list[dict[str, Any]] = [
    *({"prompt": x} for x in ([], [[]], [""] * 65, [-1], [HUGE], [99999], [["a"]], [1, "a"], None, 7, {}, [1] * 600)),
    *({"logprobs": x} for x in (-1, 21, True, HUGE)),
    *({"best_of": x} for x in (0, 17, HUGE)),
    {"best_of": 2, "n": 3},
    {"best_of": 2, "stream": True},
    *({"suffix": x} for x in (7, [])),
    {"prompt": [1, 2], "suffix": "x"},
    {"echo": "yes"},
]
ONLY_CHAT: list[dict[str, Any]] = [
    *({"messages": x} for x in ([], [{}], "hi", [{"role": "robot", "content": "x"}], [{"role": "user"}], None)),
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://evil.example"}}]}]},
    {"messages": [{"role": "user", "content": "x" * 100_000}]},
    *({"top_logprobs": x, "logprobs": True} for x in (-1, 21, HUGE)),
    {"top_logprobs": 3},
    {"max_tokens": 1, "max_completion_tokens": 1},
    {"tools": [{"type": "function"}]},
]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    *(("/v1/embeddings", {"input": x}) for x in ([], 7, [1, 10**9], [[]], ["a", 1], ["a"] * 2049, None)),
    *(("/v1/embeddings", {"input": x}) for x in ("a " * 2000, [1] * 2000)),
    ("/v1/embeddings", {"input": "a", "dimensions": 7}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}),
    ("/tokenize", {}),
    ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
    ("/tokenize", {"prompt": "a", "add_generation_prompt": True}),
    *(("/detokenize", {"tokens": x}) for x in ([-1], [99999], [HUGE], "a", None)),
]


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def refused(answer: httpx.Response, what: object) -> None:
    assert answer.status_code in (400, 404), (what, answer.text[:300])
    error = answer.json()["error"]
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]


def test_limits(http: httpx.Client) -> None:
    assert len(COMMON) * 2 + len(ONLY_COMPLETION) + len(ONLY_CHAT) + len(OTHERS) >= 100
    for path, base, own in (
        ("/v1/completions", COMPLETION, ONLY_COMPLETION),
        ("/v1/chat/completions", CHAT, ONLY_CHAT),
    ):
        for wrong in (*COMMON, *own):
            refused(http.post(path, json=base | wrong), (path, wrong))
    for path, body in OTHERS:
        refused(http.post(path, json=body), (path, body))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"])
def test_bodies_that_are_no_json(http: httpx.Client, path: str) -> None:
    deep = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for body in (b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe", b'{"prompt": "\\ud800"}', deep):
        refused(http.post(path, content=body, headers={"Content-Type": "application/json"}), body[:40])
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
        body = b'{"prompt": "a", "temperature": ' + number + b"}"
        refused(http.post(path, content=body, headers={"Content-Type": "application/json"}), body)


def test_what_is_null_is_left_out(http: httpx.Client) -> None:
    names = ("n", "temperature", "top_p", "top_k", "stop", "seed", "logprobs", "stream", "logit_bias", "suffix", "user")
    answer = http.post("/v1/completions", json=COMPLETION | dict.fromkeys(names))
    assert answer.status_code == 200, answer.text


def test_tokens_end_with_the_window(http: httpx.Client) -> None:
    body = {"prompt": [5] * 500, "max_tokens": 2**31 - 1, "temperature": 0, "logit_bias": {"0": -100}}
    answer = http.post("/v1/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["choices"][0]["finish_reason"] == "length"
    chat = http.post("/v1/chat/completions", json={"messages": CHAT["messages"], "logit_bias": {"0": -100}}).json()
    assert chat["usage"]["total_tokens"] == 512


def test_wrong_methods(http: httpx.Client) -> None:
    for method, path in (("GET", "/v1/completions"), ("POST", "/health"), ("DELETE", "/v1/models")):
        answer = http.request(method, path, headers={"Content-Type": "application/json"}, content=b"{}")
        assert answer.status_code == 405
        assert answer.json()["error"]["message"]
        assert answer.headers["allow"]
