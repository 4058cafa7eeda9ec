"""A task out of a plain data file: what its fields are called says what to ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loquela.data import hub as hub_sets
from loquela.data.tag_rows import is_tagged_lines, is_tagging
from loquela.errors import DataError
from loquela.evaluation.rows import Row, read_rows
from loquela.evaluation.task import Data, Hub, Task

__all__ = ["detect", "detect_set"]

_ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_SHOTS = 20  # rows kept for shots, unless the file is too small to spare them


def detect(path: Path) -> tuple[Task, str]:
    """Return the task of a data file, and a line that says what was taken for what.

    text and label → which label is the likeliest; question, choices and answer → multiple choice; prompt and
    completion → perplexity of the completion; tokens and tags → the tag of each word; text alone, or a plain text →
    perplexity. A .tsv without such a header is text, tab, label. Raises `DataError`.
    """
    name = path.name.lower().removesuffix(".gz")
    stem = name.partition(".")[0] or "task"
    if is_tagged_lines(path):
        return _task(stem, "tag", path, {"layout": "conll"}), f"{path.name}: a word and its tag in a line → tag"
    if not name.endswith(_ROWS):
        return _task(stem, "perplexity", path), f"{path.name}: a plain text → perplexity"
    columns = None
    rows = read_rows(path, columns=columns) if not name.endswith((".csv", ".tsv")) else []
    if not rows:
        columns = _headerless(path)
        rows = read_rows(path, columns=columns)
    if not rows:
        raise DataError(f"{path} must have rows, but has none")
    fields = set(rows[0])
    task = _of_fields(stem, path, rows, fields, columns)
    if task is None:
        raise DataError(
            f"{path} must have the fields text and label, question, choices and answer, prompt and completion, "
            f"tokens and tags, or text, but has {', '.join(map(repr, sorted(fields)))[:200]}: write a task for it "
            "(docs/evaluation.md)"
        )
    return task, f"{path.name}: {', '.join(sorted(fields))[:100]} → {task.kind}"


def detect_set(name: str) -> tuple[Task, str] | None:
    """Return the task of a data set of the Hub, as `detect` does of a file; None for a name of another kind."""
    if (chosen := hub_sets.named(name, "validation")) is None:
        return None
    rows = list(hub_sets.rows(chosen))
    fields = set(rows[0]) if rows else set()
    stem = chosen.name.rpartition("/")[2]
    task = _of_fields(stem, Path(), rows, fields, None) if rows else None
    if task is None or task.kind == "perplexity":
        raise DataError(
            f"{name} must have the fields text and label, question, choices and answer, prompt and completion, or "
            f"tokens and tags, but has {', '.join(map(repr, sorted(fields)))[:200] or 'no row'}"
        )
    found = Hub(path=chosen.name, name=chosen.config, split=chosen.split)
    data = task.data.model_copy(update={"test": "", "hub": found})
    said = f"{chosen.name} ({chosen.split}): {', '.join(sorted(fields))[:100]} → {task.kind}"
    return task.model_copy(update={"data": data}), said


def _of_fields(stem: str, path: Path, rows: Sequence[Row], fields: set[str], columns: list[str] | None) -> Task | None:
    held = _SHOTS if len(rows) >= 5 * _SHOTS else 0
    more: dict[str, Any] = {"columns": columns, "shots": held}
    if {"text", "label"} <= fields:
        labels = sorted({str(row["label"]) for row in rows})
        return _task(
            stem,
            "choice",
            path,
            more,
            prompt="{text}\nLabel:",
            choices=labels,
            answer="label",
            answers=labels,
            text="{text}",
            labels=labels,
            metrics=["accuracy", "macro_f1"],
        )
    if {"question", "choices", "answer"} <= fields:
        inner = isinstance(rows[0]["choices"], dict)
        texts = "choices.text" if inner else "choices"
        first = rows[0]["answer"]
        letters = isinstance(first, str) and len(first) == 1
        answers: Any = ("choices.label" if inner else list("ABCDEFGHIJ")) if letters else None
        if isinstance(first, str) and not letters:
            answers = texts
        return _task(
            stem,
            "choice",
            path,
            more,
            prompt="Question: {question}\nAnswer:",
            choices=texts,
            answer="answer",
            answers=answers,
        )
    if {"prompt", "completion"} <= fields:
        return _task(stem, "next_word", path, more, prompt="{prompt}", target="{completion}", delimiter="")
    if is_tagging(rows[0]):
        return _task(stem, "tag", path, {"columns": columns})
    if "text" in fields:
        return _task(stem, "perplexity", path, {"columns": columns})
    return None


def _headerless(path: Path) -> list[str] | None:
    """Name the columns of a table whose first row is no header."""
    first = next(iter(read_rows(path, columns=None)), None)
    if first is None or {"text", "prompt", "question"} & set(first):
        return None
    if len(first) == 2:
        return ["text", "label"]
    raise DataError(
        f"{path} must have a header with text and label, question, choices and answer, or prompt and completion; "
        f"without one it must have two columns, text and label, but has {len(first)}"
    )


def _task(stem: str, kind: Any, path: Path, data: dict[str, Any] | None = None, **keys: Any) -> Task:
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem)[:64]
    return Task(name=stem, kind=kind, data=Data(test=str(path.name), **(data or {})), **keys).check()
