"""Documents from any mix of files, patterns, directories, corpora of the package and sets of the Hub."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loquela.data import corpora, documents, hub
from loquela.data.files import ENDINGS
from loquela.data.hub import HUB
from loquela.data.readers import Piece, cut, read_pieces
from loquela.data.rows import BadRow, read_rows
from loquela.errors import DataError

__all__ = ["HUB", "Gathering", "find"]

_SHOWN = 3
_LONGEST = 200


@dataclasses.dataclass
class Gathering:
    """The documents of some sources, one after the other; walking through it counts what is left out."""

    sources: Sequence[str]
    column: str = "text"
    """Where a row of a document set has its text."""
    encoding: str = "utf-8"
    skip_bad_rows: bool = False
    """Whether a row that cannot be used is left out and counted, or an error."""
    bad_rows: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[int, Piece]]:
        """Yield (source, piece) in order; a document's pieces stand together, the last says that it ends."""
        self.bad_rows, self.notes = 0, []
        for index, source in enumerate(self.sources):
            for piece in self._pieces(source):
                yield index, piece

    def _pieces(self, source: str) -> Iterator[Piece]:
        if (chosen := hub.named(source)) is not None:
            yield from self._rows_of(source, enumerate(hub.rows(chosen), 1))
        elif _is_set(Path(source)):
            yield from self._rows_of(source, self._rows(source))
        else:
            yield from read_pieces(source, encoding=self.encoding, notes=self.notes)

    def _rows(self, source: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
        for row in read_rows(source, encoding=self.encoding, header=self.column, notes=self.notes):
            yield row.number, row.reason if isinstance(row, BadRow) else row.fields

    def _rows_of(self, source: str, rows: Iterator[tuple[int, dict[str, Any] | str]]) -> Iterator[Piece]:
        """Turn rows into pieces; those that are none are collected, and end it or are counted."""
        bad: list[str] = []
        good, path = 0, Path(source)
        for number, fields in rows:
            reason = fields if isinstance(fields, str) else self._wrong(fields)
            if reason is not None:
                bad.append(f"row {number} {' '.join(reason.split())[:_LONGEST]}")
                if len(bad) > _SHOWN and not self.skip_bad_rows:
                    break
                continue
            good += 1
            assert isinstance(fields, dict)
            yield from cut([fields[self.column]], path, self.notes)
        if bad and not self.skip_bad_rows:
            raise DataError(f"{source}: {'; '.join(bad[:_SHOWN])}; mend them, or leave such rows out: --skip-bad-rows")
        self.bad_rows += len(bad)
        if bad:
            self.notes.append(f"{source}: {len(bad):,} rows are left out, the first: {bad[0]}")
        if not good:
            raise DataError(f"{source} must have documents, but has none")

    def _wrong(self, fields: dict[str, Any]) -> str | None:
        """Say what is wrong with a row, if anything."""
        if self.column not in fields:
            names = ", ".join(map(repr, fields))[:_LONGEST] or "no names"
            return f"must have its document under {self.column!r}, but has {names}"
        text = fields[self.column]
        if not isinstance(text, str) or not text.strip():
            return f"must have a text under {self.column!r}, but has {'none' if not text else 'something else'}"
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return f"must be whole characters, but character {error.start} is half a surrogate pair"
        return None

    def sizes(self, most: int) -> list[int] | None:
        """Return the characters of each document if there are fewer than `most`, else None, which comes early."""
        sizes, size = list[int](), 0
        for _, piece in self:
            size += len(piece.text)
            if piece.ends_document:
                sizes.append(size)
                size = 0
                if len(sizes) == most:
                    return None
        return sizes

    def hashes(self) -> list[str]:
        """Return the SHA-256 of each source; of a Hub set, its revision."""
        return [hub.digest(source) for source in self.sources]


def find(names: Sequence[str]) -> list[str]:
    """Return the files that are meant, in order, each once: files, patterns, directories, corpora, `hub:NAME[:SPLIT]`.

    Raises `DataError` for a name that finds nothing.
    """
    found: list[str] = []
    for name in names:
        if name.startswith(HUB):
            found.append(name)
        elif Path(name).is_dir():
            inside = [
                str(path) for path in sorted(Path(name).rglob("*")) if path.is_file() and _ending(path) in ENDINGS
            ]
            found += _some(name, inside, f"files ending in .{', .'.join(ENDINGS)}")
        elif glob.has_magic(name) and not Path(name).exists():
            matching = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  # a pattern may be absolute
            found += _some(name, [path for path in matching if Path(path).is_file()], "files")
        else:
            found.append(str(corpora.resolve(name)))
    return list(dict.fromkeys(found))


def _some(name: str, found: list[str], what: str) -> list[str]:
    if not found:
        raise DataError(f"{name} must find {what}, but finds none")
    return found


def _ending(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


def _is_set(path: Path) -> bool:
    return documents.format_of(path) is not None or _ending(path) == "parquet"
