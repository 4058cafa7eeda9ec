"""A tokenizer trained on files of any size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from loquela.data import corpora
from loquela.data.gather import Gathering
from loquela.data.readers import measure, read_pieces
from loquela.data.splits import split_at
from loquela.text.tokenizer import Tokenizer

__all__ = ["bytes_per_token", "tokenizer_of", "train_tokenizer"]

SAMPLE = 1 << 25
"""Characters that a vocabulary is learnt from at most; more of the same language changes it little."""


def train_tokenizer(
    data: str | Path | Sequence[str | Path],
    kind: str,
    vocab_size: int | None = None,
    *,
    encoding: str = "utf-8",
    validation_fraction: float = 0.0,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    sample: int = SAMPLE,
) -> Tokenizer:
    """Train a tokenizer on the files or corpora `data`, all but the last `validation_fraction` of each.

    Of more than `sample` characters, an evenly spread sample is read, and the tokenizer's `note` says so. `char` reads
    everything, the held-out text included: a character is either in the alphabet or unknown. Raises what
    `read_pieces` and `Tokenizer.train` raise.
    """
    files = [data] if isinstance(data, (str, Path)) else data
    sources = [measure(corpora.resolve(file), encoding=encoding) for file in files]
    notes = [note for source in sources for note in source.notes]
    total = sum(source.characters for source in sources)
    everything = kind in ("char", "byte")

    def texts() -> Iterator[str]:
        for source in sources:
            stop = None if everything else split_at(source.size, validation_fraction)
            for piece in read_pieces(source.path, encoding=encoding, stop=stop):
                yield piece.text

    return _trained(kind, texts(), vocab_size, special_tokens, total, total if everything else sample, notes)


def tokenizer_of(
    documents: Gathering, vocab_size: int, *, special_tokens: Sequence[str], sample: int = SAMPLE
) -> Tokenizer:
    """Train a BPE on documents as they will be tokenised: the same column, the same rows left out; read twice.

    Raises what going through `documents` and `Tokenizer.train` raise.
    """
    total = sum(len(piece.text) for _, piece in documents)
    texts = (piece.text for _, piece in documents)
    return _trained("bpe", texts, vocab_size, special_tokens, total, sample, [])


def _trained(
    kind: str,
    texts: Iterable[str],
    vocab_size: int | None,
    special_tokens: Sequence[str],
    total: int,
    sample: int,
    notes: list[str],
) -> Tokenizer:
    """Train on at most `sample` of `total` characters, evenly spread; what is to be said stands in its `note`."""
    if total > sample:
        notes.append(f"the vocabulary is learnt from an evenly spread sample of {sample:,} of {total:,} characters")
    chosen = _spread(texts, min(1.0, sample / max(1, total)))
    tokenizer = Tokenizer.train(kind, chosen, vocab_size, special_tokens=special_tokens)
    notes.extend([tokenizer.note] if tokenizer.note else [])
    tokenizer.note = "; ".join(notes) or None
    return tokenizer


def _spread(texts: Iterable[str], share: float) -> Iterator[str]:
    """Yield so many of the texts that they hold a share of all characters."""
    due = 0.0
    for text in texts:
        due += share * len(text)
        if due >= len(text):
            due -= len(text)
            yield text


def bytes_per_token(tokenizer: Tokenizer, data: Sequence[str | Path], *, encoding: str = "utf-8") -> float:
    """Return how many bytes of UTF-8 a token stands for, on the first million characters or so of each file."""
    n_bytes = n_tokens = 0
    for file in data:
        pieces = read_pieces(corpora.resolve(file), encoding=encoding)
        texts = [piece.text for piece in itertools.islice(pieces, 32)]
        n_bytes += sum(len(text.encode()) for text in texts)
        n_tokens += sum(map(len, tokenizer.encode_batch(texts, add_special_tokens=False)))
    return n_bytes / max(1, n_tokens)
