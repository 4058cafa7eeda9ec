"""The bodies of answers, as OpenAI's API has them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

__all__ = [
    "ChatAnswer",
    "CompletionAnswer",
    "Detokenized",
    "EmbeddingAnswer",
    "ErrorAnswer",
    "Health",
    "ModelCard",
    "ModelList",
    "Said",
    "Tokenized",
    "UsageAnswer",
]

Reason = Literal["stop", "length"]


class UsageAnswer(BaseModel):
    """Tokens that went in and came out."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """One entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Reason | None = None


class CompletionAnswer(BaseModel):
    """What /v1/completions gives, whole or as one event of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageAnswer | None = None


class TopLogprob(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class ChatLogprob(TopLogprob):
    """The token that was chosen, and those that could have been."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """One entry per token of the answer."""

    content: list[ChatLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Reason


class ChatAnswer(BaseModel):
    """What /v1/chat/completions gives; a stream's events have `delta` in place of `message`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAnswer


class EmbeddingEntry(BaseModel):
    """One vector, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(BaseModel):
    """What /v1/embeddings gives."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingEntry]
    usage: UsageAnswer


class ModelCard(BaseModel):
    """A model or an adapter that can be asked for by its `id`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "loquela"
    parent: str | None = None
    """The base model, for an adapter."""
    max_model_len: int
    kind: Literal["decoder", "encoder", "encoder-decoder"]
    chat: bool
    """Whether it has a chat template."""
    infill: bool
    """Whether /v1/completions takes a `suffix`."""
    defaults: dict[str, Any]
    """Settings that its generation_config.json names."""


class ModelList(BaseModel):
    """What /v1/models gives."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """What /health gives."""

    status: Literal["ok"] = "ok"


class Tokenized(BaseModel):
    """What /tokenize gives."""

    tokens: list[int]
    token_strs: list[str]
    count: int
    max_model_len: int


class Detokenized(BaseModel):
    """What /detokenize gives."""

    prompt: str


class Said(BaseModel):
    """What an administrator is told."""

    message: str


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's error object."""

    error: ErrorBody
