"""Token ids in memory-mapped files, made once per text and tokenizer.

`train.bin` and `val.bin` are bare little-endian unsigned integers, two bytes each when the vocabulary allows it, else
four; `corpus.json` beside them says what they are and which text and tokenizer they come from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from loquela.data import corpora
from loquela.data.readers import Piece, Source, file_hash, measure, read_pieces
from loquela.data.splits import split_at
from loquela.data.tokens import encode_pieces, end_of
from loquela.errors import DataError, StorageError
from loquela.text.tokenizer import Tokenizer

__all__ = ["Corpus", "TokenFile", "build"]

_FORMAT = 1
_FILES = ("train.bin", "val.bin", "corpus.json")
Progress = Callable[[int, int], None]
"""Called with (characters done, characters in all)."""


@dataclass(frozen=True)
class TokenFile:
    """`tokens` (n,) uint16 or uint32, memory-mapped; `n_bytes` is the length of their text in UTF-8."""

    tokens: npt.NDArray[Any]
    n_bytes: int

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Corpus:
    """A text as token ids, its end held out; `notes` is what is to be said aloud about it."""

    train: TokenFile
    validation: TokenFile
    notes: list[str] = field(default_factory=list)


def build(
    data: str | Path,
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    encoding: str = "utf-8",
    validation_fraction: float = 0.1,
    progress: Progress | None = None,
) -> Corpus:
    """Tokenise a file (or a corpus of the package) into `directory`, in bounded memory; reuse what is there already.

    Held out are the last `validation_fraction` of the characters of a plain text, or of the documents of a set. Each
    document of a set ends with the tokenizer's end token, if it has one; its bytes are not in `n_bytes`. What is
    there is reused when text, tokenizer and settings are the same and the files are as they were written.

    Raises what `read_pieces` raises, and `StorageError` when the disk is full.
    """
    source, directory = corpora.resolve(data), Path(directory)
    wanted = {
        "format": _FORMAT,
        "sha256": file_hash(source),
        "tokenizer": tokenizer.fingerprint,
        "encoding": encoding,
        "validation_fraction": validation_fraction,
    }
    found = _open(directory, wanted)
    if found is not None:
        return found
    measured = measure(source, encoding=encoding)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory, wanted, measured, tokenizer, progress)
    except OSError as error:
        raise StorageError(f"the tokens could not be written to {directory}: {error.strerror}") from error
    finally:
        for name in _FILES:
            with contextlib.suppress(OSError):
                (directory / f"{name}.part").unlink()
    made = _open(directory, wanted)
    if made is None:
        raise StorageError(
            f"the tokens in {directory} must be what was written a moment ago, but are not; see the disk"
        )
    return made


def _write(
    directory: Path, wanted: dict[str, Any], source: Source, tokenizer: Tokenizer, progress: Progress | None
) -> None:
    """Write both token files under other names, then put all in place, corpus.json last."""
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    border = split_at(source.size, wanted["validation_fraction"])
    end = end_of(tokenizer) if source.is_document_set else []
    meter = _Meter(source.characters, progress)
    parts = {}
    for name, start, stop in (("train.bin", 0, border), ("val.bin", border, source.size)):
        pieces = (
            read_pieces(source.path, encoding=wanted["encoding"], start=start, stop=stop) if start < stop else iter(())
        )
        rows = meter.watch(encode_pieces(tokenizer, pieces, end=end), tokenizer)
        with (directory / f"{name}.part").open("wb") as file:
            parts[name] = _write_tokens(file, rows, dtype)
    record = {**wanted, "dtype": dtype, "parts": parts, "notes": [*source.notes, *meter.notes(source, border)]}
    with (directory / "corpus.json.part").open("wb") as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
        _sync(file)
    (directory / "corpus.json").unlink(missing_ok=True)
    for name in _FILES:
        (directory / f"{name}.part").replace(directory / name)


def _write_tokens(file: BinaryIO, rows: Iterable[tuple[list[int], Piece]], dtype: str) -> dict[str, Any]:
    digest, count, n_bytes = hashlib.sha256(), 0, 0
    for ids, piece in rows:
        array = np.asarray(ids, dtype=dtype)
        file.write(array.data)
        digest.update(array.data)
        count += len(array)
        n_bytes += len(piece.text.encode())
    _sync(file)
    return {"tokens": count, "bytes": n_bytes, "sha256": digest.hexdigest()}


class _Meter:
    """Watches the rows go by: how far it is, and what the tokenizer does not keep."""

    def __init__(self, characters: int, progress: Progress | None) -> None:
        self.characters, self.progress = characters, progress
        self.done = self.unknown = 0
        self.is_lossy = False

    def watch(self, rows: Iterable[tuple[list[int], Piece]], tokenizer: Tokenizer) -> Iterator[tuple[list[int], Piece]]:
        for ids, piece in rows:
            if self.done == 0:  # one piece shows whether blanks, line ends or case are lost
                plain = ids[:-1] if piece.ends_document and ids[-1:] == end_of(tokenizer) else ids
                self.is_lossy = tokenizer.decode(plain, skip_special_tokens=False) != piece.text
            self.done += len(piece.text)
            self.unknown += 0 if tokenizer.unk_id is None else ids.count(tokenizer.unk_id)
            if self.progress is not None:
                self.progress(self.done, self.characters)
            yield ids, piece

    def notes(self, source: Source, border: int) -> Iterator[str]:
        lost = [f"{self.unknown:,} unknown tokens"] if self.unknown else []
        lost += ["blanks, line ends or case"] if self.is_lossy else []
        if lost:
            yield f"the tokenizer does not keep the text exactly ({', '.join(lost)}); bits per byte leave that out"
        if border >= source.size:
            yield "nothing is held out for validation"


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _open(directory: Path, wanted: dict[str, Any]) -> Corpus | None:
    """Return the corpus in `directory` if it is the wanted one, whole and unchanged."""
    try:
        record = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
        if any(record.get(key) != value for key, value in wanted.items()):
            return None
        train, validation = (
            _open_tokens(directory / name, part, record["dtype"]) for name, part in record["parts"].items()
        )
        return Corpus(train, validation, list(record["notes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError):
        return None  # whatever lies there, it is made again


def _open_tokens(file: Path, part: dict[str, Any], dtype: str) -> TokenFile:
    if file_hash(file) != part["sha256"]:
        raise DataError(f"{file} must be as it was written, but is not")
    tokens = np.memmap(file, dtype=dtype, mode="r") if part["tokens"] else np.empty(0, dtype)
    return TokenFile(tokens, part["bytes"])
