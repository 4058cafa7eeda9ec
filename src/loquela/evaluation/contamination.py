"""Were the test items in the training text? Overlap of word n-grams, as GPT-3's authors measured (arXiv:2005.14165, C).

Only the n-grams of the test are in memory; the training text streams past and may be of any size. Tokens that `loquela
data build` made are decoded again: where a token begins depends on what stands around a text, where a word begins does
not. What their tokenizer does not keep (case, accents, unknown words) is taken from the test items too, which go the
same way through it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loquela.data.built import document_ends, is_built, open_built
from loquela.data.readers import Piece, read_pieces
from loquela.data.tag_rows import tagging
from loquela.errors import UsageError
from loquela.evaluation.results import TaskResult, summarise
from loquela.evaluation.rows import Row, read_rows
from loquela.evaluation.task import Task
from loquela.prompting.templates import fill
from loquela.text.tokenizer import Tokenizer

__all__ = ["Overlap", "built_pieces", "item_texts", "overlap", "overlap_of", "report", "training_pieces", "words"]

LONGEST, SHORTEST = 13, 8
"""Words of an n-gram, and of the shortest text that is looked for as a whole: fewer are found by chance."""
_WORD = re.compile(r"\w+")
_FIELD = re.compile(r"\{([^{}|]+)[^{}]*\}")
_TOKENS = 1 << 16
"""Tokens that are decoded at once."""
_BESIDE, _TRIED = 16, 256
"""Tokens on both sides that show whether a place is between two words, and places that are tried."""


@dataclass(frozen=True)
class Overlap:
    """Which items share an n-gram with the training text. `unchecked` are too short to tell."""

    contaminated: frozenset[int]
    unchecked: frozenset[int]
    checked: int
    training_words: int


def words(text: str) -> list[str]:
    """Return the words of a text as they are compared: without case and punctuation."""
    return _WORD.findall(text.lower())


def item_texts(task: Task, rows: Sequence[Row]) -> dict[int, list[str]]:
    """Return the texts of each row that its prompt or answer shows, each by itself and without the template's words."""
    if task.kind == "tag":
        return {i: [" ".join(tagging(row).words)] for i, row in enumerate(rows)}
    templates = [*(task.prompt if isinstance(task.prompt, list) else [task.prompt]), task.target, task.text, task.pair]
    fields = list(dict.fromkeys(f for template in templates if template for f in _FIELD.findall(template)))
    return {i: [fill(f"{{{field}}}", row) for field in fields] for i, row in enumerate(rows)}


def training_pieces(path: Path) -> Iterator[Piece]:
    """Yield the training text of a file: a plain text as it is, of rows every text that stands in them."""
    if not path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json", ".csv", ".tsv")):
        yield from read_pieces(path)
        return
    rows = read_rows(path)
    if path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv")):  # what it calls a header may be a row
        columns = [str(i) for i in range(len(rows[0]))] if rows else ["0"]
        rows = read_rows(path, columns=columns)
    for row in rows:
        yield Piece("\n".join(_texts(row)), ends_document=True)


def built_pieces(directory: Path) -> tuple[Iterator[Piece], Tokenizer]:
    """Return the text of what a directory of `loquela data build` holds to be learnt from, and its tokenizer.

    Raises `DataError` unless every byte is as it was written.
    """
    corpus, tokenizer = open_built(directory)
    return _decoded(corpus.train.tokens, document_ends(directory, "train"), tokenizer), tokenizer


def _decoded(tokens: Any, ends: npt.NDArray[np.int64], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Decode document by document; a long one in pieces that end with a word."""
    start = 0
    for end in map(int, ends):  # one at a time: of many documents the index is large
        while start < end:
            ids = [int(token) for token in tokens[start : min(end, start + _TOKENS)]]
            kept = len(ids) if start + len(ids) == end else _between_words(ids, tokenizer)
            start += kept
            yield Piece(tokenizer.decode(ids[:kept]), ends_document=start == end)


def _between_words(ids: list[int], tokenizer: Tokenizer) -> int:
    """Return the last place at which `ids` can be cut so that both parts have the words of the whole."""
    for place in range(len(ids) - _BESIDE, max(0, len(ids) - _BESIDE - _TRIED), -1):
        before, after = ids[max(0, place - _BESIDE) : place], ids[place : place + _BESIDE]
        apart = words(tokenizer.decode(before)) + words(tokenizer.decode(after))
        if apart == words(tokenizer.decode(before + after)):
            return place
    return len(ids)  # a word of hundreds of tokens is cut


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def overlap_of(items: Mapping[int, Sequence[str]], sources: Sequence[Path], *, n: int = LONGEST) -> Overlap:
    """Return the items that share an n-gram with one of the sources: files, or directories of `loquela data build`."""
    files = [source for source in sources if not is_built(source)]
    found = [overlap(items, chain.from_iterable(map(training_pieces, files)), n=n)]
    for source in sources:
        if is_built(source):
            pieces, tokenizer = built_pieces(source)
            found.append(overlap(_as_kept(items, tokenizer), pieces, n=n))
    unchecked = found[0].unchecked if files else frozenset.intersection(*(one.unchecked for one in found[1:]))
    return Overlap(
        frozenset.union(*(one.contaminated for one in found)),
        unchecked,
        len(items) - len(unchecked),
        sum(one.training_words for one in found),
    )


def _as_kept(items: Mapping[int, Sequence[str]], tokenizer: Tokenizer) -> dict[int, list[str]]:
    """Return the texts as a tokenizer gives them back."""
    return {
        item: [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts, add_special_tokens=False)]
        for item, texts in items.items()
    }


def overlap(items: Mapping[int, Sequence[str]], training: Iterable[Piece], *, n: int = LONGEST) -> Overlap:
    """Return the items of which one text shares `n` words in a row with the training text.

    A text of fewer than `n` words is looked for whole, down to 8. Raises `UsageError` for an n below that.
    """
    if n < SHORTEST:
        raise UsageError(f"n-grams must have at least {SHORTEST} words, but have {n}: fewer are found by chance")
    wanted: dict[int, dict[tuple[str, ...], set[int]]] = {}
    unchecked = set()
    for item, texts in items.items():
        found = False
        for text in map(words, texts):
            size = min(n, len(text))
            if size >= SHORTEST:
                found = True
                grams = wanted.setdefault(size, {})
                for i in range(len(text) - size + 1):
                    grams.setdefault(tuple(text[i : i + size]), set()).add(item)
        if not found:
            unchecked.add(item)
    hit: set[int] = set()
    count = 0
    for stretch, fresh in _stretches(training, n - 1):
        count += fresh
        for size, grams in wanted.items():
            for i in range(len(stretch) - size + 1):
                items_of = grams.get(tuple(stretch[i : i + size]))
                if items_of is not None:
                    hit |= items_of
    return Overlap(frozenset(hit), frozenset(unchecked), len(items) - len(unchecked), count)


def _stretches(pieces: Iterable[Piece], keep: int) -> Iterator[tuple[list[str], int]]:
    """Yield the words of each piece after the last `keep` of the piece before it, and how many are new."""
    before: list[str] = []
    for piece in pieces:
        fresh = words(piece.text)
        stretch = before + fresh
        yield stretch, len(fresh)
        before = [] if piece.ends_document else stretch[-keep:]


def report(task: Task, result: TaskResult, found: Overlap) -> dict[str, Any]:
    """Return what the overlap means for a result: its size, and the score of the items that are clean."""
    asked = {record["item"] for record in result.records} if task.kind != "perplexity" else set()
    hit = found.contaminated & asked if asked else found.contaminated
    clean = [record for record in result.records if record["item"] not in found.contaminated]
    said: dict[str, Any] = {
        "items": len(hit),
        "share": len(hit) / max(1, len(asked) or found.checked),
        "unchecked": len(found.unchecked & asked if asked else found.unchecked),
        "training_words": found.training_words,
    }
    if asked and hit and clean:
        score = summarise(task, clean)
        said["clean"] = {score.metric: score.score, "ci95": list(score.ci95), "n": score.n}
    return said
