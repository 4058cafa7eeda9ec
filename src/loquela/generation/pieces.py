"""From tokens to pieces of text: whole characters, and nothing that may become a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loquela.errors import TokenizerError
from loquela.generation.outlook import Outlook, outlook_of
from loquela.generation.rules import Logits
from loquela.generation.writer import FinishReason, Step
from loquela.text.tokenizer import Tokenizer

__all__ = ["Alternative", "Piece", "PieceMaker", "StopWatch", "alternatives", "token_text"]


@dataclass(frozen=True)
class Alternative:
    """A token that could have come instead, with the model's own log-probability (nats)."""

    id: int
    text: str
    log_prob: float


@dataclass(frozen=True)
class Piece:
    """One token as it comes. The texts of all pieces, joined, are the completion's text.

    `text` is what became certain with this token: empty while half a character, or what may become a stop string,
    is held back. `top` holds the most probable tokens, chosen or not, most probable first.
    """

    text: str
    id: int
    log_prob: float
    top: tuple[Alternative, ...]
    finish_reason: FinishReason | None


class PieceMaker:
    """Turns the steps of one completion into pieces of text; `ended` after the piece that ends it."""

    def __init__(
        self, tokenizer: Tokenizer, prefix: Sequence[int], stop: tuple[str, ...], end_ids: frozenset[int], top: int
    ) -> None:
        self._tokenizer, self._end_ids, self._top = tokenizer, end_ids, top
        self._decoder, self._watch = tokenizer.stream(), StopWatch(stop)
        for token in prefix[-8:]:  # decoders treat the first token of a text apart, and ours is not the first
            self._decoder.push(token)
        self._decoder.finish()
        self.ended = False

    def push(self, step: Step) -> Piece:
        """Return the piece that comes of `step`."""
        text = "" if step.id in self._end_ids else self._decoder.push(step.id)
        if step.finish_reason is not None:
            text += self._decoder.finish()
        shown = self._watch.push(text)
        reason = "stop" if self._watch.stopped else step.finish_reason
        if reason is not None and not self._watch.stopped:
            shown += self._watch.held
        self.ended = reason is not None
        return Piece(shown, step.id, step.log_prob, alternatives(step.outlook, self._tokenizer, self._top), reason)


def alternatives(logits: Outlook | Logits, tokenizer: Tokenizer, top: int) -> tuple[Alternative, ...]:
    """Return the `top` most probable tokens of `logits` (vocab,), most probable first."""
    if top == 0:
        return ()
    outlook = outlook_of(logits)
    ids = outlook.most_probable(top).tolist()
    return tuple(Alternative(i, token_text(tokenizer, i), outlook.log_probability(i)) for i in ids)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as a person reads it; a row of the model beyond the tokenizer's tokens has no text."""
    try:
        return tokenizer.token(token)
    except TokenizerError:
        return ""


class StopWatch:
    """Lets text through until a stop string, however the text is cut; holds back what may become one.

    The stop string that ends first counts, of those the longest.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop, self.held, self.stopped = stop, "", False

    def push(self, text: str) -> str:
        """Return the text that can no longer belong to a stop string."""
        text = self.held + text
        found = [(start + len(stop), start) for stop in self.stop if (start := text.find(stop)) >= 0]
        if found:
            self.held, self.stopped = "", True
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self.stop), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
