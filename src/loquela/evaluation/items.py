"""From the rows of a task to what is asked: questions, choices, references; and examples to show before them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loquela.data.tag_rows import tagging
from loquela.errors import DataError
from loquela.evaluation.rows import Row
from loquela.evaluation.task import Task
from loquela.prompting.shots import Example
from loquela.prompting.templates import fill, look_up

__all__ = ["LETTERS", "Item", "example", "item", "options"]

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Item:
    """One question. `number` is the row's, from 0, among those that are asked."""

    number: int
    questions: tuple[str, ...]
    """One; or a context for each choice, which are then followed by the same target."""
    choices: tuple[str, ...]
    gold: int | None
    """Which choice is right."""
    references: tuple[str, ...]
    """What is right where there are no choices."""
    text: str | None
    pair: str | None
    row: Row

    @property
    def continuations(self) -> tuple[str, ...]:
        """What is scored after each question."""
        return self.choices if self.choices and len(self.questions) == 1 else self.references


def item(task: Task, row: Row, number: int) -> Item:
    """Return the question of a row; raises `DataError` that names the row."""
    try:
        return _item(task, row, number)
    except DataError as error:
        raise DataError(f"task {task.name}, row {number + 1}: {error}") from None


def _item(task: Task, row: Row, number: int) -> Item:
    for field, words in task.words.items():
        row = row | {field: words.get(str(look_up(row, field)), row[field])}
    prompts = task.prompt if isinstance(task.prompt, list) else [task.prompt]
    choices = _choices(task, row) if task.kind == "choice" else ()
    if task.kind == "tag":
        questions: tuple[str, ...] = (" ".join(tagging(row).words),)
    elif task.kind == "retrieve":
        questions = (fill(task.text or "", row),)
    else:
        questions = tuple(fill(prompt, row) for prompt in prompts)
    gold = _gold(task, row, choices) if choices else None
    if task.shuffle and gold is not None:
        order = sorted(range(len(choices)), key=lambda i: hashlib.blake2b(f"{choices}{i}".encode()).digest())
        choices, gold = tuple(choices[i] for i in order), order.index(gold)
    return Item(
        number=number,
        questions=questions,
        choices=choices,
        gold=gold,
        references=_references(task, row),
        text=fill(task.text, row) if task.text else None,
        pair=fill(task.pair, row) if task.pair else None,
        row=row,
    )


def _choices(task: Task, row: Row) -> tuple[str, ...]:
    assert task.choices is not None
    if isinstance(task.choices, list):
        found = [fill(choice, row) for choice in task.choices]
    else:
        found = look_up(row, task.choices)
        if not isinstance(found, list) or not all(isinstance(choice, str) for choice in found):
            raise DataError(f"the field {task.choices!r} must list the choices, but does not")
    if len(found) < 2:
        raise DataError(f"there must be two choices or more, but there are {len(found)}")
    return tuple(found)


def _gold(task: Task, row: Row, choices: Sequence[str]) -> int:
    assert task.answer is not None
    said = look_up(row, task.answer)
    answers = look_up(row, task.answers) if isinstance(task.answers, str) else task.answers
    if isinstance(answers, list):
        answers = [fill(answer, row) if isinstance(answer, str) and "{" in answer else answer for answer in answers]
    if answers is None:
        number = said
    elif said in answers:
        number = answers.index(said)
    else:
        number = next((i for i, answer in enumerate(answers) if str(answer) == str(said)), said)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(choices):
        known = ", ".join(map(repr, answers)) if answers else f"a number from 0 to {len(choices) - 1}"
        raise DataError(f"the field {task.answer!r} must be one of {known[:200]}, but is {said!r}")
    return number


def _references(task: Task, row: Row) -> tuple[str, ...]:
    if task.references is not None:
        found = look_up(row, task.references)
        if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
            raise DataError(f"the field {task.references!r} must list the references, but does not")
        return tuple(found)
    return (fill(task.target, row),) if task.target is not None else ()


def options(asked: Item) -> str:
    """Return the choices as lettered lines, for a model that is to name one."""
    return "".join(f"\n{LETTERS[i]}. {choice}" for i, choice in enumerate(asked.choices))


def example(task: Task, shown: Item, *, lettered: bool = False) -> Example:
    """Return a row as an example: its question, and the right answer after it."""
    if shown.gold is not None:
        label = shown.choices[shown.gold] if isinstance(task.choices, list) else str(shown.gold)
        if len(shown.questions) > 1:  # the choice is in the context; what follows is the same for all
            return Example(shown.questions[shown.gold], shown.references[0], str(shown.gold))
        if lettered:
            return Example(lettered_question(shown), LETTERS[shown.gold], LETTERS[shown.gold])
        return Example(shown.questions[0], shown.choices[shown.gold], label)
    answer: Any = fill(task.target, shown.row) if task.target is not None else shown.references[0]
    return Example(shown.questions[0], answer, answer if len(answer) < 20 else "")


def lettered_question(asked: Item) -> str:
    """Return a question with its choices before the line that the answer follows."""
    head, line, last = asked.questions[0].rpartition("\n")
    return f"{head}{options(asked)}{line}{last}" if line else f"{last}{options(asked)}\nAnswer:"
