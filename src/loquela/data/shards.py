"""Token ids in memory-mapped files, made once per text and tokenizer.

`train.bin` and `val.bin` are bare little-endian unsigned integers, two bytes each when the vocabulary allows it, else
four; `corpus.json` beside them says what they are and which text and tokenizer they come from.
"""

from __future__ import annotations

import hashlib
import itertools
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
from loquela.errors import DataError, StorageError
from loquela.text.tokenizer import Tokenizer

__all__ = ["Corpus", "TokenFile", "build"]

_FORMAT = 1
_BATCH = 32  # pieces that are tokenised together: about a megabyte of text
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
    if not source.is_file():
        raise DataError(f"{source} must be a regular file, which is read more than once, but is not")
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
        _write(directory, wanted, measured, tokenizer, encoding, validation_fraction, progress)
    except OSError as error:
        raise StorageError(f"the tokens could not be written to {directory}: {error.strerror}") from error
    made = _open(directory, wanted)
    if made is None:
        raise StorageError(f"the tokens in {directory} are not what was written a moment ago; check the disk")
    return made


def _write(
    directory: Path,
    wanted: dict[str, Any],
    source: Source,
    tokenizer: Tokenizer,
    encoding: str,
    validation_fraction: float,
    progress: Progress | None,
) -> None:
    """Write both token files under other names, then put all in place, corpus.json last."""
    border = split_at(source.size, validation_fraction)
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    notes = list(source.notes)
    parts: dict[str, dict[str, Any]] = {}
    done = unknown = 0
    for name, start, stop in (("train", 0, border), ("val", border, None)):
        digest, count, n_bytes = hashlib.sha256(), 0, 0
        pieces = read_pieces(source.path, encoding=encoding, start=start, stop=stop) if start != stop else iter(())
        with (directory / f"{name}.bin.part").open("wb") as file:
            for batch in _batches(pieces):
                for ids, piece in zip(_encode(tokenizer, batch, source.is_document_set), batch, strict=True):
                    array = np.asarray(ids, dtype=dtype)
                    file.write(array.data)
                    digest.update(array.data)
                    count += len(array)
                    n_bytes += len(piece.text.encode())
                    done += len(piece.text)
                    unknown += int((array == tokenizer.unk_id).sum()) if tokenizer.unk_id is not None else 0
                if progress is not None:
                    progress(done, source.characters)
            _sync(file)
        parts[name] = {"tokens": count, "bytes": n_bytes, "sha256": digest.hexdigest()}
    if unknown:
        notes.append(
            f"the tokenizer does not know {unknown:,} places of the text: bits per byte leave out what they say"
        )
    record = {**wanted, "dtype": dtype, "parts": parts, "notes": notes}
    (directory / "corpus.json").unlink(missing_ok=True)
    for name in parts:
        (directory / f"{name}.bin.part").replace(directory / f"{name}.bin")
    with (directory / "corpus.json.part").open("wb") as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
        _sync(file)
    (directory / "corpus.json.part").replace(directory / "corpus.json")


def _encode(tokenizer: Tokenizer, batch: list[Piece], is_document_set: bool) -> Iterator[list[int]]:
    end = [] if tokenizer.eos_id is None or not is_document_set else [tokenizer.eos_id]
    encoded = tokenizer.encode_batch([piece.text for piece in batch], add_special_tokens=False)
    for ids, piece in zip(encoded, batch, strict=True):
        yield ids + end if piece.ends_document else ids


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    pieces = iter(pieces)
    while batch := list(itertools.islice(pieces, _BATCH)):
        yield batch


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _open(directory: Path, wanted: dict[str, Any]) -> Corpus | None:
    """Return the corpus in `directory` if it is the wanted one, whole and unchanged."""
    try:
        record = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
        if any(record.get(key) != value for key, value in wanted.items()):
            return None
        opened = []
        for name in ("train", "val"):
            part, file = record["parts"][name], directory / f"{name}.bin"
            if file_hash(file) != part["sha256"]:
                return None
            tokens = (
                np.memmap(file, dtype=record["dtype"], mode="r") if part["tokens"] else np.empty(0, record["dtype"])
            )
            opened.append(TokenFile(tokens, part["bytes"]))
        return Corpus(opened[0], opened[1], list(record["notes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError):
        return None  # whatever it was, it is made again
