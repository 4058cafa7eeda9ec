"""The held-out rows: how good the model is on them, and whether it is better than what it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from loquela.data.batch import IGNORED
from loquela.evaluation.forgetting import Forgetting, change
from loquela.evaluation.metrics import accuracy, macro_f1
from loquela.evaluation.spans import entity_f1, has_entities
from loquela.evaluation.statistics import difference, paired_ratio
from loquela.generation.decode import evaluating
from loquela.tuning.batching import Assembler
from loquela.tuning.losses import margins, preference_batches
from loquela.tuning.preparing import Prepared
from loquela.tuning.rendering import Item
from loquela.tuning.scoring import Scores, score_items
from loquela.tuning.subject import Subject

__all__ = ["Held", "Verdict", "gold_tags", "judge", "validate"]

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Held:
    """Scores of the held-out rows. `loss` is what a run makes small: nats per token, per label or per preference.

    `per_task` has the loss and the metrics of each task; `values` (items,) is what two models are compared by, in
    units of `n_bytes` where it is bits of text, and `predicted` what a classifier says.
    """

    loss: float
    bits_per_byte: float | None
    tokens: int
    metrics: dict[str, float]
    per_task: dict[str, dict[str, float]]
    values: Numbers
    n_bytes: Numbers
    predicted: npt.NDArray[np.int64]
    choices: tuple[npt.NDArray[np.int64], ...] = ()
    """Of words with tags: what each is given."""


def validate(
    subject: Subject,
    prepared: Prepared,
    assembler: Assembler,
    *,
    beta: float,
    stopping: Callable[[], bool] = lambda: False,
) -> Held | None:
    """Score every held-out row with what the network wears; None when `stopping` says so before the end."""
    items = prepared.held
    scores = score_items(subject.network, items, assembler, stopping=stopping)
    if scores is None:
        return None
    values = scores.nats
    metrics_of: MetricsOf = _of_completions
    loss, bits = scores.loss, None if prepared.classifies or prepared.tags else scores.bits_per_byte
    if prepared.tags:
        metrics_of = _of_tags(prepared, subject.labels)
    elif prepared.classifies:
        metrics_of = _of_labels(prepared)
    elif prepared.prefers:
        found = _margins(subject, prepared, assembler)
        values = F.softplus(torch.from_numpy(-beta * found)).numpy()
        loss = float(values.mean())
        metrics_of = _of_preferences(found)
    whole = np.arange(len(items))
    tasks = np.array([item.task for item in items])
    per_task = {}
    for number, name in enumerate(prepared.names):
        own = whole[tasks == number]
        per_task[name] = {"loss": float(values[own].sum() / _weight(scores, prepared)[own].sum())} | metrics_of(
            scores, own
        )
    return Held(
        loss=loss,
        bits_per_byte=bits,
        tokens=int(scores.tokens.sum()),
        metrics=metrics_of(scores, whole),
        per_task=per_task,
        values=values,
        n_bytes=scores.n_bytes.astype(np.float64),
        predicted=scores.predicted,
        choices=scores.choices if prepared.tags else (),
    )


MetricsOf = Callable[[Scores, npt.NDArray[np.int64]], dict[str, float]]


def _of_completions(scores: Scores, rows: npt.NDArray[np.int64]) -> dict[str, float]:
    """Of a greedy writer: the share of tokens that it hits, and of completions that it writes word for word."""
    return {
        "token_accuracy": float(scores.right[rows].sum() / scores.tokens[rows].sum()),
        "exact_match": float((scores.right[rows] == scores.tokens[rows]).mean()),
    }


def _of_labels(prepared: Prepared) -> MetricsOf:
    gold = np.array([item.label for item in prepared.held])
    ((most, _),) = Counter(item.label for item in prepared.train).most_common(1)

    def metrics(scores: Scores, rows: npt.NDArray[np.int64]) -> dict[str, float]:
        asked, said = gold[rows].tolist(), scores.predicted[rows].tolist()
        return {
            "accuracy": accuracy(asked, said),
            "macro_f1": macro_f1(asked, said),
            "majority": float(np.mean([label == most for label in asked])),
        }

    return metrics


def gold_tags(item: Item) -> npt.NDArray[np.int64]:
    """Return the labels of an item's words."""
    found: npt.NDArray[np.int64] = item.sample.labels[item.sample.labels != IGNORED]
    return found


def _of_tags(prepared: Prepared, names: Sequence[str]) -> MetricsOf:
    gold = [gold_tags(item) for item in prepared.held]
    most = _commonest_tag(prepared)
    entities = has_entities(names)

    def named(numbers: npt.NDArray[np.int64]) -> list[str]:
        return [names[number] for number in numbers]

    def metrics(scores: Scores, rows: npt.NDArray[np.int64]) -> dict[str, float]:
        words = int(scores.tokens[rows].sum())
        found = {
            "accuracy": float(scores.right[rows].sum() / words),
            "majority": sum(int((gold[row] == most).sum()) for row in rows) / words,
        }
        if entities:
            asked, said = [named(gold[row]) for row in rows], [named(scores.choices[row]) for row in rows]
            found["entity_f1"] = entity_f1(asked, said)
        return found

    return metrics


def _commonest_tag(prepared: Prepared) -> int:
    return int(np.bincount(np.concatenate([gold_tags(item) for item in prepared.train])).argmax())


def _of_preferences(found: Numbers) -> MetricsOf:
    def metrics(scores: Scores, rows: npt.NDArray[np.int64]) -> dict[str, float]:
        return {
            "preference_accuracy": float((found[rows] > 0).mean()),
            "margin": float(found[rows].mean()),
            "token_accuracy": float(scores.right[rows].sum() / scores.tokens[rows].sum()),
        }

    return metrics


def _weight(scores: Scores, prepared: Prepared) -> Numbers:
    return np.ones(len(scores.tokens)) if prepared.prefers else scores.tokens.astype(np.float64)


def _margins(subject: Subject, prepared: Prepared, assembler: Assembler) -> Numbers:
    found = np.zeros(len(prepared.held))
    with evaluating(subject.network):
        for batch, numbers in preference_batches(prepared.held, assembler):
            found[numbers] = margins(subject, batch, subject.network).double().numpy()
    return found


@dataclass(frozen=True)
class Verdict:
    """Whether the tuned model is better on the held-out rows, and whether it lost more than the noise."""

    better: bool
    lost: bool
    gain: float
    """Bits per byte saved; of labels and tags, accuracy above the commonest; of preferences, nats."""
    ci95: tuple[float, float]
    sentence: str

    @property
    def good(self) -> bool:
        """Better, and nothing lost."""
        return self.better and not self.lost

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        own: Mapping[str, Any] = {"better": self.better, "lost": self.lost, "good": self.good, "gain": self.gain}
        return {**own, "ci95": list(self.ci95), "sentence": self.sentence}


def judge(prepared: Prepared, before: Held, after: Held, forgetting: Forgetting) -> Verdict:
    """Compare the two on the same rows; better means that the whole 95 % interval of the gain is above zero.

    One held-out row has no interval: it shows nothing.
    """
    n = len(prepared.held)
    if prepared.tags:
        tags, most_common = [gold_tags(item) for item in prepared.held], _commonest_tag(prepared)
        words = [float(len(own)) for own in tags]
        right = [float((own == said).sum()) for own, said in zip(tags, after.choices, strict=True)]
        ratio = paired_ratio(right, [float((own == most_common).sum()) for own in tags], words)
        gain, ci95 = ratio.mean, ratio.ci95
        said = f"accuracy {after.metrics['accuracy']:.1%} on the {sum(words):,.0f} words of {n:,} held-out sentences, "
        said += f"{gain:+.1%} against the commonest tag"
        if "entity_f1" in after.metrics:
            said += f"; entities: F1 {after.metrics['entity_f1']:.1%}"
    elif prepared.classifies:
        gold = [item.label for item in prepared.held]
        ((most, _),) = Counter(item.label for item in prepared.train).most_common(1)
        found = difference(
            [float(g == p) for g, p in zip(gold, after.predicted.tolist(), strict=True)],
            [float(g == most) for g in gold],
        )
        gain, ci95 = found.mean, found.ci95
        said = (
            f"accuracy {after.metrics['accuracy']:.1%} on {n:,} held-out texts, {gain:+.1%} against the commonest label"
        )
    elif prepared.prefers:
        found = difference(before.values.tolist(), after.values.tolist())
        gain, ci95 = found.mean, found.ci95
        said = f"the chosen answer is preferred in {after.metrics['preference_accuracy']:.1%} of {n:,} held-out pairs"
    else:
        delta, (low, high) = change(before.values, after.values, after.n_bytes)
        gain, ci95 = -delta, (-high, -low)
        said = f"{before.bits_per_byte:.3f} → {after.bits_per_byte:.3f} bits per byte on {n:,} held-out completions"
    better = n > 1 and ci95[0] > 0
    head = "Better" if better else "Not better" if n > 1 else "Not known to be better"
    interval = f"95 %: {ci95[0]:+.3f} to {ci95[1]:+.3f}" if n > 1 else "of one row, which has no interval"
    sentence = f"{head}: {said} (gain {gain:+.3f}, {interval}). {_said_of(forgetting)}"
    return Verdict(better, forgetting.lost, gain, ci95, sentence)


def _said_of(forgetting: Forgetting) -> str:
    if forgetting.delta is None or forgetting.noise is None:
        if forgetting.similarity is None:
            return "Forgetting was not measured."
        return f"Its hidden states are {forgetting.similarity:.3f} like the base's (cosine)."
    head = "Lost" if forgetting.lost else "Nothing lost beyond the noise"
    said = f"{head}: {forgetting.probe} {forgetting.delta:+.3f} bits per byte (noise {forgetting.noise:.3f})"
    for name, task in forgetting.tasks.items():
        said += f", {name} {task['delta']:+.3f} (noise {task['noise']:.3f})"
    return said + "."


def learnt(items: Any) -> int:
    """Return how many labels carry a loss."""
    return sum(int((item.sample.labels != IGNORED).sum()) for item in items)
