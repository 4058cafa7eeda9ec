"""How well a model expects a text: log-probability, perplexity, bits per byte.

Bits per byte compare models with different tokenizers; perplexity, which is per token, does not.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from loquela.data.readers import Piece
from loquela.errors import DataError, LoquelaError, UsageError
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

__all__ = [
    "Prepared",
    "Score",
    "Tokens",
    "finite_sum",
    "prepare",
    "score",
    "score_ids",
    "score_windows",
    "scored",
    "spans",
]

_HEAD_ROWS = 512
"""Positions whose logits are in memory at a time: with a vocabulary of 150,000 a whole window would take gigabytes."""


@dataclass(frozen=True)
class Score:
    """What a model thinks of a text. Logarithms are natural; bits are said to be bits."""

    tokens: int
    """Tokens that were scored."""
    log_prob: float
    """The sum of their log-probabilities."""
    n_bytes: int
    """UTF-8 bytes of the text that was scored."""
    window: int
    """Tokens that the model sees at most before the one it predicts."""
    stride: int
    """How far the window moves at a time; a token sees at least `window - stride` before it, if there are."""
    notes: tuple[str, ...]
    """What a reader of the figures must know."""
    ids: npt.NDArray[np.int64]
    """All tokens, the first included."""
    log_probs: npt.NDArray[np.float64]
    """The log-probability of each of `ids`; NaN for the first, which nothing precedes."""
    pseudo: bool = False
    """Whether each token was predicted from those before and after it: see `loquela.evaluation.pseudo`."""

    @property
    def perplexity(self) -> float:
        """`exp(-log_prob / tokens)`: the number of equally likely tokens that would be as hard to guess."""
        return math.exp(-self.log_prob / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """`-log2(probability) / n_bytes`: the size of the text if the model compressed it."""
        return -self.log_prob / math.log(2) / self.n_bytes


class Tokens(Protocol):
    """What is asked of a tokenizer, here or behind a URL."""

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text."""

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text."""

    @property
    def unk_id(self) -> int | None:
        """The token that stands for what the vocabulary lacks."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the characters of each token, at least of the first."""


@dataclass(frozen=True)
class Prepared:
    """A text as a model reads it: what is scored is every token but the first."""

    ids: list[int]
    n_bytes: int
    """UTF-8 bytes of what is scored."""
    notes: tuple[str, ...]


def prepare(tokenizer: Tokens, text: str | Iterable[Piece]) -> Prepared:
    """Return the tokens of a text, given whole or in the pieces that a reader cuts; between documents stands EOS.

    Before the first token stands BOS; without one the first token is given and not scored, and `notes` says so.
    Raises `DataError` for a text with nothing to score.
    """
    pieces = [Piece(text, ends_document=True)] if isinstance(text, str) else text
    ids: list[int] = []
    first, n_bytes, ended = "", 0, False
    for piece in pieces:
        if piece.text:
            if ids and ended and tokenizer.eos_id is not None:
                ids.append(tokenizer.eos_id)
            ids += tokenizer.encode(piece.text, add_special_tokens=n_bytes == 0)
            first, n_bytes, ended = first or piece.text, n_bytes + len(piece.text.encode()), False
        ended = ended or piece.ends_document
    notes = []
    if tokenizer.bos_id is None:
        given = tokenizer.offsets(first)[0][1] if ids else 0
        n_bytes -= len(first[:given].encode())
        notes.append("the first token is given, not scored: this tokenizer has no BOS to predict it from")
    elif ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    if len(ids) < 2 or n_bytes == 0:
        raise DataError(f"a text must have a token to score after the first, but has {len(ids)} in all")
    if tokenizer.unk_id is not None and (unknown := ids.count(tokenizer.unk_id)):
        notes.append(f"{unknown} tokens are unknown to this tokenizer; what they hid costs nothing here")
    return Prepared(ids, n_bytes, tuple(notes))


def score(
    network: Network,
    tokenizer: Tokenizer,
    text: str | Iterable[Piece],
    *,
    window: int | None = None,
    stride: int | None = None,
) -> Score:
    """Score a text as `prepare` reads it; for a masked model see `loquela.evaluation.pseudo`.

    `window` is the context window unless given, `stride` half the window: a token of a long text then sees at least
    half a window, at twice the cost of `stride=window`, the way of a validation loss. Raises `DataError` for a text
    with nothing to score.
    """
    if network.kind == "encoder":
        from loquela.evaluation.pseudo import pseudo_score  # which makes a `Score`

        if stride is not None:
            raise UsageError("a masked model reads each line by itself: leave the stride out")
        return pseudo_score(network, tokenizer, text, window=window)
    prepared = prepare(tokenizer, text)
    window = network.context_length if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    return scored(prepared, score_ids(network, prepared.ids, window=window, stride=stride), window, stride)


def finite_sum(log_probs: npt.NDArray[np.float64]) -> float:
    """Sum up log-probabilities exactly; raises `LoquelaError` where a damaged model gave some that are none."""
    total = math.fsum(log_probs)
    if not math.isfinite(total):
        raise LoquelaError(f"log-probabilities must be finite, but sum to {total}: the model's weights are damaged")
    return total


def scored(prepared: Prepared, log_probs: npt.NDArray[np.float64], window: int, stride: int) -> Score:
    """Return the score of a text from the log-probabilities of all its tokens but the first."""
    return Score(
        tokens=len(log_probs),
        log_prob=finite_sum(log_probs),
        n_bytes=prepared.n_bytes,
        window=window,
        stride=stride,
        notes=prepared.notes,
        ids=np.array(prepared.ids, dtype=np.int64),
        log_probs=np.concatenate(([math.nan], log_probs)),
    )


def score_ids(network: Network, ids: Sequence[int], *, window: int, stride: int) -> npt.NDArray[np.float64]:
    """Return the log-probabilities (len(ids) - 1,) of each token but the first, given those before it in its window.

    Windows of `window` tokens start every `stride` tokens; each scores the tokens that the one before it did not.
    With `stride=window` they are the blocks of a validation loss. Raises `UsageError` for impossible sizes.
    """
    parts = [part for _, part in score_windows(network, ids, window=window, stride=stride)]
    return np.concatenate(parts) if parts else np.empty(0)


def score_windows(
    network: Network, ids: Sequence[int], *, window: int, stride: int, skip: Container[int] = ()
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Yield each window's number and the log-probabilities of the tokens that it scores; those in `skip` are left out.

    See `score_ids`. A window's figures do not depend on any other window.
    """
    if network.kind != "decoder":
        raise UsageError(
            f"a scored model must be a decoder-only one, but {network.config.model_type} is {network.kind}"
        )
    if not 1 <= window <= network.context_length:
        raise UsageError(f"window must be from 1 to the context window of {network.context_length}, but is {window}")
    tokens = torch.tensor(ids, device=next(network.parameters()).device)
    for number, start, done, end in spans(len(ids) - 1, window, stride):
        if number not in skip:
            yield number, _window(network, tokens, start, done, end)


def spans(total: int, window: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, start, done, end): a window reads tokens from `start` to `end`, and scores what follows those from
    `done` on, of `total` tokens that others follow. Raises `UsageError` for a stride that leaves some out.
    """
    if not 1 <= stride <= window:
        raise UsageError(f"stride must be from 1 to the window of {window}, but is {stride}")
    done = number = 0
    while done < total:
        start = number * stride
        end = min(start + window, total)
        yield number, start, done, end
        number, done = number + 1, end


def _window(network: Network, tokens: Tensor, start: int, done: int, end: int) -> npt.NDArray[np.float64]:
    """Read `tokens` (seq,) from `start` to `end`; score those that follow position `done` and later ones."""
    log_probs = np.empty(end - done)
    with evaluating(network):
        hidden = network.hidden(tokens[None, start:end])[0]
        for first in range(done, end, _HEAD_ROWS):
            stop = min(first + _HEAD_ROWS, end)
            logits = network.head(hidden[first - start : stop - start])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses = F.cross_entropy(logits, tokens[first + 1 : stop + 1], reduction="none")
            log_probs[first - done : stop - done] = -losses.double().cpu().numpy()
    return log_probs
