"""One item to one model: what it said, as a record. Scores are made of records alone, whenever they were written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, tee

from loquela.errors import ContextWindowError, UsageError
from loquela.evaluation.ahead import in_order
from loquela.evaluation.items import LETTERS, Item
from loquela.evaluation.metrics import normalised
from loquela.evaluation.plan import Prompter, Settings
from loquela.evaluation.record import Record
from loquela.evaluation.subject import Likelihood, Question, Subject
from loquela.evaluation.task import Task
from loquela.prompting.prompt import Prompt

__all__ = ["Asker", "extracted", "one_by_one"]


@dataclass(frozen=True)
class _Plan:
    """What must be asked for an item, and how its record is made of the answers."""

    questions: tuple[Question, ...]
    record: Callable[[list[list[Likelihood]]], Record]


class Asker:
    """Asks a subject the items of one task."""

    def __init__(self, subject: Subject, task: Task, prompter: Prompter, settings: Settings) -> None:
        self.subject, self.task, self.prompter, self.settings = subject, task, prompter, settings
        self._without: dict[str, float] = {}
        self._labels = _label_numbers(subject, task) if subject.kind == "classifier" else {}

    def __call__(self, items: Iterable[Item]) -> Iterator[Record]:
        """Yield the record of each item, in their order; one that does not fit says `too_long`.

        Items are taken as they are needed: no more of them than the subject computes together.
        """
        plans, ahead = tee(in_order(self._plan, items, self.subject.at_once))
        answers = self.subject.several(question for plan in ahead for question in plan.questions)
        for plan in plans:
            found = list(islice(answers, len(plan.questions)))
            errors = [answer for answer in found if isinstance(answer, ContextWindowError)]
            if errors:
                yield {"too_long": str(errors[0])}
            else:
                yield plan.record([answer for answer in found if not isinstance(answer, ContextWindowError)])

    def _plan(self, asked: Item) -> _Plan:
        try:
            if self._labels:
                said = self.subject.classify(asked.text or "", asked.pair)
                return _said({"gold": asked.gold, "prediction": self._labels[said], "output": said})
            prompts = self.prompter(asked)
            begun: Record = {
                "prompt_tokens": prompts[0].tokens,
                "shots": prompts[0].shots,
                "dropped": prompts[0].dropped,
            }
            if self.settings.by == "generation" or self.task.kind == "generate":
                return _said(begun | self._generated(asked, prompts[0].text))
        except ContextWindowError as error:
            return _said({"too_long": str(error)})
        if self.task.kind == "next_word":
            return self._expected(asked, prompts[0], begun)
        return self._chosen(asked, prompts, begun)

    def _expected(self, asked: Item, prompt: Prompt, begun: Record) -> _Plan:
        """How likely the reference is."""
        answer = asked.references[0]

        def record(found: list[list[Likelihood]]) -> Record:
            ((said,),) = found
            figures = {"log_prob": said.log_prob, "tokens": said.tokens, "greedy": said.greedy}
            return begun | figures | {"bytes": len(answer.encode()), "references": list(asked.references)}

        return _Plan((Question(prompt.text, (self.task.delimiter + answer,), prompt.prefix),), record)

    def _chosen(self, asked: Item, prompts: Sequence[Prompt], begun: Record) -> _Plan:
        """How likely each choice is: after the same question, or the same answer after each of its contexts."""
        answers = asked.choices if len(prompts) == 1 else asked.references[:1]
        texts = tuple(self.task.delimiter + answer for answer in answers)
        questions = [Question(prompt.text, texts, prompt.prefix) for prompt in prompts]
        unknown: list[str] = []
        if self.settings.corrected and len(prompts) == 1:
            unknown = [text for text in dict.fromkeys(texts) if text not in self._without]
            questions += [Question("", (text,)) for text in unknown]

        def record(found: list[list[Likelihood]]) -> Record:
            said = [likelihood for answer in found[: len(prompts)] for likelihood in answer]
            self._without |= {
                text: answer[0].log_prob for text, answer in zip(unknown, found[len(prompts) :], strict=True)
            }
            figures: Record = {
                "gold": asked.gold,
                "log_probs": [likelihood.log_prob for likelihood in said],
                "tokens": [likelihood.tokens for likelihood in said],
                "bytes": [len(answer.encode()) for answer in answers] * (len(said) // len(answers)),
            }
            if self.settings.corrected and len(prompts) == 1:  # arXiv:2005.14165, 2.4
                figures["unconditional"] = [self._without[text] for text in texts]
            return begun | figures

        return _Plan(tuple(questions), record)

    def _generated(self, asked: Item, prompt: str) -> Record:
        if self.task.kind == "choice" and len(asked.questions) > 1:
            raise UsageError(f"task {self.task.name} compares contexts, so it is scored by likelihood, not generation")
        output = self.subject.complete(prompt, max_new_tokens=self.task.max_new_tokens, stop=self.task.stop)
        if self.task.kind == "choice":
            return {"gold": asked.gold, "output": output, "prediction": _named(output, asked, self.prompter.lettered)}
        answer = extracted(output, self.task.extract)
        target = self.task.extract_target
        references = [extracted(reference, target) for reference in asked.references]
        return {"output": output, "answer": answer, "references": references}


def one_by_one(ask: Callable[[Item], Record], items: Iterable[Item], *, at_once: int = 1) -> Iterator[Record]:
    """Yield the records of items of which each is asked by itself; one that does not fit says `too_long`."""

    def record(asked: Item) -> Record:
        try:
            return ask(asked)
        except ContextWindowError as error:
            return {"too_long": str(error)}

    return in_order(record, items, at_once)


def _said(record: Record) -> _Plan:
    """What nothing more need be asked for."""
    return _Plan((), lambda _: record)


def extracted(text: str, pattern: str | None) -> str:
    """Return the last match of `pattern` in `text` (its first group, if it has one), "" without a match."""
    if pattern is None:
        return text.strip()
    found = list(re.finditer(pattern, text))
    if not found:
        return ""
    last = found[-1]
    return next((group for group in last.groups() if group is not None), last[0]).strip()


def _named(output: str, asked: Item, lettered: bool) -> int:
    """Return the choice that an answer names, by its letter or its words; -1 where it names none."""
    answer = output.strip()
    if lettered and (match := re.match(r"\(?([A-J])\b", answer)) and LETTERS.index(match[1]) < len(asked.choices):
        return LETTERS.index(match[1])
    words = f"{normalised(answer)} "
    named = [i for i, choice in enumerate(asked.choices) if words.startswith(f"{normalised(choice)} ")]
    return max(named, key=lambda i: len(asked.choices[i]), default=-1)


def _label_numbers(subject: Subject, task: Task) -> dict[str, int]:
    """Return which choice each label of a classifier means; raises `UsageError` where they do not match."""
    if task.kind != "choice" or task.text is None or not isinstance(task.choices, list):
        raise UsageError(
            f"{subject.name} classifies texts, and task {task.name} has no text with a label: choose another"
        )
    answers = task.answers if isinstance(task.answers, list) else list(range(len(task.choices)))
    known: dict[str, int] = {}
    for names in (task.labels or [], task.choices, answers, [f"LABEL_{i}" for i in range(len(task.choices))]):
        for number, name in enumerate(names):
            known.setdefault(str(name).strip().lower(), number)
    missing = [label for label in subject.labels() if label.lower() not in known]
    if missing:
        raise UsageError(
            f"the labels of {subject.name} must be those of task {task.name} ({', '.join(task.choices)}), "
            f"but one is {missing[0]!r}: tune it on this task, or name its labels in a task of your own"
        )
    return {label: known[label.lower()] for label in subject.labels()}
