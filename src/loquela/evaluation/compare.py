"""Two models on the same items."""

from __future__ import annotations

from typing import Any

from loquela.errors import UsageError
from loquela.evaluation.record import Record
from loquela.evaluation.results import TaskResult, item_scores
from loquela.evaluation.statistics import difference, paired_ratio
from loquela.evaluation.task import Task

__all__ = ["compare"]


def compare(task: Task, first: TaskResult, second: TaskResult) -> dict[str, Any]:
    """Return the second model's scores, and per metric of single items how much better the first is.

    Items that only one of them could be asked are left out and counted. A positive difference means the larger number,
    which for bits per byte is the worse one. Raises `UsageError` when no item is shared.
    """
    ours, theirs = _by_item(first), _by_item(second)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        raise UsageError(f"two models are compared on the same items of task {task.name}, but share none")
    found: dict[str, Any] = {"scores": second.scores, "n": len(shared), "differences": {}}
    if len(shared) < max(len(ours), len(theirs)):
        found["left_out"] = max(len(ours), len(theirs)) - len(shared)
    mine, other = [ours[i] for i in shared], [theirs[i] for i in shared]
    if task.kind == "perplexity":
        # windows of different tokenizers hold different text, so only a whole text's bits can be compared
        if [r["tokens"] for r in mine] == [r["tokens"] for r in other]:
            found["differences"]["nats_per_token"] = paired_ratio(
                [-r["log_prob"] for r in mine], [-r["log_prob"] for r in other], [r["tokens"] for r in mine]
            ).as_dict()
        return found
    values, others = item_scores(task, mine), item_scores(task, other)
    for metric in (metric for metric in values if metric in others):
        found["differences"][metric] = difference(values[metric], others[metric]).as_dict()
    return found


def _by_item(result: TaskResult) -> dict[int, Record]:
    return {record["item"]: record for record in result.records}
