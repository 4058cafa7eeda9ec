"""The rows of a file that tuning reads: .jsonl, .json, .csv, .tsv, .parquet, .txt, each also in gzip.

A row is a dict of fields, or what is wrong with it: one bad row is no reason not to see the next one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loquela.data.files import ROW_LIMIT, characters, chunks, lines
from loquela.errors import DataError, MissingExtraError

__all__ = ["BadRow", "Row", "read_rows"]

HEADER_WORDS = frozenset(
    """text sentence label labels prompt completion instruction input output question answer response query source
    target dialogue document article summary chosen rejected messages conversations translation system title""".split()
)
"""A first row of a table that has one of these as a cell is its header."""
_TOO_LONG = f"a row must have at most {ROW_LIMIT:,} characters, but one is longer"
_JSON_LIMIT = 1 << 28  # characters of a .json file, which must be read as a whole
_PACKED_LIMIT = 1 << 31  # bytes of a .parquet.gz


@dataclass(frozen=True)
class Row:
    """A row by its number (from 1; a header is not counted) and its fields."""

    number: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that is none, and why."""

    number: int
    reason: str


def read_rows(
    path: str | Path,
    *,
    encoding: str = "utf-8",
    columns: Sequence[str] = (),
    header: str | None = None,
    notes: list[str] | None = None,
) -> Iterator[Row | BadRow]:
    """Yield the rows of a file in their order.

    `columns` names the cells of a table without a header; unnamed, they are called 1, 2, … `header` is a name by which
    a table's first row is known to be its header, beside `HEADER_WORDS`. Any other name than the
    five endings is a plain text: one row, under `text`. Raises `DataError` when the file as a whole cannot be read.
    """
    path, notes = Path(path), [] if notes is None else notes
    if not path.is_file():
        raise DataError(f"{path} must be a file of rows, but {'is a directory' if path.is_dir() else 'does not exist'}")
    ending = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if ending == "parquet":
        yield from _parquet(path)
        return
    text = characters(path, encoding, notes)
    if ending in ("jsonl", "ndjson"):
        yield from _jsonl(text)
    elif ending == "json":
        yield from _json(path, text)
    elif ending in ("csv", "tsv"):
        yield from _table(
            text, columns, header, **({"delimiter": "\t", "quoting": csv.QUOTE_NONE} if ending == "tsv" else {})
        )
    else:
        yield Row(1, {"text": "".join(text)})


def _jsonl(text: Iterable[str]) -> Iterator[Row | BadRow]:
    for number, line in enumerate(lines(text, _TOO_LONG), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except RecursionError:
            yield BadRow(number, "must be JSON of a sane depth, but is nested too deep")
        except ValueError as error:
            yield BadRow(number, f"must be JSON, but is not: {error}")
        else:
            yield _object(number, value)


def _json(path: Path, text: Iterable[str]) -> Iterator[Row | BadRow]:
    parts: list[str] = []
    size = 0
    for part in text:
        parts.append(part)
        size += len(part)
        if size > _JSON_LIMIT:
            raise DataError(f"{path} must have at most {_JSON_LIMIT:,} characters as .json, but has more; use .jsonl")
    try:
        rows = json.loads("".join(parts))
    except RecursionError:
        raise DataError(f"{path} must be JSON of a sane depth, but is nested too deep") from None
    except ValueError as error:
        raise DataError(
            f"{path} must be a JSON array of rows, but is not JSON: {error}; one per line is .jsonl"
        ) from None
    if not isinstance(rows, list):
        raise DataError(f"{path} must be a JSON array of rows, but is {_kind(rows)}; one object per line is .jsonl")
    for number, value in enumerate(rows, 1):
        yield _object(number, value)


def _object(number: int, value: Any) -> Row | BadRow:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        return BadRow(number, f"must be an object with fields, but is {_kind(value)}")
    return Row(number, value)


def _table(text: Iterable[str], columns: Sequence[str], header: str | None, **dialect: Any) -> Iterator[Row | BadRow]:
    reader = csv.reader(lines(text, _TOO_LONG), strict=True, **dialect)
    names = list(columns)
    number = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield BadRow(number, f"must be a row of a table, but is not: {error}")
            continue
        if not cells:
            continue
        if not names:
            if any(cell.strip() == header or cell.strip().lower() in HEADER_WORDS for cell in cells):
                names = [cell.strip() for cell in cells]
                continue
            names = [str(index) for index in range(1, len(cells) + 1)]
        number += 1
        if len(cells) != len(names):
            yield BadRow(number, f"must have {len(names)} cells ({', '.join(names)}), but has {len(cells)}")
        else:
            yield Row(number, dict(zip(names, cells, strict=True)))


def _parquet(path: Path) -> Iterator[Row | BadRow]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError(f"{path} needs pyarrow: pip install 'loquela[parquet]'") from None
    source: Any = path
    if path.name.lower().endswith(".gz"):
        source = io.BytesIO()
        for chunk in chunks(path):
            if source.tell() > _PACKED_LIMIT:
                raise DataError(f"{path} must unpack to at most {_PACKED_LIMIT:,} bytes, but has more; unpack it")
            source.write(chunk)
        source.seek(0)
    number = 0
    try:
        for batch in parquet.ParquetFile(source).iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield Row(number, fields)
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: bytes that are not text
        raise DataError(f"{path} must be a whole Parquet file, but: {' '.join(str(error).split())}") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
