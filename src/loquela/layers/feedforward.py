"""The feed-forward half of a block: each position on its own, wide and back."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "FeedForward", "GatedFeedForward", "relu_squared"]


def relu_squared(x: Tensor) -> Tensor:
    """`max(x, 0)²` (Primer, arXiv:2109.08668)."""
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": relu_squared,
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "tanh": F.tanh,
}
"""Activation functions by the names that checkpoints use."""


class FeedForward(nn.Module):
    """`down(activation(up(x)))` (arXiv:1706.03762, 3.3), with dropout before the way back where there is some."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor],
        *,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.up_proj = nn.Linear(dim, hidden, bias)
        self.down_proj = nn.Linear(hidden, dim, bias)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (…, dim) to the same shape."""
        return self.down_proj(self.dropout(self.activation(self.up_proj(x))))  # type: ignore[no-any-return]


class GatedFeedForward(nn.Module):
    """`down(activation(gate(x)) ⊙ up(x))`: SwiGLU when the activation is SiLU (arXiv:2002.05202)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor],
        *,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias)
        self.up_proj = nn.Linear(dim, hidden, bias)
        self.down_proj = nn.Linear(hidden, dim, bias)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (…, dim) to the same shape."""
        return self.down_proj(self.dropout(self.activation(self.gate_proj(x)) * self.up_proj(x)))  # type: ignore[no-any-return]
