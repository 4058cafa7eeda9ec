"""One layer of a transformer: attention, then feed-forward, each added to the stream that runs past them.

A block with a `cross` attention between the two looks at an encoder's output as well (arXiv:1706.03762, figure 1).
"""

from __future__ import annotations

from torch import Tensor, nn

from loquela.layers.attention import CrossAttention, KeyValueStore
from loquela.layers.positions import Rotary

__all__ = ["Block", "Memory", "PostNormBlock", "PreNormBlock", "SandwichBlock"]

Memory = tuple[Tensor, Tensor]
"""Keys and values of an encoder's output for one layer, made once by `CrossAttention.keys_values`."""


class Block(nn.Module):
    """The parts that every kind of block has; a subclass says where the norms stand."""

    def __init__(
        self,
        attention: nn.Module,
        feedforward: nn.Module,
        attention_norm: nn.Module,
        feedforward_norm: nn.Module,
        *,
        cross: CrossAttention | None = None,
        cross_norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.cross_norm, self.cross = cross_norm, cross
        self.feedforward_norm, self.feedforward = feedforward_norm, feedforward
        self.dropout = nn.Dropout(dropout)


class PreNormBlock(Block):
    """Normalise before each half (GPT-2, LLaMA, T5): `x += attention(norm(x)); x += feedforward(norm(x))`."""

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueStore | None = None,
        memory: Memory | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Map the residual stream `x` (batch, seq, dim) to the same shape."""
        h = self.attention(self.attention_norm(x), rotary=rotary, mask=mask, causal=causal, cache=cache)
        x = x + self.dropout(h)
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), memory=memory, mask=memory_mask))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))  # type: ignore[no-any-return]


class PostNormBlock(Block):
    """Normalise after each half (2017, BERT, BART): `x = norm(x + attention(x)); x = norm(x + feedforward(x))`."""

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueStore | None = None,
        memory: Memory | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Map the stream `x` (batch, seq, dim) to the same shape."""
        h = self.attention(x, rotary=rotary, mask=mask, causal=causal, cache=cache)
        x = self.attention_norm(x + self.dropout(h))
        if self.cross is not None and self.cross_norm is not None:
            x = self.cross_norm(x + self.dropout(self.cross(x, memory=memory, mask=memory_mask)))
        return self.feedforward_norm(x + self.dropout(self.feedforward(x)))  # type: ignore[no-any-return]


class SandwichBlock(Block):
    """Normalise before each half and once more behind it (Gemma 2): `x += norm(attention(norm(x)))`, and so on.

    The norms behind keep what is added to the stream small. OLMo 2 has only those; its norms before are identities.
    """

    def __init__(
        self,
        attention: nn.Module,
        feedforward: nn.Module,
        attention_norm: nn.Module,
        feedforward_norm: nn.Module,
        *,
        after_attention_norm: nn.Module,
        after_feedforward_norm: nn.Module,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(attention, feedforward, attention_norm, feedforward_norm, dropout=dropout)
        self.after_attention_norm, self.after_feedforward_norm = after_attention_norm, after_feedforward_norm

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueStore | None = None,
        memory: None = None,
        memory_mask: None = None,
    ) -> Tensor:
        """Map the residual stream `x` (batch, seq, dim) to the same shape; there is no encoder to look at."""
        h = self.attention(self.attention_norm(x), rotary=rotary, mask=mask, causal=causal, cache=cache)
        x = x + self.dropout(self.after_attention_norm(h))
        h = self.feedforward(self.feedforward_norm(x))
        return x + self.dropout(self.after_feedforward_norm(h))  # type: ignore[no-any-return]
