"""A label for each word of a text, from an encoder with a head for that (…ForTokenClassification)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loquela.errors import ContextWindowError, UsageError
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.models.encoder_only import EncoderOnly
from loquela.text.tokenizer import Tokenizer

__all__ = ["TaggedWord", "Words", "encode_words", "tag", "words_of"]

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class TaggedWord:
    """A word, the label that fits it best, and its log-probability."""

    word: str
    tag: str
    log_prob: float


@dataclass(frozen=True)
class Words:
    """A text as its model reads it: `ids`, and where the first token of each word stands (None: it has no token)."""

    words: tuple[str, ...]
    ids: list[int]
    places: list[int | None]


def words_of(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text begin and end: letters and digits in a row, and each other mark by itself."""
    return [found.span() for found in _WORD.finditer(text)]


def encode_words(tokenizer: Tokenizer, words: Sequence[str] | str) -> Words:
    """Encode words with a blank between each two, or a text as it is, whose words are those of `words_of`.

    A word is labelled at its first token: of a token that begins with blanks, what follows them counts.
    """
    if isinstance(words, str):
        text, spans = words, words_of(words)
    else:
        text, spans, at = " ".join(words), [], 0
        for word in words:
            spans.append((at, at + len(word)))
            at += len(word) + 1
    encoding = tokenizer.backend.encode(text)
    places: list[int | None] = [None] * len(spans)
    at = 0
    for place, (start, end) in enumerate(encoding.offsets):
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if start >= end:
            continue  # special, or nothing but blanks
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        if at < len(spans) and places[at] is None and end > spans[at][0]:
            places[at] = place
    return Words(tuple(text[start:end] for start, end in spans), encoding.ids, places)


def tag(network: Network, tokenizer: Tokenizer, words: Sequence[str] | str) -> list[TaggedWord]:
    """Label each word of a sentence, given as words or as a text; a word without a token gets O.

    Raises `UsageError` for a model that does not label words, `ContextWindowError`.
    """
    if not isinstance(network, EncoderOnly) or network.task != "token-classification":
        raise UsageError(
            f"labels of words need a model for token classification, but this is a {network.config.model_type} for "
            f"{network.task if isinstance(network, EncoderOnly) else 'writing'}"
        )
    encoded = encode_words(tokenizer, words)
    if len(encoded.ids) > network.context_length:
        raise ContextWindowError(
            f"a text must fit the context window of {network.context_length} tokens, but has {len(encoded.ids)}"
        )
    with evaluating(network):
        device = next(network.parameters()).device
        logits = network(torch.tensor([encoded.ids], device=device))[0].float().log_softmax(-1)  # (seq, labels)
    best = logits.max(-1)
    none = "O" if "O" in network.labels else network.labels[0]
    return [
        TaggedWord(word, none, 0.0)
        if place is None
        else TaggedWord(word, network.labels[int(best.indices[place])], float(best.values[place]))
        for word, place in zip(encoded.words, encoded.places, strict=True)
    ]
