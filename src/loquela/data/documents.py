"""Document sets: one document per row, its text under `text`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loquela.data.files import ROW_LIMIT, lines
from loquela.errors import DataError

__all__ = ["Format", "format_of"]

FIELD = "text"
_JSON_LIMIT = 1 << 28  # characters of a .json file, which must be read as a whole
csv.field_size_limit(ROW_LIMIT)

Format = Callable[[Path, Iterator[str]], Iterator[str]]
"""(path, its characters) → the texts of its documents."""


def format_of(path: Path) -> Format | None:
    """Return how to read the document set that the name of a file (before .gz) promises; None for a plain text."""
    name = path.name.lower().removesuffix(".gz")
    return _FORMATS.get(name[name.rfind(".") :])


def _jsonl(path: Path, characters: Iterator[str]) -> Iterator[str]:
    for row, line in enumerate(_lines(path, characters), 1):
        if line.strip():
            yield _text(path, row, _parsed(path, f"row {row}", line))


def _json(path: Path, characters: Iterator[str]) -> Iterator[str]:
    parts: list[str] = []
    size = 0
    for part in characters:
        parts.append(part)
        size += len(part)
        if size > _JSON_LIMIT:
            raise DataError(f"{path} must have at most {_JSON_LIMIT:,} characters as .json, but has more; use .jsonl")
    rows = _parsed(path, "the file", "".join(parts))
    if not isinstance(rows, list):
        raise DataError(f"{path} must be a JSON array of documents, but is {_article(rows)}; one per line is .jsonl")
    for row, value in enumerate(rows, 1):
        yield _text(path, row, value)


def _table(path: Path, characters: Iterator[str], **dialect: Any) -> Iterator[str]:
    reader = csv.reader(
        _lines(path, characters),
        strict=True,
        **dialect,
    )
    row = 0
    try:
        header = next(reader, [])
        if FIELD not in header:
            raise DataError(f"{path} must have a column '{FIELD}' in its first row, but has {_names(header)}")
        column = header.index(FIELD)
        for row, cells in enumerate(reader, 1):
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{path}, row {row} must have {len(header)} cells as the first row has, but has {len(cells)}"
                )
            if cells:
                yield _text(path, row, cells[column])
    except csv.Error as error:
        raise DataError(f"{path}, row {row + 1} must be a row of a table, but is not: {error}") from error


def _csv(path: Path, characters: Iterator[str]) -> Iterator[str]:
    return _table(path, characters)


def _tsv(path: Path, characters: Iterator[str]) -> Iterator[str]:
    return _table(path, characters, delimiter="\t", quoting=csv.QUOTE_NONE)


_FORMATS: dict[str, Format] = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv}


def _lines(path: Path, characters: Iterable[str]) -> Iterator[str]:
    return lines(characters, f"{path} must have rows of at most {ROW_LIMIT:,} characters, but one is longer")


def _parsed(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{path}, {where} must be JSON of a sane depth, but is nested too deep") from None
    except ValueError as error:
        raise DataError(f"{path}, {where} must be JSON, but is not: {error}") from error


def _text(path: Path, row: int, value: Any) -> str:
    if isinstance(value, Mapping):
        if FIELD not in value:
            raise DataError(f"{path}, row {row} must have its document under '{FIELD}', but has {_names(value)}")
        value = value[FIELD]
    if not isinstance(value, str):
        raise DataError(f"{path}, row {row} must be a text, but is {_article(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path}, row {row} must be whole characters, but character {error.start} is half a surrogate pair"
            ) from error
    return value


def _names(names: Iterable[object]) -> str:
    return ", ".join(map(repr, names))[:200] or "no names"  # as repr, so that a message stays one line


def _article(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
