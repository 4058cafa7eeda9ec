"""From documents to jobs for the processes that tokenise, and from what they give back to one row of tokens."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from loquela.data.duplicates import Signatures
from loquela.data.gather import Gathering
from loquela.data.readers import Piece
from loquela.data.workers import Encoded, Job

__all__ = ["Documents", "Flow"]

_JOB = 1 << 20
"""Characters that a process tokenises at once."""


@dataclass
class Documents:
    """What is known of each document: numbers side by side, to hold millions of them."""

    digests: bytearray = field(default_factory=bytearray)
    """16 bytes each."""
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    """Where each begins in the file of tokens, and where the last one ends."""
    n_bytes: array[int] = field(default_factory=lambda: array("q"))
    sources: array[int] = field(default_factory=lambda: array("q"))
    held_out: array[int] = field(default_factory=lambda: array("b"))
    """1 or 0 where it is decided already, else -1."""
    signatures: list[Signatures] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.n_bytes)

    def digest(self, index: int) -> bytes:
        """Return the hash of a document's text."""
        return bytes(self.digests[16 * index : 16 * index + 16])


class Flow:
    """Cuts what is gathered into jobs, and joins what comes back to documents."""

    def __init__(
        self, gathering: Gathering, borders: list[int] | None, known: Documents, remove_duplicates: bool
    ) -> None:
        self.gathering, self.borders, self.known = gathering, borders, known
        self.remove_duplicates = remove_duplicates
        self.exact = 0
        """Documents that were left out before they were tokenised."""
        self._pending: list[list[tuple[int, int, bool, bytes, int]]] = []  # (source, bytes, ends, digest, held out)

    def jobs(self) -> Iterator[Job]:
        """Yield the jobs; an exact duplicate of an earlier document is left out at once, if it is in one piece."""
        texts, begins, marks, size = list[str](), list[bool](), list[tuple[int, int, bool, bytes, int]](), 0
        seen: set[bytes] = set()
        first, hasher = True, hashlib.blake2b(digest_size=16)
        for source, piece, held in self._parts():
            raw = piece.text.encode()
            hasher.update(raw)
            digest = hasher.digest() if piece.ends_document else b""
            if piece.ends_document:
                hasher = hashlib.blake2b(digest_size=16)
            if self.remove_duplicates and first and piece.ends_document:
                if digest in seen:  # not even tokenised
                    self.exact += 1
                    continue
                seen.add(digest)
            texts.append(piece.text)
            begins.append(first)
            marks.append((source, len(raw), piece.ends_document, digest, held))
            size += len(piece.text)
            first = piece.ends_document
            if size >= _JOB:
                self._pending.append(marks)
                yield Job(texts, begins)
                texts, begins, marks, size = [], [], [], 0
        if texts:
            self._pending.append(marks)
            yield Job(texts, begins)

    def _parts(self) -> Iterator[tuple[int, Piece, int]]:
        """Yield (source, piece, held out); of few documents, the end of each as a document of its own."""
        document = place = 0
        for source, piece in self.gathering:
            if self.borders is None:
                yield source, piece, -1
                continue
            border = self.borders[document] - place
            place += len(piece.text)
            if border >= len(piece.text):
                ends = piece.ends_document or border == len(piece.text)
                yield source, Piece(piece.text, ends), 0
            elif border <= 0:
                yield source, piece, 1
            else:
                line = piece.text.rfind("\n", 0, border) + 1
                cut = line if line else border
                yield source, Piece(piece.text[:cut], True), 0
                yield source, Piece(piece.text[cut:], piece.ends_document), 1
            if piece.ends_document:
                document, place = document + 1, 0

    def write(
        self, file: BinaryIO, results: Iterator[Encoded], end: list[int], progress: Callable[[int], None]
    ) -> None:
        """Write the tokens of all documents, each with its end, and note where they are."""
        known, n_bytes, characters, count = self.known, 0, 0, 0
        signatures: Signatures | None = None
        for result in results:
            marks = self._pending.pop(0)
            borders = np.cumsum(result.lengths, dtype=np.int64)[[mark[2] for mark in marks]]  # where documents end
            ids = np.insert(result.ids, np.repeat(borders, len(end)), np.tile(np.array(end, dtype=int), len(borders)))
            file.write(ids.data)
            known.starts.extend((count + borders + len(end) * np.arange(1, len(borders) + 1)).tolist())
            count += len(ids)
            for index, (source, size, ends, digest, held) in enumerate(marks):
                n_bytes += size
                if result.signatures is not None:
                    own = result.signatures[index]
                    signatures = own if signatures is None else np.minimum(signatures, own)
                if ends:
                    known.digests += digest
                    known.n_bytes.append(n_bytes)
                    known.sources.append(source)
                    known.held_out.append(held)
                    if signatures is not None:
                        known.signatures.append(signatures)
                    n_bytes, signatures = 0, None
            characters += sum(mark[1] for mark in marks)
            progress(characters)
