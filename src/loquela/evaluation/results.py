"""From records to scores: each metric with its interval, and beside it what chance and the commonest answer reach."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loquela.evaluation import metrics as m
from loquela.evaluation.record import Record
from loquela.evaluation.statistics import interval, interval_of
from loquela.evaluation.tagging import tag_scores
from loquela.evaluation.task import Task

__all__ = ["TaskResult", "item_scores", "summarise"]

_LABELS = {"accuracy": m.accuracy, "macro_f1": m.macro_f1, "matthews": m.matthews}
_CORPUS_RESAMPLES = 300  # BLEU and chrF of a resample cost a hundred times what a mean does
_FEW = 20


@dataclass(frozen=True)
class TaskResult:
    """Scores of one task. `chance` and `majority` are those of the main metric, None where there is no such thing."""

    task: str
    metric: str
    """The main metric."""
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    n: int
    chance: float | None
    majority: float | None
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()

    @property
    def score(self) -> float:
        """The main metric's value."""
        return self.scores[self.metric]

    @property
    def ci95(self) -> tuple[float, float]:
        """The main metric's interval."""
        return self.intervals[self.metric]

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints of a task."""
        return {
            **self.scores,
            "metric": self.metric,
            "ci95": list(self.ci95),
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "n": self.n,
            "chance": self.chance,
            "majority": self.majority,
            **self.details,
            "notes": list(self.notes),
        }


def item_scores(task: Task, records: Sequence[Record]) -> dict[str, list[float]]:
    """Return every metric that is a mean of items: its values, in the order of the records."""
    first = records[0]
    if task.kind == "choice":
        return _choice_scores(records)
    if task.kind == "retrieve":
        ranked = [[0.0] * (record["rank"] - 1) + [1.0] for record in records]
        return {
            "ndcg@10": [m.ndcg(r, 10) for r in ranked],
            "recall@1": [m.recall(r, 1) for r in ranked],
            "recall@10": [m.recall(r, 10) for r in ranked],
            "mrr": [m.reciprocal_rank(r) for r in ranked],
        }
    if task.kind == "tag":
        return {"accuracy": [float(np.mean(np.array(r["gold"]) == np.array(r["predicted"]))) for r in records]}
    if task.kind == "code":
        return {"pass@1": [float(record["passed"]) for record in records]}
    if task.kind == "next_word" and "greedy" in first:
        return {"accuracy": [float(record["greedy"]) for record in records]}
    names = [name for name in task.metrics if name in m.ITEM_METRICS] or ["exact_match"] * (task.kind == "next_word")
    return {
        name: [m.ITEM_METRICS[name](record["answer"], record["references"]) for record in records] for name in names
    }


def _choice_scores(records: Sequence[Record]) -> dict[str, list[float]]:
    if "log_probs" not in records[0]:
        return {"accuracy": [float(record["prediction"] == record["gold"]) for record in records]}
    found: dict[str, Callable[[Record], Any]] = {
        "accuracy": lambda r: r["log_probs"],
        "accuracy_per_token": lambda r: np.divide(r["log_probs"], r["tokens"]),
        "accuracy_per_byte": lambda r: np.divide(r["log_probs"], np.maximum(r["bytes"], 1)),
    }
    if "unconditional" in records[0]:
        found["accuracy_corrected"] = lambda r: np.subtract(r["log_probs"], r["unconditional"])
    return {name: [float(np.argmax(of(r)) == r["gold"]) for r in records] for name, of in found.items()}


def summarise(task: Task, records: Sequence[Record], notes: Sequence[str] = ()) -> TaskResult:
    """Return the scores of records, which must be one or more."""
    n = len(records)
    if task.kind == "perplexity":
        return _perplexity(task, records, notes)
    if task.kind == "tag":
        return _tags(task, records, notes)
    means = item_scores(task, records)
    scores = {name: math.fsum(values) / n for name, values in means.items()}
    intervals = {name: interval(values) for name, values in means.items()}
    if task.kind == "choice":
        _labels(task, records, scores, intervals)
    if task.kind == "next_word" and "log_prob" in records[0]:
        _next_word(task, records, scores, intervals)
    if "answer" in records[0]:
        _corpus(task, records, scores, intervals)
    metric = next((name for name in task.metrics if name in scores), next(iter(scores)))
    chance, majority = _baselines(task, records, metric)
    details: dict[str, Any] = {}
    if "shots" in records[0]:
        details["shots"] = math.fsum(record["shots"] for record in records) / n
        dropped = sum(record["dropped"] for record in records)
        if dropped:
            hit = sum(record["dropped"] > 0 for record in records)
            notes = [*notes, f"{dropped} shots of {hit} items were dropped: the context window was full"]
    return TaskResult(task.name, metric, scores, intervals, n, chance, majority, details, tuple(notes), tuple(records))


def _predictions(records: Sequence[Record]) -> list[int]:
    return [int(np.argmax(r["log_probs"])) if "log_probs" in r else r["prediction"] for r in records]


def _labels(
    task: Task, records: Sequence[Record], scores: dict[str, float], intervals: dict[str, tuple[float, float]]
) -> None:
    """Add the metrics that see all items together, where the choices are labels."""
    gold, predicted = np.array([r["gold"] for r in records]), np.array(_predictions(records))
    for name in task.metrics:
        if name in ("macro_f1", "matthews"):
            metric: Callable[[Any, Any], float] = _LABELS[name]
            scores[name] = metric(gold.tolist(), predicted.tolist())
            intervals[name] = interval_of(
                lambda draw, metric=metric: metric(gold[draw].tolist(), predicted[draw].tolist()),  # type: ignore[misc]
                len(gold),
                _CORPUS_RESAMPLES,
            )


def _next_word(
    task: Task, records: Sequence[Record], scores: dict[str, float], intervals: dict[str, tuple[float, float]]
) -> None:
    """Add the targets' perplexity (per token, over all of them) and bits per byte.

    `target_perplexity` is that of targets as wholes, as LAMBADA's authors count: only where a task names it.
    """
    losses = np.array([-record["log_prob"] for record in records])
    bits = losses / math.log(2)
    weights = {name: np.array([record[name] for record in records], np.float64) for name in ("tokens", "bytes")}
    scores["perplexity"] = _exp(float(losses.sum() / weights["tokens"].sum()))
    scores["bits_per_byte"] = float(bits.sum() / weights["bytes"].sum())
    low, high = interval(losses, weights["tokens"])
    intervals["perplexity"] = (_exp(low), _exp(high))
    intervals["bits_per_byte"] = interval(bits, weights["bytes"])
    if "target_perplexity" in task.metrics:
        low, high = interval(losses)
        scores["target_perplexity"] = _exp(float(losses.mean()))
        intervals["target_perplexity"] = (_exp(low), _exp(high))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond that a float has no name for it


def _corpus(
    task: Task, records: Sequence[Record], scores: dict[str, float], intervals: dict[str, tuple[float, float]]
) -> None:
    answers, references = [r["answer"] for r in records], [r["references"] for r in records]
    for name in task.metrics:
        if name in m.CORPUS_METRICS:
            score = m.CORPUS_METRICS[name](answers, references)
            scores[name] = score(range(len(records)))
            intervals[name] = interval_of(score, len(records), _CORPUS_RESAMPLES)


def _baselines(task: Task, records: Sequence[Record], metric: str) -> tuple[float | None, float | None]:
    """Return what guessing at random, and what always giving the commonest answer, would reach."""
    n = len(records)
    if task.kind == "choice":
        gold = [record["gold"] for record in records]
        if metric in ("macro_f1", "matthews"):
            common = Counter(gold).most_common(1)[0][0]
            return (0.0 if metric == "matthews" else None), _LABELS[metric](gold, [common] * n)
        choices = len(task.choices) if isinstance(task.choices, list) else None
        sizes = [choices or len(record.get("log_probs") or record.get("tokens") or [0] * 4) for record in records]
        return math.fsum(1 / size for size in sizes) / n, max(Counter(gold).values()) / n
    if task.kind == "retrieve":
        documents = records[0]["documents"]
        gains = [1 / math.log2(rank + 1) for rank in range(1, min(10, documents) + 1)]
        return math.fsum(gains) / documents, None
    if task.kind == "code":
        return 0.0, None
    if metric in m.CORPUS_METRICS or metric.startswith("rouge"):
        return 0.0, None
    references = [record["references"] for record in records]
    common = Counter(reference[0] for reference in references).most_common()
    kinds = len(common)
    judge = m.ITEM_METRICS.get(metric, m.exact_text)
    majority = math.fsum(judge(common[0][0], reference) for reference in references) / n
    return (1 / kinds if kinds <= min(_FEW, n // 5) else 0.0), majority


def _tags(task: Task, records: Sequence[Record], notes: Sequence[str]) -> TaskResult:
    scores, intervals, majority = tag_scores(records)
    metric = next((name for name in task.metrics if name in scores), "accuracy")
    details = {"words": sum(len(record["gold"]) for record in records)}
    return TaskResult(
        task.name,
        metric,
        scores,
        intervals,
        len(records),
        None,
        majority[metric],
        details,
        tuple(notes),
        tuple(records),
    )


def _perplexity(task: Task, records: Sequence[Record], notes: Sequence[str]) -> TaskResult:
    losses = np.array([-record["log_prob"] for record in records])
    tokens = np.array([record["tokens"] for record in records], np.float64)
    n_bytes = records[0]["bytes"]  # of the whole text: tokens do not end where windows do
    per_token = float(math.fsum(losses) / tokens.sum())
    low, high = interval(losses, tokens)
    bits = tokens.sum() / n_bytes / math.log(2)
    scores = {"bits_per_byte": per_token * bits, "perplexity": _exp(per_token)}
    intervals = {"bits_per_byte": (low * bits, high * bits), "perplexity": (_exp(low), _exp(high))}
    metric = next((name for name in task.metrics if name in scores), "bits_per_byte")
    vocabulary = records[0].get("vocabulary")  # a server does not tell it
    chance = 8.0 if metric == "bits_per_byte" else None if vocabulary is None else float(vocabulary)
    if records[0].get("pseudo"):  # another measure, never to be read as the same (arXiv:1910.14659)
        scores = {f"pseudo_{name}": value for name, value in scores.items()}
        intervals = {f"pseudo_{name}": bounds for name, bounds in intervals.items()}
        metric, chance = f"pseudo_{metric}", None
    details = {"tokens": int(tokens.sum()), "bytes": n_bytes, "windows": len(records)}
    return TaskResult(
        task.name, metric, scores, intervals, int(tokens.sum()), chance, None, details, tuple(notes), tuple(records)
    )
