"""One text as it grows: from the logits of its next token to the token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from loquela.generation.outlook import Outlook, outlook_of
from loquela.generation.rules import History, Logits
from loquela.generation.sampling import Chain, Guess, choose, distribution, uniform, verified
from loquela.generation.settings import GenerationSettings

__all__ = ["FinishReason", "Guide", "Step", "Writer", "log_probability"]

FinishReason = Literal["stop", "length"]


class Guide(Protocol):
    """What a text must become, as it grows; see `loquela.generation.constrain`."""

    def allow(self, logits: Logits) -> Logits:
        """Return `logits` (vocab,) with -inf where a token would lead astray."""

    def take(self, token: int) -> bool:
        """Go on by the token that was chosen; return whether the text is whole and nothing may follow."""

    def fork(self) -> Guide:
        """Return a guide that goes on from here by itself."""


@dataclass(frozen=True)
class Step:
    """One token: its id, and the logits that the model gave before the sampling rules."""

    id: int
    log_prob: float
    """The model's own log-probability of the token, in nats, before the sampling rules."""
    outlook: Outlook
    finish_reason: FinishReason | None
    """On the last token: `stop` for an end token, `length` when the tokens asked for or the window are used up."""

    @property
    def logits(self) -> Logits:
        """What the model gave (vocab,)."""
        return self.outlook.values


class Writer:
    """One completion as it grows: takes the logits of its next token, gives the token.

    `going` says whether another one is to come.
    """

    def __init__(
        self,
        prefix: Sequence[int],
        settings: GenerationSettings,
        context_length: int,
        *,
        end_ids: frozenset[int] = frozenset(),
        choice: int = 0,
        guide: Guide | None = None,
    ) -> None:
        self.prefix, self.settings, self.end_ids, self.choice, self.guide = prefix, settings, end_ids, choice, guide
        self._chain = Chain(settings)
        self.room = min(settings.max_new_tokens, context_length - len(prefix))
        self.completion: list[int] = []
        self.going = self.room > 0

    def take(self, logits: Outlook | Logits, guess: Guess | None = None) -> Step:
        """Choose the next token from what the model gave; a `guess` at it may be right."""
        outlook = outlook_of(logits)
        allowed = self._allowed(outlook)
        if self._chain.certain and guess is None:
            allowed.check()
            token = allowed.best
        else:
            number = uniform(self.settings.seed, self.choice, len(self.completion))
            if guess is None:
                ids, probabilities = self._chain.likely(allowed, self._history)
                place = choose(probabilities, number)
                token = place if ids is None else int(ids[place])
            else:
                token = choose(verified(self.distribution(outlook), guess), number)
        reason = self.add(token)
        return Step(token, outlook.log_probability(token), outlook, reason)

    def distribution(self, logits: Outlook | Logits) -> Logits:
        """Return the probabilities (vocab,) of the next token after the guide and the sampling rules."""
        return distribution(self._allowed(outlook_of(logits)), self._history, self.settings)

    def _allowed(self, outlook: Outlook) -> Outlook:
        return outlook if self.guide is None else Outlook(self.guide.allow(outlook.values))

    @property
    def _history(self) -> History:
        return History(self.prefix, self.completion, self.end_ids, len(self.completion) + 1 == self.room)

    def add(self, token: int) -> FinishReason | None:
        """Go on by a token; return why the text ends with it, if it does."""
        self.completion.append(token)
        whole = self.guide is not None and self.guide.take(token)
        full = len(self.completion) == self.room
        reason: FinishReason | None = "stop" if whole or token in self.end_ids else "length" if full else None
        self.going = reason is None
        return reason

    def fork(self) -> Writer:
        """Return a writer that goes on from here by itself."""
        other = copy.copy(self)
        other.completion = list(self.completion)
        other.guide = None if self.guide is None else self.guide.fork()
        return other


def log_probability(logits: Outlook | Logits, token: int) -> float:
    """Return the log of the softmax of `logits` (vocab,) at `token`."""
    return outlook_of(logits).log_probability(token)
