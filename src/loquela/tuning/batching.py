"""Which samples an update sees, and how they are put together so that little is computed for nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from loquela.data.batch import Batch, Sample, collate
from loquela.models.base import Network

__all__ = ["Assembler", "Order", "shares"]

ENOUGH, PLENTY = 128, 256
"""Positions that keep a processor busy: a group of samples is cut no smaller than that, and where it would be larger.

More at once would not be faster, but what is kept for the backward pass grows with them. A narrow network needs more
of them: as many as hold `NUMBERS` numbers at a layer.
"""
NUMBERS = 200_000
WASTE = 0.1
"""Share of a batch that may be filling before it is cut."""


class Order:
    """The order of items, a pure function of (seed, step): each epoch of a task has an order of its own.

    With several tasks, each slot of a step belongs to a task drawn with its share; a task's items come one after the
    other, epoch after epoch.
    """

    def __init__(self, tasks: Sequence[int], weights: Sequence[float], batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.members = [np.flatnonzero(np.array(tasks) == task) for task in range(len(weights))]
        self.weights = np.array(weights) / np.sum(weights)
        self._epoch = lru_cache(maxsize=2 * len(weights))(self._permutation)
        self._slots: list[int] = []  # the task of each slot, as far as it was asked for
        self._counts = np.zeros(len(weights), dtype=np.int64)

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the items of a step (from 0), (batch_size,)."""
        slots = step * self.batch_size + np.arange(self.batch_size)
        if len(self.members) == 1:
            return np.array([self._item(0, int(slot)) for slot in slots])
        tasks, before = self._drawn(step)
        found = []
        for task in tasks:
            found.append(self._item(int(task), int(before[task])))
            before[task] += 1
        return np.array(found)

    def _drawn(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The tasks of a step's slots, and how many of each came before.

        Slot n (from 0) belongs to the task whose count lags furthest behind n times its share: no draw at all, every
        stretch of the run has the mixture that was asked for.
        """
        first = step * self.batch_size
        while len(self._slots) < first + self.batch_size:
            task = int(np.argmax(self.weights * (len(self._slots) + 1) - self._counts))
            self._counts[task] += 1
            self._slots.append(task)
        slots = np.array(self._slots[: first + self.batch_size])
        return slots[first:], np.bincount(slots[:first], minlength=len(self.weights))

    def _item(self, task: int, place: int) -> int:
        epoch, index = divmod(place, len(self.members[task]))
        return int(self.members[task][self._epoch(task, epoch)[index]])

    def _permutation(self, task: int, epoch: int) -> npt.NDArray[np.int64]:
        random = np.random.Generator(np.random.Philox(key=[self.seed, (task << 32) + epoch]))
        return random.permutation(len(self.members[task]))


def shares(counts: Sequence[int], weights: Sequence[float | None], temperature: float) -> list[float]:
    """Return the share of each task: its weight (or its number of rows) to the power of 1 / temperature."""
    sizes = np.array([n if w is None else w for n, w in zip(counts, weights, strict=True)], dtype=np.float64)
    scaled = (sizes / sizes.sum()) ** (1 / temperature)
    return list(scaled / scaled.sum())


class Assembler:
    """Puts samples together for a network: side by side in packed rows where it can keep them apart, else by length."""

    def __init__(self, network: Network, *, at_most: int, limit: int, packing: bool) -> None:
        self.at_most, self.limit = at_most, limit
        self.looks_ahead = network.kind == "encoder"
        self.plenty = max(PLENTY, NUMBERS // network.dim)
        plain = getattr(type(network), "undressed", type(network))  # adapters pass on what they do not know
        self.packs = packing and "segments" in inspect.signature(plain.hidden).parameters

    def batches(self, samples: Sequence[Sample]) -> list[Batch]:
        """Return all samples in batches of at most `at_most`; the order inside does not matter to the sum of losses."""
        return [batch for batch, _ in self.numbered(samples)]

    def numbered(self, samples: Sequence[Sample]) -> Iterator[tuple[Batch, list[int]]]:
        """Yield unpacked batches, each with the numbers of its samples, the longest first."""
        for group in self.groups([max(len(s.inputs), 0 if s.source is None else len(s.source)) for s in samples]):
            yield self.together([samples[i] for i in group]), group

    def together(self, samples: Sequence[Sample]) -> Batch:
        """Return the samples as one batch, filled up on the right."""
        return collate(samples, looks_ahead=self.looks_ahead)

    def groups(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Cut samples, sorted by length, where the filling of a group would outgrow its worth."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        group: list[int] = []
        content = 0
        for index in order:
            if group:
                area = lengths[group[0]] * (len(group) + 1)
                wasteful = content >= ENOUGH and 1 - (content + lengths[index]) / area > WASTE
                if len(group) == self.at_most or area > self.plenty or wasteful:
                    yield group
                    group, content = [], 0
            group.append(index)
            content += lengths[index]
        if group:
            yield group

    def packed(self, samples: Sequence[Sample]) -> list[Batch]:
        """Return the samples in rows that hold several, numbered by `segments`; else as `batches`."""
        if not self.packs or samples[0].source is not None or self.looks_ahead or len(samples) == 1:
            return self.batches(samples)
        lengths = [len(sample.inputs) for sample in samples]
        width = min(self.limit, max(PLENTY, *lengths))
        rows = [_packed_row([samples[i] for i in row]) for row in _rows(lengths, width)]
        return [self.together([row]) for row in rows]


def _rows(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """First fit, the longest first: rows as wide as `limit` hold as many samples as they can."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = next((row for row, left in enumerate(room) if left >= lengths[index]), None)
        if fits is None:
            rows.append([])
            room.append(limit)
            fits = len(rows) - 1
        rows[fits].append(index)
        room[fits] -= lengths[index]
    return rows


def _packed_row(samples: Sequence[Sample]) -> Sample:
    return Sample(
        np.concatenate([sample.inputs for sample in samples]),
        np.concatenate([sample.labels for sample in samples]),
        segments=np.repeat(np.arange(len(samples)), [len(sample.inputs) for sample in samples]),
    )
