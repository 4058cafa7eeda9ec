"""Text in, text out: the decode loop between a tokenizer's two directions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from loquela.errors import TokenizerError, UsageError
from loquela.generation.beam import beam_search, replay
from loquela.generation.constrain import Constraint
from loquela.generation.decode import FinishReason, Step, decode, log_probability, prefill
from loquela.generation.rules import Logits, most_probable
from loquela.generation.settings import GenerationSettings
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

__all__ = [
    "Alternative",
    "Completion",
    "Piece",
    "PieceMaker",
    "Usage",
    "alternatives",
    "choices",
    "complete",
    "prompt_ids",
    "stream",
]


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

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        tokens = [{k: v for k, v in asdict(piece).items() if k != "finish_reason"} for piece in self.tokens]
        return {
            "text": self.text,
            "tokens": tokens,
            "finish_reason": self.finish_reason,
            "usage": asdict(self.usage),
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
) -> Iterator[Piece]:
    """Continue a prompt (text or ids), token by token; each piece carries its `top` most probable tokens.

    `end_ids` end the text and are no part of it; None means the tokenizer's EOS. A `constraint` is what the text must
    fit (`loquela.generation.constrain`).
    """
    if settings.n != 1:
        raise UsageError(f"a stream must be one completion, but n is {settings.n}")
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    return next(_streams(network, tokenizer, ids, settings, top, end_ids, constraint))


def complete(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: GenerationSettings,
    *,
    top: int = 0,
    end_ids: frozenset[int] | None = None,
    constraint: Constraint | None = None,
) -> Completion:
    """Continue a prompt (text or ids) to its end; see `stream`."""
    return choices(network, tokenizer, prompt, settings.replace(n=1), top=top, end_ids=end_ids, constraint=constraint)[
        0
    ]


def choices(
    network: Network,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: GenerationSettings,
    *,
    top: int = 0,
    end_ids: frozenset[int] | None = None,
    constraint: Constraint | None = None,
) -> list[Completion]:
    """Continue a prompt `settings.n` times; the prompt is computed once. The first is what `complete` gives."""
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    completions = []
    for pieces in _streams(network, tokenizer, ids, settings, top, end_ids, constraint):
        tokens = tuple(pieces)
        completions.append(
            Completion(
                text="".join(piece.text for piece in tokens),
                tokens=tokens,
                finish_reason=(tokens[-1].finish_reason if tokens else None) or "length",
                usage=Usage(len(ids), len(tokens)),
            )
        )
    return completions


def _streams(
    network: Network,
    tokenizer: Tokenizer,
    prompt: list[int],
    settings: GenerationSettings,
    top: int,
    end_ids: frozenset[int] | None,
    constraint: Constraint | None,
) -> Iterator[Iterator[Piece]]:
    """One stream for each of the `n` choices, each from its own copy of the cache that holds the prompt."""
    if end_ids is None:
        end_ids = frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})
    if settings.num_beams > 1:
        if constraint is not None:
            raise UsageError(f"a constraint needs num_beams=1, but it is {settings.num_beams}")
        for found in beam_search(network, torch.tensor([prompt]), settings, end_ids=end_ids)[0]:
            prefix, steps = replay(network, prompt, found.ids, end_ids=end_ids)
            yield _pieces(steps, PieceMaker(tokenizer, prefix, settings.stop, end_ids, top))
        return
    prefix, cache, logits = prefill(network, prompt)
    for choice in range(settings.n):
        own = cache if choice == settings.n - 1 else copy.deepcopy(cache)
        guide = None if constraint is None else constraint.start()
        steps = decode(network, prefix, logits, own, settings, end_ids=end_ids, choice=choice, guide=guide)
        yield _pieces(steps, PieceMaker(tokenizer, prefix, settings.stop, end_ids, top))


class PieceMaker:
    """Turns the steps of one completion into pieces of text; `ended` after the piece that ends it."""

    def __init__(
        self, tokenizer: Tokenizer, prefix: Sequence[int], stop: tuple[str, ...], end_ids: frozenset[int], top: int
    ) -> None:
        self._tokenizer, self._end_ids, self._top = tokenizer, end_ids, top
        self._decoder, self._watch = tokenizer.stream(), _StopWatch(stop)
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
        return Piece(shown, step.id, step.log_prob, alternatives(step.logits, self._tokenizer, self._top), reason)


def _pieces(steps: Iterable[Step], maker: PieceMaker) -> Iterator[Piece]:
    for step in steps:
        yield maker.push(step)
        if maker.ended:
            return


def alternatives(logits: Logits, tokenizer: Tokenizer, top: int) -> tuple[Alternative, ...]:
    """Return the `top` most probable tokens of `logits` (vocab,), most probable first."""
    if top == 0:
        return ()
    ids = most_probable(logits, top).tolist()
    return tuple(Alternative(i, _token_text(tokenizer, i), log_probability(logits, i)) for i in ids)


def _token_text(tokenizer: Tokenizer, token: int) -> str:
    """A model may have more rows than its tokenizer has tokens; those have no text."""
    try:
        return tokenizer.token(token)
    except TokenizerError:
        return ""


class _StopWatch:
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
