"""A directory that `loquela data build` made: shards of tokens, an index of documents, and what they are.

`train-00000.bin`, `validation-00000.bin` … are bare little-endian unsigned integers, two bytes each when the vocabulary
allows it, else four. `train.index` holds where each document ends, in tokens from the beginning of the split, as
little-endian 64-bit integers. `corpus.json` says what they are, `manifest.json` the SHA-256 of every file; the
tokenizer lies beside them in `tokenizer/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loquela.checkpoint.files import read_json
from loquela.checkpoint.store import verify
from loquela.checkpoint.tensors import write_bytes
from loquela.data.shards import Corpus, TokenFile
from loquela.errors import CheckpointError, DataError
from loquela.text.tokenizer import Tokenizer

__all__ = [
    "RECORD",
    "TOKENIZER",
    "Shards",
    "document_ends",
    "dtype_of",
    "is_built",
    "open_built",
    "write_record",
    "write_split",
]

RECORD, TOKENIZER = "corpus.json", "tokenizer"
_FORMAT = 2
_WRITE = 1 << 24  # tokens copied at once


class Shards:
    """Tokens (n,) in several memory-mapped files, as if they were one array; what is taken out is an array."""

    def __init__(self, parts: Sequence[npt.NDArray[Any]]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.dtype = self.parts[0].dtype

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, where: slice) -> npt.NDArray[Any]:
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise IndexError("shards are read forwards")
        taken: list[npt.NDArray[Any]] = []
        for part, end in zip(self.parts, self.ends.tolist(), strict=True):
            begin = end - len(part)
            if start < end and stop > begin:
                taken.append(part[max(0, start - begin) : stop - begin])
        if len(taken) == 1:
            return np.asarray(taken[0])
        return np.concatenate(taken) if taken else np.empty(0, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)


def dtype_of(tokenizer: Tokenizer) -> str:
    """Return how a token is written."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


def is_built(path: str | Path) -> bool:
    """Tell whether a directory was made by `loquela data build`."""
    return (Path(path) / RECORD).is_file() and (Path(path) / TOKENIZER).is_dir()


def write_split(
    directory: Path,
    name: str,
    tokens: npt.NDArray[Any],
    starts: npt.NDArray[np.int64],
    n_bytes: npt.NDArray[np.int64],
    documents: npt.NDArray[np.int64],
    shard: int,
) -> dict[str, Any]:
    """Copy the chosen documents to shards of at most `shard` tokens (a longer document has one by itself)."""
    lengths = starts[documents + 1] - starts[documents]
    ends = np.cumsum(lengths)
    shards: list[dict[str, Any]] = []
    first = 0
    while first < len(documents):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + shard, side="right")))
        file = f"{name}-{len(shards):05}.bin"
        with (directory / file).open("wb") as out:
            for run in _runs(documents[first:last]):
                begin, end = int(starts[run[0]]), int(starts[run[-1] + 1])
                for place in range(begin, end, _WRITE):
                    out.write(tokens[place : min(end, place + _WRITE)].data)
        shards.append({"file": file, "tokens": int(ends[last - 1]) - before, "documents": last - first})
        first = last
    write_bytes(directory / f"{name}.index", ends.astype("<i8").tobytes())
    return {
        "tokens": int(lengths.sum()),
        "bytes": int(n_bytes[documents].sum()),
        "documents": len(documents),
        "shards": shards,
    }


def _runs(documents: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Cut into runs of neighbours, which are copied in one go."""
    return [run for run in np.split(documents, np.flatnonzero(np.diff(documents) != 1) + 1) if len(run)]


def write_record(directory: Path, record: Mapping[str, Any], splits: Mapping[str, Any]) -> None:
    """Write corpus.json."""
    tokenizer = Tokenizer.load(directory / TOKENIZER)
    whole = {"format": _FORMAT, "dtype": dtype_of(tokenizer), **record, "splits": splits}
    write_bytes(directory / RECORD, (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode())


def open_built(directory: str | Path) -> tuple[Corpus, Tokenizer]:
    """Return what was built, and its tokenizer; raises `DataError` unless every byte is as it was written."""
    directory = Path(directory)
    try:
        verify(directory)
        record = read_json(directory, RECORD)
        if record["format"] != _FORMAT:
            raise DataError(f"{directory} must be of format {_FORMAT}, but is of {record['format']}; build it again")
        splits = record["splits"]
        train, validation = (_opened(directory, splits[name], record["dtype"]) for name in ("train", "validation"))
        return Corpus(train, validation, list(record["notes"])), Tokenizer.load(directory / TOKENIZER)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{directory} must be as `loquela data build` made it, but is not: {error}") from None


def document_ends(directory: str | Path, split: str) -> npt.NDArray[np.int64]:
    """Return where each document of a split ends (documents,), in tokens from its beginning; memory-mapped."""
    path = Path(directory) / f"{split}.index"
    return np.memmap(path, dtype="<i8", mode="r") if path.stat().st_size else np.empty(0, dtype=np.int64)


def _opened(directory: Path, split: Mapping[str, Any], dtype: str) -> TokenFile:
    parts = [
        np.memmap(directory / shard["file"], dtype=dtype, mode="r") for shard in split["shards"] if shard["tokens"]
    ]
    tokens: Any = parts[0] if len(parts) == 1 else Shards(parts) if parts else np.empty(0, dtype)
    if len(tokens) != split["tokens"]:
        raise DataError(f"{directory} must hold {split['tokens']:,} tokens, but holds {len(tokens):,}")
    return TokenFile(tokens, split["bytes"])
