"""What a row of tuning data means: its format is detected from its fields, or named.

A format is one function (fields) → `Example`, entered in `FORMATS` with the fields that it is known by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loquela.data import chat_rows, hub
from loquela.data.chat_rows import Conversation, text_of
from loquela.data.rows import BadRow, Row, read_rows
from loquela.data.tag_rows import Tagged, is_tagged_lines, is_tagging, read_lines, tagging
from loquela.errors import DataError, UsageError, nearest

__all__ = ["FORMATS", "Conversation", "Example", "Examples", "Labelled", "Pair", "Tagged", "Text", "read_examples"]

_SHOWN = 3
"""Bad rows that an error names; it counts the rest."""
_SAMPLE = 200
"""Rows by which a format is detected."""


@dataclass(frozen=True)
class Pair:
    """A completion and the `fields` that its prompt is made of, by the template for its `form`."""

    form: str
    fields: dict[str, str]
    completion: str
    rejected: str | None = None


@dataclass(frozen=True)
class Text:
    """A text, all of it to be learnt."""

    text: str


@dataclass(frozen=True)
class Labelled:
    """A text and its label."""

    text: str
    label: str


Meaning = Conversation | Pair | Text | Labelled | Tagged


@dataclass(frozen=True)
class Example:
    """What a row means, and which row it is."""

    row: int
    meaning: Meaning


@dataclass(frozen=True)
class Examples:
    """The usable rows of a file, in one format; `notes` is what is to be said aloud."""

    path: Path
    form: str
    rows: tuple[Example, ...]
    bad: int
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


def _pair(form: str, prompts: Sequence[str], completions: Sequence[str]) -> Callable[[Mapping[str, Any]], Meaning]:
    def read(fields: Mapping[str, Any]) -> Meaning:
        prompt = next(key for key in prompts if key in fields)
        completion = next(key for key in completions if key in fields)
        own = {prompts[0]: text_of(fields, prompt, empty=form == "prompt-completion")}
        others = {k: str(v) for k, v in fields.items() if isinstance(v, str | int | float) and k != completion}
        return Pair(form, others | own, text_of(fields, completion))

    return read


def _translation(fields: Mapping[str, Any]) -> Meaning:
    if "translation" not in fields:
        return _pair("translation", ("source",), ("target",))(fields)
    sides = fields["translation"]
    if not isinstance(sides, Mapping) or len(sides) != 2:
        raise DataError("must have two languages under 'translation', but has not")
    source, target = sides
    return Pair("translation", {"source": text_of(sides, source)}, text_of(sides, target))


def _classification(fields: Mapping[str, Any]) -> Meaning:
    text = text_of(fields, "text" if "text" in fields else "sentence")
    return Labelled(text, text_of(fields, "label").strip())


_PROMPTS, _COMPLETIONS = ("prompt", "question", "query"), ("completion", "answer", "response")
_DOCUMENTS = ("dialogue", "document", "article")
FORMATS: dict[str, tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any]], Meaning], str]] = {
    "preference": (lambda f: {"chosen", "rejected"} <= f.keys(), chat_rows.preference, "prompt, chosen, rejected"),
    "sharegpt": (lambda f: "conversations" in f, chat_rows.sharegpt, "conversations [{from, value}]"),
    "chat": (lambda f: "messages" in f, chat_rows.messages, "messages [{role, content}]"),
    "alpaca": (lambda f: {"instruction", "output"} <= f.keys(), chat_rows.alpaca, "instruction, input, output"),
    "prompt-completion": (
        lambda f: any(p in f for p in _PROMPTS) and any(c in f for c in _COMPLETIONS),
        _pair("prompt-completion", _PROMPTS, _COMPLETIONS),
        "prompt, completion",
    ),
    "translation": (
        lambda f: "translation" in f or {"source", "target"} <= f.keys(),
        _translation,
        "source, target",
    ),
    "summarisation": (
        lambda f: any(d in f for d in _DOCUMENTS) and "summary" in f,
        _pair("summarisation", _DOCUMENTS, ("summary",)),
        "dialogue, summary",
    ),
    "tagging": (is_tagging, tagging, "tokens, tags"),
    "classification": (
        lambda f: "label" in f and ("text" in f or "sentence" in f),
        _classification,
        "text, label",
    ),
    "text": (lambda f: "text" in f, lambda f: Text(text_of(f, "text")), "text"),
}
"""Name → by which fields it is known, how a row is read, and the fields in words; the first that fits is detected."""


def read_examples(
    source: str | Path,
    *,
    form: str | None = None,
    columns: Sequence[str] = (),
    encoding: str = "utf-8",
    skip_bad_rows: bool = False,
) -> Examples:
    """Read a file of tuning data, or a set of the Hub (`loquela.data.hub`), all of it.

    `form` names a format of `FORMATS` instead of the detected one.

    Raises `DataError` that names the file and the first bad rows and counts them, unless `skip_bad_rows`; then they
    are left out and a note counts them. Raises it also when no row can be used or no format fits.
    """
    path = Path(source)
    if form is not None and form not in FORMATS:
        raise UsageError(f"the format must be one of {', '.join(FORMATS)}, but is {form!r}{nearest(form, FORMATS)}")
    notes: list[str] = []
    rows: list[Row | BadRow]
    if (chosen := hub.named(str(source))) is not None:
        rows = [Row(number, fields) for number, fields in enumerate(hub.rows(chosen), 1)]
        found = form or _detect(path, rows)
    elif form in (None, "tagging") and not columns and is_tagged_lines(path, encoding):
        rows, found = list(read_lines(path, encoding=encoding)), "tagging"
    else:
        rows = _named(list(read_rows(path, encoding=encoding, columns=columns, notes=notes)), form)
        found = form or _detect(path, rows)
    fits, read, needed = FORMATS[found]
    examples, bad = [], []
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
        elif not fits(row.fields):
            bad.append(BadRow(row.number, f"must have the fields {needed}, but has {_names(row.fields)}"))
        else:
            try:
                examples.append(Example(row.number, read(row.fields)))
            except DataError as error:
                bad.append(BadRow(row.number, str(error)))
    said = f"{len(bad):,} of {len(rows):,} rows cannot be used: " + "; ".join(
        f"row {b.number} {b.reason}" for b in bad[:_SHOWN]
    )
    said += f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    if not examples or (bad and not skip_bad_rows):
        way_out = "" if not examples else "; correct them, or leave them out with --skip-bad-rows"
        raise DataError(f"{path}: {said if bad else 'there must be rows, but there are none'}{way_out}")
    how = "named" if form else "detected"
    notes.append(f"{path.name}: {len(examples):,} rows, format {found} ({needed}; {how})")
    if bad:
        notes.append(f"{path.name}: {said}; they are left out")
    return Examples(path, found, tuple(examples), len(bad), tuple(notes))


def _named(rows: list[Row | BadRow], form: str | None) -> list[Row | BadRow]:
    """Name the two cells of a table without a header: text and label where few texts come again and again."""
    pairs = [row for row in rows if isinstance(row, Row) and row.fields.keys() == {"1", "2"}]
    if not pairs:
        return rows
    second = Counter(row.fields["2"] for row in pairs)
    labels = form == "classification" if form else 2 * len(second) <= len(pairs)
    if form == "prompt-completion":
        names = ("prompt", "completion")
    elif form == "summarisation":
        names = ("document", "summary")
    else:
        names = ("text", "label") if labels else ("source", "target")
    return [
        Row(row.number, dict(zip(names, row.fields.values(), strict=True)))
        if isinstance(row, Row) and row.fields.keys() == {"1", "2"}
        else row
        for row in rows
    ]


def _detect(path: Path, rows: Sequence[Row | BadRow]) -> str:
    usable = [row for row in rows if isinstance(row, Row)][:_SAMPLE]
    votes = Counter(next((name for name, (fits, _, _) in FORMATS.items() if fits(row.fields)), None) for row in usable)
    votes.pop(None, None)
    if not votes:
        wanted = "; ".join(f"{name}: {fields}" for name, (_, _, fields) in FORMATS.items())
        have = _names(usable[0].fields) if usable else "no usable row"
        more = ", or name the cells of a table (--columns text,label)" if usable and "1" in usable[0].fields else ""
        raise DataError(f"{path} must have rows of a known format ({wanted}), but has {have}{more}")
    return votes.most_common(1)[0][0]  # type: ignore[return-value]


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, fields))[:200] or "no fields"
