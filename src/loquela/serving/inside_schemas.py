"""The bodies of what the page asks beyond OpenAI's API, and of the answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from loquela.serving.fields import Strict
from loquela.serving.schemas import Count, Messages, Name, Tokens, Writing

__all__ = [
    "About",
    "ClassifyRequest",
    "Control",
    "Labelled",
    "Labels",
    "Logits",
    "LogitsRequest",
    "PictureCard",
    "PictureRequest",
    "PieceRequest",
    "StageCard",
    "Stages",
    "StagesRequest",
]


class Prompted(Strict):
    """A text, token ids, or a conversation, and who reads it."""

    model: Name | None = None
    prompt: str | Tokens | None = None
    messages: Messages | None = None


class PieceRequest(Writing):
    """POST /inside/complete: one text, streamed; its prompt is a text, token ids, or a conversation."""

    prompt: str | Tokens | None = None
    messages: Messages | None = None
    max_tokens: Count | None = Field(None, description="At most so many new tokens [default: 200].")
    suffix: str | None = Field(None, description="What follows the gap to be filled.")
    echo: bool | None = Field(None, description="Score the prompt's own tokens too.")
    top: Annotated[int, Field(ge=0, le=20)] = 8
    n: Literal[1] | None = None
    stream: Literal[True] | None = None


class LogitsRequest(Prompted):
    """POST /inside/logits."""


class StagesRequest(Prompted):
    """POST /inside/stages: what each rule does to the distribution of the next token, by the sampler itself."""

    settings: dict[str, Any] = Field(default_factory=dict)


class PictureRequest(Prompted):
    """POST /inside/picture."""

    picture: Name
    options: dict[str, str] = Field(default_factory=dict)


class ClassifyRequest(Strict):
    """POST /inside/classify."""

    model: Name | None = None
    input: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=64)]


class Control(BaseModel):
    """A setting of generation, as a control shows it."""

    name: str
    kind: str
    default: Any
    minimum: float | None
    maximum: float | None
    help: str


class PictureCard(BaseModel):
    """A picture that can be asked for, and its options."""

    name: str
    title: str
    options: list[Control]


class About(BaseModel):
    """What the page must know to draw itself."""

    name: str
    model_type: str
    kind: str
    task: str | None
    parameters: int
    vocab_size: int
    context_length: int
    chat: bool
    infill: bool
    adapters: dict[str, str]
    defaults: dict[str, Any]
    controls: list[Control]
    pictures: list[PictureCard]
    templates: dict[str, Any]


class Logits(BaseModel):
    """The next token's logits, little-endian float32 in base64, and the texts of the likeliest."""

    tokens: list[int]
    logits: str
    vocab_size: int
    texts: dict[int, str]


class StageCard(BaseModel):
    """What one rule left."""

    name: str
    value: Any
    removed: float
    kept: int


class Stages(BaseModel):
    """The sampler's own account."""

    stages: list[StageCard]


class Labelled(BaseModel):
    """A word, where it stands in its text, the label that fits it best, and how well."""

    word: str
    start: int
    end: int
    label: str
    probability: float


class Labels(BaseModel):
    """For each text the probability of each label; or, of a model that labels words, its words with their labels."""

    labels: list[str]
    probabilities: list[list[float]] | None = None
    words: list[list[Labelled]] | None = None
