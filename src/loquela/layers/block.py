"""One layer of a transformer: attention, then feed-forward, each added to the stream that runs past them."""

from __future__ import annotations

from torch import Tensor, nn

from loquela.layers.attention import KeyValueStore
from loquela.layers.positions import Rotary

__all__ = ["PreNormBlock"]


class PreNormBlock(nn.Module):
    """Normalise before each half (GPT-2, LLaMA): `x += attention(norm(x)); x += feedforward(norm(x))`."""

    def __init__(
        self,
        attention: nn.Module,
        feedforward: nn.Module,
        attention_norm: nn.Module,
        feedforward_norm: nn.Module,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.feedforward_norm, self.feedforward = feedforward_norm, feedforward
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueStore | None = None,
    ) -> Tensor:
        """Map the residual stream `x` (batch, seq, dim) to the same shape."""
        h = self.attention(self.attention_norm(x), rotary=rotary, mask=mask, causal=causal, cache=cache)
        x = x + self.dropout(h)
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))  # type: ignore[no-any-return]
