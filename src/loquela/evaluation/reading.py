"""A task that reads one text: a record for each window (or line), all of which together are its perplexity."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loquela.data.readers import read_pieces
from loquela.errors import UsageError
from loquela.evaluation.local import LocalSubject
from loquela.evaluation.perplexity import Prepared, finite_sum, prepare, score_windows, spans
from loquela.evaluation.plan import Settings
from loquela.evaluation.pseudo import prepare_lines, pseudo_log_probs
from loquela.evaluation.record import Record
from loquela.evaluation.remote import RemoteSubject
from loquela.evaluation.remote_text import RemoteTokens, remote_window, remote_windows
from loquela.evaluation.rows import sample
from loquela.evaluation.subject import Subject, cannot

__all__ = ["windows"]

Source: TypeAlias = "Iterator[tuple[int, Record, bool]]"
Scored: TypeAlias = "Iterable[tuple[int, npt.NDArray[np.float64]]]"
_LONGEST_WINDOW = 4096
"""Tokens of a window where a model's own is longer: an n-gram model's has no end."""


def windows(
    subject: Subject, task: str, file: Path, settings: Settings, done: dict[int, Record], notes: list[str]
) -> tuple[Source, int]:
    """Return the records of a text, those in `done` as they are, and how many they are.

    A model that writes reads overlapping windows, here or behind a URL; a masked model reads line by line. Raises
    `UsageError` for any other.
    """
    if settings.shots:
        raise UsageError(f"task {task} reads a text, so shots must be 0, but is {settings.shots}")
    if isinstance(subject, RemoteSubject):
        tokens = RemoteTokens(subject)
        window = min(remote_window(tokens, None), _LONGEST_WINDOW)
        text, stride = _limited(prepare(tokens, read_pieces(file, notes=notes)), window, settings.limit, notes)
        found = remote_windows(subject, text.ids, window=window, stride=stride, skip=done)
        return _records(found, done, {"bytes": text.n_bytes}), _count(text, window, stride)
    if not isinstance(subject, LocalSubject) or subject.kind not in ("decoder", "encoder"):
        raise cannot(subject.name, "writes from left to right, or fills masks,")
    network, tokenizer = subject.network, subject.tokenizer
    more: Record = {"vocabulary": network.vocab_size}
    if subject.kind == "encoder":
        lines = prepare_lines(network, tokenizer, read_pieces(file, notes=notes))
        notes += lines.notes
        numbers = sample(lines.blocks, settings.limit)
        more |= {"pseudo": True, "bytes": sum(lines.n_bytes[number] for number in numbers)}
        skip = _Others(numbers, done)
        return _records(
            _inside(subject, pseudo_log_probs(network, tokenizer, lines.blocks, skip=skip)), done, more
        ), len(numbers)
    window = min(subject.window or _LONGEST_WINDOW, _LONGEST_WINDOW)
    text, stride = _limited(prepare(tokenizer, read_pieces(file, notes=notes)), window, settings.limit, notes)
    found = score_windows(network, text.ids, window=window, stride=stride, skip=done)
    return _records(_inside(subject, found), done, more | {"bytes": text.n_bytes}), _count(text, window, stride)


class _Others(Container[int]):
    """All numbers but those that are asked and not yet done."""

    def __init__(self, asked: Iterable[int], done: Container[int]) -> None:
        self._left = {number for number in asked if number not in done}

    def __contains__(self, number: object) -> bool:
        return number not in self._left


def _limited(text: Prepared, window: int, limit: int | None, notes: list[str]) -> tuple[Prepared, int]:
    """Return the tokens of the first `limit` windows, and how far one begins behind another; say both."""
    stride, ids, n_bytes = max(1, window // 2), text.ids, text.n_bytes
    if limit is not None and (most := window + (limit - 1) * stride) < len(ids) - 1:
        n_bytes = round(n_bytes * most / (len(ids) - 1))
        ids = ids[: most + 1]
        notes.append(f"the first {limit} windows only; their bytes are taken from the whole text's bytes a token")
    notes += [*text.notes, f"windows of {window} tokens, each {stride} after the last"]
    return Prepared(ids, n_bytes, text.notes), stride


def _count(text: Prepared, window: int, stride: int) -> int:
    return sum(1 for _ in spans(len(text.ids) - 1, window, stride))


def _inside(subject: LocalSubject, found: Scored) -> Scored:
    with subject.computing():
        yield from found


def _records(found: Scored, done: dict[int, Record], more: Record) -> Source:
    yield from ((number, record, False) for number, record in done.items())
    for number, log_probs in found:
        yield number, {"log_prob": finite_sum(log_probs), "tokens": len(log_probs), **more}, True
