"""Processes that tokenise side by side; what they give does not depend on how many they are."""

from __future__ import annotations

import collections
import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loquela.data.duplicates import Signatures, minima
from loquela.errors import DataError
from loquela.text.tokenizer import Tokenizer

__all__ = ["Encoded", "Job", "encode", "encode_all"]

_AHEAD = 4
"""Jobs that wait for each process."""


@dataclass(frozen=True)
class Job:
    """Pieces of text, and of each whether it begins its document."""

    texts: list[str]
    begins: list[bool]


@dataclass(frozen=True)
class Encoded:
    """The ids of a job's pieces one after the other, how many each has, and its bins for near duplicates."""

    ids: npt.NDArray[Any]
    lengths: list[int]
    signatures: Signatures | None


def encode(tokenizer: Tokenizer, job: Job, signed: bool) -> Encoded:
    """Tokenise a job; `signed` asks for the bins."""
    heads = iter(tokenizer.encode_batch(_chosen(job, True), add_special_tokens=False))
    tails = iter(tokenizer.encode_continuations(_chosen(job, False)))
    rows = [next(heads if begins else tails) for begins in job.begins]
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    arrays = [np.array(row, dtype=dtype) for row in rows]
    ids = np.concatenate(arrays) if arrays else np.empty(0, dtype)
    return Encoded(ids, [len(row) for row in rows], minima(arrays) if signed else None)


def _chosen(job: Job, wanted: bool) -> list[str]:
    return [text for text, begins in zip(job.texts, job.begins, strict=True) if begins is wanted]


def encode_all(tokenizer: Tokenizer, jobs: Iterable[Job], *, signed: bool, processes: int) -> Iterator[Encoded]:
    """Tokenise jobs in their order, `processes` at once; with one, here, in as many threads as there are cores.

    Raises `DataError` when a process dies.
    """
    if processes <= 1:
        for job in jobs:
            yield encode(tokenizer, job, signed)
        return
    # Forking a process that has threads can hang; a fresh one takes a third of a second to start. The tokenizer goes
    # there in a file: what is larger than a pipe holds would block us for ever where a process dies at its start.
    context = multiprocessing.get_context("spawn")
    waiting: collections.deque[Future[Encoded]] = collections.deque()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "tokenizer.json"
        file.write_text(tokenizer.backend.to_str(), encoding="utf-8")
        pool = ProcessPoolExecutor(processes, context, _begin, (str(file), signed))
        try:
            for job in jobs:
                waiting.append(pool.submit(_work, job))
                if len(waiting) >= _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "a process that tokenises has died, perhaps for want of memory; try again with fewer: --workers 1 (in "
                "Python processes=1; else a script must build under `if __name__ == '__main__':`)"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_tokenizer: Tokenizer | None = None
_signed = False


def _begin(file: str, signed: bool) -> None:
    import signal

    import tokenizers

    global _tokenizer, _signed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends us
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer, _signed = Tokenizer(tokenizers.Tokenizer.from_file(file)), signed


def _work(job: Job) -> Encoded:
    assert _tokenizer is not None
    return encode(_tokenizer, job, _signed)
