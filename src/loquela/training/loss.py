"""The cross-entropy of a vocabulary, without the logits of all tokens in memory at once.

A vocabulary of 128,000 and 4,096 tokens make 2 GB of logits in float32, and a plain backward pass holds three such
tables. Here a slice of the tokens at a time is multiplied with the head; what the backward pass will need of it, the
gradient of the hidden states and of the head's weight, is computed at once, and the slice's logits are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from loquela.data.batches import IGNORED
from loquela.models.base import Network

__all__ = ["LOGITS", "cross_entropy", "linear_head"]

LOGITS = 1 << 24
"""Logits that may stand in memory at once (64 MB in float32); more are computed slice by slice."""

Head = Tensor | nn.Linear | Callable[[Tensor], Tensor]


def cross_entropy(
    hidden: Tensor, head: Head, labels: Tensor, *, smoothing: float = 0.0, logits_at_once: int = LOGITS
) -> Tensor:
    """Return the cross-entropy in nats, summed over the labels that are not -100 (a scalar).

    `hidden` (tokens, dim) and `labels` (tokens,; int64). `head` is the weight (vocab, dim), a plain `nn.Linear`, or
    any function from hidden states (n, dim) to logits (n, vocab). Nothing is computed where there is no label. Up to
    `logits_at_once` logits, all is done at once; beyond, slice by slice, with the exact gradient:

    - of a weight or a linear layer in the forward pass, at no further cost, and with no buffer for a frozen weight;
      such a loss can be differentiated once;
    - of any other head by computing the slice's logits again in the backward pass.

    With `smoothing` s, the target is (1 - s) on the label and s / vocab everywhere (arXiv:1512.00567). Under autocast
    the products are computed in its type, the softmax and the sum of the gradients in float32.
    """
    labelled = labels != IGNORED
    if not labelled.all():
        hidden, labels = hidden[labelled], labels[labelled]
    if isinstance(head, Tensor):
        weight, bias = head, None
    elif isinstance(head, nn.Linear):
        weight, bias = head.weight, head.bias
    else:
        return _of_any_head(hidden, head, labels, smoothing, logits_at_once)
    if len(labels) * len(weight) <= logits_at_once:
        logits = F.linear(hidden, weight, bias)
        return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    rows = max(1, logits_at_once // len(weight))
    summed: Tensor = _Chunked.apply(hidden, weight, bias, labels, smoothing, rows)  # type: ignore[no-untyped-call]
    return summed


def linear_head(network: Network) -> nn.Linear | None:
    """Return the linear layer that alone is `network.head`, or None where the head does more or other things.

    It is found by trying: no hidden states are sent through, and what comes out must be what that layer returned.
    """
    layer = getattr(network, "lm_head", None)
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    nothing = torch.empty(0, network.dim, device=layer.weight.device, dtype=layer.weight.dtype)
    try:
        with torch.no_grad():
            logits = network.head(nothing)
    finally:
        handle.remove()
    return layer if len(seen) == 1 and seen[0][0] is nothing and seen[0][1] is logits else None


def _of_any_head(
    hidden: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor, smoothing: float, logits_at_once: int
) -> Tensor:
    def of(hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(hidden), labels, reduction="sum", label_smoothing=smoothing)

    with torch.no_grad():
        vocab_size = head(hidden[:1]).shape[-1] if len(hidden) else 1
    if len(labels) * vocab_size <= logits_at_once:
        return of(hidden, labels)
    rows = max(1, logits_at_once // vocab_size)
    slices = zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True)
    parts: list[Tensor] = [checkpoint(of, h, y, use_reentrant=False) for h, y in slices]
    return torch.stack(parts).sum()


class _Chunked(torch.autograd.Function):
    """The loss of a linear head over slices of `rows` tokens; see `cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float, rows: int
    ) -> Tensor:
        kind = hidden.device.type
        product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        exact = torch.promote_types(product, torch.float32)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if needs_hidden else None
        of_weight = torch.zeros_like(weight) if needs_weight else None
        of_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        vocab_size = len(weight)
        total = torch.zeros((), dtype=exact, device=hidden.device)
        with torch.autocast(kind, enabled=False):
            w = weight.to(product)
            b = None if bias is None else bias.to(product)
            for first in range(0, len(labels), rows):
                part = slice(first, first + rows)
                h, y = hidden[part].to(product), labels[part, None]
                log_p = F.log_softmax(F.linear(h, w, b).to(exact), dim=1)
                total -= log_p.gather(1, y).sum() * (1 - smoothing)
                if smoothing:
                    total -= log_p.sum() * (smoothing / vocab_size)
                g = log_p.exp_()  # from here the gradient of the logits: p - target
                if smoothing:
                    g -= smoothing / vocab_size
                g.scatter_add_(1, y, torch.full_like(y, smoothing - 1.0, dtype=exact))
                if of_bias is not None:
                    of_bias += g.sum(0).to(of_bias.dtype)
                g = g.to(product)
                if of_hidden is not None and of_hidden.dtype == product:
                    torch.mm(g, w, out=of_hidden[part])
                elif of_hidden is not None:
                    of_hidden[part] = g @ w
                if of_weight is not None and of_weight.dtype == product:
                    of_weight.addmm_(g.t(), h)
                elif of_weight is not None:
                    of_weight += g.t() @ h
        ctx.gradients = of_hidden, of_weight, of_bias
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss of a chunked cross-entropy can be differentiated once, but was a second time")
        scaled = [None if g is None else g.mul_(gradient) for g in ctx.gradients]
        ctx.gradients = None
        return *scaled, None, None, None
