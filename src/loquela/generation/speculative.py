"""Guessing ahead: several tokens for one reading of the weights, with exactly the distribution of one at a time.

A decoder that writes waits for memory: reading its weights takes as long for one token as for a few. So something cheap
guesses the next tokens, the network reads them all at once, and the decode loop keeps what the model would have said
(`loquela.generation.sampling.verified`). Two kinds of guesses: what followed the same words earlier in the text
(prompt lookup: for summaries, edits, code; the very same tokens come as without), and a small model of the same
vocabulary (a draft: when greedy the same tokens, when sampling the same distribution).

How many tokens are guessed depends on nothing but the guesses' fate so far, so that a seed gives the same text again.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from loquela.errors import TokenizerError, UsageError
from loquela.generation.decode import Drafter, Speculation, Writer, logits_after, prefill, read
from loquela.generation.rules import Logits
from loquela.generation.sampling import Guess, choose, uniform
from loquela.generation.settings import GenerationSettings
from loquela.layers.cache import Cache
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

__all__ = ["Draft", "DraftModel", "Pace", "PromptLookup", "draft_of"]

VERIFYING = 0.15
"""Time that one more token to verify takes, as a share of a step: measured 0.05 to 0.25, by width and size."""
BESIDES = 5_000_000
"""Bytes of weights that are read in the time of all else that a step does: measured 0.3 ms."""
_LONGEST = 3
_PATIENCE = 16


class Draft(ABC):
    """A way to guess, for any number of texts. `speculation` counts over all of them."""

    def __init__(self) -> None:
        self.speculation = Speculation()

    @abstractmethod
    def start(self, prefix: Sequence[int]) -> Drafter:
        """Return what guesses how one text goes on after `prefix`."""


class Pace:
    """How many tokens to guess at once, at most `most`: as many as promise the most tokens per time (2211.17192, 3.4).

    A guess costs `cost` of the time of a step without guesses. The share of right guesses is that of the last ones, the
    older the less they count. Where guessing does not pay, it is tried again now and then.
    """

    def __init__(self, most: int, cost: float) -> None:
        self.most, self.cost = most, cost
        self._right, self._tried, self._silent = 1.0, 2.0, 0

    def count(self) -> int:
        """Return how many tokens to guess now."""
        share = self._right / self._tried
        best, tokens, fastest = 0, 1.0, 1.0
        for guesses in range(1, self.most + 1):
            tokens += share**guesses  # one more than the guesses before the first wrong one
            if (speed := tokens / (1 + self.cost * guesses)) > fastest:
                best, fastest = guesses, speed
        self._silent = 0 if best else self._silent + 1
        return best or int(self._silent % _PATIENCE == 0)

    def learn(self, guessed: int, right: int) -> None:
        """Take in how many of the guesses were right; those after the first wrong one tell nothing."""
        tried = min(guessed, right + 1)
        self._right = 0.9**tried * self._right + right
        self._tried = 0.9**tried * self._tried + tried


class _Guesser:
    """Remembers the last guesses of one text, and learns from what became of them."""

    def __init__(self, speculation: Speculation) -> None:
        self.speculation = speculation
        self._at, self._guesses = 0, list[Guess]()
        self._pace: Pace | None = None

    def _settle(self, writer: Writer) -> None:
        if self._guesses and self._pace is not None:
            came = writer.completion[self._at : self._at + len(self._guesses)]
            pairs = zip(self._guesses, came, strict=False)
            wrong = (i for i, (guess, token) in enumerate(pairs) if guess.token != token)
            self._pace.learn(len(self._guesses), next(wrong, len(came)))
        self._at, self._guesses = len(writer.completion), []


class PromptLookup(Draft):
    """Guesses that what followed the last words earlier in the text follows them again, as LZ77 does (Saxena, 2023)."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def start(self, prefix: Sequence[int]) -> Drafter:  # noqa: D102
        return _Lookup(self.most, self.speculation)


class _Lookup(_Guesser):
    def __init__(self, most: int, speculation: Speculation) -> None:
        super().__init__(speculation)
        self._paces = {size: Pace(most, VERIFYING) for size in range(1, _LONGEST + 1)}
        self._text: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        """Where that stands which followed these tokens when they came last, the end of the text apart."""

    def draft(self, writer: Writer) -> Sequence[Guess]:
        self._settle(writer)
        if not self._text:
            self._extend(writer.prefix)
        self._extend(writer.completion[len(self._text) - len(writer.prefix) :])
        room = writer.room - len(writer.completion) - 1
        for size in range(min(_LONGEST, len(self._text)), 0, -1):
            place = self._follows.get(tuple(self._text[-size:]))
            if place is not None:
                self._pace = self._paces[size]
                period = len(self._text) - place  # a text that repeats itself goes on to do so, into the guesses
                count = min(self._pace.count(), room)
                self._guesses = [Guess(self._text[place + i % period]) for i in range(count)]
                break
        return self._guesses

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for size in range(1, min(_LONGEST, len(self._text)) + 1):
                self._follows[tuple(self._text[-size:])] = len(self._text)
            self._text.append(token)


class DraftModel(Draft):
    """A small decoder with the vocabulary of the `target` guesses, at most `most` tokens at once.

    It draws as the target does: through the same rules and the same constraint. Raises `UsageError` for a network that
    cannot unread a token.
    """

    def __init__(self, network: Network, target: Network, most: int) -> None:
        super().__init__()
        if network.kind != "decoder" or not network.new_cache().unreads:
            raise UsageError(
                f"a draft must be a decoder whose cache can unread a token, but {network.config.model_type} is none: "
                "leave it out, or let prompt_lookup_num_tokens guess"
            )
        self.network, self.most, self.vocab_size = network, most, target.vocab_size
        self.cost = VERIFYING + (BESIDES + _bytes_per_token(network)) / (BESIDES + _bytes_per_token(target))
        self._known: tuple[tuple[int, ...], Cache] | None = None

    def start(self, prefix: Sequence[int]) -> Drafter:
        """Let the draft read `prefix`, once for all texts that follow it; what is too long for its window it skips."""
        if len(prefix) >= self.network.context_length:
            return _Drafting(self, [], self.network.new_cache())
        if self._known is None or self._known[0] != tuple(prefix):
            self._known = tuple(prefix), prefill(self.network, prefix)[1]
        return _Drafting(self, list(prefix), copy.deepcopy(self._known[1]))


class _Drafting(_Guesser):
    def __init__(self, model: DraftModel, text: list[int], cache: Cache) -> None:
        super().__init__(model.speculation)
        self._model, self._network, self._pace = model, model.network, Pace(model.most, model.cost)
        self._cache, self._text = cache, text
        self._sure = len(text)
        """How much of the text that the cache holds is surely no guess."""

    def draft(self, writer: Writer) -> Sequence[Guess]:
        self._settle(writer)
        assert self._pace is not None
        text = [*writer.prefix, *writer.completion]
        self._sure = self._held_of(text)
        room = min(writer.room - len(writer.completion) - 1, self._network.context_length - len(text))
        count = min(self._pace.count(), room)
        if count <= 0:
            return self._guesses
        ahead = writer.fork()
        while len(self._guesses) < count and ahead.going:
            logits = _of_size(self._read([*writer.prefix, *ahead.completion]), self._model.vocab_size)
            probabilities = ahead.distribution(logits)
            draw = uniform(ahead.settings.seed, ahead.choice, len(ahead.completion), draft=self._at)
            self._guesses.append(Guess(choose(probabilities, draw), probabilities))
            ahead.add(self._guesses[-1].token)
        return self._guesses

    def _read(self, text: list[int]) -> Logits:
        """Return the draft's logits after `text`, of which its cache holds a beginning."""
        held = self._held_of(text)
        self._cache.truncate(held)
        states = read(self._network, text[held:], self._cache)
        self._text = text
        return logits_after(self._network, states[-1:])[0]

    def _held_of(self, text: list[int]) -> int:
        """Return how many tokens of `text`, not all, the cache holds."""
        held, most = self._sure, min(len(self._text), len(text) - 1)
        while held < most and self._text[held] == text[held]:
            held += 1
        return held


def _of_size(logits: Logits, size: int) -> Logits:
    """A draft may have fewer rows than its target or more, beyond the tokenizer's tokens: no token is guessed there."""
    return np.pad(logits[:size], (0, max(0, size - len(logits))), constant_values=-np.inf)


def _bytes_per_token(network: Network) -> int:
    """Bytes of weights that a token reads: what its time goes with."""
    packed: int | None = getattr(network, "weight_bytes", None)
    return packed or sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def draft_of(
    settings: GenerationSettings,
    target: Network,
    tokenizer: Tokenizer,
    assistant: Network | None = None,
    its: Tokenizer | None = None,
) -> Draft | None:
    """Return what guesses ahead, if anything: an `assistant` with `its` tokenizer, else what the settings ask for."""
    most = settings.prompt_lookup_num_tokens
    if assistant is None or its is None:
        return PromptLookup(most) if most else None
    if most:
        raise UsageError(f"either a draft guesses or prompt_lookup_num_tokens, which is {most}: set it to 0")
    _check_vocabulary(tokenizer, its)
    return DraftModel(assistant, target, settings.num_assistant_tokens)


def _check_vocabulary(tokenizer: Tokenizer, draft: Tokenizer) -> None:
    """Raise `UsageError` for a draft whose token ids do not mean the same."""
    if tokenizer.vocab_size != draft.vocab_size:
        differ = f"{draft.vocab_size} tokens instead of {tokenizer.vocab_size}"
    else:
        pairs = ((i, _token(tokenizer, i), _token(draft, i)) for i in range(tokenizer.vocab_size))
        other = next(((i, ours, theirs) for i, ours, theirs in pairs if ours != theirs), None)
        if other is None:
            return
        differ = f"as token {other[0]} {other[2]!r} instead of {other[1]!r}"
    raise UsageError(
        f"a draft must have the vocabulary of the model, but has {differ}: train one with the model's tokenizer, or "
        "use prompt_lookup_num_tokens, which needs no draft"
    )


def _token(tokenizer: Tokenizer, token: int) -> str | None:
    try:
        return tokenizer.token(token)
    except TokenizerError:
        return None
