"""Semantic search: which document answers a question, by the cosine of their embeddings."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from loquela.errors import LoquelaError
from loquela.evaluation.items import Item
from loquela.evaluation.record import Record
from loquela.evaluation.rows import Row
from loquela.evaluation.subject import Subject
from loquela.evaluation.task import Task
from loquela.prompting.templates import fill

__all__ = ["Ranker", "documents", "ranking"]

_SHOWN = 10


class Ranker:
    """Ranks all documents of a task for each question; they are embedded once."""

    def __init__(self, subject: Subject, task: Task, rows: list[Row]) -> None:
        self.subject = subject
        self.documents = documents(task, rows)
        self._number = {text: i for i, text in enumerate(self.documents)}
        self._vectors: npt.NDArray[np.floating[Any]] | LoquelaError | None = None
        self._first = threading.Lock()

    def __call__(self, asked: Item) -> Record:
        """Return where the right document stands, from 1, and which stand first."""
        vectors = self._read()
        order = ranking(self.subject.embed(asked.questions)[0], vectors)
        gold = self._number[asked.references[0]]
        rank = int(np.flatnonzero(order == gold)[0]) + 1
        return {"gold": gold, "rank": rank, "top": order[:_SHOWN].tolist(), "documents": len(self.documents)}

    def _read(self) -> npt.NDArray[np.floating[Any]]:
        """Return the documents' vectors; what refuses them once is not asked again for every question."""
        with self._first:
            if self._vectors is None:
                try:
                    self._vectors = self.subject.embed(self.documents)
                except LoquelaError as error:
                    self._vectors = error
            if isinstance(self._vectors, LoquelaError):
                raise self._vectors
            return self._vectors


def documents(task: Task, rows: list[Row]) -> list[str]:
    """Return the different documents of a task, in the order of its rows."""
    assert task.target is not None
    return list(dict.fromkeys(fill(task.target, row) for row in rows))


def ranking(query: npt.NDArray[Any], vectors: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the numbers of `vectors` (n, dim), the most like `query` (dim,) first; equals keep their order."""
    wide = vectors.astype(np.float64)
    likeness = wide @ query.astype(np.float64) / np.linalg.norm(wide, axis=1)
    return np.argsort(-likeness, kind="stable")
