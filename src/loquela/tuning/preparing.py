"""From a recipe's files to the samples that are learnt and those that are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from loquela.data.batch import IGNORED
from loquela.data.pairs import Example, Examples, Labelled, Tagged, read_examples
from loquela.errors import DataError, RecipeError, UsageError
from loquela.tuning.batching import Order, shares
from loquela.tuning.recipe import Task, TuneRecipe
from loquela.tuning.rendering import Item, Renderer
from loquela.tuning.subject import Subject
from loquela.tuning.templates import Templates, templates_for

__all__ = ["Prepared", "is_tagging", "labels_of", "prepare", "read_tasks"]

Say = Callable[[str], None]
FEW = 10
"""Held-out rows below which a verdict is called rough."""
FEW_SHOWN = 3
"""Rows that an error names; it counts the rest."""


@dataclass(frozen=True)
class Prepared:
    """Samples to learn from and samples held out, whose `task` is a number of `names`."""

    train: list[Item]
    held: list[Item]
    names: list[str]
    weights: list[float]
    templates: list[Templates]
    examples: list[Examples] = field(repr=False)
    form: str = ""

    @property
    def chat_template(self) -> str | None:
        """The chat template that the tuned model is to be used with."""
        return next((t.chat for t in self.templates if t.chat is not None), None)

    @property
    def prefers(self) -> bool:
        """Whether the rows hold a better and a worse answer."""
        return self.train[0].rejected is not None

    @property
    def classifies(self) -> bool:
        """Whether a classifier's head is tuned."""
        return self.train[0].label is not None

    @property
    def tags(self) -> bool:
        """Whether words are labelled."""
        return self.train[0].tagged

    def order(self, recipe: TuneRecipe) -> Order:
        """Return the order of the samples."""
        return Order([item.task for item in self.train], self.weights, recipe.batch_size, recipe.seed)


def read_tasks(recipe: TuneRecipe, say: Say) -> list[Examples]:
    """Read the file of each task; raises `DataError`."""
    found = []
    for task in recipe.tasks:
        examples = _read(task.data, task, recipe)
        for note in examples.notes:
            say(note)
        found.append(examples)
    return found


def labels_of(recipe: TuneRecipe, tasks: Sequence[Examples]) -> list[str]:
    """Return the labels of a classifier of texts or of words, in their order; empty where the rows have none.

    Numbers are in their order, and tags by their kinds. Raises `DataError` where there are fewer than two.
    """
    rows = [own for examples in tasks for row in examples.rows if (own := _labels(row)) is not None]
    if not rows:
        if recipe.labels:
            raise RecipeError("labels must be given for texts or words with labels only, but the rows have none")
        return []
    tagged = is_tagging(tasks)
    if recipe.labels:
        return list(recipe.labels)
    found = {label for own in rows for label in own}
    count = sum(len(own) for own in rows)
    if len(found) < 2:
        raise DataError(f"a classifier must have at least two labels, but all rows have {', '.join(found)!r}")
    if len(found) > count // 2:
        raise DataError(
            f"labels must come again, but {len(found):,} of {count:,} are different: name the right column "
            "(--columns), or another --format"
        )
    return sorted(found, key=_tag_order if tagged else _label_order)


def is_tagging(tasks: Sequence[Examples]) -> bool:
    """Whether rows have words with tags; raises `DataError` where others have texts with labels."""
    forms = {type(row.meaning) for examples in tasks for row in examples.rows} & {Tagged, Labelled}
    if len(forms) > 1:
        raise DataError("one model labels texts or words, but the rows of this run have both: tune twice")
    return forms == {Tagged}


def _labels(row: Example) -> tuple[str, ...] | None:
    if isinstance(row.meaning, Tagged):
        return row.meaning.tags
    return (row.meaning.label,) if isinstance(row.meaning, Labelled) else None


def _label_order(label: str) -> tuple[bool, int, str]:
    return not label.isdigit(), int(label) if label.isdigit() else 0, label


def _tag_order(tag: str) -> tuple[bool, tuple[bool, int, str], str]:
    """O, then B- and I- of each kind beside each other."""
    return tag != "O", _label_order(tag.partition("-")[2] or tag), tag


def prepare(
    recipe: TuneRecipe, subject: Subject, tasks: Sequence[Examples], labels: Sequence[str], say: Say
) -> Prepared:
    """Render all rows, hold some of each task out, and weigh the tasks; raises `DataError`, `ContextWindowError`."""
    if any(task.form == "preference" for task in tasks) and subject.network.kind != "decoder":
        raise UsageError(
            f"preferences need a model that writes from left to right, but this is an {subject.network.kind}: give "
            "rows with prompt and completion, the chosen answers alone"
        )
    limit = subject.room if recipe.max_seq_length is None else recipe.max_seq_length
    if limit > subject.room:
        raise RecipeError(
            f"max_seq_length must be at most the {subject.room} tokens that are free in the window, but is {limit}"
        )
    train: list[Item] = []
    held: list[Item] = []
    templates, counts = [], []
    for number, (task, examples) in enumerate(zip(recipe.tasks, tasks, strict=True)):
        chosen = templates_for(examples, task.template, subject.tokenizer, bare=subject.network.kind != "decoder")
        templates.append(chosen)
        if subject.network.kind != "encoder":
            say(f"{examples.path.name}: {chosen.note}")
        renderer = Renderer(
            subject.network, subject.tokenizer, chosen, limit, recipe.too_long, labels or subject.labels, number
        )
        rows, other = list(examples.rows), None
        if recipe.validation_data is not None and number == 0:
            other = _read(recipe.validation_data, task, recipe)
            held_rows = list(other.rows)[: recipe.validation_rows]
            _same_form(examples, other)
            if Path(recipe.validation_data).resolve() == examples.path.resolve():
                raise RecipeError("validation_data must be another file than data, but is the same")
            random = np.random.Generator(np.random.Philox(key=[recipe.seed, 1]))
            rows = [rows[i] for i in random.permutation(len(rows))]
        else:
            rows, held_rows = _split(rows, recipe, text=examples.form == "text")
        rows = rows[: recipe.train_rows]
        own = renderer.items(replace(examples, rows=tuple(rows)))
        counts.append(len(own))
        train += own
        held += renderer.items(replace(other or examples, rows=tuple(held_rows)))
        for note in (*renderer.notes, *_endless(own, examples, subject)):
            say(note)
    if len(held) < FEW:
        said = "one row is" if len(held) == 1 else f"{len(held)} rows are"
        say(f"only {said} held out: the verdict will be a rough one; name more as --validation-data")
    weights = shares(counts, [task.weight for task in recipe.tasks], recipe.mixture_temperature)
    names = [task.name or Path(task.data).name.split(".")[0] for task in recipe.tasks]
    if len({item.rejected is None for item in train}) > 1:
        raise DataError("rows with rejected answers (preference) cannot be mixed with others in one run")
    return Prepared(train, held, names, weights, templates, list(tasks), tasks[0].form)


def _read(path: str, task: Task, recipe: TuneRecipe) -> Examples:
    examples = read_examples(
        path,
        form=task.format,
        columns=task.columns,
        encoding=recipe.encoding,
        skip_bad_rows=recipe.skip_bad_rows,
    )
    return _with_labels(examples, recipe) if recipe.labels else examples


def _with_labels(examples: Examples, recipe: TuneRecipe) -> Examples:
    """Return the rows whose labels are among the recipe's; others are an error, or are left out, counted."""
    wrong = {row.row: label for row in examples.rows for label in _labels(row) or () if label not in recipe.labels}
    if not wrong:
        return examples
    kept = tuple(row for row in examples.rows if row.row not in wrong)
    first = "; ".join(f"row {row} has {label!r}" for row, label in [*wrong.items()][:FEW_SHOWN])
    said = f"{len(wrong):,} of {len(examples):,} rows have another label than {', '.join(recipe.labels)} ({first}" + (
        f"; and {len(wrong) - FEW_SHOWN:,} more)" if len(wrong) > FEW_SHOWN else ")"
    )
    if not recipe.skip_bad_rows or not kept:
        raise DataError(f"{examples.path}: {said}; correct them, name all labels, or leave them out (--skip-bad-rows)")
    notes = (*examples.notes, f"{examples.path.name}: {said}; they are left out")
    return replace(examples, rows=kept, bad=examples.bad + len(wrong), notes=notes)


def _endless(items: Sequence[Item], examples: Examples, subject: Subject) -> list[str]:
    """Say that no answer ends with a token at which generation stops, where that is so."""
    if subject.network.kind == "encoder" or examples.form == "text" or not items:
        return []
    last = [int(item.sample.labels[item.sample.labels != IGNORED][-1]) for item in items]
    if not subject.end_ids:
        return ["the model has no token that ends a text, so it will not learn to stop: name one as its eos_token_id"]
    if not subject.end_ids.isdisjoint(last):
        return []
    return [
        f"{examples.path.name}: answers end with {subject.tokenizer.token(last[0])!r}, at which this model does not "
        "stop writing, so it will not learn to stop: let the template end them with {{ eos_token }}"
    ]


def _same_form(examples: Examples, other: Examples) -> None:
    if examples.form != other.form:
        raise DataError(
            f"{other.path} must have rows of the format {examples.form}, as {examples.path.name}, but has {other.form}"
        )


def _split(rows: list[Example], recipe: TuneRecipe, *, text: bool) -> tuple[list[Example], list[Example]]:
    """Hold out a part of the rows, drawn by the seed; at least one stays on either side."""
    if len(rows) < 2:
        way_out = (
            "a plain text is one row: name another as --validation-data, give texts as rows (.jsonl with `text`), or "
            "learn on from it by a recipe of `loquela train` with this model"
            if text
            else "add rows, or name others as --validation-data"
        )
        raise DataError(
            f"there must be at least two rows, one to learn and one to hold out, but there is {len(rows)}; {way_out}"
        )
    random = np.random.Generator(np.random.Philox(key=[recipe.seed, 1]))
    order = random.permutation(len(rows))
    count = min(recipe.validation_rows, max(1, round(recipe.validation_fraction * len(rows))), len(rows) - 1)
    return [rows[i] for i in order[count:]], [rows[i] for i in sorted(order[:count])]
