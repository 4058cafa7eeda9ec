"""The bodies of requests, as OpenAI's API has them; what they do not allow is refused before anything is computed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from loquela.serving.fields import MOST_TOKENS, Sampling, Strict

__all__ = [
    "AdapterName",
    "AdapterPath",
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "Message",
    "ResponseFormat",
    "TokenizeRequest",
    "Writing",
    "listed",
]

MOST_PROMPTS = 64
Token = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Tokens = Annotated[list[Token], Field(min_length=1, fail_fast=True)]
"""The first wrong one ends the reading: half a million complaints would take seconds to write."""
TextsOrTokens = str | list[str] | list[int] | list[list[int]]
"""One text, several, the tokens of one, or those of several."""
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class StreamOptions(Strict):
    """`include_usage` adds a last chunk with the usage."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="Has no effect.")


class JsonSchema(Strict):
    """A JSON schema by OpenAI's name for it."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = Field(None, description="Has no effect: a schema is always followed.")


class ResponseFormat(Strict):
    """What the text must be: any `text`, a `json_object`, or JSON that fits a `json_schema`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Writing(Sampling):  # type: ignore[valid-type, misc]
    """What completions and chat completions have in common."""

    model: Name | None = Field(None, description="The base model's name, or an adapter's; left out: the base model.")
    n: Annotated[int, Field(ge=1, le=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = Field(
        None, description="The same seed gives the same text; left out: another one each time."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    regex: Annotated[str, Field(max_length=4096)] | None = Field(
        None, description="A regular expression that the whole text must match."
    )
    user: str | None = Field(None, description="Has no effect.")
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = Field(None, description="Has no effect.")
    store: bool | None = Field(None, description="Has no effect: nothing is stored.")


class CompletionRequest(Writing):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    ) = Field(description="A text, several, or token ids.")
    max_tokens: Count | None = Field(None, description="At most so many new tokens [default: 16].")
    suffix: str | None = Field(None, description="What follows the gap to be filled; needs a tokenizer with its marks.")
    echo: bool | None = Field(None, description="Give the prompt back before the completion.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="Log-probabilities of the tokens, and of so many alternatives to each."
    )
    best_of: Annotated[int, Field(ge=1, le=16)] | None = Field(
        None, description="Write so many and give the n with the highest log-probability per token; not streamed."
    )


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None
    name: str | None = None

    def as_dict(self) -> dict[str, str]:
        """What a chat template sees."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content or ())
        turn = {"role": self.role, "content": text}
        return turn if self.name is None else turn | {"name": self.name}


Messages = Annotated[list[Message], Field(min_length=1, max_length=1024)]


class ChatRequest(Writing):
    """POST /v1/chat/completions."""

    messages: Messages
    max_tokens: Count | None = Field(None, description="At most so many new tokens [default: what the window holds].")
    max_completion_tokens: Count | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class EmbeddingRequest(Strict):
    """POST /v1/embeddings."""

    model: Name | None = None
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=2048, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=2048, fail_fast=True)]
    ) = Field(description="A text, several, or token ids, which are read as they are.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = Field(
        None, description="Must be what the model has: vectors are not cut."
    )
    user: str | None = Field(None, description="Has no effect.")


class TokenizeRequest(Strict):
    """POST /tokenize: a text, or a conversation through the model's chat template."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(None, description="What the tokenizer puts around a text [default: true].")
    add_generation_prompt: bool | None = Field(None, description="The beginning of an answer [default: true].")


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    model: Name | None = None
    tokens: Annotated[list[Token], Field(fail_fast=True)]


class AdapterPath(Strict):
    """POST /v1/load_lora_adapter."""

    lora_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]


class AdapterName(Strict):
    """POST /v1/unload_lora_adapter."""

    lora_name: Name


def listed(given: TextsOrTokens) -> list[str | list[int]]:
    """Return prompts or inputs one by one."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]
    return list(given)
