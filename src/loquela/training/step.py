"""One update, from a batch to new weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from loquela.data.batches import IGNORED
from loquela.data.objectives import Batch
from loquela.errors import DataError, NonFiniteError
from loquela.models.base import Network
from loquela.training.optimizers import Optimizers

__all__ = ["Report", "summed_loss", "train_step"]


@dataclass(frozen=True)
class Report:
    """What an update measured: mean loss (nats per token), norm of the gradient before clipping, tokens with a loss."""

    loss: float
    gradient_norm: float
    tokens: int


def train_step(
    network: Network,
    optimizer: Optimizers,
    batch: Batch,  # the whole global batch
    step: int,
    factor: float,
    *,
    micro_batch: int,
    max_grad_norm: float | None = None,
    dtype: torch.dtype = torch.float32,
    stopping: Callable[[], bool] = lambda: False,
) -> Report | None:
    """Accumulate the gradient of the mean loss over all valid tokens of `batch`, then update.

    Each micro-batch divides by the valid tokens of the whole batch, so the gradient is the same however it is cut.
    Raises `NonFiniteError` before anything is changed when the loss or the gradient is NaN or infinite. Returns None,
    with the weights as they were, when `stopping` says so before all micro-batches are done.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    tokens = int((batch.labels != IGNORED).sum())
    if not tokens:
        raise DataError("a batch must have a label that is not -100, but has none")
    total = torch.zeros(())
    for first in range(0, len(batch), micro_batch):
        if stopping():
            return None
        share = summed_loss(network, batch.rows(slice(first, first + micro_batch)), dtype) / tokens
        share.backward()  # type: ignore[no-untyped-call]
        total += share.detach()
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    loss, gradient_norm = total.item(), norm.item()
    if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        raise NonFiniteError(f"loss is {loss}, norm of the gradient {gradient_norm}")
    if max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    optimizer.update(step, factor)
    return Report(loss, gradient_norm, tokens)


def summed_loss(network: Network, batch: Batch, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the cross-entropy in nats, summed over the labels that are not -100; logits only where there is one."""
    with nullcontext() if dtype == torch.float32 else torch.autocast(batch.inputs.device.type, dtype):
        hidden = network.hidden(batch.inputs, **batch.arguments).flatten(0, 1)  # (batch · seq, dim)
        labels = batch.labels.flatten()
        labelled = labels != IGNORED
        if not labelled.all():
            hidden, labels = hidden[labelled], labels[labelled]
        return F.cross_entropy(network.head(hidden), labels, reduction="sum")
