"""Which examples a prompt shows before its question: in-context learning (arXiv:2005.14165).

Every way returns the whole pool in an order of preference; the prompt takes from its front what it shows. So three
shots are the two shots and one more, and a shot that may not be shown has a successor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from loquela.errors import DataError, UsageError

__all__ = ["Example", "Nearest", "allowed", "balanced", "by_hand", "permuted", "random_order"]

Vectors: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Example:
    """A question and its answer, as both stand in a prompt; `label` is what `balanced` balances."""

    question: str
    answer: str
    label: str = ""

    @cached_property
    def key(self) -> str:
        """What makes two questions the same: their words, whatever the case and the white space."""
        return " ".join(self.question.lower().split())


def random_order(pool: Sequence[Example], seed: int) -> list[Example]:
    """Return the pool in an order drawn by `seed`; where an example stands depends on it and the seed alone."""
    return sorted(pool, key=lambda example: _draw(seed, example))


def balanced(pool: Sequence[Example], seed: int) -> list[Example]:
    """Return the pool in an order drawn by `seed` in which the labels take turns."""
    by_label: dict[str, list[Example]] = {}
    for example in random_order(pool, seed):
        by_label.setdefault(example.label, []).append(example)
    rounds = zip_longest(*(by_label[label] for label in sorted(by_label)))
    return [example for example in chain.from_iterable(rounds) if example is not None]


def by_hand(pool: Sequence[Example], numbers: Sequence[int]) -> list[Example]:
    """Return the examples with these numbers, counted from 1 as they stand in the pool; raises `UsageError`."""
    for number in numbers:
        if not 1 <= number <= len(pool):
            raise UsageError(f"a shot must be a number from 1 to the {len(pool)} examples there are, but is {number}")
    return [pool[number - 1] for number in numbers]


class Nearest:
    """The pool by likeness to a question: the cosine of embeddings, the nearest first (arXiv:2101.06804).

    `embed` maps texts to vectors (n, dim); it sees the pool once.
    """

    def __init__(self, pool: Sequence[Example], embed: Callable[[Sequence[str]], Vectors]) -> None:
        if not pool:
            raise DataError("there must be examples to choose the nearest from, but there are none")
        self.pool, self.embed = list(pool), embed
        self._vectors = _unit(embed([example.question for example in pool]))

    def __call__(self, question: str) -> list[Example]:
        """Return the pool, the examples nearest to `question` first."""
        likeness = self._vectors @ _unit(self.embed([question]))[0]
        return [self.pool[i] for i in np.argsort(-likeness, kind="stable")]


def allowed(pool: Iterable[Example], question: Example, count: int) -> list[Example]:
    """Return the first `count` of the pool, without the question itself, which a set may hold twice, and repetitions.

    They are fewer where the pool has no more.
    """
    seen = {question.key}
    kept: list[Example] = []
    for example in pool:
        if len(kept) == count:
            break
        if example.key not in seen:
            seen.add(example.key)
            kept.append(example)
    return kept


def permuted(shots: Sequence[Example], order: int) -> list[Example]:
    """Return the same shots in another order; order 0 is the one given."""
    if order == 0:
        return list(shots)
    draw = np.random.Generator(np.random.Philox(key=[order, len(shots)]))
    return [shots[i] for i in draw.permutation(len(shots))]


def _draw(seed: int, example: Example) -> bytes:
    return hashlib.blake2b(f"{seed}\0{example.question}\0{example.answer}".encode(), digest_size=16).digest()


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(vectors.dtype).tiny)
    return unit
