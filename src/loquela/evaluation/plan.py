"""How a run asks: its settings, and the prompt of every item."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from loquela.engine.choosing import Engine, EngineName
from loquela.errors import UsageError
from loquela.evaluation.items import Item, example, item, lettered_question
from loquela.evaluation.rows import Row
from loquela.evaluation.subject import Subject
from loquela.evaluation.task import Task
from loquela.prompting import shots as ways
from loquela.prompting.prompt import Form, Prompt, build
from loquela.prompting.shots import Example

__all__ = ["Prompter", "Settings"]

Embed = Callable[[Sequence[str]], "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Settings:
    """What decides the scores beside model and task."""

    shots: int = 0
    select: str = "random"
    """`random`, `balanced` (labels take turns), `nearest` (by embedding), or numbers of examples: `3,17,5`."""
    seed: int = 0
    order: int = 0
    """Another number puts the same shots in another order."""
    by: Literal["likelihood", "generation"] = "likelihood"
    corrected: bool = False
    """Also score choices against how likely they are without their question."""
    chat: bool = False
    limit: int | None = None
    engine: EngineName | None = None
    """What computes likelihoods, unless it is what the model was loaded with: `auto`, `torch` or `compiled`."""
    allow_code_execution: bool = False

    def check(self) -> Settings:
        """Raise `UsageError` for values out of range."""
        if self.shots < 0:
            raise UsageError(f"shots must be 0 or more, but is {self.shots}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit must be 1 or more, but is {self.limit}")
        if self.by not in ("likelihood", "generation"):
            raise UsageError(f"a choice is made by likelihood or generation, but by is {self.by!r}")
        if self.engine is not None:
            Engine(self.engine)
        _numbers(self.select)
        return self


class Prompter:
    """Makes the prompt of each item of a task: description, shots, question, no larger than the window."""

    def __init__(
        self, task: Task, pool: Sequence[Row], subject: Subject, settings: Settings, embed: Embed | None = None
    ) -> None:
        self.task, self.subject, self.settings = task, subject, settings
        self.form = Form(task.description, task.separator, task.delimiter)
        self.lettered = settings.by == "generation" and task.kind == "choice" and _needs_letters(task)
        self._lengths: dict[str, int] = {}
        self._order = self._preference(pool, embed) if settings.shots else None

    def __call__(self, asked: Item) -> list[Prompt]:
        """Return the prompt of an item's question, or one for each of its contexts."""
        questions = [lettered_question(asked)] if self.lettered else list(asked.questions)
        shown = self._shots(asked)
        room = self._room(asked)
        count, window = self.subject.count, self.subject.window
        prompts = [build(q, shown, form=self.form, count=count, window=window, answer_tokens=room) for q in questions]
        fewest = min(prompt.shots for prompt in prompts)
        if any(prompt.shots != fewest for prompt in prompts):  # contexts that are compared show the same
            kept = shown[len(shown) - fewest :]
            fitted = [build(q, kept, form=self.form, count=count) for q in questions]
            return [Prompt(p.text, p.prefix, p.tokens, fewest, len(shown) - fewest) for p in fitted]
        return prompts

    def _preference(self, pool: Sequence[Row], embed: Embed | None) -> Callable[[str], list[Example]]:
        """Return what gives the examples in the order in which they are wanted for a question."""
        if self.task.kind not in ("choice", "next_word", "generate"):
            raise UsageError(f"a task of kind {self.task.kind} shows no examples, so shots must be 0")
        examples = [example(self.task, item(self.task, row, i), lettered=self.lettered) for i, row in enumerate(pool)]
        select, seed = self.settings.select, self.settings.seed
        numbers = _numbers(select)
        if numbers is not None:
            chosen = ways.by_hand(examples, numbers)[::-1]  # given as they stand in the prompt, the last is the nearest
        elif select == "nearest":
            if embed is None:
                raise UsageError("nearest shots need a model that embeds texts, but there is none: use random")
            return ways.Nearest(examples, embed)
        else:
            chosen = (ways.balanced if select == "balanced" else ways.random_order)(examples, seed)
        return lambda question: chosen

    def _shots(self, asked: Item) -> list[Example]:
        """Return the shots of an item as they stand in its prompt, the most wanted next to the question."""
        if self._order is None:
            return []
        question = Example(lettered_question(asked) if self.lettered else asked.questions[0], "")
        found = ways.allowed(self._order(question.question), question, self.settings.shots)
        if len(found) < self.settings.shots:
            raise UsageError(
                f"shots must be at most the {len(found)} examples that task {self.task.name} has, "
                f"but is {self.settings.shots}"
            )
        return ways.permuted(found[::-1], self.settings.order)

    def _room(self, asked: Item) -> int:
        """Return the tokens that must be left for an answer."""
        if self.subject.kind == "encoder-decoder":  # source and target have a window each
            return 1
        if self.task.kind in ("generate", "code") or self.settings.by == "generation":
            return self.task.max_new_tokens
        texts = [self.task.delimiter + text for text in asked.continuations]
        unknown = [text for text in texts if text not in self._lengths]
        if unknown:
            self._lengths.update(zip(unknown, self.subject.counts(unknown), strict=True))
        return max((self._lengths[text] for text in texts), default=1)


def _numbers(select: str) -> list[int] | None:
    """Return the numbers of shots chosen by hand, None for a way to choose them."""
    if select in ("random", "balanced", "nearest"):
        return None
    if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", select):
        raise UsageError(f"select must be random, balanced, nearest or numbers of shots as 3,17,5, but is {select!r}")
    return [int(number) for number in select.split(",")]


def _needs_letters(task: Task) -> bool:
    """Whether a model cannot know the choices from the question: those of a row, unlike a fixed set of labels."""
    return not isinstance(task.choices, list) or any("{" in choice for choice in task.choices)
