"""Text in, text out: the decode loop between a tokenizer's two directions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch

from loquela.errors import UsageError
from loquela.generation.beam import beam_search, replay
from loquela.generation.constrain import Constraint
from loquela.generation.decode import FinishReason, Speculation, Step, decode, prefill
from loquela.generation.pieces import Alternative, Piece, PieceMaker, alternatives
from loquela.generation.settings import GenerationSettings
from loquela.generation.speculative import Draft, draft_of
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

__all__ = [
    "Alternative",
    "Completion",
    "Piece",
    "PieceMaker",
    "Usage",
    "alternatives",
    "best",
    "choices",
    "complete",
    "prompt_ids",
    "stream",
]


T = TypeVar("T")


@dataclass(frozen=True)
class Usage:
    """Tokens that went in, and tokens that were chosen (an end token among them)."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """A finished completion; `finish_reason` is `stop` (end token, stop string) or `length`."""

    text: str
    tokens: tuple[Piece, ...]
    finish_reason: FinishReason
    usage: Usage
    truncated: int = 0
    """Tokens cut off the start of the prompt to fit the context window."""
    speculation: Speculation | None = None
    """What guessing ahead brought for all that was written of this prompt, where it was asked for."""

    @property
    def mean_log_prob(self) -> float:
        """The mean of the tokens' log-probabilities (nats), by which `best_of` ranks; 0 without any token."""
        return sum(piece.log_prob for piece in self.tokens) / max(1, len(self.tokens))

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        tokens = [{k: v for k, v in asdict(piece).items() if k != "finish_reason"} for piece in self.tokens]
        return {
            "text": self.text,
            "tokens": tokens,
            "finish_reason": self.finish_reason,
            "usage": asdict(self.usage),
            **({} if self.speculation is None else {"speculation": self.speculation.as_dict()}),
        }


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Encode a prompt. Where nothing comes of it, a text begins: with the BOS token, or with what ended the last one.

    Raises `UsageError` when the tokenizer has neither.
    """
    ids = tokenizer.encode(prompt)
    if ids:
        return ids
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if start is None:
        raise UsageError("the prompt must hold a token, but is empty and the tokenizer has no BOS or EOS to start from")
    return [start]


def stream(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: GenerationSettings,
    *,
    top: int = 0,
    end_ids: frozenset[int] | None = None,
    constraint: Constraint | None = None,
    draft: Draft | None = None,
) -> Iterator[Piece]:
    """Continue a prompt (text or ids), token by token; each piece carries its `top` most probable tokens.

    `end_ids` end the text and are no part of it; None means the tokenizer's EOS. A `constraint` is what the text must
    fit (`loquela.generation.constrain`), a `draft` what guesses ahead (`loquela.generation.speculative`); it counts
    what that brings.
    """
    if settings.n != 1:
        raise UsageError(f"a stream must be one completion, but n is {settings.n}")
    if settings.best_of > 1:
        raise UsageError(f"a stream shows a text before it is judged, but best_of is {settings.best_of}: leave it out")
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    draft = draft or draft_of(settings, network, tokenizer)
    return next(_streams(network, tokenizer, ids, settings, top, end_ids, constraint, draft))


def complete(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: GenerationSettings,
    *,
    top: int = 0,
    end_ids: frozenset[int] | None = None,
    constraint: Constraint | None = None,
    draft: Draft | None = None,
) -> Completion:
    """Continue a prompt (text or ids) to its end; see `stream`."""
    one = settings.replace(n=1)
    return choices(network, tokenizer, prompt, one, top=top, end_ids=end_ids, constraint=constraint, draft=draft)[0]


def choices(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: GenerationSettings,
    *,
    top: int = 0,
    end_ids: frozenset[int] | None = None,
    constraint: Constraint | None = None,
    draft: Draft | None = None,
) -> list[Completion]:
    """Continue a prompt `settings.n` times; the prompt is computed once. The first is what `complete` gives.

    With `best_of` so many are written, and the `n` best given, best first.
    """
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    draft = draft or draft_of(settings, network, tokenizer)
    before = None if draft is None else replace(draft.speculation)
    completions = []
    for pieces in _streams(network, tokenizer, ids, settings, top, end_ids, constraint, draft):
        tokens = tuple(pieces)
        completions.append(
            Completion(
                text="".join(piece.text for piece in tokens),
                tokens=tokens,
                finish_reason=(tokens[-1].finish_reason if tokens else None) or "length",
                usage=Usage(len(ids), len(tokens)),
            )
        )
    if settings.best_of:
        completions = best(completions, settings.n, [completion.mean_log_prob for completion in completions])
    if draft is None or before is None:
        return completions
    return [replace(completion, speculation=draft.speculation.since(before)) for completion in completions]


def best(texts: Sequence[T], count: int, mean_log_probs: Sequence[float]) -> list[T]:
    """Return the `count` texts whose tokens are most probable on average, best first; of equal ones the earlier."""
    order = sorted(range(len(texts)), key=lambda index: -mean_log_probs[index])
    return [texts[index] for index in order[:count]]


def _streams(
    network: Network,
    tokenizer: Tokenizer,
    prompt: list[int],
    settings: GenerationSettings,
    top: int,
    end_ids: frozenset[int] | None,
    constraint: Constraint | None,
    draft: Draft | None,
) -> Iterator[Iterator[Piece]]:
    """One stream for each of the choices, each from its own copy of the cache that holds the prompt."""
    if end_ids is None:
        end_ids = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
    if settings.num_beams > 1:
        if constraint is not None or draft is not None:
            what = "a draft" if constraint is None else "a constraint"
            raise UsageError(f"{what} needs num_beams=1, but it is {settings.num_beams}")
        for found in beam_search(network, torch.tensor([prompt]), settings, end_ids=end_ids)[0]:
            prefix, steps = replay(network, prompt, found.ids, end_ids=end_ids)
            yield _pieces(steps, PieceMaker(tokenizer, prefix, settings.stop, end_ids, top))
        return
    prefix, cache, outlook = prefill(network, prompt)
    count = max(settings.n, settings.best_of)
    for choice in range(count):
        own = cache if choice == count - 1 else copy.deepcopy(cache)
        guide = None if constraint is None else constraint.start()
        drafter = None if draft is None else draft.start(prefix)
        steps = decode(
            network, prefix, outlook, own, settings, end_ids=end_ids, choice=choice, guide=guide, drafter=drafter
        )
        yield _pieces(steps, PieceMaker(tokenizer, prefix, settings.stop, end_ids, top))


def _pieces(steps: Iterable[Step], maker: PieceMaker) -> Iterator[Piece]:
    for piece in map(maker.push, steps):  # which keeps no step: an engine would have to copy its logits
        yield piece
        if maker.ended:
            return
