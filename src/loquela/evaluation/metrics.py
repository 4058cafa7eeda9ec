"""What answers are worth: each metric of generated text, of labels and of rankings, by its usual name.

BLEU and chrF are sacrebleu's, ROUGE is rouge-score's. The rest is short enough to stand here.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loquela.errors import UsageError, nearest

__all__ = [
    "CORPUS_METRICS",
    "ITEM_METRICS",
    "TEXT_METRICS",
    "accuracy",
    "f1_squad",
    "macro_f1",
    "matthews",
    "ndcg",
    "normalised",
    "recall",
    "reciprocal_rank",
    "text_metric",
]

CorpusScore: TypeAlias = "Callable[[Sequence[int] | npt.NDArray[np.int64]], float]"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


# -- labels


def accuracy(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return the share of answers that are right."""
    return sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold)


def macro_f1(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return the mean of each label's F1; a label that is neither asked nor answered does not count."""
    scores = []
    for label in set(gold) | set(predicted):
        right = sum(g == p == label for g, p in zip(gold, predicted, strict=True))
        scores.append(2 * right / (sum(g == label for g in gold) + sum(p == label for p in predicted)))
    return math.fsum(scores) / len(scores)


def matthews(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return Matthews' correlation: 1 all right, 0 as by chance (doi:10.1016/0005-2795(75)90109-9; several labels:
    Gorodkin, 2004). It is 0 where only one label is asked or answered.
    """
    n = len(gold)
    right = sum(g == p for g, p in zip(gold, predicted, strict=True))
    asked, answered = Counter(gold), Counter(predicted)
    both = sum(asked[label] * answered[label] for label in asked)
    spread = (n * n - sum(c * c for c in asked.values())) * (n * n - sum(c * c for c in answered.values()))
    return (right * n - both) / math.sqrt(spread) if spread else 0.0


# -- generated text, item by item


def normalised(text: str) -> str:
    """Return a short answer without case, punctuation, articles and doubled blanks, as SQuAD compares them."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())


def f1_squad(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 of the words that an answer shares with one of the references (arXiv:1606.05250)."""
    return max(_shared(normalised(answer).split(), normalised(reference).split()) for reference in references)


def _shared(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference))


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the answer, normalised, is one of the references."""
    return float(normalised(answer) in {normalised(reference) for reference in references})


def exact_text(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the answer is one of the references, white space around it aside."""
    return float(answer.strip() in {reference.strip() for reference in references})


def exact_number(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the answer is the same number as one of the references."""
    value = _number(answer)
    return float(value is not None and value in {_number(reference) for reference in references})


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", "").replace("$", "").strip().rstrip("."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _rouge(kind: str) -> Callable[[str, Sequence[str]], float]:
    def score(answer: str, references: Sequence[str]) -> float:
        return float(_rouge_scorer(kind).score_multi(list(references), answer)[kind].fmeasure)

    score.__doc__ = f"Return the F-measure of {kind} (Lin, 2004), with stemming, the best over the references."
    return score


_scorers: dict[str, Any] = {}


def _rouge_scorer(kind: str) -> Any:
    if kind not in _scorers:
        _scorers[kind] = import_module("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=True)
    return _scorers[kind]


ITEM_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "exact_text": exact_text,
    "exact_number": exact_number,
    "f1": f1_squad,
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
}
"""(answer, references) → 0 to 1, for each item; the task's score is their mean."""

# -- generated text, all items together


def _corpus_metric(kind: str) -> Callable[[Sequence[str], Sequence[Sequence[str]]], CorpusScore]:
    def count(answers: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScore:
        metric = getattr(import_module("sacrebleu.metrics"), kind)()
        # What corpus_score does inside: per item the numbers that are summed up, so that a resample costs a sum.
        counted = metric._extract_corpus_statistics(list(answers), _columns(references))
        return lambda items: float(metric._aggregate_and_compute([counted[i] for i in items]).score)

    count.__doc__ = f"Return sacrebleu's {kind} of any of the items, by their numbers."
    return count


def _columns(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Turn references per item into sacrebleu's streams; an item with fewer than the most has None."""
    most = max(map(len, references))
    return [[item[i] if i < len(item) else None for item in references] for i in range(most)]


CORPUS_METRICS = {"bleu": _corpus_metric("BLEU"), "chrf": _corpus_metric("CHRF")}
"""(answers, references) → what gives the score, 0 to 100, of the items with the numbers it is handed."""

TEXT_METRICS = (*ITEM_METRICS, *CORPUS_METRICS)


def text_metric(name: str) -> str:
    """Return `name`; raises `UsageError` when no metric of generated text has it."""
    if name not in TEXT_METRICS:
        raise UsageError(
            f"a metric of generated text must be one of {', '.join(TEXT_METRICS)}, but is {name!r}"
            f"{nearest(name, TEXT_METRICS)}"
        )
    return name


# -- rankings


def ndcg(relevances: Sequence[float], k: int = 10) -> float:
    """Return the normalised discounted gain of a ranking's first k (Järvelin and Kekäläinen, 2002).

    `relevances` are those of all documents, in the order of the ranking.
    """
    ideal = _gain(sorted(relevances, reverse=True)[:k])
    return _gain(relevances[:k]) / ideal if ideal else 0.0


def _gain(relevances: Sequence[float]) -> float:
    return math.fsum(relevance / math.log2(rank + 2) for rank, relevance in enumerate(relevances))


def recall(relevances: Sequence[float], k: int) -> float:
    """Return the share of the relevant documents that are among a ranking's first k."""
    relevant = sum(r > 0 for r in relevances)
    return sum(r > 0 for r in relevances[:k]) / relevant if relevant else 0.0


def reciprocal_rank(relevances: Sequence[float]) -> float:
    """Return 1 / rank of the first relevant document, 0 without one."""
    return next((1 / rank for rank, relevance in enumerate(relevances, 1) if relevance > 0), 0.0)
