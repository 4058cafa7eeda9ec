"""A task: which rows, how one of them becomes a prompt, and what a right answer is. One short YAML file each."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loquela.errors import DataError, RecipeError, UsageError, nearest

__all__ = ["Data", "Hub", "Kind", "Task", "named", "names", "read"]

Kind: TypeAlias = Literal["choice", "next_word", "generate", "perplexity", "retrieve", "code", "tag"]
_MAX_BYTES = 1 << 14


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Hub(_Strict):
    """The same rows by their name at the Hugging Face Hub."""

    path: str = Field(description="Name of the data set.")
    name: str | None = Field(default=None, description="Its configuration.")
    split: str = Field(default="validation", description="The split that is asked.")
    shots: str | None = Field(default=None, description="The split that shots come from.")


class Data(_Strict):
    """Where the rows are. Files are those of a data directory, or lie beside the task's own file."""

    test: str | dict[str, str] = Field(
        description="The file that is asked; or one file per field, whose lines belong together."
    )
    shots: str | dict[str, str] | int = Field(
        default=0, description="The file that shots come from; or that many rows of `test`, which are then not asked."
    )
    columns: list[str] | None = Field(default=None, description="Names of the columns of a table without a header.")
    where: dict[str, Any] = Field(default_factory=dict, description="Only rows with these values.")
    group: str | None = Field(
        default=None, description="Rows with the same value here are one; `FIELD_all` lists their values of a field."
    )
    layout: Literal["rows", "squad", "conll"] = Field(
        default="rows", description="How a file holds its rows: SQuAD's JSON, or a word and its tag in a line."
    )
    hub: Hub | None = Field(default=None, description="The same rows at the Hugging Face Hub.")


class Task(_Strict):
    """All of a task. Templates name the fields of a row; see `loquela.prompting.templates`."""

    name: str = Field(default="task", pattern=r"^[\w.-]{1,64}$")
    about: str = Field(default="", description="What it asks, and who made it.")
    kind: Kind
    data: Data

    description: str = Field(default="", description="Stands before shots and question.")
    prompt: str | list[str] = Field(default="{prompt}", description="The question; or one context for each choice.")
    delimiter: str = Field(default=" ", description="Between question and answer.")
    separator: str = Field(default="\n\n", description="Between examples.")

    choices: str | list[str] | None = Field(
        default=None, description="A template for each choice, or the field that lists them."
    )
    answer: str | None = Field(default=None, description="The field that says which choice is right.")
    answers: list[Any] | str | None = Field(
        default=None, description="What that field says for each choice (or the field that lists it); else its number."
    )
    target: str | None = Field(default=None, description="What comes after the prompt: the word, or the reference.")
    references: str | None = Field(default=None, description="The field that lists all references, if several.")
    shuffle: bool = Field(default=False, description="Put the choices in an order that depends on the row alone.")
    words: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Field → what its values are called in templates."
    )
    text: str | None = Field(default=None, description="What a classifier reads.")
    pair: str | None = Field(default=None, description="The second text that it reads.")
    labels: list[str] | None = Field(default=None, description="How a classifier may call the choices.")

    stop: list[str] = Field(default_factory=lambda: ["\n"], description="A generated answer ends before these.")
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    extract: str | None = Field(default=None, description="A regular expression; the last match is the answer.")
    extract_target: str | None = Field(default=None, description="The same for the reference.")
    metrics: list[str] = Field(default_factory=list, description="Of `loquela.evaluation.metrics`; the first is main.")

    def check(self) -> Task:
        """Raise `RecipeError` where keys contradict each other."""
        wrong = _contradiction(self)
        if wrong:
            raise RecipeError(f"task {self.name}: {wrong}")
        return self


_NEEDS = {
    "choice": ("choices", "answer"),
    "next_word": ("target",),
    "generate": ("target", "metrics"),
    "perplexity": (),
    "retrieve": ("text", "target"),
    "code": (),
    "tag": (),
}


def _contradiction(task: Task) -> str:
    missing = [key for key in _NEEDS[task.kind] if not getattr(task, key)]
    if missing:
        return f"a task of kind {task.kind} must have {' and '.join(missing)}"
    if isinstance(task.prompt, list) and (not isinstance(task.choices, list) or len(task.prompt) != len(task.choices)):
        return "prompt must be one template, or a list with one for each of the choices"
    return ""


def names() -> list[str]:
    """Return the names of the tasks that come with the package, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in _directory().iterdir() if f.name.endswith(".yaml"))


def named(name: str) -> Task:
    """Return a task that comes with the package; raises `UsageError`."""
    if name not in names():
        raise UsageError(f"there is no task {name!r}{nearest(name, names())} (loquela evaluate --list shows all)")
    return _parse((_directory() / f"{name}.yaml").read_text(encoding="utf-8"), name)


def read(path: str | Path) -> Task:
    """Read a task of one's own from a YAML file; raises `RecipeError`, `DataError`."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} must be a readable task, but: {error}") from error
    if len(text) > _MAX_BYTES:
        raise RecipeError(f"{path} must be a task of at most {_MAX_BYTES} characters, but is longer")
    return _parse(text, path.stem)


@cache
def _directory() -> Any:
    return resources.files("loquela.evaluation") / "tasks"


def _parse(text: str, name: str) -> Task:
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"task {name} must be YAML, but is not: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise RecipeError(f"task {name} must be YAML of a sane depth, but is nested too deep") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"task {name} must be keys and values, but is not")
    try:
        return Task(**{"name": name, **{str(key): value for key, value in raw.items()}}).check()
    except ValidationError as error:
        raise RecipeError(f"task {name}: {'; '.join(map(_sentence, error.errors()))}") from None


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r}{nearest(str(error['loc'][-1]), [*Task.model_fields, *Data.model_fields])}"
    return f"{where}: {error['msg']}"
