"""What incremental decoding remembers; it belongs to the caller.

A layer knows one call, `extend(k, v)`: add the new keys and values, return all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loquela.layers.masks import positions_from_padding, positions_from_segments

__all__ = ["Cache", "CrossCache", "KeyValueCache", "positions"]


class KeyValueCache:
    """Keys and values of one layer, in a buffer that doubles when it is full."""

    def __init__(self) -> None:
        self.length = 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append `k`, `v` (batch, kv_heads, new, head_dim); return all so far (batch, kv_heads, length, head_dim)."""
        start, self.length = self.length, self.length + k.shape[2]
        if self._k is None or self._v is None or self.length > self._k.shape[2]:
            self._k, self._v = self._grown(self._k, k, start), self._grown(self._v, v, start)
        self._k[:, :, start : self.length] = k
        self._v[:, :, start : self.length] = v
        return self._k[:, :, : self.length], self._v[:, :, : self.length]

    def held(self) -> tuple[Tensor, Tensor]:
        """Return all so far, as `extend` does; there must be something."""
        assert self._k is not None
        assert self._v is not None
        return self._k[:, :, : self.length], self._v[:, :, : self.length]

    def _grown(self, old: Tensor | None, new: Tensor, used: int) -> Tensor:
        batch, heads, _, head_dim = new.shape
        buffer = new.new_empty(batch, heads, max(16, 2 * self.length), head_dim)
        if old is not None:
            buffer[:, :, :used] = old[:, :, :used]
        return buffer

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` positions."""
        self.length = min(self.length, length)

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the batch rows with indices `rows` (n,), in that order."""
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k.index_select(0, rows), self._v.index_select(0, rows)


class Cache:
    """The caches of all layers of a decoder, and how many positions they hold."""

    virtual: int = 0
    """How many of its first positions stand for no token: a soft prompt (`loquela.peft`)."""
    unreads: bool = True
    """Whether tokens read together become what they become one by one, and `truncate` undoes any of them."""

    def __init__(self, layers: int) -> None:
        self.layers = [KeyValueCache() for _ in range(layers)]

    @property
    def length(self) -> int:
        """Positions held so far."""
        return self.layers[0].length

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` positions."""
        for layer in self.layers:
            layer.truncate(length)

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) batch rows, as beam search does."""
        for layer in self.layers:
            layer.select(rows)


class CrossCache(Cache):
    """A decoder's cache beside the keys and values of the encoder's output, which every step reads again.

    `memory` holds one (k, v) pair per layer, each (batch, kv_heads, source, head_dim); `padding` (batch, source) is
    True where a source token is real.
    """

    unreads = False  # it could, but what guesses ahead knows prompts that go on, not sources

    def __init__(self, memory: list[tuple[Tensor, Tensor]], padding: Tensor | None = None) -> None:
        super().__init__(len(memory))
        self.memory, self.padding = memory, padding

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) batch rows, those of the encoder's output included."""
        super().select(rows)
        self.memory = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.memory]
        self.padding = None if self.padding is None else self.padding.index_select(0, rows)


def positions(
    cache: Cache | None,
    queries: int,
    device: torch.device,
    *,
    padding: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Return the positions of tokens that come after what `cache` holds: (queries,), or (batch, queries).

    With `padding` (batch, cached + queries) only real tokens are counted, with `segments` (batch, queries) each
    document from its own beginning.
    """
    if segments is not None:
        return positions_from_segments(segments)
    if padding is not None:
        return positions_from_padding(padding, queries)
    start = 0 if cache is None else cache.length
    return torch.arange(start, start + queries, device=device)
