"""How a model knows where a token stands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "LearnedPositions",
    "RelativeBias",
    "Rotary",
    "SinusoidalPositions",
    "alibi_bias",
    "alibi_slopes",
    "rotary_frequencies",
    "rotate",
    "sinusoids",
]


def sinusoids(length: int, dim: int, base: float = 10_000.0) -> Tensor:
    """Return the (length, dim) table of sines and cosines of the 2017 transformer (arXiv:1706.03762, 3.5).

    Even columns hold `sin(position / base^(2i/dim))`, odd columns the cosine of the same angle.
    """
    wide = torch.float64  # in float32 the angle of position 1000 is off by 1e-4
    frequencies = base ** -(torch.arange(0, dim, 2, dtype=wide) / dim)  # (⌈dim/2⌉,)
    angles = torch.arange(length, dtype=wide)[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :dim].float()


class SinusoidalPositions(nn.Module):
    """The first `length` rows of `sinusoids`, by position; with `halves`, sines first, then cosines (Marian)."""

    table: Tensor

    def __init__(self, length: int, dim: int, *, halves: bool = False) -> None:
        super().__init__()
        table = sinusoids(length, dim)
        if halves:
            table = torch.cat((table[:, 0::2], table[:, 1::2]), dim=-1)
        self.register_buffer("table", table, persistent=False)

    def forward(self, where: Tensor) -> Tensor:
        """Map positions (…) to vectors (…, dim)."""
        return self.table[where]


class LearnedPositions(nn.Embedding):
    """A learned vector for each of `length` positions, the first of them in row `offset` of the table (BART)."""

    def __init__(self, length: int, dim: int, *, offset: int = 0) -> None:
        super().__init__(length + offset, dim)
        self.offset = offset

    def forward(self, where: Tensor) -> Tensor:
        """Map positions (…) to vectors (…, dim)."""
        return super().forward(where + self.offset)


def rotary_frequencies(head_dim: int, base: float = 10_000.0) -> Tensor:
    """Return the (head_dim / 2,) angles per position of rotary embedding (RoFormer, arXiv:2104.09864)."""
    return 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of the angles of each position of a batch; both (batch or 1, 1, seq, head_dim)."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, frequencies: Tensor, *, scale: float = 1.0) -> Rotary:
        """Angles of `positions` (seq,) or (batch, seq); `scale` multiplies both tables (YaRN's attention factor)."""
        if positions.dim() == 1:
            positions = positions[None]
        angles = positions[:, None, :, None].float() * frequencies  # (batch, 1, seq, head_dim / 2)
        angles = torch.cat((angles, angles), dim=-1)
        return cls(angles.cos() * scale, angles.sin() * scale)


class _Rotate(torch.autograd.Function):
    """The rotation, and as its derivative the rotation back; a third of the operations that autograd would record."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Rotate.apply(gradient, cos, -sin), None, None  # type: ignore[no-untyped-call]


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn each pair (i, i + width/2) of `x` (batch, heads, seq, head_dim) by its position's angle.

    `width` is that of the tables; where a head is wider, the rest of it is left as it is (partial rotation).
    """
    if (width := rotary.cos.shape[-1]) < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], rotary), x[..., width:]), dim=-1)
    return _Rotate.apply(x, rotary.cos.to(x.dtype), rotary.sin.to(x.dtype))  # type: ignore[no-any-return, no-untyped-call]


def alibi_slopes(heads: int) -> Tensor:
    """Return the (heads,) slopes of ALiBi (arXiv:2108.12409): powers of 2^(-8/n); a second series fills up other n."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes)


def alibi_bias(heads: int, queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """Return ALiBi's bias (heads, queries, keys): each head's slope times how far back a key lies, negative."""
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    distance = query - torch.arange(keys, device=device)
    return -alibi_slopes(heads).to(distance.device)[:, None, None] * distance.clamp_min(0)


class RelativeBias(nn.Module):
    """A learned bias per head and bucket of distance (T5, arXiv:1910.10683, 2.1).

    Half of the buckets hold one distance each, the rest widen as a logarithm up to `max_distance`.
    """

    def __init__(self, heads: int, *, buckets: int = 32, max_distance: int = 128, bidirectional: bool = False) -> None:
        super().__init__()
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional
        self.table = nn.Embedding(buckets, heads)

    def forward(self, queries: int, keys: int) -> Tensor:
        """Return the bias (heads, queries, keys) of the last `queries` of `keys` positions."""
        device = self.table.weight.device
        query = torch.arange(keys - queries, keys, device=device)[:, None]
        return self.table(self.bucket(torch.arange(keys, device=device) - query)).permute(2, 0, 1)  # type: ignore[no-any-return]

    def bucket(self, offset: Tensor) -> Tensor:
        """Return the bucket of each `offset` (…), a key's position minus the query's; same shape."""
        buckets, ahead = self.buckets, torch.zeros_like(offset)
        if self.bidirectional:
            buckets //= 2
            ahead = (offset > 0).long() * buckets
            distance = offset.abs()
        else:
            distance = (-offset).clamp_min(0)
        exact = buckets // 2
        grown = (distance.clamp_min(1).float() / exact).log() / math.log(self.max_distance / exact) * (buckets - exact)
        wide = (exact + grown.long()).clamp_max(buckets - 1)
        return ahead + torch.where(distance < exact, distance, wide)
