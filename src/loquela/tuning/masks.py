"""What is learnt of a sample, token by token, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from loquela.data.batch import IGNORED
from loquela.tuning.preparing import labels_of, prepare, read_tasks
from loquela.tuning.recipe import TuneRecipe
from loquela.tuning.rendering import Item
from loquela.tuning.subject import Subject, open_subject

__all__ = ["Shown", "Stretch", "shown"]

SAMPLES = 3


@dataclass(frozen=True)
class Stretch:
    """A stretch of text, all of it learnt or none."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Shown:
    """One sample."""

    row: int
    tokens: int
    learnt: int
    pieces: tuple[Stretch, ...]


def shown(recipe: TuneRecipe, *, say: Callable[[str], None], samples: int = SAMPLES) -> Iterator[Shown]:
    """Yield the first samples as the model will be trained on them; special tokens are written out."""
    tasks = read_tasks(recipe, say)
    subject = open_subject(recipe, labels_of(recipe, tasks))
    prepared = prepare(recipe, subject, tasks, subject.labels, say)
    for item in sorted(prepared.train, key=lambda item: (item.task, item.row))[:samples]:
        yield _shown(item, subject)


def _shown(item: Item, subject: Subject) -> Shown:
    sample, tokenizer = item.sample, subject.tokenizer
    if item.label is not None:
        text = tokenizer.decode(sample.inputs.tolist(), skip_special_tokens=False)
        return Shown(
            item.row, len(sample.inputs), 1, (Stretch(text + " ", False), Stretch(subject.labels[item.label], True))
        )
    tokens: list[tuple[int, bool]] = []
    if sample.source is not None:
        tokens = [(int(i), False) for i in sample.source]
        tokens += [(int(i), True) for i in sample.labels if i != IGNORED]
    else:
        first = int(sample.inputs[0])
        following = [*sample.inputs[1:].tolist(), int(sample.labels[-1])]
        tokens = [(first, False)]
        tokens += [
            (i if label == IGNORED else int(label), bool(label != IGNORED))
            for i, label in zip(following, sample.labels, strict=True)
            if not (label == IGNORED and i == IGNORED)
        ]
    pieces = []
    for learnt, group in groupby(tokens, key=lambda token: token[1]):
        ids = [i for i, _ in group]
        pieces.append(Stretch(tokenizer.decode(ids, skip_special_tokens=False), learnt))
    return Shown(item.row, len(tokens), sum(learnt for _, learnt in tokens), tuple(pieces))
