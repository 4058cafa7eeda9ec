"""Mixture of experts: many feed-forwards, of which each token uses a few."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(nn.Module):
    """The `chosen` experts that a router likes best for a token, weighted by its softmax (arXiv:2101.03961).

    With `normalise`, the weights of the chosen ones add up to one (arXiv:2401.04088).
    """

    def __init__(self, dim: int, experts: Iterable[nn.Module], chosen: int, *, normalise: bool = True) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = nn.Linear(dim, len(self.experts), bias=False)
        self.chosen, self.normalise = chosen, normalise

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (…, dim) to the same shape."""
        tokens = x.flatten(0, -2)  # (T, dim)
        weights, chosen = self.router(tokens).softmax(-1, torch.float32).topk(self.chosen)  # both (T, chosen)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights.to(x.dtype)
        y = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            token, rank = (chosen == index).nonzero(as_tuple=True)
            if len(token) or self.training:  # in training each has a gradient, if of zeros
                y.index_add_(0, token, expert(tokens[token]) * weights[token, rank, None])
        return y.view_as(x)
