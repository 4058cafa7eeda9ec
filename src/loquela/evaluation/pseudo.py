"""Pseudo-perplexity: how well a masked language model expects a text (Salazar et al., 2020; arXiv:1910.14659).

Each token is hidden in turn and predicted from all others of its sentence, those after it included; the pseudo-log-
likelihood of a text is the sum. It is no probability of the text: the figures compare masked models with each other,
and are far below the perplexity of a model that writes. A sentence is a line; one that is longer than the window is cut
into blocks. Bits per byte are those of the pseudo-log-likelihood.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loquela.data.readers import Piece
from loquela.errors import DataError, TokenizerError, UsageError
from loquela.evaluation.masked import around, predicted
from loquela.evaluation.perplexity import Score, finite_sum
from loquela.models.base import Network
from loquela.models.encoder_only import EncoderOnly
from loquela.text.tokenizer import Tokenizer

__all__ = ["NOTE", "Lines", "prepare_lines", "pseudo_log_probs", "pseudo_score"]

NOTE = (
    "pseudo-perplexity: each token is predicted from those before and after it in its line, so it compares with that "
    "of other masked models only (arXiv:1910.14659)"
)


@dataclass(frozen=True)
class Lines:
    """A text as a masked model reads it: blocks of tokens without what stands around them, and the bytes of each."""

    blocks: list[list[int]]
    n_bytes: list[int]
    window: int
    """Tokens of the longest block that there may be."""
    notes: tuple[str, ...]


def prepare_lines(
    network: Network, tokenizer: Tokenizer, text: str | Iterable[Piece], *, window: int | None = None
) -> Lines:
    """Return the lines of a text, those without a token left out; raises `DataError` where none is left.

    `window` is the most tokens of a block: unless given, what the context window leaves beside [CLS] and [SEP].
    """
    if not isinstance(network, EncoderOnly) or network.task != "fill-mask":
        raise UsageError(f"a text is scored by a model with a language head, but {network.config.model_type} has none")
    if tokenizer.mask_id is None:
        raise TokenizerError("a masked language model needs a tokenizer with a mask token, but this one names none")
    longest = network.context_length - sum(map(len, around(tokenizer)))
    if window is not None and not 1 <= window <= longest:
        raise UsageError(
            f"window must be from 1 to the {longest} tokens that fit between special ones, but is {window}"
        )
    window = longest if window is None else window
    lines = [line for line in map(str.strip, _lines(text)) if line]
    rows = tokenizer.encode_batch(lines, add_special_tokens=False)
    blocks, n_bytes, cut = [], [], 0
    for line, row in zip(lines, rows, strict=True):
        cut += len(row) > window
        size, sizes = len(line.encode()), [len(row[i : i + window]) for i in range(0, len(row), window)]
        for number, length in enumerate(sizes):
            blocks.append(row[number * window : number * window + length])
            n_bytes.append(size * sum(sizes[: number + 1]) // len(row) - size * sum(sizes[:number]) // len(row))
    if not blocks:
        raise DataError("a text must have a token to score, but has none")
    notes = [
        NOTE,
        *([f"{cut} lines are longer than the window and were cut into blocks of {window} tokens"] if cut else []),
    ]
    if tokenizer.unk_id is not None and (unknown := sum(block.count(tokenizer.unk_id) for block in blocks)):
        notes.append(f"{unknown} tokens are unknown to this tokenizer; what they hid costs nothing here")
    return Lines(blocks, n_bytes, window, tuple(notes))


def _lines(text: str | Iterable[Piece]) -> Iterator[str]:
    """Yield the lines of a text, given whole or in pieces; a document ends a line."""
    left = ""
    for piece in [Piece(text, ends_document=True)] if isinstance(text, str) else text:
        *whole, left = (left + piece.text).split("\n")
        yield from whole
        if piece.ends_document:
            yield left
            left = ""
    yield left


def pseudo_log_probs(
    network: Network, tokenizer: Tokenizer, blocks: Sequence[Sequence[int]], *, skip: Container[int] = ()
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Yield each block's number and the log-probability of each of its tokens given all others.

    The blocks are computed one by one, so no figure depends on what stands beside it.
    """
    lead, tail = around(tokenizer)
    mask = tokenizer.mask_id
    assert mask is not None  # else there were no blocks
    for number, block in enumerate(blocks):
        if number not in skip:
            ids, where = [*lead, *block, *tail], range(len(lead), len(lead) + len(block))
            yield number, predicted(network, ids, where, mask)[0]


def pseudo_score(
    network: Network, tokenizer: Tokenizer, text: str | Iterable[Piece], *, window: int | None = None
) -> Score:
    """Return the pseudo-log-likelihood of a text; `Score.perplexity` is its pseudo-perplexity."""
    lines = prepare_lines(network, tokenizer, text, window=window)
    log_probs = np.concatenate([part for _, part in pseudo_log_probs(network, tokenizer, lines.blocks)])
    return Score(
        tokens=len(log_probs),
        log_prob=finite_sum(log_probs),
        n_bytes=sum(lines.n_bytes),
        window=lines.window,
        stride=lines.window,
        notes=lines.notes,
        ids=np.array([token for block in lines.blocks for token in block], dtype=np.int64),
        log_probs=log_probs,
        pseudo=True,
    )
