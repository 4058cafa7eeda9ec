"""Sentences whose words have tags, asked of a model that tags words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from loquela.data.tag_rows import tagging
from loquela.errors import DataError, UsageError
from loquela.evaluation.items import Item
from loquela.evaluation.record import Record
from loquela.evaluation.spans import entity_f1, has_entities
from loquela.evaluation.statistics import interval, interval_of
from loquela.evaluation.subject import Subject, cannot

__all__ = ["Tagger", "tag_scores"]

_RESAMPLES = 300


class Tagger:
    """Asks for the tag of every word of a sentence."""

    def __init__(self, subject: Subject, rows: Sequence[dict[str, Any]], shots: int) -> None:
        if subject.kind != "tagger":
            raise cannot(subject.name, "labels words")
        if shots:
            raise UsageError(f"a model that labels words is shown no examples, so shots must be 0, but is {shots}")
        asked = {tag for row in rows for tag in tagging(row).tags}
        if not asked & set(subject.labels()):
            raise UsageError(
                f"the labels of {subject.name} must be those of the rows ({', '.join(sorted(asked))[:200]}), but are "
                f"{', '.join(subject.labels())[:200]}"
            )
        self.subject = subject

    def __call__(self, asked: Item) -> Record:
        """Return the tags that are right, and those that the model gives."""
        try:
            sentence = tagging(asked.row)
        except DataError as error:
            raise DataError(f"row {asked.number + 1} {error}") from None
        return {"gold": list(sentence.tags), "predicted": self.subject.tag(sentence.words)}


def tag_scores(
    records: Sequence[Record],
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, float]]:
    """Return scores, their intervals (sentences are drawn), and what the commonest tag alone would reach."""
    gold, said = [record["gold"] for record in records], [record["predicted"] for record in records]
    right = np.array([sum(map(str.__eq__, a, b)) for a, b in zip(gold, said, strict=True)], np.float64)
    words = np.array([len(tags) for tags in gold], np.float64)
    counts = Counter(tag for tags in gold for tag in tags)
    scores, intervals = {"accuracy": math.fsum(right) / words.sum()}, {"accuracy": interval(right, words)}
    majority = {"accuracy": max(counts.values()) / words.sum()}
    if has_entities([*counts, *(tag for tags in said for tag in tags)]):

        def f1(draw: Any) -> float:
            return entity_f1([gold[i] for i in draw], [said[i] for i in draw])

        scores["entity_f1"], majority["entity_f1"] = f1(range(len(gold))), 0.0
        intervals["entity_f1"] = interval_of(f1, len(gold), _RESAMPLES)
    return scores, intervals, majority
