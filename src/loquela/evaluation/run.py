"""`evaluate`: a model, tasks, and the numbers that come of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

from loquela.checkpoint.sentence import read_pooling
from loquela.checkpoint.store import end_ids, load_model
from loquela.engine.choosing import Engine
from loquela.errors import (
    ContextWindowError,
    DataError,
    LoquelaError,
    StorageError,
    TokenizerError,
    UsageError,
    nearest,
)
from loquela.evaluation import code, retrieval
from loquela.evaluation import task as tasks
from loquela.evaluation.ask import Asker, one_by_one
from loquela.evaluation.detect import detect, detect_set
from loquela.evaluation.items import Item, item
from loquela.evaluation.local import LocalSubject, Opened
from loquela.evaluation.plan import Prompter, Settings
from loquela.evaluation.reading import Source, windows
from loquela.evaluation.record import Log, Record
from loquela.evaluation.results import TaskResult, summarise
from loquela.evaluation.rows import Row, data_directories, find, sample, task_rows
from loquela.evaluation.subject import Subject
from loquela.evaluation.tagging import Tagger
from loquela.evaluation.task import Task

__all__ = ["Evaluation", "Prepared", "evaluate", "open_task", "prepare_task", "run"]

Progress: TypeAlias = "Callable[[str, int, int], None]"
"""(task, items done, items in all) → nothing."""


@dataclass(frozen=True)
class Prepared:
    """A task with its rows: those that are asked, and those that shots come from."""

    task: Task
    rows: list[Row]
    pool: list[Row]
    directories: tuple[Path, ...]
    note: str = ""

    @property
    def fingerprint(self) -> str:
        """What changes when anything changes that a score of this task depends on."""
        digest = hashlib.sha256(repr((self.task.model_dump(), self.rows, self.pool)).encode())
        if self.task.kind == "perplexity":
            digest.update(self.file.read_bytes())
        return digest.hexdigest()[:16]

    @property
    def file(self) -> Path:
        """The file of a task that reads one text."""
        if not isinstance(self.task.data.test, str):
            raise UsageError(f"task {self.task.name} must name one file as its text")
        return find(self.task.data.test, self.directories)


@dataclass(frozen=True)
class Evaluation:
    """Results by task, and how long they took."""

    results: dict[str, TaskResult]
    seconds: float
    asked: int
    """Items that were asked now, those of an earlier run left out."""
    failed: dict[str, LoquelaError] = field(default_factory=dict)
    """Why a task has no result, where others have one."""

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "results": {name: result.as_dict() for name, result in self.results.items()},
            "seconds": self.seconds,
            "items_per_second": self.asked / self.seconds if self.seconds else 0.0,
            "failed": {name: str(error) for name, error in self.failed.items()},
        }


def evaluate(
    model: str | Path | Opened | Subject,
    task: str | Path | Task | Sequence[str | Path | Task],
    *,
    data_dir: str | Path | None = None,
    hub: bool = False,
    log: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a model on tasks: their names, YAML tasks or plain data files.

    `model` is what `loquela.load` gave, a model directory, or any `Subject`.

    `settings` are those of `loquela.evaluation.plan.Settings`: `shots`, `select`, `seed`, `order`, `by`, `corrected`,
    `limit`, `engine` … `log` keeps a record per item, and an evaluation that was interrupted goes on from it. Raises
    `UsageError` for what cannot be asked, `DataError` for rows that are missing, `ContextWindowError` where no item
    fits; of several tasks, only where none has a result: else those that have none are in `Evaluation.failed`.
    """
    given = [task] if isinstance(task, str | Path | Task) else list(task)
    try:
        chosen = Settings(**settings).check()
    except TypeError:
        unknown = next(name for name in settings if name not in Settings.__dataclass_fields__)
        raise UsageError(
            f"there is no setting {unknown!r} of an evaluation{nearest(unknown, Settings.__dataclass_fields__)}"
        ) from None
    if not given:
        raise UsageError("an evaluation needs a task: a name, a YAML task or a data file")
    subject = _subject(model, chosen)
    prepared = [prepare_task(one, data_dir=None if data_dir is None else Path(data_dir), hub=hub) for one in given]
    return run(subject, prepared, chosen, log=None if log is None else Path(log), progress=progress)


def _subject(model: str | Path | Opened | Subject, settings: Settings) -> Subject:
    if isinstance(model, str | Path):
        return LocalSubject(_Directory(model), str(model), chat=settings.chat, engine=settings.engine)
    if hasattr(model, "likelihoods"):
        return cast(Subject, model)
    return LocalSubject(model, chat=settings.chat, engine=settings.engine)


class _Directory:
    """A model directory, opened without what stands above this room."""

    def __init__(self, directory: str | Path) -> None:
        loaded = load_model(directory)
        if loaded.tokenizer is None:
            raise TokenizerError(f"text needs the model's tokenizer.json, but {directory} has none")
        self.network, self.tokenizer, self.pooling = loaded.network, loaded.tokenizer, read_pooling(loaded.directory)
        self.engine = Engine()
        self.end_ids = end_ids(self.network, self.tokenizer, loaded.generation_config)


def open_task(task: str | Path | Task) -> tuple[Task, Path | None, str]:
    """Return a task, the directory beside which its files may lie, and what must be said of it."""
    if isinstance(task, Task):
        return task, None, ""
    path = Path(task)
    if path.suffix in (".yaml", ".yml"):
        return tasks.read(path), path.parent, ""
    if path.is_file():
        found, note = detect(path)
        return found, path.parent, note
    if (of_hub := detect_set(str(task))) is not None:
        return of_hub[0], None, of_hub[1]
    if path.suffix or len(path.parts) > 1:
        raise DataError(
            f"a task must be a name, a YAML file, a data file or a data set of the Hub, but {path} is no file"
        )
    return tasks.named(str(task)), None, ""


def prepare_task(task: str | Path | Task, *, data_dir: Path | None = None, hub: bool = False) -> Prepared:
    """Open a task and read its rows."""
    opened, beside, note = open_task(task)
    directories = [*([beside] if beside else []), *data_directories(data_dir)]
    if opened.kind == "perplexity":
        prepared = Prepared(opened, [], [], tuple(directories), note)
        prepared.file  # noqa: B018 it must be there before a model is asked
        return prepared
    rows, pool = task_rows(opened.data, directories, hub=hub)
    return Prepared(opened, rows, pool, tuple(directories), note)


def run(
    subject: Subject,
    prepared: Sequence[Prepared],
    settings: Settings,
    *,
    log: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask all items of all tasks; see `evaluate`."""
    names = [one.task.name for one in prepared]
    if len(set(names)) < len(names):
        raise UsageError(f"tasks must have different names, but two are called {max(names, key=names.count)}")
    what = {
        "model": subject.name,
        "settings": {name: value for name, value in vars(settings).items() if name != "allow_code_execution"},
        "tasks": {one.task.name: one.fingerprint for one in prepared},
    }
    began, asked = time.perf_counter(), 0
    results: dict[str, TaskResult] = {}
    failed: dict[str, LoquelaError] = {}
    with Log(log, what) as kept:
        for one in prepared:
            try:
                results[one.task.name], fresh = _result(subject, one, settings, kept, progress)
                asked += fresh
            except StorageError:
                raise
            except LoquelaError as error:  # what the other tasks found is worth having
                failed[one.task.name] = error
    if not results and failed:
        raise next(iter(failed.values()))
    return Evaluation(results, time.perf_counter() - began, asked, failed)


def _result(
    subject: Subject, one: Prepared, settings: Settings, kept: Log, progress: Progress | None
) -> tuple[TaskResult, int]:
    """Return the result of one task, and how many of its items were asked now."""
    notes = [one.note] if one.note else []
    found = [*_records(subject, one, settings, kept, notes, progress)]
    fitting = sorted((pair for pair in found if "too_long" not in pair[0]), key=lambda pair: pair[0]["item"])
    if not fitting:
        size = "" if subject.window is None else f" of {subject.window} tokens"
        first = next((f" ({record['too_long']})" for record, _ in found), "")
        raise ContextWindowError(
            f"no item of task {one.task.name} fits the context window{size}: use a model with a larger window, or "
            f"fewer shots{first}"
        )
    if left := len(found) - len(fitting):
        notes.append(f"{left} of {len(found)} items were left out: they do not fit the context window, and none is cut")
    return summarise(one.task, [record for record, _ in fitting], notes), sum(fresh for _, fresh in fitting)


def _records(
    subject: Subject, one: Prepared, settings: Settings, kept: Log, notes: list[str], progress: Progress | None
) -> Iterator[tuple[Record, bool]]:
    """Yield every record and whether it was made now; each new one is in the log before it is yielded."""
    task = one.task
    done = {number: record for (name, number), record in kept.done.items() if name == task.name}
    if task.kind == "perplexity":
        source, total = windows(subject, task.name, one.file, settings, done, notes)
    else:
        numbers = sample(one.rows, settings.limit)
        items = [item(task, one.rows[i], i) for i in numbers]
        source, total = _asked(subject, one, items, settings, done), len(items)
    for count, (number, record, fresh) in enumerate(source, 1):
        if fresh:
            record = {"task": task.name, "item": number, **record}
            kept.add(record)
        yield record, fresh
        if progress is not None:
            progress(task.name, count, total)


def _asked(
    subject: Subject, one: Prepared, items: Sequence[Item], settings: Settings, done: dict[int, Record]
) -> Source:
    ask: Callable[[Iterable[Item]], Iterator[Record]]
    task = one.task
    if task.kind == "retrieve":
        ask = partial(one_by_one, retrieval.Ranker(subject, task, one.rows), at_once=subject.at_once)
    elif task.kind == "tag":
        ask = partial(one_by_one, Tagger(subject, one.rows, settings.shots), at_once=subject.at_once)
    elif task.kind == "code":
        runner = code.Runner(subject, task, allowed=settings.allow_code_execution)
        ask = partial(one_by_one, runner, at_once=subject.at_once)
    else:
        embed = None if subject.kind == "remote" else subject.embed
        ask = Asker(subject, task, Prompter(task, one.pool, subject, settings, embed), settings)
    yield from ((asked.number, done[asked.number], False) for asked in items if asked.number in done)
    left = [asked for asked in items if asked.number not in done]
    for asked, record in zip(left, ask(left), strict=True):
        yield asked.number, record, True
