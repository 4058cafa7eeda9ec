"""What a run trains on and is validated on, batch by batch; each a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from loquela.data.batch import Batch, Ids, Sample, collate
from loquela.data.batches import BlockOrder, Tokens, evaluation_blocks, shares
from loquela.data.objectives import Objective
from loquela.data.shards import Corpus
from loquela.data.special import Special
from loquela.errors import DataError
from loquela.text.tokenizer import Tokenizer

__all__ = ["HELD_OUT", "Blocks", "Material", "Samples", "Task", "Text"]

HELD_OUT = 1 << 63
"""Added to the numbers of held-out samples, so that none draws what a training sample draws."""
OPENING_WORDS = 3


@dataclass(frozen=True)
class Task:
    """An objective with its options and what it must know: a row of tokens in, a sample out."""

    objective: Objective
    special: Special
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    crosses_documents: bool = True
    """Whether attention reaches from one document into the one before it in the row."""

    def sample(self, tokens: Any, number: int) -> Sample:
        """Make sample `number` of the run; what is drawn depends on that number and the seed alone."""
        key = np.array([self.seed, number], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        sample = self.objective(tokens, generator, self.special, **self.options)
        if self.crosses_documents:
            return sample
        return Sample(sample.inputs, sample.labels, sample.source, self.documents(sample.inputs))

    def documents(self, inputs: Ids) -> Ids:
        """Number the documents of `inputs` (…, seq) in each row; the end token belongs to what it ends."""
        numbers = np.zeros(inputs.shape, dtype=np.int64)
        if self.special.eos is not None:
            np.cumsum(inputs[..., :-1] == self.special.eos, axis=-1, out=numbers[..., 1:])
        return numbers

    def batch(self, rows: Sequence[Any], first: int) -> Batch:
        """Make samples `first`, `first` + 1, … and put them together."""
        samples = [self.sample(row, first + index) for index, row in enumerate(rows)]
        return collate(samples, pad=self.special.filling, looks_ahead=self.special.reader == "encoder")


class Samples(Protocol):
    """The training samples, in their order."""

    @property
    def batch_size(self) -> int:
        """Samples of one update."""

    @property
    def per_epoch(self) -> int:
        """Samples of one pass."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Return the batch of a step (from 0), or the rows of it that one of `world` ranks computes."""

    def place(self, step: int) -> str:
        """Say which samples a step sees, for a message."""


class Material(Protocol):
    """All that the training loop needs of a run's data."""

    @property
    def train_tokens(self) -> int:
        """Tokens to learn from."""

    @property
    def train_bytes(self) -> int:
        """Bytes of their text in UTF-8, where bits per byte mean something; else 0."""

    @property
    def val_tokens(self) -> int:
        """Tokens held out, but for the first, which nothing predicts."""

    @property
    def val_bytes(self) -> int | None:
        """Bytes of text that a validation predicts, where bits per byte mean something."""

    @property
    def tokens(self) -> Tokens:
        """The training text, for a network that counts it."""

    def samples(self, block: int, batch_size: int) -> Samples:
        """Return the training samples, of at most `block` tokens each."""

    def held_out(self, block: int, batch_size: int) -> Iterator[Batch]:
        """Yield the batches of a validation: the same each time."""

    def opening(self, tokenizer: Tokenizer, limit: int) -> str:
        """Return something held out, of at most `limit` tokens, from which a model may go on."""


class Blocks:
    """Blocks of a long row of tokens, drawn in the order of `BlockOrder`."""

    def __init__(self, tokens: Tokens, task: Task, *, block: int, batch_size: int) -> None:
        self.tokens, self.task, self.batch_size = tokens, task, batch_size
        self.order = BlockOrder(len(tokens), block, batch_size, task.seed)
        self.per_epoch = self.order.blocks_per_epoch

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Return the batch of a step (from 0), or the rows of it that one of `world` ranks computes."""
        rows = self.order.blocks(self.tokens, self.order.indices(step, rank, world))
        return self.task.batch(list(rows), step * self.batch_size + shares(self.batch_size, rank, world).start)

    def place(self, step: int) -> str:
        """Say which samples a step sees, for a message."""
        starts = ", ".join(map(str, self.order.indices(step)))
        return f"its samples start at tokens {starts} of the training text"


@dataclass(frozen=True)
class Text:
    """A text as one long row of tokens, its end (or some documents) held out."""

    corpus: Corpus
    task: Task

    @property
    def tokens(self) -> Tokens:  # noqa: D102
        return self.corpus.train.tokens

    @property
    def train_tokens(self) -> int:  # noqa: D102
        return len(self.corpus.train)

    @property
    def train_bytes(self) -> int:  # noqa: D102
        return self.corpus.train.n_bytes if self.task.objective.is_whole_text else 0

    @property
    def val_tokens(self) -> int:  # noqa: D102
        return len(self.corpus.validation) - 1

    @property
    def val_bytes(self) -> int | None:  # noqa: D102
        return self.corpus.validation.n_bytes if self.task.objective.is_whole_text else None

    def samples(self, block: int, batch_size: int) -> Blocks:
        """Return blocks of the training text."""
        return Blocks(self.tokens, self.task, block=block, batch_size=batch_size)

    def held_out(self, block: int, batch_size: int) -> Iterator[Batch]:
        """Yield the held-out text: each token but the first once, where the objective asks for every token.

        Else blocks stand side by side, and what is left at the end, shorter than a block, is left out.
        """
        tokens = self.corpus.validation.tokens
        if len(tokens) < 2:
            raise DataError(f"the held-out text must have at least 2 tokens, but has {len(tokens)}; use a longer text")
        if self.task.objective.is_whole_text:
            for inputs, labels in evaluation_blocks(tokens, block, batch_size):
                crosses = self.task.crosses_documents
                segments = None if crosses else torch.from_numpy(self.task.documents(inputs.numpy()))
                yield Batch(inputs, labels, segments=segments)
            return
        size = min(block, len(tokens) - 1) + 1  # one more than a sample is long
        starts = range(0, len(tokens) - size + 1, size - 1)
        for first in range(0, len(starts), batch_size):
            rows = [tokens[s : s + size].astype(np.int64) for s in starts[first : first + batch_size]]
            yield self.task.batch(rows, HELD_OUT + first)

    def opening(self, tokenizer: Tokenizer, limit: int) -> str:
        """Return a few words: the first whole line that has some, or the text's start."""
        lines = tokenizer.decode(self.corpus.validation.tokens[:200].tolist()).split("\n")
        words = next((words for line in lines[1:] if len(words := line.split()) >= OPENING_WORDS), lines[0].split())
        ids = tokenizer.encode(" ".join(words[:OPENING_WORDS]), add_special_tokens=False)
        return tokenizer.decode(ids[:limit])
