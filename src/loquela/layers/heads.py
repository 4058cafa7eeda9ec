"""What stands on top of an encoder: a token for every gap, a label for a text or a token, one vector for a text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.layers.norms import LayerNorm

__all__ = ["POOLINGS", "ClassificationHead", "MaskedTokenHead", "Pooler", "first_real", "pool"]

Activation = Callable[[Tensor], Tensor]


class MaskedTokenHead(nn.Module):
    """`decoder(norm(activation(dense(x))))`: logits of the token that a mask hides (BERT, arXiv:1810.04805)."""

    def __init__(self, dim: int, vocab_size: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(dim, dim), LayerNorm(dim, eps)
        self.decoder = nn.Linear(dim, vocab_size)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states `x` (…, dim) to logits (…, vocab_size)."""
        return self.decoder(self.norm(self.activation(self.dense(x))))  # type: ignore[no-any-return]


class Pooler(nn.Module):
    """`activation(dense(x))`: BERT's summary of a text, made of its first token's hidden state."""

    def __init__(self, dim: int, activation: Activation = F.tanh) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (…, dim) to the same shape."""
        return self.activation(self.dense(x))


class ClassificationHead(nn.Module):
    """Logits of labels, with a `pooler` between where the architecture has one of its own."""

    def __init__(
        self, dim: int, labels: int, *, dropout: float, pooler: Pooler | None = None, input_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.input_dropout, self.pooler = nn.Dropout(input_dropout), pooler
        self.dropout, self.output = nn.Dropout(dropout), nn.Linear(dim, labels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (…, dim) to logits (…, labels)."""
        x = self.input_dropout(x)
        return self.output(self.dropout(x if self.pooler is None else self.pooler(x)))  # type: ignore[no-any-return]


def first_real(x: Tensor, padding: Tensor | None) -> Tensor:
    """Return what `x` (batch, seq, dim) holds at each row's first real token; (batch, dim)."""
    return x[:, 0] if padding is None else _at(x, padding.int().argmax(1))


def _last_real(x: Tensor, padding: Tensor) -> Tensor:
    return _at(x, x.shape[1] - 1 - padding.flip(1).int().argmax(1))


def _at(x: Tensor, index: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device), index]


def _weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    return (x * weights[..., None]).sum(1)


def _mean(x: Tensor, padding: Tensor) -> Tensor:
    return _weighted_sum(x, padding) / padding.sum(1, keepdim=True)


def _mean_sqrt(x: Tensor, padding: Tensor) -> Tensor:
    return _weighted_sum(x, padding) / padding.sum(1, keepdim=True).sqrt()


def _weighted_mean(x: Tensor, padding: Tensor) -> Tensor:
    weights = padding.cumsum(1) * padding  # later tokens of a decoder have read more (SGPT, arXiv:2202.08904)
    return _weighted_sum(x, weights) / weights.sum(1, keepdim=True)


def _max(x: Tensor, padding: Tensor) -> Tensor:
    return x.masked_fill(~padding[..., None], float("-inf")).amax(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "cls": first_real,
    "max": _max,
    "lasttoken": _last_real,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
}
"""How many hidden states become one vector, by the names of sentence-transformers.

Each maps `x` (batch, seq, dim) and `padding` (batch, seq; True where a token is real) to (batch, dim).
"""


def pool(x: Tensor, padding: Tensor, modes: tuple[str, ...], *, normalise: bool = False) -> Tensor:
    """Return one vector per row of `x` (batch, seq, dim), several `modes` side by side: (batch, modes · dim).

    `normalise` divides each vector by its length, so that a dot product is a cosine.
    """
    y = torch.cat([POOLINGS[mode](x, padding) for mode in modes], dim=-1)
    return F.normalize(y, dim=-1) if normalise else y
