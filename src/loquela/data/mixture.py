"""Several texts in one run, each with its weight: how often its samples come, whatever its length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from loquela.data.batch import Batch, Ids
from loquela.data.batches import BlockOrder, Tokens, shares
from loquela.data.samples import HELD_OUT, Task, Text
from loquela.errors import UsageError
from loquela.text.tokenizer import Tokenizer

__all__ = ["Mixture", "MixtureSamples"]

_CYCLE = 1000
"""Samples in which every text comes as often as its weight says, to the nearest sample."""


class MixtureSamples:
    """Blocks of several texts, a pure function of (seed, step).

    Each cycle of 1,000 samples is shared out by weight and shuffled; the n-th sample of a text is the n-th of its own
    order. So a short text with a large weight is seen more often than a long one with a small weight.
    """

    def __init__(
        self, texts: Sequence[Tokens], weights: Sequence[float], task: Task, *, block: int, batch_size: int
    ) -> None:
        self.texts, self.task, self.batch_size = texts, task, batch_size
        self.orders = [
            BlockOrder(len(text), block, batch_size, (task.seed + index * 0x9E37_79B9) % 2**63)
            for index, text in enumerate(texts)
        ]
        self.counts = _shared_out(weights, _CYCLE)
        self.per_epoch = sum(order.blocks_per_epoch for order in self.orders)
        self._cycle: tuple[int, Ids] = (-1, np.empty(0, np.int64))

    def sources(self, numbers: Ids) -> tuple[Ids, Ids]:
        """Return which text each of the samples `numbers` (n,) is from, and which of that text's samples it is."""
        which, own = np.empty_like(numbers), np.empty_like(numbers)
        for place, (cycle, index) in enumerate(zip(*np.divmod(numbers, _CYCLE), strict=True)):
            order = self._order_of(int(cycle))
            which[place] = order[index]
            own[place] = cycle * self.counts[order[index]] + (order[:index] == order[index]).sum()
        return which, own

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Return the batch of a step (from 0), or the rows of it that one of `world` ranks computes."""
        rows = shares(self.batch_size, rank, world)
        first = step * self.batch_size + rows.start
        which, starts = self._starts(first, rows.stop - rows.start)
        blocks = [
            self.orders[source].blocks(self.texts[source], np.array([start]))[0]
            for source, start in zip(which.tolist(), starts.tolist(), strict=True)
        ]
        return self.task.batch(blocks, first)

    def place(self, step: int) -> str:
        """Say which samples a step sees, for a message."""
        which, starts = self._starts(step * self.batch_size, self.batch_size)
        named = ", ".join(f"{start} of text {source + 1}" for source, start in zip(which, starts, strict=True))
        return f"its samples start at tokens {named}"

    def _starts(self, first: int, count: int) -> tuple[Ids, Ids]:
        which, own = self.sources(np.arange(first, first + count))
        starts = np.empty_like(own)
        for source, order in enumerate(self.orders):
            mine = which == source
            starts[mine] = order.starts(own[mine].astype(np.uint64))
        return which, starts

    def _order_of(self, cycle: int) -> Ids:
        if self._cycle[0] != cycle:
            key = np.array([self.task.seed, HELD_OUT - 1 - cycle], dtype=np.uint64)
            texts = np.repeat(np.arange(len(self.counts)), self.counts)
            self._cycle = cycle, np.random.Generator(np.random.Philox(key=key)).permutation(texts)
        return self._cycle[1]


def _shared_out(weights: Sequence[float], total: int) -> Ids:
    """Return whole numbers that add up to `total`, as near to the weights as can be (largest remainders)."""
    shares_ = np.array(weights, dtype=np.float64)
    shares_ *= total / shares_.sum()
    counts = np.floor(shares_).astype(np.int64)
    most_left = np.argsort(-(shares_ - counts), kind="stable")
    counts[most_left[: total - counts.sum()]] += 1
    if not counts.all():
        raise UsageError(
            f"each weight must be at least a thousandth of all, but they are {', '.join(map(str, weights))}"
        )
    return counts


@dataclass(frozen=True)
class Mixture:
    """Texts with their weights; see `loquela.data.samples.Material`. Validated is all that is held out of any."""

    texts: Sequence[Text]
    weights: Sequence[float]

    @property
    def tokens(self) -> Tokens:  # noqa: D102
        return np.concatenate([np.asarray(text.tokens) for text in self.texts])

    @property
    def train_tokens(self) -> int:  # noqa: D102
        return sum(text.train_tokens for text in self.texts)

    @property
    def train_bytes(self) -> int:  # noqa: D102
        return sum(text.train_bytes for text in self.texts)

    @property
    def val_tokens(self) -> int:  # noqa: D102
        return sum(text.val_tokens for text in self._held_out)

    @property
    def val_bytes(self) -> int | None:  # noqa: D102
        sizes = [text.val_bytes for text in self._held_out]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def samples(self, block: int, batch_size: int) -> MixtureSamples:
        """Return the training samples."""
        tokens: list[Any] = [text.tokens for text in self.texts]
        return MixtureSamples(tokens, self.weights, self.texts[0].task, block=block, batch_size=batch_size)

    def held_out(self, block: int, batch_size: int) -> Iterator[Batch]:
        """Yield what is held out of each text, one after the other."""
        for text in self._held_out or self.texts[:1]:
            yield from text.held_out(block, batch_size)

    def opening(self, tokenizer: Tokenizer, limit: int) -> str:
        """Return a few words of the first text."""
        return (self._held_out or self.texts)[0].opening(tokenizer, limit)

    @cached_property
    def _held_out(self) -> list[Text]:
        return [text for text in self.texts if len(text.corpus.validation) > 1]
