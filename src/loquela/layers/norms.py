"""Normalisation over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LayerNorm", "RMSNorm", "rms_normalise"]


def rms_normalise(x: Tensor, eps: float) -> Tensor:
    """Divide `x` (…, dim) by its root mean square over the last dimension, computed in float32 at least.

    Written out instead of `F.rms_norm`, whose backward pass on a CPU costs more than twice that of `layer_norm`.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight` (Zhang and Sennrich, 2019, arXiv:1910.07467); without a weight when `weight=False`."""

    def __init__(self, dim: int, eps: float = 1e-6, *, weight: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if weight else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (…, dim); same shape and dtype."""
        y = rms_normalise(x, self.eps)
        return y if self.weight is None else self.weight * y


class LayerNorm(nn.LayerNorm):
    """`(x - mean) / std * weight + bias` (Ba et al., 2016, arXiv:1607.06450)."""
