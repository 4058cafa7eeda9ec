"""The decode loop: token ids in, token ids out, one at a time.

The loop has one schedule, whoever runs it: a prompt is read in pieces that end at multiples of `CHUNK`, then come
single tokens. So the same products of the same shapes are computed for a text alone, among others, or after a cache
that was kept, and the same bits come out; a scheduler that serves many keeps to it (`loquela.engine.scheduler`).

A `Drafter` guesses at tokens ahead (`loquela.generation.speculative`). The loop then reads the last token and the
guesses together, which gives the logits after each, and goes on from the first guess that is wrong. A network whose
states do not depend on what is read together, as a compiled one's, gives the very logits of single tokens. PyTorch's
products round otherwise for other shapes: there logits differ by rounding (about 1e-6 of the largest), and a token can
only differ where two are as good as equally probable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from loquela.errors import ContextWindowError, UsageError
from loquela.generation.outlook import Outlook
from loquela.generation.rules import Logits
from loquela.generation.sampling import Guess
from loquela.generation.settings import GenerationSettings
from loquela.generation.writer import FinishReason, Guide, Step, Writer, log_probability
from loquela.layers.cache import Cache
from loquela.models.base import Network

__all__ = [
    "CHUNK",
    "Drafter",
    "FinishReason",
    "Guide",
    "Speculation",
    "Step",
    "Writer",
    "check_room",
    "decode",
    "evaluating",
    "generate_ids",
    "log_probability",
    "logits_after",
    "outlooks",
    "prefill",
    "read",
    "spans",
]

CHUNK = 128
"""Positions of a prompt that are read together. Longer: others wait longer; shorter: slower products."""


@dataclass
class Speculation:
    """What guessing has brought so far; the token that follows the prompt's reading is not counted."""

    drafted: int = 0
    """Tokens that were guessed."""
    accepted: int = 0
    """Those of them that are part of the text."""
    tokens: int = 0
    forwards: int = 0
    """How often the network was run for these tokens."""

    @property
    def tokens_per_forward(self) -> float:
        """1 where no guess was right."""
        return self.tokens / self.forwards if self.forwards else 1.0

    def since(self, before: Speculation) -> Speculation:
        """Return what has come since `before`."""
        return Speculation(
            self.drafted - before.drafted,
            self.accepted - before.accepted,
            self.tokens - before.tokens,
            self.forwards - before.forwards,
        )

    def as_dict(self) -> dict[str, float]:
        """What `--json` prints."""
        return {
            "drafted": self.drafted,
            "accepted": self.accepted,
            "forwards": self.forwards,
            "tokens_per_forward": self.tokens_per_forward,
        }


class Drafter(Protocol):
    """Guesses how one text goes on; see `loquela.generation.speculative`."""

    speculation: Speculation

    def draft(self, writer: Writer) -> Sequence[Guess]:
        """Return guesses at the tokens after those that `writer` has: fewer than it has room for, or none."""


def generate_ids(
    network: Network,
    prompt: Sequence[int],
    settings: GenerationSettings,
    *,
    end_ids: frozenset[int] = frozenset(),
    cache: Cache | None = None,
    choice: int = 0,
    guide: Guide | None = None,
    drafter: Drafter | None = None,
) -> Iterator[Step]:
    """Continue `prompt` (at least one id) until an end token, `max_new_tokens` or the end of the context window.

    An encoder-decoder reads the prompt as its source; what comes is the target. A `cache` of the caller's holds the
    first positions of the prompt, fewer than all. `choice` is the number of this completion among the `settings.n` of
    one prompt. Raises `ContextWindowError` for a prompt that leaves no room.
    """
    prefix, cache, outlook = prefill(network, prompt, cache)
    yield from decode(
        network, prefix, outlook, cache, settings, end_ids=end_ids, choice=choice, guide=guide, drafter=drafter
    )


def prefill(
    network: Network, prompt: Sequence[int], cache: Cache | None = None
) -> tuple[Sequence[int], Cache, Outlook]:
    """Read the `prompt`, or what a caller's `cache` lacks of it.

    Returns the tokens that the completion follows (the prompt, or the start token of an encoder-decoder), the cache
    that holds them, and what may come after them.
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
        if end < len(prefix):
            read(network, prefix[start:end], cache, wanted=0)
    return prefix, cache, outlooks(network, prefix[start:end], cache, wanted=1)[0]


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
    outlook: Outlook,
    cache: Cache,
    settings: GenerationSettings,
    *,
    end_ids: frozenset[int] = frozenset(),
    choice: int = 0,
    guide: Guide | None = None,
    drafter: Drafter | None = None,
) -> Iterator[Step]:
    """The loop after `prefill`; `cache` holds the whole prefix and is extended in place.

    `outlook` is what may come first. Raises `UsageError` for a `drafter` beside a cache that cannot unread what was
    guessed wrong.
    """
    if drafter is not None and not cache.unreads:
        raise UsageError(
            f"guessing ahead needs a cache that can unread wrong guesses, but that of {network.config.model_type} "
            "cannot: leave prompt_lookup_num_tokens and the draft model out"
        )
    writer = Writer(prefix, settings, network.context_length, end_ids=end_ids, choice=choice, guide=guide)
    count = drafter.speculation if drafter is not None else Speculation()
    start, rows, guesses = cache.length, [outlook], list[Guess]()
    while writer.going:
        for row, guess in zip(rows, [*guesses, None], strict=True):
            step = writer.take(row, guess)
            right = guess is not None and step.id == guess.token
            count.accepted += right
            count.tokens += len(writer.completion) > 1
            goes_on = right and writer.going
            if guesses and not goes_on:
                cache.truncate(start + len(writer.completion) - 1)
            yield step
            if not goes_on:
                break
        if writer.going:
            guesses = [] if drafter is None else list(drafter.draft(writer))
            del step, row, rows  # nobody looks at them any more; see `_pieces` of completions
            rows = outlooks(network, [writer.completion[-1], *(guess.token for guess in guesses)], cache)
            count.drafted += len(guesses)
            count.forwards += 1


def read(network: Network, tokens: Sequence[int], cache: Cache, *, wanted: int | None = None) -> torch.Tensor:
    """Return the hidden states (new, dim) of `tokens`, which come after what `cache` holds and extend it.

    Or those of the last `wanted`: a compiled network leaves out of its last layer what only the others need.
    """
    count = len(tokens) if wanted is None else wanted
    with evaluating(network):
        if (together := getattr(network, "hidden_rows", None)) is not None:
            states: torch.Tensor = together([tokens], [cache], wanted=[count])[0]
            return states
        device = next(network.parameters()).device
        return network.hidden(torch.tensor([tokens], device=device), cache=cache)[0, len(tokens) - count :]


def outlooks(network: Network, tokens: Sequence[int], cache: Cache, *, wanted: int | None = None) -> list[Outlook]:
    """Return what may come after each of `tokens`, or of the last `wanted`; see `read`."""
    if (together := getattr(type(network), "outlooks", None)) is None:
        return [Outlook(row) for row in logits_after(network, read(network, tokens, cache, wanted=wanted))]
    found: list[Outlook] = together(network, [tokens], [cache], wanted=None if wanted is None else [wanted])[0]
    return found


def logits_after(network: Network, states: torch.Tensor) -> list[Logits]:
    """Return the logits (vocab,) of what comes after each of the hidden `states` (new, dim)."""
    with evaluating(network):
        if len(states) == 1:  # as a scheduler computes it: the head sees one position
            return [network.head(states[0]).double().cpu().numpy()]
        return list(network.head(states).double().cpu().numpy())


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
