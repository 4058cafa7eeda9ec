"""The kinds of tokenizer that can be trained, one function each; a new kind is one more.

| kind | vocabulary | what comes back from a text |
|---|---|---|
| bpe | bytes, then the pairs merged most often (Sennrich et al., arXiv:1508.07909; on bytes, as GPT-2) | any text |
| unigram | bytes, then the pieces of the likeliest cut (Kudo, arXiv:1804.10959; on bytes too) | any text |
| byte | the 256 bytes | any text |
| char | the characters of the text | its characters; another is `<unk>` |
| wordpiece | BERT's pieces of words (Schuster and Nakajima, 2012) | its words, any white space as one blank |
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from loquela.errors import TokenizerError, UsageError, nearest

__all__ = ["DEFAULT_VOCAB_SIZE", "KINDS", "train"]

DEFAULT_VOCAB_SIZE = 4096
"""Pieces that fit a small model; of a text of some megabytes each is seen often enough to learn."""

_BYTES = 256
Recipe = Callable[[Iterable[str], "int | None", list[str]], tokenizers.Tokenizer]


def _byte_level(model: models.Model, *, words: bool = True) -> tokenizers.Tokenizer:
    """Every byte is a printable character to the model; `words` cuts as GPT-2 does before any piece is sought."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _room(vocab_size: int | None, least: int, why: str) -> int:
    size = DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size
    if size < least:
        raise UsageError(f"vocab_size must be at least {least} ({why}), but is {size}")
    return size


def _bpe(texts: Iterable[str], vocab_size: int | None, special: list[str]) -> tokenizers.Tokenizer:
    size = _room(vocab_size, _BYTES + len(special), f"256 bytes and {len(special)} special tokens")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,  # a pair seen once teaches nothing
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts: Iterable[str], vocab_size: int | None, special: list[str]) -> tokenizers.Tokenizer:
    size = _room(vocab_size, _BYTES + len(special), f"256 bytes and {len(special)} special tokens")
    tokenizer = _byte_level(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learnt = {piece: score for piece, score in _model(tokenizer)["vocab"] if piece not in special}
    tokenizer = _byte_level(
        models.Unigram(vocab=[*((s, 0.0) for s in special), *_settled(learnt, size - len(special))])
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def _settled(learnt: dict[str, float | None], size: int) -> list[tuple[str, float]]:
    """Return all bytes and the best of the other pieces, by falling score, free of what differs from run to run.

    The library walks a hash table, whose order is random: sums differ in their last bits, and bytes that the text
    lacks share out some 256 scores, 0.0001 apart, just above the lowest; here they all get the lowest.
    """
    known = [score for score in learnt.values() if score is not None]  # None: nothing was left to compare with
    lowest = min(known, default=0.0)
    scores = {piece: lowest if score is None else round(score, 9) for piece, score in learnt.items()}
    for piece, score in scores.items():
        if len(piece) == 1 and score < lowest + _BYTES * 0.0001:
            scores[piece] = round(lowest, 9)
    order = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    best = set([item for item in order if len(item[0]) > 1][: size - _BYTES])
    return [item for item in order if len(item[0]) == 1 or item in best]


def _byte(texts: Iterable[str], vocab_size: int | None, special: list[str]) -> tokenizers.Tokenizer:
    size = _BYTES + len(special)
    if vocab_size is not None:
        _room(vocab_size, size, f"256 bytes and {len(special)} special tokens")
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = _byte_level(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]), words=False)
    tokenizer.add_special_tokens(special)
    return tokenizer


def _char(texts: Iterable[str], vocab_size: int | None, special: list[str]) -> tokenizers.Tokenizer:
    unknown = "<unk>"
    special = special if unknown in special else [*special, unknown]
    seen: Counter[str] = Counter()
    for text in texts:
        seen.update(text)
    if vocab_size is not None:
        _room(vocab_size, len(special) + 1, f"one character and {len(special)} special tokens, {unknown} among them")
    room = len(seen) if vocab_size is None else vocab_size - len(special)
    pieces = [*special, *_most_frequent(seen, seen, room)]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], unk_token=unknown)
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _wordpiece(texts: Iterable[str], vocab_size: int | None, special: list[str]) -> tokenizers.Tokenizer:
    unknown = "[UNK]"
    special = special if unknown in special else [*special, unknown]
    size = _room(vocab_size, len(special) + 2, f"some pieces and {len(special)} special tokens, {unknown} among them")
    texts = list(texts)
    seen: Counter[str] = Counter()
    for text in texts:
        seen.update(text)
    # Every character gets a piece at the beginning of a word and one inside, as ##c: a word of them is never unknown.
    alphabet = _most_frequent((c for c in seen if not c.isspace()), seen, (size - len(special)) // 2)
    inside = [f"##{c}" for c in alphabet]
    tokenizer = _words(models.WordPiece(unk_token=unknown))
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[*special, *inside],  # named here, or else numbered in the random order of a hash table
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _words(models.WordPiece(vocab=_model(tokenizer)["vocab"], unk_token=unknown))
    tokenizer.add_special_tokens(special)
    return tokenizer


def _words(model: models.Model) -> tokenizers.Tokenizer:
    """BERT's words, case and accents kept."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def _most_frequent(pieces: Iterable[str], counts: Counter[str], size: int) -> list[str]:
    return sorted(sorted(pieces, key=lambda piece: (-counts[piece], piece))[:size])


def _model(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


_RECIPES: dict[str, Recipe] = {
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
    "char": _char,
    "byte": _byte,
}
KINDS = tuple(_RECIPES)


def train(
    kind: str, texts: Iterable[str], vocab_size: int | None, special_tokens: Sequence[str]
) -> tuple[tokenizers.Tokenizer, str | None]:
    """Train a tokenizer of one of `KINDS`; return it and what is to be said aloud about it.

    Raises `UsageError` for an unknown kind and a `vocab_size` that cannot hold what the kind always needs,
    `TokenizerError` for a text without any character.
    """
    if kind not in _RECIPES:
        raise UsageError(
            f"the kind of a tokenizer must be one of {', '.join(KINDS)}, but is {kind!r}{nearest(kind, KINDS)}"
        )
    marks = re.compile("|".join(map(re.escape, special_tokens)) or r"(?!)")
    empty = True

    def said() -> Iterator[str]:
        nonlocal empty
        for text in texts:
            for part in marks.split(text):  # a special token in the text is no text to learn from
                if part:
                    empty = False
                    yield part

    tokenizer = _RECIPES[kind](said(), vocab_size, list(special_tokens))
    if kind != "byte" and empty:
        raise TokenizerError("a tokenizer must have text to learn from, but the text is empty")
    size = tokenizer.get_vocab_size()
    note = None
    if vocab_size is not None and size < vocab_size:
        note = f"the text supports {size:,} {kind} tokens, not the {vocab_size:,} asked for; using {size:,}"
    return tokenizer, note
