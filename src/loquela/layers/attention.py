"""Attention: the formula as a function, the multi-head layer as a class.

Shapes: B batch, H heads, G key-value heads, Q queries, K keys, E head_dim, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loquela.layers.positions import Rotary, rotate

__all__ = ["CrossAttention", "KeyValueStore", "MultiHeadAttention", "attention", "shared_heads", "weigh"]

Probe = Callable[[Tensor], None]


class KeyValueStore(Protocol):
    """All that a layer knows of a cache."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values; return all of them."""


def attention(
    q: Tensor,  # (B, H, Q, E)
    k: Tensor,  # (B, G, K, E)
    v: Tensor,  # (B, G, K, E)
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    probe: Probe | None = None,
) -> Tensor:  # (B, H, Q, E)
    """`softmax(q kᵀ · scale + mask) v` (arXiv:1706.03762, equation 1); `scale` is 1/√E unless given.

    `mask` broadcasts to (B, H, Q, K): boolean (True: may look) or a bias to add. `causal` is the mask of a square
    (Q = K) without building it. Where there are fewer key-value heads than heads, each serves H / G neighbours
    (grouped-query attention, arXiv:2305.13245). A `probe` is handed the weights (B, H, Q, K) after the softmax.
    """
    k, v = shared_heads(k, q.shape[1]), shared_heads(v, q.shape[1])
    if probe is None and (product := _learnt_in_half(q, k)) is not None:
        return _in_products(q.to(product), k.to(product), v.to(product), mask, causal, scale, dropout)
    if probe is None:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return weigh(scores, v, mask=mask, causal=causal, dropout=dropout, probe=probe)


_SHORT = 512
"""Keys up to which a table of all scores is faster to learn through than torch's own kernel, in bfloat16 on a CPU."""


def _learnt_in_half(q: Tensor, k: Tensor) -> torch.dtype | None:
    """Return bfloat16 where a gradient will be asked of a short attention in it, on a CPU.

    There the backward pass of torch's flash kernel multiplies without the processor's instructions for bfloat16:
    plain products of the whole table take half to a quarter of its time (2 cores, 64 to 512 keys).
    """
    if q.device.type != "cpu" or k.shape[2] > _SHORT or not (torch.is_grad_enabled() and q.requires_grad):
        return None
    product = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    return product if product == torch.bfloat16 else None


def _in_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None, dropout: float
) -> Tensor:
    """Compute `attention` with one product for all scores and one for what they weigh."""
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    bias = q.new_zeros(())
    if mask is not None and mask.dtype == torch.bool:  # of a row that sees nothing, nobody asks
        bias = q.new_zeros(mask.shape).masked_fill_(~mask, torch.finfo(q.dtype).min)
    elif mask is not None:
        bias = mask.to(q.dtype)
    if bias.dim() > 2:
        bias = bias.expand(*q.shape[:2], q.shape[2], k.shape[2]).flatten(0, 1)
    alpha = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=alpha)  # (B · H, Q, K)
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0).to(v.dtype)
    return torch.bmm(weights, v.flatten(0, 1)).view(*q.shape[:3], v.shape[-1])


def shared_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat each of the key-value heads of `x` (B, G, K, E) for its neighbours: (B, heads, K, E)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def weigh(
    scores: Tensor,  # (B, H, Q, K)
    v: Tensor,  # (B, H, K, E)
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    probe: Probe | None = None,
) -> Tensor:  # (B, H, Q, E)
    """`softmax(scores + mask) v`, the second half of `attention`, for scores that were made in another way."""
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    if probe is not None:
        probe(weights)
    return F.dropout(weights, dropout, training=dropout > 0) @ v


class MultiHeadAttention(nn.Module):
    """Several attentions side by side, each on its own slice of the model dimension (arXiv:1706.03762, 3.2.2).

    `fused` keeps query, key and value in one matrix, as GPT-2 and Phi-3 do. `q_norm` and `k_norm` normalise each
    head before the rotation (QK-norm, as in Qwen3). While `probe` is set, it is handed the weights after every softmax.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        fused: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.head_dim = head_dim or dim // heads
        self.scale, self.dropout = scale, dropout
        q_dim, kv_dim = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.splits = (q_dim, kv_dim, kv_dim)
        if fused:
            self.qkv_proj = nn.Linear(dim, q_dim + 2 * kv_dim, bias)
        else:
            self.q_proj = nn.Linear(dim, q_dim, bias)
            self.k_proj = nn.Linear(dim, kv_dim, bias)
            self.v_proj = nn.Linear(dim, kv_dim, bias)
        self.fused = fused
        self.o_proj = nn.Linear(q_dim, dim, bias if out_bias is None else out_bias)
        self.q_norm, self.k_norm = q_norm, k_norm
        self.probe: Probe | None = None

    def forward(
        self,
        x: Tensor,  # (B, Q, D)
        *,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueStore | None = None,
    ) -> Tensor:  # (B, Q, D)
        """Attend from `x` to itself and to what `cache` holds."""
        q, k, v = self.project(x)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.extend(k, v)
        y = self.attend(q, k, v, mask=mask, causal=causal)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, heads, Q, E), keys and values (both B, kv_heads, Q, E) of `x`, not yet rotated."""
        if self.fused:
            q, k, v = self.qkv_proj(x).split(self.splits, dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = self._heads(q, self.heads), self._heads(k, self.kv_heads), self._heads(v, self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool = False) -> Tensor:
        """Return what each query sees (B, heads, Q, E): the formula, with this layer's scale, dropout and probe."""
        dropout = self.dropout if self.training else 0.0
        return attention(q, k, v, mask=mask, causal=causal, scale=self.scale, dropout=dropout, probe=self.probe)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)  # (B, heads, seq, E)


class CrossAttention(MultiHeadAttention):
    """Attention from a decoder's stream to an encoder's output, whose keys and values are made once."""

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Project an encoder's output (B, K, D) to keys and values, both (B, kv_heads, K, head_dim)."""
        return self._heads(self.k_proj(memory), self.kv_heads), self._heads(self.v_proj(memory), self.kv_heads)

    def forward(  # type: ignore[override]
        self, x: Tensor, *, memory: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """Attend from `x` (B, Q, D) to `memory`, as `keys_values` made it; returns (B, Q, D)."""
        y = self.attend(self._heads(self.q_proj(x), self.heads), *memory, mask=mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
