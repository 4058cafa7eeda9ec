"""The loss on the held-out text: every token of it, never a sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from loquela.data.batch import IGNORED, Batch
from loquela.errors import DataError, NonFiniteError
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.training.layerwise import uncompiled
from loquela.training.ranks import ALONE, Ranks
from loquela.training.step import on_device, summed_loss, without_labels

__all__ = ["Validation", "validate"]


@dataclass(frozen=True)
class Validation:
    """`loss` in nats per token over `tokens` tokens; `bits_per_byte` of their text in UTF-8.

    None where the objective does not ask for each token of a text once: then the loss is that of predicted tokens.
    """

    loss: float
    tokens: int
    bits_per_byte: float | None


def validate(
    network: Network,
    batches: Iterable[Batch],
    n_bytes: int | None,
    *,
    dtype: torch.dtype = torch.float32,
    stopping: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Validation | None:
    """Score every label of the `batches`, which stand for `n_bytes` of text; sums in float64.

    Ranks take turns with the batches; each is given all of them and returns the result of all.

    Returns None when `stopping` says so before the end. Raises `DataError` when there is nothing to score,
    `NonFiniteError` when the loss is NaN or infinite.
    """
    nats, tokens = 0.0, 0
    turns = iter(batches)
    with evaluating(network), uncompiled(network):
        while turn := [*itertools.islice(turns, ranks.world)]:
            if stopping():
                return None
            own = turn[ranks.rank] if ranks.rank < len(turn) else without_labels(turn[0])
            nats += summed_loss(network, on_device(own, ranks.device), dtype).item()
            tokens += sum(int((batch.labels != IGNORED).sum()) for batch in turn)
    (nats,) = ranks.sum(nats)
    if not math.isfinite(nats):
        raise NonFiniteError(f"the loss on the held-out text must be a number, but is {nats}; lower learning_rate")
    if not tokens:
        raise DataError("what is held out must hold a token to predict, but does not; use a longer text")
    return Validation(nats / tokens, tokens, None if n_bytes is None else nats / math.log(2) / n_bytes)
