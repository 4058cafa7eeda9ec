"""Sentences with a tag for each word: rows of two lists, or files of a word and its tag in a line (CoNLL's form)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from loquela.data.files import ROW_LIMIT, characters, lines
from loquela.data.rows import BadRow, Row
from loquela.errors import DataError

__all__ = ["ENDINGS_OF_LINES", "TAGS", "WORDS", "Tagged", "is_tagged_lines", "is_tagging", "read_lines", "tagging"]

WORDS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "chunk_tags", "labels")
ENDINGS_OF_LINES = (".conll", ".bio", ".iob", ".iob2", ".iobes")
_ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_SHOWN = 400  # lines by which a file is known
_TOO_LONG = f"a line must have at most {ROW_LIMIT:,} characters, but one is longer"


@dataclass(frozen=True)
class Tagged:
    """The words of a sentence, at least one, and a tag for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def is_tagging(fields: Mapping[str, Any]) -> bool:
    """Whether a row has words and tags."""
    return any(isinstance(fields.get(name), list) for name in WORDS) and any(
        isinstance(fields.get(name), list) for name in TAGS
    )


def tagging(fields: Mapping[str, Any]) -> Tagged:
    """Read a row; tags that are numbers keep their digits as names. Raises `DataError`."""
    words = next(fields[name] for name in WORDS if isinstance(fields.get(name), list))
    tags = next(fields[name] for name in TAGS if isinstance(fields.get(name), list))
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise DataError("must have words, each a text, but has none or an empty one")
    if len(tags) != len(words):
        raise DataError(f"must have a tag for each of its {len(words)} words, but has {len(tags)}")
    if not all(isinstance(tag, str | int) and str(tag).strip() for tag in tags):
        raise DataError("must have tags that are names or numbers, but one is not")
    return Tagged(tuple(word.strip() for word in words), tuple(str(tag).strip() for tag in tags))


def is_tagged_lines(path: Path, encoding: str = "utf-8") -> bool:
    """Whether a file has a word and its tag in a line, with an empty line after each sentence.

    Its name says so (.conll, .bio, .iob), or every line of its beginning is a word without blanks, a tab and a tag, and
    some are empty: a table of texts and labels has neither.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(ENDINGS_OF_LINES):
        return True
    if name.endswith(_ROWS) or not path.is_file():
        return False
    read = list(islice(_lines(path, encoding), _SHOWN))
    cells = [line.split("\t") for line in read if line]
    ends = any(not line for line in read[1:-1])
    return ends and bool(cells) and all(len(row) == 2 and all(c and not c.count(" ") for c in row) for row in cells)


def read_lines(path: Path, *, encoding: str = "utf-8") -> Iterator[Row | BadRow]:
    """Yield the sentences as rows of `tokens` and `tags`, numbered from 1; columns between word and tag are left out.

    Cells are set apart by tabs, or by blanks where a line has no tab. A sentence of -DOCSTART- alone is none.
    """
    number, words, tags, wrong = 1, list[str](), list[str](), ""
    for at, line in enumerate([*_lines(path, encoding), ""], 1):
        cells = line.split("\t") if "\t" in line else line.split()
        if not cells:
            if wrong:
                yield BadRow(number, wrong)
            elif words and words != ["-DOCSTART-"]:
                yield Row(number, {"tokens": words, "tags": tags})
            number += bool(wrong) or (bool(words) and words != ["-DOCSTART-"])
            words, tags, wrong = [], [], ""
        elif len(cells) < 2:
            wrong = wrong or f"must have a word and a tag in each line, but line {at} is {line!r:.60}"
        else:
            words.append(cells[0])
            tags.append(cells[-1])


def _lines(path: Path, encoding: str) -> Iterable[str]:
    return (line.rstrip() for line in lines(characters(path, encoding, []), _TOO_LONG))
