"""From a file to its text, piece by piece; no file is too large.

Two forms. A plain text (.txt, or any other name) is one document, a row of characters. A document set has one document
per row, its text under `text`: .jsonl, .json, .csv, .tsv. Each may be compressed with gzip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from loquela.data import documents
from loquela.data.files import characters
from loquela.errors import DataError

__all__ = ["Piece", "Source", "cut", "file_hash", "measure", "read_pieces"]

PIECE = 1 << 15
"""Characters of a piece, about: small enough to spread over cores, large enough that borders are rare."""
_PATIENCE = 4 * PIECE  # characters to wait for a line end before a blank will do
_HARD_LIMIT = 1 << 20  # characters to wait for any safe place


@dataclass(frozen=True)
class Piece:
    """A stretch of text; `ends_document` where nothing of its document follows."""

    text: str
    ends_document: bool


@dataclass(frozen=True)
class Source:
    """What one walk through a file tells: `size` counts the characters of a plain text, or the documents of a set."""

    path: Path
    is_document_set: bool
    size: int
    characters: int
    notes: tuple[str, ...]


def measure(path: str | Path, *, encoding: str = "utf-8") -> Source:
    """Walk through a file once, in bounded memory: is all of it text, and how much of it. Raises as `read_pieces`."""
    path, notes = _regular(Path(path)), list[str]()
    is_set = documents.format_of(path) is not None
    count = total = 0
    for piece in read_pieces(path, encoding=encoding, notes=notes):
        total += len(piece.text)
        count += piece.ends_document
    return Source(path, is_set, count if is_set else total, total, tuple(notes))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; raises `DataError`."""
    digest = hashlib.sha256()
    try:
        with _regular(path).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path} must be readable, but: {error.strerror}") from error
    return digest.hexdigest()


def _regular(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} must be a regular file, since it is read more than once, but is not")
    return path


def read_pieces(
    path: str | Path,
    *,
    encoding: str = "utf-8",
    start: int = 0,
    stop: int | None = None,
    notes: list[str] | None = None,
) -> Iterator[Piece]:
    """Yield the text of a file from `start` to `stop`: characters of a plain text, or documents of a set.

    A plain text is read as Python reads one: line ends become line feeds, a byte order mark is no text. It is cut
    where tokens do not change: after a line feed between two characters that are no white space; in a very long line
    before a blank between two such; in a line of a million characters without either, anywhere. What was done to the
    text is appended to `notes`, one line each.

    Raises `TextDecodingError` (bytes that are not text in `encoding`; it names the first), `DataError` (empty,
    binary or damaged), `UsageError` (an encoding that Python does not know).
    """
    path, notes = Path(path), [] if notes is None else notes
    form = documents.format_of(path)
    text = characters(path, encoding, notes)
    if form is None:
        yield from cut(_window(text, start, stop), path, notes)
        return
    found = False
    for index, document in enumerate(form(path, text)):
        found = True
        if stop is not None and index >= stop:
            return
        if index >= start:
            yield from cut([document], path, notes)
    if not found:
        raise DataError(f"{path} must have documents, but has none")


def _window(parts: Iterable[str], start: int, stop: int | None) -> Iterator[str]:
    """Yield the characters from `start` to `stop`; a negative slice bound never arises."""
    position = 0
    for part in parts:
        begin, end = max(0, start - position), len(part) if stop is None else min(len(part), stop - position)
        if begin < end:
            yield part[begin:end]
        position += len(part)
        if stop is not None and position >= stop:
            return


def cut(parts: Iterable[str], path: Path, notes: list[str]) -> Iterator[Piece]:
    """Yield the pieces of one document, which comes in any `parts`; see `read_pieces`."""
    buffer, searched = "", 0  # nowhere before `searched` is a safe place
    cut_anywhere = False
    for part in parts:
        buffer += part
        begin = 0
        while len(buffer) - begin > _PATIENCE:
            here = max(begin + PIECE, searched)
            if (line := _alone("\n", buffer, here)) >= 0:
                end = line + 1
            elif (blank := _alone(" ", buffer, here)) >= 0:
                end = blank
            elif len(buffer) - begin > _HARD_LIMIT:
                end, cut_anywhere = begin + _HARD_LIMIT, True
            else:
                searched = len(buffer) - 1
                break
            yield Piece(buffer[begin:end], ends_document=False)
            begin = end
        buffer, searched = buffer[begin:], max(0, searched - begin)
    yield Piece(buffer, ends_document=True)
    if cut_anywhere:
        notes.append(
            f"{path.name} has stretches of more than {_HARD_LIMIT:,} characters without a line end or a blank; "
            "they are cut anywhere, and a token may be cut there"
        )


def _alone(mark: str, text: str, start: int) -> int:
    """Return where `mark` stands from `start` on, after and before a character that is no white space; else -1."""
    position = text.find(mark, start)
    while 0 <= position < len(text) - 1:
        if not text[position - 1].isspace() and not text[position + 1].isspace():
            return position
        position = text.find(mark, position + 1)
    return -1
