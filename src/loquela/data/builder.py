"""`loquela data build`: documents to memory-mapped tokens, without duplicates, some held out, in parallel processes.

Documents are read, hashed and sent to the processes, whose tokens are written one after the other to a file that is
dropped in the end. When all is known, the documents that are kept go to their shards. The order is that of the
sources, however many processes there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loquela.checkpoint.files import atomic_directory
from loquela.data import built
from loquela.data.duplicates import BINS, Duplicates
from loquela.data.flow import Documents, Flow
from loquela.data.gather import Gathering
from loquela.data.tokens import end_of
from loquela.data.workers import encode_all
from loquela.errors import DataError, UsageError
from loquela.text.tokenizer import Tokenizer

__all__ = ["FEW", "Report", "build"]

FEW = 20
"""Fewer documents than so many are not held out as a whole: the end of each is."""
SHARD = 1 << 28
"""Tokens of a shard at most."""
_LARGE = 1 << 23
"""Bytes of sources from which it pays to start processes."""


@dataclass(frozen=True)
class Report:
    """What a build came to."""

    directory: str
    documents: int
    """Read, duplicates among them."""
    exact_duplicates: int
    near_duplicates: int
    bad_rows: int
    train_documents: int
    train_tokens: int
    train_bytes: int
    val_documents: int
    val_tokens: int
    val_bytes: int
    shards: int
    notes: list[str]


def build(
    gathering: Gathering,
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    validation_fraction: float = 0.05,
    remove_duplicates: bool = True,
    near: float | None = 0.8,
    processes: int | None = None,
    shard: int = SHARD,
    progress: Callable[[int], None] = lambda characters: None,
) -> Report:
    """Tokenise documents into `directory`, which must not exist; it is whole in the end, or not there.

    Of documents with the same text the first is kept, and of those that share `near` of their shingles (None: not
    sought). A document is held out by the hash of its text, and with it all that nearly say the same. Each document
    ends with the tokenizer's end token. `processes` is by default one for each core.

    Raises what reading raises, `UsageError` for settings that cannot be, `DataError` when nothing is left,
    `StorageError` when it cannot be written.
    """
    if not 0 <= validation_fraction < 1 or (near is not None and not 0 < near <= 1):
        raise UsageError(
            "validation_fraction must be at least 0 and below 1, and near above 0 and at most 1, but they are "
            f"{validation_fraction} and {near}"
        )
    if Path(directory).exists():
        raise UsageError(f"the directory to build must not exist yet, but {directory} does; choose another")
    sizes = gathering.sizes(FEW)
    borders = None if sizes is None else [int(size * (1 - validation_fraction)) for size in sizes]
    with atomic_directory(directory) as temporary:
        work = temporary / "all.bin"
        known = Documents()
        seen = Flow(gathering, borders, known, remove_duplicates)
        with work.open("wb") as file:
            processes = processes or (_cores() if _is_large(gathering) else 1)
            results = encode_all(tokenizer, seen.jobs(), signed=near is not None, processes=processes)
            seen.write(file, results, end_of(tokenizer), progress)
        if not len(known):
            raise DataError("the sources must have documents, but have none")
        tokens = np.asarray(np.memmap(work, dtype=built.dtype_of(tokenizer), mode="r"))  # a plain view slices faster
        keep, held, exact, similar = _decided(known, tokens, validation_fraction, remove_duplicates, near)
        tokenizer.save(temporary / "tokenizer")
        notes = [*dict.fromkeys(gathering.notes)]
        if borders is not None:
            notes.append(f"fewer than {FEW} documents: the end of each is held out, not whole documents")
        if not held[keep].any():
            notes.append("nothing is held out for validation")
        if not (keep & ~held).any():
            raise DataError("some documents must be left to learn from, but all are held out; give more of them")
        record = {
            "tokenizer": tokenizer.fingerprint,
            "end": end_of(tokenizer),
            "sources": [
                {"name": name, "sha256": digest}
                for name, digest in zip(gathering.sources, gathering.hashes(), strict=True)
            ],
            "column": gathering.column,
            "encoding": gathering.encoding,
            "validation_fraction": validation_fraction,
            "remove_duplicates": remove_duplicates,
            "near": near,
            "documents": len(known) + seen.exact,
            "exact_duplicates": seen.exact + exact,
            "near_duplicates": similar,
            "bad_rows": gathering.bad_rows,
            "notes": notes,
        }
        starts = np.frombuffer(known.starts, dtype=np.int64)
        sizes_in_bytes = np.frombuffer(known.n_bytes, dtype=np.int64)
        splits = {
            name: built.write_split(
                temporary, name, tokens, starts, sizes_in_bytes, np.flatnonzero(keep & chosen), shard
            )
            for name, chosen in (("train", ~held), ("validation", held))
        }
        del tokens
        work.unlink()
        built.write_record(temporary, record, splits)
    train, validation = splits["train"], splits["validation"]
    return Report(
        str(directory),
        record["documents"],  # type: ignore[arg-type]
        record["exact_duplicates"],  # type: ignore[arg-type]
        similar,
        gathering.bad_rows,
        train["documents"],
        train["tokens"],
        train["bytes"],
        validation["documents"],
        validation["tokens"],
        validation["bytes"],
        len(train["shards"]) + len(validation["shards"]),
        notes,
    )


def _is_large(gathering: Gathering) -> bool:
    """Whether it takes longer to tokenise the sources than to start processes for it."""
    return sum(Path(s).stat().st_size if Path(s).exists() else _LARGE for s in gathering.sources) >= _LARGE


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decided(
    known: Documents, tokens: npt.NDArray[Any], fraction: float, remove: bool, near: float | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], int, int]:
    """Return which documents are kept and which are held out, and how many are exact and near duplicates."""
    n = len(known)
    exactly: dict[bytes, int] = {}
    same = np.array([exactly.setdefault(known.digest(i), i) for i in range(n)])
    first = same
    if near is not None:
        signatures = np.stack(known.signatures) if known.signatures else np.empty((0, BINS), np.uint32)
        last = 1  # the end token is no part of what a document says
        like = Duplicates(signatures, lambda i: tokens[known.starts[i] : known.starts[i + 1] - last], near)
        first = like.groups(chained=not remove)[same]
    exact = int((same != np.arange(n)).sum())
    similar = int((first != np.arange(n)).sum()) - exact
    keep = first == np.arange(n) if remove else np.ones(n, dtype=bool)
    fate = np.array([int.from_bytes(known.digest(i)[:8], "big") / 2**64 < fraction for i in first.tolist()])
    decided = np.frombuffer(known.held_out, dtype=np.int8)[first]
    return keep, np.where(decided < 0, fate, decided > 0), exact, similar
