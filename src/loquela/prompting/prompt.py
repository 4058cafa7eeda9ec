"""One prompt from a description, shots and a question, as large as the context window takes it.

A prompt that does not fit loses whole shots, those farthest from the question first, never a part of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loquela.errors import ContextWindowError
from loquela.prompting.shots import Example

__all__ = ["Form", "Prompt", "build"]


@dataclass(frozen=True)
class Form:
    """How the parts of a prompt are joined."""

    description: str = ""
    """Stands before everything, with `separator` after it."""
    separator: str = "\n\n"
    """Between examples."""
    delimiter: str = " "
    """Between a question and its answer."""


@dataclass(frozen=True)
class Prompt:
    """What the model reads: `prefix` (description and shots), then the question."""

    text: str
    prefix: str
    tokens: int
    """Tokens of `text`, as the model's tokenizer counts them."""
    shots: int
    dropped: int
    """Shots that were asked for and did not fit."""


def build(
    question: str,
    shots: Sequence[Example] = (),
    *,
    form: Form = Form(),
    count: Callable[[str], int] | None = None,
    window: int | None = None,
    answer_tokens: int = 0,
) -> Prompt:
    """Return the prompt of a question with as many of the `shots` as fit, in their order, the last next to it.

    `count` gives the tokens of a text, `window` the context window, `answer_tokens` the room for what follows.
    Raises `ContextWindowError` when the question alone does not fit; without `count` or `window` everything fits.
    """
    for dropped in range(len(shots) + 1):
        prefix = _prefix(shots[dropped:], form)
        text = prefix + question
        tokens = 0 if count is None else count(text)
        if window is None or count is None or tokens + answer_tokens <= window:
            return Prompt(text, prefix, tokens, len(shots) - dropped, dropped)
    raise ContextWindowError(
        f"a question and its answer must fit the context window of {window} tokens, but have {tokens + answer_tokens}: "
        "use a model with a larger window, or leave the question out"
    )


def _prefix(shots: Sequence[Example], form: Form) -> str:
    parts = [form.description] if form.description else []
    parts += [f"{shot.question}{form.delimiter}{shot.answer}" for shot in shots]
    return "".join(part + form.separator for part in parts)
