"""The decode loop: token ids in, token ids out, one at a time.

The loop has one schedule, whoever runs it: a prompt is read in pieces that end at multiples of `CHUNK`, then come
single tokens. So the same products of the same shapes are computed for a text alone, among others, or after a cache
that was kept, and the same bits come out; a scheduler that serves many keeps to it (`loquela.engine.scheduler`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from loquela.errors import ContextWindowError, UsageError
from loquela.generation.rules import History, Logits
from loquela.generation.sampling import GenerationSettings, choose, distribution, uniform
from loquela.layers.cache import Cache
from loquela.models.base import Network

__all__ = [
    "CHUNK",
    "FinishReason",
    "Guide",
    "Step",
    "Writer",
    "check_room",
    "decode",
    "evaluating",
    "generate_ids",
    "log_probability",
    "prefill",
    "spans",
]

CHUNK = 128
"""Positions of a prompt that are read together. Longer: others wait longer; shorter: slower products."""

FinishReason = Literal["stop", "length"]


class Guide(Protocol):
    """What a text must become, as it grows; see `loquela.generation.constrain`."""

    def allow(self, logits: Logits) -> Logits:
        """Return `logits` (vocab,) with -inf where a token would lead astray."""

    def take(self, token: int) -> bool:
        """Go on by the token that was chosen; return whether the text is whole and nothing may follow."""


@dataclass(frozen=True)
class Step:
    """One token: its id, and the logits (vocab,) that the model gave before the sampling rules."""

    id: int
    log_prob: float
    """The model's own log-probability of the token, in nats, before the sampling rules."""
    logits: Logits
    finish_reason: FinishReason | None
    """On the last token: `stop` for an end token, `length` when the tokens asked for or the window are used up."""


def generate_ids(
    network: Network,
    prompt: Sequence[int],
    settings: GenerationSettings,
    *,
    end_ids: frozenset[int] = frozenset(),
    cache: Cache | None = None,
    choice: int = 0,
    guide: Guide | None = None,
) -> Iterator[Step]:
    """Continue `prompt` (at least one id) until an end token, `max_new_tokens` or the end of the context window.

    An encoder-decoder reads the prompt as its source; what comes is the target. A `cache` of the caller's holds the
    first positions of the prompt, fewer than all. `choice` is the number of this completion among the `settings.n` of
    one prompt. Raises `ContextWindowError` for a prompt that leaves no room.
    """
    prefix, cache, logits = prefill(network, prompt, cache)
    yield from decode(network, prefix, logits, cache, settings, end_ids=end_ids, choice=choice, guide=guide)


def prefill(network: Network, prompt: Sequence[int], cache: Cache | None = None) -> tuple[Sequence[int], Cache, Logits]:
    """Read the `prompt`, or what a caller's `cache` lacks of it.

    Returns the tokens that the completion follows (the prompt, or the start token of an encoder-decoder), the cache
    that holds them, and the logits (vocab,) of the token after them.
    """
    check_room(len(prompt), network.context_length)
    held = 0 if cache is None else cache.length
    if held >= len(prompt):
        raise UsageError(f"the prompt must go on after the {held} tokens of the cache, but has {len(prompt)}")
    prefix = prompt
    if cache is None:
        with evaluating(network):
            cache, first = network.start(torch.tensor([prompt], device=next(network.parameters()).device))
        prefix = first[0].tolist()
    for start, end in spans(held, len(prefix)):
        hidden = _read(network, prefix[start:end], cache)
    return prefix, cache, _logits(network, hidden)


def check_room(prompt: int, window: int) -> None:
    """Raise `ContextWindowError` for a prompt of so many tokens that leaves no room for one in the context window."""
    if prompt >= window:
        raise ContextWindowError(
            f"the prompt must leave room for a token in the context window of {window} tokens, "
            f"but has {prompt}: shorten it, or let it be truncated"
        )


def spans(held: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut the positions from `held` to `length` at the multiples of `CHUNK`."""
    while held < length:
        end = min(length, (held // CHUNK + 1) * CHUNK)
        yield held, end
        held = end


def decode(
    network: Network,
    prefix: Sequence[int],
    logits: Logits,
    cache: Cache,
    settings: GenerationSettings,
    *,
    end_ids: frozenset[int] = frozenset(),
    choice: int = 0,
    guide: Guide | None = None,
) -> Iterator[Step]:
    """The loop after `prefill`; `cache` holds the whole prefix and is extended in place."""
    writer = Writer(prefix, settings, network.context_length, end_ids=end_ids, choice=choice, guide=guide)
    while writer.going:
        step = writer.take(logits)
        yield step
        if writer.going:
            logits = _logits(network, _read(network, [step.id], cache))


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
        self.room = min(settings.max_new_tokens, context_length - len(prefix))
        self.completion: list[int] = []
        self.going = self.room > 0

    def take(self, logits: Logits) -> Step:
        """Choose the next token from the model's logits (vocab,)."""
        position = len(self.completion)
        last = position + 1 == self.room
        allowed = logits if self.guide is None else self.guide.allow(logits)
        history = History(self.prefix, self.completion, self.end_ids, last)
        probabilities = distribution(allowed, history, self.settings)
        token = choose(probabilities, uniform(self.settings.seed, self.choice, position))
        self.completion.append(token)
        whole = self.guide is not None and self.guide.take(token)
        reason: FinishReason | None = "stop" if whole or token in self.end_ids else "length" if last else None
        self.going = reason is None
        return Step(token, log_probability(logits, token), logits, reason)


def log_probability(logits: Logits, token: int) -> float:
    """Return the log of the softmax of `logits` (vocab,) at `token`."""
    maximum = logits.max()
    return float(logits[token] - maximum - np.log(np.exp(logits - maximum).sum()))


def _read(network: Network, tokens: Sequence[int], cache: Cache) -> torch.Tensor:
    with evaluating(network):
        device = next(network.parameters()).device
        return network.hidden(torch.tensor([tokens], device=device), cache=cache)[0, -1]


def _logits(network: Network, hidden: torch.Tensor) -> Logits:
    with evaluating(network):
        logits: Logits = network.head(hidden).double().cpu().numpy()  # the head sees one position, not all
    return logits


@contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """Compute without dropout and without gradients; afterwards the network is as it was."""
    training = network.training
    if training:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            network.train()
