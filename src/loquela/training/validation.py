"""The loss on the held-out text: every token of it, never a sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from loquela.data.batches import evaluation_blocks
from loquela.data.objectives import Batch
from loquela.data.shards import TokenFile
from loquela.errors import DataError, NonFiniteError
from loquela.generation.decode import evaluating
from loquela.models.base import Network
from loquela.training.step import summed_loss

__all__ = ["Validation", "validate"]


@dataclass(frozen=True)
class Validation:
    """`loss` in nats per token over `tokens` tokens; `bits_per_byte` of their text in UTF-8."""

    loss: float
    tokens: int
    bits_per_byte: float


def validate(
    network: Network,
    text: TokenFile,
    *,
    block: int,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    stopping: Callable[[], bool] = lambda: False,
) -> Validation | None:
    """Score every token but the first, in blocks side by side; sums in float64.

    Returns None when `stopping` says so before the end. Raises `DataError` when there is nothing to score,
    `NonFiniteError` when the loss is NaN or infinite.
    """
    if len(text) < 2:
        raise DataError(f"the held-out text must have at least 2 tokens, but has {len(text)}; use a longer text")
    nats = 0.0
    with evaluating(network):
        for inputs, labels in evaluation_blocks(text.tokens, block, batch_size):
            if stopping():
                return None
            nats += summed_loss(network, Batch(inputs, labels), dtype).item()
    if not math.isfinite(nats):
        raise NonFiniteError(f"the loss on the held-out text must be a number, but is {nats}; lower learning_rate")
    tokens = len(text) - 1
    return Validation(nats / tokens, tokens, nats / math.log(2) / text.n_bytes)
