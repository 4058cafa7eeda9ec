"""The loss on the held-out text: every token of it, never a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from loquela.data.batch import IGNORED, Batch
from loquela.errors import DataError, NonFiniteError
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.training.step import summed_loss

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
) -> Validation | None:
    """Score every label of the `batches`, which stand for `n_bytes` of text; sums in float64.

    Returns None when `stopping` says so before the end. Raises `DataError` when there is nothing to score,
    `NonFiniteError` when the loss is NaN or infinite.
    """
    nats, tokens = 0.0, 0
    with evaluating(network):
        for batch in batches:
            if stopping():
                return None
            nats += summed_loss(network, batch, dtype).item()
            tokens += int((batch.labels != IGNORED).sum())
    if not math.isfinite(nats):
        raise NonFiniteError(f"the loss on the held-out text must be a number, but is {nats}; lower learning_rate")
    if not tokens:
        raise DataError("what is held out must hold a token to predict, but does not; use a longer text")
    return Validation(nats / tokens, tokens, None if n_bytes is None else nats / math.log(2) / n_bytes)
