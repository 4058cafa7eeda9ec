"""What a tuning minimises beside the plain loss: preferences between answers, and the distance from the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from loquela.data.batch import IGNORED, Batch
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.training.step import summed_loss
from loquela.tuning.batching import Assembler
from loquela.tuning.rendering import Item
from loquela.tuning.subject import Subject

__all__ = ["Anchor", "Losses", "Preferences", "margins", "preference_batches"]


@dataclass(frozen=True)
class Preferences(Batch):
    """Rows two by two: the answer that was chosen, then the one that was rejected."""


@dataclass(frozen=True)
class Anchor(Batch):
    """Rows on which the network is to stay as the base is; they carry no label of their own."""


@dataclass
class Losses:
    """The loss of a part of a batch, by what the part is; to be set up for each step."""

    subject: Subject
    beta: float = 0.1
    strength: float = 0.0
    """Of the pull towards the base: nats per token of the anchor's KL divergence count that much."""
    labels: int = 1
    """Labels of the whole step: what the sum is divided by."""
    pairs: int = 1
    """Pairs of answers of the whole step."""
    penalty: float = 0.0
    """What the anchors added to the mean loss of the step."""

    def start(self, batches: Sequence[Batch]) -> None:
        """Take note of what a step consists of."""
        self.labels = max(1, sum(int((part.labels != IGNORED).sum()) for part in batches))
        self.pairs = max(1, sum(len(part) // 2 for part in batches if isinstance(part, Preferences)))
        self.penalty = 0.0

    def __call__(self, network: Network, batch: Batch, dtype: torch.dtype) -> Tensor:
        """Return the loss, scaled so that a division by `labels` gives the mean."""
        if not isinstance(batch, (Preferences, Anchor)):
            return summed_loss(network, batch, dtype)
        with torch.autocast(batch.inputs.device.type, dtype, enabled=dtype != torch.float32):
            if isinstance(batch, Preferences):
                found = margins(self.subject, batch, network)
                return F.softplus(-self.beta * found).sum() * (self.labels / self.pairs)
            pull = self.strength * _divergence(self.subject, batch, network)
            self.penalty += pull.item()
            return pull * self.labels


def margins(subject: Subject, batch: Batch, network: Network) -> Tensor:
    """Return how much more than the base the network prefers the chosen answer (pairs,), in nats (arXiv:2305.18290).

    The base is the same network without its adapter.
    """
    own = _row_log_probs(network, batch)
    with subject.untuned() as base, evaluating(base):
        base_own = _row_log_probs(base, batch)
    gained = own - base_own
    return gained[0::2] - gained[1::2]


def preference_batches(items: Sequence[Item], assembler: Assembler) -> Iterator[tuple[Preferences, list[int]]]:
    """Yield both answers of each item side by side, items of like length together; with the items' numbers."""
    answers = [(item.sample, item.rejected) for item in items if item.rejected is not None]
    for numbers in assembler.groups([max(len(a.inputs), len(b.inputs)) for a, b in answers]):
        whole = assembler.together([sample for i in numbers for sample in answers[i]])
        yield Preferences(whole.inputs, whole.labels), numbers


def _row_log_probs(network: Network, batch: Batch) -> Tensor:
    """Return the log-probability of what is learnt in each row, summed (rows,)."""
    hidden = network.hidden(batch.inputs, **batch.arguments)
    labelled = batch.labels != IGNORED
    nats = F.cross_entropy(network.head(hidden[labelled]).float(), batch.labels[labelled], reduction="none")
    rows = labelled.nonzero()[:, 0]
    return torch.zeros(len(batch), dtype=nats.dtype, device=nats.device).index_add(0, rows, -nats)


def _divergence(subject: Subject, batch: Batch, network: Network) -> Tensor:
    """Return KL(base ‖ network), the mean over the real positions of the anchor's rows."""
    real = batch.segments
    assert real is not None
    mask = real >= 0
    own = network.head(network.hidden(batch.inputs)[mask]).float().log_softmax(-1)
    with subject.untuned() as base, evaluating(base):
        theirs = base.head(base.hidden(batch.inputs)[mask]).float().log_softmax(-1)
    return F.kl_div(own, theirs, log_target=True, reduction="batchmean")
