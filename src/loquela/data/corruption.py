"""How a text is spoilt, or its parts moved, so that a model can learn to mend it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from loquela.data.batch import Ids
from loquela.data.special import Special
from loquela.errors import RecipeError, UsageError

__all__ = ["denoised", "middles_last", "spans_out"]


def spans_out(
    tokens: Ids,
    generator: np.random.Generator,
    special: Special,
    *,
    source_room: int,
    target_room: int,
    room: int,
    ratio: float,
    mean_span: float,
) -> tuple[Ids, Ids]:
    """Return a text with spans taken out, a sentinel for each, and the spans, each after its sentinel.

    Of `tokens` as many are used as fit: the source into `source_room`, the target, which one more sentinel ends, into
    `target_room`, both together into `room`. The text begins with what is kept and ends with a span.
    """
    n, noise, spans = _measures(len(tokens), source_room, target_room, room, ratio, mean_span)
    if spans >= len(special.sentinels):
        raise UsageError(
            f"span corruption of {n} tokens must have a tokenizer with {spans + 1} sentinels (<extra_id_0>, …), but "
            f"this one has {len(special.sentinels)}: train one, or set a smaller block_size"
        )
    kept, gone = _parts(n - noise, spans, generator), _parts(noise, spans, generator)
    borders = np.cumsum(np.stack((kept, gone), axis=1).ravel())
    stretches = np.split(tokens[:n], borders[:-1])  # kept, gone, kept, gone …
    source: list[Ids] = []
    target: list[Ids] = []
    for index, sentinel in enumerate(special.sentinels[:spans]):
        mark = np.array([sentinel])
        source += [stretches[2 * index], mark]
        target += [mark, stretches[2 * index + 1]]
    return np.concatenate(source), np.concatenate((*target, [special.sentinels[spans]]))


@lru_cache
def _measures(
    tokens: int, source_room: int, target_room: int, room: int, ratio: float, mean_span: float
) -> tuple[int, int, int]:
    """Return the most tokens that fit, how many of them go, and in how many spans."""
    for n in range(tokens, 1, -1):
        noise = min(max(1, round(n * ratio)), n - 1)
        spans = min(max(1, round(noise / mean_span)), noise, n - noise)
        source, target = n - noise + spans, noise + spans + 1
        if source <= source_room and target <= target_room and source + target <= room:
            return n, noise, spans
    raise RecipeError(f"block_size must leave room for two tokens and two sentinels, but leaves {min(tokens, room)}")


def _parts(total: int, parts: int, generator: np.random.Generator) -> Ids:
    """Cut `total` into so many parts of at least one, each way equally likely."""
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1 if parts > 1 else np.empty(0, np.int64)
    return np.diff(np.concatenate(([0], cuts, [total])))


def denoised(
    tokens: Ids,
    generator: np.random.Generator,
    special: Special,
    *,
    room: int,
    ratio: float,
    mean_span: float,
    permute_sentences: bool,
) -> Ids:
    """Return the noisy form of a text in at most `room` tokens: sentences shuffled, spans as one mask token each."""
    assert special.mask is not None
    if permute_sentences and len(sentences := special.sentences(tokens)) > 1:
        tokens = np.concatenate([sentences[i] for i in generator.permutation(len(sentences))])
    n = len(tokens)
    noise = min(max(1, round(ratio * n)), n)
    lengths: list[int] = []
    while noise > 0:
        drawn = min(int(generator.poisson(mean_span)), noise)
        lengths.append(drawn)
        noise -= drawn
    kept = n - sum(lengths)
    # In as many gaps between kept tokens, so that no two spans meet; of the empty ones as many as there is room for.
    most = min(kept + 1, room - kept)
    while len(lengths) > most:
        lengths.remove(0) if 0 in lengths else lengths.append(lengths.pop() + lengths.pop())
    generator.shuffle(lengths)
    gaps = np.sort(generator.choice(kept + 1, len(lengths), replace=False))
    noisy: list[Ids] = []
    place = before = 0
    for gap, length in zip(gaps.tolist(), lengths, strict=True):
        noisy += [tokens[place : place + gap - before], np.array([special.mask])]
        place, before = place + gap - before + length, gap
    return np.concatenate((*noisy, tokens[place:]))


def middles_last(tokens: Ids, generator: np.random.Generator, special: Special, *, rate: float, spm_rate: float) -> Ids:
    """Return a row of as many tokens, in which the middles of some documents stand at their end.

    Each such document is three marks longer; the last tokens of the row give way to them, never a part of a middle.
    """
    if special.fim is None:
        raise UsageError(
            "the objective fim must have a tokenizer with <fim_prefix>, <fim_middle> and <fim_suffix>: train one"
        )
    prefix, middle, suffix = (np.array([token]) for token in special.fim)
    ends = np.flatnonzero(tokens == special.eos) + 1 if special.eos is not None else np.empty(0, np.int64)
    room, row = len(tokens), list[Ids]()
    for document in np.split(tokens, ends[ends < len(tokens)]):
        moves = generator.random() < rate
        suffix_first = generator.random() < spm_rate
        end = document[-1:] if len(document) and document[-1] == special.eos else document[:0]
        text = document[: len(document) - len(end)]
        if moves and len(document) + 3 > room:  # the row ends inside this document
            text, end = text[: max(0, room - 3)], end[:0]
        if moves and len(text):
            a, b = np.sort(generator.integers(0, len(text) + 1, size=2))
            parts = (
                (prefix, suffix, text[b:], middle, text[:a], text[a:b])
                if suffix_first
                else (prefix, text[:a], suffix, text[b:], middle, text[a:b])
            )
            written = np.concatenate((*parts, end))
        else:
            written = document[:room]
        row.append(written)
        room -= len(written)
        if room <= 0:
            break
    return np.concatenate(row)[: len(tokens)]
