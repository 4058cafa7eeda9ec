"""One update, from a batch to new weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.data.batch import IGNORED, Batch
from loquela.errors import DataError, NonFiniteError
from loquela.models.base import Network
from loquela.training.loss import LOGITS, cross_entropy, linear_head
from loquela.training.optimizers import Optimizers
from loquela.training.precision import LossScale
from loquela.training.ranks import ALONE, Ranks, local, rows_of

__all__ = ["Loss", "Report", "on_device", "summed_loss", "train_step", "without_labels"]

Loss = Callable[[Network, Batch, torch.dtype], Tensor]
"""The loss of a part of a batch, in nats, summed over its labels that are not -100 (a scalar)."""


@dataclass(frozen=True)
class Report:
    """What an update measured: mean loss (nats per token), norm of the gradient before clipping, tokens with a loss."""

    loss: float
    gradient_norm: float
    tokens: int
    applied: bool = True
    """Whether the weights were changed; not so when `accepts` said no."""


def train_step(
    network: Network,
    optimizer: Optimizers,
    batch: Batch | Sequence[Batch],  # the whole global batch, on every rank
    step: int,
    factor: float,
    *,
    micro_batch: int,
    max_grad_norm: float | None = None,
    dtype: torch.dtype = torch.float32,
    stopping: Callable[[], bool] = lambda: False,
    accepts: Callable[[float, float], bool] = lambda loss, gradient_norm: True,
    loss: Loss | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    ranks: Ranks = ALONE,
    scale: LossScale | None = None,
) -> Report | None:
    """Accumulate the gradient of the mean loss over all valid tokens of `batch`, then update.

    A batch is cut into parts of `micro_batch` rows; several, which may differ in width, are the parts themselves. Each
    part divides by the valid tokens of all parts on all ranks, so the gradient is the same however they are cut and
    whoever computes them. `loss` is by default `summed_loss`; `parameters` are those to train, by default all that
    require a gradient; `scale` is for float16.

    Raises `NonFiniteError` before anything is changed when the loss or the gradient is NaN or infinite. When `accepts`
    says no to them, nothing is changed either, and the report says so. Returns None, with the weights as they were,
    when `stopping` says so before all parts are done.
    """
    chosen = [p for p in (network.parameters() if parameters is None else parameters) if p.requires_grad]
    whole = [batch] if isinstance(batch, Batch) else batch
    tokens = sum(int((part.labels != IGNORED).sum()) for part in whole)
    if not tokens:
        raise DataError("a batch must have a label that is not -100, but has none")
    while True:
        for parameter in chosen:
            parameter.grad = None
        total = torch.zeros((), device=ranks.device)
        size = 1.0 if scale is None else scale.scale
        for part in _parts(batch, micro_batch, ranks):
            if stopping():
                return None
            share = (loss or summed_loss)(network, part, dtype) / tokens
            (share if scale is None else share * size).backward()  # type: ignore[no-untyped-call]
            total += share.detach()
        ranks.sum_gradients(chosen)
        gradients = [local(p.grad) for p in chosen if p.grad is not None]
        if scale is not None:
            torch._foreach_mul_(gradients, 1 / size)
        norm = ranks.norm(gradients)
        (mean_loss,), gradient_norm = ranks.sum(total.item()), norm.item()
        if math.isfinite(mean_loss) and math.isfinite(gradient_norm):
            break
        if scale is None or not math.isfinite(mean_loss) or not scale.overflowed():
            raise NonFiniteError(f"loss is {mean_loss}, norm of the gradient {gradient_norm}")
    if scale is not None:
        scale.held()
    if not accepts(mean_loss, gradient_norm):
        return Report(mean_loss, gradient_norm, tokens, applied=False)
    if max_grad_norm is not None and gradient_norm + 1e-6 > max_grad_norm:  # else the factor is one
        torch._foreach_mul_(gradients, torch.clamp(max_grad_norm / (norm + 1e-6), max=1.0))
    optimizer.update(step, factor)
    return Report(mean_loss, gradient_norm, tokens)


def summed_loss(
    network: Network, batch: Batch, dtype: torch.dtype = torch.float32, *, smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy in nats, summed over the labels that are not -100; logits only where there is one.

    Many logits are computed slice by slice; see `loquela.training.loss.cross_entropy`, also for `smoothing`.
    """
    with nullcontext() if dtype == torch.float32 else torch.autocast(batch.inputs.device.type, dtype):
        hidden = network.hidden(batch.inputs, **batch.arguments).flatten(0, 1)  # (batch · seq, dim)
        labels = batch.labels.flatten()
        labelled = labels != IGNORED
        if not labelled.all():
            hidden, labels = hidden[labelled], labels[labelled]
        if len(labels) * network.vocab_size > LOGITS:
            return cross_entropy(hidden, linear_head(network) or network.head, labels, smoothing=smoothing)
        return F.cross_entropy(network.head(hidden), labels, reduction="sum", label_smoothing=smoothing)


def _parts(batch: Batch | Sequence[Batch], micro_batch: int, ranks: Ranks) -> Iterator[Batch]:
    """Yield the parts that a rank computes, as many on each: one without labels where it has fewer than others."""
    if isinstance(batch, Batch):
        own = batch.rows(rows_of(len(batch), ranks.rank, ranks.world))
        most = -(-len(batch) // ranks.world)
        parts = [own.rows(slice(first, first + micro_batch)) for first in range(0, most, micro_batch)]
        spare = batch.rows(slice(0, 1))
    else:
        parts = [*batch[ranks.rank :: ranks.world]]
        spare = batch[0].rows(slice(0, 1))
        parts += [spare.rows(slice(0, 0))] * (-(-len(batch) // ranks.world) - len(parts))
    for part in parts:
        yield on_device(part if len(part) else without_labels(spare), ranks.device)


def without_labels(batch: Batch) -> Batch:
    """Return one row of a batch without its labels: what a rank computes while others have more to do."""
    row = batch.rows(slice(0, 1))
    return replace(row, labels=torch.full_like(row.labels, IGNORED))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on `device`."""
    if batch.labels.device == device:
        return batch
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})
