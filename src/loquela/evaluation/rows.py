"""The rows of a task: from files of several formats, each perhaps in gzip, or from the Hugging Face Hub."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from loquela.data import hub as hub_sets
from loquela.data.files import characters
from loquela.data.rows import BadRow
from loquela.data.rows import Row as TagRow
from loquela.data.tag_rows import read_lines
from loquela.errors import DataError
from loquela.evaluation.task import Data, Hub

__all__ = ["DATA_VARIABLE", "Row", "data_directories", "find", "read_rows", "sample", "task_rows"]

Row: TypeAlias = "dict[str, Any]"
DATA_VARIABLE = "LOQUELA_DATA"
"""The environment variable that names the directory of data sets."""
_CHARACTERS = 1 << 28  # of one file: an evaluation set is read as a whole


def task_rows(data: Data, directories: Sequence[Path], *, hub: bool = False) -> tuple[list[Row], list[Row]]:
    """Return the rows that are asked and those that shots come from; no row is in both.

    Files are looked for in `directories`, in order; with `hub`, or where no file is named, the rows come from the Hub.
    Raises `DataError`.
    """
    if hub or not data.test:
        if data.hub is None:
            raise DataError("this task must name its rows at the Hub, but does not: leave --hub out")
        test = _from_hub(data.hub, data.hub.split)
        shots = _from_hub(data.hub, data.hub.shots) if data.hub.shots else []
    else:
        test = _rows_of(data.test, data, directories)
        shots = [] if isinstance(data.shots, int) else _rows_of(data.shots, data, directories)
    test, shots = _grouped(test, data.group), _grouped(shots, data.group)
    if isinstance(data.shots, int) and not shots:
        held = set(_drawn(len(test), data.shots))
        test, shots = [r for i, r in enumerate(test) if i not in held], [test[i] for i in sorted(held)]
    if not test:
        raise DataError("a task must have rows to ask, but has none")
    return test, shots


def _grouped(rows: list[Row], field: str | None) -> list[Row]:
    """Join rows with the same value of `field` to the first of them."""
    if field is None:
        return rows
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if field not in row:
            raise DataError(f"a row must have the field {field!r} by which rows are joined, but has {', '.join(row)}")
        groups.setdefault(row[field], []).append(row)
    return [
        group[0] | {f"{name}_all": list(dict.fromkeys(row[name] for row in group)) for name in group[0]}
        for group in groups.values()
    ]


def sample(rows: Sequence[Any], limit: int | None) -> list[int]:
    """Return the numbers of `limit` rows, always the same ones, from all over the set, in its order."""
    if limit is None or limit >= len(rows):
        return list(range(len(rows)))
    return _drawn(len(rows), limit)


def _drawn(rows: int, count: int) -> list[int]:
    """Draw `count` numbers below `rows`, always the same; a larger draw holds a smaller one."""
    order = np.random.Generator(np.random.Philox(key=rows)).permutation(rows)
    return sorted(order[:count].tolist())


def find(name: str, directories: Sequence[Path]) -> Path:
    """Return the first file of that name in the directories; raises `DataError` that says the way out."""
    for directory in directories:
        if (directory / name).is_file():
            return directory / name
    looked = f"{' and '.join(map(str, directories))} has none" if directories else "nothing says where it is"
    raise DataError(
        f"the data of this task must be in a file {name}, but {looked}: name the directory that holds it "
        f"with --data-dir or {DATA_VARIABLE}, or take the rows from the Hugging Face Hub with --hub"
    )


def data_directories(given: Path | None) -> list[Path]:
    """Return where data sets are: what was given, else what the environment says."""
    if given is not None:
        return [given]
    return [Path(os.environ[DATA_VARIABLE])] if os.environ.get(DATA_VARIABLE) else []


def _rows_of(files: str | dict[str, str], data: Data, directories: Sequence[Path]) -> list[Row]:
    if isinstance(files, dict):
        return _parallel({field: find(name, directories) for field, name in files.items()})
    rows = read_rows(find(files, directories), columns=data.columns, layout=data.layout)
    return [row for row in rows if all(row.get(key) == value for key, value in data.where.items())]


def read_rows(path: Path, *, columns: Sequence[str] | None = None, layout: str = "rows") -> list[Row]:
    """Read .jsonl, .json, .csv or .tsv (perhaps .gz) whole; a table has a header unless `columns` names them.

    Raises `DataError` that names the file and the row.
    """
    if layout == "conll":
        return [_sentence(path, row) for row in read_lines(path)]
    text = _text(path)
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        return [_object(path, n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if name.endswith(".json"):
        value = _json(path, "the file", text)
        rows = _squad(path, value) if layout == "squad" else value
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path} must be a JSON array of objects, but is not")
        return rows
    if name.endswith((".csv", ".tsv")):
        return _table(path, text, columns, tab=name.endswith(".tsv"))
    raise DataError(f"{path} must be named .jsonl, .json, .csv or .tsv (and perhaps .gz) to be read as rows")


def _sentence(path: Path, row: TagRow | BadRow) -> Row:
    if isinstance(row, BadRow):
        raise DataError(f"{path}, sentence {row.number} {row.reason}")
    return row.fields


def _text(path: Path) -> str:
    parts, size = [], 0
    for part in characters(path, "utf-8", []):
        size += len(part)
        if size > _CHARACTERS:
            raise DataError(f"{path} must have at most {_CHARACTERS:,} characters as an evaluation set, but has more")
        parts.append(part)
    return "".join(parts)


def _json(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{path}, {where} must be JSON of a sane depth, but is nested too deep") from None
    except ValueError as error:
        raise DataError(f"{path}, {where} must be JSON, but is not: {error}") from error


def _object(path: Path, number: int, line: str) -> Row:
    value = _json(path, f"row {number}", line)
    if not isinstance(value, dict):
        raise DataError(f"{path}, row {number} must be an object, but is not")
    return value


def _table(path: Path, text: str, columns: Sequence[str] | None, *, tab: bool) -> list[Row]:
    if tab:  # a tab ends a cell and quotes are quotes, as everywhere in these sets
        cells = [line.split("\t") for line in text.split("\n") if line]
    else:
        try:
            cells = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
        except csv.Error as error:
            raise DataError(f"{path} must be a CSV table, but is not: {error}") from error
    header = list(columns) if columns else cells[0] if cells else []
    first = 0 if columns else 1
    for number, row in enumerate(cells[first:], first + 1):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number} must have {len(header)} cells, but has {len(row)}")
    return [dict(zip(header, row, strict=True)) for row in cells[first:]]


def _squad(path: Path, value: Any) -> list[Row]:
    """Flatten SQuAD's articles and paragraphs to one question a row, with `texts`, its answers."""
    try:
        return [
            {
                "id": question["id"],
                "context": paragraph["context"].strip("\ufeff"),
                "question": question["question"].strip(),
                "texts": [answer["text"] for answer in question["answers"]],
            }
            for article in value["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} must have SQuAD's articles, paragraphs and questions, but lacks {error}") from error


def _parallel(files: Mapping[str, Path]) -> list[Row]:
    """Read one field a file; lines with the same number belong together."""
    lines = {field: _text(path).removesuffix("\n").split("\n") for field, path in files.items()}
    lengths = {field: len(rows) for field, rows in lines.items()}
    if len(set(lengths.values())) != 1:
        said = ", ".join(f"{files[field].name} has {length}" for field, length in lengths.items())
        raise DataError(f"parallel files must have as many lines, but {said}")
    return [dict(zip(lines, row, strict=True)) for row in zip(*lines.values(), strict=True)]


def _from_hub(hub: Hub, split: str) -> list[Row]:
    return list(hub_sets.rows(hub_sets.HubSet(hub.path, hub.name, split)))
