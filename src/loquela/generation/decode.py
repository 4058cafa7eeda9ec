"""The decode loop: token ids in, token ids out, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from loquela.errors import ContextWindowError, UsageError
from loquela.generation.rules import History, Logits
from loquela.generation.sampling import GenerationSettings, choose, distribution, uniform
from loquela.layers.cache import Cache
from loquela.models.base import Network

__all__ = ["FinishReason", "Step", "decode", "evaluating", "generate_ids", "log_probability", "prefill"]

FinishReason = Literal["stop", "length"]


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
) -> Iterator[Step]:
    """Continue `prompt` (at least one id) until an end token, `max_new_tokens` or the end of the context window.

    An encoder-decoder reads the prompt as its source; what comes is the target. A `cache` of the caller's holds the
    first positions of the prompt, fewer than all. `choice` is the number of this completion among the `settings.n` of
    one prompt. Raises `ContextWindowError` for a prompt that leaves no room.
    """
    prefix, cache, logits = prefill(network, prompt, cache)
    yield from decode(network, prefix, logits, cache, settings, end_ids=end_ids, choice=choice)


def prefill(network: Network, prompt: Sequence[int], cache: Cache | None = None) -> tuple[Sequence[int], Cache, Logits]:
    """Read the `prompt`, or what a caller's `cache` lacks of it.

    Returns the tokens that the completion follows (the prompt, or the start token of an encoder-decoder), the cache
    that holds them, and the logits (vocab,) of the token after them.
    """
    if len(prompt) >= network.context_length:
        raise ContextWindowError(
            f"the prompt must leave room for a token in the context window of {network.context_length} tokens, "
            f"but has {len(prompt)}: shorten it, or let it be truncated"
        )
    held = 0 if cache is None else cache.length
    if held >= len(prompt):
        raise UsageError(f"the prompt must go on after the {held} tokens of the cache, but has {len(prompt)}")
    prefix = prompt
    if cache is None:
        with evaluating(network):
            cache, first = network.start(torch.tensor([prompt], device=next(network.parameters()).device))
        prefix = first[0].tolist()
    return prefix, cache, _advance(network, prefix[held:], cache)


def decode(
    network: Network,
    prefix: Sequence[int],
    logits: Logits,
    cache: Cache,
    settings: GenerationSettings,
    *,
    end_ids: frozenset[int] = frozenset(),
    choice: int = 0,
) -> Iterator[Step]:
    """The loop after `prefill`; `cache` holds the whole prefix and is extended in place."""
    completion: list[int] = []
    room = min(settings.max_new_tokens, network.context_length - len(prefix))
    for position in range(room):
        probabilities = distribution(logits, History(prefix, completion), settings)
        token = choose(probabilities, uniform(settings.seed, choice, position))
        completion.append(token)
        reason: FinishReason | None = "stop" if token in end_ids else "length" if position + 1 == room else None
        yield Step(token, log_probability(logits, token), logits, reason)
        if reason is not None:
            return
        logits = _advance(network, [token], cache)


def log_probability(logits: Logits, token: int) -> float:
    """Return the log of the softmax of `logits` (vocab,) at `token`."""
    maximum = logits.max()
    return float(logits[token] - maximum - np.log(np.exp(logits - maximum).sum()))


def _advance(network: Network, tokens: Sequence[int], cache: Cache) -> Logits:
    with evaluating(network):
        device = next(network.parameters()).device
        hidden = network.hidden(torch.tensor([tokens], device=device), cache=cache)
        logits: Logits = network.head(hidden[0, -1]).double().cpu().numpy()  # the head sees one position, not all
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
