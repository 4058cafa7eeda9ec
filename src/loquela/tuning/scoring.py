"""Items scored without learning from them: nats, tokens that would be chosen right, labels that would be given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from loquela.data.batch import IGNORED, Batch
from loquela.errors import NonFiniteError
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.tuning.batching import Assembler
from loquela.tuning.rendering import Item

__all__ = ["Scores", "score_items"]

Numbers = npt.NDArray[np.float64]
_LOGITS = 1 << 24
"""Logits that may stand in memory at once."""


@dataclass(frozen=True)
class Scores:
    """What a model makes of items; arrays (items,).

    `nats` and `tokens` are of what is to be learnt, `right` counts the tokens that a greedy choice would hit;
    `predicted` is the number of the label that a classifier gives.
    """

    nats: Numbers
    tokens: npt.NDArray[np.int64]
    n_bytes: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    choices: tuple[npt.NDArray[np.int64], ...]
    """What is the most probable at each label of an item."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Bits for each UTF-8 byte of the completions; the end token's bits are among them."""
        return float(self.nats.sum() / math.log(2) / self.n_bytes.sum())

    @property
    def token_accuracy(self) -> float:
        """Share of the tokens that the most probable one is right for."""
        return float(self.right.sum() / self.tokens.sum())


def score_items(
    network: Network,
    items: Sequence[Item],
    assembler: Assembler,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """Score items with what the network wears; None when `stopping` says so before the end.

    Raises `NonFiniteError` when a loss is not a number.
    """
    nats, tokens, right, predicted = (np.zeros(len(items)) for _ in range(4))
    choices: list[npt.NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(items)
    with evaluating(network):
        for batch, numbers in assembler.numbered([item.sample for item in items]):
            if stopping():
                return None
            sums, chosen = _scored(network, batch)
            for into, found in zip((nats, tokens, right, predicted), sums, strict=True):
                into[numbers] = found
            for number, own in zip(numbers, chosen, strict=True):
                choices[number] = own
    if not np.isfinite(nats).all():
        raise NonFiniteError("the loss on the held-out rows must be a number, but is not; lower learning_rate")
    return Scores(
        nats,
        tokens.astype(np.int64),
        np.array([item.n_bytes for item in items], dtype=np.int64),
        right.astype(np.int64),
        predicted.astype(np.int64),
        tuple(choices),
    )


def _scored(network: Network, batch: Batch) -> tuple[Numbers, list[npt.NDArray[np.int64]]]:
    """Return nats, tokens, right ones and the last choice, each per row of a batch (4, rows); and all choices."""
    hidden = network.hidden(batch.inputs, **batch.arguments)
    where = (batch.labels != IGNORED).nonzero()  # (labels, 2)
    rows, labels = where[:, 0], batch.labels[where[:, 0], where[:, 1]]
    found = hidden[where[:, 0], where[:, 1]]
    wide = network.head(found[:1]).shape[-1]
    nats, chosen = [], []
    step = max(1, _LOGITS // wide)
    for first in range(0, len(labels), step):
        logits = network.head(found[first : first + step]).float()
        nats.append(F.cross_entropy(logits, labels[first : first + step], reduction="none").double())
        chosen.append(logits.argmax(-1))
    choices = torch.cat(chosen)
    summed = torch.zeros(4, len(batch), dtype=torch.float64)
    summed[0].index_add_(0, rows, torch.cat(nats))
    summed[1].index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
    summed[2].index_add_(0, rows, (choices == labels).double())
    summed[3][rows] = choices.double()
    ends = np.cumsum(summed[1].numpy().astype(np.int64))[:-1]
    return summed.numpy(), np.split(choices.cpu().numpy(), ends)
