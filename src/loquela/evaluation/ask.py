"""One item to one model: what it said, as a record. Scores are made of records alone, whenever they were written."""

from __future__ import annotations

import re
from collections.abc import Sequence

from loquela.errors import UsageError
from loquela.evaluation.items import LETTERS, Item
from loquela.evaluation.metrics import normalised
from loquela.evaluation.plan import Prompter, Settings
from loquela.evaluation.record import Record
from loquela.evaluation.subject import Likelihood, Subject
from loquela.evaluation.task import Task

__all__ = ["Asker", "extracted"]


class Asker:
    """Asks a subject the items of one task."""

    def __init__(self, subject: Subject, task: Task, prompter: Prompter, settings: Settings) -> None:
        self.subject, self.task, self.prompter, self.settings = subject, task, prompter, settings
        self._without: dict[str, float] = {}
        self._labels = _label_numbers(subject, task) if subject.kind == "classifier" else {}

    def __call__(self, asked: Item) -> Record:
        """Return the record of one item; raises `ContextWindowError` for one that does not fit."""
        if self._labels:
            said = self.subject.classify(asked.text or "", asked.pair)
            return {"gold": asked.gold, "prediction": self._labels[said], "output": said}
        prompts = self.prompter(asked)
        record: Record = {
            "prompt_tokens": prompts[0].tokens,
            "shots": prompts[0].shots,
            "dropped": prompts[0].dropped,
        }
        texts = [(prompt.text, prompt.prefix) for prompt in prompts]
        if self.settings.by == "generation" or self.task.kind == "generate":
            return record | self._generated(asked, texts[0][0])
        if self.task.kind == "next_word":
            (found,) = self._scored(texts[0], [self.task.delimiter + asked.references[0]])
            n_bytes = len(asked.references[0].encode())
            said_so = {"log_prob": found.log_prob, "tokens": found.tokens, "greedy": found.greedy, "bytes": n_bytes}
            return record | said_so | {"references": list(asked.references)}
        return record | self._chosen(asked, texts)

    def _chosen(self, asked: Item, texts: Sequence[tuple[str, str]]) -> Record:
        delimiter = self.task.delimiter
        if len(texts) == 1:
            found = self._scored(texts[0], [delimiter + choice for choice in asked.choices])
            sizes = [len(choice.encode()) for choice in asked.choices]
        else:
            found = [self._scored(text, [delimiter + asked.references[0]])[0] for text in texts]
            sizes = [len(asked.references[0].encode())] * len(texts)
        record: Record = {
            "gold": asked.gold,
            "log_probs": [likelihood.log_prob for likelihood in found],
            "tokens": [likelihood.tokens for likelihood in found],
            "bytes": sizes,
        }
        if self.settings.corrected and len(texts) == 1:
            record["unconditional"] = self._unconditional([delimiter + choice for choice in asked.choices])
        return record

    def _scored(self, text: tuple[str, str], continuations: Sequence[str]) -> list[Likelihood]:
        return self.subject.likelihoods(text[0], continuations, prefix=text[1])

    def _unconditional(self, choices: Sequence[str]) -> list[float]:
        """How likely the choices are at the beginning of a text (arXiv:2005.14165, 2.4), each computed once."""
        for choice in choices:
            if choice not in self._without:
                self._without[choice] = self.subject.likelihoods("", [choice])[0].log_prob
        return [self._without[choice] for choice in choices]

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
