"""What a caller is told of a body that does not fit its schema: what must hold, and what was given."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from loquela.serving.failures import ApiError, invalid
from loquela.serving.schemas import ChatRequest, CompletionRequest

HELLO = [{"role": "user", "content": "Hello."}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}]


def told(model: type[BaseModel], body: dict[str, Any]) -> ApiError:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    return invalid(caught.value)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"temperature": -1}, "temperature", "temperature must be at least 0, but is -1"),
        ({"n": 9}, "n", "n must be at most 4, but is 9"),
        ({"n": 10**5000}, "n", "n must be at most 4, but is a number of more than 9 digits"),
        ({"top_k": "5"}, "top_k", "top_k must be a whole number, but is text of 1 characters"),
        ({"top_p": None, "stream": 1}, "stream", "stream must be true or false, but is 1"),
        ({"stop": ["a"] * 5}, "stop", "stop must be at most 4 long, but is a list of 5"),
        ({"messages": []}, "messages", "messages must be at least 1 long, but is a list of 0"),
        ({"messages": None}, "messages", "messages must be a list, but is null"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "messages.0.role must be given, but is not"),
        (
            {"messages": [{"role": "me", "content": "x"}]},
            "messages.0.role",
            "messages.0.role must be 'system', 'developer', 'user', 'assistant' or 'tool', but is text of 2 characters",
        ),
        (
            {"messages": IMAGE},
            "messages.0.content.0.type",
            "messages.0.content.0.type must be 'text', but is text of 9 characters",
        ),
        ({"regex": "a" * 5000}, "regex", "regex must be at most 4096 characters long, but is text of 5000 characters"),
        ({"stream_options": {"x": True}}, "stream_options.x", "there is no parameter 'stream_options.x' here"),
    ],
)  # fmt: skip
def test_in_a_chat(body: dict[str, Any], param: str, message: str) -> None:
    error = told(ChatRequest, {"messages": HELLO, **body})
    assert (error.status, error.param, str(error)) == (400, param, message)


def test_in_a_completion() -> None:
    assert str(told(CompletionRequest, {})) == "prompt must be given, but is not"
    assert str(told(CompletionRequest, {"prompt": 5})) == "prompt must be text, but is 5"
    assert str(told(CompletionRequest, {"prompt": [3, -1]})) == "prompt.1 must be at least 0, but is -1"
    assert str(told(CompletionRequest, [])) == "the body must be an object, but is a list of 0"  # type: ignore[arg-type]
